"""The committed results are sound: whole, of the cells that their config says, at the rates that the search chose."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest
from scipy import stats

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.grid import choose, search
from lora_bench.grid.cells import expand
from lora_bench.grid.config import Config, load_comparisons, load_config
from lora_bench.grid.presets import find_preset
from lora_bench.records import archive
from lora_bench.records.schema import Record
from lora_bench.records.store import Loaded, read_records, write_csv
from lora_bench.report.content import Content, gather
from lora_bench.report.escaping import file_stems
from lora_bench.report.figures.catalogue import all_figures
from lora_bench.report.formats.render import csv_table, markdown_table
from lora_bench.report.numbers.frame import rows_of
from lora_bench.report.numbers.statistics import seed_interval
from tests.fake_sources import fake_sources

RESULTS = Path(__file__).parents[1] / "results"
FOLDERS = sorted(path.parent.name for path in RESULTS.glob(f"*/{archive.NAME}"))
AVERAGED = ("cola", "sst2", "mrpc", "stsb")
SOURCES = fake_sources(lambda location: location, lambda location, task: location)
VERDICTS = ("mini-against-lora", "vera-against-lora")
REPORTED = ("base", "methods", "minilm", *VERDICTS)
AGAIN = "base-again"  # some cells of base, each trained again alone
CONFIGURED = [name for name in FOLDERS if name != AGAIN]
LONGER = "base-x3"  # five settings of base with three times the epochs
METHODS = "methods"  # every method, on a small encoder
STAGED = ("base", LONGER, METHODS, *VERDICTS)  # folders whose config searches rates itself
over_folders = pytest.mark.parametrize("name", FOLDERS)
over_configured = pytest.mark.parametrize("name", CONFIGURED)


@cache
def loaded(name: str) -> Loaded:
    return read_records(RESULTS / name)


def settings(cell: Cell) -> tuple[object, ...]:
    """A cell without where its model and data came from."""
    return tuple(value for name, value in cell.model_dump().items() if name not in ("model", "data"))


def config_of(name: str) -> Config:
    """The config of a folder: a verdict's stands in it."""
    verdict = RESULTS / name / "verdict.yaml"
    return load_config(verdict if verdict.is_file() else find_preset(name))


def grid_of(name: str) -> dict[tuple[object, ...], Cell]:
    """The cells that the config of a folder asks for."""
    return {settings(cell): cell for cell in expand(config_of(name), {}, SOURCES).cells}


def value(text: str) -> object:
    """A field of a table: a number if it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def near(text: str) -> object:
    """What a field is compared with."""
    found = value(text)
    return pytest.approx(found, rel=1e-9, nan_ok=True) if isinstance(found, float) else found


def test_there_are_results() -> None:
    assert sorted(["base", AGAIN, LONGER, METHODS, "minilm", "minilm-rates", "minilm-sweep", *VERDICTS]) == FOLDERS


@over_configured
def test_ids_follow_from_settings_and_none_is_there_twice(name: str) -> None:
    found = loaded(name)
    assert found.broken == ()
    assert (
        len(list(archive.lines(RESULTS / name))) == len(found.records) == len({record.id for record in found.records})
    )
    assert len({(record.cell.model, record.protocol.select) for record in found.records}) == 1
    tasks = {cell.task for cell in grid_of(name).values()}
    assert len({(record.cell.task, record.cell.data) for record in found.records}) == len(tasks)


@over_folders
def test_the_table_is_that_of_the_records(name: str, tmp_path: Path) -> None:
    assert write_csv(tmp_path, loaded(name).records).read_bytes() == (RESULTS / name / "metrics.csv").read_bytes()


@cache
def report(name: str) -> Content:
    return gather(loaded(name), False, load_comparisons(RESULTS / name), methods.by_kind().items())


@pytest.mark.parametrize("folder_name", REPORTED)
def test_the_reports_tables_are_those_of_the_records(folder_name: str) -> None:
    """Text to the letter, numbers to 1e-9 of their size: processors may sum in another order."""
    content = report(folder_name)
    folder = RESULTS / folder_name / "tables"
    named = dict(zip(file_stems([table.name for table in content.tables]), content.tables, strict=True))
    assert sorted(named) == sorted(path.stem for path in folder.glob("*.csv"))
    for name, table in named.items():
        kept = list(csv.reader((folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()))
        rebuilt = list(csv.reader(csv_table(table).splitlines()))
        assert len(rebuilt) == len(kept)
        for one, other in zip(rebuilt, kept, strict=True):
            assert [*map(value, one)] == [*map(near, other)], name


@over_folders
def test_all_cells_are_done_and_whole(name: str) -> None:
    for record in loaded(name).records:
        assert record.status == "done"
        assert len(record.epochs) == record.cell.epochs
        assert record.score is not None
        assert record.predictions == () or len(record.predictions) == (record.data.eval_rows if record.data else 0)


@pytest.mark.parametrize("name", [name for name in CONFIGURED if name not in STAGED])
def test_the_cells_are_those_of_the_config(name: str) -> None:
    assert grid_of(name).keys() == {settings(record.cell) for record in loaded(name).records}


@pytest.mark.parametrize("name", STAGED)
def test_the_cells_are_those_that_the_searches_lead_to(name: str) -> None:
    """Every cell of the grid and of its searches is there, at the rates that they chose; none is beside them."""
    records = {record.id: record for record in loaded(name).records}
    data = {record.cell.task: record.cell.data for record in records.values()}
    (model,) = {record.cell.model for record in records.values()}
    sources = fake_sources(lambda location: model, lambda location, task: data[task])
    entries = expand(config_of(name), {}, sources).given(records).resolver.entries()
    cells = {entry.cell.id: entry.cell for entry in entries if entry.cell is not None}
    assert records.keys() <= cells.keys()
    assert [entry for entry in entries if entry.cell is None or entry.cell.id not in records] == []


@pytest.mark.parametrize("name", STAGED)
def test_one_version_of_the_code_trained_all_cells_of_a_method(name: str) -> None:
    codes = {(record.cell.method, record.environment["code"]) for record in loaded(name).records}
    assert len(codes) == len({method for method, _ in codes})
    assert load_comparisons(RESULTS / name) == config_of(name).compare


def outer_size(settings: Cell | choose.SearchedSettings) -> int:
    """The product of a and b."""
    return (settings.a or 1) * (settings.b or 1)


def rank_size(settings: Cell | choose.SearchedSettings) -> int:
    """The rank."""
    return settings.rank or 1


def test_the_rates_are_those_that_the_search_chose() -> None:
    """Each (a, b) takes those of the nearest product searched, then each rank of the nearest, both by ratio."""
    chosen = choose.choose_rates(loaded("minilm-sweep").records)
    for cell in grid_of("minilm").values():
        same = (cell.method, cell.targets, cell.task)
        rates = [rate for rate in chosen if (rate.settings.method, rate.settings.targets, rate.task) == same]
        for size in (outer_size, rank_size):
            nearest = search.nearest(size(cell), [size(rate.settings) for rate in rates])
            rates = [rate for rate in rates if size(rate.settings) == nearest]
        assert [rate.lr for rate in rates] == [cell.lr], cell


def test_the_search_used_other_seeds() -> None:
    seeds = {name: {record.cell.seed for record in loaded(name).records} for name in FOLDERS}
    assert seeds["minilm"].isdisjoint(seeds["minilm-sweep"])
    assert seeds["minilm"] == seeds["minilm-rates"]


def averages(records: Iterable[Record], rates: Mapping[str, float] | None = None) -> list[float]:
    """By seed, the mean score ×100 over the four tasks of `minilm-rates`, at these rates."""
    averaged = [r for r in records if r.cell.task in AVERAGED and (rates is None or r.cell.lr == rates[r.cell.task])]
    by_seed = {record.cell.seed: [r.score for r in averaged if r.cell.seed == record.cell.seed] for record in averaged}
    assert {len(scores) for scores in by_seed.values()} == {len(AVERAGED)}
    return [100 * fmean(score or 0 for score in by_seed[seed]) for seed in sorted(by_seed)]


@cache
def report_lines(name: str) -> frozenset[str]:
    """The lines of a report: its tables as Markdown, and its sentences."""
    content = report(name)
    tables = (markdown_table(table) for table in content.tables if not table.is_data)
    sentences = (f"- {sentence}" for section in content.sections for sentence in section.answer)
    return frozenset(line for text in (*tables, *sentences) for line in text.splitlines())


def findings(text: str) -> list[str]:
    """The lines of a section on findings."""
    (section,) = re.findall(r"\n## (?:Findings|What it has shown so far)\n(.*?)\n## ", text, re.DOTALL)
    return str(section).splitlines()


@pytest.mark.parametrize(
    ("name", "path"),
    [*((name, RESULTS / name / "README.md") for name in REPORTED), ("base", RESULTS.parent / "README.md")],
    ids=[*REPORTED, "top"],
)
def test_the_findings_are_the_reports_own_words(name: str, path: Path) -> None:
    """Every row of a table and every sentence with a number of a score is a line of the report."""
    lines = findings(path.read_text(encoding="utf-8"))
    quoted = [line for line in lines if line.startswith("|") or re.search(r"\d\.\d|GPU-minutes", line)]
    assert len(quoted) >= 3
    assert [line for line in quoted if line not in report_lines(name)] == []


def test_the_answer_is_the_one_that_other_code_computed() -> None:
    """Of LoRA-Mini and LoRA at equal size: the independent review's interval and verdict, and scipy's interval."""
    (table,) = [table for table in report("minilm").tables if table.name.startswith("declared")]
    rows = {(row["size"], row["targets"], row["reference_size"]): row for row in rows_of(table.data)}
    row = rows["mini r=32 a=64 b=64", "attention", "lora r=4"]
    shown = [round(100 * row[name], 1) for name in ("difference", "paired_low", "paired_high")]
    assert shown == [-2.1, -3.5, -0.8]
    assert row["verdict"] == "worse"
    assert round(100 * rows["mini r=16 a=64 b=64", "attention+dense", "lora r=16"]["difference"], 1) == -2.1
    assert round(100 * rows["ia3", "kv+ffn", "mini r=4 a=64 b=64"]["difference"], 1) == 1.6
    scores = [
        averages(r for r in loaded("minilm").records if r.cell.model_dump().items() >= fields.items())
        for fields in (
            {"method": "mini", "targets": "attention", "rank": 32, "a": 64, "b": 64},
            {"method": "lora", "targets": "attention", "rank": 4},
        )
    ]
    welch = stats.ttest_ind(*scores, equal_var=False).confidence_interval(0.95)
    assert 200 * row["seeds_half"] == pytest.approx(welch.high - welch.low)


def checks() -> str:
    return (RESULTS / "minilm" / "checks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REPORTED)
def test_there_are_at_most_twelve_figures(name: str) -> None:
    stem = "all-minilm-l6-v2" if name in ("methods", "minilm") else "all-mpnet-base-v2"
    names = sorted(path.stem for path in (RESULTS / name / "figures").glob("*.png"))
    assert names == sorted(picture.name for picture, _ in all_figures(report(name).sections[0].statistics, stem))
    assert len(names) <= 12


def chosen(records: Iterable[Record]) -> dict[choose.SearchedSettings, dict[str, float]]:
    """By setting and task, the rate best on held-out rows."""
    rates: dict[choose.SearchedSettings, dict[str, float]] = {}
    for choice in choose.choose_rates(records):
        rates.setdefault(choice.settings, {})[choice.task] = choice.lr
    return rates


def against(scores: list[float], others: list[float]) -> str:
    """A difference paired by seed with Student's interval."""
    differences = [one - other for one, other in zip(scores, others, strict=True)]
    interval = seed_interval(differences)
    assert interval is not None
    return f"{fmean(differences):+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def test_the_table_of_rates_is_that_of_the_records() -> None:
    """Averages at the grid's rates, at those that these seeds choose, of each seed at those that the others choose."""
    tried = loaded("minilm-rates").records
    others = [chosen(record for record in tried if record.cell.seed != seed) for seed in range(5)]

    def scores(settings: choose.SearchedSettings) -> tuple[list[float], list[float], list[float]]:
        grid, tried_here = (
            [r for r in records if r.cell.model_dump().items() >= settings._asdict().items()]
            for records in (loaded("minilm").records, tried)
        )
        crossed = [averages(tried_here, others[seed][settings])[seed] for seed in range(5)]
        return averages(grid), averages(tried_here, chosen(tried)[settings]), crossed

    (reference,) = [settings for settings in chosen(tried) if (settings.method, settings.rank) == ("lora", 16)]
    lora = scores(reference)
    for settings in chosen(tried):
        name = f"`{settings.method}` r={settings.rank}" + (f", a = b = {settings.a}" if settings.a else "")
        by_choice = scores(settings)
        fields = [name, *(f"{fmean(values):.1f}" for values in by_choice)]
        compared = [against(one, other) for one, other in zip(by_choice[1:], lora[1:], strict=True)]
        fields += ["–", "–"] if settings == reference else compared
        assert f"| {' | '.join(fields)} |\n" in checks()

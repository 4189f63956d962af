"""The committed results are sound: whole, of the cells that their config says, at the rates that the search chose."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lora_bench.cell import Cell
from lora_bench.compare import Arm
from lora_bench.grid import choose
from lora_bench.grid.cells import expand
from lora_bench.grid.config import load_comparisons, load_config
from lora_bench.grid.presets import find_preset
from lora_bench.records import archive
from lora_bench.records.schema import Record
from lora_bench.records.store import Loaded, read_records, write_csv
from lora_bench.report.content import Content, gather
from lora_bench.report.escaping import file_stems
from lora_bench.report.figures.catalogue import all_figures
from lora_bench.report.formats.render import csv_table, markdown_table
from lora_bench.report.numbers.frame import rows_of
from lora_bench.report.numbers.statistics import holm_correction, seed_interval
from tests.fake_sources import fake_sources

RESULTS = Path(__file__).parents[1] / "results"
FOLDERS = sorted(path.parent.name for path in RESULTS.glob(f"*/{archive.NAME}"))
AVERAGED = ("cola", "sst2", "mrpc", "stsb")
SOURCES = fake_sources(lambda location: location, lambda location, task: location)
REPORTED = ("base", "minilm")
NAMED = {"mini": "LoRA-Mini", "lora": "LoRA"}
AGAIN = "base-again"  # some cells of base, each trained again alone
BASE_TASKS = ("cola", "mrpc", "stsb", "rte")  # those that base averages over
PEFT = "lora r=8 (qv)"  # the setting that a bare loop of transformers and peft trained too
CONFIGURED = [name for name in FOLDERS if name != AGAIN]
LONGER = "base-x3"  # five settings of base with three times the epochs
STAGED = ("base", LONGER)  # folders whose config searches rates itself
over_folders = pytest.mark.parametrize("name", FOLDERS)
over_configured = pytest.mark.parametrize("name", CONFIGURED)


@cache
def loaded(name: str) -> Loaded:
    return read_records(RESULTS / name)


def settings(cell: Cell) -> tuple[object, ...]:
    """A cell without where its model and data came from."""
    return tuple(value for name, value in cell.model_dump().items() if name not in ("model", "data"))


def grid_of(name: str) -> dict[tuple[object, ...], Cell]:
    """The cells that the config of a folder asks for."""
    return {settings(cell): cell for cell in expand(load_config(find_preset(name)), {}, SOURCES).cells}


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
    assert FOLDERS == ["base", AGAIN, LONGER, "minilm", "minilm-rates", "minilm-sweep"]


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
    return gather(loaded(name), False, load_comparisons(RESULTS / name))


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
    steps = expand(load_config(find_preset(name)), {}, sources).given(records).resolver.steps()
    cells = {step.cell.id: step.cell for step in steps if step.cell is not None}
    assert records.keys() <= cells.keys()
    assert [step for step in steps if step.cell is None or step.cell.id not in records] == []


@pytest.mark.parametrize("name", STAGED)
def test_one_version_of_the_code_trained_all_cells_of_a_method(name: str) -> None:
    codes = {(record.cell.method, record.environment["code"]) for record in loaded(name).records}
    assert len(codes) == len({method for method, _ in codes})
    assert load_comparisons(RESULTS / name) == load_config(find_preset(name)).compare


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
            nearest = choose.nearest(size(cell), [size(rate.settings) for rate in rates])
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


def seed_scores(arm: Arm, tasks: Iterable[str], name: str = "base") -> NDArray[np.float64]:
    """The scores ×100 of a declared setting, `[seeds, tasks]`."""
    final = [record for record in loaded(name).records if not record.is_search and record.cell.init != "published"]
    members = [r for r in final if all(getattr(r.cell, field) == value for field, value in arm.items())]
    of = {(r.cell.task, r.cell.seed): 100 * (r.score or 0) for r in members}
    seeds = sorted({seed for _, seed in of})
    return np.array([[of[task, seed] for task in tasks] for seed in seeds if ("cola", seed) in of])


Sides = Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
TESTS = {
    "welch": lambda one, other: stats.ttest_ind(one, other, equal_var=False).pvalue,
    "paired": lambda one, other: stats.ttest_rel(one, other).pvalue,
    "rank sum": lambda one, other: stats.mannwhitneyu(one, other).pvalue,
}


def corrected(test: str, sides: Sides) -> list[str]:
    """Holm's p of each comparison, as the page writes it."""
    values = holm_correction(np.array([TESTS[test](*side) for side in sides]))
    return ["<0.001" if value < 0.001 else f"{value:.3f}" for value in values]


def differences(sides: Sides, average: Callable[[NDArray[np.float64]], Any] = np.mean) -> list[str]:
    """The differences of means or medians."""
    return [f"{average(one) - average(other):+.1f}" for one, other in sides]


def sensitivity() -> list[str]:
    """How much the declared comparisons depend on the test, on RTE and on CoLA: a row each."""
    pairs = load_comparisons(RESULTS / "base").pairs

    def over(tasks: tuple[str, ...]) -> Sides:
        return [(seed_scores(pair.arm, tasks).mean(1), seed_scores(pair.against, tasks).mean(1)) for pair in pairs]

    every, no_rte, no_cola = over(BASE_TASKS), over(("cola", "mrpc", "stsb")), over(("mrpc", "stsb", "rte"))
    columns = [
        *zip(*([arm_text(side) for side in (pair.arm, pair.against)] for pair in pairs), strict=True),
        *(differences(every), differences(every, np.median)),
        *(corrected(test, every) for test in ("welch", "paired", "rank sum")),
        *(differences(no_rte), corrected("welch", no_rte), corrected("rank sum", no_rte)),
        *(differences(no_cola), corrected("welch", no_cola)),
    ]
    return [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]


def longer_less_base() -> str:
    """What five settings gain by three times the epochs, over the seeds that both have."""
    gains = []
    for pair in load_comparisons(RESULTS / LONGER).pairs:
        for arm in (pair.arm, pair.against):
            long, short = (seed_scores(arm, BASE_TASKS, name).mean(1) for name in (LONGER, "base"))
            gain = long.mean() - short.mean()
            interval = stats.ttest_ind(long, short, equal_var=False).confidence_interval(0.95)
            gains.append(f"{arm_text(arm)} {gain:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]")
    return ", ".join(dict.fromkeys(gains))


def both_correlations(record: Record) -> float:
    """The mean of Pearson's and Spearman's correlation ×100, of the epoch that has the best on held-out rows."""

    def mean(scores: Mapping[str, float | None] | None) -> float:
        return fmean(value or 0 for value in (scores or {}).values())

    return 100 * mean(max(record.epochs, key=lambda epoch: mean(epoch.held_out)).metrics)


def beside_peft() -> list[str]:
    """LoRA r=8 on q and v beside a bare loop of transformers and peft, a row a task and one of their average."""
    lines = (RESULTS / "base" / "plain-peft.jsonl").read_text(encoding="utf-8").splitlines()
    plain = {(line["task"], line["seed"]): 100 * line["score"] for line in map(json.loads, lines)}
    assert plain.keys() == set(itertools.product(BASE_TASKS, range(20)))
    (arm,) = [pair.against for pair in load_comparisons(RESULTS / "base").pairs if arm_text(pair.against) == PEFT]
    both = seed_scores(arm, BASE_TASKS), np.array([[plain[task, seed] for task in BASE_TASKS] for seed in range(20)])
    correlated = [r for r in loaded("base").records if r.cell.task == "stsb" and not r.is_search]
    by_seed = {
        record.cell.seed: both_correlations(record)
        for record in correlated
        if all(getattr(record.cell, field) == value for field, value in arm.items())
    }
    both[0][:, BASE_TASKS.index("stsb")] = [by_seed[seed] for seed in range(20)]
    rows = []
    for title in (*BASE_TASKS, "average"):
        chosen = range(len(BASE_TASKS)) if title == "average" else [BASE_TASKS.index(title)]
        ours, peft = (side[:, list(chosen)].mean(1) for side in both)
        error = np.sqrt(np.var(ours, ddof=1) / 20 + np.var(peft, ddof=1) / 20)
        difference = ours.mean() - peft.mean()
        interval = stats.ttest_ind(ours, peft, equal_var=False).confidence_interval(0.95)
        sides = [f"{side.mean():.1f} ± {side.std(ddof=1):.1f}" for side in (ours, peft)]
        rows.append(
            f"| {title} | {' | '.join(sides)} | {difference:+.2f} | \\[{interval.low:+.1f}, {interval.high:+.1f}\\] | "
            f"{difference / error:+.1f} | {np.median(ours) - np.median(peft):+.2f} |"
        )
    return rows


def again_alone() -> str:
    """How far cells that were trained again, each alone, are from those in their packs, as the page says it."""
    first = {record.id: record.score or 0 for record in loaded("base").records}
    differences = np.array([100 * ((record.score or 0) - first[record.id]) for record in loaded(AGAIN).records])
    count = len(differences)
    half = stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    mean = differences.mean()
    return (
        f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}] points on average over the {count}; either way "
        f"{np.median(abs(differences)):.1f} at the median and {abs(differences).max():.1f} at most"
    )


def arm_text(arm: Arm) -> str:
    """A declared setting in short, with targets other than all linear layers."""
    outer = f" a={arm['a']} b={arm['b']}" if "a" in arm else ""
    return f"{arm['method']} r={arm['rank']}{outer}" + (" (qv)" if arm["targets"] == "qv" else "")


def assert_cards_are_those_named(plain: str) -> None:
    """On which cards the cells of base and of three times the epochs ran."""
    cards = {
        name: Counter((record.environment["device"], record.is_search) for record in loaded(name).records)
        for name in ("base", LONGER)
    }
    assert f"{sum(count for (card, _), count in cards['base'].items() if 'H200' in card)} cells of `full`" in plain
    (h100,) = {card for card, _ in cards[LONGER] if "H100" in card}
    assert f"{cards[LONGER][h100, True]} trials and {cards[LONGER][h100, False]} final cells" in plain


def test_what_the_page_on_base_says_beside_the_report_is_that_of_the_records() -> None:
    text = (RESULTS / "base" / "README.md").read_text(encoding="utf-8")
    plain = " ".join(text.split())
    records = {record.id: record for record in loaded("base").records}
    assert f"All {len(records):,} cells" in plain
    search_minutes, minutes = (
        sum(record.timing.seconds for record in part if record.timing) / 60
        for part in ([record for record in records.values() if record.is_search], records.values())
    )
    assert f"{minutes:.0f} GPU-minutes in all, {search_minutes:.0f} of them searches" in plain
    assert [line for line in (*sensitivity(), *beside_peft(), again_alone()) if line not in text] == []
    (declared,) = [table for table in report(LONGER).tables if table.name.startswith("declared")]
    rows = [line for line in markdown_table(declared).splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert "\n".join(rows) in text

    final = [r for r in records.values() if not r.is_search and r.cell.init != "published"]
    scores = {name: [r.score or 0 for r in final if (r.cell.task, r.cell.method) == ("cola", name)] for name in NAMED}
    low = {name: sum(score < 0.05 for score in values) for name, values in scores.items()}
    counts = [[low[name], len(scores[name]) - low[name]] for name in NAMED]
    said = [f"{low[name]} of {len(scores[name])} cells of {title}" for name, title in NAMED.items()]
    p = stats.fisher_exact(counts).pvalue
    assert f"{said[0]} and {said[1]} end CoLA below 5 (Fisher's p = {p:.2f})" in plain

    with (RESULTS / "base" / "tables" / "searches.csv").open(encoding="utf-8", newline="") as file:
        searched = {tuple(row[name] for name in ("task", "method", "rank", "a")): row for row in csv.DictReader(file)}
    row = searched["rte", "mini", "16", "72"]
    assert f"rates {row['tried']} had the mean held-out scores {row['held_out']}" in plain

    scope = report("base").sections[0].statistics.scope
    entries = scope.at(scope.main)
    lora = entries[(entries["label"] == "lora") & (entries["targets"] == "attention+dense")].set_index("rank")["mean"]
    assert len(lora) == 7
    assert f"within {100 * (lora - lora[1]).abs().max():.1f} points of every larger rank" in plain
    equal = report("base").sections[0].statistics.equal
    assert f"without that row {100 * equal['difference'].drop(equal['difference'].idxmin()).mean():.1f}" in plain
    heads = sorted({(record.cell.task == "stsb", record.counts.head_params) for record in final if record.counts})
    assert "a head of {:,} values ({:,} on STS-B)".format(*(size for _, size in heads)) in plain
    assert longer_less_base() in plain
    assert_cards_are_those_named(plain)
    for name, title in NAMED.items():
        of = [record for record in final if (record.cell.task, record.cell.method) == ("sst2", name)]
        keys = {(record.cell.targets, record.cell.rank, record.cell.a) for record in of}
        means = [
            100 * fmean(r.score or 0 for r in of if (r.cell.targets, r.cell.rank, r.cell.a) == key) for key in keys
        ]
        assert f"{title} has {min(means):.1f} to {max(means):.1f}" in plain


def checks() -> str:
    return (RESULTS / "minilm" / "checks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "stem"), [("base", "all-mpnet-base-v2"), ("minilm", "all-minilm-l6-v2")])
def test_there_are_at_most_twelve_figures(name: str, stem: str) -> None:
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

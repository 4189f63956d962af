"""The command `verdict`: sizes, cost, config, and the whole of it on the bundled sample."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_bench import methods
from lora_bench.cli.verdict import VerdictExecution, VerdictOptions, _parse
from lora_bench.errors import BenchError
from lora_bench.forecast.geometry import Geometry, load_geometry
from lora_bench.grid.cells import expand
from lora_bench.grid.config import load_config, parse_config
from lora_bench.grid.yaml import read_yaml, write_yaml
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records
from lora_bench.report.numbers.statistics import half_width
from lora_bench.run import plan as plans
from lora_bench.run.owner import Owner
from lora_bench.testing import make_cell, make_data, make_record
from lora_bench.verdict.folder import Ready, begin
from lora_bench.verdict.precision import ELSEWHERE, HERE, MEASURED, deviations_of
from lora_bench.verdict.question import FACTORS, add_look, rates_around, seeds_without
from lora_bench.verdict.sizes import choose_sizes
from tests.robust.robust_kit import assert_clear_error, lora_bench

ROOT = Path(__file__).parent.parent
TINY = ("--model", "sample", "--task", "cola", "--task", "wnli", "--targets", "qv", "--sizes", "1", "--seeds", "3")
FAST = ("--epochs", "1", "--search-lr", "2e-3,8e-3", "--search-seeds", "100", "--set", "max_length=16")
MPNET = ("--model", "microsoft/mpnet-base", "--device", "H100", "--dry-run")

BROKEN = """
from lora_bench.methods.recipe import Factor, Recipe, Update, Uniform, Zeros, rank_of


class Broken(Recipe):
    name = "broken"
    title = "Counts wrongly"
    source = "a test"
    default_lr = 1e-3

    def factors(self, cell, shape):
        rank = rank_of(cell)
        return Factor("A", rank, shape.inputs, Uniform(0.1)), Factor("B", shape.outputs, rank, Zeros())

    def update(self, factors):
        return Update(factors["A"], factors["B"])

    def trainable(self, cell, shape):
        return rank_of(cell)


RECIPE = Broken()
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, with a device that was never measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mpnet() -> Geometry:
    geometry = load_geometry("microsoft/mpnet-base")
    assert geometry is not None
    return geometry


# ---- sizes


@pytest.mark.parametrize(
    ("method", "targets", "count", "pairs"),
    [
        ("vera", "qv", 1, ["vera r=768 against lora r=1: 36,864 trained values each"]),
        ("vera", "qv", 3, ["vera r=768 against lora r=1: 36,864 trained values each"]),
        ("xs", "qv", 1, ["xs r=40 against lora r=1: 38,400 and 36,864 trained values"]),
        ("rslora", "qv", 2, ["rslora r=4 against lora r=4: 147,456 trained values each",
                             "rslora r=16 against lora r=16: 589,824 trained values each"]),
        ("mini", "attention+dense", 2, ["mini r=12 a=128 b=64 against lora r=1: 165,888 trained values each",
                                        "mini r=48 a=128 b=64 against lora r=4: 663,552 trained values each"]),
        ("bitfit", "qv", 2, ["bitfit against lora r=1: 18,432 and 36,864 trained values, not matched: a factor of 2"]),
    ],
)  # fmt: skip
def test_sizes_have_about_as_many_trained_values(
    method: str, targets: str, count: int, pairs: list[str], mpnet: Geometry
) -> None:
    assert list(map(str, choose_sizes(method, "lora", targets, mpnet, count))) == pairs


def test_a_factor_that_is_not_a_match_is_not_written_as_one() -> None:
    """1.14 is too far apart to match, which `a factor of 1.1` would not show."""
    sample = load_geometry("sample")
    assert sample is not None
    (pair,) = choose_sizes("bitfit", "ia3", "attention+dense", sample, 1)
    assert str(pair).endswith("1,792 and 2,048 trained values, not matched: a factor of 1.14")


def test_every_adapter_has_a_size_next_to_lora(mpnet: Geometry) -> None:
    """Those whose numbers cannot match are compared with the nearest one, and say so."""
    adapters = [name for name, recipe in methods.RECIPES.items() if recipe.adapts and name != "lora"]
    for method in adapters:
        for targets in ("qv", "attention+dense"):
            pairs = choose_sizes(method, "lora", targets, mpnet, 3)
            sizes = [pair.middle for pair in pairs]
            assert sizes == sorted(sizes)
            assert len(pairs) == 1 or all(pair.is_matched for pair in pairs)
            assert pairs[0].is_matched == ("not matched" not in str(pairs[0]))


# ---- what is expected


def seeds_of(task: str, scores: list[float], role: str | None = None) -> list[Record]:
    search = None if role is None else {"role": role, "settings": ("lr",)}
    return [
        make_record(score, cell=make_cell("lora", task=task, seed=seed), search=search)
        for seed, score in enumerate(scores)
    ]


def test_deviations_are_those_of_the_folder_once_there_are_seeds() -> None:
    """Trials do not count, and a task without seeds leaves the table from elsewhere in force."""
    cola, rte = seeds_of("cola", [0.5, 0.52, 0.48, 0.5, 0.5]), seeds_of("rte", [0.6, 0.7, 0.65, 0.6, 0.7])
    assert deviations_of(cola, ["cola", "rte"]).origin == ELSEWHERE
    here = deviations_of([*cola, *rte], ["cola", "rte"])
    assert here.origin == HERE
    assert here.by_task["cola"] == pytest.approx(0.0002**0.5)
    trials = [*cola, *seeds_of("rte", [0.1, 0.9, 0.1, 0.9, 0.1], "trial")]
    assert deviations_of(trials, ["cola", "rte"]).origin == ELSEWHERE
    assert "a guess for mine" in deviations_of([], ["cola", "mine"]).origin


def test_the_expected_interval_is_that_of_students_test() -> None:
    deviations = deviations_of([], ["cola"])
    half = deviations.half_width(["cola"], (20,))
    assert half == pytest.approx(half_width(MEASURED["cola"], 39, 0.0175) * (39 / 20 * 2) ** 0.5, rel=1e-3)
    assert deviations.half_width(["cola"], (20, 40)) < half
    assert deviations.half_width(["cola"], (20, 40)) > deviations.half_width(["cola"], (40,))


def test_measured_deviations_are_those_of_the_committed_results() -> None:
    records = read_records(ROOT / "results/minilm").records
    recomputed = deviations_of(records, tuple(MEASURED))
    assert {task: round(value, 4) for task, value in recomputed.by_task.items()} == MEASURED


# ---- cost


def test_the_cost_comes_first_and_nothing_is_written() -> None:
    ended = lora_bench("verdict", "vera", *MPNET, "--targets", "qv", "--sizes", "1")
    assert ended.code == 0, ended
    first, sizes = ended.out.strip().splitlines()[:2]
    assert "1 size, 4 tasks, 20 seeds: 224 cells to train in 8 stages on H100, about" in first
    assert "±0.71 points over seeds (by results/minilm, another encoder)" in first
    assert sizes.strip() == "vera r=768 against lora r=1: 36,864 trained values each"
    shared = lora_bench("verdict", "vera", *MPNET, "--targets", "qv", "--sizes", "1", "--engine", "ray", "--gpus", "4")
    assert re.search(r"8 stages on 4 GPUs \(H100\), about \d min, simulated, until the page", shared.out), shared
    assert list(Path().iterdir()) == []


def seeds_and_tasks(*options: str) -> tuple[int, int, str]:
    ended = lora_bench("verdict", "xs", *MPNET, "--targets", "qv", "--sizes", "1", *options)
    assert ended.code == 0, ended
    words = ended.out.split()
    return int(words[words.index("seeds:") - 1]), int(words[words.index("tasks,") - 1]), ended.out


def test_minutes_choose_the_seeds_and_if_need_be_the_tasks() -> None:
    few, all_tasks, text = seeds_and_tasks("--minutes", "6")
    assert all_tasks == 4
    assert few < 20
    assert "about 6 min until" in text
    more, _, _ = seeds_and_tasks("--minutes", "12")
    assert more > 2 * few
    most, _, text = seeds_and_tasks("--minutes", "1000")
    assert most == 400
    assert "--minutes chooses 400 seeds at most" in text
    _, fewer_tasks, text = seeds_and_tasks("--minutes", "2.5")
    assert fewer_tasks < 4
    assert "Left out to fit into the time: " in text


def test_the_minutes_that_are_named_are_enough() -> None:
    """Rounded up: `0.6 minutes are not enough: they take about 0.6` helps nobody."""
    command = ("verdict", "xs", *MPNET, "--targets", "qv", "--sizes", "1", "--minutes")
    few = lora_bench(*command, "0.5")
    assert_clear_error(few, 2, "Give --minutes ")
    (needed,) = re.findall(r"Give --minutes ([\d.]+) or more", few.errors)
    assert " 1 task, " in lora_bench(*command, needed).out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--minutes", "0.5"), "0.5 minutes are not enough"),
        (("--minutes", "9", "--device", "cpu"), "is not known"),
        (("--minutes", "9", "--seeds", "9"), "exclude each other"),
        (("--minutes", "nan"), "nan is not a time"),
        (("--seeds", "2"), "--seeds 3"),
        (("--margin", "0"), "--margin 0"),
        (("--sizes", "0"), "--sizes 0"),
        (("--against", "xs"), "cannot be compared with itself"),
        (("--against", "full"), "trains no adapter"),
        (("--against", "loora"), "lora"),
        (("--over", "examples"), "seeds+examples"),
        (("--over", "seeds+examples", "--task", "stsb"), "what other examples of stsb would change is not known"),
        (("--task", "colla"), "cola"),
        (("--set", "lr=1e-3"), "a verdict decides it"),
        (("--set", "alpha=[1,2]"), "a verdict has one value"),
        (("--model", "someone/unknown"), "--model a directory"),
        (("--search-lr", "1e-3"), "only one rate"),
        (("--more",), "holds no verdict"),
        (("--more", "--seeds", "5"), "Leave --seeds and --minutes out"),
        (("--targets", "q,v"), "attention+dense"),
    ],
)
def test_what_cannot_be_asked_ends_in_two_lines(options: tuple[str, ...], words: str) -> None:
    code = 3 if "--model" in options else 2
    assert_clear_error(lora_bench("verdict", "xs", *MPNET, *options), code, words)


def test_a_method_that_breaks_a_contract_is_not_trained() -> None:
    Path("broken.py").write_text(BROKEN, encoding="utf-8")
    with methods.registered():
        assert_clear_error(lora_bench("verdict", "broken.py", *TINY, *FAST), 2, "lora-bench check broken.py")
    assert not Path("results").exists()


def test_a_fault_that_names_every_weight_is_shortened() -> None:
    """The error stays on a line or two of a terminal; `check` shows the whole."""
    long = BROKEN.replace("rank_of(cell)\n\n\nRECIPE", 'int("9" * 99 + "a weight " * 99)\n\n\nRECIPE')
    Path("long.py").write_text(long, encoding="utf-8")
    with methods.registered():
        ended = lora_bench("verdict", "long.py", *TINY, *FAST)
    assert_clear_error(ended, 2, "lora-bench check long.py")
    assert max(map(len, ended.errors.splitlines())) < 500


# ---- the config


def test_rates_are_searched_around_each_methods_default() -> None:
    assert rates_around(5e-4) == [2.5e-4, 5e-4, 1e-3, 2e-3]
    assert len(FACTORS) == 4
    assert seeds_without([1, 3], 4) == [0, 2, 4, 5]


@pytest.mark.timeout(600)
def test_the_whole_command_on_the_bundled_sample() -> None:
    """Sizes, searches, seeds, verdict, page; again; one more look; and the same cells by `run --config`."""
    results = Path("results/verdict-vera-lora")
    ended = lora_bench("verdict", "vera", *TINY, *FAST)
    assert ended.code == 0, ended
    assert "vera against lora: 1 size, 2 tasks, 3 seeds: 20 cells to train in 4 stages on cpu" in ended.out
    assert "Look 1 at this comparison, with 3 seeds" in ended.out
    assert ended.out.splitlines()[-1] == str(results / "report.html")
    config = load_config(results / "verdict.yaml")
    assert config.compare.looks == (3,)
    records = [record for record in read_records(results).records if not record.is_search]
    assert {record.counts.adapter_params for record in records if record.counts} == {1024}
    assert {(record.cell.select, record.cell.head_lr, record.cell.seed) for record in records} == {
        ("held-out", 1e-3, seed) for seed in range(3)
    }
    assert not list((results / "adapters").iterdir())
    # Both methods wait for their searches and then share packs, whichever search ends first.
    packs = re.findall(r", (\d) cells?, seed \d, epoch 1", ended.out)
    assert packs == ["2"] * 6

    again = lora_bench("verdict", "vera", *TINY, *FAST)
    assert "0 cells to train on cpu, about 30 s until the page is there" in again.out
    for other in (("--margin", "2"), ("--seeds", "4")):
        assert_clear_error(lora_bench("verdict", "vera", *TINY, *FAST, *other), 2, "--results")
    assert_clear_error(lora_bench("verdict", "xs", *TINY, *FAST, "--results", str(results)), 2, "another verdict")

    more = lora_bench("verdict", "vera", "--model", "sample", "--more")
    assert more.code == 0, more
    assert "Look 2: 3 seeds more, 6 in all." in more.out
    assert "by the seeds so far" in more.out
    assert "Look 2 at this comparison, with 3 and 6 seeds" in more.out
    notes = {record.cell.seed: record.protocol.notes[0] for record in read_records(results).records}
    assert "look 1" in notes[2]
    assert "look 2" in notes[3]

    config_text = (results / "verdict.yaml").read_bytes()
    (results / "verdict.yaml").unlink()
    assert_clear_error(lora_bench("verdict", "vera", *TINY, *FAST, "--seeds", "6"), 2, "each look has to count")
    (results / "verdict.yaml").write_bytes(config_text)

    before = (results / "metrics.csv").read_bytes()
    ran = lora_bench("run", "--config", str(results / "verdict.yaml"), "--results", str(results))
    assert "0 to train" in ran.out
    assert (results / "metrics.csv").read_bytes() == before
    reported = lora_bench("report", "--results", str(results))
    assert "Look 2 at this comparison, with 3 and 6 seeds" in " ".join(reported.out.split())


def test_a_look_that_has_not_ended_continues_and_none_is_added() -> None:
    results = Path("results/verdict-vera-lora")
    assert lora_bench("verdict", "vera", *TINY, *FAST).code == 0
    lost = next(record for record in read_records(results).records if record.cell.seed == 2)
    (results / "cells" / f"{lost.id}.json").unlink()
    more = lora_bench("verdict", "vera", "--model", "sample", "--more", "--dry-run")
    assert "1 cell to train" in more.out
    assert "has not ended: it continues, and no seeds are added" in more.out
    assert load_config(results / "verdict.yaml").compare.looks == (3,)


def test_what_is_in_the_folder_must_be_of_the_same_verdict() -> None:
    """Other results, other data, another text of the method; a look that cannot end gets no seeds."""
    results = Path("results/verdict-vera-lora")
    assert lora_bench("verdict", "vera", *TINY, *FAST).code == 0

    folder = make_data(Path("data"), "cola", "wnli")
    other_data = lora_bench("verdict", "vera", "--model", "sample", "--more", "--data-dir", str(folder))
    assert_clear_error(other_data, 2, "Give the same --model and --data-dir as then")

    (results / "verdict.yaml").unlink()
    assert_clear_error(
        lora_bench("verdict", "vera", *TINY, *FAST, "--margin", "2", "--epochs", "2"),
        2,
        "12 cells of other settings or seeds",
    )
    assert not (results / "verdict.yaml").exists()
    assert "0 cells to train" in lora_bench("verdict", "vera", *TINY, *FAST, "--dry-run").out


def test_a_verdict_that_has_trained_nothing_is_planned_anew() -> None:
    results = Path("results/verdict-vera-lora")
    results.mkdir(parents=True)
    (results / "verdict.yaml").write_text("name: x\nblocks: [{method: lora}]\n", encoding="utf-8")
    planned = lora_bench("verdict", "vera", *TINY, *FAST, "--dry-run")
    assert planned.code == 0, planned
    assert "20 cells to train" in planned.out


def test_a_look_that_cannot_end_gets_no_seeds() -> None:
    """Where every rate of a search fails, its cells are blocked, and so is every later look."""
    rates = ("--epochs", "1", "--search-lr", "1e25,2e25", "--search-seeds", "100", "--set", "max_length=16")
    ended = lora_bench("verdict", "vera", *TINY, *rates)
    assert ended.code == 1, ended
    assert "vera r=64 on qv against lora r=1: not finished" in ended.out
    assert_clear_error(lora_bench("verdict", "vera", "--model", "sample", "--more"), 2, "--retry failed,diverged,oom")
    assert load_config(Path("results/verdict-vera-lora/verdict.yaml")).compare.looks == (3,)


def test_two_processes_that_begin_at_once_cannot_mix_their_configs() -> None:
    """What was planned is written only if nobody has begun or continued meanwhile, and nobody owns the folder."""
    results = Path("results")
    config = parse_config("name: x\nblocks: [{method: lora, model: sample, task: cola}]\n", "x")
    plan = plans.make(expand(config, {}, plans.sources(), None), results, None)
    first, second = (Ready(f"text {number}", config, plan, (), None) for number in (1, 2))
    with Owner(results), pytest.raises(BenchError, match="in use"):
        first.write(results)
    first.write(results)
    with pytest.raises(BenchError, match="Another process has begun"):
        second.write(results)
    assert (results / "verdict.yaml").read_text(encoding="utf-8") == "text 1"


def test_the_reference_may_be_a_file() -> None:
    mine("mine.py")
    with methods.registered():
        planned = lora_bench("verdict", "vera", *TINY, *FAST, "--against", "mine.py", "--dry-run")
    assert planned.code == 0, planned
    assert planned.out.startswith("vera against mine: 1 size")


def test_looks_add_as_many_seeds_as_the_first_one_had() -> None:
    text = """
name: x
defaults: {seed: [0, 1, 2], task: cola}
blocks: [{method: lora, lr: {search: [1.0e-3, 2.0e-3], seeds: [4, 100]}}]
compare: {looks: [3]}
"""
    twice = add_look(add_look(text, "x"), "x")
    Path("x.yaml").write_text(twice, encoding="utf-8")
    config = load_config(Path("x.yaml"))
    assert config.compare.looks == (3, 6, 9)
    assert config.defaults["seed"] == (0, 1, 2, 3, 5, 6, 7, 8, 9)
    assert config.notes["all"] == ("Trained for look 3 of a verdict, at 9 seeds.",)


# ---- what stands in the folder


def begun(what: str) -> Path:
    """Write the config of a verdict that has not trained anything, and return the file."""
    options = VerdictOptions(what=what, model="sample", task=["cola"], targets="qv", sizes=1)
    question, planner, _ = _parse(options, VerdictExecution(device="cpu"))
    planner.results.mkdir(parents=True)
    begin(question, planner, 3, None).write(planner.results)
    return planner.results / "verdict.yaml"


def mine(path: str, factor: str = "(shape.inputs + shape.outputs)") -> None:
    """Write the file of a method that keeps the contracts."""
    text = BROKEN.replace("rank_of(cell)\n\n\nRECIPE", f"rank_of(cell) * {factor}\n\n\nRECIPE")
    Path(path).write_text(text.replace('"broken"', '"mine"'), encoding="utf-8")


@pytest.mark.parametrize("name", ["1e5", "08", "null", "2026-01-01", "-x"])
def test_a_method_may_have_a_name_that_yaml_reads_otherwise(name: str) -> None:
    mine("mine.py")
    Path("mine.py").write_text(Path("mine.py").read_text(encoding="utf-8").replace('"mine"', f'"{name}"'), "utf-8")
    with methods.registered():
        config = load_config(begun("mine.py"))
    assert config.compare.subject == name
    assert [block["method"] for block in config.blocks] == [(name,), ("lora",)]


def test_what_is_written_as_yaml_is_read_as_it_was() -> None:
    """By the strict reader, for which `1e5` is a number, and which refuses anchors."""
    texts = [
        "1e5",
        "08",
        "-.5",
        "null",
        "no",
        "1:30",
        "0x1f",
        "1_0",
        "~",
        "-",
        ": y",
        "# z",
        "*a",
        "&b",
        "!t",
        "é",
        " ",
        "",
    ]
    shared = [1, 2]
    value = {"texts": texts, "numbers": [1e-5, 1e22, 0.004, 1, True, None], "one": shared, "other": shared}
    assert repr(read_yaml(write_yaml(value), "x")[0]) == repr(value)


@pytest.mark.parametrize("name", ["mine.py", "of; mine.py"])
def test_another_text_of_the_method_gets_no_look(name: str) -> None:
    """Whatever the file's name is: the parts of a description are separated by what a name may hold too."""
    more = ("verdict", name, "--model", "sample", "--more", "--dry-run")
    mine(name)
    with methods.registered():
        begun(name)
        assert lora_bench(*more).code == 0
    mine(name, "(shape.outputs + shape.inputs)")
    with methods.registered():
        assert_clear_error(lora_bench(*more), 2, "another verdict")


@pytest.mark.parametrize(
    ("written", "edited"),
    [
        ("average: [cola]", "average: []"),
        ("margin: 1.0", "margin: 50"),
        ("over: seeds", "over: seeds+examples"),
        ("looks: [3]", "looks: [3, 4]"),
        ("looks: [3]", "looks: [6]"),
        ("seed: [0, 1, 2]", "seed: [0, 1]"),
        ("  looks: [3]\n", ""),
    ],
)
def test_a_config_that_was_edited_gets_no_look(written: str, edited: str) -> None:
    """What is tested would not be what the verdict says of itself."""
    file = begun("vera")
    text = file.read_text(encoding="utf-8")
    assert text.count(written) >= 1
    more = ("verdict", "vera", "--model", "sample", "--more", "--dry-run")
    assert lora_bench(*more).code == 0
    file.write_text(edited.join(text.rsplit(written, 1)), encoding="utf-8")
    assert_clear_error(lora_bench(*more), 2, "is not what `lora-bench verdict` wrote")

"""What `plan` says of the cost of a whole grid: the first line, several GPUs, and what is a guess. No network."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_bench import tasks
from lora_bench.errors import DONE, MISSING
from lora_bench.forecast.cost import Estimate
from lora_bench.forecast.demand import FLOAT32_BYTES, saved_bytes
from lora_bench.forecast.geometry import load_geometry
from lora_bench.grid.cells import expand
from lora_bench.grid.config import Config
from lora_bench.records.schema import Record
from lora_bench.run import environment
from lora_bench.run import plan as plans
from lora_bench.run.totals import totals
from lora_bench.testing.data import make_data
from lora_bench.testing.encoders import make_model
from tests.robust.robust_kit import assert_clear_error, lora_bench

ROOT = Path(__file__).parents[1]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of its own and no model of the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    load_geometry.cache_clear()


def first_line(*options: str) -> str:
    planned = lora_bench("plan", *options)
    assert planned.code == 0, planned
    return planned.out.splitlines()[0]


def hours(line: str) -> float:
    """The time of one device in a first line."""
    found = re.search(r"about (?:([\d,]+) h)?(?: ?(\d+) min)?", line)
    assert found is not None
    return float((found[1] or "0").replace(",", "")) + float(found[2] or 0) / 60


def test_the_paper_on_cards_of_all_kinds() -> None:
    lines = {card: first_line("--preset", "paper", "--device", card) for card in ("H200", "H100", "A100", "T4")}
    times = [hours(line) for line in lines.values()]
    assert times == sorted(times)
    assert times[0] > 20
    assert times[-1] > 10 * times[2]
    for card, line in lines.items():
        cells = rf"paper: ([\d,]+) cells; \1 to train in \d+ packs on {card}"
        pattern = f"{cells}: about .*, .* GiB of memory at most, .* on disk"
        assert re.fullmatch(pattern, line), line


def test_a_head_that_cannot_be_trained_is_refused_as_by_run() -> None:
    options = ("--task", "rte", "--method", "lora", "--set", "head=model", "--device", "H100", "--model")
    refused = lora_bench("plan", *options, "answerdotai/ModernBERT-base")
    assert_clear_error(refused, MISSING, "head=model: the classification head of 'modernbert' cannot be trained here.")
    assert lora_bench("plan", *options, "FacebookAI/roberta-base").code == DONE


def test_a_card_that_was_not_measured_is_a_guess() -> None:
    grid = ("--task", "rte", "--method", "lora", "--precision", "bf16", "--device")
    for card, guess in (("H100", False), ("NVIDIA H200", False), ("A100", True), ("RTX 4090", True), ("MI300X", True)):
        planned = lora_bench("plan", *grid, card)
        assert ("The time is a guess: " in planned.out) == guess, card
    unknown = lora_bench("plan", *grid, "abacus")
    assert unknown.code == 0
    assert "No time: 'abacus' was not measured and is not a known card" in unknown.out
    assert "GiB of memory at most" in unknown.out.splitlines()[0]
    assert "about" not in unknown.out.splitlines()[0]


def test_an_encoder_that_is_not_known_says_so(tmp_path: Path) -> None:
    grid = ("--task", "rte", "--method", "lora", "--device", "H200", "--precision", "bf16", "--model")
    planned = lora_bench("plan", *grid, "nobody/never-heard-of")
    assert "the sizes of nobody/never-heard-of are known when it has been downloaded" in planned.out
    folder = str(make_model(tmp_path / "xlm", "xlm"))
    planned = lora_bench("plan", *grid, folder, "--data-dir", str(make_data(tmp_path / "rows", "rte")))
    assert "no model of the type 'xlm' was measured" in planned.out
    assert "is taken to run on padded rows" in planned.out


def test_several_gpus_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--preset", "paper", "--task", "rte", "--device", "H100")
    line = first_line(*options, "--gpus", "8")
    shared = re.search(r"about (\d+) h (?:\d+ min )?\((\d+ min|\d+ h \d+ min) on 8 GPUs, simulated\)", line)
    assert shared, line
    assert first_line(*options, "--engine", "ray", "--gpus", "8") == line
    assert "on 1 GPU, simulated)" in first_line(*options, "--gpus", "1")
    assert "on 1,024 GPUs" in first_line(*options, "--gpus", "1024")  # of any number of machines
    monkeypatch.setattr("lora_bench.run.environment.count_gpus", lambda: 8)  # those of this machine, if nothing is said
    assert first_line(*options, "--engine", "ray") == line
    assert "GPU" not in first_line(*options)
    assert_clear_error(lora_bench("plan", *options, "--engine", "cloud"), 2, "no engine 'cloud'")
    assert_clear_error(lora_bench("plan", *options, "--address", "auto"), 2, "--address")
    assert_clear_error(lora_bench("run", *options, "--gpus", "8"), 2, "--gpus")
    assert_clear_error(
        lora_bench("plan", "--preset", "paper", "--device", "cpu", "--gpus", "8"), 2, "exclude each other"
    )


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0,1", 2), ("1", 1), ("-1", 0), ("0,-1,1", 1), ("", 0), ("none", 0), ("8", 0), ("0,0", 1), ("GPU-1,MIG-2", 2)],
)
def test_gpus_that_the_process_may_use_are_counted_as_cuda_does(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: [Path(str(index)) for index in range(4)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment.count_gpus() == count


def test_packs_that_are_alike_are_one_row() -> None:
    planned = lora_bench(
        "plan", "--preset", "paper", "--task", "rte", "--method", "lora", "--lr", "1e-3", "--device", "H100"
    )
    assert planned.code == 0, planned
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in planned.out.splitlines() if "no record" in line
    ]
    plan_rows = [row for row in rows if row[1] == "RTE"]
    packs = int(re.findall(r"in (\d+) packs", planned.out)[0])
    assert sum(int(row[0]) for row in plan_rows) == packs > len(plan_rows)
    assert {row[2] for row in plan_rows} == {"0 to 4"}
    cells = int(re.findall(r"paper: ([\d,]+) cells", planned.out)[0].replace(",", ""))
    assert sum(int(row[0]) * int(row[3]) for row in plan_rows) == cells


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """One committed record of MiniLM of each method and its settings, and one of each task."""
    with gzip.open(ROOT / "results" / "minilm" / "records.jsonl.gz", "rt") as lines:
        contents = [json.loads(line) for line in lines]
    kinds = {
        tuple(content["cell"][name] for name in ("task", "method", "rank", "a", "b", "targets")): content
        for content in contents
        if content["counts"] and content["cell"]["task"] in ("cola", "mrpc")
    }
    return [
        Record.model_validate({name: content[name] for name in content if name != "crc32"})
        for content in kinds.values()
    ]


def test_what_is_saved_is_what_records_counted(records: list[Record]) -> None:
    sizes = load_geometry(MINILM)
    assert sizes is not None
    assert len({record.cell.method for record in records}) > 15
    for record in records:
        assert record.counts is not None
        counted = record.counts.adapter_params + record.counts.head_params
        if record.cell.method != "full":
            assert saved_bytes(record.cell, sizes, tasks.of(record.cell).num_outputs) == FLOAT32_BYTES * counted


def test_disk_space_is_that_of_the_records_and_the_adapters(records: list[Record]) -> None:
    for record in records:
        assert record.counts is not None
        kept, saved = (Estimate().disk([record.cell], MINILM, saves) for saves in (False, True))
        assert kept is not None
        assert saved is not None
        assert kept == pytest.approx(len(record.model_dump_json()), rel=0.25)
        values = 0 if record.cell.method == "full" else record.counts.adapter_params + record.counts.head_params
        assert saved - kept == pytest.approx(4 * values, rel=0.05)


def test_disk_space_holds_what_other_cells_continue_from(records: list[Record], tmp_path: Path) -> None:
    """The weights of `full` and, with --no-save, the adapters; each only where a cell continues from it."""
    for record in records:
        assert record.counts is not None
        values = record.counts.adapter_params + record.counts.head_params
        kept, also_saved = (Estimate().disk_of_starts(record.cell, MINILM, saves) for saves in (False, True))
        assert kept == pytest.approx(4 * values, rel=0.05, abs=3000)
        assert also_saved == (kept if record.cell.method == "full" else 0)

    def disk(**defaults: Any) -> float:
        settings: dict[str, Any] = {"model": "roberta-base", "task": ["mnli", "rte"], "method": "full", "lr": 1e-5}
        config = Config(name="disk", defaults=settings | defaults, blocks=({},))
        size = totals(plans.make(expand(config, {}, plans.sources()), tmp_path, None)).disk
        assert size is not None
        return size

    weights = 4 * 124.6e6
    assert disk(start={"rte": "mnli"}) - disk() == pytest.approx(weights, rel=0.01)
    seeds = {"seed": [0, 1]}
    assert disk(start={"rte": "mnli"}, **seeds) - disk(**seeds) == pytest.approx(2 * weights, rel=0.01)

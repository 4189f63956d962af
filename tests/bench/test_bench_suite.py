"""A benchmark from end to end, and measurements that fail."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from lora_bench.bench import packed, peak, peers, processes, suite, workload
from lora_bench.bench.clock import ROUNDS, Turns
from lora_bench.bench.suite import BenchReport
from lora_bench.cli.app import app
from lora_bench.errors import BenchError
from lora_bench.run import environment
from tests.bench.bench_factory import SAMPLE, bench_settings, in_turns, measured, work

QUICK = ["bench", "--quick", "--device", "cpu", "--seconds", "0.2"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """`lora-bench bench --quick` as a user calls it, with short repeats."""
    out = tmp_path_factory.mktemp("bench")
    return out, CliRunner().invoke(app, [*QUICK, "--out", str(out)], env={"COLUMNS": "80"})


def test_quick_measures_every_variant(quick: tuple[Path, Result]) -> None:
    out, ended = quick
    assert ended.exit_code == 0, ended.output
    content = json.loads((out / "quick.json").read_text())
    found = [(row["variant"], row["mix"], row["k"]) for row in content["rows"]]
    peer = [("trainer", "lora", 1), ("loop", "lora", 1), ("processes-2", "lora", 2)]
    assert found == [*peer, *(("packed", mix, k) for mix in ("lora", "mixed") for k in (1, 8))]
    assert all(row["task"] == "sst2" and row["targets"] == "qv" and "error" not in row for row in content["rows"])


def test_ratios_and_utilisation_follow_from_the_files_own_numbers(quick: tuple[Path, Result]) -> None:
    content = json.loads((quick[0] / "quick.json").read_text())
    rates = {row["variant"]: row["repeats"] for row in content["rows"]}
    operations, peak = content["environment"]["operations_a_token"], content["peak"]["tflops"]
    for row in content["rows"]:
        assert row["cell_steps_per_second"] == pytest.approx(median(row["repeats"]))
        for name, peer in (("trainer", "trainer"), ("loop", "loop"), ("processes", "processes-2")):
            ratios = [rate / peer_rate for rate, peer_rate in zip(row["repeats"], rates[peer], strict=True)]
            assert row[f"ratio_to_{name}"] == pytest.approx(median(ratios))
            assert row["ratio_ranges"][name] == pytest.approx([min(ratios), max(ratios)])
        assert row["utilisation"] == pytest.approx(row["tokens_per_second"] * operations / 1e12 / peak)
        assert len(row["repeats"]) == ROUNDS


def test_the_environment_names_what_decides_a_number(quick: tuple[Path, Result]) -> None:
    about = json.loads((quick[0] / "quick.json").read_text())["environment"]
    assert about["operations_a_token"] == 4 * 4 * (4 * 64 * 64 + 2 * 64 * 128)
    assert about.keys() >= {"torch", "transformers", "peft", "accelerate", "device", "threads", "started"}
    assert (about["precision"], about["batch_size"], about["random_weights"]) == ("float32", 32, False)
    assert about["way"] == "fused"


def test_the_table_fits_a_terminal(quick: tuple[Path, Result]) -> None:
    out, ended = quick
    lines = [line for line in ended.stdout.splitlines() if str(out) not in line]
    assert max(map(len, lines)) <= 80
    table = [line for line in ended.stdout.splitlines() if line.strip().startswith(("trainer", "packed"))]
    assert len(table) == 5
    assert "…" not in "".join(table)


class Under:
    """A suite with stand-ins for the measurements."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.saved: list[BenchReport] = []
        self.tmp_path = tmp_path
        monkeypatch.setattr(packed, "run", lambda cells, *_: in_turns(measured(10.0 * len(cells))))
        monkeypatch.setattr(processes, "run", lambda *_: self.trainer())
        monkeypatch.setattr(peak, "measure", lambda *_: {"tflops": 1.0, "dtype": "float32"})

    def trainer(self) -> Turns:
        return in_turns(measured(2.0))

    def run(self, **options: Any) -> BenchReport:
        made = bench_settings(**{"peers": "trainer", "mix": ["lora"], **options})
        return suite.Suite(made, self.tmp_path, self.said.append, self.saved.append).run()


@pytest.fixture
def under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Under:
    return Under(tmp_path, monkeypatch)


def test_out_of_memory_is_a_row(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on, and it is no failure of the benchmark."""

    def run(cells: list[Any], *_: Any) -> Turns:
        if len(cells) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
        return (yield from in_turns(measured(5.0)))

    monkeypatch.setattr(packed, "run", run)
    made = under.run(pack=["1", "8", "16"])
    assert [row.error for row in made.rows] == [None, None, "out of memory", None]
    assert made.rows[2].k == 8
    assert made.rows[2].cell_steps_per_second is None
    assert made.rows[3].ratio_to_trainer == 2.5
    assert not made.failed


class Memory:
    """Packs that take a unit of memory a cell while they exist, or two while they run; `total` units are there."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.sizes: list[int] = []
        self.turns: list[int] = []

    def run(self, cells: list[Any], *_: Any) -> Turns:
        size = len(cells)
        self.sizes.append(size)
        try:
            for turn in range(ROUNDS + 1):
                if sum(self.sizes) + size > self.total:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                self.turns.append(size)
                if turn < ROUNDS:
                    yield
        finally:
            self.sizes.remove(size)
        return measured(10.0 * size)


def test_rows_take_turns(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(100)
    monkeypatch.setattr(packed, "run", memory.run)
    made = under.run(pack=["1", "8", "16"])
    assert memory.turns == [1, 8, 16] * (ROUNDS + 1)
    assert not any(row.apart for row in made.rows)


def test_a_row_without_memory_beside_others_is_measured_after_them(
    under: Under, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What never fits is out of memory."""
    memory = Memory(26)
    monkeypatch.setattr(packed, "run", memory.run)
    made = under.run(pack=["8", "4", "13", "14", "3"])
    assert [row.k for row in made.rows] == [1, 8, 4, 13, 14, 3]
    assert [row.apart for row in made.rows] == [False, False, False, True, True, False]
    assert [row.error for row in made.rows] == [None] * 4 + ["out of memory", None]
    assert memory.sizes == []
    assert not made.failed


def test_a_row_that_others_leave_no_memory_is_measured_anew(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "run", Memory(26).run)
    made = under.run(pack=["10", "7"])
    assert [(row.k, row.apart, row.error) for row in made.rows] == [
        (1, False, None),
        (10, True, None),
        (7, False, None),
    ]


def test_what_is_interrupted_ends_its_measurements(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(100)

    def interrupt() -> Turns:
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(packed, "run", lambda cells, *_: interrupt() if len(cells) == 8 else memory.run(cells))
    with pytest.raises(KeyboardInterrupt):
        under.run(pack=["1", "8"])
    assert memory.sizes == []


def test_another_error_is_a_row_too_and_a_failure(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("no\nway")

    monkeypatch.setattr(under, "trainer", fail)
    made = under.run()
    assert made.rows[0].error == "ValueError: no way"
    assert made.rows[1].cell_steps_per_second == 10.0
    assert made.failed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("process 1 of 4: torch.OutOfMemoryError: CUDA out of memory."), "out of memory"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_descriptions_of_errors(error: Exception, words: str) -> None:
    assert suite.describe_error(error) == words


def test_without_peft_the_peers_are_left_out_with_one_line(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing_libraries", lambda: ["peft"])
    made = under.run(peers="trainer,loop")
    message = "peft is not installed, trainer, loop left out: pip install 'lora-bench[bench]'"
    assert under.said.count(message) == 1
    assert [row.variant for row in made.rows] == ["packed", "packed"]
    assert all(row.ratio_to_trainer is None for row in made.rows)
    assert made.environment["left_out"] == message
    assert not made.failed


def test_nothing_is_said_of_peers_that_nobody_asked_for(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing_libraries", lambda: ["peft"])
    assert under.run(peers="none").environment["left_out"] == ""


def test_the_report_is_saved_after_each_row(under: Under) -> None:
    under.run()
    assert [len(report.rows) for report in under.saved] == [1, 2, 3]


def test_threads_are_limited_and_restored() -> None:
    with suite.torch_threads(None):
        torch.set_num_threads(3)
        for count, inside in ((2, 2), (4, 3), (None, 3)):
            with suite.torch_threads(count):
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == 3


def test_a_gpu_gives_both_sides_as_many_threads_as_run_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [environment.default_threads(device) for device in ("cpu", "cuda", "cuda:1")] == [None, 4, 4]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert environment.default_threads("cuda") is None


def test_auto_is_a_number_measured_once(under: Under) -> None:
    cell = workload.make_cells(work(), "qv", "lora", 1, 64)[0]
    auto = packed.automatic_size(torch.device("cpu"), cell, SAMPLE.location)
    made = under.run(peers="none", pack=["1", str(auto), "auto"])
    assert [(row.k, row.auto) for row in made.rows] == [(1, False), (auto, True)]


def test_a_target_that_matches_nothing_ends_it_before_anything_is_measured(under: Under) -> None:
    with pytest.raises(BenchError, match="querry"):
        under.run(targets=["qv", "querry"])
    assert under.saved == []


def test_a_usage_error_has_code_2_and_two_lines() -> None:
    ended = CliRunner().invoke(app, ["bench", "--task", "sst3"])
    assert ended.exit_code == 2
    assert "sst2" in ended.output
    assert len(ended.output.strip().splitlines()) == 2


def test_a_failed_row_is_exit_code_1(under: Under, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> Turns:
        yield
        raise ZeroDivisionError

    monkeypatch.setattr(packed, "run", fail)
    ended = CliRunner().invoke(app, [*QUICK, "--peers", "none", "--out", str(tmp_path / "out")])
    assert ended.exit_code == 1
    assert "ZeroDivisionError" in ended.stdout
    assert len(json.loads((tmp_path / "out/quick.json").read_text())["rows"]) == 4


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = CliRunner().invoke(app, [*QUICK, "--peers", "none", "--out", str(tmp_path / "file" / "out")])
    assert ended.exit_code == 3
    assert "steps·cells/s" not in ended.output

"""Choosing rates from a search, and records in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_bench.cell import Cell
from lora_bench.errors import NOTHING, SOME_FAILED, BenchError
from lora_bench.grid import choose
from lora_bench.grid.choose import held_out_metric
from lora_bench.records import archive
from lora_bench.records.schema import Record, SearchInfo, Status
from lora_bench.records.store import read_records, record_path, write_record
from lora_bench.run.publish import RecordStore
from lora_bench.testing import make_epochs, make_record
from tests.cli_kit import invoke


def record(lr: float, held_out: float | None, seed: int = 0, status: Status = "done", **cell: Any) -> Record:
    """A record of a search: two epochs, of which the second is the better one on held-out rows."""
    settings = {"model": "m", "data": "d", "task": "rte", "method": "lora", "rank": 4, "targets": "qv"}
    searched = Cell.model_validate(settings | {"seed": seed, "lr": lr, "select": "held-out"} | cell)
    epochs = make_epochs(0.9, 0.5, held_out=() if held_out is None else (held_out - 0.1, held_out))
    return make_record(None, cell=searched, epochs=epochs, status=status, score_epoch=2)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A results folder of these records."""

    def made(*records: Record) -> Path:
        for each in records:
            write_record(tmp_path / "out", each)
        return tmp_path / "out"

    return made


def test_the_rate_with_the_best_held_out_mean_is_chosen() -> None:
    found = choose.choose_rates(
        [record(1e-3, 0.6), record(1e-3, 0.62, seed=1), record(2e-3, 0.7), record(2e-3, 0.5, seed=1), record(4e-3, 0.1)]
    )
    (choice,) = found
    assert (choice.lr, choice.task, choice.seeds, choice.at_edge) == (1e-3, "rte", 2, True)
    assert choice.metric == pytest.approx(0.61)


def test_a_rate_at_which_a_seed_diverged_is_worst_and_of_equal_ones_the_lowest_counts() -> None:
    bad = [record(1e-2, 0.9), record(1e-2, 0.9, seed=1, status="diverged")]
    (choice,) = choose.choose_rates([*bad, record(5e-3, 0.5), record(2e-3, 0.5)])
    assert choice.lr == 2e-3


def test_rates_are_compared_on_the_same_seeds() -> None:
    """A search that was run again with more seeds and another rate leaves one that was tried with the first seeds."""
    scores = {1e-3: (0.60, 0.60, 0.30), 2e-3: (0.55, 0.55, 0.55)}
    both = [record(lr, score, seed) for lr, by_seed in scores.items() for seed, score in enumerate(by_seed)]
    earlier = [record(4e-3, 0.9, seed) for seed in (0, 1)]
    (choice,) = choose.choose_rates([*both, *earlier[:1]])
    assert (choice.lr, choice.seeds, choice.tried) == (2e-3, 3, (1e-3, 2e-3))
    (choice,) = choose.choose_rates([*both[:2], *both[3:5], *earlier])
    assert (choice.lr, choice.seeds, choice.tried) == (4e-3, 2, (1e-3, 2e-3, 4e-3))


def test_rates_of_different_heads_are_kept_apart() -> None:
    searched = [record(1e-3, 0.6), record(2e-3, 0.5), record(1e-3, 0.5, head="model"), record(2e-3, 0.7, head="model")]
    blocks = choose.config_blocks(choose.choose_rates(searched))
    assert [(block.get("head"), block["lr"]) for block in blocks] == [(None, {"rte": 1e-3}), ("model", {"rte": 2e-3})]


def test_rounding_of_a_mean_decides_no_tie() -> None:
    low, high = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1 + 2**-54]
    made = [record(lr, each, seed) for lr, own in ((1e-3, low), (2e-3, high)) for seed, each in enumerate(own)]
    (choice,) = choose.choose_rates(made)
    assert choice.lr == 1e-3


def test_ranks_take_the_rate_of_the_nearest_one_searched() -> None:
    searched = [record(1e-3, 0.6, rank=4), record(2e-3, 0.6, rank=32), record(5e-3, 0.6, method="head", rank=None)]
    blocks = choose.config_blocks(choose.choose_rates(searched), (2, 8, 16, 64))
    assert [(block["method"], block.get("rank"), block["lr"]) for block in blocks] == [
        ("head", None, {"rte": 5e-3}), ("lora", [2, 8], {"rte": 1e-3}), ("lora", [16, 64], {"rte": 2e-3}),
    ]  # fmt: skip


def test_a_and_b_are_said_where_several_were_searched() -> None:
    mini: dict[str, Any] = {"method": "mini", "rank": 8}
    small, large = record(1e-3, 0.6, a=16, b=32, **mini), record(5e-4, 0.6, a=64, b=64, **mini)
    blocks = choose.config_blocks(choose.choose_rates([large, small]), (4, 16))
    assert [(block["rank"], block["a"], block["b"], block["lr"]) for block in blocks] == [
        ([4, 16], 16, 32, {"rte": 1e-3}), ([4, 16], 64, 64, {"rte": 5e-4}),
    ]  # fmt: skip
    (alone,) = choose.config_blocks(choose.choose_rates([small]))
    assert alone.keys() == {"method", "targets", "rank", "lr"}


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("alpha", (8.0, 16.0)),
        ("epochs", (3, 6)),
        ("batch_size", (8, 16)),
        ("weight_decay", (0.0, 0.1)),
        ("model", "mn"),
    ],
)
def test_only_cells_that_differ_in_nothing_else_are_compared(setting: str, values: tuple[Any, ...]) -> None:
    """With one setting 1e-3 is best, with the other 2e-3; the blocks say which is which."""
    one, other = ({setting: value} for value in values)
    records = [
        record(1e-3, 0.9, **one),
        record(2e-3, 0.8, **one),
        record(1e-3, 0.1, **other),
        record(2e-3, 0.2, **other),
    ]
    blocks = choose.config_blocks(choose.choose_rates(records))
    assert [(block[setting], block["lr"]) for block in blocks] == [
        (values[0], {"rte": 1e-3}), (values[1], {"rte": 2e-3}),
    ]  # fmt: skip


def test_tasks_may_differ_in_their_settings() -> None:
    records = [record(1e-3, 0.9, epochs=3), record(1e-3, 0.9, task="qnli", epochs=1)]
    (block,) = choose.config_blocks(choose.choose_rates(records))
    assert block == {"method": "lora", "targets": "qv", "rank": 4, "lr": {"qnli": 1e-3, "rte": 1e-3}}


def test_cells_that_continue_from_others_are_compared_apart_and_over_seeds() -> None:
    def started(lr: float, held_out: float, seed: int) -> Record:
        plain = record(lr, held_out, seed, start=f"{seed:012x}")
        protocol = plain.protocol.model_copy(update={"start": "mnli", "start_settings": "0123456789ab"})
        return plain.model_copy(update={"protocol": protocol})

    records = [
        record(1e-3, 0.9),
        record(2e-3, 0.8),
        *(started(lr, lr * 99, seed) for lr in (1e-3, 2e-3) for seed in (0, 1)),
    ]
    chosen = choose.choose_rates(records)
    assert [(choice.further, choice.lr, choice.seeds) for choice in chosen] == [
        ((("start", "mnli"),), 2e-3, 2), ((("start", "pretrained"),), 1e-3, 1),
    ]  # fmt: skip


def test_where_cells_of_searches_are_recorded_they_alone_choose() -> None:
    trial = SearchInfo(role="trial", settings=("lr",))
    roles = {0.5: trial, 0.9: SearchInfo(role="chosen", settings=("lr",)), 0.8: SearchInfo(role="start"), 0.7: None}
    records = [record(lr * 1e-3, lr).model_copy(update={"search": role}) for lr, role in roles.items()]
    (choice,) = choose.choose_rates([*records, record(1e-3, 0.2).model_copy(update={"search": trial})])
    assert (choice.lr, choice.tried) == (0.5e-3, (0.5e-3, 1e-3))


def test_a_searched_rate_of_the_head_is_chosen_with_the_adapters() -> None:
    both = SearchInfo(role="trial", settings=("lr", "head_lr"))
    scores = {("rte", 1e-3, 1e-2): 0.9, ("rte", 2e-3, 1e-3): 0.8, ("qnli", 1e-3, 1e-3): 0.7, ("qnli", 1e-3, 1e-2): 0.6}
    records = [
        record(lr, score, task=task, head_lr=head).model_copy(update={"search": both})
        for (task, lr, head), score in scores.items()
    ]
    blocks = choose.config_blocks(choose.choose_rates(records))
    assert [(block["task"], block["head_lr"], block["lr"]) for block in blocks] == [
        (["qnli"], 1e-3, {"qnli": 1e-3}), (["rte"], 1e-2, {"rte": 1e-3}),
    ]  # fmt: skip


def test_without_held_out_rows_nothing_is_chosen() -> None:
    with pytest.raises(BenchError, match="no held-out metric") as caught:
        choose.choose_rates([record(1e-3, None)])
    assert caught.value.code == NOTHING


def test_a_rate_at_which_a_cell_diverged_is_not_chosen_for_lack_of_a_better_one(folder: Callable[..., Path]) -> None:
    lost = [record(lr, None, status="diverged", rank=32) for lr in (1.0, 2.0)]
    code, out = invoke("choose", "--results", folder(*lost))
    assert (code, "none can be chosen" in out) == (NOTHING, True)
    code, out = invoke("choose", "--results", folder(record(1e-3, 0.6)))
    assert code == 0
    assert "# no rate for lora, rte, rank 32: at every rate that was tried a cell failed or diverged" in out
    assert "1.0e+00" not in out and "2.0" not in out


def test_choose_prints_blocks_that_a_config_takes(folder: Callable[..., Path], tmp_path: Path) -> None:
    results = folder(record(1e-3, 0.6), record(2e-3, 0.7), record(4e-3, 0.5))
    code, out = invoke("choose", "--results", results, "--rank", 4, "--rank", 8)
    assert code == 0
    config = tmp_path / "chosen.yaml"
    config.write_text("name: chosen\ndefaults: {task: rte, model: sample}\nblocks:\n" + out)
    code, out = invoke("plan", "--config", config, "--results", tmp_path / "new")
    assert code == 0
    assert "chosen: 2 cells" in out


@pytest.mark.parametrize(("device", "precision", "hints"), [
    ("NVIDIA H200", "float32", True), ("NVIDIA H200", "bf16", False), ("cpu, any", "float32", False),
])  # fmt: skip
def test_a_plan_in_float32_says_what_is_faster_on_a_gpu(
    device: str, precision: str, hints: bool, tmp_path: Path
) -> None:
    chosen = ["--preset", "smoke", "--results", tmp_path / "new", "--precision", precision]
    code, out = invoke("plan", *chosen, "--device", device)
    assert code == 0
    assert ("--precision bf16" in out) == hints


def test_an_archive_is_read_as_the_files_were(folder: Callable[..., Path]) -> None:
    results = folder(record(1e-3, 0.6), record(2e-3, 0.7))
    before = read_records(results)
    assert invoke("archive", "--results", results)[0] == 0
    content = archive.path_of(results).read_bytes()
    assert not list((results / "cells").iterdir())
    assert read_records(results) == RecordStore(results).loaded() == before
    assert invoke("archive", "--results", results)[0] == 0
    assert archive.path_of(results).read_bytes() == content


def test_a_file_counts_before_the_archive(folder: Callable[..., Path]) -> None:
    one = record(1e-3, 0.6)
    results = folder(one)
    invoke("archive", "--results", results)
    store = RecordStore(results)
    write_record(results, newer := one.model_copy(update={"reason": "again"}))
    store.refresh()
    assert store.records[one.id] == newer == read_records(results).records[0]
    record_path(results, one.id).write_bytes(b"{")
    assert read_records(results).records == ()  # a damaged one too: what it said is not known
    record_path(results, one.id).unlink()
    store.refresh()
    assert store.records[one.id] == one


def test_a_damaged_archive_is_reported_at_every_length(folder: Callable[..., Path]) -> None:
    results = folder(record(1e-3, 0.6), record(2e-3, 0.7))
    invoke("archive", "--results", results)
    path = archive.path_of(results)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        loaded = read_records(results)
        assert [each[0] for each in loaded.broken] == [path], length
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        loaded = read_records(results)
        assert loaded.broken or len(loaded.records) == 2, "a bit of gzip's header that means nothing may turn"
    path.write_bytes(content[:-9])
    code, out = invoke("archive", "--results", results)
    assert code == SOME_FAILED
    assert "is not a sound record" in " ".join(out.split())
    assert path.read_bytes() == content[:-9]


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    for command in ("choose", "archive"):
        assert invoke(command, "--results", tmp_path)[0] == NOTHING


def test_an_epoch_that_the_cell_could_not_select_chooses_no_rate() -> None:
    """A rank schedule selects none before its budget is met: what it had with more components does not count."""
    early, late = record(1e-3, 0.7), record(2e-3, 0.6)
    assert [held_out_metric(each) for each in (early, late)] == [0.7, 0.6]
    over_budget = late.model_copy(update={"epochs": make_epochs(0.9, 0.5, held_out=(0.8, 0.6))})
    assert held_out_metric(over_budget) == 0.6

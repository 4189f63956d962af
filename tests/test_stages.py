"""Which cells of a staged grid are known, ready, waiting or blocked is a function of the config and the records."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lora_bench.cell import Cell
from lora_bench.errors import USAGE, BenchError
from lora_bench.grid.cells import Grid, expand
from lora_bench.grid.config import Config, parse_config
from lora_bench.grid.stages import Entry
from lora_bench.records.schema import Record
from lora_bench.testing import make_epochs, make_record
from tests.fake_sources import fake_sources

SOURCES = fake_sources(lambda location: f"id of {location}", lambda location, task: f"{location}'s {task}")
SEARCH: dict[str, Any] = {"search": [1e-3, 1e-4, 3e-4], "seeds": [100, 101], "extend": False}
BASE: dict[str, Any] = {"task": "rte", "method": "lora", "seed": [0, 1], "lr": SEARCH}
Score = Callable[[Cell], float | None]


def grid(*blocks: dict[str, Any], defaults: dict[str, Any] | None = None, **overrides: list[Any]) -> Grid:
    base = BASE if defaults is None else defaults
    return expand(Config.model_validate({"name": "t", "defaults": base, "blocks": blocks}), overrides, SOURCES)


def ended(cell: Cell, score: float | None) -> Record:
    """A record with this held-out metric; one of a cell that diverged if there is none."""
    if score is None:
        return make_record(None, cell=cell, status="diverged", reason="nan")
    return make_record(0.5, cell=cell, epochs=make_epochs(0.5, held_out=[score]))


def ready(staged: Grid, records: dict[str, Record]) -> list[Cell]:
    """The cells that can train."""
    return [
        entry.cell
        for entry in staged.entry_of.values()
        if entry.state == "ready" and entry.cell is not None and entry.cell.id not in records
    ]


def finished(staged: Grid, score: Score, order: random.Random | None = None) -> tuple[Grid, dict[str, Record]]:
    """The grid when all cells that can train have ended, one after another."""
    records: dict[str, Record] = {}
    while cells := ready(staged, records):
        cell = order.choice(cells) if order else cells[0]
        records[cell.id] = staged.with_stages(ended(cell, score(cell)))
        staged = staged.given(records)
    return staged, records


def by_rate(scores: dict[float, float | None]) -> Score:
    return lambda cell: scores.get(cell.lr, 0.0)


def rates(entries: Iterable[Entry], role: str = "grid") -> list[tuple[int, float]]:
    return [(entry.cell.seed, entry.cell.lr) for entry in entries if entry.role == role and entry.cell is not None]


# ---- searched rates


def test_the_search_comes_first_and_the_grid_takes_its_best_rate() -> None:
    staged = grid()
    assert rates(staged.entries) == []
    assert rates(staged.entries, "trial") == [(seed, lr) for lr in (1e-4, 3e-4, 1e-3) for seed in (100, 101)]
    assert {cell.select for cell in staged.cells} == {"held-out"}
    staged, records = finished(staged, by_rate({1e-4: 0.5, 3e-4: 0.7, 1e-3: 0.6}))
    assert rates(staged.entries) == [(0, 3e-4), (1, 3e-4)]
    assert len(records) == 8
    assert all(entry.cell.select == "best" for entry in staged.entries if entry.role == "grid" and entry.cell)


def test_the_id_of_a_chosen_cell_is_that_of_the_same_cell_with_a_given_rate() -> None:
    staged, _ = finished(grid(), by_rate({3e-4: 1.0}))
    given = grid(defaults=BASE | {"lr": 3e-4})
    assert {entry.cell.id for entry in staged.entries if entry.role == "grid" and entry.cell} == {
        c.id for c in given.cells
    }


def test_a_waiting_cell_says_for_what() -> None:
    staged = grid()
    waiting = [entry for entry in staged.entries if entry.state == "waiting"]
    assert [entry.reason for entry in waiting] == ["6 of 6 cells that search its rate"] * 2


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({1e-4: 0.7, 3e-4: 0.7, 1e-3: 0.7}, 1e-4),  # the lowest of equal rates
        ({1e-4: 0.6, 3e-4: 0.7, 1e-3: None}, 3e-4),  # a failed seed is the worst
        ({1e-4: None, 3e-4: None, 1e-3: 0.1}, 1e-3),
    ],
)
def test_the_best_mean_of_held_out_scores_is_chosen(scores: dict[float, float | None], chosen: float) -> None:
    staged, _ = finished(grid(), by_rate(scores))
    assert {lr for _, lr in rates(staged.entries)} == {chosen}


def test_one_failed_seed_outweighs_the_others() -> None:
    def score(cell: Cell) -> float | None:
        return None if (cell.lr, cell.seed) == (1e-3, 101) else cell.lr

    staged, _ = finished(grid(), score)
    assert {lr for _, lr in rates(staged.entries)} == {3e-4}


def test_where_every_rate_failed_the_grid_is_blocked() -> None:
    staged, records = finished(grid(), by_rate(dict.fromkeys((1e-4, 3e-4, 1e-3))))
    assert rates(staged.entries) == []
    assert {entry.reason for entry in staged.entries if entry.state == "blocked"} == {
        "the search of its rate: a cell failed at every rate"
    }
    assert len(records) == 6


@pytest.mark.parametrize(
    ("best", "tried", "edges"),
    [
        (3e-4, [1e-4, 3e-4, 1e-3], ()),
        (1e-3, [1e-4, 3e-4, 1e-3, 3.33e-3], ()),
        (3.33e-3, [1e-4, 3e-4, 1e-3, 3.33e-3, 1.11e-2], ()),
        (1.11e-2, [1e-4, 3e-4, 1e-3, 3.33e-3, 1.11e-2], ("lr",)),  # twice, no more
        (1e-4, [3.33e-5, 1e-4, 3e-4, 1e-3], ()),
        (1.11e-5, [1.11e-5, 3.33e-5, 1e-4, 3e-4, 1e-3], ("lr",)),
    ],
)
def test_a_best_rate_at_an_edge_adds_the_next_one(best: float, tried: list[float], edges: tuple[str, ...]) -> None:
    def score(cell: Cell) -> float:
        return 1 - abs(cell.lr - best) / (cell.lr + best)

    staged, records = finished(grid(defaults=BASE | {"lr": SEARCH | {"extend": True}}), score)
    assert {lr for _, lr in rates(staged.entries)} == {best}
    assert sorted({lr for _, lr in rates(staged.entries, "trial")}) == tried
    for entry in staged.entries:
        if entry.role == "grid" and entry.cell is not None:
            info = records[entry.cell.id].search
            assert info is not None
            assert [rate.lr for rate in info.tried] == tried
            assert info.edges == edges


def test_records_say_what_was_searched() -> None:
    staged, records = finished(grid(), by_rate({1e-4: 0.5, 3e-4: 0.7, 1e-3: None}))
    roles = {record.search.role for record in records.values() if record.search}
    assert roles == {"trial", "chosen"}
    info = next(r.search for r in records.values() if r.search and r.search.role == "chosen")
    assert [(rate.lr, rate.held_out, rate.seeds, rate.failed) for rate in info.tried] == [
        (1e-4, 0.5, 2, 0), (3e-4, 0.7, 2, 0), (1e-3, None, 2, 2),
    ]  # fmt: skip
    assert Record.model_validate_json(records[staged.cells[-1].id].model_dump_json()) == records[staged.cells[-1].id]


def test_settings_and_tasks_are_searched_apart() -> None:
    staged = grid(defaults=BASE | {"rank": [4, 8], "task": ["rte", "qnli"]})

    def score(cell: Cell) -> float:
        return cell.lr if (cell.rank, cell.task) == (8, "qnli") else -cell.lr

    staged, records = finished(staged, score)
    chosen = {(s.cell.rank, s.cell.task, s.cell.lr) for s in staged.entries if s.role == "grid" and s.cell}
    assert chosen == {(4, "rte", 1e-4), (8, "rte", 1e-4), (4, "qnli", 1e-4), (8, "qnli", 1e-3)}
    assert len(records) == 4 * 3 * 2 + 4 * 2


def test_shared_settings_are_searched_at_the_values_that_are_named() -> None:
    share = {"rank": [4, 32], "a": 64, "targets": "attention"}
    staged = grid(
        {"method": "mini", "a": [32, 64], "b": 16, "targets": ["attention", "qv"]},
        {"method": "lora", "targets": "qv"},
        defaults=BASE | {"rank": [4, 8, 16, 32], "seed": 0, "lr": SEARCH | {"share": share}},
    )
    staged, records = finished(staged, lambda cell: cell.lr * (1 if (cell.rank or 0) > 10 else -1))
    trials = {
        (s.cell.method, s.cell.rank, s.cell.a, s.cell.targets) for s in staged.entries if s.role == "trial" and s.cell
    }
    assert trials == {(m, r, a, "attention") for m, a in (("mini", 64), ("lora", None)) for r in (4, 32)}
    chosen = {(s.cell.rank, s.cell.lr) for s in staged.entries if s.role == "grid" and s.cell}
    assert chosen == {(4, 1e-4), (8, 1e-4), (16, 1e-3), (32, 1e-3)}
    at = {(s.cell.rank, s.cell.a): records[s.cell.id].search for s in staged.entries if s.role == "grid" and s.cell}
    assert {size: info.at for size, info in at.items() if info} == {
        **{(rank, a): {} for rank in (4, 32) for a in (None, 64)},
    } | {
        (rank, a): {
            **({"rank": 4 if rank == 8 else 32} if rank in (8, 16) else {}),
            **({"a": 64} if a == 32 else {}),
            "targets": "attention",
        }
        for rank in (4, 8, 16, 32)
        for a in (None, 32, 64)
    }


def test_the_heads_rate_is_searched_with_the_adapters() -> None:
    both = {"lr": SEARCH, "head_lr": SEARCH | {"search": [1e-3, 2e-3]}}
    staged, records = finished(grid(defaults=BASE | both), lambda cell: cell.lr - (cell.head_lr or 0))
    assert {(s.cell.lr, s.cell.head_lr) for s in staged.entries if s.role == "grid" and s.cell} == {(1e-3, 1e-3)}
    assert len(records) == 3 * 2 * 2 + 2


def test_two_searches_at_once_have_the_same_seeds() -> None:
    with pytest.raises(BenchError, match="lr and head_lr are searched together, but head_lr has other"):
        grid(defaults=BASE | {"head_lr": SEARCH | {"seeds": [7]}})


def test_a_searched_seed_is_not_one_of_the_grid() -> None:
    with pytest.raises(BenchError, match="seed 1 is among the seeds of the search and of the grid") as caught:
        grid(defaults=BASE | {"lr": SEARCH | {"seeds": [1, 2]}})
    assert caught.value.code == USAGE


def test_a_given_rate_replaces_a_search() -> None:
    staged = grid(lr=[5e-4])
    assert rates(staged.entries) == [(0, 5e-4), (1, 5e-4)]
    assert not staged.is_staged


@pytest.mark.parametrize(
    ("lr", "what"),
    [
        ("{search: []}", "lr: there is no rate to search."),
        ("{search: [1e-3]}", "lr: there is only one rate to search."),
        ("{search: [1e-3, 1.0e-3]}", "lr: there is only one rate to search."),
        ("{search: [1e-3, x]}", "lr: 'x' is not allowed."),
        ("{search: [1e-3, 2e-3], seed: [3]}", "Unknown key of a search 'seed'."),
        ("{search: [1e-3, 2e-3], seeds: []}", "seed: the list is empty."),
        ("{search: [1e-3, 2e-3], seeds: [-1]}", "seed: -1 is not allowed."),
        ("{search: [1e-3, 2e-3], extend: 3}", "extend: 3 is not allowed."),
        ("{search: [1e-3, 2e-3], share: rank}", "share: 'rank' is not a mapping."),
        ("{search: [1e-3, 2e-3], share: {method: lora}}", "Unknown setting that can be shared 'method'."),
        ("{search: [1e-3, 2e-3], share: {targets: [qv, attention]}}", "share: targets: ['qv', 'attention'] is not"),
    ],
)
def test_a_search_that_is_wrong_is_refused_with_its_line(lr: str, what: str) -> None:
    with pytest.raises(BenchError, match=re.escape(f"x.yaml:3: {what}")) as caught:
        parse_config(f"name: x\ndefaults:\n  lr: {lr}\n", "x.yaml")
    assert caught.value.code == USAGE


def test_only_rates_are_searched() -> None:
    with pytest.raises(BenchError, match="rank cannot be searched"):
        parse_config("name: x\ndefaults: {rank: {search: [1, 2]}}\n", "-")


def test_a_search_for_one_task_only() -> None:
    staged = grid(defaults=BASE | {"task": ["rte", "cola"], "lr": {"rte": SEARCH, "default": 2e-3}})
    assert {(entry.cell.task, entry.role) for entry in staged.entries if entry.cell} == {
        ("rte", "trial"),
        ("cola", "grid"),
    }


# ---- starts

START: dict[str, Any] = {"task": ["rte", "mnli"], "method": "lora", "seed": [0, 1], "start": {"rte": "mnli"}}


def test_a_cell_continues_from_the_cell_of_the_same_seed() -> None:
    staged = grid(defaults=START)
    mnli = {cell.seed: cell.id for cell in staged.cells if cell.task == "mnli"}
    assert {cell.seed: cell.start for cell in staged.cells if cell.task == "rte"} == mnli
    assert {cell.task for cell in ready(staged, {})} == {"mnli"}
    order = [cell.task for cell in staged.cells]
    assert order.index("mnli") < order.index("rte")


def test_the_earlier_task_need_not_be_selected() -> None:
    assert {cell.task for cell in grid(defaults=START, task=["rte"]).cells} == {"rte", "mnli"}
    assert {cell.id for cell in grid(defaults=START, task=["rte"]).cells} == {c.id for c in grid(defaults=START).cells}


def test_the_id_says_what_a_cell_starts_from() -> None:
    first, other = (grid(defaults=START | {"epochs": {"mnli": n, "default": 3}, "seed": 0}) for n in (4, 5))
    assert {c.id for c in first.cells if c.task == "rte"}.isdisjoint(c.id for c in other.cells if c.task == "rte")


def test_an_earlier_cell_that_failed_blocks_what_continues_from_it_and_nothing_else() -> None:
    staged, records = finished(
        grid(defaults=START), lambda cell: None if (cell.task, cell.seed) == ("mnli", 0) else 0.5
    )
    blocked = [entry for entry in staged.entries if entry.state == "blocked"]
    assert [(entry.cell.task, entry.cell.seed) for entry in blocked if entry.cell] == [("rte", 0)]
    assert re.fullmatch("the mnli cell [0-9a-f]{12}, from which it would continue, diverged", blocked[0].reason)
    assert len(records) == 3


def test_records_say_what_they_start_from_alike_for_all_seeds() -> None:
    _, records = finished(grid(defaults=START), lambda cell: 0.5)
    protocols = {record.protocol for record in records.values() if record.cell.task == "rte"}
    assert {protocol.start for protocol in protocols} == {"mnli"}
    assert len({protocol.start_settings for protocol in protocols}) == 1
    assert {r.protocol.start for r in records.values() if r.cell.task == "mnli"} == {"pretrained"}


def test_a_start_may_itself_continue_from_another() -> None:
    chain = {"task": "rte", "method": "xs", "start": {"rte": "qnli", "qnli": "mnli"}}
    staged = grid(defaults=chain)
    assert [cell.task for cell in staged.cells] == ["mnli", "qnli", "rte"]
    assert [cell.start for cell in staged.cells] == [None, staged.cells[0].id, staged.cells[1].id]


@pytest.mark.parametrize(
    ("defaults", "what"),
    [
        ({"start": {"rte": "mnli", "mnli": "rte"}}, "start: rte → mnli → rte: no cell can continue from itself."),
        ({"start": "rte"}, "start: rte → rte: no cell can continue from itself."),
        (
            {"start": {"rte": "mnli"}, "lr": {"mnli": [1e-3, 2e-3]}},
            "start: rte continues from mnli, but 2 cells of mnli",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused(defaults: dict[str, Any], what: str) -> None:
    with pytest.raises(BenchError, match=re.escape(what)) as caught:
        grid(defaults={"task": "rte", "method": "lora", **defaults})
    assert caught.value.code == USAGE


@pytest.mark.parametrize(
    "other", [{"method": "xs"}, {"rank": 8}, {"targets": "qv"}, {"alpha": 8}, {"precision": "bf16"}]
)
def test_a_start_task_without_such_a_cell_is_refused(other: dict[str, Any]) -> None:
    base = {"method": "lora", "rank": 16}
    with pytest.raises(
        BenchError, match="start: rte continues from mnli, but the config has no cell of mnli with lora"
    ):
        grid({"task": "rte", "start": "mnli"}, {"task": "mnli", **other}, defaults=base)


def test_an_unknown_start_is_refused_with_its_line() -> None:
    with pytest.raises(BenchError, match=re.escape("x:2: Unknown task 'mnlli'.")):
        parse_config("name: x\ndefaults: {start: {rte: mnlli}}\n", "x")


def test_with_and_without_a_start_side_by_side() -> None:
    staged = grid(defaults=START | {"seed": 0, "start": {"rte": [None, "mnli"]}})
    assert [(cell.task, cell.start is None) for cell in staged.cells] == [
        ("rte", True), ("mnli", True), ("rte", False),
    ]  # fmt: skip


# ---- both


BOTH = START | {"lr": SEARCH}


def test_searches_continue_from_cells_of_searches() -> None:
    """The cell that a trial continues from has the trial's seed, and mostly is a trial itself."""
    staged, records = finished(grid(defaults=BOTH), lambda cell: -cell.lr)
    cells = {cell.id: cell for cell in staged.cells}
    for cell in cells.values():
        if cell.start is not None:
            assert (cells[cell.start].task, cells[cell.start].seed) == ("mnli", cell.seed)
            assert (cells[cell.start].select == "held-out") == (cell.seed >= 100)
    assert len(records) == 2 * (3 * 2) + 2 * 2


def test_a_search_whose_trials_cannot_start_is_blocked() -> None:
    staged, records = finished(
        grid(defaults=START | {"lr": {"rte": SEARCH, "default": 1e-3}}),
        lambda cell: None if cell.task == "mnli" and cell.seed >= 100 else 0.5,
    )
    blocked = {(entry.role, entry.cell is None) for entry in staged.entries if entry.state == "blocked"}
    assert blocked == {("trial", False), ("grid", True)}
    assert {record.cell.task for record in records.values()} == {"mnli"}


@pytest.mark.parametrize("seed", range(20))
def test_the_order_in_which_cells_end_changes_nothing(seed: int) -> None:
    staged = grid(defaults=BOTH | {"rank": [2, 4], "lr": SEARCH | {"extend": True}})

    def score(cell: Cell) -> float | None:
        draw = random.Random(cell.id)
        return None if draw.random() < 0.1 else draw.random()

    one, records = finished(staged, score)
    other, again = finished(staged, score, random.Random(seed))
    assert records == again
    assert set(one.cells) == set(other.cells)
    # Found again from the records alone, whatever is left to do.
    some = dict(random.Random(seed).sample(sorted(records.items()), len(records) // 2))
    resumed = staged.given(some)
    for entry in resumed.entry_of.values():
        assert entry.cell in one.cells
    assert staged.given(records).cells == one.cells

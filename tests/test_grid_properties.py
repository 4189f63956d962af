"""Expansion, overrides and packs on random configs, the expansion against a plain enumeration."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.grid.cells import Grid, expand, packs
from lora_bench.grid.config import Config
from tests.fake_sources import fake_sources

SIZES = {"rank", "a", "b", "targets"}
SOURCES = fake_sources(lambda location: f"id of {location}", lambda location, task: f"{location}'s {task}")

POOL: dict[str, list[Any]] = {
    "task": ["rte", "cola", "sst2"], "method": sorted(methods.RECIPES), "rank": [2, 4, 8], "a": [16, 32],
    "lr": [0.1, 0.2], "b": [16, 32], "targets": ["qv", "attention"], "seed": [0, 1], "epochs": [1, 2],
    "head_lr": [None, 0.5],
}  # fmt: skip


def made(defaults: dict[str, Any], *blocks: dict[str, Any], **overrides: list[Any]) -> Grid:
    config = Config.model_validate({"name": "t", "defaults": defaults, "blocks": blocks})
    return expand(config, overrides, SOURCES)


def ids(grid: Grid) -> set[str]:
    return {cell.id for cell in grid.cells}


def some(setting: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(POOL[setting]), min_size=1, max_size=3, unique=True)


def block(*settings_: str) -> st.SearchStrategy[dict[str, Any]]:
    by_task = st.dictionaries(st.sampled_from([*POOL["task"], "default"]), some("epochs"), min_size=1)
    optional = {setting: some(setting) for setting in settings_ if setting != "epochs"}
    return st.fixed_dictionaries({}, optional=optional | {"epochs": some("epochs") | by_task})


DEFAULTS = st.tuples(
    st.fixed_dictionaries({"task": some("task"), "method": some("method")}), block("rank", "lr", "seed")
)
CONFIGS = st.tuples(DEFAULTS.map(lambda parts: parts[0] | parts[1]), st.lists(block(*POOL), max_size=3))


def enumerated(defaults: dict[str, Any], blocks: list[dict[str, Any]]) -> set[Cell]:
    """The grid, the slow way: every combination of every block, made whole and put into a set."""
    cells = set()
    for merged in [defaults | block for block in blocks] or [defaults]:
        for task, method in itertools.product(merged["task"], merged["method"]):
            recipe = methods.get(method)
            lists: dict[str, list[Any]] = {
                k: v.get(task) or v.get("default") or [10] if isinstance(v, dict) else v for k, v in merged.items()
            }
            for point in itertools.product(*lists.values()):
                chosen = dict(zip(lists, point, strict=True)) | {"task": task, "method": method}
                lacking = {"rank", "a", "b", "targets"} - recipe.parameters
                kept = {key: value for key, value in chosen.items() if key not in lacking}
                source = {"model": "id of FacebookAI/roberta-base", "data": f"task's {task}"}
                cells.add(Cell.model_validate({"lr": recipe.default_lr, **recipe.defaults, **source, **kept}))
    return cells


@settings(max_examples=60)
@given(CONFIGS)
def test_expansion_is_the_set_of_all_combinations(config: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    defaults, blocks = config
    grid = made(defaults, *blocks)
    assert set(grid.cells) == enumerated(defaults, blocks)
    assert len(ids(grid)) == len(grid.cells)


@settings(max_examples=40)
@given(CONFIGS, st.randoms(use_true_random=False))
def test_the_order_of_blocks_keys_and_values_changes_no_id(config: Any, random: Any) -> None:
    def shuffled(part: Any) -> Any:
        if isinstance(part, list):
            return random.sample([shuffled(item) for item in part], len(part))
        if isinstance(part, dict):
            return {key: shuffled(part[key]) for key in random.sample(list(part), len(part))}
        return part

    defaults, blocks = config
    assert ids(made(shuffled(defaults), *shuffled(blocks))) == ids(made(defaults, *blocks))


@settings(max_examples=60)
@given(DEFAULTS.map(lambda parts: parts[0] | parts[1]), st.sampled_from(["task", "method", "rank", "lr"]), st.data())
def test_narrowing_one_block_is_filtering_its_cells(
    defaults: dict[str, Any], setting: str, data: st.DataObject
) -> None:
    wanted = data.draw(some(setting))
    whole, offered = made(defaults), set(wanted) & set(defaults.get(setting, ()))
    matters = any(getattr(cell, setting) for cell in whole.cells)
    if matters and offered and offered != set(wanted):
        with pytest.raises(BenchError, match=f"^{setting}: the config has"):
            made(defaults, **{setting: wanted})
        return
    narrow = made(defaults, **{setting: wanted})
    assert all(getattr(cell, setting) in [*wanted, None] for cell in narrow.cells)
    kept = [cell for cell in whole.cells if getattr(cell, setting) in [*wanted, None]]
    if offered and matters:
        assert list(narrow.cells) == kept


@settings(max_examples=40)
@given(CONFIGS, st.fixed_dictionaries({}, optional={setting: some(setting) for setting in POOL}))
def test_every_cell_has_what_was_asked_for(config: Any, overrides: dict[str, list[Any]]) -> None:
    """Or the config has some of it and not the rest, and nothing runs."""
    try:
        grid = made(config[0], *config[1], **overrides)
    except BenchError as error:
        assert " here, but not " in error.what
        return
    assert grid.cells
    for setting, wanted in overrides.items():
        has = [c for c in grid.cells if setting in methods.of(c).parameters or setting not in SIZES]
        assert {getattr(cell, setting) for cell in has} in (set(wanted), set())


@settings(max_examples=40)
@given(CONFIGS, st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_packs_are_a_partition_that_shares_batches(config: Any, size: int, is_limit: bool, random: Any) -> None:
    cells = made(config[0], *config[1]).cells
    found = packs(cells, lambda _: size, is_limit)
    assert Counter(itertools.chain.from_iterable(found)) == Counter(cells)
    for pack in found:
        assert len({cell.batch_settings() for cell in pack}) == 1
        assert len(pack) == 1 or not any(methods.of(cell).trains_backbone for cell in pack)
        assert 1 <= len(pack) <= (size if is_limit else 1.5 * size)

        assert [cell.rank or 0 for cell in pack] == sorted(cell.rank or 0 for cell in pack)
    assert set(packs(random.sample(cells, len(cells)), lambda _: size, is_limit)) == set(found)

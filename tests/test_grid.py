"""Expansion, the narrow-or-override rule, and the packs, example by example."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.errors import USAGE, BenchError
from lora_bench.grid import selection
from lora_bench.grid.cells import Grid, expand, packs
from lora_bench.grid.config import SETTINGS, Config, load_config
from lora_bench.grid.presets import find_preset
from tests.fake_sources import fake_sources

SOURCES = fake_sources(lambda location: f"id of {location}", lambda location, task: f"{location}'s {task}")
BASE: dict[str, Any] = {"task": "rte", "method": "lora"}


def made(defaults: dict[str, Any] | None = None, *blocks: dict[str, Any], **overrides: list[Any]) -> Grid:
    config = Config.model_validate({"name": "t", "defaults": BASE if defaults is None else defaults, "blocks": blocks})
    return expand(config, overrides, SOURCES)


def values(grid: Grid, *fields: str) -> list[Any]:
    rows = [tuple(getattr(cell, field) for field in fields) for cell in grid.cells]
    return [row[0] for row in rows] if len(fields) == 1 else rows


# ---- expansion


def test_the_grid_is_the_product_of_the_lists() -> None:
    grid = made(BASE | {"rank": [4, 8], "seed": [0, 1, 2], "epochs": 3})
    assert values(grid, "rank", "seed", "epochs") == [(r, s, 3) for r in (4, 8) for s in (0, 1, 2)]


def test_the_grid_is_the_union_of_the_blocks_without_repetitions() -> None:
    grid = made(BASE | {"rank": 4}, {"seed": [0, 1]}, {"seed": [1, 2]}, {"rank": "4", "seed": 2.0})
    assert values(grid, "seed") == [0, 1, 2]


def test_a_block_replaces_a_default_as_a_whole() -> None:
    grid = made(BASE | {"epochs": {"rte": 80, "default": 10}, "rank": [4, 8]}, {"epochs": 5, "rank": 2})
    assert values(grid, "epochs", "rank") == [(5, 2)]


def test_values_by_task_are_looked_up() -> None:
    grid = made(BASE | {"task": ["rte", "cola", "sst2"], "epochs": {"rte": 80, "cola": [20, 30], "default": 5}})
    assert values(grid, "task", "epochs") == [("rte", 80), ("cola", 20), ("cola", 30), ("sst2", 5)]


def test_a_task_without_a_value_of_its_own_takes_the_cells_default() -> None:
    assert values(made(BASE | {"task": ["rte", "sst2"], "epochs": {"rte": 80}}), "epochs") == [80, 10]


@pytest.mark.parametrize("method", ["head", "full"])
def test_parameters_that_a_method_lacks_do_not_multiply(method: str) -> None:
    grid = made(
        BASE | {"method": method, "rank": [4, 8], "a": [16, 32], "targets": ["qv", "attention"], "seed": [0, 1]}
    )
    assert values(grid, "seed", "rank", "a", "targets") == [(0, None, None, None), (1, None, None, None)]


@pytest.mark.parametrize("method", sorted(methods.RECIPES))
def test_what_is_left_out_is_the_methods_default(method: str) -> None:
    recipe = methods.get(method)
    (cell,) = made(BASE | {"method": method}).cells
    expected = {name: recipe.defaults.get(name) for name in ("rank", "a", "b", "alpha", "init", "targets")}
    assert {name: getattr(cell, name) for name in expected} == expected
    assert (cell.lr, cell.model) == (recipe.default_lr, "id of FacebookAI/roberta-base")


def test_null_is_the_default() -> None:
    assert values(made(BASE | {"rank": None, "head_lr": [None, 0.5]}), "rank", "head_lr") == [(16, None), (16, 0.5)]


def test_mini_has_its_published_width() -> None:
    assert values(made(BASE | {"method": "mini"}), "a", "b", "init") == [(64, 64, "default")]


@pytest.mark.parametrize("missing", ["task", "method"])
def test_a_grid_without_a_task_or_a_method_is_refused(missing: str) -> None:
    with pytest.raises(BenchError, match=f"t: no {missing} is chosen.\nGive --{missing}"):
        made({key: value for key, value in BASE.items() if key != missing})


def test_the_command_line_alone_is_a_grid() -> None:
    grid = made({}, task=["sst2", "rte"], method=["mini"], rank=["16"], a=[32, 64])
    assert values(grid, "task", "rank", "a") == [(task, 16, a) for task in ("sst2", "rte") for a in (32, 64)]


def test_more_than_a_million_cells_are_refused_before_they_are_built() -> None:
    numbers = list(range(1, 102))
    with pytest.raises(BenchError, match=r"This grid has 1,030,301 cells; the most is 1,000,000\.") as caught:
        made(BASE | {"rank": numbers, "seed": numbers, "epochs": numbers})
    assert caught.value.code == USAGE


def test_the_largest_grid_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MAX_CELLS", 6)
    assert len(made(BASE | {"rank": [1, 2], "seed": [1, 2, 3]}).cells) == 6
    with pytest.raises(BenchError):
        made(BASE | {"rank": [1, 2], "seed": [1, 2, 3, 4]})


# ---- where models and data come from


def test_identities_are_asked_for_once_and_lead_back() -> None:
    asked: Counter[tuple[str, ...]] = Counter()

    def model_identity(location: str) -> str:
        asked[(location,)] += 1
        return location.upper()

    def data_identity(location: str, task: str) -> str:
        asked[location, task] += 1
        return f"hash-{location}"

    raw = BASE | {"task": ["rte", "sst2"], "model": ["sample", "x/y"], "seed": [0, 1], "rank": [2, 4]}
    config = Config.model_validate({"name": "t", "defaults": raw, "notes": {"all": "one", "rte": "two"}})
    grid = expand(config, {"model": ["sample", "x/y"]}, fake_sources(model_identity, data_identity))
    assert asked == Counter(
        {("sample",): 1, ("x/y",): 1} | {(p, t): 1 for p in ("sample", "task") for t in ("rte", "sst2")}
    )
    for cell in grid.cells:
        assert grid.model_source(cell).name.upper() == cell.model
        assert grid.data[cell.task, cell.data].root == Path("sample" if cell.model == "SAMPLE" else "task")
        assert grid.notes_for(cell) == (("one", "two") if cell.task == "rte" else ("one",))


def test_a_data_folder_is_for_every_model() -> None:
    config = Config.model_validate({"name": "t", "defaults": BASE | {"model": ["sample", "x/y"]}})
    grid = expand(config, {}, SOURCES, data=Path("folder"))
    assert {grid.data[cell.task, cell.data].root for cell in grid.cells} == {Path("folder")}


def test_what_is_narrowed_away_is_never_looked_at() -> None:
    config = Config.model_validate({"name": "t", "defaults": BASE | {"model": ["x/y", "absent"]}})
    grid = expand(config, {"model": ["x/y"]}, fake_sources({"x/y": "found"}.__getitem__, lambda place, task: place))
    assert values(grid, "model") == ["found"]


# ---- narrow or override

RANKS: dict[str, Any] = BASE | {"rank": [4, 8]}


def test_an_override_narrows_to_what_the_config_offers() -> None:
    assert values(made(RANKS, rank=[8]), "rank") == [8]


def test_an_override_of_which_only_some_is_offered_is_refused() -> None:
    with pytest.raises(BenchError) as caught:
        made(RANKS, rank=[8, 64, 128])
    assert caught.value.what == "rank: the config has 8 here, but not 64, 128."
    assert "Leave them out" in caught.value.hint


def test_a_value_that_another_override_loses_is_refused() -> None:
    """Rank 8 is in the block of `xs` alone, which the rate drops; a method without ranks does not hold it either."""
    blocks = {"method": "lora", "rank": 4, "lr": 1e-3}, {"method": "xs", "rank": 8, "lr": 1e-2}, {"method": "head"}
    assert values(made(BASE, *blocks[:2], rank=[4, 8]), "method", "rank") == [("lora", 4), ("xs", 8)]
    with pytest.raises(BenchError, match="rank: the config has 4 here, but not 8"):
        made(BASE, *blocks, rank=[4, 8], lr=[1e-3])
    by_task = BASE | {"task": ["cola", "sst2"], "epochs": {"cola": 80, "sst2": 60}}
    with pytest.raises(BenchError, match="task: the config has cola here, but not sst2"):
        made(by_task, task=["sst2", "cola"], epochs=[80])


def test_an_override_that_no_block_offers_replaces() -> None:
    assert values(made(RANKS, rank=[16, 64]), "rank") == [16, 64]


def test_blocks_that_offer_none_of_it_are_dropped() -> None:
    grid = made(BASE, {"method": "lora", "rank": [4, 8]}, {"method": "xs", "rank": [8, 12]}, rank=[12])
    assert values(grid, "method", "rank") == [("xs", 12)]


def test_a_block_that_does_not_mention_it_takes_it() -> None:
    grid = made(BASE, {"rank": [4, 8]}, {"seed": 7}, rank=[8])
    assert values(grid, "rank", "seed") == [(8, 0), (8, 7)]


def test_what_no_block_offers_replaces_even_where_a_block_is_silent() -> None:
    grid = made(BASE, {"rank": [4, 8]}, {"seed": 7}, rank=[64])
    assert values(grid, "rank", "seed") == [(64, 0), (64, 7)]


def test_a_method_that_lacks_it_is_not_dropped() -> None:
    grid = made(BASE | {"rank": [4, 8]}, {"method": ["head", "lora"]}, {"method": "xs", "rank": [12]}, rank=[12])
    assert values(grid, "method", "rank") == [("head", None), ("xs", 12)]


def test_the_same_number_written_differently_narrows() -> None:
    assert values(made(BASE | {"lr": [1e-3, 1e-4]}, lr=["1e-3"]), "lr") == [1e-3]


BY_TASK: dict[str, Any] = BASE | {"task": ["cola", "sst2", "rte"], "epochs": {"cola": 80, "sst2": 60, "default": 20}}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"task": ["cola"]}, [("cola", 80)]),
        ({"task": ["wnli"]}, [("wnli", 20)]),
        ({"epochs": [3]}, [("cola", 3), ("sst2", 3), ("rte", 3)]),
        ({"epochs": [80]}, [("cola", 80)]),
        ({"epochs": [80], "task": ["sst2"]}, [("sst2", 80)]),
        ({"task": []}, [("cola", 80), ("sst2", 60), ("rte", 20)]),
    ],
)
def test_values_by_task_narrow_with_their_tasks(overrides: dict[str, list[Any]], expected: list[Any]) -> None:
    assert values(made(BY_TASK, **overrides), "task", "epochs") == expected


def test_a_value_counts_only_where_its_method_is_still_there() -> None:
    blocks = ({"method": "lora", "lr": 1e-3}, {"method": "mini", "lr": 1e-2})
    assert values(made(BASE, *blocks, lr=[1e-3], method=["mini"]), "method", "lr") == [("mini", 1e-3)]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"rnk": [3]}, "Did you mean 'rank'"),
        ({"data": ["x"]}, "Unknown setting 'data'"),
        ({"rank": [0]}, "rank: 0 is not allowed"),
        ({"task": ["sst"]}, "Did you mean 'sst2'"),
        ({"method": ["lor"]}, "Did you mean 'lora'"),
    ],
)
def test_a_wrong_override_is_refused(overrides: dict[str, list[Any]], line: str) -> None:
    with pytest.raises(BenchError, match=line):
        made(RANKS, **overrides)


# ---- packs


def test_packs_are_of_even_sizes_and_full_fine_tuning_stands_alone() -> None:
    grid = made(BASE | {"method": ["full", "head", "lora", "mini"], "rank": [4, 8], "seed": [0, 1], "lr": [0.1, 0.2]})
    sizes = [len(pack) for pack in packs(grid.cells, lambda _: 4)]
    assert sorted(sizes) == [1] * 4 + [3] * 4 + [4] * 2


@pytest.mark.parametrize(("size", "limited", "near"), [(4, [4] * 3, [4] * 3), (5, [4] * 3, [6, 6]), (9, [6, 6], [12])])
def test_a_size_that_is_no_limit_may_be_exceeded(size: int, limited: list[int], near: list[int]) -> None:
    cells = made(BASE | {"method": "lora", "rank": [*range(1, 13)]}).cells
    assert [len(pack) for pack in packs(cells, lambda _: size)] == limited
    assert [len(pack) for pack in packs(cells, lambda _: size, is_limit=False)] == near


def test_a_cell_twice_is_packed_once() -> None:
    (cell,) = made().cells
    assert packs([cell, cell], lambda _: 8) == [(cell,)]


def test_the_packs_of_the_shipped_grid_keep_ranks_together() -> None:
    grid = expand(load_config(find_preset("paper")), {"task": ["rte"], "seed": [0], "lr": [1e-3]}, SOURCES)
    found = [pack for pack in packs(grid.cells, lambda _: 64) if pack[0].method != "full"]
    assert sorted(len(pack) for pack in found) == [45, 45, 50, 51]
    assert all(len({cell.rank for cell in pack}) <= 4 for pack in found)
    assert all(len({cell.targets for cell in pack if cell.targets}) == 1 for pack in found)


def test_few_cells_with_other_targets_join_the_others() -> None:
    grid = made(
        BASE | {"method": "lora"}, {"rank": [*range(1, 8)], "targets": "qv"}, {"rank": 8, "targets": "attention"}
    )
    assert [len(pack) for pack in packs(grid.cells, lambda _: 8)] == [8]


def test_cells_with_gains_or_shifts_keep_apart_from_many_others() -> None:
    """What they do to every output, all cells of their pack would do."""
    few = made(BASE | {"targets": "attention"}, {"method": "lora", "rank": [1]}, {"method": ["dora", "bitfit"]})
    many = made(
        BASE | {"targets": "attention"}, {"method": "lora", "rank": [*range(1, 7)]}, {"method": ["dora", "bitfit"]}
    )
    assert [len(pack) for pack in packs(few.cells, lambda _: 8)] == [3]
    assert [[cell.method for cell in pack] for pack in packs(many.cells, lambda _: 8)] == [
        ["lora"] * 6,
        ["bitfit", "dora"],
    ]


# ---- the module


def test_settings_are_all_that_a_cell_has_but_its_data() -> None:
    assert set(SETTINGS) == set(Cell.model_fields) - {"data", "origin", "task_origin"}


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_fresh_python_has_the_same_order_and_does_not_need_torch(hash_seed: str) -> None:
    program = """
import sys
from lora_bench.grid.config import load_config
from lora_bench.grid.presets import find_preset
from lora_bench.grid.cells import Sources, expand, packs
from types import SimpleNamespace
sources = Sources(lambda x: SimpleNamespace(identity=f"id of {x}"), lambda x, task: (None, f"{x}'s {task}"))
grid = expand(load_config(find_preset("smoke")), {}, sources)
print(*(cell.id for pack in packs(grid.cells, lambda _: 5) for cell in pack))
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
"""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    grid = expand(load_config(find_preset("smoke")), {}, SOURCES)
    assert run.stdout.split() == [cell.id for pack in packs(grid.cells, lambda _: 5) for cell in pack]

"""A cell's id is stable, and a cell is frozen and checked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lora_bench.cell import Cell

HEAD: dict[str, Any] = {"model": "m", "data": "d", "task": "sst2", "method": "head"}
MINI: dict[str, Any] = {
    "model": "FacebookAI/roberta-base", "data": "hub", "task": "cola", "method": "mini", "rank": 16, "a": 64, "b": 64,
    "alpha": 16.0, "init": "default", "targets": "attention", "seed": 3, "lr": 2e-3, "epochs": 20, "precision": "bf16",
}  # fmt: skip
GOLDEN = {"HEAD": "d7af74dbae5d", "MINI": "37701351e1d5"}
FIELDS = sorted(Cell.model_fields)


def cell(**settings: Any) -> Cell:
    return Cell.model_validate(HEAD | settings)


@pytest.mark.parametrize(("settings", "expected"), [(HEAD, GOLDEN["HEAD"]), (MINI, GOLDEN["MINI"])])
def test_the_id_of_a_known_cell_never_changes(settings: dict[str, Any], expected: str) -> None:
    assert Cell.model_validate(settings).id == expected


def test_the_id_is_the_hash_of_the_canonical_text() -> None:
    text = (
        '{"batch_size":32,"clip":1.0,"data":"d","epochs":10,"lr":0.001,"max_length":128,"method":"head","model":"m",'
        '"precision":"float32","seed":0,"select":"best","task":"sst2","warmup":0.06,"weight_decay":0.0}'
    )
    assert cell().canonical() == text
    assert cell().id == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [
        ("lr", 1, 1.0),
        ("lr", "1e-3", 0.001),
        ("rank", 8, 8.0),
        ("rank", "8", 8),
        ("alpha", 16, 16.0),
        ("weight_decay", 0, -0.0),
        ("warmup", -0.0, 0),
        ("seed", 2.0, 2),
    ],
)
def test_the_same_number_written_differently_is_the_same_cell(setting: str, one: object, other: object) -> None:
    assert cell(**{setting: one}).id == cell(**{setting: other}).id
    assert cell(**{setting: one}) == cell(**{setting: other})


def test_a_copy_with_other_values_has_its_own_id() -> None:
    """The id is computed once and kept; that shows nowhere else."""
    one, other = cell(), cell()
    first = one.id
    assert one.model_copy(update={"seed": 3}).id == cell(seed=3).id != first
    assert (one, hash(one), repr(one)) == (other, hash(other), repr(other))
    assert one.model_dump() == other.model_dump()
    assert one.model_dump_json() == other.model_dump_json()


@given(st.permutations(list(MINI)))
def test_the_order_of_the_settings_does_not_matter(order: list[str]) -> None:
    assert Cell.model_validate({key: MINI[key] for key in order}).id == GOLDEN["MINI"]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_the_hash_seed_of_python_does_not_matter(hash_seed: str) -> None:
    program = f"from lora_bench.cell import Cell; print(Cell.model_validate({MINI!r}).id)"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == GOLDEN["MINI"]


def test_a_new_optional_field_changes_no_old_id() -> None:
    class Later(Cell):
        dropout: float | None = None

    assert Later.model_validate(MINI).id == GOLDEN["MINI"]
    assert Later.model_validate(MINI | {"dropout": 0.1}).id != GOLDEN["MINI"]


OTHER_VALUES: dict[str, Any] = {
    "origin": "mine.py@0123456789ab", "start": "0123456789ab",
    "task_origin": "my_task.py@0123456789ab",
    "model": "x", "data": "x", "task": "rte", "method": "lora", "rank": 2, "a": 2, "b": 2, "alpha": 2, "targets": "qv",
    "init": "published", "seed": 9, "lr": 0.5, "head_lr": 0.5, "weight_decay": 0.5, "warmup": 0.5, "clip": 0.5,
    "epochs": 3, "batch_size": 3, "max_length": 9, "select": "last", "precision": "float64", "head": "model",
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_part_of_the_id(field: str) -> None:
    assert cell(**{field: OTHER_VALUES[field]}).id != cell().id


def test_the_canonical_text_is_sorted_plain_json_without_unset_fields() -> None:
    settings = json.loads(cell(task="é").canonical())
    assert list(settings) == sorted(settings)
    assert None not in settings.values()
    assert cell(task="é").canonical().isascii()


def test_a_cell_read_back_from_json_is_the_same_cell() -> None:
    before = Cell.model_validate(MINI)
    assert Cell.model_validate_json(before.model_dump_json()) == before


def test_a_cell_is_frozen_and_hashable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        cell().rank = 3
    assert len({cell(), cell()}) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rank", 0), ("rank", 2**40), ("rank", 1.5), ("a", "x"), ("b", -1), ("alpha", 0), ("seed", -1), ("seed", 2**63),
        ("lr", float("nan")), ("lr", float("inf")), ("lr", 0), ("head_lr", -1), ("weight_decay", -0.1), ("warmup", 1.1),
        ("warmup", float("nan")), ("clip", float("inf")), ("epochs", 0), ("max_length", 3), ("select", "test"),
        ("precision", "fp16"), ("init", "zero"), ("head", "roberta"), ("model", ""), ("model", "m" * 301), ("rnak", 3),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused(setting: str, value: object) -> None:
    with pytest.raises(ValidationError, match=setting):
        cell(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rank", 1), ("rank", 2**31), ("epochs", 1), ("seed", 0), ("seed", 2**63 - 1), ("warmup", 0), ("warmup", 1),
        ("weight_decay", 0), ("clip", 0), ("max_length", 4), ("max_length", 2**16), ("model", "m" * 300),
        *(("select", name) for name in ("best", "last", "held-out")), ("init", "default"), ("init", "published"),
        *(("precision", name) for name in ("float64", "float32", "bf16")),
    ],
)  # fmt: skip
def test_what_is_just_allowed_is_kept(setting: str, value: object) -> None:
    assert getattr(cell(**{setting: value}), setting) == value


@pytest.mark.parametrize(("setting", "value"), [("rank", 2**31 + 1), ("warmup", 1.0001), ("max_length", 2**16 + 1)])
def test_one_more_is_not_allowed(setting: str, value: object) -> None:
    with pytest.raises(ValidationError, match=setting):
        cell(**{setting: value})


def test_the_head_learns_at_its_own_rate_or_the_adapters() -> None:
    assert cell(lr=0.25).effective_head_lr == 0.25
    assert cell(lr=0.25, head_lr=0.5).effective_head_lr == 0.5


APART = {"model", "data", "task", "seed", "batch_size", "epochs", "max_length", "precision", "head"}


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "select"])
def test_which_settings_keep_cells_out_of_one_pack(field: str) -> None:
    apart = cell(**{field: OTHER_VALUES[field]}).batch_settings() != cell().batch_settings()
    assert apart == (field in APART)


def test_only_a_held_out_slice_changes_the_batches() -> None:
    assert cell(select="last").batch_settings() == cell(select="best").batch_settings()
    assert cell(select="held-out").batch_settings() != cell(select="best").batch_settings()

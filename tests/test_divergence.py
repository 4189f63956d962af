"""Why a cell diverged: its last steps in its record, and what `show` says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from lora_bench.cell import Cell
from lora_bench.cli.app import app
from lora_bench.records import divergence
from lora_bench.records.schema import Protocol, Record, TrainingStep
from lora_bench.records.seal import seal
from lora_bench.records.store import COLUMNS, parse, read_records, record_text, row, write_csv, write_record


def steps(count: int = 50, first: int = 951, growth: float = 1.3, **last: Any) -> tuple[TrainingStep, ...]:
    """Steps whose gradient norm grows, the last of which is not finite."""
    values = [
        TrainingStep(step=first + i, loss=0.69 + i / 100, grad_norm=0.8 * growth**i, lr=2e-4) for i in range(count)
    ]
    return (*values[:-1], values[-1].model_copy(update={"loss": "nan", "grad_norm": "inf"} | last))


def record(last_steps: tuple[TrainingStep, ...] | None) -> Record:
    cell = Cell.model_validate(
        {"model": "m", "data": "d", "task": "rte", "method": "lora", "rank": 4, "targets": "qv", "seed": 0, "lr": 2e-4}
    )
    return Record(
        id=cell.id, cell=cell, status="diverged", reason="loss or gradient not finite in epoch 3, step 1000",
        metric="accuracy", protocol=Protocol(split="validation", select="best"), last_steps=last_steps,
    )  # fmt: skip


def shown(folder: Path, one: Record) -> str:
    write_record(folder, one)
    ended = CliRunner().invoke(app, ["show", one.id, "--results", str(folder)])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def test_values_that_are_not_finite_survive_the_file(tmp_path: Path) -> None:
    last: dict[str, Any] = {"loss": "nan", "grad_norm": "-inf", "lr": "inf"}
    one = record(steps(2, **last))
    write_record(tmp_path, one)
    assert read_records(tmp_path).records == (one,)
    assert [str(float(value)) for value in list(vars((one.last_steps or ())[-1]).values())[1:]] == [
        "nan",
        "-inf",
        "inf",
    ]
    for bad in (float("nan"), float("inf"), "many", None, "NaN?"):
        with pytest.raises(ValidationError):
            TrainingStep.model_validate({"step": 1, "loss": bad, "grad_norm": 1.0, "lr": 1.0})


def test_a_record_from_before_is_read() -> None:
    text = json.loads(record_text(record(None)))
    del text["last_steps"], text["crc32"]
    assert parse(seal(json.dumps(text))).last_steps is None


def test_metrics_csv_does_not_hold_them(tmp_path: Path) -> None:
    assert "last_steps" not in COLUMNS
    assert row(record(steps())) == row(record(None))
    contents = [write_csv(tmp_path, [record(last)]).read_bytes() for last in (None, steps())]
    assert contents[0] == contents[1]


def test_show_prints_the_steps_and_what_happened_as_json_of_80_columns(tmp_path: Path) -> None:
    one = record(steps(first=99_951))
    text = shown(tmp_path, one)
    content = json.loads(text)
    lines = text.splitlines()
    start = lines.index('  "last_steps": [')
    assert [json.loads(line.rstrip(",")) for line in lines[start + 1 : start + 51]] == content["last_steps"]
    assert lines[start + 51] == "  ],"
    assert max(map(len, lines[start:])) <= 80
    assert [step["step"] for step in content["last_steps"]] == list(range(99_951, 100_001))
    assert (content["last_steps"][-1]["loss"], content["last_steps"][-1]["grad_norm"]) == ("nan", "inf")
    assert content["last_steps"][0] == {"step": 99_951, "loss": 0.69, "grad_norm": 0.8, "lr": 0.0002}
    assert content["what_happened"] == [
        "At step 100000 the loss was not a number and the gradient norm infinite.",
        "In the 20 steps before that:",
        "the gradient norm grew 146-fold, from 1.61e+03 to 2.36e+05;",
        "the loss stayed between 0.98 and 1.17;",
        "the learning rate was 0.0002.",
    ]


def test_show_of_another_cell_is_as_it_was(tmp_path: Path) -> None:
    content = json.loads(shown(tmp_path, record(None)))
    assert content.keys().isdisjoint({"last_steps", "what_happened"})
    assert content["predictions"] == "0 values"


@pytest.mark.parametrize(
    ("last_steps", "lines"),
    [
        (steps(1), ["No earlier step is recorded."]),
        (steps(2, loss=0.7, grad_norm=0.9), ["All steps were finite, but not the outputs after the epoch."]),
        (steps(3, growth=1.0), ["the gradient norm was 0.8;"]),
        (steps(2), ["In the only step before that:", "the loss was 0.69;"]),
        (steps(9, growth=0.5), ["the gradient norm stayed between 0.00625 and 0.8;"]),
        (steps(9, loss="-inf", grad_norm=3.0), ["At step 959 the loss was infinite and the gradient norm 3."]),
        (steps(60, growth=1e3, first=1), ["the gradient norm grew 1.0e+57-fold, from 8e+116 to 8e+173;"]),
    ],
)
def test_what_happened_in_words(last_steps: tuple[TrainingStep, ...], lines: list[str]) -> None:
    explained = divergence.explain(last_steps, 1.0)
    assert set(lines) <= set(explained)
    assert max(map(len, explained)) <= 72


def test_the_heads_own_rate_is_named() -> None:
    assert divergence.explain(steps(3), 2e5)[-1] == "The head's learning rate was 2e+05 times that."
    assert not any("head" in line for line in divergence.explain(steps(3), 1.0))


def test_a_value_that_grew_from_zero_or_was_higher_in_between_is_described_so() -> None:
    values = [
        TrainingStep(step=i, loss=0.7, grad_norm=g, lr=lr) for i, (g, lr) in enumerate(((1, 0), (9, 1), (4, 2)), 1)
    ]
    explained = divergence.explain([*values, values[-1].model_copy(update={"loss": "nan"})], 1.0)
    assert "the gradient norm grew 9.0-fold, from 1 to 9 at most;" in explained
    assert "the learning rate grew, from 0 to 2." in explained

"""`show --command`: the command that it prints trains exactly the cell of the record again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.cli.app import app
from lora_bench.cli.options import Selection
from lora_bench.errors import BenchError
from lora_bench.grid.cells import expand
from lora_bench.grid.command import training_command
from lora_bench.grid.config import SETTINGS, Config
from lora_bench.records import store
from lora_bench.run.plan import sources
from lora_bench.testing import TinyBench, make_record
from lora_bench.testing.cells import SIZES
from tests.test_extension import MINE

OWN_TASK = """
from lora_bench.tasks import Task

TASK = Task(name="mine", title="Mine", columns=("sentence",), labels=("a", "b"), metrics=("accuracy",))
"""
COUNTS, RATES = st.integers(1, 2**31), st.floats(1e-9, 1e9)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just("MODEL_DIR"),
    "task": st.sampled_from(["sst2", "rte"]),
    "method": st.sampled_from(sorted(methods.RECIPES)),
    **dict.fromkeys(("rank", "a", "b", "epochs", "batch_size"), COUNTS),
    "alpha": RATES,
    "init": st.sampled_from(["default", "published"]),
    "targets": st.sampled_from(["qv", "query,value", "1", "1e3", "no", "null", "[x]", "a: b", "it's #1", "é"]),
    "seed": st.integers(0, 2**63 - 1),
    "lr": RATES,
    "head_lr": st.none() | RATES,
    "weight_decay": st.floats(0, 1e9),
    "warmup": st.floats(0, 1),
    "clip": st.floats(0, 1e9),
    "max_length": st.integers(4, 2**16),
    "select": st.sampled_from(["best", "last", "held-out"]),
    "precision": st.sampled_from(["float64", "float32", "bf16"]),
    "head": st.none() | st.just("model"),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> TinyBench:
    return TinyBench.create(tmp_path_factory.mktemp("again"), "sst2", "rte")


def cell_of(bench: TinyBench, **values: Any) -> Cell:
    """The cell that `run` trains with these settings; all others are its defaults."""
    given = {"task": "sst2", "model": str(bench.model)} | values
    overrides = {name: [value] for name, value in given.items() if value is not None}
    (cell,) = expand(Config(name="test"), overrides, sources(), bench.rows).cells
    return cell


def parsed(bench: TinyBench, command: str, as_: str = "run") -> list[str]:
    """The ids of the cells that a printed command trains, with the folders that its placeholders stand for."""
    words = shlex.split(command)
    assert words[:2] == ["lora-bench", "run"]
    folders = {"MODEL_DIR": str(bench.model), "DATA_DIR": str(bench.rows)}
    group: Any = typer.main.get_command(app)
    context = group.commands[as_].make_context(as_, [folders.get(word, word) for word in words[2:]])
    selection = Selection(**{field.name: context.params[field.name] for field in fields(Selection)})
    return [cell.id for cell in selection.grid().cells]


def with_record(folder: Path, cell: Cell, **given: Any) -> Path:
    """A results folder that holds a record of a cell."""
    store.write_record(folder, make_record(cell=cell, **given))
    return folder


def shown(*words: str) -> Any:
    with methods.registered(), tasks.registered():
        return CliRunner().invoke(app, ["show", *words])


@pytest.mark.parametrize("method", methods.RECIPES)
def test_every_method_by_default(bench: TinyBench, method: str) -> None:
    cell = cell_of(bench, method=method)
    command = training_command(cell)
    assert parsed(bench, command) == parsed(bench, command, as_="plan") == [cell.id]
    assert "lr=" not in command and "rank=" not in command


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_settings(bench: TinyBench, data: st.DataObject) -> None:
    assert set(VALUES) == {*SETTINGS} - {"start"}, "give a new setting its values above"
    values = {setting: data.draw(strategy, label=setting) for setting, strategy in VALUES.items()}
    lacking = {*SIZES, "init"} - methods.get(values["method"]).parameters
    cell = cell_of(bench, **{name: value for name, value in values.items() if name not in lacking | {"model"}})
    assert parsed(bench, training_command(cell)) == [cell.id]


def test_the_bundled_sample_needs_no_folder(bench: TinyBench, tmp_path: Path) -> None:
    command = "lora-bench run --model sample --task rte --method mini --set rank=4"
    (cell_id,) = parsed(bench, command)
    selection = Selection(model=["sample"], task=["rte"], method=["mini"], rank=[4])
    (cell,) = selection.grid().cells
    result = shown(cell_id, "--command", "--results", str(with_record(tmp_path, cell)))
    assert result.stdout == f"{command} --results results/again-{cell_id}\n"
    assert result.stderr == ""
    with pytest.raises(BenchError, match="sample:0, this version has sample:") as raised:
        training_command(cell.model_copy(update={"data": "sample:0"}))
    assert raised.value.code == 4


def test_folders_are_named_on_standard_error(bench: TinyBench, tmp_path: Path) -> None:
    cell = cell_of(bench, method="head")
    result = shown(cell.id[:6], "--command", "--results", str(with_record(tmp_path, cell)))
    assert parsed(bench, result.stdout) == [cell.id]
    assert "MODEL_DIR stands for the directory of the model, tiny." in result.stderr
    assert "DATA_DIR stands for the folder that holds the data of sst2." in result.stderr


def test_files_of_the_user_are_included(bench: TinyBench, tmp_path: Path) -> None:
    files = {"half.py": MINE, "mine.py": OWN_TASK}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    include = [word for name in files for word in ("--include", str(tmp_path / name))]
    bench_of_mine = TinyBench(bench.model, tmp_path / "rows", tmp_path / "results")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/mine").symlink_to(bench.rows / "sst2")
    with methods.registered(), tasks.registered():
        paths = [tmp_path / name for name in files]
        selection = Selection(
            include=paths, model=[str(bench.model)], task=["mine"], method=["half"], data_dir=tmp_path / "rows"
        )
        (cell,) = selection.grid().cells
    results = with_record(tmp_path / "results", cell)
    result = shown(cell.id, "--command", "--results", str(results), *include)
    with methods.registered(), tasks.registered():
        assert parsed(bench_of_mine, result.stdout) == [cell.id]
    refused = shown(cell.id, "--command", "--results", str(results))
    assert refused.exit_code == 2
    assert "--include FILE" in refused.stderr
    (tmp_path / "half.py").write_text(MINE + "\n")
    refused = shown(cell.id, "--command", "--results", str(results), *include)
    assert refused.exit_code == 3
    assert "Include the file as it was" in refused.stderr


def test_a_cell_that_continues_from_another_is_refused(bench: TinyBench, tmp_path: Path) -> None:
    cell = cell_of(bench, method="head")
    started = cell.model_copy(update={"start": "0123456789ab"})
    protocol = make_record().protocol.model_copy(update={"start": "mnli"})
    result = shown(started.id, "--command", "--results", str(with_record(tmp_path, started, protocol=protocol)))
    assert (result.exit_code, result.stdout) == (4, "")
    assert "continues from cell 0123456789ab of mnli" in result.stderr
    assert "`start: {sst2: mnli}`" in result.stderr


def test_a_setting_that_the_method_no_longer_has_is_refused() -> None:
    with pytest.raises(BenchError, match="its rank is 4, and head of this version has None"):
        training_command(Cell(model="m/m", data="nyu-mll/glue@bcdcba79", task="sst2", method="head", rank=4))

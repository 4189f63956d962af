"""Nobody reads what a command prints: a closed pipe, a full disk behind standard output, a terminal that is gone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console

from lora_bench import methods
from lora_bench.cli import tables
from lora_bench.cli.tables import RUNS_DROPPED, runs_table
from lora_bench.records.store import read_records

RUN = (
    "run", "--preset", "smoke", "--task", "sst2", "--method", "head", "--seed", "0", "--seed", "1", "--epochs", "2",
    "--pack", "1", "--results", "out",
)  # fmt: skip


def start(cwd: Path, *words: str, stdout: int | IO[Any], **more: Any) -> subprocess.Popen[str]:
    """The program in a process of its own, without a network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "100"}
    command = [sys.executable, "-m", "lora_bench", *words]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=stdout, **{"stderr": subprocess.PIPE} | more)


def first_line_of(cwd: Path, *words: str) -> tuple[int, str, str]:
    """What `… | head -1` makes of it: exit code, the line, standard error."""
    with start(cwd, *words, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        line = running.stdout.readline()
        running.stdout.close()
        errors = running.stderr.read()
    return running.returncode, line, errors


def assert_all_done(results: Path) -> None:
    """Both cells have a record, and metrics.csv has them."""
    assert [record.status for record in read_records(results).records] == ["done", "done"]
    assert (results / "metrics.csv").read_text().count("\n") == 3


def test_a_run_into_a_pipe_that_is_closed_goes_on_and_says_so(tmp_path: Path) -> None:
    code, line, errors = first_line_of(tmp_path, *RUN)
    assert (code, line[:6]) == (0, "smoke:"), errors
    said = errors.strip().splitlines()
    assert said[0] == (
        "Standard output cannot be written (Broken pipe): the run continues without it; its results are in out."
    )
    assert said[1:] == ["The run has ended: 2 cells (2 done), in out/metrics.csv"]
    assert_all_done(tmp_path / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("errors", ["read", "full", "closed"])
def test_a_run_onto_a_full_disk_ends_well(tmp_path: Path, errors: str) -> None:
    """Also where standard error is lost too, or the descriptors are closed."""
    with Path("/dev/full").open("w") as full:
        more = {"read": {}, "full": {"stderr": full}, "closed": {"stderr": None, "preexec_fn": _close}}[errors]
        running = start(tmp_path, *RUN, stdout=full, **more)  # type: ignore[arg-type]
        _, said = running.communicate(timeout=120)
    assert running.returncode == 0
    if errors == "read":
        assert "(No space left on device): the run continues without it" in said
        assert "Traceback" not in said
    assert_all_done(tmp_path / "out")


def _close() -> None:
    os.closerange(0, 3)


def test_closed_descriptors_have_streams_as_libraries_expect(tmp_path: Path) -> None:
    """Ray does not start where Python has no `sys.stderr`."""
    code = """
import sys, pathlib
before = sys.stdout, sys.stderr
from lora_bench.cli import output
output.shield_streams()
print("nobody reads this")
lost = output.final_flush()
pathlib.Path("said").write_text(f"{before} {sys.stdout.fileno()} {sys.stderr.fileno()} {lost}")
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, preexec_fn=_close, check=True, timeout=60)
    assert (tmp_path / "said").read_text() == "(None, None) 1 2 None"


@pytest.mark.parametrize("words", [("list", "methods"), ("plan", "--preset", "smoke"), ("--help",)])
def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, line, errors = first_line_of(tmp_path, *words)
    assert (code, errors) == (0, "")
    assert line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_list_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        running = start(tmp_path, "list", "tasks", stdout=full)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    lines = errors.strip().splitlines()
    assert lines[0] == "Error: Standard output cannot be written: No space left on device."
    assert len(lines) == 2


def test_a_terminal_that_goes_away_does_not_stop_a_run_that_outlives_it(tmp_path: Path) -> None:
    """As under nohup: every write to it fails from then on."""
    master, slave = pty.openpty()
    running = start(tmp_path, *RUN, stdout=slave, start_new_session=True)
    os.close(slave)
    said = b""
    while b"smoke:" not in said:
        said += os.read(master, 1000)
    os.close(master)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    assert "(Input/output error): the run continues without it" in errors
    assert_all_done(tmp_path / "out")


def test_cells_with_the_models_own_head_are_marked() -> None:
    from tests.test_store import record

    table = tables.results_table([record(), record(cell={"head": "model"})])
    ours, theirs = list(table.columns[1].cells)
    assert theirs == f"{ours} (own head)"


def shown(width: int | None) -> list[str]:
    """The committed records of a small search as a terminal of that width shows them, or a pipe (None)."""
    from io import StringIO

    from tests.test_store import record

    console = Console(file=StringIO(), width=width or 80, force_terminal=width is not None, no_color=True)
    tables.print_table(console, runs_table([record(), record(cell={"seed": 4})], Path("out")), RUNS_DROPPED)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("width", "headers"),
    [
        (None, "id task method targets seed lr status score adapter_params bytes as_fp16"),
        (40, "id task method score"),
        (80, "id task method seed status score"),
        (200, "id task method targets seed lr status score adapter_params bytes as_fp16"),
    ],
)
def test_a_list_of_runs_fits(width: int | None, headers: str) -> None:
    """No id is broken; a narrow terminal goes without the least important columns, a pipe without none."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown(width)]
    heads = [" ".join(part.split()) for part in lines[2].strip("┃").split("┃")]
    assert heads == [name.replace("_", " ") for name in headers.split()]
    assert any("1c5ac4067df0" in line for line in lines)
    assert width is None or max(map(len, lines)) <= width


def test_the_list_of_methods_is_grouped_and_has_a_line_a_method_on_80_columns() -> None:
    from io import StringIO

    out = StringIO()
    console = Console(file=out, width=80, force_terminal=True, no_color=True)
    tables.print_table(console, tables.methods_table(), tables.METHODS_DROPPED)
    cells = [line.split("│")[1].strip() for line in out.getvalue().splitlines() if line.startswith("│")]
    expected = [name for kind, recipes in methods.by_kind().items() for name in (kind, *(r.name for r in recipes))]
    assert [re.sub(r"\x1b\[[0-9;]*m", "", cell).strip() for cell in cells] == expected
    assert all(recipe.kind != "other methods" for recipe in methods.RECIPES.values())

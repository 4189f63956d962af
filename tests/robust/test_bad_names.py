"""Names from the command line: too long, Unicode, leading out of the folder, escape codes, devices of Windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_bench.errors import DONE, MISSING, NOTHING, USAGE
from tests.robust.robust_kit import assert_clear_error, lora_bench, run, tree

LONG = "x" * 300
ESCAPES = "\x1b[31m\x1b]0;title\x07[/red]\r\n\u202e"

NAMES: dict[str, tuple[list[str], int, str]] = {
    "task ../": (["--task", "../x"], USAGE, "Unknown task '../x'"),
    "task of 300": (["--task", LONG], USAGE, "Unknown task"),
    "task with escapes": (["--task", f"{ESCAPES}x"], USAGE, "Unknown task '[/red] x'"),
    "task of nothing": (["--task", ""], USAGE, "task: '' is not allowed"),
    "task half a character": (["--task", "\udcff"], USAGE, "is not allowed"),
    "method ../": (["--method", "../../x"], USAGE, "Unknown method '../../x'"),
    "method CON": (["--method", "CON"], USAGE, "Unknown method 'CON'"),
    "method with escapes": (["--method", f"{ESCAPES}x"], USAGE, "Unknown method"),
    "targets of 301": (["--targets", "x" * 301], USAGE, "at most 300 characters"),
    "targets of nothing": (["--targets", ""], USAGE, "targets: '' is not allowed"),
    "targets half a character": (["--targets", "\udcff"], USAGE, "is not allowed"),
    "model of 300": (["--model", LONG], MISSING, "neither a directory nor a name that the Hub allows"),
    "model of 301": (["--model", "x" * 301], USAGE, "at most 300 characters"),
    "model ../": (["--model", "../none"], MISSING, "no model directory '../none'"),
    "model above": (["--model", ".."], MISSING, "has no config.json"),
    "model in Unicode": (["--model", "größe/ß"], MISSING, "neither a directory nor a name"),
    "model with escapes": (["--model", f"{ESCAPES}x"], MISSING, "neither a directory nor a name"),
    "model of nothing": (["--model", ""], USAGE, "model: '' is not allowed"),
    "model of a space": (["--model", " "], MISSING, "neither a directory nor a name"),
    "model with NUL": (["--model", "a\0b"], MISSING, "neither a directory nor a name"),
    "model in nobody's home": (["--model", "~nobody-has-this-name/x"], MISSING, "no model directory"),
    "model that is a file": (["--model", "./model/config.json"], MISSING, "no model directory"),
    "data of 300": (["--data-dir", LONG], MISSING, "does not exist"),
    "data that is a file": (["--data-dir", "model/config.json"], MISSING, "does not exist"),
    "data with escapes": (["--data-dir", f"{ESCAPES}x"], MISSING, "The data folder '[/red] x' does not exist"),
    "data half a character": (["--data-dir", "\udcff"], MISSING, "does not exist"),
    "device": (["--device", "tpu"], USAGE, "'tpu' is not a device"),
    "device of torch that is none here": (["--device", "mps"], USAGE, "'mps' is not a device"),
    "device without numbers": (["--device", "meta"], USAGE, "'meta' is not a device"),
    "device with escapes": (["--device", ESCAPES], USAGE, "is not a device"),
    "device that is not there": (["--device", "cuda:999"], MISSING, "There is no CUDA device 'cuda:999'"),
    "preset ../": (["--preset", "../smoke"], USAGE, "Did you mean 'smoke'?"),
    "preset with escapes": (["--preset", f"{ESCAPES}x"], USAGE, "Unknown preset"),
    "retry": (["--retry", ESCAPES], USAGE, "--retry takes"),
    "set a tag": (["--set", "lr=!!python/name:os.system"], USAGE, "is not allowed"),
    "set half a character": (["--set", "targets='\ud800'"], USAGE, "are not allowed"),
    "set with escapes": (["--set", f"{ESCAPES}=1"], USAGE, "Unknown setting"),
    "learning rate": (["--lr", "nan"], USAGE, "lr: nan is not allowed"),
    "rank": (["--rank", "99999999999999999999"], USAGE, "rank: "),
    "seed": (["--seed", str(2**63)], USAGE, "seed: "),
    "results of 300": (["--results", LONG], MISSING, "name too long"),
    "results that are a file": (["--results", "model/config.json"], MISSING, "cannot be used: Not a directory"),
    "results in a file": (["--results", "model/config.json/x"], MISSING, "cannot be used: Not a directory"),
    "results that are a device": (["--results", "/dev/null"], MISSING, "'/dev/null' cannot be used"),
    "results where none can be made": (["--results", "/proc/x"], MISSING, "'/proc/x' cannot be used"),
}


@pytest.mark.parametrize("how", NAMES)
def test_a_bad_name_is_two_lines_and_writes_nothing(how: str, workplace: Path) -> None:
    arguments, code, words = NAMES[how]
    before = tree(workplace)
    assert_clear_error(run(*arguments), code, words)
    assert tree(workplace) == before


@pytest.mark.parametrize(
    "name", ["größe ü", " ", "[red]x[bold]", "trailing.", "CON", "a\x1b[31mb", "=1+1", "--", "\udcff"]
)
def test_a_results_folder_may_have_any_name_that_the_system_has(name: str, workplace: Path) -> None:
    """All is written under it and nothing beside it; its name does nothing to the terminal."""
    ended = run(f"--results={name}")
    assert ended.code == DONE, ended
    assert all(line.isprintable() for line in ended.out.splitlines())
    assert {path.name for path in workplace.iterdir()} == {"model", "rows", name}
    listed = lora_bench("list", "runs", f"--results={name}")
    assert listed.code == DONE
    assert "\x1b" not in listed.out


def test_a_results_folder_may_lie_anywhere(workplace: Path) -> None:
    (workplace / "sub").mkdir()
    assert run(results="sub/../up/x").code == DONE
    assert {path.name for path in workplace.iterdir()} == {"model", "rows", "sub", "up"}
    assert list((workplace / "sub").iterdir()) == []


@pytest.mark.parametrize("targets", ["../..", "x" * 300, ESCAPES, "=cmd()", "größe"])
def test_targets_that_match_nothing_are_refused(targets: str, workplace: Path) -> None:
    """Only the model knows its weights: it is loaded, then the run ends, and no cell has a record."""
    assert_clear_error(run("--targets", "qv", "--targets", targets), USAGE, "matches no weight of this model")
    assert not list(workplace.glob("results/cells/*"))


@pytest.mark.parametrize("command", ["report", "show", "list"])
@pytest.mark.parametrize(("results", "code"), [(LONG, MISSING), ("model/config.json", MISSING), ("none", NOTHING)])
def test_commands_that_read_results_say_what_is_wrong(command: str, results: str, code: int) -> None:
    what = {"report": [], "show": ["abc"], "list": ["runs"]}[command]
    assert_clear_error(lora_bench(command, *what, "--results", results), code, results[:20])

"""Bad configs at the command line: two lines, exit code 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_bench.errors import MISSING, USAGE
from tests.robust.robust_kit import assert_clear_error, lora_bench, tree

GRID = "defaults: {task: sst2, method: head}\n"
MANY = ", ".join(map(str, range(1100)))

CONFIGS: dict[str, tuple[bytes | str, str]] = {
    "an unknown key": ("name: x\nfoo: 1\n", "bad.yaml:2: unknown key 'foo'"),
    "an unknown setting": ("name: x\ndefaults: {bach_size: 3}\n", "Did you mean 'batch_size'?"),
    "a wrong type": ("name: x\ndefaults: {rank: many}\n", "rank: 'many' is not allowed"),
    "a boolean": ("name: x\ndefaults: {rank: true}\n", "True is not a value"),
    "a key given twice": ("name: x\nname: y\n", "bad.yaml:2: key 'name' is given twice"),
    "a billion laughs": ("a: &a [x, x]\nb: &b [*a, *a]\nname: [*b, *b]\n", "bad.yaml:1: anchor 'a' is not allowed"),
    "an alias": ("name: *x\n", "bad.yaml:1: anchor 'x' is not allowed"),
    "a merge": ("name: x\ndefaults:\n  <<: {lr: 1}\n", "Unknown setting '<<'"),
    "ten megabytes": (b"# 3456789\n" * 1_000_000, "larger than 1 MB"),
    "a tag": ("name: !!python/object/apply:os.system ['echo pwned > pwned']\n", "is not allowed"),
    "a local tag": ("name: !x y\n", "tag '!x' is not allowed"),
    "UTF-16": ("name: x\n".encode("utf-16"), "bad.yaml:1: this is not UTF-8 text"),
    "Latin-1 in line 2": (b"name: x\ndescription: \xe9\n", "bad.yaml:2: this is not UTF-8 text"),
    "half a character": ('name: x\ndescription: "\\ud800"\n', "bad.yaml:2: half of a character"),
    "half a character as a key": ('name: x\n"\\udc00": y\n', "bad.yaml:2: half of a character"),
    "NUL": (b"name: x\0\n", "bad.yaml:1: special characters are not allowed"),
    "nothing": ("", "bad.yaml:1: the file is empty"),
    "a comment alone": ("# here\n", "bad.yaml:1: the file is empty"),
    "no mapping": ("- x\n", "bad.yaml:1: a config is a mapping"),
    "no name": (GRID, "there is no 'name'"),
    "two documents": ("name: x\n---\nname: y\n", "bad.yaml:2: found another document"),
    "deep nesting": ("[" * 1_500, "nested too deeply"),
    "JSON that is cut off": ('{"name": "x", ', "bad.yaml:1: "),
    "a name that leads out": (f"name: ../up\n{GRID}", "name: '../up' is not allowed"),
    "a hidden name": (f"name: .ssh\n{GRID}", "name: '.ssh' is not allowed"),
    "a name of 300 characters": (f"name: {'x' * 300}\n{GRID}", "is not allowed"),
    "a name in Unicode": (f"name: größe\n{GRID}", "name: 'größe' is not allowed"),
    "a name with a line break": (f'name: "x\\n"\n{GRID}', "is not allowed"),
    "a name with a dot at its end": (f"name: x.\n{GRID}", "name: 'x.' is not allowed"),
    "a device on Windows": (f"name: CON\n{GRID}", "'CON' is a device on Windows"),
    "another": (f"name: lpt1\n{GRID}", "'lpt1' is a device on Windows"),
    "escape codes in a key": ('name: x\n"\\e[31m\\e]0;title\\afoo": 1\n', "unknown key 'foo'"),
    "markup in a key": ('name: x\n"[/red]": 1\n', "unknown key '[/red]'"),
    "a task that leads out": ("name: x\ndefaults: {task: ../x}\n", "Unknown task '../x'"),
    "a method of 5,000 characters": (f"name: x\ndefaults: {{method: {'m' * 5000}}}\n", "at most 300 characters"),
    "a number of 5,000 digits": (f"name: x\ndefaults: {{seed: {'9' * 5000}}}\n", "seed: inf is not allowed"),
    "NaN": ("name: x\ndefaults: {lr: .nan}\n", "lr: '.nan' is not allowed"),
    "a million cells and more": (
        f"name: x\n{GRID[:-2]}, lr: 1, seed: [{MANY}], epochs: [{MANY[3:]}]}}\n",
        "the most is",
    ),
    "no method": ("name: x\ndefaults: {task: sst2}\n", "no method is chosen"),
}


@pytest.mark.parametrize("how", CONFIGS)
def test_a_bad_config_is_two_lines(how: str, workplace: Path) -> None:
    content, words = CONFIGS[how]
    Path("bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = tree(workplace)
    assert_clear_error(lora_bench("run", "--config", "bad.yaml"), USAGE, words)
    assert tree(workplace) == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (".", "Is a directory"),
        ("none.yaml", "No such file"),
        ("x" * 300, "name too long"),
        ("/dev/null", "not a regular file"),
    ],
)  # fmt: skip
def test_a_config_that_is_no_file(path: str, words: str) -> None:
    assert_clear_error(lora_bench("plan", "--config", path), USAGE, words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "--config", "bad.yaml"], USAGE, "key 'name' is given twice"),
        (["plan", "--preset", "smoke", "--results", "bad.yaml"], MISSING, "'bad.yaml' cannot be used"),
    ],
)
def test_the_program_itself_shows_no_traceback(arguments: list[str], code: int, words: str) -> None:
    """As a process, with a terminal that knows ASCII alone."""
    Path("bad.yaml").write_text("name: x\nname: y\n")
    ended = subprocess.run(
        [sys.executable, "-m", "lora_bench", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 2
    assert words in ended.stderr

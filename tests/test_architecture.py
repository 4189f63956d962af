"""What `make lint` cannot say of the structure. The layers and the import rules stand in pyproject.toml."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lora_bench
from lora_bench.errors import DONE, NOTHING

ROOT = Path(lora_bench.__file__).parent
FILES = tuple(sorted(ROOT.rglob("*.py")))
PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
BANNED = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]
HEAVY = sorted(name for name in BANNED if not name.startswith("lora_bench."))


def test_a_method_imports_of_another_only_the_class_that_it_varies() -> None:
    """Never its RECIPE: a change of that object would change both methods."""
    shared = {"recipe", "return_values", "orthonormality"}
    for path in (ROOT / "methods").glob("[!_]*.py"):
        statements = re.findall(r"from lora_bench\.methods\.(\w+) import (.+)", path.read_text(encoding="utf-8"))
        names = [name for module, names in statements if module not in shared for name in names.split(", ")]
        assert [name for name in names if not re.fullmatch(r"[A-Z]\w*[a-z]\w*", name)] == [], path.name


def test_no_module_takes_a_librarys_name() -> None:
    assert [path for path in FILES if {path.stem, path.parent.name} & set(HEAVY)] == []


def test_every_folder_of_modules_is_in_the_wheel() -> None:
    """The list is written out; one that it lacks would be missed where the package is installed, and nowhere else."""
    folders = {".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("__init__.py")}
    assert {path.parent for path in FILES} == {ROOT.parent.joinpath(*name.split(".")) for name in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | {"lora_bench.configs"}


def test_imports_point_down_the_map_of_the_architecture() -> None:
    """The lines on parts of a folder count as the folder's first line."""
    text = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (`lora_bench/.+?) \|", text, re.MULTILINE)
    names = [(name, number) for number, line in enumerate(lines) for name in re.findall(r"`lora_bench/(\w+)", line)]
    line_of = dict(reversed(names))
    for path in FILES:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own.startswith("__"):
            continue
        imports = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.ImportFrom)]
        modules = {f"{node.module}.{alias.name}." for node in imports for alias in node.names}
        used = {module.split(".")[1] for module in modules if module.startswith("lora_bench.")} & line_of.keys()
        assert [name for name in used if line_of[name] < line_of[own]] == [], path


def test_files_and_functions_are_short() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in FILES}
    assert {path.name: count for path, text in texts.items() if (count := len(text.splitlines())) > 400} == {}
    long_functions = [
        f"{path.name}:{node.lineno} {node.name}"
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert long_functions == []


def test_modules_that_do_not_train_load_nothing_heavy() -> None:
    """Whatever way an import takes: ruff does not see one in an `if`, a `try` or a class at module level."""
    heavy_modules = tuple(f"{name}." for name in BANNED if name not in HEAVY)
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in FILES]
    light = [name.removesuffix(".__init__") for name in names if not f"{name}.".startswith(heavy_modules)]
    program = f"import sys, importlib\nfor name in {light}: importlib.import_module(name)\n"
    program += f"print(sorted(set(sys.modules) & set({HEAVY})))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )
    assert ended.stdout == "[]\n", ended.stderr


PROBE = """
import runpy, sys
code = 0
try:
    runpy.run_module("lora_bench", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code or 0
loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.stdin.read().split()))
sys.stderr.write(f"\\ncode={code} loaded={loaded}")
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], DONE),
        (["run", "--help"], DONE),
        (["plan", "--preset", "smoke"], DONE),
        (["list", "methods"], DONE),
        (["list", "tasks"], DONE),
        (["report", "--results", "empty"], NOTHING),
        (["export", "--to", "eee", "--out", "out", "--results", "empty"], NOTHING),
    ],
)
def test_looking_costs_no_torch(arguments: list[str], code: int, tmp_path: Path) -> None:
    """These commands answer at once: nothing heavy is imported, whatever way it might be reached."""
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        input=" ".join(HEAVY),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT.parent), "COLUMNS": "100"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"code={code} loaded=[]"

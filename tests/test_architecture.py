"""Imports point one way, heavy libraries are imported by what trains alone, and files stay short."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lora_bench
from lora_bench.errors import DONE, NOTHING

ROOT = Path(lora_bench.__file__).parent

# What each module of the package may import of the package, from the bottom to the top; a folder counts as one module,
# the package itself holds the version. A new module needs a line here: put it as low as it can stand.
MAY: dict[str, str] = {
    "text": "",
    "cell": "",
    "sample": "",
    "errors": "text",
    "tasks": "errors",
    "records": "cell errors text",
    "metrics": "tasks",
    "model_files": "errors records",
    "report": "cell errors records tasks text",
    "methods": "cell errors records text",
    "models": "errors model_files records sample",
    "data": "errors models records sample tasks",
    "provenance": "methods",
    "engine": "cell data errors methods metrics model_files records tasks",
    "forecast": "cell data errors methods models records tasks",
    "grid": "cell data errors methods models records tasks",
    "api": "cell engine errors methods",
    "lora_bench": "api",
    "contracts": "api cell data engine methods tasks",
    "run": "cell data engine errors forecast grid lora_bench methods model_files models provenance "
    "records sample tasks text",
    "export": "cell data engine errors lora_bench methods models records report run tasks",
    "bench": "cell data engine errors forecast grid methods model_files models provenance records run tasks",
    "cli": "bench cell contracts data errors export grid lora_bench methods models records report run tasks text",
    "__main__": "cli",
}
HEAVY = frozenset({"torch", "transformers", "datasets", "evaluate", "tokenizers", "safetensors", "accelerate", "peft"})
TRAINS = frozenset({"api", "bench", "contracts", "engine", "export"})  # heavy imports
TRAINS_IN_RUN = frozenset({"checkpointing", "inputs", "pack_run", "recording", "tokenizer", "worker"})
NEVER = frozenset({"torch", "transformers"})
WITHOUT_TORCH = (
    "cell", "cli.tables", "grid", "methods", "metrics", "provenance", "records", "report", "run.plan", "run.runner",
    "run.status", "run.publish", "tasks",
)  # fmt: skip
NAMES_TAKEN = ("datasets", "evaluate", "tokenizers", "torch", "transformers", "peft")


def trains(name: str) -> bool:
    """Whether a module, by its name in the package, may import heavy libraries."""
    first, _, rest = name.partition(".")
    return first in TRAINS or (first == "run" and rest.partition(".")[0] in TRAINS_IN_RUN)


@dataclass(frozen=True)
class Import:
    """One import: of what, where, whether it runs when the module is imported, whether it is for types alone."""

    target: str
    path: Path
    line: int
    at_import: bool
    typing: bool

    @property
    def top(self) -> str:
        """The library."""
        return self.target.partition(".")[0]

    @property
    def own(self) -> str | None:
        """Our module that is imported, None for a library."""
        library, _, rest = self.target.partition(".")
        if library != "lora_bench":
            return None
        name = rest.partition(".")[0]
        is_module = name and ((ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file())
        return name if is_module else "lora_bench"

    @property
    def trains(self) -> bool:
        """Whether what is imported has heavy imports of its own."""
        return self.target.startswith("lora_bench.") and trains(self.target.removeprefix("lora_bench."))

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.target}"


def full(path: Path) -> str:
    """A file's name in the package, as in `engine.pack`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def home(path: Path) -> str:
    """The module that a file belongs to."""
    part = path.relative_to(ROOT).parts[0]
    return "lora_bench" if part == "__init__.py" else part.removesuffix(".py")


def for_typing(node: ast.AST) -> bool:
    """Whether the node is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def targets(node: ast.AST) -> list[str]:
    """What an import statement imports, by full name; `from x import y` may mean the module x.y."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def walk(node: ast.AST, path: Path, at_import: bool = True, typing: bool = False) -> Iterator[Import]:
    """Every import under the node."""
    for child in ast.iter_child_nodes(node):
        for target in targets(child):
            yield Import(target, path, child.lineno, at_import, typing)  # type: ignore[attr-defined]
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from walk(child, path, at_import and not inside, typing or for_typing(child))


@cache
def files() -> tuple[Path, ...]:
    """The files of the package."""
    return tuple(sorted(ROOT.rglob("*.py")))


@cache
def imports() -> tuple[Import, ...]:
    """Every import of the package."""
    return tuple(each for path in files() for each in walk(ast.parse(path.read_text(encoding="utf-8")), path))


def test_the_walk_sees_imports_of_every_kind() -> None:
    text = (
        "import a\nfrom b import c\nif TYPE_CHECKING:\n    import d\ndef f():\n    import e\nclass G:\n    import h\n"
    )
    found = {each.target: (each.at_import, each.typing) for each in walk(ast.parse(text), ROOT / "x.py")}
    assert found == {
        "a": (True, False), "b.c": (True, False), "d": (True, True), "e": (False, False), "h": (True, False),
    }  # fmt: skip
    assert len(imports()) > 200


def test_every_module_has_its_place() -> None:
    assert {home(path) for path in files()} - MAY.keys() == set()


def test_the_places_point_one_way() -> None:
    """No module is above itself."""
    order = list(TopologicalSorter({name: set(below.split()) for name, below in MAY.items()}).static_order())
    assert order.index("cell") < order.index("methods") < order.index("engine") < order.index("run")
    assert order.index("run") < order.index("cli")
    assert order.index("records") < order.index("report") < order.index("cli")


@pytest.mark.parametrize("name", list(MAY))
def test_a_module_imports_from_below_only(name: str) -> None:
    allowed = {name, *MAY[name].split()}
    own = [each for each in imports() if home(each.path) == name and each.own]
    assert [str(each) for each in own if each.own not in allowed] == []


def test_no_file_imports_itself_by_a_detour() -> None:
    """Inside a folder too, and for types or within a function: a circle would raise CycleError."""
    below: dict[str, set[str]] = {}
    for each in imports():
        place = ROOT.parent.joinpath(*each.target.split("."))
        found = next(
            (path for path in (place.with_suffix(".py"), place.parent.with_suffix(".py")) if path.is_file()), None
        )
        if found in files() and found != each.path:
            below.setdefault(full(each.path), set()).add(full(found))
    order = list(TopologicalSorter(below).static_order())
    assert order.index("engine.block") < order.index("engine.optimiser") < order.index("engine.trainer")


def test_the_engine_needs_the_data_for_types_alone() -> None:
    """A table of tokens, and the size of windows, are all that it takes from there."""
    of_data = [each for each in imports() if home(each.path) == "engine" and each.own == "data"]
    of_data = [each for each in of_data if not each.target.startswith("lora_bench.data.windows.")]
    assert [str(each) for each in of_data if not each.typing] == []


def test_methods_know_of_each_other_through_the_recipe_or_as_the_class_that_they_vary() -> None:
    allowed = {"recipe", "cell", "errors"}
    inside = [each for each in imports() if home(each.path) == "methods" and each.own and each.path.stem != "__init__"]
    others = [each for each in inside if not allowed & set(each.target.split("."))]
    assert [str(each) for each in others if not each.target.rpartition(".")[2][0].isupper()] == []
    assert [str(each) for each in others if each.target.endswith(".RECIPE")] == []


def test_heavy_libraries_wait_until_something_trains() -> None:
    early = [each for each in imports() if each.top in HEAVY and each.at_import and not each.typing]
    assert [str(each) for each in early if not trains(full(each.path))] == []
    reached = [each for each in imports() if each.trains and each.at_import and not each.typing]
    assert [str(each) for each in reached if not trains(full(each.path))] == []


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_these_never_touch_torch(name: str) -> None:
    inside = [each for each in imports() if name in (home(each.path), full(each.path)) and not each.typing]
    assert inside
    assert [str(each) for each in inside if each.at_import and (each.top in NEVER or each.trains)] == []


def test_no_module_takes_a_librarys_name() -> None:
    assert [path for path in files() if path.stem in NAMES_TAKEN or path.parent.name in NAMES_TAKEN] == []


def test_every_folder_of_modules_is_in_the_wheel() -> None:
    """The list is written out; one that it lacks would be missed where the package is installed, and nowhere else."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("__init__.py")}
    assert {path.parent for path in files()} == {ROOT.parent.joinpath(*name.split(".")) for name in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == folders | {"lora_bench.configs"}


def test_files_and_functions_are_short() -> None:
    assert {path.name: count for path in files() if (count := len(path.read_text().splitlines())) > 400} == {}
    long = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert long == []


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
    ],
)
def test_looking_costs_no_torch(arguments: list[str], code: int, tmp_path: Path) -> None:
    """These commands answer at once: nothing heavy is imported, whatever way it might be reached."""
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], input=" ".join(HEAVY), capture_output=True, text=True, check=False,
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT.parent), "COLUMNS": "100"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"code={code} loaded=[]"

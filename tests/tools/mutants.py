"""Mutation testing: change one thing of a module, run the module's own tests, see whether they notice.

    python -m tests.tools.mutants store seal            (modules of the table below; exit 1 where under 85% are killed)
    python -m tests.tools.mutants runner --lines 80 95  only what these lines say

`mutation.py` lists the changes. The library mutmut 3.8 was tried instead: it does not mutate class bodies and
properties, of which `cell` consists, and fails where tests start processes of their own.

Each mutant is written into a copy of the tree, and tests run there in a fork of a process that has the libraries
loaded. These are the tests that call the changed function, those whose fixtures do, and all tests of files in which no
test does, since they may call it in processes of their own. If code that runs at import has changed, all of the
module's tests run.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.tools.mutation import Mutant, mutants

ROOT = Path(__file__).parents[2]
TESTS: dict[str, tuple[str, ...]] = {
    "lora_bench/cell.py": ("tests/test_cell.py", "tests/test_grid.py"),
    "lora_bench/records/store.py": ("tests/test_store.py", "tests/test_store_damage.py", "tests/test_upkeep.py"),
    "lora_bench/records/seal.py": ("tests/test_store.py", "tests/test_store_damage.py", "tests/robust/test_damage.py"),
    "lora_bench/records/files.py": ("tests/test_files.py",),
    "lora_bench/run/runner.py": (
        "tests/robust/test_owner.py", "tests/robust/test_failures.py", "tests/robust/test_standing.py",
    ),
    "lora_bench/engine/adapters/saved.py": ("tests/robust/test_damage.py", "tests/test_adapt.py"),
    "lora_bench/run/checkpoints.py": ("tests/robust/test_checkpoints.py", "tests/robust/test_standing.py"),
    "lora_bench/run/owner.py": ("tests/robust/test_owner.py", "tests/robust/test_owners.py"),
    "lora_bench/run/queue.py": ("tests/robust/test_failures.py", "tests/robust/test_standing.py"),
    "lora_bench/run/status.py": ("tests/robust/test_standing.py",),
}  # fmt: skip
LEAST = 85  # percent


class Calls:
    """A plugin that notes which tests, or files of tests by their fixtures, call which functions of one file."""

    def __init__(self, module: Path) -> None:
        self.module, self.now, self.found, self.files = str(module), "", defaultdict[str, set[str]](set), set[str]()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.files = {item.nodeid.partition("::")[0] for item in session.items}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.now = item.nodeid.partition("::")[0]
        sys.settrace(self._trace)
        threading.settrace(self._trace)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.now = item.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self.now = item.nodeid.partition("::")[0]

    def _trace(self, frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_filename == self.module:
            self.found[frame.f_code.co_qualname.partition(".<locals>")[0]].add(self.now)

    def summary(self) -> dict[str, Any]:
        """The callers by function, files that call nothing, and the libraries that were loaded."""
        callers = {name: sorted(tests) for name, tests in self.found.items()}
        calling = {test.partition("::")[0] for tests in callers.values() for test in tests}
        own = str(Path.cwd())
        loaded = [
            name for name, module in sys.modules.items() if not str(getattr(module, "__file__", own)).startswith(own)
        ]
        return {"callers": callers, "elsewhere": sorted(self.files - calling), "loaded": loaded}


class Only:
    """A plugin that leaves these tests and these files' alone to run; files come last."""

    def __init__(self, wanted: list[str]) -> None:
        self.wanted = set(wanted)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self.wanted & {item.nodeid, item.nodeid.partition("::")[0]}]


class Tree:
    """A copy of the tree in which one module is changed and its tests run."""

    def __init__(self, root: Path, copy: Path, module: str, tests: tuple[str, ...]) -> None:
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".*", "results", "__pycache__", "*.egg-info"))
        self.copy, self.module, self.tests = copy, copy / module, tests
        self.source = self.module.read_text(encoding="utf-8")
        self.limit, self.callers, self.elsewhere = 300.0, dict[str, list[str]](), list[str]()

    def learn(self) -> None:
        """Run the tests on the module as it is: who calls what, how long it takes, what to load before forking."""
        path, calls, began = self.copy.with_suffix(".json"), Calls(self.module), time.monotonic()
        self.module.write_text(ast.unparse(ast.parse(self.source)), encoding="utf-8")
        code = self._forked(list(self.tests), calls, lambda: path.write_text(json.dumps(calls.summary())))
        if code != 0:
            said = self.copy.with_suffix(".log").read_text(errors="replace")[-2000:]
            raise SystemExit(f"{self.module.name}: its tests fail without a change (exit {code})\n{said}")
        found = json.loads(path.read_text())
        self.callers, self.elsewhere, self.limit = found["callers"], found["elsewhere"], 20 + time.monotonic() - began
        for name in found["loaded"]:
            with suppress(ImportError):
                importlib.import_module(name)
        gc.freeze()  # pytest collects garbage twice, which takes as long as the tests

    def notices(self, mutant: Mutant) -> bool:
        """Whether a test fails, or does not end."""
        self.module.write_text(mutant.source, encoding="utf-8")
        wanted = list(self.tests)
        if mutant.owner is not None:
            wanted = [*self.callers.get(mutant.owner, []), *self.elsewhere]
        paths = [path for path in self.tests if any(test.startswith(path) for test in wanted)]
        return bool(paths) and self._forked(paths, Only(wanted), lambda: None) != 0

    def _forked(self, paths: list[str], plugin: object, after: Callable[[], object]) -> int | None:
        """The exit code of pytest in a child; None if it does not end in time."""
        child = os.fork()
        if not child:
            self._run(paths, plugin, after)
        end, status = time.monotonic() + self.limit, (0, 0)
        while time.monotonic() < end and not status[0]:
            status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # also what a test has left running
        if not status[0]:
            os.waitpid(child, 0)
        shutil.rmtree(self.copy.with_suffix(".tmp"), ignore_errors=True)
        return os.waitstatus_to_exitcode(status[1]) if status[0] else None

    def _run(self, paths: list[str], plugin: object, after: Callable[[], object]) -> None:
        code = 1
        try:
            os.setsid()
            os.chdir(self.copy)
            own = self.copy.with_suffix(".tmp")
            own.mkdir()
            log = os.open(self.copy.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.environ |= {"PYTHONPATH": str(self.copy), "XDG_CACHE_HOME": str(own / "cache"), "OMP_NUM_THREADS": "1"}
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutant may be as long and as old as the one before
            sys.dont_write_bytecode = True
            sys.path[:] = [str(self.copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
            for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
                del sys.modules[name]
            os.dup2(log, 1)
            os.dup2(log, 2)
            quiet = ["-x", "-p", "no:cacheprovider", "--assert=plain", f"--basetemp={own / 'pytest'}"]
            code = int(pytest.main([*paths, *quiet], plugins=[plugin]))
            sys.settrace(None)
            after()
        finally:
            os._exit(code)


def survivors(tree: Tree, lines: list[int]) -> tuple[int, list[Mutant]]:
    """How many mutants there are, and those that no test notices; each is printed when it is found."""
    tree.learn()
    tried = [each for each in mutants(tree.source) if not lines or lines[0] <= each.line <= lines[-1]]
    alive = []
    for mutant in tried:
        if not tree.notices(mutant):
            alive.append(mutant)
            print(f"  line {mutant.line}: {mutant.was}  ->  {mutant.now}", flush=True)
    return len(tried), alive


def main() -> int:
    """Every module that is asked for; 0 if enough of the mutants of each are killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="+", help="such as runner, or a path; `all` of the table")
    parser.add_argument(
        "--lines", nargs="+", type=int, default=[], help="only mutants of these, from the first to the last"
    )
    parser.add_argument("--tests", nargs="+", help="other tests than the table's")
    parser.add_argument("--root", type=Path, default=ROOT, help="of another tree")
    wanted = parser.parse_args()
    names = [path for path in TESTS if wanted.modules == ["all"] or Path(path).stem in wanted.modules]
    worst = 100.0
    for module in names or wanted.modules:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            tree = Tree(wanted.root, Path(folder).resolve() / "copy", module, tuple(wanted.tests or TESTS[module]))
            count, alive = survivors(tree, wanted.lines)
        share = 100 * (count - len(alive)) / max(count, 1)
        worst = min(worst, share)
        took = time.monotonic() - began
        print(f"{module}: {count - len(alive)} of {count} mutants killed, {share:.1f}%, {took:.0f} s", flush=True)
    return 0 if worst >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())

"""The documentation holds: its commands run, and what it names exists.

A block of `sh` is run unless its info string says `not run: REASON`; then its commands, options and presets are checked
all the same, and `run` is tried as `plan`. A block whose first line is a comment with a file's name is that file.
Targets of make and modules of Python are looked up and not run: CI runs the targets itself.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main
import yaml

import lora_bench
from lora_bench import methods
from lora_bench.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "not run: "
FILE_NAME = re.compile(r"# ([\w-]+\.\w+)\n")
RUN_ELSEWHERE = frozenset({"own-task.md"})  # tests/test_own_task.py runs it, and checks the scores that it prints
PLACEHOLDERS = frozenset({"DIR", "ID"})

Words = list[str]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind that, and its text."""

    language: str
    note: str
    text: str

    @property
    def is_run(self) -> bool:
        """Whether its commands are run."""
        return not self.note.startswith(NOT_RUN)

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if it is one."""
        named = FILE_NAME.match(self.text)
        return named and named[1]

    @property
    def commands(self) -> list[Words]:
        """The words of each line; comments and a final `&` are left out."""
        lines = (shlex.split(line, comments=True) for line in self.text.splitlines())
        return [line[:-1] if line[-1] == "&" else line for line in lines if line]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, note.strip(), text) for language, note, text in found]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def commands() -> dict[str, Any]:
    """The commands of lora-bench."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return dict(group.commands)


@cache
def options() -> frozenset[str]:
    """The options of all commands."""
    parameters = [parameter for command in commands().values() for parameter in command.params]
    names = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    return frozenset(names | {"--help", "--version", "--install-completion"})


def is_ours(words: Words) -> bool:
    """Whether it is a command of lora-bench."""
    return Path(words[0]).name == "lora-bench"


def check(words: Words, files: set[str]) -> None:
    """Parse a command of lora-bench as click does, or look up what another one names; nothing is run."""
    program = Path(words[0]).name
    if program == "lora-bench":
        name, *rest = words[1:]
        context = commands()[name].make_context(name, rest)
        preset = context.params.get("preset")
        assert preset is None or (ROOT / "configs" / f"{preset}.yaml").is_file()
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif program == "python":
        assert words[1] != "-m" or importlib.util.find_spec(words[2]) is not None
        assert all(word in files or (ROOT / word).is_file() for word in words if word.endswith(".py"))
    elif program == "sbatch":  # the script gives its options to `run`
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        assert script.endswith('lora-bench run --engine ray --address auto "$@"\n')
        commands()["run"].make_context("run", words[2:])
    else:
        assert words[:2] == ["pip", "install"]


def run_commands(lines: list[Words], folder: Path) -> list[tuple[int, str]]:
    """Run commands of lora-bench in a folder: the exit code and the output of each."""
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.tools.run_commands"],
        input=json.dumps([words[1:] for words in lines]),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    return [tuple(json.loads(line)) for line in ended.stdout.splitlines()]


@pytest.mark.timeout(900)  # less than a minute of work, on machines that have much else to do
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(page: Path, tmp_path: Path) -> None:
    files = {block.file: block.text for block in blocks(page) if block.file}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    to_run: list[Words] = []
    for block in (block for block in blocks(page) if block.language == "sh"):
        for words in block.commands:
            check(words, set(files))
            if is_ours(words) and block.is_run:
                to_run.append(words)
            elif is_ours(words) and words[1] == "run" and not PLACEHOLDERS & set(words):
                to_run.append([words[0], "plan", *words[2:]])
    if page.name in RUN_ELSEWHERE or not to_run:
        return
    outputs = []
    for words, (code, output) in zip(to_run, run_commands(to_run, tmp_path), strict=True):
        assert code == 0, f"{shlex.join(words)}\n{output}"
        outputs.append(output)
    for line in re.findall(r"`check` ends with `([^`]+)`", prose(page)):
        assert any(output.endswith(f"{line}\n") for output in outputs), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_valid_and_every_note_is_known(page: Path) -> None:
    for block in blocks(page):
        assert not block.note or block.note.startswith(NOT_RUN), block.note
        if block.language == "python":
            assert block.note or block.file, "name its file in the first line, or say why it is not run"
            compile(block.text, page.name, "exec")


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_named_exists(page: Path) -> None:
    """Files of the repository (`engine/…` is `lora_bench/engine/…`), commands and options in the running text."""
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        words = span.split()
        if re.fullmatch(r"[\w./*-]+/[\w.*-]*", span) and "<" not in span and span.split("/")[0] in TOP:
            roots = (ROOT, ROOT / "lora_bench")
            assert any(list(root.glob(span.rstrip("/"))) for root in roots), span
        if words[0] == "lora-bench" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in commands(), span
        for word in words:
            if word.startswith("--") and words[0] not in ("make", "pip", "ruff", "tensorboard"):
                assert word.partition("=")[0] in options(), span


TOP = frozenset(
    {"lora_bench", "tests", "configs", ".ci", ".github"}
    | {path.name for path in (ROOT / "lora_bench").iterdir() if path.is_dir()} - {"report"}
)


def test_the_lock_has_every_requirement() -> None:
    """`make` installs what the lock says; a requirement that it lacks would be at any version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in locked}
    required = {re.sub(r"[-_.]+", "-", re.split(r"[><=!~ ]", text)[0]).lower() for text in wanted}
    assert required - names == set()


def test_the_version_is_that_of_the_package() -> None:
    assert importlib.metadata.version("lora-bench") == lora_bench.__version__


def test_the_citation_is_yaml() -> None:
    assert {"cff-version", "title", "authors"} <= yaml.safe_load((ROOT / "CITATION.cff").read_text()).keys()


def test_every_method_has_a_row_in_the_table_of_its_kind_and_one_on_its_source() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    table, sources = page.partition("## Table")[2].split("## Sources and deviations")
    kinds: dict[str, set[str]] = {}
    for first in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE):
        if first.startswith("**"):
            names = kinds.setdefault(first.strip("*").lower(), set())
        elif kinds:
            names |= set(re.findall(r"`([\w-]+)`", first))
    assert kinds == {kind: {recipe.name for recipe in recipes} for kind, recipes in methods.by_kind().items()}
    described = {name for first in re.findall(r"^\| (`[^|]+) \|", sources, re.MULTILINE) for name in first.split(", ")}
    assert {f"`{name}`" for name in methods.RECIPES} - described == {"`full`", "`head`"}

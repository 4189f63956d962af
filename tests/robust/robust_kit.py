"""The real command line, in process, on inputs that are made to be bad; and what it may never do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from lora_bench import tasks
from lora_bench.cli.app import app
from lora_bench.records import store
from lora_bench.records.seal import seal
from lora_bench.sample import DATA, ENCODER

SIZES = ("--epochs", "1", "--batch-size", "8", "--max-length", "16")
LORA = ("--method", "lora", "--rank", "2", *SIZES)
FLIPS = 10**9 if os.environ.get("LORA_BENCH_FUZZ") else 1000  # of bits, at most: all of them when there is time
PLACES = {"--task": "sst2", "--model": "model", "--data-dir": "rows", "--results": "results"}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    errors: str


def lora_bench(*arguments: str) -> Ended:
    """Run the command line. What it raises but its own exit is raised here too: a user would see a traceback."""
    ended = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100", "TERM": "dumb"}, catch_exceptions=False)
    return Ended(ended.exit_code, ended.stdout, ended.stderr)


def run(*arguments: str, command: str = "run", **places: str) -> Ended:
    """Train one small cell, on the sound model and rows unless others are given."""
    where = PLACES | {f"--{name.replace('_', '-')}": value for name, value in places.items()}
    given = [text for option, value in where.items() if option not in arguments for text in (option, value)]
    offline = ("--offline",) if command == "run" else ()
    return lora_bench(command, *LORA, *given, *offline, *arguments)


def assert_clear_error(ended: Ended, code: int, words: str) -> None:
    """Assert that a command ended with this exit code and two lines: what is wrong, with these words, and the fix."""
    lines = ended.errors.strip().splitlines()
    assert (ended.code, len(lines)) == (code, 2), ended
    assert lines[0].startswith("Error: "), lines
    assert words in ended.errors, (words, lines)
    assert all(line.isprintable() for line in lines), lines


def make_rows(root: Path, task: str = "sst2", train: int = 16, evaluation: int = 8) -> Path:
    """A data folder with the first rows of the bundled sample."""
    for split in tasks.get(task).splits:
        lines = (DATA / task / f"{split}.jsonl").read_text().splitlines()
        count = train if split == "train" else evaluation
        (root / task).mkdir(parents=True, exist_ok=True)
        (root / task / f"{split}.jsonl").write_text("\n".join(lines[:count]) + "\n")
    return root


def make_model(folder: Path) -> Path:
    """A copy of the bundled encoder."""
    return Path(shutil.copytree(ENCODER, folder))


def rewrite_json(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it; links are not followed."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def truncated(content: bytes) -> Iterator[bytes]:
    """The content cut off at every byte."""
    return (content[:end] for end in range(len(content)))


def flipped(content: bytes, count: int = FLIPS) -> Iterator[bytes]:
    """The content with one bit turned, `count` times at even distances (all bits where there are fewer)."""
    bits = len(content) * 8
    for bit in sorted({place * bits // count for place in range(count)}) if count < bits else range(bits):
        yield content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :]


def only_record(results: Path) -> Path:
    """The one record file of a results folder."""
    (path,) = (results / "cells").glob("*.json")
    return path


def put_record(results: Path, content: dict[str, object]) -> Path:
    """Write a record's content as this version writes it, with a checksum, under the id of its settings."""
    path = store.record_path(results, str(content["id"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(seal(json.dumps(content)))
    return path

"""The real command line, in process, on inputs that are made to be bad; and what it may never do."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from lora_bench import tasks
from lora_bench.cli import app
from lora_bench.sample import DATA, ENCODER

TINY = ("--epochs", "1", "--batch-size", "8", "--max-length", "16")
LORA = ("--task", "sst2", "--method", "lora", "--rank", "2", *TINY)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    errors: str


def lora_bench(*arguments: str) -> Ended:
    """Run the command line. Whatever it raises but its own exit is raised here too: a user would see a traceback."""
    ended = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100", "TERM": "dumb"}, catch_exceptions=False)
    return Ended(ended.exit_code, ended.stdout, ended.stderr)


def refused(code: int, words: str, *arguments: str) -> Ended:
    """Run a command that must end with this exit code, in two lines that hold these words."""
    ended = lora_bench(*arguments)
    lines = ended.errors.strip().splitlines()
    assert (ended.code, len(lines)) == (code, 2), (ended.code, ended.errors)
    assert lines[0].startswith("Error: "), lines
    assert words in ended.errors, (words, ended.errors)
    assert all(line.isprintable() for line in lines), lines
    return ended


def make_rows(root: Path, task: str = "sst2", train: int = 16, evaluation: int = 8) -> Path:
    """A data folder with the first rows of the bundled sample."""
    for split in tasks.get(task).splits:
        lines = (DATA / task / f"{split}.jsonl").read_text().splitlines()
        (root / task).mkdir(parents=True, exist_ok=True)
        (root / task / f"{split}.jsonl").write_text(
            "\n".join(lines[: train if split == "train" else evaluation]) + "\n"
        )
    return root


def make_model(folder: Path) -> Path:
    """A copy of the bundled encoder."""
    return Path(shutil.copytree(ENCODER, folder))


def rewrite_json(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

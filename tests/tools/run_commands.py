"""Runs commands of lora-bench one after another in one process, as the documentation has them.

Reads a JSON list of commands (each a list of words, without the program's name) and prints one JSON line for each: its
exit code and what it printed. The word `ID` stands for a cell of the command's results folder. One process serves all
commands of a page, since importing torch takes longer than most of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from typer.testing import CliRunner

from lora_bench.cli.app import app
from lora_bench.records.store import read_records


def cell_id(results: Path) -> str:
    """A cell that can be shown and exported: of an included method if there is one, and with an adapter."""
    records = read_records(results).records
    return min(records, key=lambda record: (record.cell.origin is None, record.cell.rank is None, record.id)).id


def main() -> None:
    """Run the commands."""
    for words in json.load(sys.stdin):
        if "ID" in words:
            results = Path(words[words.index("--results") + 1])
            words = [cell_id(results) if word == "ID" else word for word in words]
        ended = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
        print(json.dumps([ended.exit_code, ended.output]), flush=True)


if __name__ == "__main__":
    main()

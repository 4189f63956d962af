"""A record by the beginning of its id."""

from __future__ import annotations

from pathlib import Path

from lora_bench.errors import NOTHING, SOME_FAILED, USAGE, BenchError
from lora_bench.store import LABEL, Record, read_records


def find_record(results: Path, beginning: str) -> Record:
    """The one record of a results folder whose id begins so; `cell-` before it, as metrics.csv has it, is left out.

    Raises:
        BenchError: exit code 4 if there is none, 2 if there are several, 1 if its file is damaged.
    """
    beginning = beginning.removeprefix(LABEL)
    loaded = read_records(results)
    found = [record for record in loaded.records if record.id.startswith(beginning)]
    damaged = [f"'{path}' is no sound record: {why}." for path, why in loaded.broken if path.stem.startswith(beginning)]
    if damaged and not found:
        raise BenchError(damaged[0], "Train the cell again: the file is kept beside the new one.", SOME_FAILED)
    if len(found) != 1:
        trouble = "No record" if not found else f"{len(found)} records"
        raise BenchError(
            f"{trouble} under '{results}' with an id that begins '{beginning}'.",
            "See `lora-bench list runs --results DIR`.", USAGE if found else NOTHING,
        )  # fmt: skip
    return found[0]

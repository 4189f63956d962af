"""A record by the beginning of its id."""

from __future__ import annotations

from pathlib import Path

from lora_bench.errors import NOTHING, USAGE, BenchError
from lora_bench.store import Record, read_records


def find_record(results: Path, beginning: str) -> Record:
    """The one record of a results folder whose id begins so.

    Raises:
        BenchError: exit code 4 if there is none, 2 if there are several.
    """
    found = [record for record in read_records(results).records if record.id.startswith(beginning)]
    if len(found) != 1:
        trouble = "No record" if not found else f"{len(found)} records"
        raise BenchError(
            f"{trouble} under '{results}' with an id that begins '{beginning}'.",
            "See `lora-bench list runs --results DIR`.", USAGE if found else NOTHING,
        )  # fmt: skip
    return found[0]

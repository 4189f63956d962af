"""A small results folder, and a console that writes to a string."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from lora_bench.records.schema import Record
from lora_bench.records.store import write_record
from tests.report.report_factory import Fill


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Writes records to a results folder and returns it."""

    def write(records: Iterable[Record]) -> Path:
        for each in records:
            write_record(tmp_path / "results", each)
        return tmp_path / "results"

    return write


@pytest.fixture
def console() -> Console:
    """A console of 120 columns; `console.file.getvalue()` is what it shows."""
    return Console(file=io.StringIO(), width=120)

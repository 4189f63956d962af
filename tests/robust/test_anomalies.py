"""Every file operation fails in turn, once and for good, with each error: nothing is harmed, and the end is clear.

In SQLite's manner: the first operation fails, then the second, and so on until a run has none left to fail. Training is
stood in for; plan, owner, states, records, adapters and metrics.csv are the real ones.
"""

from __future__ import annotations

import csv
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_bench.errors import MISSING, BenchError
from lora_bench.grid.cells import Grid
from lora_bench.records import files
from lora_bench.records.store import read_records
from tests.robust.stub_worker import grid, runner

OPERATIONS = ("open", "write", "fsync", "replace", "unlink", "rmdir", "utime")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)
THOROUGH = "LORA_BENCH_THOROUGH" in os.environ


class Failing:
    """`os` whose n-th file operation fails: that one, or all from there on."""

    def __init__(self, number: int, error: int, for_good: bool) -> None:
        self.number, self.error, self.for_good = number, error, for_good
        self.seen = 0

    def __getattr__(self, name: str) -> Any:
        own = getattr(os, name)
        return self.failing(own) if name in OPERATIONS else own

    def failing(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """The operation, or its error."""

        def operation(*args: Any, **values: Any) -> Any:
            self.seen += 1
            if self.seen == self.number or (self.for_good and self.seen > self.number):
                raise OSError(self.error, os.strerror(self.error), str(args[0]))
            return None if own is os.fsync else own(*args, **values)

        return operation

    @property
    def came(self) -> bool:
        """Whether there were as many operations."""
        return self.seen >= self.number


def assert_sound(results: Path) -> None:
    """Whatever is there is whole: each record with its adapter, each row a record's."""
    loaded = read_records(results)
    assert loaded.broken == ()
    for record in loaded.records:
        assert sorted(path.name for path in (results / "adapters" / record.id).iterdir()) == [
            "adapter.json", "head.safetensors",
        ]  # fmt: skip
    if (results / "metrics.csv").exists():
        with (results / "metrics.csv").open(newline="") as file:
            assert {row["id"] for row in csv.DictReader(file)} <= {record.id for record in loaded.records}


def contents(results: Path) -> dict[str, bytes]:
    """Every file."""
    paths = [path for path in results.rglob("*") if path.is_file()]
    return {str(path.relative_to(results)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def made() -> Grid:
    """One pack of two cells."""
    return grid(seeds=1)


def fails(number: int, error: int, for_good: bool, results: Path, made: Grid, expected: dict[str, bytes]) -> bool:
    """One run with an error, and one that mends; whether the error came."""
    fault = Failing(number, error, for_good)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", fault)
        patch.setattr("filelock._soft.os", fault)
        try:
            records = runner(results, made).run()
            assert len(records) == 2
        except BenchError as raised:
            assert raised.code == MISSING
            assert len(str(raised).splitlines()) == 2
    assert_sound(results)
    assert len(runner(results, made).run()) == 2
    assert contents(results) == expected
    return fault.came


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_every_operation_fails_in_turn(tmp_path: Path, made: Grid, for_good: bool) -> None:
    runner(tmp_path / "uninterrupted", made).run()
    expected = contents(tmp_path / "uninterrupted")
    for number in itertools.count(1):
        errors = ERRORS if THOROUGH else (ERRORS[number % len(ERRORS)],)
        came = [fails(number, error, for_good, tmp_path / f"{number}-{error}", made, expected) for error in errors]
        if not all(came):
            break
    print(f"{number - 1} operations")
    assert number > 60


def test_an_error_harms_no_old_result(tmp_path: Path, made: Grid) -> None:
    """A folder that cannot be written any more keeps what it has, and a wider grid says why it cannot go on."""
    results = tmp_path / "results"
    runner(results, made).run()
    before = contents(results)
    for error in ERRORS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "os", Failing(1, error, for_good=True))
            with pytest.raises(BenchError, match=os.strerror(error)):
                runner(results, grid(seeds=2)).run()
        assert contents(results) == before

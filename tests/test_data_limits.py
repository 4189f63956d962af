"""Files that are too large, or no data at all: refused at once, by what they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_bench.data import sources
from lora_bench.tasks import get
from tests.test_sources import WRITERS, refused


@pytest.mark.parametrize("form", WRITERS)
def test_a_git_lfs_pointer_is_called_one(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.{form}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    error = refused(lambda: sources.read(path, get("sst2")), f"'{path}' is a git-lfs pointer")
    assert "git lfs pull" in error.hint


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.{form}"
    os.mkfifo(path)
    refused(lambda: sources.read(path, get("sst2")), str(path))
    refused(lambda: sources.find(tmp_path.parent, get("sst2"), "train"), "No file of sst2's split 'train'")


@pytest.mark.parametrize("form", WRITERS)
def test_a_file_larger_than_memory_is_refused_unread(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.{form}"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    refused(lambda: sources.read(path, get("sst2")), "5.0 GiB", "1 GiB and 10,000,000 rows")


def unpacks(path: Path, texts: pa.Array, groups: int, **how: Any) -> None:
    """Writes so many groups of these texts into a file of less than a megabyte."""
    rows = pa.table({"sentence": texts, "label": [0] * len(texts)})
    with pq.ParquetWriter(path, rows.schema, compression="zstd", **how) as file:
        for _ in range(groups):
            file.write_table(rows)
    assert path.stat().st_size < 2**20


LONG = "a" * 2**20
MANY_OF_ONE = pa.DictionaryArray.from_arrays(np.zeros(2000, np.int32), [LONG])
BOMBS: dict[str, tuple[pa.Array, int, dict[str, Any]]] = {
    "one text, a number in each row": (MANY_OF_ONE, 1, {}),
    "the same, read in full": (MANY_OF_ONE, 1, {"store_schema": False}),
    "compressed": (pa.array([LONG] * 20), 100, {"use_dictionary": False}),
    "prefixes": (
        pa.array([LONG] * 20),
        100,
        {"use_dictionary": False, "column_encoding": {"sentence": "DELTA_BYTE_ARRAY"}},
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("how", BOMBS)
def test_a_small_parquet_that_unpacks_to_2_gb_is_refused(how: str, tmp_path: Path) -> None:
    """In a process of its own, which never takes as much memory as the text would."""
    texts, groups, more = BOMBS[how]
    unpacks(tmp_path / "train.parquet", texts, groups, **more)
    code = """if True:
        import sys
        from pathlib import Path
        from lora_bench.data import sources
        from lora_bench.errors import BenchError
        from lora_bench.tasks import get
        try:
            sources.read(Path(sys.argv[1]), get("sst2"))
        except BenchError as error:
            print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0], error)
    """
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "train.parquet")], capture_output=True, text=True, check=True
    )
    peak, _, said = ended.stdout.partition(" ")
    assert "GiB unpacked; a split may have 1 GiB" in said, ended
    assert int(peak) < 3 * 2**20  # KiB


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"sentence": pa.array([""]).take(pa.array(np.zeros(10_000_001, np.int32)))}), path)
    table = pq.read_table(path)
    pq.write_table(table.append_column("label", pa.array(np.zeros(10_000_001, np.int64))), path)
    refused(lambda: sources.read(path, get("sst2")), "10,000,001 rows")

"""Data that change between the plan and their pack: nothing trains on them, and no cache keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_bench.errors import MISSING, BenchError
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records
from lora_bench.run.interfaces import Options
from lora_bench.run.runner import Runner
from lora_bench.testing import QuietView, TinyBench, assert_same_numbers, by_cell

BLOCKS = [{"method": "lora", "rank": 2, "task": ["sst2", "cola"]}]


class Replaces(QuietView):
    """Does something when the first pack has ended."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self.action = action

    def done(self, records: Sequence[Record]) -> None:
        """Cells have ended."""
        super().done(records)
        if len(self.ended) == 1:
            self.action()


def flip(path: Path) -> None:
    """Another text in each row, and the other label: as many rows as before."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [{"sentence": " ".join(row["sentence"].split()[::-1]), "label": 1 - row["label"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))


@pytest.fixture
def bench(tmp_path: Path) -> TinyBench:
    return TinyBench.create(tmp_path, "sst2", "cola")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_file_replaced_after_the_plan_ends_the_run(bench: TinyBench, split: str, tmp_path: Path) -> None:
    path = bench.rows / "cola" / f"{split}.jsonl"
    sound, plan = path.read_bytes(), bench.plan(BLOCKS)
    options = Options(bench.results, offline=True, cache=tmp_path / "cache")
    with pytest.raises(BenchError, match=r"data of cola .* changed since the plan") as caught:
        Runner(plan, options, Replaces(lambda: flip(path))).run()
    assert caught.value.code == MISSING
    assert [record.cell.task for record in read_records(bench.results).records] == ["sst2"]
    path.write_bytes(sound)
    again = Runner(bench.plan(BLOCKS), options, QuietView()).run()
    fresh = TinyBench(bench.model, bench.rows, tmp_path / "fresh").run(BLOCKS)
    assert len(again) == len(fresh) == 2
    for cell, record in by_cell(again).items():
        assert_same_numbers(record, by_cell(fresh)[cell])


def test_a_file_that_another_one_now_hides_ends_the_run(bench: TinyBench) -> None:
    """`train.parquet` is looked for before `train.jsonl`; its rows are sound, but not those of the plan."""
    folder = bench.rows / "cola"
    rows = pa.table({"sentence": ["w1", "w2"], "label": [0, 1]})
    hides = Replaces(lambda: pq.write_table(rows, folder / "train.parquet"))
    with pytest.raises(BenchError, match="changed since the plan") as caught:
        bench.follow(bench.plan(BLOCKS), hides)
    assert caught.value.code == MISSING

"""The queue with several packs in training at once: largest first, and failures are looked into as with one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_bench.cell import Cell
from lora_bench.records.store import read_records
from lora_bench.run import plan as plans
from lora_bench.run.executor import train_job
from lora_bench.run.interfaces import Driver, Job, Options, Setup
from lora_bench.run.queue import Queue
from lora_bench.run.runner import Runner
from lora_bench.testing import QuietView
from tests.robust.stub_worker import QUIET, StubWorker, grid, left, reasons, statuses


class Several:
    """An executor of several slots, in which jobs end in any order."""

    devices = slots = 3

    def __init__(self, worker: StubWorker, seed: int) -> None:
        self.worker, self.draw, self.jobs, self.most = worker, random.Random(seed), list[Job](), 0

    def start(self, setup: Setup, driver: Driver) -> None:
        self.driver = driver

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self.most = max(self.most, len(self.jobs))
        assert len(self.jobs) <= self.slots

    def advance(self) -> None:
        job = self.jobs.pop(self.draw.randrange(len(self.jobs)))
        self.driver.finish(job, train_job(self.worker, job, self.driver, debug=False))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(5))
def test_packs_that_fail_beside_others_are_looked_into(results: Path, seed: int) -> None:
    """Of three packs one has a cell at fault, one lacks memory, one fails alike in every cell."""

    def work(cells: Sequence[Cell]) -> None:
        if cells[0].seed == 0 and any(cell.rank == 5 for cell in cells):
            raise ValueError(f"bad, in a pack of {len(cells)}")
        if cells[0].seed == 1 and len(cells) > 2:
            raise MemoryError
        if cells[0].seed == 2:
            raise ValueError("alike")

    plan, view = plans.make(grid(3, range(1, 13)), results, 16), QuietView()
    worker = StubWorker(plan, on_cells=work)
    executor = Several(worker, seed)
    Runner(plan, Options(results), view, executor=executor).run()
    records = read_records(results).records
    assert executor.most == 3
    assert len(records) == 36
    assert len(view.ended) == len(set(view.ended)) == 36
    ended = {(record.cell.seed, record.cell.rank): record.status for record in records}
    assert {key for key, status in ended.items() if status != "done"} == {(0, 5), *((2, rank) for rank in range(1, 13))}
    assert len([reason for reason in reasons(results) if reason]) == 3  # the cell's own; alike; given up
    assert left(results) == QUIET
    assert len(worker.trained) == len(set(worker.trained)) == 23


def test_several_devices_get_parts_of_even_length_the_largest_first(results: Path) -> None:
    plan = plans.make(grid(2, range(1, 17)), results, None)
    queue, sizes, cells = Queue(plan, 4), list[int](), set[Cell]()
    while work := queue.take():
        sizes.append(len(work.cells))
        cells |= set(work.cells)
    assert sizes == [8] * 4
    limited = plans.make(grid(2, range(1, 17)), results, 16)
    assert [len(work.cells) for work in iter(Queue(limited, 4).take, None) if work] == [16, 16]
    assert cells == set(plan.grid.cells)
    assert [work.cells for work in iter(Queue(plan, 1).take, None) if work] == list(plan.packs)
    assert statuses(results) == {}


def test_packs_are_not_cut_where_devices_end_together_anyway(results: Path) -> None:
    """The same packs give the same bits as on one device."""
    plan = plans.make(grid(4, range(1, 17)), results, None)
    assert {work.cells for work in iter(Queue(plan, 2).take, None) if work} == set(plan.packs)


def test_work_for_the_same_encoder_comes_first(results: Path) -> None:
    """Loading another one takes a while; with one device packs come in the order of the plan."""
    made = grid(2, range(1, 3), precision=["float32", "bf16"])
    for slots in (1, 2):
        queue = Queue(plans.make(made, results, 16), slots)
        last, precisions = None, list[str]()
        while work := queue.take(last):
            last = work.cells[0]
            precisions.append(last.precision)
        assert len(precisions) == 4
        assert precisions[0] == precisions[1] != precisions[2] == precisions[3]

"""Factories of records (`record` for one, `small` for a few, `grid` for an experiment), and the tables of reports."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from lora_bench.cell import Cell
from lora_bench.compare import Comparisons
from lora_bench.records.schema import Epoch, Protocol, Record, Status
from lora_bench.records.store import Loaded
from lora_bench.report.content import gather
from lora_bench.report.numbers.comparisons import ScopeStatistics, scope_statistics
from lora_bench.report.numbers.entries import comparable_scopes
from lora_bench.report.numbers.frame import cell_frame
from lora_bench.report.numbers.tables import ReportTable
from lora_bench.testing import make_record

Fill = Callable[[Iterable[Record]], Path]

LEVEL = {"sst2": 0.92, "rte": 0.66, "cola": 0.52, "stsb": 0.87}


def record(
    score: float | None = 0.9,
    *,
    status: Status = "done",
    reason: str | None = None,
    split: str = "validation",
    start: str = "pretrained",
    notes: tuple[str, ...] = (),
    params: tuple[int, int] | None = (1000, 592_130),
    curve: tuple[Epoch, ...] = (),
    predictions: tuple[float, ...] = (),
    seconds: float | None = None,
    device: str = "NVIDIA H200",
    **settings: Any,
) -> Record:
    """A record of one cell: `mini` on sst2 with rank 4, a = b = 8 by default."""
    base: dict[str, Any] = {"model": "tiny", "data": "glue", "task": "sst2", "method": "mini", "seed": 0}
    if settings.get("method", "mini") == "mini":
        base |= {"rank": 4, "a": 8, "b": 8}
    if settings.get("method") not in ("head", "full"):
        base |= {"targets": "attention"}
    cell = Cell(**(base | settings))
    return make_record(
        score,
        cell=cell,
        epochs=curve,
        params=params,
        seconds=seconds,
        device=device,
        status=status,
        reason=reason,
        predictions=predictions,
        protocol=Protocol(split=split, select=cell.select, start=start, notes=notes),
    )


def small() -> list[Record]:
    """mini with two ranks and two (a, b), lora, head; two tasks, three seeds, one of them failed."""
    records = []
    for task, level in (("sst2", 0.9), ("cola", 0.5)):
        for seed in range(3):
            shift = level + 0.01 * seed
            records += [
                record(shift + 0.001 * rank + 0.0001 * a, task=task, seed=seed, rank=rank, a=a, b=2 * a)
                for rank in (4, 8)
                for a in (8, 16)
            ]
            failed = task == "sst2" and seed == 2
            records.append(
                record(
                    None if failed else shift + 0.02,
                    task=task,
                    seed=seed,
                    method="lora",
                    rank=4,
                    params=(9000, 592_130),
                    status="failed" if failed else "done",
                    reason="out of memory" if failed else None,
                )
            )
            records.append(record(shift - 0.2, task=task, seed=seed, method="head", params=(0, 592_130)))
    return records


def grid(tasks: tuple[str, ...] = ("cola", "rte", "sst2", "stsb"), seeds: int = 5) -> Iterator[Record]:
    """Like the paper's: mini with five ranks and sixteen (a, b), lora, xs, head and full, on roberta-base."""
    draw = random.Random(0)
    for task in tasks:
        for method, rank, a, b, gain, params in _points():
            for seed in range(seeds):
                bad = draw.random() < 0.01
                score = LEVEL[task] + gain + draw.gauss(0, 0.004)
                yield record(
                    None if bad else round(score, 6),
                    status="diverged" if bad else "done",
                    reason="loss is not finite at step 120" if bad else None,
                    params=(params, 592_130 if task != "stsb" else 591_361),
                    model="FacebookAI/roberta-base",
                    data="glue@bcdcba79",
                    task=task,
                    method=method,
                    rank=rank,
                    a=a,
                    b=b,
                    seed=seed,
                )


def _points() -> Iterator[tuple[str, int | None, int | None, int | None, float, int]]:
    sizes = (16, 32, 64, 128)
    for rank in (4, 8, 16, 32, 64):
        bits = rank.bit_length() / 7
        for a in sizes:
            for b in sizes:
                yield "mini", rank, a, b, 0.02 * bits + (a + b) / 25_600, 48 * rank * (a + b)
        yield "lora", rank, None, None, 0.028 + 0.004 * bits, 73_728 * rank
        yield "xs", rank, None, None, 0.03 * bits - 0.005, 48 * rank * rank
    yield "head", None, None, None, -0.06, 0
    yield "full", None, None, None, 0.035, 124_055_040


def all_statistics(records: Iterable[Record], **compare: Any) -> list[ScopeStatistics]:
    """The statistics of each scope of the records; `compare` are settings of `Comparisons`."""
    return [scope_statistics(scope) for scope in comparable_scopes(cell_frame(records), Comparisons(**compare))]


def statistics(records: Iterable[Record], **compare: Any) -> ScopeStatistics:
    """The statistics of the first scope."""
    return all_statistics(records, **compare)[0]


def tables(records: Iterable[Record]) -> tuple[ReportTable, ...]:
    """The tables of a report of these records."""
    return gather(Loaded(tuple(records), ())).tables


def texts(table: ReportTable, head: str) -> list[str]:
    """The texts of a column."""
    column = table.heads.index(head)
    return [row[column].text for row in table.rows]


def shown(console: Console) -> str:
    """What the console has shown, without the spaces at the ends of lines."""
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

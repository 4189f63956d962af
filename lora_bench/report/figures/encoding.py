"""Figures to files: at once, or in other processes beside the rest, for reports so large that it pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

from lora_bench.report.figures.drawing import encode, prepare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Encoded = Callable[[], Mapping[str, bytes]]
MANY, WORKERS = 20_000, 2


@dataclass(frozen=True)
class Helpers:
    """The processes, or none."""

    pool: Executor | None = None

    def encode(self, figure: Figure) -> Encoded:
        """Begin to turn a figure into files; what is returned gives their bytes."""
        return partial(encode, figure) if self.pool is None else self.pool.submit(encode, figure).result


@contextmanager
def helping(records: int) -> Iterator[Helpers]:
    """Helpers for a report on that many records."""
    if records < MANY:
        yield Helpers()
        return
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        for _ in range(WORKERS):
            pool.submit(prepare)  # they start while records are read
        yield Helpers(pool)

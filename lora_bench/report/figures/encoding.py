"""Encoding of figures: in this process, or in worker processes for reports so large that it pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

from lora_bench.report.figures.drawing import encode_figure, import_backends

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EncodedFigure = Callable[[], Mapping[str, bytes]]
POOL_THRESHOLD = 5_000  # records from which worker processes are started
WORKERS = 2


@dataclass(frozen=True)
class FigureEncoder:
    """Encodes figures, in a pool of processes if there is one."""

    pool: Executor | None = None

    def encode(self, figure: Figure) -> EncodedFigure:
        """Start to encode a figure.

        Returns:
            A function that returns the bytes by file type, and waits for them if necessary.
        """
        return partial(encode_figure, figure) if self.pool is None else self.pool.submit(encode_figure, figure).result


@contextmanager
def figure_encoder(records: int) -> Iterator[FigureEncoder]:
    """Provide the encoder for a report on that many records."""
    if records < POOL_THRESHOLD:
        yield FigureEncoder()
        return
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        for _ in range(WORKERS):
            pool.submit(import_backends)  # the workers start up while the records are read
        yield FigureEncoder(pool)

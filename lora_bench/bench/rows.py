"""A row of the benchmark, and its ratios to the peers of its task and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from lora_bench.bench.choice import FULL
from lora_bench.bench.clock import Measured

PROCESSES = "processes-"
RATIOS = ("trainer", "loop", "processes")
MAYBE = ("error", "settings", "terms")


@dataclass(frozen=True)
class Row:
    """One measurement. Rates are medians of `repeats`; what was not measured is None.

    `variant`: `trainer`, `loop`, `processes-N` or `packed`. `k`: cells that train at once. `auto`: k is what
    `--pack auto` means here. `cell_steps_per_second`: steps · cells. `tokens_per_second`: real tokens, over all cells.
    `utilisation`: `tflops` of real tokens as a part of the peak. `spread`: (largest - smallest) / median of the
    repeats. `steps`: the timed ones, of each cell on average. `terms`: what the cost model counts for a step of the
    pack (`cost.Demand`). `peak_memory_bytes`: what the allocator took of a GPU. `error`: why there is no number.
    """

    variant: str
    task: str
    targets: str
    mix: str
    k: int
    auto: bool = False
    cell_steps_per_second: float | None = None
    ratio_to_trainer: float | None = None
    ratio_to_loop: float | None = None
    ratio_to_processes: float | None = None
    tokens_per_second: float | None = None
    tflops: float | None = None
    utilisation: float | None = None
    peak_memory_bytes: int | None = None
    build_seconds: float | None = None
    setup_seconds: float | None = None
    steps: float | None = None
    repeats: tuple[float, ...] = ()
    spread: float | None = None
    settings: dict[str, int | str] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The row for the file; `MAYBE` only where there is something."""
        content = asdict(self)
        return {key: value for key, value in content.items() if value or key not in MAYBE}


def filled(row: Row, measured: Measured, operations: int, peak_tflops: float) -> Row:
    """The row with its numbers. `operations`: FLOP of a real token."""
    rates = tuple(window.steps / window.seconds for window in measured.windows)
    tokens = median(window.tokens / window.seconds for window in measured.windows)
    tflops = tokens * operations / 1e12
    return replace(
        row, cell_steps_per_second=median(rates), tokens_per_second=tokens, tflops=tflops,
        utilisation=tflops / peak_tflops, peak_memory_bytes=measured.peak_memory_bytes,
        build_seconds=measured.build_seconds, setup_seconds=measured.setup_seconds,
        steps=sum(window.steps for window in measured.windows) / row.k, repeats=rates,
        spread=(max(rates) - min(rates)) / median(rates), settings=measured.settings,
    )  # fmt: skip


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows with their rates over the peers' of the same task and targets; of `processes-N` over the best N's.

    `full` rows and the others, all adapters, know nothing of each other.
    """
    best: dict[tuple[str, str, bool, str], float] = {}
    for row in rows:
        if row.variant != "packed" and row.cell_steps_per_second:
            key = (*_group(row), row.variant.partition("-")[0])
            best[key] = max(best.get(key, 0.0), row.cell_steps_per_second)
    return [_over(row, {peer: best.get((*_group(row), peer)) for peer in RATIOS}) for row in rows]


def _group(row: Row) -> tuple[str, str, bool]:
    """What rows have in common that are measured by each other."""
    return row.task, row.targets, row.mix == FULL


def _over(row: Row, peers: dict[str, float | None]) -> Row:
    rate = row.cell_steps_per_second
    ratios = {f"ratio_to_{peer}": rate / base if rate and base else None for peer, base in peers.items()}
    return replace(row, **ratios)  # type: ignore[arg-type]

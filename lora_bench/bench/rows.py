"""A row of the benchmark, and its ratios to the peers of the same task and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from lora_bench.bench.clock import Measurement
from lora_bench.bench.settings import FULL

PROCESSES = "processes-"
RATIOS = ("trainer", "loop", "processes")
OPTIONAL_KEYS = ("error", "settings", "terms")  # left out of the file if empty


@dataclass(frozen=True)
class BenchRow:
    """One measurement. Rates are medians over the repeats; what was not measured is None.

    The names are the keys of the JSON file.

    Attributes:
        variant: `trainer`, `loop`, `processes-N` or `packed`.
        k: The number of cells that train at the same time.
        auto: Whether k is what `--pack auto` stands for.
        cell_steps_per_second: Steps × cells per second.
        tokens_per_second: Tokens without padding, over all cells.
        tflops: Operations of these tokens.
        utilisation: `tflops` as a fraction of the device's peak.
        peak_memory_bytes: The memory that the allocator reserved on a GPU.
        steps: The timed steps, per cell on average.
        repeats: The rate of each repeat.
        spread: (largest - smallest) / median of the repeats.
        terms: What the cost model counts for a step of the pack (`pack.Demand.terms`).
        error: Why there is no number.
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
        """Return the row for the JSON file."""
        content = asdict(self)
        return {key: value for key, value in content.items() if value or key not in OPTIONAL_KEYS}


def fill_row(row: BenchRow, measurement: Measurement, operations: int, peak_tflops: float) -> BenchRow:
    """Return the row with the numbers of its measurement.

    Args:
        row: The row that says what was measured.
        measurement: The measurement.
        operations: FLOP per token.
        peak_tflops: The device's peak.
    """
    rates = tuple(repeat.steps / repeat.seconds for repeat in measurement.repeats)
    tokens = median(repeat.tokens / repeat.seconds for repeat in measurement.repeats)
    tflops = tokens * operations / 1e12
    return replace(
        row,
        cell_steps_per_second=median(rates),
        tokens_per_second=tokens,
        tflops=tflops,
        utilisation=tflops / peak_tflops,
        peak_memory_bytes=measurement.peak_memory_bytes,
        build_seconds=measurement.build_seconds,
        setup_seconds=measurement.setup_seconds,
        steps=sum(repeat.steps for repeat in measurement.repeats) / row.k,
        repeats=rates,
        spread=(max(rates) - min(rates)) / median(rates),
        settings=measurement.settings,
    )


def with_ratios(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """Return the rows with the ratios of their rates to the peers' of the same task and targets.

    For `processes-N` the fastest N counts. Rows of `full` and rows of adapters are not compared with each other.
    """
    best: dict[tuple[str, str, bool, str], float] = {}
    for row in rows:
        if row.variant != "packed" and row.cell_steps_per_second:
            key = (*_group(row), row.variant.partition("-")[0])
            best[key] = max(best.get(key, 0.0), row.cell_steps_per_second)
    return [_add_ratios(row, {peer: best.get((*_group(row), peer)) for peer in RATIOS}) for row in rows]


def _group(row: BenchRow) -> tuple[str, str, bool]:
    """Return what rows must have in common to be compared."""
    return row.task, row.targets, row.mix == FULL


def _add_ratios(row: BenchRow, peer_rates: dict[str, float | None]) -> BenchRow:
    rate = row.cell_steps_per_second
    ratios = {
        f"ratio_to_{peer}": rate / peer_rate if rate and peer_rate else None for peer, peer_rate in peer_rates.items()
    }
    return replace(row, **ratios)  # type: ignore[arg-type]

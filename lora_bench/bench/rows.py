"""A row of the benchmark, and its ratios to the peers of the same task and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from lora_bench.bench.clock import Measurement
from lora_bench.bench.settings import FULL, PEERS

PROCESSES = "processes-"
OPTIONAL_KEYS = ("error", "settings", "terms", "ratio_ranges", "apart")  # left out of the file if empty


@dataclass(frozen=True)
class BenchRow:
    """One measurement. Rates are medians over the rounds; what was not measured is None.

    The names are the keys of the JSON file.

    Attributes:
        variant: `trainer`, `loop`, `processes-N` or `packed`.
        k: The number of cells that train at the same time.
        auto: Whether k is what `--pack auto` stands for.
        cell_steps_per_second: Steps × cells per second.
        ratio_to_trainer: The median over the rounds of this row's rate over the peer's in the same round; likewise
            `ratio_to_loop` and `ratio_to_processes`.
        ratio_ranges: The smallest and the largest of these ratios, by peer.
        tokens_per_second: Tokens without padding, over all cells.
        tflops: Operations of these tokens.
        utilisation: `tflops` as a fraction of the device's peak.
        peak_memory_bytes: The memory that the allocator reserved on a GPU.
        steps: The timed steps, per cell on average.
        repeats: The rate in each round.
        spread: (largest - smallest) / median of the repeats.
        apart: Whether the row was measured in rounds after those of its peers, as it lacked memory beside others.
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
    ratio_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    tokens_per_second: float | None = None
    tflops: float | None = None
    utilisation: float | None = None
    peak_memory_bytes: int | None = None
    build_seconds: float | None = None
    setup_seconds: float | None = None
    steps: float | None = None
    repeats: tuple[float, ...] = ()
    spread: float | None = None
    apart: bool = False
    settings: dict[str, int | str] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def ratios(self) -> dict[str, float | None]:
        """Return the ratio to each peer."""
        values = (self.ratio_to_trainer, self.ratio_to_loop, self.ratio_to_processes)
        return dict(zip(PEERS, values, strict=True))

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
    """Return the rows with the ratios of their rates to the peers' of the same task and targets, round by round.

    For `processes-N` the N counts that is fastest over all rounds. Rows of `full` and rows of adapters are not compared
    with each other.
    """
    fastest: dict[tuple[str, str, bool, str], BenchRow] = {}
    for row in sorted(rows, key=_rate):
        if row.variant != "packed" and row.repeats:
            fastest[*_group(row), row.variant.partition("-")[0]] = row
    return [_add_ratios(row, {peer: fastest.get((*_group(row), peer)) for peer in PEERS}) for row in rows]


def _rate(row: BenchRow) -> float:
    return row.cell_steps_per_second or 0.0


def _group(row: BenchRow) -> tuple[str, str, bool]:
    """Return what rows must have in common to be compared."""
    return row.task, row.targets, row.mix == FULL


def _add_ratios(row: BenchRow, peers: dict[str, BenchRow | None]) -> BenchRow:
    medians: dict[str, Any] = dict.fromkeys([f"ratio_to_{name}" for name in peers])
    ranges: dict[str, tuple[float, float]] = {}
    for name, peer in peers.items():
        if row.repeats and peer is not None:
            ratios = [rate / peer_rate for rate, peer_rate in zip(row.repeats, peer.repeats, strict=True)]
            medians[f"ratio_to_{name}"], ranges[name] = median(ratios), (min(ratios), max(ratios))
    return replace(row, ratio_ranges=ranges, **medians)

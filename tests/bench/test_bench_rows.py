"""Rows: medians, ratios, utilisation, and what is not known."""

from __future__ import annotations

import pytest

from lora_bench.bench.rows import BenchRow, fill_row, with_ratios
from tests.bench.bench_factory import OPERATIONS, PEAK, measured, report, row

KEYS = {"variant", "task", "targets", "mix", "k", "cell_steps_per_second", "ratio_to_trainer", "ratio_to_loop"}
KEYS |= {"ratio_to_processes", "tokens_per_second", "tflops", "utilisation", "peak_memory_bytes", "setup_seconds"}
KEYS |= {"steps", "spread", "repeats", "build_seconds", "auto"}


def test_a_row_is_filled_from_its_repeats() -> None:
    """The median rate, not the mean; tokens, FLOP and utilisation follow from it."""
    made = fill_row(BenchRow("packed", "sst2", "qv", "lora", 4), measured(30.0, 90.0, 40.0), OPERATIONS, PEAK)
    assert made.cell_steps_per_second == 40.0
    assert made.repeats == (30.0, 90.0, 40.0)
    assert made.tokens_per_second == 400.0
    assert made.tflops == pytest.approx(400.0 * OPERATIONS / 1e12)
    assert made.utilisation == pytest.approx(400.0 * OPERATIONS / 1e12 / PEAK)
    assert made.spread == pytest.approx((90 - 30) / 40)
    assert made.steps == pytest.approx((15 + 45 + 20) / 4)
    assert (made.setup_seconds, made.peak_memory_bytes, made.error) == (0.2, 2**30, None)


def test_ratios_are_rates_over_the_peers_of_the_same_task_and_targets() -> None:
    rows = [
        row("trainer", 10.0), row("loop", 25.0), row("processes-2", 18.0, k=2), row("processes-4", 30.0, k=4),
        row("processes-8", 28.0, k=8), row("packed", 600.0, k=16, mix="mixed"), row("trainer", 5.0, task="rte"),
        row("packed", 100.0, task="rte"), row("packed", 50.0, targets="attention"),
    ]  # fmt: skip
    *_, mixed, _, rte, lonely = with_ratios(rows)
    assert (mixed.ratio_to_trainer, mixed.ratio_to_loop, mixed.ratio_to_processes) == (60.0, 24.0, 20.0)
    assert (rte.ratio_to_trainer, rte.ratio_to_loop, rte.ratio_to_processes) == (20.0, None, None)
    assert (lonely.ratio_to_trainer, lonely.ratio_to_loop) == (None, None)
    for made in with_ratios(rows)[:6]:
        assert made.cell_steps_per_second == pytest.approx((made.ratio_to_trainer or 0) * 10.0)


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    """A machine that slows down for all rows changes no ratio, and a round that is slow for one row only the range."""
    rows = [row("loop", 20.0, 10.0, 5.0), row("packed", 80.0, 40.0, 20.0), row("packed", 60.0, 30.0, 1.0)]
    loop, steady, disturbed = with_ratios(rows)
    assert (loop.ratio_to_loop, steady.ratio_to_loop, disturbed.ratio_to_loop) == (1.0, 4.0, 3.0)
    assert (steady.ratio_ranges, disturbed.ratio_ranges) == ({"loop": (4.0, 4.0)}, {"loop": (0.2, 3.0)})


def test_full_rows_are_measured_by_full_peers_alone() -> None:
    """Even under the same targets."""
    rows = [
        row("trainer", 10.0), row("trainer", 4.0, mix="full"), row("loop", 8.0), row("packed", 12.0, mix="full"),
        row("packed", 20.0), row("packed", 30.0, mix="mixed"),
    ]  # fmt: skip
    *_, full, lora, mixed = with_ratios(rows)
    assert (full.ratio_to_trainer, full.ratio_to_loop) == (3.0, None)
    assert (lora.ratio_to_trainer, lora.ratio_to_loop) == (2.0, 2.5)
    assert (mixed.ratio_to_trainer, mixed.ratio_to_loop) == (3.0, 3.75)


def test_a_row_that_failed_has_no_ratio_and_others_none_to_it() -> None:
    failed, packed = with_ratios(
        [BenchRow("trainer", "sst2", "qv", "lora", 1, error="out of memory"), row("packed", 9.0)]
    )
    assert failed.ratio_to_trainer is None
    assert packed.ratio_to_trainer is None


def test_the_keys_of_a_row() -> None:
    """Numbers that are not known are null, not left out; an error is there only if there is one."""
    assert row("packed", 1.0).as_json().keys() == KEYS
    failed = BenchRow("packed", "sst2", "qv", "lora", 1, error="out of memory").as_json()
    assert failed.keys() == KEYS | {"error"}
    assert failed["utilisation"] is None


def test_a_lack_of_memory_is_a_result_and_other_errors_are_failures() -> None:
    assert not report(BenchRow("packed", "sst2", "qv", "lora", 64, error="out of memory")).failed
    assert report(row("loop", 1.0), BenchRow("packed", "sst2", "qv", "lora", 1, error="ValueError: no")).failed

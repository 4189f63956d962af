"""The stopwatch: a warm-up, laps that find the length of a repeat, three repeats."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from lora_bench.bench.clock import REPEATS, MemoryMeter, Stopwatch

CPU = torch.device("cpu")


class Clock:
    """A clock that only moves when a test sets it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def train(watch: Stopwatch, clock: Clock, step: float, start: float = 0.0) -> list[int]:
    """Simulate steps of `step` seconds, the first one `start` longer; return the steps of each lap."""
    watch.start()
    laps = []
    clock.now += start
    while not watch.done:
        laps.append(watch.next_steps)
        clock.now += watch.next_steps * step
        watch.lap()
    return laps


def test_repeats_take_equal_times_and_count_steps_of_all_cells(clock: Clock) -> None:
    tokens = np.arange(20_000)
    watch = Stopwatch(6.0, CPU, tokens, cells=4)
    laps = train(watch, clock, 0.01, start=3.0)
    assert laps[-REPEATS:] == [200] * REPEATS
    begin = sum(laps[:-REPEATS])
    for index, repeat in enumerate(watch.repeats):
        first = begin + 200 * index
        assert repeat.seconds == pytest.approx(2.0)
        assert repeat.steps == 200 * 4
        assert repeat.tokens == 4 * tokens[first : first + 200].sum()
    assert watch.setup_seconds == pytest.approx(3.0)


def test_slow_steps_are_taken_one_at_a_time(clock: Clock) -> None:
    """Five steps in all on a processor: one to warm up, one to learn, three to count."""
    assert train(Stopwatch(1.0, CPU, np.ones(20_000, dtype=np.int64)), clock, 5.0) == [1, 1, 1, 1, 1]


def test_fast_steps_never_exceed_the_order(clock: Clock) -> None:
    tokens = np.ones(5_000, dtype=np.int64)
    watch = Stopwatch(60.0, CPU, tokens)
    assert sum(train(watch, clock, 1e-5)) <= len(tokens)
    assert all(repeat.tokens == repeat.steps for repeat in watch.repeats)


def test_the_first_lap_may_be_longer(clock: Clock) -> None:
    assert train(Stopwatch(1.0, CPU, np.ones(20_000, dtype=np.int64), warm_up=64), clock, 0.1)[0] == 64


def test_memory_is_not_measured_on_a_processor() -> None:
    memory = MemoryMeter(CPU)
    memory.begin()
    assert memory.peak() is None

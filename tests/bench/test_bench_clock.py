"""The stopwatch: a warm-up that finds the length of a repeat, and a repeat in each round."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from lora_bench.bench.clock import ROUNDS, MemoryMeter, Stopwatch

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


class Steps:
    """Steps of `seconds` each, the first call `start` longer; notes how many each call issues."""

    def __init__(self, clock: Clock, seconds: float, start: float = 0.0) -> None:
        self.clock, self.seconds, self.start = clock, seconds, start
        self.calls: list[int] = []

    def __call__(self, steps: int) -> None:
        self.clock.now += steps * self.seconds + (0.0 if self.calls else self.start)
        self.calls.append(steps)


def run(watch: Stopwatch) -> None:
    watch.warm_up()
    for _ in range(ROUNDS):
        watch.repeat()


def test_repeats_take_equal_times_and_count_steps_of_all_cells(clock: Clock) -> None:
    tokens = np.arange(20_000)
    steps = Steps(clock, 0.01, start=3.0)
    watch = Stopwatch(steps, 2.0 * ROUNDS, CPU, tokens, cells=4)
    watch.warm_up()
    for _ in range(ROUNDS):
        begin = watch.steps_issued + 1  # a step leads in
        watch.repeat()
        repeat = watch.repeats[-1]
        assert repeat.seconds == pytest.approx(2.0)
        assert repeat.steps == 200 * 4
        assert repeat.tokens == 4 * tokens[begin : begin + 200].sum()
    assert watch.steps_issued == sum(steps.calls)
    assert watch.setup_seconds == pytest.approx(3.0)


def test_slow_steps_are_taken_one_at_a_time(clock: Clock) -> None:
    """On a processor: one to warm up, one to learn, one in each round."""
    steps = Steps(clock, 5.0)
    run(Stopwatch(steps, 1.0, CPU, np.ones(20_000, dtype=np.int64)))
    assert steps.calls == [1] * (2 + ROUNDS)


def test_a_machine_that_becomes_slow_does_not_prolong_a_repeat(clock: Clock) -> None:
    """It ends with the block in which its time is over."""
    steps = Steps(clock, 0.01)
    watch = Stopwatch(steps, 2.0 * ROUNDS, CPU, np.ones(20_000, dtype=np.int64))
    watch.warm_up()
    steps.seconds = 0.1
    watch.repeat()
    assert watch.repeats[0].seconds == pytest.approx(2.0)
    assert watch.repeats[0].steps == 20


def test_fast_steps_never_exceed_the_order(clock: Clock) -> None:
    tokens = np.ones(5_000, dtype=np.int64)
    watch = Stopwatch(Steps(clock, 1e-5), 60.0, CPU, tokens)
    run(watch)
    assert watch.steps_issued <= len(tokens)
    assert all(repeat.tokens == repeat.steps for repeat in watch.repeats)


def test_the_first_lap_may_be_longer(clock: Clock) -> None:
    steps = Steps(clock, 0.1)
    Stopwatch(steps, 1.0, CPU, np.ones(20_000, dtype=np.int64), first_lap_steps=64).warm_up()
    assert steps.calls[0] == 64


def test_memory_is_not_measured_on_a_processor() -> None:
    memory = MemoryMeter(CPU)
    with memory.turn():
        pass
    assert memory.peak is None

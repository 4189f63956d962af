"""Timing: a warm-up, then repeats between two synchronisations; and the device memory that a measurement takes."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from statistics import median

import torch

from lora_bench.engine.encoder.windows import Ints

REPEATS = 3
WARM_UP_STEPS = {"cpu": 1, "cuda": 10}


@dataclass(frozen=True)
class TimedRun:
    """One repeat: what all cells together did in it.

    Attributes:
        steps: Steps × cells.
        tokens: Tokens without padding, over all cells.
        seconds: Its duration.
    """

    steps: float
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        repeats: The timed repeats.
        build_seconds: The time to load the model and to make the adapters.
        setup_seconds: The time of compiling, of recording graphs, and of whatever else makes the first steps slower
            than later ones.
        peak_memory_bytes: The memory that the allocator reserved on a GPU; None on a CPU.
        settings: The peer's settings that were found by trying.
    """

    repeats: tuple[TimedRun, ...]
    build_seconds: float
    setup_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    settings: dict[str, int | str] = field(default_factory=dict)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all work issued to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Times a loop of training steps.

    The loop calls `start()`, then runs `next_steps` steps and calls `lap()`, until `done`. The first lap is the
    warm-up, which includes one-time work such as compiling and recording. The next laps find out how many steps take
    `seconds / REPEATS`, and the last three are the repeats. The device is synchronised in `lap()` only.
    """

    def __init__(
        self, seconds: float, device: torch.device, tokens: Ints, cells: int = 1, warm_up: int | None = None
    ) -> None:
        """Create a stopwatch.

        Args:
            seconds: The duration of all repeats together.
            device: The device that runs the steps.
            tokens: `[steps]`, the tokens of each step without padding. There are no more steps than that.
            cells: The number of cells that a step trains.
            warm_up: The steps of the first lap; by default those of `WARM_UP_STEPS`.
        """
        self.repeat_seconds, self.device, self.tokens, self.cells = seconds / REPEATS, device, tokens, cells
        # A lap takes at most a ninth of the steps, so that warm-up, calibration and repeats do not run out of them.
        self.max_steps = max(1, len(tokens) // (3 * REPEATS))
        self.next_steps = warm_up or WARM_UP_STEPS.get(device.type, 5)
        self.steps_issued = 0
        self.repeats: list[TimedRun] = []
        self._is_calibrated = False
        self._warm_up: tuple[int, float] | None = None  # steps, seconds
        self._lap_start = 0.0

    def start(self) -> None:
        """Start the clock; the first step comes next."""
        self._lap_start = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether all repeats are timed."""
        return len(self.repeats) == REPEATS

    @property
    def setup_seconds(self) -> float:
        """The seconds that the warm-up took beyond what its steps take later."""
        if self._warm_up is None or not self.repeats:
            return 0.0
        steps, seconds = self._warm_up
        step_seconds = median(repeat.seconds / repeat.steps for repeat in self.repeats) * self.cells
        return max(0.0, seconds - steps * step_seconds)

    def lap(self) -> None:
        """End a lap: `next_steps` steps have been issued."""
        synchronise(self.device)
        now = time.perf_counter()
        elapsed = now - self._lap_start
        begin, self.steps_issued = self.steps_issued, self.steps_issued + self.next_steps
        if self._is_calibrated:
            tokens = int(self.tokens[begin : self.steps_issued].sum())
            self.repeats.append(TimedRun((self.steps_issued - begin) * self.cells, tokens * self.cells, elapsed))
        elif self._warm_up is not None:
            self._calibrate(elapsed)
        else:
            self._warm_up = self.next_steps, elapsed
            self.next_steps = 1 if self.device.type == "cpu" else 3
        self.start()

    def _calibrate(self, elapsed: float) -> None:
        """Choose the next number of steps: that of a repeat once a lap has taken at least a fourth of its time."""
        self._is_calibrated = elapsed >= self.repeat_seconds / 4 or self.next_steps >= self.max_steps
        factor = self.repeat_seconds / max(elapsed, 1e-9)
        # A short lap says little about the time of a step, so it grows by a factor of four at most.
        factor = factor if self._is_calibrated else min(factor, 4)
        self.next_steps = min(self.max_steps, max(1, round(self.next_steps * factor)))


class MemoryMeter:
    """Measures the bytes that the allocator reserves on a GPU between `begin()` and `peak()`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reserved_before = 0

    def begin(self) -> None:
        """Release unused memory and start to measure."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.reserved_before = torch.cuda.memory_reserved(self.device)

    def peak(self, whole: bool = False) -> int | None:
        """Return the peak since `begin()`; None on a CPU.

        Args:
            whole: Whether to include what was reserved before.
        """
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_reserved(self.device)) - (0 if whole else self.reserved_before)

"""Timing: a warm-up, then a repeat in each round; and the device memory that a measurement takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch

from lora_bench.engine.encoder.windows import Ints

ROUNDS = 7  # chosen: odd, so that a median is a round's; a burst of another program's work spoils one or two
_WARM_UP_STEPS = {"cpu": 1, "cuda": 10}
# Each repeat follows untimed steps, since other rows have used the caches: they take at most this fraction of its time.
LEAD_IN = 0.25
# A repeat consists of this many blocks of steps. It ends with the block in which its time runs out, so that it takes no
# longer on a machine that suddenly slows down. On a GPU each block ends with a synchronisation, so there is only one.
BLOCKS = {"cpu": 10, "cuda": 1}


@dataclass(frozen=True)
class TimedRun:
    """One repeat: what all cells together did in a round.

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
        repeats: The timed repeats, one a round.
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


# A measurement that takes turns with others: it builds and warms up until its first `yield`, and runs on for one repeat
# each time it is resumed. Its models stay in memory in between, and `close()` releases them.
Turns = Generator[None, None, Measurement]


def run_alone(turns: Turns) -> Measurement:
    """Run a measurement whose turns follow each other."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            measurement: Measurement = end.value
            return measurement


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all work issued to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up_steps(device: torch.device) -> int:
    """Return the number of steps after which a peer's steps on the device are as fast as later ones."""
    return _WARM_UP_STEPS.get(device.type, 5)


class Stopwatch:
    """Times training steps: `warm_up()` once, then `repeat()` in each round.

    The warm-up includes one-time work such as compiling and recording, and finds out how many steps a block takes. The
    device is synchronised between blocks only.
    """

    def __init__(
        self,
        train: Callable[[int], object],
        seconds: float,
        device: torch.device,
        tokens: Ints,
        cells: int = 1,
        first_lap_steps: int | None = None,
    ) -> None:
        """Create a stopwatch.

        Args:
            train: Issues the next steps; called with their number.
            seconds: The duration of all repeats together.
            device: The device that runs the steps.
            tokens: `[steps]`, the tokens of each step without padding. There are no more steps than that.
            cells: The number of cells that a step trains.
            first_lap_steps: The steps of the first lap; by default those of `warm_up_steps`.
        """
        self.train, self.device, self.tokens, self.cells = train, device, tokens, cells
        self.first_lap_steps = first_lap_steps or warm_up_steps(device)
        self.repeat_seconds, self.blocks = seconds / ROUNDS, BLOCKS.get(device.type, 1)
        # With at most half of the steps in repeats, those for warm-up and lead-in do not run out.
        self.max_steps = max(1, len(tokens) // (2 * ROUNDS))
        self.block_steps, self.lead_in_steps, self.steps_issued = 1, 0, 0
        self.repeats: list[TimedRun] = []
        self._warm_up_seconds = 0.0

    @property
    def setup_seconds(self) -> float:
        """The seconds that the warm-up took beyond what its steps take later."""
        step_seconds = median(repeat.seconds / repeat.steps for repeat in self.repeats) * self.cells
        return max(0.0, self._warm_up_seconds - self.first_lap_steps * step_seconds)

    def warm_up(self) -> None:
        """Warm up, and find out how many steps a block and a lead-in take."""
        self._warm_up_seconds = self._issue(self.first_lap_steps)
        block_seconds = self.repeat_seconds / self.blocks
        self.block_steps, is_calibrated = (1 if self.device.type == "cpu" else 3), False
        while not is_calibrated:
            elapsed = self._issue(self.block_steps)
            # A short lap says little about the time of a step, so it grows by a factor of four at most.
            is_calibrated = elapsed >= block_seconds / 4 or self.block_steps >= self.max_steps
            rate = self.block_steps / max(elapsed, 1e-9)
            steps = rate * block_seconds if is_calibrated else min(rate * block_seconds, 4 * self.block_steps)
            self.block_steps = min(self.max_steps, max(1, round(steps)))
        longest = min(self.max_steps, int(LEAD_IN * rate * self.repeat_seconds))
        self.lead_in_steps = min(warm_up_steps(self.device), longest)

    def repeat(self) -> None:
        """Time a repeat, after a lead-in of untimed steps."""
        if self.lead_in_steps:
            self._issue(self.lead_in_steps)
        begin, seconds = self.steps_issued, 0.0
        enough = self.repeat_seconds * (1 - 0.5 / self.blocks)  # stop at the end of a block that is nearest to the time
        while seconds < enough and self.steps_issued - begin + self.block_steps <= self.max_steps:
            seconds += self._issue(self.block_steps)
        tokens = int(self.tokens[begin : self.steps_issued].sum())
        self.repeats.append(TimedRun((self.steps_issued - begin) * self.cells, tokens * self.cells, seconds))

    def _issue(self, steps: int) -> float:
        """Train some steps and return the seconds that they took."""
        start = time.perf_counter()
        self.train(steps)
        synchronise(self.device)
        self.steps_issued += steps
        return time.perf_counter() - start


class MemoryMeter:
    """Measures the bytes that the allocator reserves on a GPU for one measurement among others.

    Args:
        device: The device.
        held: The bytes that the measurement uses and that were reserved before it.

    Attributes:
        held: The bytes that stay reserved between its turns.
        peak: The most bytes that were reserved for it; None on a CPU.
    """

    def __init__(self, device: torch.device, held: int = 0) -> None:
        self.device, self.held = device, held
        self.peak: int | None = held if device.type == "cuda" else None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Measure what is done inside; before and after, memory that nobody uses is released."""
        if self.peak is None:
            yield
            return
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_reserved(self.device)
        yield
        self.peak = max(self.peak, self.held + torch.cuda.max_memory_reserved(self.device) - before)
        torch.cuda.empty_cache()
        self.held += torch.cuda.memory_reserved(self.device) - before

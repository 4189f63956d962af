"""Timing: warm-up, then windows between two synchronisations; and what a measurement takes of the device's memory."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from statistics import median

import torch

from lora_bench.engine.encoder.windows import Ints

REPEATS = 3
WARM = {"cpu": 1, "cuda": 10}  # steps that nobody times


@dataclass(frozen=True)
class Window:
    """One repeat: what all cells together did in it. `steps` are steps · cells, `tokens` real ones."""

    steps: float
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One measurement: its timed windows, and what came before them.

    `build_seconds`: making model and adapters. `setup_seconds`: compiling, recording and whatever else the first steps
    take beyond what steps take later.
    `peak_memory_bytes`: what the allocator took of a GPU, None on a CPU.
    """

    windows: tuple[Window, ...]
    build_seconds: float
    setup_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    settings: dict[str, int | str] = field(default_factory=dict)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was issued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Times whoever issues steps: `wanted` of them, then `lap()`, until `done`.

    The first lap warms up: it takes what is done once, compiling and recording too. The next ones find how many steps a
    window of `seconds / 3` needs; the last three are the repeats. The device is waited for in `lap` alone.
    """

    def __init__(
        self, seconds: float, device: torch.device, tokens: Ints, cells: int = 1, warm: int | None = None
    ) -> None:
        """`tokens[i]` are the real tokens of step i, and there are no more steps; `warm`: steps of the first lap."""
        self.window, self.device, self.tokens, self.cells = seconds / REPEATS, device, tokens, cells
        self.limit = max(1, len(tokens) // (3 * REPEATS))
        self.wanted = warm or WARM.get(device.type, 5)
        self.issued = 0
        self.windows: list[Window] = []
        self._found = False
        self._first: tuple[int, float] | None = None
        self._mark = 0.0

    def start(self) -> None:
        """The first step comes now."""
        self._mark = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether all repeats are timed."""
        return len(self.windows) == REPEATS

    @property
    def once(self) -> float:
        """Seconds that the first lap took beyond what its steps take later: the price of starting."""
        if self._first is None or not self.windows:
            return 0.0
        steps, seconds = self._first
        later = median(window.seconds / window.steps for window in self.windows) * self.cells
        return max(0.0, seconds - steps * later)

    def lap(self) -> None:
        """`wanted` steps have been issued."""
        synchronise(self.device)
        now = time.perf_counter()
        elapsed = now - self._mark
        begin, self.issued = self.issued, self.issued + self.wanted
        if self._found:
            tokens = int(self.tokens[begin : self.issued].sum())
            self.windows.append(Window((self.issued - begin) * self.cells, tokens * self.cells, elapsed))
        elif self._first is not None:
            self._calibrate(elapsed)
        else:
            self._first = self.wanted, elapsed
            self.wanted = 1 if self.device.type == "cpu" else 3
        self.start()

    def _calibrate(self, elapsed: float) -> None:
        self._found = elapsed >= self.window / 4 or self.wanted >= self.limit
        factor = self.window / max(elapsed, 1e-9)
        self.wanted = min(self.limit, max(1, round(self.wanted * (factor if self._found else min(factor, 4)))))


class Memory:
    """What happens between `begin` and `peak`, in bytes that the allocator reserves on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = 0

    def begin(self) -> None:
        """Give back what nobody uses, and start to watch."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_reserved(self.device)

    def peak(self, whole: bool = False) -> int | None:
        """Bytes at most since `begin`, beyond what was there (`whole`: all of it); None on a CPU."""
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_reserved(self.device)) - (0 if whole else self.before)

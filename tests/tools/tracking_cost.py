"""How much a tracker slows a pack: `python -m tests.tools.tracking_cost [CELLS] [EPOCHS]`.

One pack trains on the bundled sample under TensorBoard, and the process of the trackers is stopped (SIGSTOP) in every
second epoch; what it could not write then, it writes in the next one. So the tracker's work for two epochs falls into
every other epoch, and whatever else the machine does into all of them: a run loses half of the difference between two
neighbouring epochs. Wall time and the processor time of the training thread are compared pair by pair; printed are the
median of the pairs and a distribution-free 95% interval from their order statistics. Sending the values happens in the
training thread in all epochs, so it is timed by itself.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from lora_bench.callbacks import EpochMetrics
from lora_bench.grid.cells import expand
from lora_bench.grid.config import Config
from lora_bench.records import store
from lora_bench.run import plan as plans
from lora_bench.run import tracking
from lora_bench.run.interfaces import Options
from lora_bench.run.runner import Runner
from lora_bench.testing import QuietView

START_SECONDS = 15.0  # until the process of the trackers has imported what it needs
SKIPPED = 2  # epochs at the beginning


class AlternatingView(QuietView):
    """Stops a process in every second epoch, and notes the times of all."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = 0
        self.is_on = True
        self.times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        self.last: tuple[float, float] | None = None

    def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
        """Note the time, and stop the process or let it go on."""
        wall, processor = time.perf_counter(), time.thread_time()
        if self.last is not None and metrics.epoch > SKIPPED:
            self.times[self.is_on].append((wall - self.last[0], processor - self.last[1]))
        self.is_on = not self.is_on
        os.kill(self.pid, signal.SIGCONT if self.is_on else signal.SIGSTOP)
        self.last = time.perf_counter(), time.thread_time()


def main(cells: int = 16, epochs: int = 60) -> None:
    """Measure, and print one line for the wall time and one for the processor time."""
    base = {"model": "sample", "task": "cola", "method": "lora", "lr": 1e-4}
    settings: dict[str, Any] = {**base, "rank": list(range(1, cells + 1)), "epochs": epochs}
    config = Config(name="cost", defaults=settings, blocks=({},))
    view = AlternatingView()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        store.prepare(results)
        plan = plans.make(expand(config, {}, plans.sources(), None), results, cells, ())
        with tracking.tracked(view, ["tensorboard"], results, offline=True) as tracked:
            assert isinstance(tracked, tracking.Tracking)
            tracked.stage("starting")
            view.pid = tracked.processes[0].pid
            seconds = timed(tracked, "on_steps_recorded", "on_epoch_evaluated")
            time.sleep(START_SECONDS)
            Runner(plan, Options(results, offline=True, save=False), tracked).run()
            os.kill(view.pid, signal.SIGCONT)
    for index, name in enumerate(("wall time", "processor time of the thread that trains")):
        on, off = ([times[index] for times in view.times[is_on]] for is_on in (True, False))
        ratios = sorted(50 * (one / other - 1) for one, other in zip(on, off, strict=False))
        reach = math.ceil(0.98 * math.sqrt(len(ratios)))  # 1.96 standard deviations of a count with p = 1/2
        middle = len(ratios) // 2
        low, high = ratios[max(0, middle - reach)], ratios[min(len(ratios) - 1, middle + reach)]
        print(
            f"{name}: a run takes {median(ratios):+.1f}% [{low:+.1f}%, {high:+.1f}%] in {len(ratios)} pairs of epochs "
            f"({median(on):.4f} s while the tracker writes the values of two, {median(off):.4f} s while it is stopped)"
        )
    epoch = median(wall for wall, _ in view.times[False])
    sent = sum(seconds) / epochs
    print(f"sending, in the thread that trains: {1000 * sent:.2f} ms an epoch: {100 * sent / epoch:+.2f}%")


def timed(tracked: tracking.Tracking, *names: str) -> list[float]:
    """Return a list that gets the processor seconds of each call of these methods, less what the view itself takes."""
    seconds: list[float] = []
    for name in names:
        method, shown = getattr(tracked, name), getattr(tracked.view, name)

        def call(event: Any, method: Any = method, shown: Any = shown) -> None:
            before = time.thread_time()
            inner: list[float] = []

            def show(event: Any) -> None:
                began = time.thread_time()
                shown(event)
                inner.append(time.thread_time() - began)

            setattr(tracked.view, shown.__name__, show)
            method(event)
            seconds.append(time.thread_time() - before - sum(inner))

        setattr(tracked, name, call)
    return seconds


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

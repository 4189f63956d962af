"""All measurements, task by task: first the peers, then ours; the same for `full`.

What fails is a row with an error; the others go on.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from lora_bench import environment, tasks
from lora_bench.bench import calibrate, crowd, packed, peak, peers, workload
from lora_bench.bench.choice import AUTO, FULL, Choice
from lora_bench.bench.clock import REPEATS, Measured
from lora_bench.bench.rows import PROCESSES, Row, filled, with_ratios
from lora_bench.bench.workload import Work
from lora_bench.cell import Cell
from lora_bench.data import hub
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder import targets as names
from lora_bench.engine.encoder.backbone import Backbone, select
from lora_bench.errors import MISSING, BenchError
from lora_bench.provenance import versions_of
from lora_bench.training.device import choose_device

OUT_OF_MEMORY = "out of memory"
_SHORTAGES = (OUT_OF_MEMORY, "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
WHOLE = "all"  # what `full` has for targets
WORKERS = {"cpu": (0,), "cuda": (0, 2)}  # of Trainer's data loader; the faster number counts


@dataclass(frozen=True)
class Report:
    """What was measured: where, against which peak, and the rows so far."""

    environment: dict[str, Any]
    peak: dict[str, Any]
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """The report for the file."""
        rows = [row.as_json() for row in self.rows]
        return {"environment": self.environment, "peak": self.peak, "rows": rows}

    @property
    def failed(self) -> bool:
        """Whether a row has an error that is no lack of memory."""
        return any(row.error not in (None, OUT_OF_MEMORY) for row in self.rows)


Measurement = tuple[Row, Callable[[], Measured]]


class Suite:
    """A benchmark under way. `say` is told a line now and then, `keep` gets the report after each row."""

    def __init__(
        self, choice: Choice, scratch: Path, say: Callable[[str], None], keep: Callable[[Report], object]
    ) -> None:
        self.choice, self.scratch, self.say, self.keep = choice, scratch, say, keep
        self.device = torch.device(choose_device(choice.device))
        select(self.device)
        self.precision = choice.precision or ("bf16" if self.device.type == "cuda" else "float32")
        self.model = workload.place(choice, scratch)
        self.rows: list[Row] = []
        self.workers = 0

    def run(self) -> Report:
        """Measure everything.

        Raises:
            BenchError: the model or the data cannot be had, or a target matches nothing.
        """
        for targets in self.choice.targets:
            names.resolve(self.backbone.linears(), targets)
        if self.left_out:
            self.say(self.left_out)
        if self.model.random:
            self.say(f"'{self.choice.model}' has no weights: both sides train on random ones (the speed is the same).")
        self.say(f"{self.peak['dtype']} matmul peak: {self.peak['tflops']:.4g} TFLOP/s")
        for task in self.choice.tasks:
            work = self._work(task)
            for row, action in self._measurements(work):
                self._attempt(row, action)
        return self.report()

    def report(self) -> Report:
        """What is known by now."""
        return Report(self.environment, self.peak, tuple(with_ratios(self.rows)))

    @cached_property
    def backbone(self) -> Backbone:
        """Our frozen encoder, loaded once for all packs."""
        return self._load(trains=False)

    def _load(self, trains: bool) -> Backbone:
        with hub.hub_mode(self.model.offline):
            return encoders.load(self.model.location, self.device, self.precision, trains, self.model.offline)

    @cached_property
    def peak(self) -> dict[str, Any]:
        """The device's matmul rate."""
        return peak.measure(self.device, self.precision)

    @cached_property
    def operations(self) -> dict[bool, int]:
        """FLOP of a real token, by whether the backbone trains."""
        weights = peak.linear_weights(self.backbone.linears().values())
        return {trains: peak.operations_a_token(weights, trains) for trains in (False, True)}

    @cached_property
    def left_out(self) -> str:
        """Why there are no peers, if some were asked for; else empty."""
        lacking = peers.missing() if self.choice.peers else []
        if not lacking:
            return ""
        left, are = ", ".join(self.choice.peers), "is" if len(lacking) == 1 else "are"
        return f"{' and '.join(lacking)} {are} not installed, {left} left out: pip install 'lora-bench[bench]'"

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, device, model and settings of this run."""
        choice = self.choice
        return {
            **environment.versions(), **versions_of(*peers.NEEDED),
            "device": environment.device_name(str(self.device)), "processors": os.cpu_count(),
            "threads": torch.get_num_threads(), "precision": self.precision, "model": choice.model,
            "random_weights": self.model.random, "data": choice.data, "batch_size": choice.batch_size,
            "max_length": min(choice.max_length, self.backbone.longest), "seconds": choice.seconds, "repeats": REPEATS,
            "operations_a_token": self.operations[False], "operations_a_token_full": self.operations[True],
            "left_out": self.left_out, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip

    def _work(self, task: str) -> Work:
        work = workload.load(task, self.choice, self.model, self.precision, self.backbone.longest)
        vocabulary = int(self.backbone.config.vocab_size)
        if work.table.max_id >= vocabulary:
            what = f"The tokenizer makes token {work.table.max_id}, the model has {vocabulary} embeddings."
            raise BenchError(what, "Use the tokenizer that belongs to the model.", MISSING)
        return work

    def _measurements(self, work: Work) -> Iterator[Measurement]:
        """Every row to fill, and how; later ones may use what earlier ones found."""
        adapters = [mix for mix in self.choice.mixes if mix != FULL]
        for targets in self.choice.targets if adapters else ():
            yield from self._of_peers(work, targets)
            for mix in adapters:
                for k, auto in self._packs(work, targets):
                    yield self._of_pack(work, targets, mix, k, auto)
        if FULL in self.choice.mixes:
            yield from self._of_peers(work, WHOLE, full=True)
            yield self._of_pack(work, WHOLE, FULL)

    def _of_peers(self, work: Work, targets: str, full: bool = False) -> Iterator[Measurement]:
        """The peers; of those that train the whole model no `processes-N`."""
        if self.left_out:
            return
        peer = peers.Peer(self.model, work, targets, self.device, self.choice.seconds, self.scratch, full)
        row = partial(Row, task=work.task.name, targets=targets, mix=FULL if full else "lora")
        if "trainer" in self.choice.peers:
            yield row("trainer", k=1), partial(self._trainer, peer)
        if "loop" in self.choice.peers:
            yield row("loop", k=1), partial(peers.loop, peer)
        if "processes" in self.choice.peers and not full:
            for count in self.choice.crowds:
                made = row(f"{PROCESSES}{count}", k=count)
                yield made, partial(crowd.run, peer, count, self.workers)

    def _of_pack(self, work: Work, targets: str, mix: str, k: int = 1, auto: bool = False) -> Measurement:
        """Ours, and what the cost model counts for it."""
        cells = workload.cells(work, targets, mix, k, self.backbone.hidden_size)
        terms = calibrate.counted(cells, work.mean_tokens, self.model.location)
        row = Row("packed", work.task.name, targets, mix, k, auto, terms=terms)
        return row, partial(self._packed, cells, work, mix == FULL)

    def _packs(self, work: Work, targets: str) -> list[tuple[int, bool]]:
        """The pack sizes, each once, and whether it is the automatic one."""
        sample = workload.cells(work, targets, "lora", 1, self.backbone.hidden_size)[0]
        automatic = packed.automatic(self.device, sample, self.model.location) if AUTO in self.choice.packs else None
        sizes = [automatic if pack == AUTO else int(pack) for pack in self.choice.packs]
        return [(size, size == automatic) for size in dict.fromkeys(sizes) if size]

    def _packed(self, cells: Sequence[Cell], work: Work, trains: bool) -> Measured:
        encoder = partial(self._load, trains) if trains else lambda: self.backbone
        return packed.run(cells, work, encoder, self.device, self.choice.seconds)

    def _trainer(self, peer: peers.Peer) -> Measured:
        """Trainer with the number of data-loader workers that is fastest here."""
        tried = [peers.trainer(peer, workers) for workers in WORKERS.get(self.device.type, (0,))]
        best = max(tried, key=lambda one: sum(window.steps / window.seconds for window in one.windows))
        if not peer.full:
            self.workers = int(best.settings["dataloader_num_workers"])
        return best

    def _attempt(self, row: Row, action: Callable[[], Measured]) -> None:
        """Fill the row, or note why it cannot be."""
        try:
            row = filled(row, action(), self.operations[row.mix == FULL], float(self.peak["tflops"]))
        except Exception as error:
            row = replace(row, error=reason(error))
        gc.collect()  # outside of the except block, whose traceback keeps what failed alive
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.rows.append(row)
        rate = row.error or f"{row.cell_steps_per_second:.4g} steps·cells/s"
        self.say(f"{tasks.get(row.task).title}, {row.targets}, {row.variant}, {row.mix}, k={row.k}: {rate}")
        self.keep(self.report())


def reason(error: Exception) -> str:
    """An error in a line; a lack of memory always in the same words."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text.lower() for words in _SHORTAGES):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {text}"[:500]


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Torch on so many threads of the processor, for both sides; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(choice: Choice, say: Callable[[str], None], keep: Callable[[Report], object]) -> Report:
    """Measure what was chosen, with a scratch folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as scratch, on_threads(choice.threads):
        return Suite(choice, Path(scratch), say, keep).run()

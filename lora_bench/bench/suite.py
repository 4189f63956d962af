"""All measurements, task by task: the peers and lora-bench in turn, round by round; then the same for `full`.

Rows that are compared share their rounds, so that a machine whose speed changes changes all of them. Everything that
they have built and compiled stays in memory between their turns. A row that lacks memory beside the others is measured
in rounds of its own after them. A measurement that fails becomes a row with an error, and the others go on.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from lora_bench import tasks
from lora_bench.bench import calibrate, packed, peak, peers, processes, workload
from lora_bench.bench.clock import ROUNDS, MemoryMeter, Turns, run_alone
from lora_bench.bench.rows import PROCESSES, BenchRow, fill_row, with_ratios
from lora_bench.bench.settings import AUTO, FULL, BenchSettings
from lora_bench.bench.workload import Workload
from lora_bench.cell import Cell
from lora_bench.data import hub
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder import targets as names
from lora_bench.engine.encoder.backbone import Backbone, prepare_device
from lora_bench.engine.shortage import is_memory
from lora_bench.errors import MISSING, BenchError, described
from lora_bench.provenance import versions_of
from lora_bench.run import environment

OUT_OF_MEMORY = "out of memory"
ALL_WEIGHTS = "all"  # the targets of `full` in the rows
WORKER_COUNTS = {"cpu": (0,), "cuda": (0, 2)}  # data-loader workers of Trainer; the faster number counts


@dataclass(frozen=True)
class BenchReport:
    """What was measured.

    Attributes:
        environment: Versions, device, model and settings.
        peak: The device's matmul rate (`peak.measure`).
        rows: The rows measured so far.
    """

    environment: dict[str, Any]
    peak: dict[str, Any]
    rows: tuple[BenchRow, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the report for the JSON file."""
        rows = [row.as_json() for row in self.rows]
        return {"environment": self.environment, "peak": self.peak, "rows": rows}

    @property
    def failed(self) -> bool:
        """Whether a row has another error than a lack of memory."""
        return any(row.error not in (None, OUT_OF_MEMORY) for row in self.rows)


PlannedRow = tuple[BenchRow, Callable[[], Turns]]


class Suite:
    """A benchmark in progress.

    Args:
        settings: What to measure.
        scratch: A folder for temporary files.
        log: Called with a line of text for each event.
        save: Called with the report after each row.
    """

    def __init__(
        self,
        settings: BenchSettings,
        scratch: Path,
        log: Callable[[str], None],
        save: Callable[[BenchReport], object],
    ) -> None:
        self.settings, self.scratch, self.log, self.save = settings, scratch, log, save
        self.device = torch.device(environment.choose_device(settings.device))
        prepare_device(self.device)
        self.precision = settings.precision or ("bf16" if self.device.type == "cuda" else "float32")
        self.model = workload.prepare_model(settings, scratch)
        self.rows: dict[int, BenchRow] = {}  # what is measured, by its number in the report
        self.workers = 0
        self.encoder_memory = MemoryMeter(self.device)

    def run(self) -> BenchReport:
        """Measure everything.

        Raises:
            BenchError: The model or the data cannot be loaded, or a target matches no weight.
        """
        for targets in self.settings.targets:
            names.resolve(self.backbone.linears(), targets)
        if self.left_out:
            self.log(self.left_out)
        if self.model.random:
            self.log(
                f"'{self.settings.model}' has no weights: both sides train on random ones (the speed is the same)."
            )
        self.log(f"{self.peak['dtype']} matmul peak: {self.peak['tflops']:.4g} TFLOP/s")
        for task in self.settings.tasks:
            work = self._load_workload(task)
            for planned in self._planned_groups(work):
                self._measure(planned)
        return self.report()

    def report(self) -> BenchReport:
        """Return the report on the rows measured so far."""
        return BenchReport(
            self.environment, self.peak, tuple(with_ratios([self.rows[number] for number in sorted(self.rows)]))
        )

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen encoder, loaded once for all packs."""
        with self.encoder_memory.turn():
            return self._load_backbone(trains=False)

    def _load_backbone(self, trains: bool) -> Backbone:
        with hub.hub_mode(self.model.offline):
            return encoders.load(self.model.location, self.device, self.precision, trains, self.model.offline)

    @property
    def _way(self) -> str:
        """How the encoder runs, as `forecast.families` calls it."""
        if self.backbone.fused is not None:
            return "fused"
        return "windows" if self.backbone.padded is None else "padded"

    @cached_property
    def peak(self) -> dict[str, Any]:
        """The device's matmul rate."""
        return peak.measure(self.device, self.precision)

    @cached_property
    def operations(self) -> dict[bool, int]:
        """FLOP per token, by whether the encoder's own weights train."""
        weights = peak.linear_weights(self.backbone.linears().values())
        return {trains: peak.operations_per_token(weights, trains) for trains in (False, True)}

    @cached_property
    def left_out(self) -> str:
        """Why the requested peers are left out; empty if they are not."""
        missing = peers.missing_libraries() if self.settings.peers else []
        if not missing:
            return ""
        left_out, are = ", ".join(self.settings.peers), "is" if len(missing) == 1 else "are"
        return f"{' and '.join(missing)} {are} not installed, {left_out} left out: pip install 'lora-bench[bench]'"

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, device, model and settings of this benchmark."""
        settings = self.settings
        return {
            **environment.versions(),
            **versions_of(*peers.LIBRARIES),
            "device": environment.device_name(str(self.device)),
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "model": settings.model,
            "random_weights": self.model.random,
            "way": self._way,
            "data": str(settings.data),
            "batch_size": settings.batch_size,
            "max_length": min(settings.max_length, self.backbone.longest),
            "seconds": settings.seconds,
            "repeats": ROUNDS,
            "operations_a_token": self.operations[False],
            "operations_a_token_full": self.operations[True],
            "left_out": self.left_out,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _load_workload(self, task: str) -> Workload:
        work = workload.load_workload(task, self.settings, self.model, self.precision, self.backbone.longest)
        vocabulary = int(self.backbone.config.vocab_size)
        if work.table.max_id >= vocabulary:
            what = f"The tokenizer makes token {work.table.max_id}, the model has {vocabulary} embeddings."
            raise BenchError(what, "Use the tokenizer that belongs to the model.", MISSING)
        return work

    def _planned_groups(self, work: Workload) -> Iterator[list[PlannedRow]]:
        """Yield the rows that are compared with each other, each with what measures it."""
        adapter_mixes = [mix for mix in self.settings.mixes if mix != FULL]
        for targets in self.settings.targets if adapter_mixes else ():
            sizes = self._pack_sizes(work, targets)
            packs = [self._packed_row(work, targets, mix, k, auto) for mix in adapter_mixes for k, auto in sizes]
            yield [*self._peer_rows(work, targets), *packs]
        if FULL in self.settings.mixes:
            yield [*self._peer_rows(work, ALL_WEIGHTS, full=True), self._packed_row(work, ALL_WEIGHTS, FULL)]

    def _peer_rows(self, work: Workload, targets: str, full: bool = False) -> Iterator[PlannedRow]:
        """Yield the rows of the peers; there is no `processes-N` that trains the whole model."""
        if self.left_out:
            return
        peer = peers.Peer(self.model, work, targets, self.device, self.settings.seconds, self.scratch, full)
        row = partial(BenchRow, task=work.task.name, targets=targets, mix=FULL if full else "lora")
        if "trainer" in self.settings.peers:
            yield row("trainer", k=1), partial(self._measure_trainer, peer)
        if "loop" in self.settings.peers:
            yield row("loop", k=1), partial(peers.run_loop, peer)
        if "processes" in self.settings.peers and not full:
            for count in self.settings.process_counts:
                yield row(f"{PROCESSES}{count}", k=count), partial(self._measure_processes, peer, count)

    def _packed_row(self, work: Workload, targets: str, mix: str, k: int = 1, auto: bool = False) -> PlannedRow:
        """Return a row of lora-bench, with what the cost model counts for it."""
        cells = workload.make_cells(work, targets, mix, k, self.backbone.hidden_size)
        terms = calibrate.count_terms(cells, work.mean_tokens, self.model.location)
        row = BenchRow("packed", work.task.name, targets, mix, k, auto, terms=terms)
        return row, partial(self._measure_packed, cells, work, mix == FULL)

    def _pack_sizes(self, work: Workload, targets: str) -> list[tuple[int, bool]]:
        """Return each pack size once, and whether it is the automatic one."""
        sample = workload.make_cells(work, targets, "lora", 1, self.backbone.hidden_size)[0]
        automatic = None
        if AUTO in self.settings.packs:
            automatic = packed.automatic_size(self.device, sample, self.model.location)
        sizes = [automatic if pack == AUTO else int(pack) for pack in self.settings.packs]
        return [(size, size == automatic) for size in dict.fromkeys(sizes) if size]

    def _measure_packed(self, cells: Sequence[Cell], work: Workload, trains: bool) -> Turns:
        load_encoder = partial(self._load_backbone, trains) if trains else lambda: self.backbone
        encoder_bytes = 0 if trains else self.encoder_memory.held
        return packed.run(cells, work, load_encoder, self.device, self.settings.seconds, encoder_bytes)

    def _measure_trainer(self, peer: peers.Peer) -> Turns:
        """Measure Trainer with the number of data-loader workers that is fastest here in a trial."""
        workers, *others = WORKER_COUNTS.get(self.device.type, (0,))
        if others:
            trials = {count: run_alone(processes.run(peer, 1, count)) for count in (workers, *others)}
            workers = max(trials, key=lambda count: sum(run.steps / run.seconds for run in trials[count].repeats))
        if not peer.full:
            self.workers = workers
        return (yield from processes.run(peer, 1, workers))

    def _measure_processes(self, peer: peers.Peer, count: int) -> Turns:
        """Measure several Trainers, with the data-loader workers of the one that has begun before them."""
        return (yield from processes.run(peer, count, self.workers))

    def _measure(self, planned: Sequence[PlannedRow]) -> None:
        """Measure rows that are compared; those that lack memory beside the others come again after them."""
        waiting = dict(enumerate(planned, len(self.rows)))
        row, seconds = planned[0][0], len(planned) * self.settings.seconds
        self.log(
            f"{tasks.get(row.task).title}, {row.targets}: {len(planned)} rows in {ROUNDS} rounds, "
            f"at least {seconds:.0f} s; they are saved together"
        )
        while waiting:
            waiting = self._measure_in_rounds(waiting)

    def _measure_in_rounds(self, planned: Mapping[int, PlannedRow]) -> dict[int, PlannedRow]:
        """Measure rows in rounds.

        Args:
            planned: The rows by number.

        Returns:
            Those that lacked memory while others were in it: at least one fewer.
        """
        running: dict[int, Turns] = {}
        waiting: dict[int, PlannedRow] = {}
        with ExitStack() as stack:
            for round_number in range(ROUNDS + 1):  # the first turn builds and warms up
                for number, (row, start) in planned.items():
                    if round_number == 0:
                        running[number] = stack.enter_context(closing(start()))
                    if number not in running:
                        continue
                    ended = self._take_turn(row, running[number])
                    gc.collect()  # not where the error was caught: its traceback keeps the tensors alive
                    if ended is None:
                        continue
                    del running[number]
                    if ended.error == OUT_OF_MEMORY and running:
                        waiting[number] = replace(row, apart=True), start
                    else:
                        self._add(number, ended)
        return waiting

    def _take_turn(self, row: BenchRow, turns: Turns) -> BenchRow | None:
        """Run a measurement on to its next turn; return its row if it has ended or failed."""
        try:
            next(turns)
        except StopIteration as end:
            return fill_row(row, end.value, self.operations[row.mix == FULL], float(self.peak["tflops"]))
        except Exception as error:
            return replace(row, error=describe_error(error))
        return None

    def _add(self, number: int, row: BenchRow) -> None:
        """Add a row to the report."""
        self.rows[number] = row
        rate = row.error or f"{row.cell_steps_per_second:.4g} steps·cells/s"
        self.log(f"{tasks.get(row.task).title}, {row.targets}, {row.variant}, {row.mix}, k={row.k}: {rate}")
        self.save(self.report())


def describe_error(error: Exception) -> str:
    """Return an error in one line; a lack of memory is always `OUT_OF_MEMORY`."""
    return OUT_OF_MEMORY if is_memory(error) else described(error)[:500]


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Limit torch to so many processor threads, for both sides; None leaves the number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count or before, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(settings: BenchSettings, log: Callable[[str], None], save: Callable[[BenchReport], object]) -> BenchReport:
    """Run a benchmark, with a scratch folder that is deleted afterwards.

    Args:
        settings: What to measure.
        log: Called with a line of text for each event.
        save: Called with the report after each row.
    """
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as scratch:
        suite = Suite(settings, Path(scratch), log, save)
        with torch_threads(settings.threads or environment.default_threads(str(suite.device))):
            return suite.run()

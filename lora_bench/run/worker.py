"""Trains packs with torch: each in parts that are resumed together, as large as the device holds."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch

from lora_bench import methods, provenance, tasks
from lora_bench.cell import Cell
from lora_bench.engine import posterior
from lora_bench.engine.adapters import saved
from lora_bench.engine.device_memory import forget_peak, free_bytes
from lora_bench.engine.encoder import head_forms
from lora_bench.engine.encoder.targets import resolve
from lora_bench.engine.memory import SAMPLES, cells_that_fit
from lora_bench.engine.shortage import is_memory
from lora_bench.records.schema import DataInfo, Timing
from lora_bench.run import checkpointing, environment, recording
from lora_bench.run.checkpointing import Checkpointer
from lora_bench.run.inputs import Loader
from lora_bench.run.interfaces import Job, RunContext, Setup, View
from lora_bench.run.outcome import Outcome
from lora_bench.run.pack_run import Build, build_trainer, train_pack
from lora_bench.run.recording import EndedCell

SAFE_SHARE = 0.4  # of the free memory (chosen): a pack whose predicted peak is below it is not measured


class Training:
    """Trains packs, one after another; a `Worker`."""

    def __init__(self, setup: Setup, view: View) -> None:
        self.setup, self.options, self.view = setup, setup.options, view
        self.device = torch.device(self.options.device)
        self.loader = Loader(setup.models, setup.data, self.options, view, self.device)
        self._environment = {**environment.versions(), "device": environment.device_name(self.options.device)}

    def prepare(self, cells: tuple[Cell, ...]) -> None:
        """Load the encoder and the tables.

        Raises:
            BenchError: Exit code 3 if they cannot be loaded; 2 if targets of any cell of the plan match no weight of
                the encoder, and 3 if it has no head that such a cell asks for, before anything is trained on it.
        """
        backbone = self.loader.backbone(cells[0])
        for targets in self.setup.targets.get(cells[0].model, ()):
            resolve(backbone.linears(), targets)
        for head in self.setup.heads.get(cells[0].model, ()):
            head_forms.of_cell(head, backbone.config).activation_of(backbone.config)
        self.loader.tables(cells[0], backbone)

    def train(self, job: Job, context: RunContext) -> Iterator[list[Outcome]]:
        """Train a pack.

        Cells with a checkpoint are resumed together with those that had taken as many steps; the others start at the
        first step.

        Raises:
            BenchError: Exit code 2 if some cells cannot have the posterior of their method, when all others have ended.
        """
        backbone = self.loader.backbone(job.cells[0])
        prepared = self.loader.tables(job.cells[0], backbone)
        refused = posterior.refusals(job.cells, backbone, prepared.train)
        cells = [cell for cell in job.cells if cell.id not in refused]
        fingerprint = self._fingerprint(prepared.info)
        checkpoints = checkpointing.find(job, fingerprint)
        continuing = {cell.start: cell for cell in cells}
        starts = {cell_id: saved.decode(continuing[cell_id], parts) for cell_id, parts in job.starts.items()}
        build = lambda members: build_trainer(members, backbone, prepared, starts)
        by_steps: dict[int, list[Cell]] = {}
        for cell in cells:
            steps = checkpoints[cell.id].entry.steps if cell.id in checkpoints else 0
            by_steps.setdefault(steps, []).append(cell)
        for steps in sorted(by_steps, reverse=True):
            limit = len(cells) if job.halved else self._cells_that_fit(by_steps[steps], job, build)
            for part in _even_parts(by_steps[steps], limit):
                forget_peak(self.device)
                checkpointer = Checkpointer(context, job, fingerprint)
                warn_once = self.loader.warn_once
                ended, timing = train_pack(part, build, checkpoints, checkpointer, self.view, warn_once)
                yield [self._outcome(cell, job, prepared.info, timing) for cell in ended]
        for error in refused.values():
            raise error

    def is_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""
        return is_memory(error)

    def forget(self) -> None:
        """Free the memory that a failed pack took."""
        gc.collect()
        torch.cuda.empty_cache()

    def environment(self) -> dict[str, str]:
        """Return the versions and the device that records name."""
        return self._environment

    def _outcome(self, ended: EndedCell, job: Job, info: DataInfo, timing: Timing) -> Outcome:
        cell, state = ended.progress.cell, ended.progress.state
        task = tasks.of(cell)
        versions = {**self._environment, **provenance.current(cell.method)}
        record = recording.build_record(ended, task, info, timing, job.notes, versions)
        keeps = cell.id in job.needed or (self.options.save and not methods.of(cell).trains_backbone)
        if state is None or not keeps:
            return Outcome(record)
        return Outcome(record, saved.contents(cell, task.num_outputs, state))

    def _fingerprint(self, info: DataInfo) -> dict[str, str]:
        """What the numbers of all cells of a pack depend on besides their code. Kinds of device draw other masks."""
        libraries = provenance.versions_of(*provenance.LIBRARIES)
        return {**libraries, "data": info.fingerprint, "device": self.device.type}

    def _cells_that_fit(self, cells: Sequence[Cell], job: Job, build: Build) -> int:
        """How many of the cells a GPU's memory holds; measured where the forecast is unknown or near the limit."""
        if self.device.type != "cuda" or len(cells) <= SAMPLES[1]:
            return len(cells)
        predicted = job.predicted_bytes
        if predicted is not None and predicted < SAFE_SHARE * free_bytes(self.device):
            return len(cells)
        self.view.stage("measuring memory")
        return cells_that_fit(cells, build, self.device)


def _even_parts(cells: Sequence[Cell], limit: int) -> list[Sequence[Cell]]:
    """The cells in as few parts of at most `limit` as possible, of even sizes."""
    count = -(-len(cells) // limit)
    return [cells[index * len(cells) // count : (index + 1) * len(cells) // count] for index in range(count)]

"""Runs a plan: the driver, which gives packs to an executor and alone writes the results folder.

It owns the folder for as long as it runs (`owner.Owner`). The executor decides where packs train; the queue, in which
order, and what becomes of packs that fail. No torch: the modules that train are imported with the first pack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace

from lora_bench import methods, provenance
from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError, of_the_system
from lora_bench.records import adapters, files
from lora_bench.records.schema import Record
from lora_bench.run import checkpoints
from lora_bench.run.checkpoints import CheckpointManifest
from lora_bench.run.executor import LONGEST_REASON, LocalExecutor
from lora_bench.run.interfaces import Executor, Failure, Job, Options, View
from lora_bench.run.outcome import Outcome, failed_outcome
from lora_bench.run.owner import Owner
from lora_bench.run.plan import Plan
from lora_bench.run.queue import PROBES, Queue, Work
from lora_bench.run.signals import Stopper
from lora_bench.text import counted


class Runner:
    """Runs a plan; the `Driver` of its executor, which by default is this process."""

    def __init__(
        self,
        plan: Plan,
        options: Options,
        view: View,
        stopper: Stopper | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.plan, self.options, self.view = plan, options, view
        self.stopper = stopper or Stopper()
        self.executor = executor or LocalExecutor()
        self.store = plan.store
        self._owner = Owner(options.results, view.warn)
        self._running: dict[int, Work] = {}
        self._jobs = self._published = 0
        self._last: Cell | None = None
        self._cannot_save = False
        # Cells whose adapters are kept, despite --no-save, until others have started from them.
        self._lent: set[str] = set()
        self._has_news = plan.grid.is_staged  # records that may let other cells train

    def run(self) -> list[Record]:
        """Train everything that is to do.

        Returns:
            The records of the whole selection, also of cells that had one before.

        Raises:
            BenchError: Exit code 3 if another process owns the results folder, or if it cannot be written; what was
                there before is unchanged.
            KeyboardInterrupt: A signal came; packs in training are saved.
        """
        try:
            with self._owner:
                try:
                    self.store.begin()
                    self.store.recover()
                    self.store.sweep()
                    with closing(self.executor):
                        self._train_all()
                    self._clean_up()
                except BaseException:
                    with suppress(Exception):  # whatever fails now must not hide why the run ends
                        self._clean_up()
                    raise
                finally:
                    self.store.end()
        except OSError as error:
            if self.options.debug:
                raise
            raise of_the_system(error) from error
        return [self.store.records[cell.id] for cell in self.plan.grid.cells if cell.id in self.store.records]

    def _clean_up(self) -> None:
        """Move what was published to its final folders, rebuild metrics.csv, and remove what dead processes left."""
        self._owner.check()
        self.store.recover()
        self.store.write_csv()
        self.store.sweep()

    def _train_all(self) -> None:
        """Train until nothing is left to do."""
        self.executor.start(self.plan.setup(self.options), self)
        self.queue = Queue(self.plan, self.executor.devices)
        while self._fill():
            self.executor.advance()
        self._adopt_trials()

    def _adopt_trials(self) -> None:
        """Turn cells that were trained for a search into results, where the grid asks for them by now."""
        grid, statuses = self.plan.grid, self.plan.statuses
        adopted = []
        for cell in grid.cells:
            record = self.store.records.get(cell.id)
            if record is None or not record.is_search or grid.entry_of[cell.id].role != "grid":
                continue
            if statuses[cell.id].state != "stale":  # a new file would make its data the newest there are
                result = record.model_copy(update={"search": None})
                search = grid.with_stages(result).search  # what it continues from was written when it was trained
                adopted.append(Outcome(result.model_copy(update={"search": search})))
        if adopted:
            self._write(adopted)

    def _fill(self) -> bool:
        """Give the executor what can train now; whether anything is in training."""
        if self._has_news and not self.plan.is_settled:
            self._advance()
        self._submit()
        if self._has_news and not self._running:
            self._advance()
            self._submit()
        return bool(self._running)

    def _submit(self) -> None:
        """Give the executor as many jobs as it takes."""
        while len(self._running) < self.executor.slots and (work := self.queue.take(self._last)):
            self.stopper.check()
            self._jobs += 1
            self._running[self._jobs] = work
            self._owner.note_training([cell.id for running in self._running.values() for cell in running.cells])
            self.executor.submit(self._job(self._jobs, work))

    def _advance(self) -> None:
        """Let the cells train that waited for others."""
        self.plan = self.plan.advanced(self.queue.busy(self._running.values()))
        self.queue.add(self.plan)
        self._has_news = False
        self._drop_values()
        self.view.staged(self.plan.stages)

    def _drop_values(self) -> None:
        """Remove adapters and whole models that were kept for other cells, once these have ended."""
        for cell in self.plan.grid.cells:
            is_kept = cell.id in self.plan.needed or cell.id not in self.plan.ended
            if not is_kept and (methods.of(cell).trains_backbone or cell.id in self._lent):
                files.remove(self.options.results / adapters.FOLDER / cell.id)
                self._lent.discard(cell.id)

    def _job(self, number: int, work: Work) -> Job:
        record_times, ids = self.store.record_times(), {cell.id for cell in work.cells}
        starts = self._starts(work.cells)
        return Job(
            number=number,
            cells=work.cells,
            halved=work.halved,
            notes=self.plan.grid.notes_for(work.cells[0]),
            record_times={cell_id: record_times[cell_id] for cell_id in ids & record_times.keys()},
            checkpoints=[
                checkpoint
                for checkpoint in checkpoints.read_all(self.options.results)
                if not ids.isdisjoint(checkpoint.unfinished(record_times))
            ],
            predicted_bytes=self.plan.bytes(work.cells),
            starts=starts,
            trained_with={cell_id: self.store.records[cell_id].trained_with for cell_id in starts},
            needed=self.plan.needed & ids,
        )

    def _starts(self, cells: Sequence[Cell]) -> dict[str, Mapping[adapters.Part, bytes]]:
        """The files of what other cells have trained, for those that continue from them."""
        starts: dict[str, Mapping[adapters.Part, bytes]] = {}
        for cell_id in dict.fromkeys(cell.start for cell in cells if cell.start is not None):
            parts = adapters.read_of_cell(self.options.results, cell_id)
            if parts is None:
                folder = self.options.results / adapters.FOLDER / cell_id
                raise BenchError(
                    f"'{folder}' was damaged during the run.", "The same command trains it again.", MISSING
                )
            starts[cell_id] = parts
        return starts

    def check(self) -> None:
        """Check whether the lease of the results folder is already known to be lost; this takes no time."""
        self._owner.guard()

    def save(self, manifest: CheckpointManifest, tensors: bytes) -> None:
        """Write a checkpoint. If that fails, the user is warned once and training continues."""
        results, cell_ids = self.options.results, [cell.id for cell in manifest.cells]
        self._owner.check()
        try:
            checkpoints.save(results, checkpoints.pack_name(self._owner.token, cell_ids), manifest, tensors)
            checkpoints.prune(results, cell_ids, self.store.record_times())
        except OSError as error:
            if not self._cannot_save:
                self.view.warn(f"A pack in training cannot be saved ({error.strerror}); training continues.")
            self._cannot_save = True

    def publish(self, outcomes: Sequence[Outcome]) -> None:
        """Write the records and adapters of cells that have ended."""
        outcomes = [replace(outcome, record=self.plan.grid.with_stages(outcome.record)) for outcome in outcomes]
        self._write(outcomes)
        records = [outcome.record for outcome in outcomes]
        checkpoints.prune(self.options.results, {record.id for record in records}, self.store.record_times())
        self._has_news = self.plan.grid.is_staged
        if not self.options.save:
            self._lent |= {outcome.record.id for outcome in outcomes if outcome.adapter}
        self.view.done(records)

    def _write(self, outcomes: Sequence[Outcome]) -> None:
        name, self._published = f"{self._owner.token}-{self._published}", self._published + 1
        try:
            staged = self.store.stage(outcomes)
            try:
                self._owner.check()
                self.store.publish(staged, name)
            except BaseException:
                files.remove(staged)
                raise
        except OSError:
            self._owner.check()  # if that was why, say so
            raise

    def renewed(self, job: Job) -> Job | None:
        """Return what is left of a job whose worker is gone, with its newest checkpoints; None if nothing is."""
        work = self._running[job.number]
        left = self.queue.untrained(work.cells)
        return self._job(job.number, replace(work, cells=left)) if left else None

    def finish(self, job: Job, failure: Failure | None) -> None:
        """Note that a job has ended. If it failed, continue with parts of it, or without it."""
        work = self._running.pop(job.number)
        self._last = job.cells[0]
        left = self.queue.untrained(work.cells) if failure is not None else ()
        if failure is not None and len(left) == 1:
            self._fail(left, failure)
        elif failure is not None and left:
            self.view.warn(
                f"A pack of {counted(len(left), 'cell')} failed ({failure.reason[:120]}); continuing with parts of it."
            )
        given_up = self.queue.ended(work, failure)
        if given_up is not None and failure is not None:
            cells, cause = given_up
            self.view.warn(f"{PROBES} cells of the pack fail alike, each alone; the other {len(cells)} are given up.")
            reason = f"given up, as {PROBES} cells of its pack failed alike: {cause}"[:LONGEST_REASON]
            self._fail(cells, Failure("failed", reason, failure.environment))

    def _fail(self, cells: Sequence[Cell], failure: Failure) -> None:
        """Publish records of cells that could not be trained."""
        self.publish(
            [
                failed_outcome(
                    cell,
                    failure.status,
                    failure.reason,
                    self.plan.grid.notes_for(cell),
                    {**failure.environment, **provenance.current(cell.method)},
                )
                for cell in cells
            ]
        )

"""Runs a plan: claims the cells of a pack, trains them, publishes the outcomes, and continues when a pack fails.

Where memory runs out, a pack is halved; results do not depend on the pack, so no number changes. After any other error
three cells of the pack are tried alone: if all of them fail with the same error, the pack is given up with one message;
else it is halved until the cell at fault is alone. Several processes may run one plan in one folder. No torch: what
trains is imported when the first pack does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError, of_the_system
from lora_bench.records import files
from lora_bench.records.schema import Record
from lora_bench.run import checkpoints
from lora_bench.run.interfaces import Failure, Options, RunContext, View, Worker
from lora_bench.run.leases import Holder, Lease, LeaseLostError
from lora_bench.run.outcome import Outcome, failure
from lora_bench.run.plan import Plan
from lora_bench.run.signals import Stopper
from lora_bench.text import counted

PROBES = 3  # cells of a failed pack that are tried alone
CLEAN_UP_SECONDS = 2.0  # to wait for the lock when the run ends by an error or a signal (chosen)
LONGEST_REASON = 500  # characters of an error that a record keeps


class Runner:
    """Runs a plan.

    Args:
        plan: The plan.
        options: Where and how to run.
        view: What shows progress.
        stopper: Whether a signal has asked to stop.
        worker: What trains packs; by default, `worker.Training`.

    Attributes:
        held: After `run`, the cells that other processes had claimed at the end, by id.
    """

    def __init__(
        self, plan: Plan, options: Options, view: View, stopper: Stopper | None = None, worker: Worker | None = None
    ) -> None:
        self.plan, self.options, self.view = plan, options, view
        self.stopper = stopper or Stopper()
        self.store = plan.store
        self.held: dict[str, Holder] = {}
        self._lease = Lease(options.results)
        self._published = 0
        self._worker = worker

    @property
    def worker(self) -> Worker:
        """What trains packs; torch is imported with it."""
        if self._worker is None:
            from lora_bench.run.worker import Training

            self._worker = Training(self.plan, self.options, self.view)
        return self._worker

    def run(self) -> list[Record]:
        """Train everything that is to do.

        Returns:
            The records of the whole selection, also of cells that had one before.

        Raises:
            BenchError: Exit code 3 if the results folder cannot be written; what was there before is unchanged.
            KeyboardInterrupt: A signal came; the pack in training is saved.
        """
        try:
            while not self._run_until_done():
                self.view.warn("This process was suspended so long that others took its cells over; it continues.")
        except OSError as error:
            if self.options.debug:
                raise
            raise of_the_system(error) from error
        return [self.store.records[cell.id] for cell in self.plan.grid.cells if cell.id in self.store.records]

    def _run_until_done(self) -> bool:
        """Run what is left under a new lease; False if that was lost on the way."""
        self._lease = Lease(self.options.results)
        with self._lease:
            try:
                self._clean_up()
                while self._run_all_packs():
                    pass
                self._clean_up()
            except LeaseLostError:
                return False
            except BaseException:
                with suppress(Exception):  # whatever fails now must not hide why the run ends
                    self._clean_up(patience=CLEAN_UP_SECONDS)
                raise
        return True

    def _clean_up(self, patience: float | None = None) -> None:
        """Move what dead processes published, rebuild metrics.csv, remove what they left if no other is alive."""
        with self._lease.locked(patience):
            self._lease.check()
            self.store.recover()
            self.store.write_csv()
            self._lease.others()
            if self._lease.alone():
                self.store.sweep()

    def _run_all_packs(self) -> bool:
        """Run every pack once; whether to try again those that other processes held."""
        self.held, has_claimed = {}, False
        for pack in self.plan.packs:
            cells = self._claim(pack)
            if cells:
                self.stopper.check()
                self._run_pack(cells)
                has_claimed = True
        return has_claimed and bool(self.held)

    def _claim(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Claim those of a pack that nobody has trained since the plan was made and nobody holds."""
        if not self._untrained(cells):
            return ()
        with self._lease.locked():
            self._lease.check()
            self.store.recover()
            untrained, others = self._untrained(cells), self._lease.others()
            self.held |= {cell.id: others[cell.id] for cell in untrained if cell.id in others}
            claimed = tuple(cell for cell in untrained if cell.id not in others)
            self._lease.claim([cell.id for cell in claimed])
        return claimed

    def _untrained(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """The cells that have got no record since the plan was made; not those whose record cannot be read now."""
        records, known, unreadable = self.store.records, self.plan.known, self.store.unreadable
        return tuple(
            cell
            for cell in cells
            if cell.id not in unreadable and records.get(cell.id, known.get(cell.id)) is known.get(cell.id)
        )

    def _run_pack(self, cells: tuple[Cell, ...], halved: int = 0, is_probed: bool = False) -> None:
        """Train a pack. If it fails, continue with parts of it, or without it.

        Args:
            cells: The cells of the pack.
            halved: How often the pack was cut in two because memory ran out.
            is_probed: Whether single cells of the pack were tried already.
        """
        self.worker.prepare(cells)
        self.stopper.check()
        failed = self._attempt(cells, halved)
        left = self._untrained(cells)
        if failed is None or not left:
            return
        if len(left) == 1:
            self._publish([self._failed_outcome(left[0], failed)])
            return
        self.view.warn(
            f"A pack of {counted(len(left), 'cell')} failed ({failed.reason[:120]}); continuing with parts of it."
        )
        if failed.status == "failed" and not is_probed:
            left = self._probe(left)
        middle, more = len(left) // 2, int(failed.status == "oom")
        for half in filter(None, (left[:middle], left[middle:])):
            self._run_pack(half, halved + more, is_probed or not more)

    def _attempt(self, cells: tuple[Cell, ...], halved: int) -> Failure | None:
        """Train and publish a pack; why it failed, if it did."""
        context = RunContext(
            results=self.options.results,
            token=self._lease.token,
            record_times=self.store.record_times(),
            stopper=self.stopper,
            check_lease=self._lease.guard,
            warn=self.view.warn,
        )
        try:
            for outcomes in self.worker.train(cells, halved, context):
                self._publish(outcomes)
                self.stopper.release()
            return None
        except BaseException as error:  # a method of the user's may raise anything, SystemExit too
            if self.options.debug or isinstance(error, OSError | LeaseLostError | KeyboardInterrupt | GeneratorExit):
                raise
            if isinstance(error, BenchError) and error.code == MISSING:
                raise
            reason = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))[:LONGEST_REASON]
            failed = Failure("oom" if self.worker.is_memory(error) else "failed", reason)
        finally:
            self.stopper.release()
        self.worker.forget()  # outside of the except block, whose traceback keeps the failed pack alive
        return failed

    def _probe(self, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
        """Try three cells alone, far from each other; the cells that are left, none if the three fail alike."""
        if len(cells) <= PROBES:
            return cells
        for index in sorted({0, len(cells) // 2, len(cells) - 1}):
            self._run_pack(cells[index : index + 1], is_probed=True)
        left = self._untrained(cells)
        records = self.store.records
        tried = [records[cell.id] for cell in cells if cell.id in records and cell not in left]
        reasons = {record.reason if record.status == "failed" else None for record in tried}
        if len(reasons) > 1 or None in reasons:
            return left
        self.view.warn(f"{PROBES} cells of the pack fail alike, each alone; the other {len(left)} are given up.")
        reason = f"given up, as {PROBES} cells of its pack failed alike: {reasons.pop()}"[:LONGEST_REASON]
        self._publish([self._failed_outcome(cell, Failure("failed", reason)) for cell in left])
        return ()

    def _failed_outcome(self, cell: Cell, failed: Failure) -> Outcome:
        notes = self.plan.grid.notes_for(cell)
        return failure(cell, failed.status, failed.reason, notes, self.worker.environment(cell))

    def _publish(self, outcomes: Sequence[Outcome]) -> None:
        """Publish the outcomes of cells, unless the lease is lost."""
        name, self._published = f"{self._lease.token}-{self._published}", self._published + 1
        staged = self.store.stage(name, outcomes)
        try:
            with self._lease.locked():
                self._lease.check()
                self.store.publish(staged, name)
        except BaseException:
            files.remove(staged)
            raise
        records = [outcome.record for outcome in outcomes]
        checkpoints.prune(self.options.results, {record.id for record in records}, self.store.record_times())
        self.view.done(records)

"""From a plan to records: claim the cells of a pack, train them, publish what becomes of them, go on when one fails.

Memory that runs out halves a pack; results do not depend on the pack, so no number changes. Another error is looked
for in three cells of the pack, each alone: if they fail alike, the pack is given up with one message, else it is halved
until the cell at fault is alone. Several processes may run one plan in one folder. No torch: what trains is imported
when the first pack does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError, of_the_system
from lora_bench.records import files
from lora_bench.records.schema import Record
from lora_bench.run import checkpoints
from lora_bench.run.checkpoints import Place
from lora_bench.run.interfaces import Failure, Options, View, Worker
from lora_bench.run.leases import Holder, Lease, LeaseLostError
from lora_bench.run.outcome import Outcome, failure
from lora_bench.run.plan import Plan
from lora_bench.run.signals import Stopper
from lora_bench.text import counted

PROBES = 3  # cells of a failed pack that are tried alone


class Runner:
    """Runs a plan. After `run`, `held` are the cells that other processes had claimed at the end."""

    def __init__(
        self, plan: Plan, options: Options, view: View, stopper: Stopper | None = None, worker: Worker | None = None
    ) -> None:
        self.plan, self.options, self.view = plan, options, view
        self.stopper = stopper or Stopper()
        self.shelf = plan.shelf
        self.held: dict[str, Holder] = {}
        self._lease = Lease(options.results)
        self._published = 0
        self._worker = worker

    @property
    def worker(self) -> Worker:
        """What trains; torch is imported with it."""
        if self._worker is None:
            from lora_bench.run.worker import Training

            self._worker = Training(self.plan, self.options, self.view)
        return self._worker

    def run(self) -> list[Record]:
        """Train everything that is to do; the records of the whole selection, done before or now.

        Raises:
            BenchError: exit code 3 if the results folder cannot be written; what was there is as it was.
            KeyboardInterrupt: a signal came; the pack that trained is saved.
        """
        try:
            while not self._run_until_done():
                self.view.warn("This process was suspended so long that others took its cells over; it goes on.")
        except OSError as error:
            if self.options.debug:
                raise
            raise of_the_system(error) from error
        return [self.shelf.records[cell.id] for cell in self.plan.grid.cells if cell.id in self.shelf.records]

    def _run_until_done(self) -> bool:
        """Run what is left under a new lease; no if that was lost on the way."""
        self._lease = Lease(self.options.results)
        with self._lease:
            try:
                self._tidy()
                while self._pass():
                    pass
                self._tidy()
            except LeaseLostError:
                return False
            except BaseException:
                with suppress(OSError, BenchError, LeaseLostError):
                    self._tidy(patience=2.0)
                raise
        return True

    def _tidy(self, patience: float | None = None) -> None:
        """Bring what dead processes published, rebuild metrics.csv, remove what they left if no other is alive."""
        with self._lease.locked(patience):
            self._lease.check()
            self.shelf.recover()
            self.shelf.write_csv()
            self._lease.others()
            if self._lease.alone():
                self.shelf.sweep()

    def _pass(self) -> bool:
        """Every pack once; whether it is worth another pass, for what others held."""
        self.held, claimed = {}, False
        for cells in self.plan.packs:
            mine = self._claim(cells)
            if mine:
                self.stopper.check()
                self._run_pack(mine)
                claimed = True
        return claimed and bool(self.held)

    def _claim(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Those of a pack that nobody has trained since the plan was made and nobody holds."""
        if not self._left(cells):
            return ()
        with self._lease.locked():
            self._lease.check()
            self.shelf.recover()
            left, others = self._left(cells), self._lease.others()
            self.held |= {cell.id: others[cell.id] for cell in left if cell.id in others}
            mine = tuple(cell for cell in left if cell.id not in others)
            self._lease.claim([cell.id for cell in mine])
        return mine

    def _left(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """The cells whose record is still the one that the plan saw; not those of which it cannot be read now."""
        records, known, unsure = self.shelf.records, self.plan.known, self.shelf.unreadable
        return tuple(
            cell
            for cell in cells
            if cell.id not in unsure and records.get(cell.id, known.get(cell.id)) is known.get(cell.id)
        )

    def _run_pack(self, cells: tuple[Cell, ...], halved: int = 0, looked: bool = False) -> None:
        """Train a pack; go on without it, or with parts of it, if it fails."""
        self.worker.prepare(cells)
        self.stopper.check()
        failed = self._attempt(cells, halved)
        left = self._left(cells)
        if failed is None or not left:
            return
        if len(left) == 1:
            self._publish([self._failure(left[0], failed)])
            return
        self.view.warn(
            f"A pack of {counted(len(left), 'cell')} failed ({failed.reason[:120]}); going on with parts of it."
        )
        if failed.status == "failed" and not looked:
            left = self._look(left)
        middle, more = len(left) // 2, int(failed.status == "oom")
        for half in filter(None, (left[:middle], left[middle:])):
            self._run_pack(half, halved + more, looked or not more)

    def _attempt(self, cells: tuple[Cell, ...], halved: int) -> Failure | None:
        """Train and publish a pack; why it failed, if it did."""
        place = Place(
            self.options.results, self._lease.token, self.shelf.written(), self.stopper, self._lease.guard,
            self.view.warn,
        )  # fmt: skip
        try:
            for outcomes in self.worker.train(cells, halved, place):
                self._publish(outcomes)
                self.stopper.release()
            return None
        except BaseException as error:  # a method of the user's may raise anything, SystemExit too
            if self.options.debug or isinstance(error, OSError | LeaseLostError | KeyboardInterrupt | GeneratorExit):
                raise
            if isinstance(error, BenchError) and error.code == MISSING:
                raise
            reason = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))[:500]
            failed = Failure("oom" if self.worker.is_memory(error) else "failed", reason)
        finally:
            self.stopper.release()
        self.worker.forget()  # outside of the except block, whose traceback keeps the failed pack alive
        return failed

    def _look(self, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
        """Try three cells alone, far from each other; the cells that are left to try, none if the three fail alike."""
        if len(cells) <= PROBES:
            return cells
        for place in sorted({0, len(cells) // 2, len(cells) - 1}):
            self._run_pack(cells[place : place + 1], looked=True)
        left = self._left(cells)
        tried = [self.shelf.records[cell.id] for cell in cells if cell.id in self.shelf.records and cell not in left]
        reasons = {record.reason if record.status == "failed" else None for record in tried}
        if len(reasons) > 1 or None in reasons:
            return left
        self.view.warn(f"{PROBES} cells of the pack fail alike, each alone; the other {len(left)} are given up.")
        failed = Failure("failed", f"given up, as {PROBES} cells of its pack failed alike: {reasons.pop()}"[:500])
        self._publish([self._failure(cell, failed) for cell in left])
        return ()

    def _failure(self, cell: Cell, failed: Failure) -> Outcome:
        notes = self.plan.grid.notes_for(cell)
        return failure(cell, failed.status, failed.reason, notes, self.worker.environment(cell))

    def _publish(self, outcomes: Sequence[Outcome]) -> None:
        """Let what has ended count, unless the lease is lost."""
        name, self._published = f"{self._lease.token}-{self._published}", self._published + 1
        staged = self.shelf.stage(name, outcomes)
        try:
            with self._lease.locked():
                self._lease.check()
                self.shelf.publish(staged, name)
        except BaseException:
            files.remove(staged)
            raise
        records = [outcome.record for outcome in outcomes]
        checkpoints.prune(self.options.results, {record.id for record in records}, self.shelf.written())
        self.view.done(records)

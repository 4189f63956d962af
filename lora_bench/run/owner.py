"""The one process that writes a results folder.

`DIR/owner.lock` is a lease of filelock: its owner touches it, and it is over when nobody has touched it for `TERM`
seconds, or at once when its owner was on this machine and has died. It needs no locks of the file system, so it also
works over a network. `DIR/owner.json` names the owner and the cells that are in training.

A lease does not stop an owner that was suspended for longer than `TERM` and wakes up. What it publishes is therefore
moved out of a folder that the next owner removes first (`publish.RecordStore.begin`), and its lease is checked before.
No torch.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout
from pydantic import BaseModel, ConfigDict

from lora_bench.errors import MISSING, BenchError
from lora_bench.records import files
from lora_bench.records.store import refuse_links
from lora_bench.run import signals

# All three were chosen.
TERM = 90.0  # seconds without a sign of life after which another process takes over
RENEW = 10.0  # seconds between two signs of life
POLL = 0.2  # seconds between two looks at a lease that somebody else has
LOCK, HOLDER = "owner.lock", "owner.json"


class Holder(BaseModel):
    """What is known of an owner. `boot` names the kernel that it runs under."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    token: str
    host: str
    boot: str
    pid: int
    since: float
    cells: tuple[str, ...] = ()

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {began}"


class Owner:
    """This process as the owner of a results folder, as a context.

    Args:
        results: The results folder.
        warn: Warns the user that the process waits for a lease to end.

    Attributes:
        token: What names this owner in files; different for each.
    """

    def __init__(self, results: Path, warn: Callable[[str], None] | None = None) -> None:
        self.results, self.warn = results, warn
        self.token = secrets.token_hex(6)
        self._lock, self._holder_file = results / LOCK, results / HOLDER
        self._first_seen: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        """Become the owner.

        Raises:
            BenchError: Exit code 3 if another process is.
            OSError: The folder cannot be written.
        """
        refuse_links(self.results)  # whatever is moved or removed, it is by an owner
        self.results.mkdir(parents=True, exist_ok=True)
        # thread_local=False: the lease's own thread and this one look at one claim.
        self._lease = SoftFileLease(
            self._lock, lease_duration=TERM, heartbeat_interval=min(RENEW, TERM / 4), thread_local=False
        )
        try:
            with files.naming(self._lock):
                self._acquire()
            self._holder = Holder(
                token=self.token, host=platform.node(), boot=_boot(), pid=os.getpid(), since=time.time()
            )
            self.note_training(())
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _acquire(self) -> None:
        # An interrupt within `acquire` could leave the file of a lease that nobody has: a signal only ends the waiting.
        stopper = signals.current()
        stopper.hold()
        try:
            self._lease.acquire(
                TERM + 2 * POLL, poll_interval=POLL, cancel_check=lambda: stopper.asked or self._has_owner()
            )
        except (Timeout, LeaseSettingsMismatch):
            lease = self._lease.owner
            unnamed = "another process" if lease is None else f"process {lease.pid} on {lease.hostname}"
            raise _in_use(self.results, _read(self._holder_file) or unnamed) from None
        finally:
            stopper.release()

    def _has_owner(self) -> bool:
        """Whether the process that has the lease shows a sign of life."""
        try:
            status = self._lock.lstat()
        except OSError:
            return False  # it has just gone
        if self._first_seen is None:
            holder = _read(self._holder_file)
            if holder is not None and _runs_here(holder):
                return True
            self._first_seen = status.st_mtime_ns, time.monotonic()
            seconds = RENEW if status.st_size == 0 else TERM
            if self.warn is not None:
                name = holder or "The owner of the results folder"
                self.warn(f"{name} may have died: waiting up to {seconds:.0f} s for a sign of life.")
        if status.st_size == 0 and time.monotonic() - self._first_seen[1] > RENEW:
            self._lease.force_break()  # its process was killed between creating it and writing its name
        return status.st_mtime_ns != self._first_seen[0]

    def _leave(self) -> None:
        if not self._is_lost():
            files.remove(self._holder_file)
        with files.naming(self._lock):
            self._lease.release(force=True)

    def _is_lost(self) -> bool:
        """Whether another process has the lease now, or none."""
        owner = self._lease.owner
        return self._lease.compromise is not None or owner is None or owner.token != self._lease.token

    def check(self) -> None:
        """Check on the disk whether this process is still the owner.

        Raises:
            BenchError: Exit code 3 if it is not.
        """
        if self._is_lost():
            raise self._lost()

    def guard(self) -> None:
        """Check whether the lease is already known to be lost. This takes no time, as the disk is not read.

        Raises:
            BenchError: Exit code 3 if it is.
        """
        if self._lease.compromise is not None:
            raise self._lost()

    def _lost(self) -> BenchError:
        what = f"This process was suspended so long that another one took the results folder '{self.results}' over"
        return BenchError(f"{what}.", "Give the same command again when that has ended.", MISSING)

    def note_training(self, cells: Collection[str]) -> None:
        """Write down which cells are in training now, for those who look at the folder."""
        self._holder = self._holder.model_copy(update={"cells": tuple(cells)})
        files.write_atomically(self._holder_file, self._holder.model_dump_json().encode())


def current(results: Path) -> Holder | None:
    """Return the owner of a results folder, for those who only look: by this machine's clock; None if there is none."""
    holder = _read(results / HOLDER)
    try:
        age = time.time() - (results / LOCK).lstat().st_mtime
    except OSError:
        return None
    if holder is None or age > TERM or (holder.boot == _boot() and not _runs_here(holder)):
        return None
    return holder


def refuse_if_in_use(results: Path) -> None:
    """Refuse a results folder whose owner is a living process of this machine; nothing is written or waited for.

    Raises:
        BenchError: Exit code 3.
    """
    holder = current(results)
    if holder is not None and _runs_here(holder):
        raise _in_use(results, holder)


def _in_use(results: Path, holder: Holder | str) -> BenchError:
    what = f"The results folder '{results}' is in use by {holder}."
    return BenchError(what, "Wait until that has ended, or give another --results.", MISSING)


def _read(path: Path) -> Holder | None:
    try:
        return Holder.model_validate_json(files.read_file(path, follow=False))
    except (OSError, ValueError):
        return None


def _runs_here(holder: Holder) -> bool:
    """Whether the process is of this machine and alive."""
    if holder.boot != _boot() or holder.pid < 1:
        return False
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # it is another user's
    return True


@cache
def _boot() -> str:
    """What names the running kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()

"""Several processes on one results folder: who trains which cells.

A process has a lease: `DIR/leases/<token>.json` names its host, its id and the cells that it has claimed, and a thread
touches the file while the process lives. All claims are made, and all results are published, under one file lock. A
lease is over when it was not touched for `TERM` seconds by the file system's clock, or at once when its owner was on
this machine and holds its own lock no more. Who claims next removes it; an owner that wakes later finds its lease gone,
so what it has trained is refused. No torch.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from lora_bench.errors import MISSING, BenchError
from lora_bench.records import files
from lora_bench.records.store import refuse_links

try:
    import fcntl
except ImportError:  # on Windows, where filelock has other locks
    fcntl = None  # type: ignore[assignment]

TERM = 90.0  # seconds without a sign of life
RENEW = 10.0
_TOKEN = re.compile(r"[0-9a-f]+")
PATIENCE = 300.0  # seconds to wait for the lock, which is held while a pack is published


class Holder(BaseModel):
    """What a lease says. `boot` tells whether its owner runs, or ran, under this very kernel."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    token: str
    host: str
    boot: str
    pid: int
    cells: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class LeaseLostError(Exception):
    """This process was suspended so long that others have taken its cells over."""


@dataclass(frozen=True)
class _Sign:
    """A lease as found: what it says, and when it was last touched."""

    path: Path
    holder: Holder
    touched: float

    @property
    def lock(self) -> Path:
        return self.path.with_suffix(".lock")


class Lease:
    """This process's lease, as a context: entered it has no cells, left it is gone."""

    def __init__(self, results: Path, term: float | None = None) -> None:
        self.folder = results / "leases"
        self.term = TERM if term is None else term
        self.holder = Holder(token=secrets.token_hex(6), host=platform.node(), boot=_boot(), pid=os.getpid())
        self.path = self.folder / f"{self.holder.token}.json"
        self.lost = False
        self._all = FileLock(self.folder / "all.lock", timeout=PATIENCE)
        self._own = FileLock(self.path.with_suffix(".lock"), timeout=PATIENCE)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    @property
    def token(self) -> str:
        """What tells this lease from all others."""
        return self.holder.token

    def __enter__(self) -> Self:
        refuse_links(self.folder.parent)  # whatever is moved or removed, it is under a lease
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with files.naming(Path(self._own.lock_file)):
                _try_locks(self.folder)
                self._own.acquire()
            with self.locked():  # who is alone under the lock has no one beginning beside it
                self._write()
            self._thread.start()  # waits for the thread, so a signal often comes here
        except BaseException:
            self._over.set()
            if self._thread.is_alive():
                self._thread.join()
            self._own.release()
            self._remove(self.path)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        try:
            with files.naming(Path(self._own.lock_file)):
                self._own.release()
        finally:
            self._remove(self.path)

    @contextmanager
    def locked(self, patience: float | None = None) -> Iterator[None]:
        """Alone on the folder, among all processes. `patience`: seconds to wait at most.

        Raises:
            BenchError: exit code 3 if another process keeps the lock.
        """
        path = Path(self._all.lock_file)
        try:
            with files.naming(path):
                self._all.acquire(patience)
        except Timeout:
            what = f"The results folder '{self.folder.parent}' is locked by a process that does not go on."
            raise BenchError(
                what, "End it (perhaps it is stopped), then run the same command again.", MISSING
            ) from None
        try:
            yield
        finally:
            with files.naming(path):
                self._all.release()

    def check(self) -> None:
        """Under the lock: whether the lease still counts.

        Raises:
            LeaseLostError: it was taken over.
        """
        if self.lost or not self.path.exists():
            self.lost = True
            raise LeaseLostError

    def guard(self) -> None:
        """At any time, and cheap: what is known of the lease."""
        if self.lost:
            raise LeaseLostError

    def claim(self, cells: Collection[str]) -> None:
        """Under the lock: these cells, and no others, are this process's now."""
        self.check()
        self.holder = self.holder.model_copy(update={"cells": tuple(cells)})
        self._write()

    def others(self) -> dict[str, Holder]:
        """Under the lock: the cells that other processes hold; leases that are over are removed."""
        found: dict[str, Holder] = {}
        now = self._now()
        for sign in signs(self.folder):
            if sign.path == self.path:
                continue
            if now - sign.touched > self.term or _has_ended(sign):
                self._remove(sign.path)
            else:
                found |= dict.fromkeys(sign.holder.cells, sign.holder)
        self._remove_orphans()
        return found

    def _remove_orphans(self) -> None:
        """Locks of processes that died before they had a lease."""
        ours = {Path(self._all.lock_file), Path(self._own.lock_file)}
        for lock in set(self.folder.glob("*.lock")) - ours:
            if _TOKEN.fullmatch(lock.stem) and not lock.with_suffix(".json").exists() and _is_free(lock):
                files.remove(lock)

    def alone(self) -> bool:
        """Under the lock, after `others`: whether no other process has a lease."""
        return [sign.path for sign in signs(self.folder)] in ([], [self.path])

    def _now(self) -> float:
        """The file system's time: that of other hosts may differ."""
        files.touch(self.path)
        return self.path.stat().st_mtime

    def _write(self) -> None:
        files.write_atomically(self.path, self.holder.model_dump_json().encode())

    def _remove(self, path: Path) -> None:
        files.remove(path)
        files.remove(path.with_suffix(".lock"))

    def _renew(self) -> None:
        while not self._over.wait(min(RENEW, self.term / 4)):
            try:
                files.touch(self.path)
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:
                continue  # it may go better next time; if not, the lease runs out, which is noticed


def signs(folder: Path) -> list[_Sign]:
    """Every lease in the folder, over or not."""
    found = []
    for path in files.listing(folder):
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        try:
            with files.opened(path, follow=False) as file:  # over a network an open file tells a fresh time
                touched = os.fstat(file.fileno()).st_mtime
                found.append(_Sign(path, Holder.model_validate_json(file.readall()), touched))
        except (OSError, ValueError):
            continue
    return found


def holders(results: Path) -> dict[str, Holder]:
    """The cells that other processes hold, for those who only look: by this machine's clock."""
    alive = [
        sign.holder for sign in signs(results / "leases") if time.time() - sign.touched < TERM and not _has_ended(sign)
    ]
    return {cell: holder for holder in alive for cell in holder.cells}


def _has_ended(sign: _Sign) -> bool:
    """Whether the owner is of this machine and holds its lock no more."""
    return sign.holder.boot == _boot() and (not sign.lock.exists() or _is_free(sign.lock))


def _try_locks(folder: Path) -> None:
    """See that the file system has locks: where it has none, filelock takes a file that is there for a held lock.

    Raises:
        OSError: it has none.
    """
    if fcntl is not None:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_free(lock: Path) -> bool:
    """Whether nobody holds a lock; where that cannot be tried, somebody does."""
    probe = FileLock(lock, timeout=0)
    try:
        _try_locks(lock.parent)
        probe.acquire()
    except OSError:
        return False
    probe.release()
    return True


@cache
def _boot() -> str:
    """What names the running kernel: processes of one boot see each other's locks at once."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()

"""The records of a results folder, shared with other processes: read again where they changed, published by packs.

What a pack has trained is written under `DIR/pending`, then one rename makes it count; moving it to its places and
rebuilding metrics.csv follow from it, by whoever has the lock next if this process dies. So the cells of a pack are
recorded all or none, and a row of metrics.csv is lost to nobody. No torch.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lora_bench.records import files
from lora_bench.records.schema import Record
from lora_bench.records.store import (
    Loaded,
    UnreadableError,
    archive_stamp,
    make_room,
    read_archive,
    read_record,
    record_text,
    unusable,
    write_csv,
)
from lora_bench.run import checkpoints
from lora_bench.run.outcome import Outcome

CSV_SHARE = 20  # a large metrics.csv is not rebuilt with every pack, but always at the end of a run
_PACK = re.compile(r"[0-9a-f]+-[0-9]+")  # a lease's token and a number, as they are given to `stage`
_CELL = re.compile(r"[0-9a-f]{12}")
Stamp = tuple[int, int, int]  # of a file: inode, bytes, time


class Shelf:
    """The records under a results folder, as last looked at.

    `unreadable`: ids of records that the system could not read. They may be sound: their cells are left alone.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self._archived: dict[str, Record] = {}
        self._archive: Stamp | None = None
        self._damaged: tuple[tuple[Path, str], ...] = ()
        self.records: dict[str, Record] = {}
        self.broken: dict[Path, str] = {}
        self.unreadable: set[str] = set()
        self._stamps: dict[str, Stamp] = {}
        self._told = self._telling = 0.0  # when metrics.csv was written, and the seconds that it took
        self.refresh()

    def written(self) -> dict[str, int]:
        """When each record was written (nanoseconds)."""
        return dict.fromkeys(self._archived, 0) | {cell: stamp[2] for cell, stamp in self._stamps.items()}

    def loaded(self) -> Loaded:
        """What the folder holds, as `read_records` tells it."""
        records = tuple(self.records[cell] for cell in sorted(self.records))
        unreadable = frozenset(self._path(cell) for cell in self.unreadable)
        return Loaded(records, tuple(sorted(self.broken.items())), unreadable)

    def refresh(self) -> None:
        """Look again at the files that have come or changed since, and at those that could not be read."""
        while True:
            before = archive_stamp(self.results)
            if before != self._archive:
                self._read_archive()
                self._archive = before
            self._refresh_cells()
            if archive_stamp(self.results) == before:  # else records may have moved into it meanwhile
                return

    def _read_archive(self) -> None:
        """Read the archive; a record that was known before stays the object that it was."""
        archived = read_archive(self.results)
        self._damaged = archived.broken
        known = ((record, self.records.get(record.id)) for record in archived.records)
        self._archived = {record.id: old if old == record else record for record, old in known}

    def _refresh_cells(self) -> None:
        stamps = _stamps(self.results / "cells")
        changed = {cell for cell, stamp in stamps.items() if self._stamps.get(cell) != stamp}
        kept = {cell: self.records[cell] for cell in stamps.keys() - changed}
        self.records = {cell: record for cell, record in self._archived.items() if cell not in stamps} | kept
        self.broken, self.unreadable = dict(self._damaged), set()
        for cell in sorted(changed):
            self._read(cell)
        self._stamps = {cell: stamp for cell, stamp in stamps.items() if cell in self.records}

    def _path(self, cell: str) -> Path:
        return self.results / "cells" / f"{cell}.json"

    def _read(self, cell: str) -> None:
        try:
            self.records[cell] = read_record(self._path(cell))
        except ValueError as error:
            if not os.path.lexists(self._path(cell)):
                return  # another process has just moved it
            self.broken[self._path(cell)] = str(error)
            if isinstance(error, UnreadableError):
                self.unreadable.add(cell)

    def stage(self, name: str, outcomes: Sequence[Outcome]) -> Path:
        """Write what has ended where it does not count yet.

        Raises:
            OSError: it could not be written; nothing has changed.
        """
        made = files.temporary(self.results / "pending" / name)
        try:
            for outcome in outcomes:
                files.write(made / "cells" / f"{outcome.record.id}.json", record_text(outcome.record))
                if outcome.save is not None:
                    adapter = made / "adapters" / outcome.record.id
                    outcome.save(adapter)
                    files.sync(adapter)
            for folder in (*files.listing(made), made):
                files.sync(folder)
        except BaseException:
            files.remove(made)
            raise
        return made

    def publish(self, made: Path, name: str) -> None:
        """Under the lock: let what was staged count, bring it to its places, tell of it in metrics.csv.

        Raises:
            OSError: if it counts already, the next process brings the rest.
        """
        try:
            files.place(made, self.results / "pending" / name)
        except BaseException:
            files.remove(made)
            raise
        files.sync(self.results / "pending")
        self.recover()
        if time.monotonic() - self._told >= CSV_SHARE * self._telling:
            self.write_csv()

    def recover(self) -> None:
        """Under the lock: bring to their places what processes have published, dead ones too; look again.

        What is there and has no name that `stage` gives stays where it is.
        """
        for pack in files.without_links(self.results / "pending"):
            if _PACK.fullmatch(pack.name):
                for part in files.without_links(pack):
                    if part.name in ("adapters", "cells"):  # in this order: a record says that its adapter is there
                        _bring(part, self.results / part.name)
                        files.remove_empty(part)
                files.remove_empty(pack)
        self.refresh()

    def write_csv(self) -> None:
        """Under the lock: rebuild metrics.csv from the records."""
        start = time.monotonic()
        write_csv(self.results, self.records.values())
        self._told = time.monotonic()
        self._telling = self._told - start

    def sweep(self) -> None:
        """Under the lock, alone on the folder: remove what killed processes left, and states that are over."""
        folders = [self.results / name for name in ("pending", "cells", "states", "leases", "adapters")]
        for folder in [*folders, *files.without_links(self.results / "adapters")]:
            for path in files.leftovers(folder):
                files.remove(path)
        for path in files.leftovers(self.results):
            if path.name.startswith(".metrics.csv."):
                files.remove(path)
        for path in checkpoints.damaged(self.results):
            checkpoints.remove(path)
        checkpoints.prune(self.results, (), self.written())
        for name in ("pending", "states"):
            files.remove_empty(self.results / name)


def _stamps(folder: Path) -> dict[str, Stamp]:
    """The record files of a folder by id, links as such."""
    found: dict[str, Stamp] = {}
    try:
        scanned = os.scandir(folder)
    except FileNotFoundError:
        return found
    except OSError as error:
        raise unusable(folder.parent, error) from error
    with scanned as entries:
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # another process has just made room there
                    stat = entry.stat(follow_symlinks=False)
                    found[entry.name[:-5]] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return found


def _bring(source: Path, target: Path) -> None:
    paths = [path for path in files.without_links(source) if _CELL.fullmatch(path.name.removesuffix(".json"))]
    for path in paths:
        if path.suffix == ".json":
            make_room(target / path.name)
        files.place(path, target / path.name)
    if paths:
        files.sync(target)

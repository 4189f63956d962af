"""The records of a results folder: read again where they change, published by packs.

The owner of the folder (`owner.Owner`) writes what a pack has trained into a folder of its own under `DIR/pending`.
Then one rename makes it count: from there on, whoever owns the folder next moves it to its final folders and rebuilds
metrics.csv, even if this process dies. So either all cells that ended together are recorded or none. An owner that was
suspended while another one took over can publish nothing: its folder is gone. No torch.
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
    CSV,
    Loaded,
    UnreadableError,
    archive_stamp,
    read_archive,
    read_record,
    record_path,
    record_text,
    set_aside,
    unusable,
    write_csv,
)
from lora_bench.run import checkpoints
from lora_bench.run.outcome import Outcome

# metrics.csv is rebuilt at the end of a run, and after a pack unless it was rebuilt less than this many times the
# seconds ago that rebuilding takes (chosen), so that it takes at most 5% of the time, however large it is.
CSV_COST_FACTOR = 20
_PACK = re.compile(r"[0-9a-f]+-[0-9]+")  # an owner's token and a number: the names that `publish` is given
_CELL = re.compile(r"[0-9a-f]{12}")
Stamp = tuple[int, int, int]  # of a file: inode, bytes, time


class RecordStore:
    """The records under a results folder, as of the last `refresh`.

    Args:
        results: The results folder.

    Attributes:
        records: The sound records by id.
        broken: The files that are not sound records, and what is wrong with them.
        unreadable: The ids of records that the system could not read. They may be sound: their cells are left alone.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self._archived: dict[str, Record] = {}
        self._archive_stamp: Stamp | None = None
        self._archive_damage: tuple[tuple[Path, str], ...] = ()
        self.records: dict[str, Record] = {}
        self.broken: dict[Path, str] = {}
        self.unreadable: set[str] = set()
        self._stamps: dict[str, Stamp] = {}
        self._csv_written = self._csv_seconds = 0.0
        self._staging: Path | None = None
        self._staged = 0
        self.refresh()

    def record_times(self) -> dict[str, int]:
        """Return when each record was written, in nanoseconds, by id; 0 for those of the archive."""
        return dict.fromkeys(self._archived, 0) | {cell_id: stamp[2] for cell_id, stamp in self._stamps.items()}

    def loaded(self) -> Loaded:
        """Return the content of the folder as `read_records` does."""
        records = tuple(self.records[cell_id] for cell_id in sorted(self.records))
        unreadable = frozenset(record_path(self.results, cell_id) for cell_id in self.unreadable)
        return Loaded(records, tuple(sorted(self.broken.items())), unreadable)

    def refresh(self) -> None:
        """Read the files that have appeared or changed since the last time, and those that could not be read."""
        while True:
            before = archive_stamp(self.results)
            if before != self._archive_stamp:
                self._read_archive()
                self._archive_stamp = before
            self._refresh_cells()
            if archive_stamp(self.results) == before:  # else records may have moved into it meanwhile
                return

    def _read_archive(self) -> None:
        """Read the archive. A record that was known before stays the same object, so that `is` tells what is new."""
        archived = read_archive(self.results)
        self._archive_damage = archived.broken
        pairs = ((record, self.records.get(record.id)) for record in archived.records)
        self._archived = {record.id: known if known == record else record for record, known in pairs}

    def _refresh_cells(self) -> None:
        stamps = _record_stamps(self.results / "cells")
        changed = {cell_id for cell_id, stamp in stamps.items() if self._stamps.get(cell_id) != stamp}
        unchanged = {cell_id: self.records[cell_id] for cell_id in stamps.keys() - changed}
        archived = {cell_id: record for cell_id, record in self._archived.items() if cell_id not in stamps}
        self.records = archived | unchanged
        self.broken, self.unreadable = dict(self._archive_damage), set()
        for cell_id in sorted(changed):
            self._read(cell_id)
        self._stamps = {cell_id: stamp for cell_id, stamp in stamps.items() if cell_id in self.records}

    def _read(self, cell_id: str) -> None:
        path = record_path(self.results, cell_id)
        try:
            self.records[cell_id] = read_record(path)
        except ValueError as error:
            if not os.path.lexists(path):
                return  # another process has just moved it
            self.broken[path] = str(error)
            if isinstance(error, UnreadableError):
                self.unreadable.add(cell_id)

    def begin(self) -> None:
        """Start writing; only the owner of the folder may. From now on, no earlier owner can publish."""
        pending = self.results / "pending"
        pending.mkdir(parents=True, exist_ok=True)
        for path in files.leftovers(pending):
            files.discard(path)
        self._staging = files.temporary(pending / "owner")
        self._staging.mkdir()

    def end(self) -> None:
        """Stop writing, and remove what was staged."""
        if self._staging is not None:
            files.remove(self._staging)
            files.remove_empty(self.results / "pending")

    def stage(self, outcomes: Sequence[Outcome]) -> Path:
        """Write outcomes into a folder within the owner's, where they do not count yet, and return its path.

        Raises:
            OSError: They could not be written; nothing has changed.
        """
        assert self._staging is not None, "begin first"
        staged, self._staged = self._staging / str(self._staged), self._staged + 1
        with files.naming(staged):
            try:
                # No parent is made: where the owner's folder is gone, it stays gone.
                for folder in (staged, staged / "adapters", staged / "cells"):
                    folder.mkdir()
                for outcome in outcomes:
                    record = staged / "cells" / f"{outcome.record.id}.json"
                    files.write(record, record_text(outcome.record), make_parent=False)
                    if outcome.adapter:
                        adapter = staged / "adapters" / outcome.record.id
                        adapter.mkdir()
                        for name, content in outcome.adapter.items():
                            files.write(adapter / name, content, make_parent=False)
                        files.sync(adapter)
                for folder in (*files.listing(staged), staged):
                    files.sync(folder)
            except BaseException:
                files.remove(staged)
                raise
        return staged

    def publish(self, staged: Path, name: str) -> None:
        """Make staged outcomes count, move them to their final folders and update metrics.csv.

        Args:
            staged: What `stage` returned.
            name: A name that no other outcomes have: the owner's token and a number, as `<token>-<number>`.

        Raises:
            OSError: Something failed. If the outcomes count already, the next owner does the rest.
        """
        files.move(staged, self.results / "pending" / name)
        files.sync(self.results / "pending")
        self.recover()
        if time.monotonic() - self._csv_written >= CSV_COST_FACTOR * self._csv_seconds:
            self.write_csv()

    def recover(self) -> None:
        """Move what was published, by dead processes too, to its final folders, and refresh.

        Files and folders under names that `publish` is not given stay where they are.
        """
        for pack in files.without_links(self.results / "pending"):
            if _PACK.fullmatch(pack.name):
                for part in files.without_links(pack):
                    # Adapters come first by their name: a record says that its adapter is there.
                    if part.name in ("adapters", "cells"):
                        _move_content(part, self.results / part.name)
                        files.remove_empty(part)
                files.remove_empty(pack)
        self.refresh()

    def write_csv(self) -> None:
        """Rebuild metrics.csv from the records."""
        assert self._staging is not None, "begin first"
        start = time.monotonic()
        write_csv(self.results, self.records.values(), self._staging / CSV)
        self._csv_written = time.monotonic()
        self._csv_seconds = self._csv_written - start

    def sweep(self) -> None:
        """Remove what killed processes left, and checkpoints that are no longer needed."""
        folders = [self.results / name for name in ("cells", checkpoints.FOLDER, "adapters")]
        for folder in [*folders, *files.without_links(self.results / "adapters")]:
            for path in files.leftovers(folder):
                files.remove(path)
        for path in files.leftovers(self.results):
            if path.name.startswith((f".{CSV}.", ".owner.json.")):
                files.remove(path)
        for path in checkpoints.damaged_folders(self.results):
            checkpoints.remove(path)
        checkpoints.prune(self.results, (), self.record_times())
        files.remove_empty(self.results / checkpoints.FOLDER)


def _record_stamps(folder: Path) -> dict[str, Stamp]:
    """The stamps of a folder's record files by id; of links, not of what they lead to."""
    stamps: dict[str, Stamp] = {}
    try:
        scanned = os.scandir(folder)
    except FileNotFoundError:
        return stamps
    except OSError as error:
        raise unusable(folder.parent, error) from error
    with scanned as entries:
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # another process has just set it aside
                    stat = entry.stat(follow_symlinks=False)
                    stamps[entry.name[:-5]] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return stamps


def _move_content(source: Path, target: Path) -> None:
    """Move the records or adapters of a published pack into their final folder."""
    paths = [path for path in files.without_links(source) if _CELL.fullmatch(path.name.removesuffix(".json"))]
    for path in paths:
        if path.suffix == ".json":
            set_aside(target / path.name)
        files.move(path, target / path.name)
    if paths:
        files.sync(target)

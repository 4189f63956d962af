"""The status of each cell of a grid: whether it will run, and why. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lora_bench import provenance
from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.run import checkpoints, owner
from lora_bench.run.checkpoints import Checkpoint
from lora_bench.run.publish import RecordStore

STATES = (
    "planned", "interrupted", "running", "waiting", "done", "failed", "diverged", "oom", "stale", "unreadable",
    "blocked",
)  # fmt: skip
HELD_UP = ("waiting", "blocked")  # by other cells, which have to end before or have failed
RETRY = ("failed", "diverged", "oom", "stale")
TablesKey = tuple[object, ...]


@dataclass(frozen=True)
class CellStatus:
    """The status of a cell.

    Attributes:
        state: One of `STATES`.
        reason: Why it is in that state.
        will_run: Whether it is to be trained.
    """

    state: str
    reason: str
    will_run: bool


def cell_statuses(cells: Iterable[Cell], store: RecordStore, retry: Collection[str]) -> dict[str, CellStatus]:
    """Return the status of cells by id; those in a state of `retry` run again."""
    holder = owner.current(store.results)
    saved = checkpoints.newest_by_cell(checkpoints.read_all(store.results), store.record_times())
    damaged = {path.stem: reason for path, reason in store.broken.items()}
    fingerprints = _newest_fingerprints(store)
    statuses: dict[str, CellStatus] = {}
    for cell in cells:
        record, progress = store.records.get(cell.id), _saved_progress(saved.get(cell.id), cell, store.records)
        if cell.id in store.unreadable:
            status = CellStatus("unreadable", f"{damaged[cell.id]}; it is left alone", will_run=False)
        elif record is None:
            reason = f"its record is damaged ({damaged[cell.id]})" if cell.id in damaged else "no record"
            status = CellStatus("interrupted" if progress else "planned", progress or reason, will_run=True)
        else:
            changes = _changes(record, store.records, fingerprints)
            status = _status_of_recorded(record, progress, changes, retry)
        if holder is not None and cell.id in holder.cells:
            status = CellStatus("running", f"by {holder}", status.will_run)
        statuses[cell.id] = status
    return statuses


def _status_of_recorded(record: Record, progress: str, changes: Sequence[str], retry: Collection[str]) -> CellStatus:
    state = "stale" if changes and record.status == "done" else record.status
    reason = "; ".join(changes) if state == "stale" else record.reason or "has a record"
    if state in retry:
        before = f"was {record.status}" + (f", {reason}" if state == "stale" else "")
        return CellStatus(state, "; ".join(filter(None, [before, progress])), will_run=True)
    return CellStatus(state, reason if state == "done" else f"{reason} (--retry {state})", will_run=False)


def _saved_progress(checkpoint: Checkpoint | None, cell: Cell, records: Mapping[str, Record]) -> str:
    """How far the cell was trained when it was saved, in words; empty if it was not."""
    if checkpoint is None:
        return ""
    entry = checkpoint.cells[cell.id]
    start = records.get(cell.start or "")
    now = provenance.current(cell.method) | ({} if start is None else {"start": start.trained_with})
    changes = provenance.differences(checkpoint.fingerprint(cell.id), now)
    if changes:
        return f"saved, but begins again: {'; '.join(changes)}"
    return f"saved after {len(entry.metrics)} of {cell.epochs} epochs, {entry.steps} steps"


def _changes(record: Record, records: Mapping[str, Record], fingerprints: Mapping[TablesKey, str]) -> list[str]:
    """What the record's numbers depend on that has changed since, in words."""
    changes = provenance.differences(record.environment, provenance.current(record.cell.method))
    if record.data is not None and fingerprints[tables_key(record.cell)] != record.data.fingerprint:
        changes.append("data: newer records were trained on other tokens or labels")
    start = records.get(record.cell.start or "")
    if start is not None:
        if record.protocol.start_trained not in (None, start.trained_with):
            changes.append(f"start: {start.id} was trained again since, with other code, libraries or data")
        elif start.status == "done" and _changes(start, records, fingerprints):
            changes.append(f"start: {start.id} is stale")
    return changes


def tables_key(cell: Cell) -> TablesKey:
    """Return what decides the tokens and labels of a cell; the seed where it draws the held-out rows."""
    return cell.model, cell.data, cell.task, cell.max_length, cell.seed if cell.select == "held-out" else None


def _newest_fingerprints(store: RecordStore) -> dict[TablesKey, str]:
    """The fingerprint of the tokens and labels that the newest record with each key was trained on."""
    record_times = store.record_times()
    newest: dict[TablesKey, str] = {}
    for cell_id in sorted(store.records, key=lambda cell_id: record_times[cell_id]):
        record = store.records[cell_id]
        if record.data is not None:
            newest[tables_key(record.cell)] = record.data.fingerprint
    return newest

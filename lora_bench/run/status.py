"""Where each cell of a grid stands, and why it runs or not. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lora_bench import provenance
from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.run import checkpoints, leases
from lora_bench.run.publish import Shelf

STATES = ("planned", "interrupted", "running", "done", "failed", "diverged", "oom", "stale", "unreadable")
RETRY = ("failed", "diverged", "oom", "stale")


@dataclass(frozen=True)
class Standing:
    """A cell's state, one of STATES; why it is in it, and whether it is to train."""

    state: str
    why: str
    runs: bool


def standings(cells: Iterable[Cell], shelf: Shelf, retry: Collection[str]) -> dict[str, Standing]:
    """Where the cells stand, by id. `retry`: the states whose cells run again."""
    held = leases.holders(shelf.results)
    saved = checkpoints.newest(checkpoints.folders(shelf.results), shelf.written())
    damaged = {path.stem: reason for path, reason in shelf.broken.items()}
    tables = _tables(shelf)
    found: dict[str, Standing] = {}
    for cell in cells:
        record, progress = shelf.records.get(cell.id), _progress(saved.get(cell.id), cell)
        if cell.id in shelf.unreadable:
            found[cell.id] = Standing("unreadable", f"{damaged[cell.id]}; it is left alone", runs=False)
        elif record is None:
            known = f"its record is damaged ({damaged[cell.id]})" if cell.id in damaged else "no record"
            found[cell.id] = Standing("interrupted" if progress else "planned", progress or known, runs=True)
        else:
            found[cell.id] = _recorded(record, progress, tables, retry)
        if cell.id in held:
            found[cell.id] = Standing("running", f"by {held[cell.id]}", found[cell.id].runs)
    return found


def _recorded(
    record: Record, progress: str, tables: Mapping[tuple[object, ...], str], retry: Collection[str]
) -> Standing:
    changed = _changes(record, tables)
    state = "stale" if changed and record.status == "done" else record.status
    explanation = "; ".join(changed) if state == "stale" else record.reason or "has a record"
    if state in retry:
        return Standing(
            state,
            "; ".join(
                filter(None, [f"was {record.status}" + (f", {explanation}" if state == "stale" else ""), progress])
            ),
            True,
        )
    return Standing(state, explanation if state == "done" else f"{explanation} (--retry {state})", False)


def _progress(folder: checkpoints.Folder | None, cell: Cell) -> str:
    if folder is None:
        return ""
    saved = folder.cells[cell.id]
    changed = provenance.differences(folder.fingerprint(cell.id), provenance.current(cell.method))
    if changed:
        return f"saved, but begins again: {'; '.join(changed)}"
    return f"saved after {len(saved.metrics)} of {cell.epochs} epochs, {saved.steps} steps"


def _changes(record: Record, tables: Mapping[tuple[object, ...], str]) -> list[str]:
    """What numbers depend on and is another thing now."""
    changed = provenance.differences(record.environment, provenance.current(record.cell.method))
    if record.data is not None and tables[_table(record.cell)] != record.data.fingerprint:
        changed.append("data: newer records were trained on other tokens or labels")
    return changed


def _table(cell: Cell) -> tuple[object, ...]:
    """What decides a cell's tokens and labels."""
    return cell.model, cell.data, cell.task, cell.max_length, cell.seed if cell.select == "held-out" else None


def _tables(shelf: Shelf) -> dict[tuple[object, ...], str]:
    """The fingerprint of the tokens and labels that the newest record was trained on."""
    written = shelf.written()
    newest: dict[tuple[object, ...], str] = {}
    for cell in sorted(shelf.records, key=lambda cell: written[cell]):
        record = shelf.records[cell]
        if record.data is not None:
            newest[_table(record.cell)] = record.data.fingerprint
    return newest

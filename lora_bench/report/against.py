"""A comparison of two results folders: `report --results DIR --against OTHER`.

    read both -> matching -> changes -> tables and sentences -> against.{html,md,json}, tables/against-*.csv

The files depend on the records of both folders only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.errors import NOTHING, USAGE, BenchError
from lora_bench.records.files import write_atomically
from lora_bench.records.schema import Record
from lora_bench.report.escaping import escape_markdown
from lora_bench.report.formats.html import plain_page
from lora_bench.report.formats.render import csv_table, json_report, markdown_table, print_lines, print_table
from lora_bench.report.numbers.changes import TaskChanges, all_changes
from lora_bench.report.numbers.comparisons import ABOVE, BELOW, EQUIVALENT, NOT_TESTED, UNDECIDED
from lora_bench.report.numbers.entries import Column, size_text
from lora_bench.report.numbers.frame import Row, final_score
from lora_bench.report.numbers.matching import METRIC_OF, Match, match
from lora_bench.report.numbers.tables import (
    DASH,
    ReportTable,
    TableColumn,
    build_table,
    difference_interval_text,
    p_text,
    percent,
    printed_tables,
    signed_percent,
)
from lora_bench.report.numbers.wording import column_title, counted_points
from lora_bench.text import clean, counted

if TYPE_CHECKING:
    from rich.console import Console

PAGE, MARKDOWN, JSON = "against.html", "against.md", "against.json"
NOTES = (
    "Numbers are ×100. A difference is the score of this folder less that of the other one: above 0, this one is "
    "better.",
    "Cells are the same if the losses, metrics and predictions of all epochs are equal to the last bit.",
    "by seed: the differences of the seeds that both folders have. other seeds: no seed is in both, so that the seeds "
    "of both folders vary. 95% intervals are over seeds, with each setting's own deviation; the evaluated rows are "
    "taken as given. With fewer than 3 seeds there is no interval and no test.",
)


@dataclass(frozen=True)
class ChangeReport:
    """What is written.

    Attributes:
        title: The names of the folders.
        answer: The result in sentences.
        tables: The tables.
    """

    title: str
    answer: tuple[str, ...]
    tables: tuple[ReportTable, ...]


def compare_folders(results: Path, against: Path, out: Path, console: Console, margin: float = 1.0) -> Path:
    """Compare the records of two results folders, print the tables and write the files.

    Args:
        results: The results folder.
        against: The folder that it is compared with.
        out: The folder to write to.
        console: Where to print; the last line is the page's path.
        margin: In points; a difference that is certainly smaller counts as equivalent.

    Returns:
        The page.

    Raises:
        BenchError: The folders are the same (exit code USAGE), a record of either is damaged (SOME_FAILED), or one of
            them has none (NOTHING).
    """
    if results.resolve() == against.resolve():
        raise BenchError(f"'{against}' is the folder itself.", "Give --against another results folder.", USAGE)
    matched = match(_records(results), _records(against))
    report = describe(matched, *_names(results, against), margin)
    files = {
        **{f"tables/{table.name}.csv": csv_table(table) for table in report.tables},
        MARKDOWN: "\n".join(_markdown(report)),
        JSON: json_report({"title": report.title, "answer": report.answer, "notes": NOTES}, report.tables),
        PAGE: plain_page(report.title, report.answer, report.tables, NOTES),
    }
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    print_lines([report.title], console, "bold underline")
    print_lines([*report.answer, ""], console)
    for table in printed_tables(report.tables):
        print_table(table, console)
    print_lines([*NOTES, ""], console, "dim")
    print_lines([str(out / PAGE)], console, whole=True)
    return out / PAGE


def _records(results: Path) -> tuple[Record, ...]:
    from lora_bench.records.store import read_records

    loaded = read_records(results)
    loaded.require_sound()  # a cell that cannot be read would count as missing in the folder
    records = tuple(record for record in loaded.records if not record.is_search)
    if not records:
        raise BenchError(f"There are no results in '{results}'.", "Give two folders that `run` has filled.", NOTHING)
    return records


def _names(results: Path, against: Path) -> tuple[str, str]:
    """Return short names of two folders that differ; paths stay out of what is written."""
    new, old = (clean(path.resolve().name) or "results" for path in (results, against))
    return (new, old) if new != old else (f"{new} (this)", f"{old} (the other)")


def describe(matched: Match, new: str, old: str, margin: float = 1.0) -> ChangeReport:
    """Return the comparison as sentences and tables.

    Args:
        matched: The cells of both folders.
        new: The name of the folder.
        old: The name of the one that it is compared with.
        margin: In points.
    """
    changes = all_changes(matched, margin / 100)
    build: tuple[Callable[[], list[ReportTable]], ...] = (
        lambda: _task_table(changes, new, old),
        lambda: _setting_tables(changes, new, old, margin),
        lambda: _status_table(matched, new, old),
        lambda: _difference_table(matched, new, old),
        lambda: _one_sided_table(matched, new, old),
        lambda: _cell_table(matched),
    )
    tables = tuple(table for function in build for table in function())
    return ChangeReport(f"{new} against {old}", tuple(_answer(matched, changes, new, old, margin)), tables)


def _answer(matched: Match, changes: Sequence[TaskChanges], new: str, old: str, margin: float) -> Iterable[str]:
    """Yield the result in sentences."""
    both, same = len(matched.pairs), sum(change.same for change in changes)
    yield (
        f"{counted(both, 'cell')} {'is' if both == 1 else 'are'} in both; {len(matched.only_new)} only in {new}, "
        f"{len(matched.only_old)} only in {old}."
    )
    for name, (of_new, of_old) in matched.fields.items():
        yield f"All cells differ in {name}: {of_new} in {new}, {of_old} in {old}; they are matched without it."
    if both:
        yield f"{same} of {both} have the same losses, metrics and predictions to the last bit; {both - same} differ."
    if matched.status_changes:
        yield f"{counted(len(matched.status_changes), 'cell')} ended in another way (table below)."
    for change in changes:
        if change.mean is not None and (change.largest or change.same < len(change.pairs) or not change.pairs):
            yield _mean_sentence(change)
    verdicts = [verdict for change in changes if change.mean is not None for verdict in change.settings["verdict"]]
    if verdicts:
        counts = {
            "better": sum(verdict.startswith(ABOVE) for verdict in verdicts),
            "worse": sum(verdict.startswith(BELOW) for verdict in verdicts),
            f"equivalent within ±{counted_points(margin)}": verdicts.count(EQUIVALENT),
            "not distinguishable": verdicts.count(UNDECIDED),
            "not tested (fewer than 3 seeds)": verdicts.count(NOT_TESTED),
        }
        text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        yield f"{counted(len(verdicts), 'setting')} in {new} after Holm's correction on each task: {text}."
    metrics = [(name, sides) for name, sides in matched.facts.items() if name.startswith(METRIC_OF)]
    for name, (of_new, of_old) in metrics:
        yield f"The {name} is {of_new} in {new}, {of_old} in {old}; different metrics are not compared."
    facts = [name for name in matched.facts if not name.startswith(("rows of ", METRIC_OF))]
    if facts:
        yield f"Recorded otherwise: {', '.join(facts)} (table below)."
    if any(name.startswith("rows of ") for name in matched.facts):
        yield "Not all data have the same fingerprint: scores on other rows differ for that reason too."


def _mean_sentence(change: TaskChanges) -> str:
    assert change.mean is not None
    title = column_title(Column(change.task, change.metric))
    interval = difference_interval_text(change.mean.low, change.mean.high)
    unknown = " (no setting has two seeds, so there is no interval)" if change.mean.low != change.mean.low else ""
    return (
        f"{title}: the mean difference over {counted(len(change.settings), 'setting')} is "
        f"{signed_percent(change.mean.difference)}{'' if unknown else f' {interval}'}{unknown}."
    )


def _task_table(changes: Sequence[TaskChanges], new: str, old: str) -> list[ReportTable]:
    import pandas as pd

    if not changes:
        return []
    frame = pd.DataFrame(
        [
            {
                "task": change.task,
                "metric": change.metric,
                "cells": len(change.pairs),
                "same": change.same,
                "settings": len(change.settings),
                "new": None if change.mean is None else float(change.settings["new"].mean()),
                "old": None if change.mean is None else float(change.settings["old"].mean()),
                "difference": None if change.mean is None else change.mean.difference,
                "low": None if change.mean is None else change.mean.low,
                "high": None if change.mean is None else change.mean.high,
                "largest": change.largest,
            }
            for change in changes
        ]
    )
    columns = [
        TableColumn("task", "task", lambda row: column_title(Column(row["task"], row["metric"]))),
        TableColumn("cells", "cells\nin both", numeric=True),
        TableColumn("same", "the\nsame", numeric=True),
        TableColumn("settings", "settings", numeric=True),
        TableColumn("new", new, lambda row: percent(row["new"]), numeric=True),
        TableColumn("old", old, lambda row: percent(row["old"]), numeric=True),
        TableColumn("difference", "mean\ndifference", lambda row: signed_percent(row["difference"]), numeric=True),
        TableColumn("low", "95%\ninterval", lambda row: difference_interval_text(row["low"], row["high"])),
        TableColumn("largest", "largest\nof a cell", _largest_text, numeric=True),
        TableColumn("metric"),
        TableColumn("high"),
    ]
    return [build_table("against-tasks", "By task", columns, frame)]


def _setting_tables(changes: Sequence[TaskChanges], new: str, old: str, margin: float) -> list[ReportTable]:
    import pandas as pd

    frames = [change.settings for change in changes if change.mean is not None]
    if not frames:
        return []
    frame = pd.concat(frames, ignore_index=True)
    columns = [
        TableColumn("task", "task", lambda row: column_title(Column(row["task"], row["metric"]))),
        TableColumn("size", "setting", _setting_text),
        TableColumn("targets", "targets"),
        TableColumn("pairing", "compared"),
        TableColumn("seeds", "seeds", numeric=True),
        TableColumn("new", new, lambda row: percent(row["new"]), numeric=True),
        TableColumn("old", old, lambda row: percent(row["old"]), numeric=True),
        TableColumn("difference", "difference", lambda row: signed_percent(row["difference"]), numeric=True),
        TableColumn("low", "95%\ninterval", lambda row: difference_interval_text(row["low"], row["high"])),
        TableColumn("holm", "Holm\np", lambda row: p_text(row["holm"]), numeric=True),
        TableColumn("holm_equivalent", "equivalence\nHolm p", lambda row: p_text(row["holm_equivalent"]), numeric=True),
        TableColumn("verdict", "verdict", bold=lambda row: row["verdict"].startswith((ABOVE, BELOW))),
        *map(TableColumn, ("metric", "method", "init", "rank", "a", "b", "varying", "high", "p", "p_equivalent")),
    ]
    note = (
        f"The largest difference of each task first. Holm p: corrected over the settings of a task; the verdict is at "
        f"5%. equivalence: that the difference is below {counted_points(margin)}."
    )
    return [build_table("against-settings", "By setting", columns, frame, [note], 2)]


def _largest_text(row: Row) -> str:
    """Return the largest difference to two digits: of two runs of one grid it may be far below a tenth of a point."""
    return DASH if row["largest"] is None else f"{100 * row['largest']:.2g}"


def _setting_text(row: Row) -> str:
    return f"{row['size']}, {row['varying']}" if row["varying"] else str(row["size"])


def _status_table(matched: Match, new: str, old: str) -> list[ReportTable]:
    rows = [
        {
            **_cell_row(pair.new),
            "new": pair.new.status,
            "old": pair.old.status,
            "reason": pair.new.reason or pair.old.reason or "",
        }
        for pair in matched.status_changes
    ]
    columns = [*_cell_columns(), TableColumn("new", new), TableColumn("old", old), TableColumn("reason", "reason")]
    return _table("against-status", "Cells that ended in another way", columns, rows)


def _difference_table(matched: Match, new: str, old: str) -> list[ReportTable]:
    rows = [
        {"name": name, "new": sides[0], "old": sides[1]}
        for name, sides in (*matched.fields.items(), *matched.facts.items())
    ]
    columns = [TableColumn("name", "what"), TableColumn("new", new), TableColumn("old", old)]
    return _table("against-differences", "What else differs", columns, rows)


def _one_sided_table(matched: Match, new: str, old: str) -> list[ReportTable]:
    rows = [
        {**_cell_row(record), "folder": name, "status": record.status}
        for name, records in ((new, matched.only_new), (old, matched.only_old))
        for record in records
    ]
    columns = [TableColumn("folder", "only in"), *_cell_columns(), TableColumn("status", "status")]
    return _table("against-only", "Cells that are in one folder only", columns, rows)


def _cell_table(matched: Match) -> list[ReportTable]:
    """Return the pairs as a table that is written as data alone: there may be thousands."""
    rows = [
        {
            **_cell_row(pair.new),
            "other_id": pair.old.id,
            "new": final_score(pair.new),
            "old": final_score(pair.old),
            "difference": pair.difference,
            "same": pair.is_same,
        }
        for pair in matched.pairs
    ]
    names = ("id", "other_id", "task", "method", "size", "targets", "seed", "new", "old", "difference", "same")
    return _table("against-cells", "Cells that are in both", [TableColumn(name) for name in names], rows)


def _cell_row(record: Record) -> dict[str, object]:
    cell = record.cell
    size = size_text({"label": cell.method, "rank": cell.rank, "a": cell.a, "b": cell.b})
    return {
        "id": record.id,
        "task": cell.task,
        "method": cell.method,
        "size": size,
        "targets": cell.targets,
        "seed": cell.seed,
    }


def _cell_columns() -> list[TableColumn]:
    heads = {"id": "id", "task": "task", "size": "setting", "targets": "targets", "seed": "seed"}
    return [*(TableColumn(name, head) for name, head in heads.items()), TableColumn("method")]


def _table(
    name: str, title: str, columns: Sequence[TableColumn], rows: Sequence[Mapping[str, object]]
) -> list[ReportTable]:
    """Return a table; none without rows."""
    import pandas as pd

    return [build_table(name, title, columns, pd.DataFrame(rows, dtype=object))] if rows else []


def _markdown(report: ChangeReport) -> Iterable[str]:
    yield f"# {escape_markdown(report.title)}\n"
    yield "".join(f"- {escape_markdown(line)}\n" for line in report.answer)
    yield from (markdown_table(table, 2) for table in printed_tables(report.tables))
    yield "## How to read\n"
    yield "".join(f"- {escape_markdown(line)}\n" for line in NOTES)

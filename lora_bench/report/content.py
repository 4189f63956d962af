"""What the report says, before it is written in any form: tables and sentences by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_bench.report.figures.captions import protocol
from lora_bench.report.formats.escaping import stems
from lora_bench.report.numbers import published, symmetry, versus
from lora_bench.report.numbers.rows import Row, rows
from lora_bench.report.numbers.score_tables import best_table, method_table, rank_tables
from lora_bench.report.numbers.selection import selection_tables
from lora_bench.report.numbers.slots import Piece, pieces
from lora_bench.report.numbers.tables import Table, unfinished
from lora_bench.store import Loaded


@dataclass(frozen=True)
class Section:
    """One piece's part: its tables, what the statistics say in words, and the stem of its figures' names."""

    piece: Piece
    tables: tuple[Table, ...]
    findings: tuple[str, ...]
    stem: str

    @property
    def protocol(self) -> tuple[str, ...]:
        """How its numbers were made, and what deviates."""
        return protocol(self.piece), *self.piece.notes


@dataclass(frozen=True)
class Content:
    """The whole report. `rest` are the tables that belong to no piece, `broken` the files that were no records."""

    rows: tuple[Row, ...]
    sections: tuple[Section, ...]
    rest: tuple[Table, ...]
    findings: tuple[str, ...]
    broken: tuple[tuple[Path, str], ...]

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table."""
        return *(table for section in self.sections for table in section.tables), *self.rest

    @property
    def summary(self) -> str:
        """How many cells there are, and how many of them ended in which way."""
        statuses = [row["status"] for row in self.rows]
        known = ("done", "failed", "diverged", *(["oom"] if "oom" in statuses else []))
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in known)
        return f"{len(statuses)} {'cell' if len(statuses) == 1 else 'cells'}: {counts}."


def gather(loaded: Loaded, vs_paper: bool = False) -> Content:
    """The report on these records."""
    found = rows(loaded.records)
    parts = pieces(found)
    names = stems([part.title for part in parts])
    sections = tuple(_section(part, name) for part, name in zip(parts, names, strict=True))
    compared = published.verdicts(parts) if vs_paper else ()
    rest = [published.published_table(compared)] if vs_paper else []
    said = published.sentences(compared) if vs_paper else []
    return Content(found, sections, (*rest, *unfinished(found)), tuple(said), loaded.broken)


def environments(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What the cells ran on: each fact with every value that it has."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row["record"].environment.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in sorted(found.items())}


def _section(piece: Piece, stem: str) -> Section:
    compared, mirrored = versus.comparisons(piece), symmetry.symmetries(piece)
    tables = (
        best_table(piece), *versus.versus_table(piece, compared), *selection_tables(piece),
        *symmetry.symmetry_table(piece, mirrored), method_table(piece), *rank_tables(piece),
    )  # fmt: skip
    return Section(piece, tables, (*versus.sentences(compared), *symmetry.sentences(mirrored)), stem)

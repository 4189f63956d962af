"""What the report contains, before it is written in any format: tables and sentences for each subset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.records.store import Loaded
from lora_bench.report.escaping import file_stems
from lora_bench.report.numbers import published, symmetry, versus
from lora_bench.report.numbers.entries import Subset, comparable_subsets
from lora_bench.report.numbers.frame import cell_frame
from lora_bench.report.numbers.score_tables import best_table, method_table, rank_tables
from lora_bench.report.numbers.searches import search_tables
from lora_bench.report.numbers.selection import selection_tables
from lora_bench.report.numbers.tables import ReportTable, missing_score_tables
from lora_bench.report.numbers.wording import protocol_sentence
from lora_bench.text import counted

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Section:
    """The section on one subset.

    Attributes:
        subset: the results.
        tables: its tables.
        findings: what the statistics say, in words.
        stem: the part of its figures' file names that identifies the subset.
    """

    subset: Subset
    tables: tuple[ReportTable, ...]
    findings: tuple[str, ...]
    stem: str

    @property
    def protocol(self) -> tuple[str, ...]:
        """How its numbers were obtained, and the deviations from the protocol."""
        return protocol_sentence(self.subset), *self.subset.notes


@dataclass(frozen=True)
class Content:
    """The whole report.

    Attributes:
        cells: all cells, one per row (`CELL_COLUMNS`).
        sections: one section per subset.
        other_tables: the tables that belong to no subset.
        findings: the sentences that belong to no subset.
        broken: the files that could not be read as records, with the reasons.
    """

    cells: DataFrame
    sections: tuple[Section, ...]
    other_tables: tuple[ReportTable, ...]
    findings: tuple[str, ...]
    broken: tuple[tuple[Path, str], ...]

    @property
    def tables(self) -> tuple[ReportTable, ...]:
        """All tables."""
        return *(table for section in self.sections for table in section.tables), *self.other_tables

    @property
    def status_line(self) -> str:
        """The number of cells, and how many have each status."""
        counts = self.cells["status"].value_counts()
        shown = ("done", "failed", "diverged", *(["oom"] if "oom" in counts else []))
        statuses = ", ".join(f"{counts.get(status, 0)} {status}" for status in shown)
        return f"{counted(len(self.cells), 'cell')}: {statuses}."


def gather(loaded: Loaded, vs_paper: bool = False) -> Content:
    """Compute the content of the report.

    Args:
        loaded: the records, and the files that could not be read.
        vs_paper: whether to compare with the published numbers.
    """
    cells = cell_frame([record for record in loaded.records if not record.is_search])
    subsets = comparable_subsets(cells)
    stems = file_stems([subset.title for subset in subsets])
    sections = tuple(_section(subset, stem) for subset, stem in zip(subsets, stems, strict=True))
    comparisons = published.compare_with_published(subsets) if vs_paper else ()
    tables = [published.published_table(comparisons)] if vs_paper else []
    findings = published.sentences(comparisons) if vs_paper else []
    return Content(
        cells,
        sections,
        (*tables, *search_tables(loaded.records), *missing_score_tables(cells)),
        tuple(findings),
        loaded.broken,
    )


def environment_values(cells: DataFrame) -> dict[str, list[str]]:
    """Return each fact of the cells' environments (versions, device) with all values that it takes."""
    values: dict[str, set[str]] = {}
    for record in cells["record"]:
        for name, value in record.environment.items():
            values.setdefault(name, set()).add(value)
    return {name: sorted(values[name]) for name in sorted(values)}


def _section(subset: Subset, stem: str) -> Section:
    comparisons = versus.compare_with_lora(subset)
    symmetries = symmetry.measure_symmetry(subset)
    tables = (
        best_table(subset),
        *versus.comparison_tables(subset, comparisons),
        *selection_tables(subset),
        *symmetry.symmetry_tables(subset, symmetries),
        method_table(subset),
        *rank_tables(subset),
    )
    return Section(subset, tables, (*versus.sentences(comparisons), *symmetry.sentences(symmetries)), stem)

"""What the report contains, before it is written in any format: the answer, tables and sentences for each scope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.compare import Comparisons
from lora_bench.records.store import Loaded
from lora_bench.report.escaping import file_stems
from lora_bench.report.numbers import published, score_tables, symmetry
from lora_bench.report.numbers.answer import answer
from lora_bench.report.numbers.comparison_tables import comparison_tables
from lora_bench.report.numbers.comparisons import ScopeStatistics, scope_statistics
from lora_bench.report.numbers.entries import Scope, comparable_scopes
from lora_bench.report.numbers.epochs import epoch_tables
from lora_bench.report.numbers.frame import MethodGroups, cell_frame
from lora_bench.report.numbers.overview import overview_tables
from lora_bench.report.numbers.posteriors import posterior_tables
from lora_bench.report.numbers.searches import search_tables
from lora_bench.report.numbers.tables import ReportTable, missing_score_tables
from lora_bench.report.numbers.verdict import sentences_without_results, verdict_tables
from lora_bench.report.numbers.wording import legend, protocol_sentence
from lora_bench.text import counted

if TYPE_CHECKING:
    from pandas import DataFrame

# The tables of a scope, in their order. A further table is a function of the scope's statistics, and a line here.
SCOPE_TABLES: tuple[Callable[[ScopeStatistics], list[ReportTable]], ...] = (
    verdict_tables,
    score_tables.frontier_tables,
    comparison_tables,
    overview_tables,
    lambda statistics: [score_tables.method_table(statistics)],
    lambda statistics: [score_tables.best_table(statistics)],
    lambda statistics: score_tables.rank_tables(statistics.scope),
    lambda statistics: epoch_tables(statistics.scope),
    lambda statistics: symmetry.symmetry_tables(statistics.scope, statistics.symmetry),
    lambda statistics: [score_tables.entries_table(statistics)],
)


@dataclass(frozen=True)
class Section:
    """The section on one scope.

    Attributes:
        statistics: The numbers of the scope.
        answer: What they say of the question, in plain sentences.
        tables: Its tables.
        stem: The part of its figures' file names that identifies the scope.
    """

    statistics: ScopeStatistics
    answer: tuple[str, ...]
    tables: tuple[ReportTable, ...]
    stem: str

    @property
    def scope(self) -> Scope:
        """The results."""
        return self.statistics.scope

    @property
    def protocol(self) -> tuple[str, ...]:
        """How its numbers were obtained, and the deviations from the protocol."""
        return protocol_sentence(self.scope), *self.scope.notes


@dataclass(frozen=True)
class Content:
    """The whole report.

    Attributes:
        cells: All cells, one per row (`CELL_COLUMNS`).
        sections: One section per scope.
        other_tables: The tables that belong to no scope.
        findings: The sentences that belong to no scope.
        broken: The files that could not be read as records, with the reasons.
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
    def legend(self) -> tuple[str, ...]:
        """How the numbers are to be read."""
        return legend(self.sections[0].scope.compare if self.sections else Comparisons())

    @property
    def status_line(self) -> str:
        """The number of cells, and how many have each status."""
        counts = self.cells["status"].value_counts()
        shown = ("done", "failed", "diverged", *(["oom"] if "oom" in counts else []))
        statuses = ", ".join(f"{counts.get(status, 0):,} {status}" for status in shown)
        return f"{counted(len(self.cells), 'cell')}: {statuses}."


def gather(
    loaded: Loaded,
    vs_paper: bool = False,
    compare: Comparisons | None = None,
    kinds: MethodGroups = (),
) -> Content:
    """Compute the content of the report.

    Args:
        loaded: The records, and the files that could not be read.
        vs_paper: Whether to compare with the published numbers.
        compare: What is compared.
        kinds: The methods of each group, in the order of the groups; without it nothing is grouped.
    """
    cells = cell_frame([record for record in loaded.records if not record.is_search], kinds)
    statistics = [scope_statistics(scope) for scope in comparable_scopes(cells, compare)]
    stems = file_stems([scoped.scope.title for scoped in statistics])
    sections = tuple(_section(scoped, stem) for scoped, stem in zip(statistics, stems, strict=True))
    tables = published.published_tables(statistics) if vs_paper else []
    findings = published.sentences(published.compare_with_published(statistics)) if vs_paper else []
    findings += sentences_without_results(compare) if not statistics else []
    return Content(
        cells,
        sections,
        (*tables, *posterior_tables(cells), *search_tables(loaded.records), *missing_score_tables(cells)),
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


def _section(statistics: ScopeStatistics, stem: str) -> Section:
    sentences = answer(statistics)
    if not (statistics.scope.entries["n"] > 0).any():
        sentences = ()
    tables = tuple(table for build in SCOPE_TABLES for table in build(statistics))
    more = symmetry.sentences(statistics.symmetry)
    return Section(statistics, (*sentences, *more), tables, stem)

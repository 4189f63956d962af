"""Entries of the report's tables, and the summary statistics shown in them.

Only seeds are pooled. Where the cells of an entry differ in more than the seed, the hyperparameter setting with the
best mean score is shown. Cells that must not be compared at all (another model, other data, another way to choose the
epoch) are in different subsets (`Subset`).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lora_bench.report.numbers.frame import SCOPE, SETTINGS, SHOWN_ENTRY_FIELDS, CellRow, cells_of, group_by
from lora_bench.report.numbers.statistics import MIN_SEEDS
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Summary:
    """Summary statistics of scores over seeds, in the metric's units.

    Attributes:
        mean: None without a score.
        std: the sample standard deviation (ddof=1); None with fewer than two scores.
        median: None without a score.
        n: the number of seeds with a score.
        total: the number of seeds that were run.
    """

    mean: float | None
    std: float | None
    median: float | None
    n: int
    total: int

    @property
    def data(self) -> dict[str, object]:
        """The columns of a summary in the unrounded data."""
        return {"mean": self.mean, "std": self.std, "median": self.median, "n": self.n, "seeds": self.total}

    def text(self) -> str:
        """Format as `91.2 ± 0.3; 91.3 (5)`: mean ± std; median (n), all ×100.

        The count is `(4/5)` if a seed has no score, and a dagger marks fewer than three scores.
        """
        count = f"({self.n})" if self.n == self.total else f"({self.n}/{self.total})"
        if self.mean is None or self.median is None:
            return f"— {count}"
        spread = "" if self.std is None else f" ± {percent(self.std)}; {percent(self.median)}"
        return f"{percent(self.mean)}{spread} {count}{'†' if self.n < MIN_SEEDS else ''}"


@dataclass(frozen=True)
class Entry:
    """One entry of a table: a method at one size, with the hyperparameter setting that is shown for it.

    Attributes:
        init: the start if it is not the method's default.
        cells: the cells of the shown setting, one per seed.
        settings_tried: among how many settings the shown one was chosen.
        varying: the hyperparameters in which those settings differ.
        hidden_failures: the number of cells without a score among the settings that are not shown.
    """

    method: str
    init: str | None
    rank: int | None
    a: int | None
    b: int | None
    cells: tuple[CellRow, ...]
    settings_tried: int = 1
    varying: tuple[str, ...] = ()
    hidden_failures: int = 0

    @property
    def label(self) -> str:
        """The method's name, with its start if that is not the default."""
        return self.method if self.init is None else f"{self.method} ({self.init} start)"

    @property
    def size(self) -> str:
        """The label with rank, a and b, such as `mini r=4 a=8 b=8`."""
        parts = [f"{name}={value}" for name, value in (("r", self.rank), ("a", self.a), ("b", self.b)) if value]
        return " ".join((self.label, *parts))

    @property
    def pair(self) -> tuple[int | None, int | None]:
        """The sizes (a, b)."""
        return self.a, self.b

    @cached_property
    def scores(self) -> Mapping[int, float]:
        """Score by seed, for the seeds that have one."""
        return self.values("score")

    @cached_property
    def settings(self) -> CellRow:
        """The hyperparameters that all cells share."""
        return {name: self.cells[0][name] for name in SETTINGS}

    @cached_property
    def summary(self) -> Summary:
        """The summary of the scores."""
        return summarise(list(self.scores.values()), len(self.cells))

    @property
    def missing(self) -> Counter[str]:
        """The number of seeds without a score, by status; `undefined` if the cell finished with no finite score."""
        names = {"done": "undefined", "oom": "failed"}
        statuses = [str(cell["status"]) for cell in self.cells if cell["score"] is None]
        return Counter(names.get(status, status) for status in statuses)

    def values(self, name: str) -> dict[int, float]:
        """Return a numeric column by seed, without the cells where it is None."""
        return {cell["seed"]: cell[name] for cell in self.cells if cell[name] is not None}

    def largest(self, name: str) -> int | None:
        """Return the largest value of a count among the cells; None if no cell has it."""
        return max((cell[name] for cell in self.cells if cell[name] is not None), default=None)

    def seconds(self) -> float | None:
        """Return the mean number of seconds per cell; None if no cell was timed."""
        seconds = list(self.values("seconds").values())
        return statistics.fmean(seconds) if seconds else None


@dataclass(frozen=True, order=True)
class Column:
    """A column of scores: a task and its main metric."""

    task: str
    metric: str


@dataclass(frozen=True)
class Subset:
    """The results that may share a table: one model, one data source, one protocol, one target set.

    Methods without targets (`head`, `full`) are in every subset of their scope.

    Attributes:
        title: the model, the targets, and what else of the scope differs between the subsets.
        scope: the values of `SCOPE`.
        targets: the target set; None if no cell has targets.
        columns: the entries of each task.
        notes: deviations from the protocol, as stated in the records.
    """

    title: str
    scope: Mapping[str, str]
    targets: str | None
    columns: Mapping[Column, tuple[Entry, ...]]
    notes: tuple[str, ...] = ()

    def best_entries(self, column: Column) -> dict[str, Entry]:
        """Return the best entry of each method on a task, by the method's label."""
        by_label: dict[str, list[Entry]] = {}
        for entry in self.columns[column]:
            by_label.setdefault(entry.label, []).append(entry)
        return {
            label: max(entries, key=lambda entry: selection_key(entry.cells))
            for label, entries in sorted(by_label.items())
        }


def percent(value: float, digits: int = 1) -> str:
    """Format a metric in [-1, 1] as it is printed: ×100, one decimal, no negative zero."""
    text = f"{100 * value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def printed_score(value: float) -> float:
    """Round a metric as it is printed, so that two scores that read the same are equal."""
    return float(percent(value))


def summarise(scores: Sequence[float], total: int) -> Summary:
    """Compute the summary of some scores; their order does not matter.

    Args:
        scores: the scores of the seeds that have one.
        total: the number of seeds that were run.
    """
    n = len(scores)
    if not n:
        return Summary(None, None, None, 0, total)
    mean = statistics.fmean(scores)
    # fsum is exact, so that the result is the same whatever the order of the scores.
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (n - 1)) if n > 1 else None
    return Summary(mean, std, statistics.median(scores), n, total)


def average_summary(entries: Sequence[Entry]) -> Summary:
    """Average several entries.

    The mean is the mean of the entries' means. The standard deviation, the median and n come from the seeds that have a
    score in every entry that has any.
    """
    scored = [entry for entry in entries if entry.scores]
    total = max((len(entry.cells) for entry in entries), default=0)
    if not scored:
        return summarise([], total)
    shared = set.intersection(*(set(entry.scores) for entry in scored))
    by_seed = summarise([statistics.fmean(entry.scores[seed] for entry in scored) for seed in sorted(shared)], total)
    mean = statistics.fmean(entry.summary.mean for entry in scored if entry.summary.mean is not None)
    return Summary(mean, by_seed.std, mean if by_seed.median is None else by_seed.median, by_seed.n, total)


def group_by_rank(entries: Iterable[Entry]) -> dict[str, dict[int, list[Entry]]]:
    """Group entries by method label, then by rank; methods without a rank are left out."""
    by_rank: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if entry.rank is not None:
            by_rank[entry.label][entry.rank].append(entry)
    return {label: dict(sorted(ranks.items())) for label, ranks in sorted(by_rank.items())}


def has_pairs(ranks: Mapping[int, Sequence[Entry]]) -> bool:
    """Whether a method has the sizes (a, b)."""
    return any(entry.pair != (None, None) for entries in ranks.values() for entry in entries)


def selection_key(cells: Sequence[CellRow]) -> tuple[int, float, int]:
    """Return the key by which a setting is chosen: the largest wins.

    The mean score decides between settings with at least three scores; a setting with fewer loses to one with more, so
    that a single lucky seed is not chosen.
    """
    scores = [cell["score"] for cell in cells if cell["score"] is not None]
    return min(len(scores), MIN_SEEDS), statistics.fmean(scores) if scores else 0.0, len(scores)


def comparable_subsets(frame: DataFrame) -> tuple[Subset, ...]:
    """Divide the cells into subsets by scope and target set, sorted by name."""
    # Titles name the model, and of the other fields only those that differ between subsets.
    differing = [name for name in SCOPE[1:] if frame[name].nunique(dropna=False) > 1]
    subsets = []
    for scope_frame in group_by(frame, SCOPE):
        scope = {name: scope_frame[name].iloc[0] for name in SCOPE}
        for targets in sorted(scope_frame["targets"].dropna().unique()) or [None]:
            title = ", ".join((scope["model"], targets or "no adapter", *(str(scope[name]) for name in differing)))
            subset_frame = scope_frame[scope_frame["targets"].isna() | (scope_frame["targets"] == targets)]
            notes = tuple(sorted(subset_frame["notes"].dropna().unique()))
            subsets.append(Subset(title, scope, targets, _columns(subset_frame), notes))
    return tuple(subsets)


def _columns(frame: DataFrame) -> dict[Column, tuple[Entry, ...]]:
    """Return the entries by task, in GLUE's order; unknown tasks come last."""
    names = ("task", "metric", *SHOWN_ENTRY_FIELDS)
    settings = map(cells_of, group_by(frame, (*names, *SETTINGS)))
    entries: dict[Column, list[Entry]] = {}
    for (task, metric, *key), members in groupby(settings, key=lambda cells: [cells[0][name] for name in names]):
        entries.setdefault(Column(task, metric), []).append(_best_setting(key, list(members)))
    order = {task: index for index, task in enumerate(TASKS)}
    return {
        column: tuple(entries[column])
        for column in sorted(entries, key=lambda column: order.get(column.task, len(order)))
    }


def _best_setting(key: Sequence[Any], settings: list[list[CellRow]]) -> Entry:
    """Choose the best of several hyperparameter settings, each given by its cells."""
    shown = max(settings, key=selection_key)
    hidden_failures = sum(cell["score"] is None for cells in settings if cells is not shown for cell in cells)
    varying = tuple(name for name in SETTINGS if len({cells[0][name] for cells in settings}) > 1)
    cells = tuple(sorted(shown, key=lambda cell: (cell["seed"], cell["id"])))
    method, init, rank, a, b = key
    return Entry(method, init, rank, a, b, cells, len(settings), varying, hidden_failures)

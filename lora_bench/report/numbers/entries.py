"""Entries: the rows behind every table, a method at one size on one task, as pandas frames.

Cells that must not be compared at all (another model, other data, another way to choose the epoch) are in different
scopes. Within a scope only seeds are pooled: cells that differ in nothing else are a *setting*. Where an arm (a method
at one size on one set of targets) has several settings on a task, the entry shows the one with the best held-out
score. The average over tasks is an entry like any other, under the task `AVERAGE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_bench.compare import Comparisons
from lora_bench.report.numbers.frame import ARM, COUNTS, SCOPE, SETTINGS, STATUS_COLUMNS, Row, group_ids, rows_of
from lora_bench.report.numbers.statistics import MIN_SEEDS
from lora_bench.tasks import TASKS
from lora_bench.text import clean

if TYPE_CHECKING:
    from pandas import DataFrame, Series
    from pandas.api.typing import SeriesGroupBy

AVERAGE = "average"
NOT_AVERAGED = ("wnli",)  # the papers leave it out of their averages
HELD_OUT, SHOWN = "held-out", "shown"  # by which score a setting was chosen
# How many cells give one answer to all rows, and of how many this is known: of those whose records hold predictions.
ANSWER_COLUMNS = ("one_answer", "with_predictions")


@dataclass(frozen=True, order=True)
class Column:
    """A column of scores: a task, or the average, and its main metric."""

    task: str
    metric: str


@dataclass(frozen=True)
class Scope:
    """The results that may share a table: one model, one data source, one protocol.

    Attributes:
        title: The model, and what else of the scope differs between the scopes.
        values: The values of `SCOPE`.
        cells: Its cells, with the numbers of their arm, setting and entry (-1 for a setting that is not shown).
        entries: A row per entry, the averages among them; see `_entries`.
        columns: The tasks in GLUE's order, then the average if there is one.
        averaged: The tasks of the average.
        compare: What is compared.
        notes: Deviations from the protocol, as stated in the records.
    """

    title: str
    values: Mapping[str, str]
    cells: DataFrame = field(compare=False)
    entries: DataFrame = field(compare=False)
    columns: tuple[Column, ...]
    averaged: tuple[str, ...]
    compare: Comparisons
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Column:
        """The column that says most: the average, the only task of it, or where it has none the last task."""
        averaged = [column for column in self.columns if column.task in self.averaged]
        return averaged[0] if len(averaged) == 1 else self.columns[-1]

    @property
    def has_declared_tasks(self) -> bool:
        """Whether the main column is on all tasks that the comparisons declare."""
        is_average = self.main.task == AVERAGE or len(self.averaged) == 1
        return is_average and set(self.compare.average) <= set(self.averaged)

    @property
    def tasks(self) -> tuple[Column, ...]:
        """The columns without the average."""
        return tuple(column for column in self.columns if column.task != AVERAGE)

    def start_of(self, column: Column) -> str:
        """Return what the cells of a task start from: `pretrained`, or a task; it is the same for all of them."""
        return str(self.cells["own_start"][self.cells["task"] == column.task].iloc[0])

    def at(self, column: Column) -> DataFrame:
        """Return the entries of a column."""
        return self.entries[self.entries["task"] == column.task]

    @cached_property
    def chosen(self) -> Mapping[str, DataFrame]:
        """By task, the chosen entry of each method on each set of targets; `of` says among how many settings.

        The best on held-out rows is chosen, or the best score where nothing was held out.
        """
        return {column.task: choose_entries(self.at(column), ("method", "init", "targets")) for column in self.columns}


def choose_entries(entries: DataFrame, names: Sequence[str]) -> DataFrame:
    """Return the chosen entry for each value of some columns, in their order; `of` counts the settings chosen from."""
    if entries.empty:
        return entries.assign(of=[])
    groups = group_ids(entries, names)
    grouped = entries.assign(_group=groups, of=entries["tried"].groupby(groups).transform("sum"))
    return _first_choices(grouped).drop(columns="_group")


# What decides between settings, in this order. One with fewer than three scores loses to one with more, so that a
# lucky seed is not chosen; then the fewest lost seeds, then the score, then the number of seeds.
_CHOICE = ("_enough", "_kept", "_criterion", "n")


def _first_choices(settings: DataFrame) -> DataFrame:
    """Return the setting that is chosen in each `_group`, in the order of the groups."""
    order = ["_group", *_CHOICE]
    ordered = settings.sort_values(order, ascending=[name == "_group" for name in order], kind="stable")
    return ordered.drop_duplicates("_group")


def comparable_scopes(cells: DataFrame, compare: Comparisons | None = None) -> tuple[Scope, ...]:
    """Divide the cells into scopes, sorted by name."""
    if cells.empty:
        return ()
    titles = _titles(cells)
    groups = group_ids(cells, SCOPE)
    return tuple(
        _scope(titles[number], cells[groups == number], compare or Comparisons()) for number in sorted(groups.unique())
    )


def short_model(name: str) -> str:
    """Return a model's name without its owner and revision: `FacebookAI/roberta-base@abc` becomes `roberta-base`."""
    return name.partition("@")[0].rpartition("/")[2]


def _titles(cells: DataFrame) -> list[str]:
    """Name each scope by its model, and by the other fields only if they differ between scopes."""
    scopes = cells[[*SCOPE]].drop_duplicates().sort_values([*SCOPE], na_position="first")
    by_short = scopes.groupby(scopes["model"].map(short_model))["model"].nunique()
    models = [short_model(name) if by_short[short_model(name)] == 1 else name for name in scopes["model"]]
    differing = [name for name in SCOPE[1:] if scopes[name].nunique(dropna=False) > 1]
    rest = scopes[differing].astype(str).to_numpy().tolist()
    return [clean(", ".join((model, *values))) for model, values in zip(models, rest, strict=True)]


def _scope(title: str, cells: DataFrame, compare: Comparisons) -> Scope:
    numbered = cells.assign(arm=group_ids(cells, ARM), setting=group_ids(cells, ("task", "metric", *ARM, *SETTINGS)))
    entries = _entries(_settings(numbered))
    entry_of_setting = dict(zip(entries["setting"], entries.index, strict=True))
    numbered["entry"] = numbered["setting"].map(entry_of_setting).fillna(-1).astype(int)
    columns = _columns(entries)
    averaged = _averaged(columns, compare)
    if len(averaged) > 1:
        import pandas as pd

        averages = _averages(numbered, entries, averaged)
        if not averages.empty:
            entries = pd.concat([entries, averages], ignore_index=True)
            columns = (*columns, Column(AVERAGE, "average"))
    notes = tuple(sorted(cells["notes"].dropna().unique()))
    values = {name: cells[name].iloc[0] for name in SCOPE}
    return Scope(title, values, numbered, entries, columns, averaged, compare, notes)


def _columns(entries: DataFrame) -> tuple[Column, ...]:
    """Return the tasks in GLUE's order; unknown tasks come last, by name."""
    order = {task: index for index, task in enumerate(TASKS)}
    pairs = entries[["task", "metric"]].drop_duplicates().itertuples(index=False)
    columns = sorted(Column(*pair) for pair in pairs)
    return tuple(sorted(columns, key=lambda column: order.get(column.task, len(order))))


def _averaged(columns: Sequence[Column], compare: Comparisons) -> tuple[str, ...]:
    tasks = [column.task for column in columns]
    return tuple(task for task in tasks if (task in compare.average if compare.average else task not in NOT_AVERAGED))


def _settings(cells: DataFrame) -> DataFrame:
    """Return a row per setting with its summary over seeds.

    Columns: what identifies it; `seeds` that were run, `n` with a score; `mean`, `std` (sample), `median` and the sum
    of squares of the scores; `trimmed`, the mean without as many of the best scores as seeds were lost; `held`, the
    mean held-out metric; lost seeds by status; costs; `ANSWER_COLUMNS`.
    """
    ordered = cells.sort_values(["setting", "score"], ascending=[True, False], kind="stable")
    grouped = ordered.groupby("setting")
    scores = grouped["score"]
    settings = grouped.head(1).set_index("setting")[["task", "metric", "arm", *ARM, *SETTINGS]]
    settings = settings.assign(
        seeds=grouped.size(),
        **_summary(scores),
        held=grouped["held_out_metric"].mean(),
        **{name: grouped[name].max() for name in COUNTS},
        seconds=grouped["seconds"].mean(),
        **_lost_by_status(ordered),
        one_answer=grouped["one_answer"].sum().astype(int),
        with_predictions=grouped["one_answer"].count(),
    )
    return _with_trimmed_means(settings, ordered).reset_index()


def _summary(scores: SeriesGroupBy[Any, Any]) -> dict[str, Any]:
    return {
        "n": scores.count(),
        "mean": scores.mean(),
        "std": scores.std(ddof=1),
        "median": scores.median(),
        "squares": scores.var(ddof=1).fillna(0.0) * (scores.count() - 1).clip(lower=0),
    }


def _lost_by_status(cells: DataFrame) -> dict[str, Series]:
    """Count the seeds without a score; `undefined` finished with no finite score, memory that ran out is a failure."""
    names = cells["status"].replace({"done": "undefined", "oom": "failed"}).where(cells["score"].isna(), "")
    return {name: (names == name).groupby(cells["setting"]).sum() for name in STATUS_COLUMNS}


def _with_trimmed_means(settings: DataFrame, cells: DataFrame) -> DataFrame:
    """Add `trimmed`: with lost seeds, the mean without as many of the best; else the mean. NaN if none would stay."""
    lost = settings["seeds"] - settings["n"]
    if not lost.any():
        return settings.assign(trimmed=settings["mean"])
    number = cells.groupby("setting").cumcount()  # the cells of a setting are ordered, the best first
    remaining = cells["score"].where(number >= cells["setting"].map(lost))
    return settings.assign(trimmed=remaining.groupby(cells["setting"]).mean())


def _entries(settings: DataFrame) -> DataFrame:
    """Return the shown setting of each arm on each task, with a label.

    Columns besides those of `_settings`: `tried`, among how many settings it was chosen; `varying`, in which
    hyperparameters those differ, as text; `hidden_lost`, the seeds without a score of the others; `chosen_by`, held-out
    or shown.
    """
    ranked = settings.sort_values("setting", kind="stable").assign(**_criteria(settings))
    keys = ["task", "metric", "arm"]
    groups = group_ids(ranked, keys)
    lost = ranked["seeds"] - ranked["n"]
    ranked = ranked.assign(
        _group=groups, tried=groups.groupby(groups).transform("size"), _lost=lost.groupby(groups).transform("sum")
    )
    several = ranked[ranked["tried"] > 1]
    differing = several.groupby("_group")[[*SETTINGS]].nunique(dropna=False) > 1
    varying = {group: tuple(name for name in SETTINGS if row[name]) for group, row in differing.iterrows()}
    shown = _first_choices(ranked)
    return (
        shown.assign(
            label=_labels(shown),
            size=_sizes(shown),
            varying=[", ".join(varying.get(group, ())) for group in shown["_group"]],
            hidden_lost=shown["_lost"] - (shown["seeds"] - shown["n"]),
        )
        .drop(columns=["_group", "_lost"])
        .reset_index(drop=True)
    )


def _criteria(settings: DataFrame) -> dict[str, Any]:
    """Return the columns that decide between settings, and by which score that is."""
    held_out = bool(settings["held"].notna().any())
    criterion = settings["held"] if held_out else settings["mean"]
    return {
        "_enough": settings["n"].clip(upper=MIN_SEEDS),
        "_kept": settings["n"] - settings["seeds"],
        "_criterion": criterion.fillna(float("-inf")).round(12),
        "chosen_by": HELD_OUT if held_out else SHOWN,
    }


def _labels(entries: DataFrame) -> list[str]:
    """Name the method, with its start if that is not the default."""
    pairs = zip(entries["method"], entries["init"], strict=True)
    return [method if init is None else f"{method} ({init} start)" for method, init in pairs]


def _sizes(entries: DataFrame) -> list[str]:
    """Name the method with its size, such as `mini r=4 a=8 b=8`."""
    rows = rows_of(entries[["rank", "a", "b"]].assign(label=_labels(entries)))
    return [size_text(row) for row in rows]


def size_text(row: Row) -> str:
    """Return a label with rank, a and b, such as `mini r=4 a=8 b=8`."""
    sizes = (f"{short}={row[name]}" for short, name in (("r", "rank"), ("a", "a"), ("b", "b")) if row[name])
    return " ".join((row["label"], *sizes))


def seed_scores(scope: Scope, column: Column) -> Series:
    """Return the scores of a column's entries, indexed by arm and seed; those of the average are complete averages."""
    shown = scope.cells[(scope.cells["entry"] >= 0) & scope.cells["score"].notna()]
    if column.task != AVERAGE:
        return shown[shown["task"] == column.task].set_index(["arm", "seed"])["score"]
    table = shown.pivot_table(index=["arm", "seed"], columns="task", values="score", aggfunc="first")
    return table.reindex(columns=list(scope.averaged)).mean(axis=1, skipna=False).dropna().rename("score")


def _averages(cells: DataFrame, entries: DataFrame, averaged: Sequence[str]) -> DataFrame:
    """Return an entry for the average of each arm that has one at every averaged task.

    Its scores are the averages of the seeds that have a score at every task.
    """
    shown = cells[(cells["entry"] >= 0) & cells["task"].isin(averaged)]
    by_seed = shown.pivot_table(index=["arm", "seed"], columns="task", values="score", dropna=False, aggfunc="first")
    ran = shown.pivot_table(index=["arm", "seed"], columns="task", values="entry", aggfunc="count").fillna(0)
    complete = (ran > 0).all(axis=1)
    by_seed = by_seed.reindex(complete[complete].index)
    if by_seed.empty or set(by_seed.columns) != set(averaged):
        return entries.iloc[:0]
    per_seed = by_seed[list(averaged)].mean(axis=1, skipna=False).rename("score").reset_index()
    per_seed = per_seed.rename(columns={"arm": "setting"})
    per_seed = per_seed.sort_values(["setting", "score"], ascending=[True, False], kind="stable")
    grouped = per_seed.groupby("setting")
    averages = grouped.size().rename("seeds").to_frame().assign(**_summary(grouped["score"]))
    averages = _with_trimmed_means(averages, per_seed)
    members = entries[entries["task"].isin(averaged) & entries["arm"].isin(averages.index)]
    grouped_members = members.groupby("arm")
    identity = members.drop_duplicates("arm").set_index("arm")[[*ARM, "label", "size"]]
    averages = averages.join(identity).assign(
        held=grouped_members["held"].mean(),
        **{name: grouped_members[name].max() for name in COUNTS},
        seconds=grouped_members["seconds"].sum(min_count=1),
        **{name: grouped_members[name].sum() for name in (*STATUS_COLUMNS, *ANSWER_COLUMNS)},
        tried=grouped_members["tried"].max(),
        hidden_lost=grouped_members["hidden_lost"].sum(),
    )
    averages = averages.assign(task=AVERAGE, metric="average", arm=averages.index, setting=-1)
    averages = averages.assign(**_criteria(averages), varying="")
    return averages.reset_index(drop=True).reindex(columns=entries.columns).sort_values("arm")

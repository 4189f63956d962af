"""Cells that have collapsed: they have finished and give one answer to all rows, so that they have learnt nothing.

Their scores count like all others, since a method that collapses with some seeds does so for those who use it. But a
few of them decide a mean difference and its interval, so tables of comparisons and verdicts say how many there are.
What a cell has to do to count as collapsed is `frame.gives_one_answer`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_bench.report.numbers.comparisons import ScopeStatistics, scope_statistics
from lora_bench.report.numbers.entries import ANSWER_COLUMNS, AVERAGE, Scope, comparable_scopes
from lora_bench.report.numbers.frame import Row, is_missing, rows_of
from lora_bench.report.numbers.statistics import MIN_SEEDS
from lora_bench.report.numbers.tables import difference_interval_text, signed_percent
from lora_bench.report.numbers.wording import join_words, task_title
from lora_bench.text import counted

_MAX_NAMED = 8


def collapsed_tasks(scope: Scope) -> list[str]:
    """Return the tasks on which every cell with a score has collapsed."""
    scored = scope.cells[(scope.cells["entry"] >= 0) & scope.cells["score"].notna()]
    all_of_task = scored["one_answer"].fillna(False).astype(bool).groupby(scored["task"]).all()
    return [column.task for column in scope.tasks if all_of_task.get(column.task, False)]


def collapsed_notes(scope: Scope, indices: Sequence[int]) -> list[str]:
    """Say how many cells of some settings have collapsed; nothing if none has.

    Args:
        scope: The results.
        indices: The indices of the settings' entries.
    """
    text = _counts_text(scope, indices)
    return [text] if text else []


def collapsed_sentence(scope: Scope, row: Row, without: ScopeStatistics | None) -> str:
    """Say how many cells of a declared comparison have collapsed, and what would be without; empty if none has.

    Args:
        scope: The results.
        row: The comparison, with the indices of its entries in `entry` and `reference`, and the number of its `pair`.
        without: The numbers without the collapsed seeds, from `without_collapsed`.
    """
    text = _counts_text(scope, [row["entry"], row["reference"]])
    return f"{text} {_without_text(row, without)}" if text else ""


def without_collapsed(statistics: ScopeStatistics) -> ScopeStatistics | None:
    """Return the numbers without the seeds that have collapsed: an average loses a seed that did so on one task.

    Returns:
        The numbers; None if nothing is left. No verdict follows from them, since seeds are left out by their result.
    """
    scope = statistics.scope
    cells = scope.cells[scope.cells["entry"] >= 0]
    scopes = comparable_scopes(cells[~cells["one_answer"].fillna(False).astype(bool)], scope.compare)
    return scope_statistics(scopes[0]) if scopes else None


def _without_text(row: Row, without: ScopeStatistics | None) -> str:
    """Say what the difference would be without the collapsed seeds."""
    left = () if without is None else rows_of(without.declared[without.declared["pair"] == row["pair"]])
    if without is None or not left or is_missing(left[0]["low"]):
        return f"Without such seeds fewer than {MIN_SEEDS} of a side are left."
    (compared,) = left
    seeds = [int(without.scope.entries["n"][compared[side]]) for side in ("entry", "reference")]
    seeds_text = counted(seeds[0], "seed") if len(set(seeds)) == 1 else f"{seeds[0]} and {seeds[1]} seeds"
    return (
        f"Without such seeds the difference would be {signed_percent(compared['difference'])} points "
        f"{difference_interval_text(compared['low'], compared['high'])} over {seeds_text}. That is not the test: to "
        "leave out seeds that have collapsed favours the method that collapses more often."
    )


def _counts_text(scope: Scope, indices: Sequence[int]) -> str:
    """Say how many cells of some entries give one answer to all rows, and of how many it is not known.

    An average stands for its tasks. Settings of which more cells have collapsed come first. Empty if none has.
    """
    rows = _counts_by_arm(scope, indices)
    collapsed = sorted((row for row in rows if row["one_answer"]), key=_share, reverse=True)
    if not collapsed:
        return ""
    others = [row for row in rows if not row["one_answer"] and not row["unknown"]]
    with_targets = len({row["targets"] for row in rows}) > 1
    parts = [
        f"{row['one_answer']} of {row['with_predictions']}{'' if number else ' cells'} of {_name(row, with_targets)} "
        f"({row['by_task']})"
        for number, row in enumerate(collapsed[:_MAX_NAMED])
    ]
    if len(collapsed) > _MAX_NAMED:
        more = counted(len(collapsed) - _MAX_NAMED, "more setting")
        parts.append(f"cells of {more} (`one_answer` in the CSV of all settings)")
    if others:
        name = _name(others[0], with_targets)
        parts.append(f"none of {name if len(others) == 1 else f'the other {len(others)} settings'}")
    unknown = sum(row["unknown"] for row in rows)
    is_known = f" Of {counted(unknown, 'other cell')} this is not known: no predictions are stored." if unknown else ""
    return f"{join_words(parts)} give one answer to all rows: they have learnt nothing.{is_known}"


def _name(row: Row, with_targets: bool) -> str:
    return f"{row['size']} on {row['targets']}" if with_targets and row["targets"] else str(row["size"])


def _share(row: Row) -> float:
    return float(row["one_answer"] / row["with_predictions"])


def _counts_by_arm(scope: Scope, indices: Sequence[int]) -> list[Row]:
    """Return a row for each setting of some entries, in their order, with the counts over its tasks."""
    entries = scope.entries
    asked = entries.loc[list(dict.fromkeys(indices))]
    averages = asked["task"] == AVERAGE
    is_part = entries["arm"].isin(asked["arm"][averages]) & entries["task"].isin(scope.averaged)
    parts = entries[is_part | entries.index.isin(asked.index[~averages])]
    finished = parts["seeds"] - parts["failed"] - parts["diverged"]
    names = ["arm", "size", "targets", "task", *ANSWER_COLUMNS]
    rows = rows_of(parts[names].assign(unknown=finished - parts["with_predictions"]))
    by_arm: dict[int, list[Row]] = {arm: [] for arm in asked["arm"]}
    for row in rows:
        by_arm[row["arm"]].append(row)
    return [_summed(members) for members in by_arm.values()]


def _summed(rows: Sequence[Row]) -> Row:
    """Add up the counts of one setting on its tasks, and write those by task."""
    counts = {name: int(sum(row[name] for row in rows)) for name in (*ANSWER_COLUMNS, "unknown")}
    texts = [f"{task_title(row['task'])} {row['one_answer']}" for row in rows if row["one_answer"]]
    return {**rows[0], **counts, "by_task": ", ".join(texts)}

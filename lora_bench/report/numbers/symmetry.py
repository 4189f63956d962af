"""Is a or b worth more? Settings (a, b) and (b, a) of one rank have equally many trained values; this compares them.

The differences of all mirrored pairs are averaged by seed, and tested over the seeds by Student's t.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_bench.report.numbers.entries import Column, Scope, seed_scores
from lora_bench.report.numbers.frame import SCOPE, Row, rows_of
from lora_bench.report.numbers.statistics import SIGNIFICANCE, holm_correction, seed_interval
from lora_bench.report.numbers.tables import (
    ReportTable,
    TableColumn,
    build_table,
    difference_interval_text,
    p_relation,
    p_text,
    signed_percent,
)
from lora_bench.report.numbers.wording import column_title

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_UNDECIDED = "not distinguishable"


def measure_symmetry(scope: Scope) -> DataFrame:
    """Compare a and b for each column and each method and targets with mirrored pairs.

    Returns:
        A row per column, method and targets: the mean `difference` of the larger a less the larger b, its interval, `p`
        and `holm` over all rows, the numbers of `pairs` and of seeds (`n`), and the `verdict`: a, b or neither.
    """
    import pandas as pd

    rows = []
    for column in scope.columns:
        scores = seed_scores(scope, column)
        entries = scope.at(column)
        entries = entries[entries["a"].notna() & entries["b"].notna() & entries["rank"].notna()]
        for (label, targets), members in entries.groupby(["label", "targets"], dropna=False):
            by_seed, pairs = _differences(members, scores)
            if len(by_seed):
                rows.append(
                    {"task": column.task, "metric": column.metric, "label": label, "targets": targets}
                    | _test(by_seed, pairs)
                )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame = frame.assign(holm=holm_correction(frame["p"].to_numpy(dtype=float)))
    decided = frame["holm"] < SIGNIFICANCE
    verdicts = frame["difference"].map(lambda value: "a" if value > 0 else "b").where(decided, _UNDECIDED)
    return frame.assign(verdict=verdicts.where(frame["p"].notna(), "not tested"))


def symmetry_tables(scope: Scope, symmetries: DataFrame) -> list[ReportTable]:
    """Return a table; none if no pair is mirrored."""
    if symmetries.empty:
        return []
    columns = [
        TableColumn("task", "task", lambda row: column_title(Column(row["task"], row["metric"]))),
        TableColumn("label", "method"),
        TableColumn("targets", "targets"),
        TableColumn("pairs", "mirrored\npairs", numeric=True),
        TableColumn("difference", "larger a −\nlarger b", lambda row: signed_percent(row["difference"]), numeric=True),
        TableColumn("n", "seeds", numeric=True),
        TableColumn("low", "95%\ninterval", lambda row: difference_interval_text(row["low"], row["high"])),
        TableColumn("holm", "Holm\np", lambda row: p_text(row["holm"]), numeric=True),
        TableColumn("verdict", "worth more", bold=lambda row: row["verdict"] in ("a", "b")),
        *(TableColumn(name) for name in (*SCOPE, "metric", "std", "high", "p")),
    ]
    notes = (
        "Score with the larger a less score with the larger b, at the same rank and the same number of trained values: "
        "mean over mirrored pairs, then over seeds, ×100. The interval is over seeds alone; Holm p: over all rows.",
    )
    frame = symmetries.assign(**scope.values)
    return [build_table(f"symmetry {scope.title}", f"Is a or b worth more? {scope.title}", columns, frame, notes, 3)]


def sentences(symmetries: DataFrame) -> list[str]:
    """State in words what is significant."""
    return [_sentence(row) for row in rows_of(symmetries) if row["verdict"] in ("a", "b")] if len(symmetries) else []


def _sentence(row: Row) -> str:
    interval = difference_interval_text(row["low"], row["high"])
    return (
        f"{column_title(Column(row['task'], row['metric']))}: with {row['label']} on {row['targets']}, a larger "
        f"{row['verdict']} is worth {100 * abs(row['difference']):.1f} more than the other (95% interval of a less b "
        f"{interval}; Holm's p {p_relation(row['holm'])})."
    )


def _differences(entries: DataFrame, scores: Series) -> tuple[Series, int]:
    """Return by seed the mean difference over all mirrored pairs, for the seeds that have all of them."""
    mirrored = entries.merge(
        entries, left_on=["rank", "a", "b"], right_on=["rank", "b", "a"], suffixes=("", "_mirrored")
    )
    mirrored = mirrored[mirrored["a"] > mirrored["b"]]
    table = scores.unstack("seed")
    used = mirrored[mirrored["arm"].isin(table.index) & mirrored["arm_mirrored"].isin(table.index)]
    first, second = (table.loc[used[name]].reset_index(drop=True) for name in ("arm", "arm_mirrored"))
    return (first - second).mean(skipna=False).dropna() if len(used) else table.iloc[:0].sum().iloc[:0], len(used)


def _test(by_seed: Series, pairs: int) -> dict[str, object]:
    from scipy import stats

    n, mean = len(by_seed), float(by_seed.mean())
    std = float(by_seed.std(ddof=1)) if n > 1 else math.nan
    result: dict[str, object] = {"pairs": pairs, "difference": mean, "std": std, "n": n}
    interval = seed_interval(by_seed.tolist())
    if interval is None:
        return result | {"low": math.nan, "high": math.nan, "p": math.nan}
    error = std / math.sqrt(n)
    if error == 0:
        return result | interval._asdict() | {"p": 1.0 if mean == 0 else 0.0}
    return result | interval._asdict() | {"p": float(2 * stats.t.sf(abs(mean) / error, n - 1))}

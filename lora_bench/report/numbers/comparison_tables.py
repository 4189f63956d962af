"""The comparisons as tables, one form for every family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_bench.report.numbers.collapsed import collapsed_notes
from lora_bench.report.numbers.comparisons import (
    DECLARED,
    DEFAULT,
    EQUAL,
    SAME_SIZE,
    ScopeStatistics,
    is_decided,
)
from lora_bench.report.numbers.disagreements import family_notes
from lora_bench.report.numbers.entries import Column
from lora_bench.report.numbers.frame import SCOPE, Row
from lora_bench.report.numbers.tables import (
    DASH,
    ReportTable,
    TableColumn,
    build_table,
    count_text,
    difference_interval_text,
    p_text,
    percent,
    signed_percent,
    summary_text,
)
from lora_bench.report.numbers.wording import chosen_note, column_title, counted_points, main_name

if TYPE_CHECKING:
    from pandas import DataFrame

_SIDE = ("size", "targets", "method", "init", "rank", "a", "b", "mean", "std", "n", "seeds", "adapter_params")
_COMPARISON = ("error", "degrees", "high", "paired_high", "p", "p_equivalent", "family_size", "metric")


def comparison_tables(statistics: ScopeStatistics) -> list[ReportTable]:
    """Return the tables of the families that have comparisons: declared, equal size, default."""
    scope = statistics.scope
    compare = scope.compare
    subject, reference = compare.subject, compare.reference
    main = main_name(scope)
    equal_note = (
        f"{subject} against each size of {reference} on {main}: of the settings of {subject} with the same targets "
        f"and 1/{SAME_SIZE:g} to {SAME_SIZE:g} times as many trained values, the one {chosen_note(scope)}; of: among "
        "how many."
    )
    default_note = (
        f"Each method's setting on each set of targets, {chosen_note(scope)} on {main}, against {reference} at the "
        "nearest number of trained values, on the same targets where there is one. The average is a family, and so is "
        "each task."
    )
    default = statistics.default
    is_main = default["task"] == scope.main.task
    # A verdict declares its comparisons at equal size itself.
    equal = statistics.equal.iloc[:0] if compare.looks else statistics.equal
    families = (
        (statistics.declared, DECLARED, "Declared comparisons", f"The pairs that the config declares, on {main}."),
        (equal, EQUAL, f"{subject} against {reference} at equal size", equal_note),
        (default[is_main], DEFAULT, f"Each method against {reference}", default_note),
        (default[~is_main], f"{DEFAULT} by task", f"Each method against {reference}, by task", default_note),
    )
    return [
        _table(statistics, family, f"{kind} {scope.title}", f"{title}: {scope.title}", note)
        for family, kind, title, note in families
        if len(family)
    ]


def _table(statistics: ScopeStatistics, family: DataFrame, name: str, title: str, note: str) -> ReportTable:
    scope = statistics.scope
    frame = with_sides(statistics, family).assign(**scope.values)
    with_task = set(family["task"]) != {scope.main.task}
    task = [
        TableColumn("task", "task" if with_task else "", lambda row: column_title(Column(row["task"], row["metric"])))
    ]
    of = [TableColumn("of", "of", numeric=True)] if "of" in family else []
    columns = [
        *task,
        TableColumn("size", "setting"),
        TableColumn("targets", "targets"),
        *of,
        TableColumn("adapter_params", "trained\nvalues", lambda row: count_text(row["adapter_params"]), numeric=True),
        TableColumn("mean", "score", summary_text),
        TableColumn("reference_size", "against", _reference_text),
        TableColumn(
            "reference_adapter_params",
            "trained\nvalues",
            lambda row: count_text(row["reference_adapter_params"]),
            numeric=True,
        ),
        TableColumn("difference", "difference", lambda row: signed_percent(row["difference"]), numeric=True),
        TableColumn("low", "95%\ninterval", lambda row: difference_interval_text(row["low"], row["high"])),
        TableColumn("seeds_half", "seeds\nalone", _half_text, numeric=True),
        *_examples_columns(family),
        TableColumn(
            "paired_low",
            "paired\nby seed",
            lambda row: difference_interval_text(row["paired_low"], row["paired_high"]),
        ),
        TableColumn("holm", "Holm\np", lambda row: p_text(row["holm"]), numeric=True),
        TableColumn("holm_equivalent", "equivalence\nHolm p", lambda row: p_text(row["holm_equivalent"]), numeric=True),
        TableColumn("verdict", "verdict", bold=lambda row: is_decided(row["verdict"])),
        *(TableColumn(name) for name in (*SCOPE, "family", *_COMPARISON)),
        *(TableColumn(name) for name in _SIDE),
        *(TableColumn(f"reference_{name}") for name in _SIDE),
    ]
    sizes = sorted(set(family["holm"].notna().groupby(family["task"]).sum()))
    size_text = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    levels = " Intervals and tests hold for all looks together." if scope.compare.looks else ""
    notes = (
        note,
        f"Holm p: corrected over the {size_text} comparisons of a family; the verdict follows from it, at 5%. The "
        "interval is of one comparison on its own and may exclude 0 without a verdict. seeds alone: half the interval "
        "without the examples; paired by seed: Student's, of the differences of the seeds that both have. equivalence: "
        f"that the difference is below {counted_points(scope.compare.margin)}.{levels}",
        *(note for _, members in family.groupby("task", sort=False) for note in family_notes(statistics, members)),
        *collapsed_notes(scope, [*family["entry"], *family["reference"]]),
    )
    return build_table(name, title, columns, frame, notes, 2)


def _examples_columns(family: DataFrame) -> list[TableColumn]:
    """Return the columns of the interval over seeds and examples, where the comparison is over seeds alone."""
    if "examples_low" not in family:
        return []

    def text(row: Row) -> str:
        return difference_interval_text(row["examples_low"], row["examples_high"])

    return [TableColumn("examples_low", "with\nexamples", text), TableColumn("examples_high")]


def with_sides(statistics: ScopeStatistics, family: DataFrame) -> DataFrame:
    """Add the columns of the two entries of each comparison; those of the reference begin with `reference_`."""
    entries = statistics.scope.entries[[*_SIDE]]
    sides = entries.loc[family["entry"]].reset_index(drop=True)
    references = entries.loc[family["reference"]].reset_index(drop=True).add_prefix("reference_")
    plain = family.reset_index(drop=True).drop(columns=["entry", "reference"])
    return plain.join(sides).join(references)


def _reference_text(row: Row) -> str:
    """Name the reference, with its targets if they are others."""
    other = row["reference_targets"] != row["targets"] and row["reference_targets"] is not None
    return f"{row['reference_size']} ({row['reference_targets']})" if other else str(row["reference_size"])


def _half_text(row: Row) -> str:
    return DASH if row["seeds_half"] is None else f"±{percent(row['seeds_half'], 2)}"

"""Comparison with LoRA: each method's best setting against LoRA's, paired by seed and by example.

The p-values are corrected by Holm's method.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from lora_bench.report.numbers.entries import Column, Entry, Subset
from lora_bench.report.numbers.frame import ENTRY_FIELDS
from lora_bench.report.numbers.intervals import ExampleTest, compare_examples
from lora_bench.report.numbers.statistics import (
    Interval,
    add_example_variance,
    holm_correction,
    paired_seed_test,
    seed_interval,
)
from lora_bench.report.numbers.tables import (
    SUBSET_FIELDS,
    Field,
    ItemColumn,
    ReportTable,
    difference_interval_text,
    item_table,
    p_relation,
    p_text,
    signed_percent,
    subset_data,
)
from lora_bench.report.numbers.wording import column_title, task_title

REFERENCE = "lora"
SIGNIFICANCE = 0.05
NOT_DISTINGUISHED, NOT_TESTED = "not distinguishable", "not tested"
MAX_NAMED = 5  # a sentence counts the methods instead of naming them where there are more


@dataclass(frozen=True)
class Comparison:
    """A method's best setting compared with LoRA's, over the seeds that both have.

    Attributes:
        column: the task and metric.
        entry: the method's best setting.
        reference: LoRA's best setting.
        differences: the method's score less LoRA's, one per shared seed, in the metric's units.
        interval: the 95% interval of the mean difference.
        examples: the comparison over examples, of accuracy.
        p: the p-value of the paired t test over seeds.
        holm: `p` corrected over all comparisons of the subset.
        examples_holm: `examples.p` corrected in the same way.
    """

    column: Column
    entry: Entry
    reference: Entry
    differences: tuple[float, ...]
    interval: Interval | None
    examples: ExampleTest | None
    p: float | None
    holm: float | None = None
    examples_holm: float | None = None

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.differences)

    @property
    def std(self) -> float | None:
        """The sample standard deviation of the differences."""
        return statistics.stdev(self.differences) if len(self.differences) > 1 else None

    @property
    def verdict(self) -> str:
        """`above`, `below` or `not distinguishable`, by the corrected test over seeds; `not tested` without a test."""
        if self.p is None:
            return NOT_TESTED
        if self.holm is None or self.holm >= SIGNIFICANCE:
            return NOT_DISTINGUISHED
        return "above" if self.mean > 0 else "below"


def compare_with_lora(subset: Subset) -> tuple[Comparison, ...]:
    """Compare every method with LoRA on every task; tasks on which LoRA was not run are left out."""
    comparisons = []
    for column in subset.columns:
        best = subset.best_entries(column)
        if reference := best.pop(REFERENCE, None):
            candidates = (_compare(column, entry, reference) for entry in best.values())
            comparisons += [comparison for comparison in candidates if comparison]
    seed_p_values = holm_correction([comparison.p for comparison in comparisons])
    example_p_values = holm_correction(
        [comparison.examples.p if comparison.examples else None for comparison in comparisons]
    )
    return tuple(
        replace(comparison, holm=seed_p, examples_holm=example_p)
        for comparison, seed_p, example_p in zip(comparisons, seed_p_values, example_p_values, strict=True)
    )


def comparison_tables(subset: Subset, comparisons: Sequence[Comparison]) -> list[ReportTable]:
    """Return the comparisons as a table; no table without comparisons."""
    if not comparisons:
        return []
    name, title = f"against lora {subset.title}", f"Against LoRA: {subset.title}"
    return [item_table(name, title, _table_columns(subset), comparisons, _notes(comparisons), label_columns=2)]


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """State the comparisons in words: first what differs from LoRA, then what could not be distinguished."""
    undecided = (NOT_DISTINGUISHED, NOT_TESTED)
    lines = [_sentence(comparison) for comparison in comparisons if comparison.verdict not in undecided]
    if not_distinguished := _methods_with_verdict(NOT_DISTINGUISHED, comparisons):
        lines.append(f"Not distinguishable from LoRA with these seeds, which does not mean equal. {not_distinguished}.")
    if not_tested := _methods_with_verdict(NOT_TESTED, comparisons):
        lines.append(f"Fewer than 3 seeds shared with LoRA, so not tested. {not_tested}.")
    return lines


def _methods_with_verdict(verdict: str, comparisons: Sequence[Comparison]) -> str:
    """List the methods with a verdict, task by task; more than `MAX_NAMED` are only counted."""
    by_task: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_task.setdefault(task_title(comparison.column.task), []).append(comparison)
    phrases = []
    for task, members in by_task.items():
        labels = [comparison.entry.label for comparison in members if comparison.verdict == verdict]
        if labels:
            names = ", ".join(labels) if len(labels) <= MAX_NAMED else f"{len(labels)} of {len(members)} methods"
            phrases.append(f"{task}: {names}")
    return "; ".join(phrases)


def _compare(column: Column, entry: Entry, reference: Entry) -> Comparison | None:
    """Compare two entries over their shared seeds, before Holm's correction; None if they share no seed."""
    seeds = sorted(entry.scores.keys() & reference.scores.keys())
    if not seeds:
        return None
    scores, reference_scores = ([side.scores[seed] for seed in seeds] for side in (entry, reference))
    differences = tuple(one - other for one, other in zip(scores, reference_scores, strict=True))
    cells_by_seed = [{cell["seed"]: cell for cell in side.cells} for side in (entry, reference)]
    examples = compare_examples(column, *([cells[seed] for seed in seeds] for cells in cells_by_seed))
    interval = seed_interval(differences)
    if examples and column.metric == "accuracy":
        mean = statistics.fmean(differences)
        interval = add_example_variance(interval, mean, examples.variance.beyond_seeds, examples.rows)
    p = paired_seed_test(scores, reference_scores)
    return Comparison(column, entry, reference, differences, interval, examples, p)


def _table_columns(subset: Subset) -> list[ItemColumn[Comparison]]:
    """Define the columns of the table of comparisons."""
    column = ItemColumn[Comparison]
    return [
        *(_subset_column(subset, name) for name in SUBSET_FIELDS),
        *(column(name, attrgetter(f"entry.{name}")) for name in ENTRY_FIELDS),
        *(column(f"lora_{name}", attrgetter(f"reference.{name}")) for name in ENTRY_FIELDS[1:]),
        column("", lambda c: column_title(c.column), "task"),
        column("", lambda c: c.entry.size, "method"),
        column("", lambda c: c.reference.size, "LoRA"),
        column("difference", lambda c: c.mean, "difference", _difference_field),
        column("std", lambda c: c.std),
        column("n", lambda c: len(c.differences)),
        column(
            "low",
            lambda c: c.interval and c.interval.low,
            "95%\ninterval",
            lambda c: Field(difference_interval_text(c.interval), numeric=False),
        ),
        column("high", lambda c: c.interval and c.interval.high),
        column("p_seeds", lambda c: c.p, "p\nseeds", lambda c: Field(p_text(c.p))),
        column("p_seeds_holm", lambda c: c.holm, "Holm\nseeds", lambda c: Field(p_text(c.holm))),
        column("p_examples", _examples_p, "p\nexamples", lambda c: _bound_field(c, _examples_p(c))),
        column(
            "p_examples_holm", lambda c: c.examples_holm, "Holm\nexamples", lambda c: _bound_field(c, c.examples_holm)
        ),
        column("p_examples_is_bound", lambda c: c.examples and c.examples.bound),
        column("examples", lambda c: c.examples and c.examples.rows),
        column("agreement", lambda c: c.examples and c.examples.agreement, "same\npredictions", _agreement_field),
        column(
            "verdict",
            lambda c: c.verdict,
            "verdict",
            lambda c: Field(c.verdict, c.verdict not in (NOT_DISTINGUISHED, NOT_TESTED), numeric=False),
        ),
    ]


def _subset_column(subset: Subset, name: str) -> ItemColumn[Comparison]:
    return ItemColumn(name, lambda comparison: subset_data(subset, comparison.column)[name])


def _difference_field(comparison: Comparison) -> Field:
    spread = "" if comparison.std is None else f" ± {100 * comparison.std:.1f}"
    return Field(f"{signed_percent(comparison.mean)}{spread} ({len(comparison.differences)})", numeric=False)


def _examples_p(comparison: Comparison) -> float | None:
    return comparison.examples.p if comparison.examples else None


def _bound_field(comparison: Comparison, p: float | None) -> Field:
    """Format a p-value over examples, with `≤` if it is only an upper bound."""
    examples = comparison.examples
    return Field(("≤" if examples and examples.bound and examples.p is not None else "") + p_text(p))


def _agreement_field(comparison: Comparison) -> Field:
    return Field(f"{100 * comparison.examples.agreement:.1f}%" if comparison.examples else "—")


def _notes(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    notes = [
        "Best setting of each method less LoRA's best, on the same seeds (n): mean ± std of the differences, ×100. "
        "Both are chosen by the reported scores, which flatters the method with more settings.",
        f"Holm: corrected over the {len(comparisons)} comparisons of this table; the verdict is that of seeds at 5%. "
        "Seeds: Student's paired t, from 3 seeds on. Examples: paired t of accuracy over the same examples, seeds "
        "averaged (McNemar's for one seed); it speaks of these very cells, not of other seeds.",
    ]
    if any(comparison.examples and comparison.examples.bound for comparison in comparisons):
        notes.append("≤: with more than two classes the p over examples is an upper bound.")
    if any(comparison.column.metric != "accuracy" and comparison.examples for comparison in comparisons):
        notes.append("Where the metric is not accuracy, the test over examples is still of accuracy.")
    return tuple(notes)


def _sentence(comparison: Comparison) -> str:
    interval = ""
    if comparison.interval is not None:
        interval = f", 95% interval {difference_interval_text(comparison.interval)}"
    return (
        f"{task_title(comparison.column.task)}: {comparison.entry.size} is {100 * abs(comparison.mean):.1f} "
        f"{comparison.verdict} {comparison.reference.size} (mean of {len(comparison.differences)} paired "
        f"seeds{interval}; Holm's p {p_relation(comparison.holm)})."
    )

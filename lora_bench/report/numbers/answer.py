"""The answer, in plain sentences, from the same numbers as the tables.

In a folder with a verdict (`verdict`), the verdict. Elsewhere, what the declared comparisons say, whether the method
that the report is about matches the reference at equal size, and what is best at about 100,000 trained values. In
both, on what evidence, and what was not tested.
"""

from __future__ import annotations

import math

from lora_bench.report.numbers.collapsed import collapsed_tasks
from lora_bench.report.numbers.comparison_tables import with_sides
from lora_bench.report.numbers.comparisons import (
    ABOVE,
    BELOW,
    EQUIVALENT,
    NOT_TESTED,
    SAME_SIZE,
    UNDECIDED,
    ScopeStatistics,
)
from lora_bench.report.numbers.disagreements import ranking_notes
from lora_bench.report.numbers.entries import Scope
from lora_bench.report.numbers.frame import Row, device_prefix, is_missing, rows_of
from lora_bench.report.numbers.score_tables import class_text
from lora_bench.report.numbers.statistics import MIN_SEEDS
from lora_bench.report.numbers.tables import (
    difference_interval_text,
    percent,
    score_interval_text,
    signed_percent,
)
from lora_bench.report.numbers.verdict import verdict_sentences
from lora_bench.report.numbers.wording import counted_points, is_held_out, join_words, main_name, set_text, task_title
from lora_bench.tasks import TASKS
from lora_bench.text import counted

ASKED_SIZE = 5.0  # the decimal logarithm of the size that the first sentence is about
NAMES = {"mini": "LoRA-Mini", "lora": "LoRA", "xs": "LoRA-XS", "cora": "CoRA"}
_MAX_NAMED = 6
_GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def answer(statistics: ScopeStatistics) -> tuple[str, ...]:
    """Return the sentences."""
    verdict = verdict_sentences(statistics)
    first = verdict or [_declared_sentence(statistics), _match_sentence(statistics), _best_sentence(statistics)]
    parts = (*first, *_chance_sentences(statistics), *_constant_sentences(statistics.scope))
    return (*(part for part in parts if part), _evidence_sentence(statistics), _untested_sentence(statistics))


def method_title(name: str) -> str:
    """Return a method's name as the papers write it, where it differs."""
    return NAMES.get(name, name)


def _best_sentence(statistics: ScopeStatistics) -> str:
    """Say which method is best at about 100,000 trained values, or at the nearest size that was run."""
    frontier = statistics.frontier
    tested = frontier[(frontier["n"] >= MIN_SEEDS) & frontier["init"].isna()] if len(frontier) else frontier
    if tested.empty:
        return f"No setting has {MIN_SEEDS} seeds or more here: nothing is compared."
    counts = tested["size_class"].value_counts()
    several = [float(size) for size in counts[counts > 1].index.tolist()]
    if not several:
        return ""
    size = min(several, key=lambda one: (abs(one - ASKED_SIZE), one))
    members = rows_of(tested[tested["size_class"] == size].sort_values("mean", ascending=False, kind="stable"))
    top, *others = members
    compare = statistics.scope.compare
    # The two methods that the report is about stand first in each list.
    ordered = sorted(others, key=lambda row: row["label"] not in (compare.subject, compare.reference))
    possible, behind = ([_scored(row) for row in ordered if row["best"] is best] for best in (True, False))
    middle = 10.0**size
    sentences = [
        # The limits are exact: rounded, they would seem to include settings that are just outside.
        f"At about {class_text(middle)} trained values ({math.ceil(middle / 10**0.25):,} to "
        f"{math.floor(middle * 10**0.25):,}) the best mean of {counted(len(members), 'method')} on "
        f"{main_name(statistics.scope)} is that of {_setting(top)}, {percent(top['mean'])} "
        f"{score_interval_text(top['low'], top['high'])}.",
        f"Others that may be the best: {_listed(possible)}." if possible else "No other one may be the best.",
        *([f"Not the best, with 95% confidence: {_listed(behind)}."] if behind else []),
        *ranking_notes(statistics, statistics.scope.main, frontier[frontier["size_class"] == size]),
    ]
    return " ".join(sentences)


def _scored(row: Row) -> str:
    return f"{_setting(row)} ({percent(row['mean'])})"


def _match_sentence(statistics: ScopeStatistics) -> str:
    """Say whether the subject matches the reference at equal size."""
    scope = statistics.scope
    compare = scope.compare
    subject, reference = method_title(compare.subject), method_title(compare.reference)
    labels = set(scope.entries["label"])
    if not {compare.subject, compare.reference} <= labels:
        return ""
    if statistics.equal.empty:
        return f"No {reference} here has about as many trained values as a {subject}: nothing to compare at equal size."
    rows = rows_of(with_sides(statistics, statistics.equal))
    tested = [row for row in rows if row["verdict"] != NOT_TESTED]
    if not tested:
        return f"{subject} against {reference} at equal size: fewer than {MIN_SEEDS} seeds, so not tested."
    worse, better, equivalent = _counts(tested)
    lower = sum(row["difference"] < 0 for row in tested)
    differences = [row["difference"] for row in tested]
    margin = f"±{counted_points(compare.margin)}"
    verdict = _overall([*tested, *_declared_at_equal_size(statistics)])
    overall = statistics.mean_difference(statistics.equal)
    return (
        f"Does {subject} match {reference} at equal size (numbers of trained values within a factor of "
        f"{SAME_SIZE:g})? {verdict} In {lower} of {counted(len(tested), 'comparison')} of chosen settings its mean is "
        f"lower ({_range_text(differences)} points); after Holm's correction "
        f"{worse} {_is_or_are(worse)} worse, {better} better, {equivalent} equivalent within {margin}. "
        f"Over all of them the mean difference is {signed_percent(overall.difference)} "
        f"{difference_interval_text(overall.low, overall.high)}."
    )


def _range_text(differences: list[float]) -> str:
    """Write the lowest and the highest of some differences, or the only one."""
    ends = [signed_percent(min(differences)), signed_percent(max(differences))]
    return " to ".join(dict.fromkeys(ends))


def _declared_at_equal_size(statistics: ScopeStatistics) -> list[Row]:
    """The declared comparisons of the subject with the reference at equal size, on any targets."""
    declared, entries, compare = statistics.declared, statistics.scope.entries, statistics.scope.compare
    sides = [entries.loc[declared[name]].reset_index(drop=True) for name in ("entry", "reference")]
    asked = [side["label"] == name for side, name in zip(sides, (compare.subject, compare.reference), strict=True)]
    ratio = sides[0]["adapter_params"].astype(float) / sides[1]["adapter_params"].astype(float)
    chosen = declared[(asked[0] & asked[1] & ratio.between(1 / SAME_SIZE, SAME_SIZE)).to_numpy()]
    return [row for row in rows_of(chosen) if row["verdict"] != NOT_TESTED]


def _declared_sentence(statistics: ScopeStatistics) -> str:
    """Count the verdicts of the declared comparisons."""
    declared = statistics.declared
    rows = rows_of(with_sides(statistics, declared)) if len(declared) else []
    tested = [row for row in rows if row["verdict"] != NOT_TESTED]
    if not tested:
        return ""
    worse, better, equivalent = _counts(tested)
    undecided = sum(row["verdict"] == UNDECIDED for row in tested)
    return (
        f"Of the {counted(len(tested), 'declared comparison')} the first setting is worse in {worse}, better in "
        f"{better}, equivalent within ±{counted_points(statistics.scope.compare.margin)} in {equivalent} and not "
        f"distinguishable in {undecided}."
    )


def _counts(tested: list[Row]) -> tuple[int, int, int]:
    """Count the verdicts worse, better and equivalent; one may be counted as equivalent and as one of the others."""
    worse, better = (sum(row["verdict"].startswith(kind) for row in tested) for kind in (BELOW, ABOVE))
    return worse, better, sum(EQUIVALENT in row["verdict"] or "margin" in row["verdict"] for row in tested)


def _overall(tested: list[Row]) -> str:
    """Answer yes, no or unknown from the verdicts."""
    worse, better, equivalent = _counts(tested)
    if worse and not better:
        only = worse == len(tested)
        return "No: it is worse at every size." if only else "No: where these seeds can tell, it is worse."
    if better and not worse:
        return "Yes: where these seeds can tell, it is better."
    if better and worse:
        return "It depends on the size."
    if equivalent == len(tested):
        return "Yes: it is equivalent at every size."
    tendency = " (mostly lower)" if sum(row["difference"] < 0 for row in tested) > len(tested) * 3 / 4 else ""
    return f"Unknown: these seeds show no difference{tendency}, which does not mean that there is none."


def _chance_sentences(statistics: ScopeStatistics) -> list[str]:
    """Name the tasks on which nothing is distinguishable from the head alone, which are learnt by nothing."""
    scope = statistics.scope
    unlearnt = []
    for column in scope.tasks:
        entries = scope.chosen[column.task]
        heads = entries[(entries["method"] == "head") & (entries["n"] >= MIN_SEEDS)]
        others = entries[(entries["method"] != "head") & (entries["n"] >= MIN_SEEDS)]
        if heads.empty or others.empty:
            continue
        pairs = others.index.to_frame(name="entry").assign(reference=heads.index[0])
        table = statistics.compare(column, pairs, "head")
        if not table["verdict"].str.startswith(ABOVE).any():
            unlearnt.append(column.task)
    if not unlearnt:
        return []
    return [
        f"No method is distinguishable from training the head alone on {set_text(unlearnt)}: this says nothing of them."
    ]


def _constant_sentences(scope: Scope) -> list[str]:
    """Name the tasks on which no cell has learnt anything."""
    tasks = collapsed_tasks(scope)
    if not tasks:
        return []
    return [
        f"On {set_text(tasks)} every cell gives one answer to all rows: nothing was learnt there, and scores say "
        "nothing of the methods."
    ]


def _evidence_sentence(statistics: ScopeStatistics) -> str:
    scope = statistics.scope
    entries = scope.at(scope.main)
    scored = entries[entries["n"] > 0]
    seeds = sorted({int(n) for n in scored["n"]})
    seeds_text = "no seed" if not seeds else str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    deviation = statistics.means[scope.main.task].typical_deviation
    spread = (
        f"; seeds vary by {percent(deviation)} (standard deviation, median of settings)"
        if deviation == deviation
        else ""
    )
    chosen = "held-out training rows" if is_held_out(scope) else "the scores that are shown"
    seconds = scope.cells["seconds"].sum()
    unit = f"{device_prefix(scope.cells)}minutes"
    minutes = f"{seconds / 60:,.0f}" if seconds >= 600 else f"{seconds / 60:.1f}"
    time = f"{minutes} {unit} of training, without what was searched or tried before; " if seconds else ""
    return (
        f"Evidence: {counted(len(scope.cells), 'cell')} on {scope.title}, {counted(len(entries), 'setting')} on "
        f"{main_name(scope)} with {seeds_text} seed{'' if seeds == [1] else 's'} each{spread}; {time}settings are "
        f"chosen by {chosen}."
    )


def _untested_sentence(statistics: ScopeStatistics) -> str:
    """Say what these records cannot tell."""
    scope = statistics.scope
    run = {column.task for column in scope.tasks}
    missing = [task_title(task) for task in _GLUE if task not in run and task in TASKS]
    parts = ["any other encoder"]
    if missing and run & set(_GLUE):
        parts.append(f"{join_words(missing)}")
    if scope.cells.groupby(["task", "method"])["epochs"].nunique().max() == 1:
        parts.append("longer or shorter training")
    searched = any(record.search is not None for record in scope.cells["record"])
    if (scope.entries["tried"] == 1).all() and not searched:
        parts.append("other learning rates than the one that each setting was given")
    if scope.compare.looks:
        parts.append("other sizes and settings of these methods")
    small = _below_reference(scope)
    parts += [small] if small else []
    return f"Not tested here: {join_words(parts, 'or')}."


def _below_reference(scope: Scope) -> str:
    """Say below which size there is no reference to compare with, if the subject was run there."""
    entries = scope.at(scope.main)
    sizes = {name: entries[entries["label"] == name]["adapter_params"].min() for name in _both(scope)}
    subject, reference = (sizes[name] for name in _both(scope))
    if is_missing(subject) or is_missing(reference) or not subject < reference:
        return ""
    return f"{method_title(scope.compare.reference)} below {int(reference):,} trained values"


def _both(scope: Scope) -> tuple[str, str]:
    return scope.compare.subject, scope.compare.reference


def _setting(row: Row) -> str:
    return f"{row['size']} on {row['targets']}" if row["targets"] else str(row["size"])


def _listed(names: list[str]) -> str:
    shown = names[:_MAX_NAMED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _is_or_are(count: int) -> str:
    return "is" if count == 1 else "are"

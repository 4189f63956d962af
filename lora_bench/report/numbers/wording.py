"""The report's wording: headings, names of metrics and tasks, and the notes that explain a table's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_bench.compare import Comparisons
from lora_bench.report.numbers.entries import AVERAGE, HELD_OUT, Column, Scope
from lora_bench.report.numbers.looks import FIRST_SHARE
from lora_bench.report.numbers.statistics import MIN_SEEDS
from lora_bench.tasks import TASKS

_LEGEND = (
    "Numbers are ×100: mean ± sample standard deviation over seeds (number of seeds). One seed has no deviation.",
    "(4/5): 4 of 5 seeds have a score, the others failed or diverged; — where none has. Means are of the seeds that "
    "have one; how they would be with lost seeds as 0 is said below the table.",
    "†: fewer than 3 seeds, so no interval and no test.",
    "Average: by seed, the mean over its tasks; over the seeds that have a score at all of them.",
    "Settings are chosen by the held-out score where there is one, never by the score that is shown.",
)
_OVER = {
    "seeds+examples": "95% interval: over seeds and examples. Examples count for accuracy and Matthews "
    "correlation, where the records hold predictions; Pearson's and other metrics have intervals over seeds alone.",
    "seeds": "95% interval: over seeds alone, as declared; on other examples of the same tasks the differences may be "
    "others. with examples: the interval over both, for accuracy and Matthews correlation.",
}
_DEVIATIONS = "Each setting has the deviation between its own seeds (Welch's test)."
_LOOKS = (
    "Intervals and tests hold for all looks together, whether or not seeds are added: the allowed error is spent over "
    "the looks (Lan and DeMets 1983), at a look with t times the first one's seeds up to "
    f"1 - {1 - FIRST_SHARE:.1g} / t of it; intervals are repeated confidence intervals (Jennison and Turnbull 1989).",
)
_TESTS = (
    "Lost seeds may have been the worst: intervals and tests then reach from the mean without as many of the best "
    "ones to the mean of those left.",
    "Tests: from the same standard error; Holm's correction within each family of comparisons. Equivalent: two "
    "one-sided tests at 5% say that the difference is smaller than the declared margin, after the same correction.",
    "Ranks: those that a row may have in its group, from its comparisons with all other rows there, corrected for "
    "their number (Bonferroni); they hold with 95% for each row on its own, as the intervals of means do. A row with "
    f"{MIN_SEEDS} seeds or more may be the best if its ranks begin with 1: the truly best of these is among those with "
    "95%.",
    "adapter, head params: trained values; bytes: the saved adapter, and the same file in 16 bits; seconds a cell: its "
    "share of its pack's time.",
)

_METRIC_NAMES = {
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "f1": "F1",
    "macro_f1": "macro F1",
}
_SELECTIONS = {
    "best": "best epoch, chosen on the reported split",
    "last": "last epoch",
    "held-out": "epoch chosen on held-out training rows",
}


def legend(compare: Comparisons) -> tuple[str, ...]:
    """Return how the report's numbers are to be read, in sentences."""
    return (*_LEGEND, _OVER[compare.over], _DEVIATIONS, *(_LOOKS if compare.looks else ()), *_TESTS)


def protocol_sentence(scope: Scope) -> str:
    """Describe how a scope's numbers were obtained, in one sentence."""
    values = scope.values
    selection = _SELECTIONS.get(values["select"], values["select"])
    data = "local files" if values["data"] == "files" else values["data"]
    return f"Data: {data}; {values['split']} split; {selection}; training starts from: {values['start']}."


def metric_name(metric: str) -> str:
    """Return a metric's name in words."""
    return _METRIC_NAMES.get(metric, metric.replace("_", " "))


def task_title(task: str) -> str:
    """Return a task's name as papers write it."""
    return TASKS[task].title if task in TASKS else task


def column_title(column: Column) -> str:
    """Return the task and, in parentheses, the metric."""
    if column.task == AVERAGE:
        return "Average"
    return f"{task_title(column.task)} ({metric_name(column.metric)})"


def chosen_note(scope: Scope) -> str:
    """Say how settings were chosen."""
    if is_held_out(scope):
        return "chosen by the mean score on held-out training rows"
    return "chosen by the score that is shown (nothing was held out), which flatters a method with many settings"


def is_held_out(scope: Scope) -> bool:
    """Whether settings were chosen on held-out rows."""
    return bool((scope.entries["chosen_by"] == HELD_OUT).any())


def choice_text(scope: Scope) -> str:
    """Say shortly, for a caption, by what settings were chosen."""
    return "on held-out rows" if is_held_out(scope) else "by the score shown"


def set_text(tasks: Iterable[str]) -> str:
    """Name several tasks: `CoLA, SST-2 and MRPC`."""
    return join_words([task_title(task) for task in tasks])


def counted_points(margin: float) -> str:
    """Return a difference of scores with its unit: `1 point`, `0.5 points`."""
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def join_words(words: Sequence[str], last: str = "and") -> str:
    """Join words as in a sentence: `a, b and c`."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def main_name(scope: Scope) -> str:
    """Name the scores of the main column in a sentence."""
    if scope.main.task == AVERAGE:
        return f"the average of {set_text(scope.averaged)}"
    return column_title(scope.main)

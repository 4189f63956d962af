"""The report's wording: headings, names of metrics and tasks, and the notes that explain a table's numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from lora_bench.report.numbers.entries import Column, Entry, Subset
from lora_bench.tasks import TASKS

LEGEND = (
    "Numbers are ×100: mean ± sample standard deviation over seeds; median (number of seeds). One seed has neither.",
    "(4/5): 4 of 5 seeds have a score, the others failed or diverged; — where none has.",
    "†: fewer than 3 seeds.",
    "Bold: the best mean of its column, as printed.",
    "average: the mean of the rows above; its ±, median and count are of the seeds that have a score in all of them.",
    "adapter, head params: trained values; bytes: the saved adapter, and the same file in 16 "
    "bits; seconds a cell: its share of its pack's time.",
    "95% interval: over seeds, by Student's t from 3 seeds on; where the score is an accuracy, widened by what the "
    "examples of the split add.",
)

_METRIC_NAMES = {
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "f1": "F1",
    "macro_f1": "macro F1",
}
_PLURALS = {
    "lr": "learning rates",
    "head_lr": "head learning rates",
    "alpha": "alphas",
    "weight_decay": "weight decays",
    "warmup": "warm-ups",
    "clip": "clipping norms",
    "epochs": "numbers of epochs",
    "batch_size": "batch sizes",
    "max_length": "maximal lengths",
    "precision": "precisions",
}
_SELECTIONS = {
    "best": "best epoch, chosen on the reported split",
    "last": "last epoch",
    "held-out": "epoch chosen on held-out training rows",
}


def protocol_sentence(subset: Subset) -> str:
    """Describe how a subset's numbers were obtained, in one sentence."""
    scope = subset.scope
    selection = _SELECTIONS.get(scope["select"], scope["select"])
    return f"Data: {scope['data']}; {scope['split']} split; {selection}; training starts from: {scope['start']}."


def metric_name(metric: str) -> str:
    """Return a metric's name in words."""
    return _METRIC_NAMES.get(metric, metric.replace("_", " "))


def task_title(task: str) -> str:
    """Return a task's name as papers write it."""
    return TASKS[task].title if task in TASKS else task


def column_title(column: Column) -> str:
    """Return the task and, in parentheses, the metric."""
    return f"{task_title(column.task)} ({metric_name(column.metric)})"


def selection_notes(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Explain which entries are the best of several settings, and how many cells of other settings have no score."""
    entries = list(entries)
    counts_by_varying: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for entry in entries:
        if entry.settings_tried > 1:
            counts_by_varying[entry.varying].append(entry.settings_tried)
    all_chosen = len(counts_by_varying) == 1 and all(entry.settings_tried > 1 for entry in entries)
    notes = [_selection_note(varying, counts, all_chosen) for varying, counts in sorted(counts_by_varying.items())]
    hidden = sum(entry.hidden_failures for entry in entries)
    if hidden:
        notes.append(f"Under settings not shown, {hidden} more {'cell has' if hidden == 1 else 'cells have'} no score.")
    return tuple(notes)


def uneven_notes(ranks: Mapping[int, Sequence[Entry]], pairs: int) -> tuple[str, ...]:
    """Warn if the averages of a row are not over the same (a, b).

    Args:
        ranks: the entries of each rank.
        pairs: the number of different (a, b) over all ranks.
    """
    counts = {rank: sum(1 for entry in entries if entry.scores) for rank, entries in ranks.items()}
    incomplete = [f"{count} of {pairs} at r={rank}" for rank, count in counts.items() if count < pairs]
    return (f"The averages are over unequal sets of (a, b): {', '.join(incomplete)}.",) if incomplete else ()


def _selection_note(varying: tuple[str, ...], counts: Sequence[int], all_chosen: bool) -> str:
    settings = _PLURALS.get(varying[0], varying[0]) if len(varying) == 1 else f"settings ({', '.join(varying)})"
    subject = "Each entry is the" if all_chosen else "Where several were run, an entry is the"
    up_to = "" if len(set(counts)) == 1 else "up to "
    return f"{subject} best of {up_to}{max(counts)} {settings}, by the mean of the reported scores (which flatters it)."

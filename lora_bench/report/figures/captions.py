"""The words of the report: headings, names of metrics, what a table owes its reader beside the numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from lora_bench.report.numbers.slots import Column, Piece, Slot
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

_METRICS = {
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "f1": "F1",
}
_MANY = {
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
_SELECT = {
    "best": "best epoch, chosen on the reported split",
    "last": "last epoch",
    "held-out": "epoch chosen on held-out training rows",
}


def protocol(piece: Piece) -> str:
    """One sentence on how the numbers of this piece were made."""
    scope = piece.scope
    select = _SELECT.get(scope["select"], scope["select"])
    return f"Data: {scope['data']}; {scope['split']} split; {select}; training starts from: {scope['start']}."


def metric_name(metric: str) -> str:
    """A metric's name in words."""
    return _METRICS.get(metric, metric.replace("_", " "))


def task_title(task: str) -> str:
    """A task's name as papers write it."""
    return TASKS[task].title if task in TASKS else task


def column_title(column: Column) -> str:
    """A task with its metric in words."""
    return f"{task_title(column.task)} ({metric_name(column.metric)})"


def choice_notes(slots: Iterable[Slot]) -> tuple[str, ...]:
    """Which entries are the best of several settings, and what failed among those not shown."""
    slots = list(slots)
    tried: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for slot in slots:
        if slot.tried > 1:
            tried[slot.varying].append(slot.tried)
    every = len(tried) == 1 and all(slot.tried > 1 for slot in slots)
    notes = [_choice(varying, counts, every) for varying, counts in sorted(tried.items())]
    hidden = sum(slot.hidden_failures for slot in slots)
    if hidden:
        notes.append(f"Under settings not shown, {hidden} more {'cell has' if hidden == 1 else 'cells have'} no score.")
    return tuple(notes)


def uneven_notes(ranks: Mapping[int, Sequence[Slot]], pairs: int) -> tuple[str, ...]:
    """A warning where the averages of a row are not over the same (a, b)."""
    scored = {rank: sum(1 for slot in slots if slot.scores) for rank, slots in ranks.items()}
    short = [f"{count} of {pairs} at r={rank}" for rank, count in scored.items() if count < pairs]
    return (f"The averages are over unequal sets of (a, b): {', '.join(short)}.",) if short else ()


def _choice(varying: tuple[str, ...], counts: Sequence[int], every: bool) -> str:
    many = _MANY.get(varying[0], varying[0]) if len(varying) == 1 else f"settings ({', '.join(varying)})"
    where = "Each entry is the" if every else "Where several were run, an entry is the"
    upto = "" if len(set(counts)) == 1 else "up to "
    return f"{where} best of {upto}{max(counts)} {many}, by the mean of the reported scores (which flatters it)."

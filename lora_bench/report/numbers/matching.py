"""Two results folders matched: which cells are in both, and what else differs between the folders.

Cells are matched by their settings. A field in which the folders differ altogether (all cells of one have bf16, say,
all of the other float32) is left out of the match and named instead, so that two encoders or two versions of the data
can be compared as well as two runs of the same grid. Scores in different metrics are never compared: these are
different cells, and `facts` names the metrics.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.report.numbers.frame import final_score
from lora_bench.tasks import TASKS
from lora_bench.text import clean

# Fields that never say what a folder is about: the task matches, and a start is an id that depends on all settings.
_NO_DIFFERENCE = frozenset({"task", "seed", "start"})
METRIC_OF = "metric of "  # a task
Key = tuple[object, ...]


class Pair(NamedTuple):
    """A cell of the folder, and the cell of the other one that has the same settings."""

    new: Record
    old: Record

    @property
    def is_same(self) -> bool:
        """Whether losses, metrics and predictions of all epochs are equal to the last bit."""
        return _numbers(self.new) == _numbers(self.old)

    @property
    def difference(self) -> float | None:
        """The difference of the scores; None if one of them has none."""
        new, old = final_score(self.new), final_score(self.old)
        return None if new is None or old is None else new - old


@dataclass(frozen=True)
class Match:
    """The cells of two folders, matched.

    Attributes:
        pairs: The cells that are in both, sorted by task and settings.
        only_new: The cells that are in the folder alone.
        only_old: The cells that are in the other one alone.
        fields: The fields in which the folders differ altogether, with the values of each as text.
    """

    pairs: tuple[Pair, ...]
    only_new: tuple[Record, ...]
    only_old: tuple[Record, ...]
    fields: Mapping[str, tuple[str, str]]

    @property
    def records(self) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
        """All records of the folder, and all of the other one."""
        return (
            (*(pair.new for pair in self.pairs), *self.only_new),
            (*(pair.old for pair in self.pairs), *self.only_old),
        )

    @property
    def status_changes(self) -> tuple[Pair, ...]:
        """The pairs whose training ended in another way, or only once with a score."""
        return tuple(
            pair
            for pair in self.pairs
            if pair.new.status != pair.old.status or (final_score(pair.new) is None) != (final_score(pair.old) is None)
        )

    @cached_property
    def facts(self) -> Mapping[str, tuple[str, str]]:
        """What else differs: versions, devices, code, splits, metrics, data; the values of each folder as text."""
        new, old = (_facts(records) for records in self.records)
        names = sorted({*new, *old})
        values = {name: (_joined(new.get(name, ())), _joined(old.get(name, ()))) for name in names}
        one_sided = {name for name, sides in values.items() if name.startswith(METRIC_OF) and not all(sides)}
        return {name: sides for name, sides in values.items() if sides[0] != sides[1] and name not in one_sided}


def match(new: Iterable[Record], old: Iterable[Record]) -> Match:
    """Match the cells of a folder with those of another one; cells that only searched rates are left out."""
    new, old = ([record for record in records if not record.is_search] for records in (new, old))
    fields = _differing_fields(new, old)
    of_new, of_old = (by_key(records, fields) for records in (new, old))
    pairs = [Pair(record, of_old[key]) for key, record in of_new.items() if key in of_old]
    return Match(
        tuple(sorted(pairs, key=lambda pair: cell_order(pair.new))),
        _without(new, {pair.new.id for pair in pairs}),
        _without(old, {pair.old.id for pair in pairs}),
        fields,
    )


def _without(records: Iterable[Record], ids: Container[str]) -> tuple[Record, ...]:
    return tuple(sorted((record for record in records if record.id not in ids), key=cell_order))


def _differing_fields(new: Sequence[Record], old: Sequence[Record]) -> Mapping[str, tuple[str, str]]:
    """Return the fields that have one value on each task in each folder, and not the same one."""
    tasks = sorted({record.cell.task for record in new} & {record.cell.task for record in old})
    differing = {}
    for name in Cell.model_fields:
        if name in _NO_DIFFERENCE or not tasks:
            continue
        sides = [
            [{getattr(record.cell, name) for record in records if record.cell.task == task} for task in tasks]
            for records in (new, old)
        ]
        if all(len(values) == 1 for side in sides for values in side) and sides[0] != sides[1]:
            new_text, old_text = (_joined({str(value) for values in side for value in values}) for side in sides)
            differing[name] = new_text, old_text
    return differing


def by_key(records: Iterable[Record], fields: Mapping[str, object]) -> dict[tuple[str, str, int, Key], Record]:
    """Return records by task, main metric, seed and other settings; records that have the same ones are left out.

    Args:
        records: The records.
        fields: The fields in which the folders differ altogether, which are left out of the settings.
    """
    alike: dict[tuple[str, str, int, Key], list[Record]] = {}
    for record in records:
        key = (record.cell.task, record.metric, record.cell.seed, _setting_key(record, fields))
        alike.setdefault(key, []).append(record)
    return {key: same[0] for key, same in alike.items() if len(same) == 1}


def _setting_key(record: Record, fields: Mapping[str, object]) -> Key:
    """Return the settings of a cell without the seed and the fields in which the folders differ.

    What a cell starts from is given by its task; the settings of the cell there count where nothing differs, since
    they have the same fields.
    """
    names = [name for name in Cell.model_fields if name not in _NO_DIFFERENCE and name not in fields]
    start = (record.protocol.start, None if fields else record.protocol.start_settings)
    return (*(getattr(record.cell, name) for name in names), *start)


def cell_order(record: Record) -> tuple[object, ...]:
    """Return what cells are sorted by: the task in GLUE's order, the method, its sizes, the seed."""
    tasks = list(TASKS)
    cell = record.cell
    position = tasks.index(cell.task) if cell.task in tasks else len(tasks)
    sizes = tuple(getattr(cell, name) or 0 for name in ("rank", "a", "b"))
    return (position, cell.task, cell.method, cell.targets or "", sizes, cell.seed, cell.id)


def _numbers(record: Record) -> tuple[object, ...]:
    """Return the numbers that training decided; what older records do not have is left out."""
    epochs = tuple((epoch.loss, epoch.metrics, epoch.held_out) for epoch in record.epochs)
    return (record.status, record.score, epochs, record.predictions)


def _facts(records: Iterable[Record]) -> dict[str, set[str]]:
    facts: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.environment.items():
            facts.setdefault(name, set()).add(value)
        facts.setdefault("split", set()).add(record.protocol.split)
        facts.setdefault("start", set()).add(record.protocol.start)
        facts.setdefault(f"{METRIC_OF}{record.cell.task}", set()).add(record.metric)
        if record.data is not None:
            facts.setdefault(f"rows of {record.cell.task}", set()).add(
                f"{record.data.train_rows} + {record.data.eval_rows}, {record.data.fingerprint}"
            )
    return facts


def _joined(values: Iterable[str]) -> str:
    return clean("; ".join(sorted(values)))

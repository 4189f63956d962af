"""What a results folder holds of a verdict, and what the next command does with it: begin, continue, or look again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_bench.errors import MISSING, BenchError
from lora_bench.forecast.geometry import load_geometry
from lora_bench.grid.config import Config, load_config, parse_config
from lora_bench.grid.yaml import decode
from lora_bench.records.files import read_file, write_atomically
from lora_bench.records.store import count_records
from lora_bench.run.owner import Owner
from lora_bench.run.plan import Plan
from lora_bench.text import counted
from lora_bench.verdict.budget import MOST, Planner, fit
from lora_bench.verdict.precision import Deviations, deviations_of
from lora_bench.verdict.question import FILE, LOOK_NOTE, SEEDS, Question, add_look, config_text, margin_text
from lora_bench.verdict.sizes import Pair, choose_sizes


@dataclass(frozen=True)
class Ready:
    """A verdict that is ready to be trained.

    Attributes:
        text: The config, as it will stand in the results folder.
        config: The config.
        plan: What is left to train.
        notes: What the user should know of how it came about, in sentences.
        before: The config that stood in the results folder when this was planned; None if there was none.
    """

    text: str
    config: Config
    plan: Plan
    notes: tuple[str, ...]
    before: str | None

    @property
    def deviations(self) -> Deviations:
        """How far seeds vary on its tasks."""
        return deviations_of(self.plan.known.values(), self.config.compare.average)

    @property
    def half_width(self) -> float:
        """Half the width that the interval is expected to have at this look, over seeds and in points."""
        compare = self.config.compare
        return 100 * self.deviations.half_width(compare.average, compare.looks)

    def write(self, results: Path, warn: Callable[[str], None] | None = None) -> None:
        """Write the config into the results folder, if it is not there already.

        Args:
            results: The results folder.
            warn: Warns the user that the process waits for another one's lease to end.

        Raises:
            BenchError: Exit code 3 if another process owns the folder, or has changed the config since it was read.
        """
        if self.text == self.before:
            return
        with Owner(results, warn):
            if _read(results / FILE) != self.before:
                what = f"Another process has begun or continued a verdict in '{results}'."
                raise BenchError(what, "Give the same command again, or another --results.", MISSING)
            write_atomically(results / FILE, self.text.encode())


def is_begun(results: Path) -> bool:
    """Whether a results folder holds a verdict that has trained something; one that has not is planned anew."""
    return (results / FILE).exists() and count_records(results) > 0


def begin(question: Question, planner: Planner, seeds: int | None, minutes: float | None) -> Ready:
    """Return the verdict on a question: the one that the folder holds, if it is on the same, else a new one.

    Args:
        question: The question.
        planner: Plans configs for the results folder and the device.
        seeds: The number of seeds; None for the default, or for as many as fit into the time.
        minutes: The time, if it is given.

    Raises:
        BenchError: Exit code 2 if the folder holds another verdict or other results, or the time is not enough; 3 if
            the encoder's sizes are not known.
    """
    path = planner.results / FILE
    before = _read(path)
    if before is not None and is_begun(planner.results):
        config = load_config(path)
        _require_same(question, config, path)
        first = config.compare.looks[0]
        if seeds is not None and seeds != first:
            hint = f"--more adds {first}; or give another --results."
            raise BenchError(f"'{planner.results}' holds this verdict with {first} seeds, not {seeds}.", hint)
        plan = planner.plan(config)
        _require_same_data(plan)
        return Ready(before, config, plan, ("It was begun before, and continues as it was planned.",), before)
    pairs = _pairs(question)

    def config_of(tasks: Sequence[str], count: int) -> Config:
        return parse_config(config_text(question, pairs, tasks, count), FILE)

    if minutes is None:
        tasks, count = question.tasks, seeds or SEEDS
    else:
        tasks, count = fit(minutes, question.tasks, planner, config_of)
    notes = [*map(str, pairs)]
    if len(pairs) < question.sizes:
        notes.append(f"{counted(len(pairs), 'size')} of {question.sizes}: the methods have no more in common.")
    left_out = [task for task in question.tasks if task not in tasks]
    if left_out:
        notes.append(f"Left out to fit into the time: {', '.join(left_out)}.")
    if minutes is not None and count == MOST:
        notes.append(f"--minutes chooses {counted(MOST, 'seed')} at most; --seeds may be more.")
    text = config_text(question, pairs, tasks, count)
    config = parse_config(text, FILE)
    plan = planner.plan(config)
    _require_nothing_else(plan)
    _require_no_look(plan, config)
    return Ready(text, config, plan, tuple(notes), before)


def look_again(question: Question, planner: Planner, unchanged: bool) -> Ready:
    """Return the folder's verdict with as many seeds more as its first look had; a look that has not ended continues.

    Args:
        question: The question of this command.
        planner: Plans configs for the results folder and the device.
        unchanged: Whether the command gives no settings; then those of the first look need not be repeated.

    Raises:
        BenchError: Exit code 2 if the folder holds no verdict, another one, cells that were trained with other code or
            data, or a look that cannot end.
    """
    path = planner.results / FILE
    before = _read(path)
    if before is None:
        hint = "Leave --more out: the first look comes first. Or give --results its folder."
        raise BenchError(f"'{planner.results}' holds no verdict.", hint)
    config = load_config(path)
    _require_same(question, config, path, topic_only=unchanged)
    plan = planner.plan(config)
    _require_same_data(plan)
    if plan.todo or plan.later:
        note = "The last look has not ended: it continues, and no seeds are added."
        return Ready(before, config, plan, (note,), before)
    _require_no_blocked(plan)
    stale = sum(status.state == "stale" for status in plan.statuses.values())
    if stale:
        what = f"{counted(stale, 'cell')} of the last look were trained with other code, libraries or data."
        raise BenchError(what, "Train them again (--retry stale), or go back to what they were trained with.")
    text = add_look(before, str(path))
    config = parse_config(text, str(path))
    first = config.compare.looks[0]
    note = f"Look {len(config.compare.looks)}: {counted(first, 'seed')} more, {config.compare.looks[-1]} in all."
    return Ready(text, config, planner.plan(config), (note,), before)


def _require_nothing_else(plan: Plan) -> None:
    """Refuse a folder with results that are not of a new verdict: they could be taken for its settings or seeds."""
    cells = set(plan.grid.cells)
    others = sum(not record.is_search and record.cell not in cells for record in plan.known.values())
    if others:
        what = f"'{plan.store.results}' holds {counted(others, 'cell')} of other settings or seeds."
        raise BenchError(what, "Give a new folder (--results): the verdict must not mix them with its own.")


def _require_no_look(plan: Plan, config: Config) -> None:
    """Refuse a new verdict on cells of another look: without that one's config it would not count as a look."""
    notes = {note for record in plan.known.values() for note in record.protocol.notes if note.startswith(LOOK_NOTE)}
    others = sorted(notes.difference(*config.notes.values()))
    if others:
        what = f"'{plan.store.results}' holds cells of a verdict whose {FILE} is missing. Their note: {others[0]}"
        raise BenchError(what, f"Put its {FILE} back, or give another --results: each look has to count.")


def _require_same_data(plan: Plan) -> None:
    """Refuse a command whose model or data are not those that the folder's cells were trained on."""
    cells = {(cell.task, cell.model, cell.data) for cell in plan.grid.cells}
    tasks = {task for task, _, _ in cells}
    for record in plan.known.values():
        cell = record.cell
        if cell.task in tasks and (cell.task, cell.model, cell.data) not in cells:
            here = next((model, data) for task, model, data in cells if task == cell.task)
            what = (
                f"'{plan.store.results}' holds cells of {cell.task} on {cell.model} and the data {cell.data}; this "
                f"command is on {here[0]} and {here[1]}."
            )
            raise BenchError(what, "Give the same --model and --data-dir as then, or another --results.")


def _require_no_blocked(plan: Plan) -> None:
    """Refuse to add seeds to a look that cannot end, since cells that others need have failed."""
    blocked = [entry for entry in plan.grid.entries if entry.state == "blocked"]
    if blocked:
        what = f"The last look cannot end: {counted(len(blocked), 'cell')} cannot be trained ({blocked[0].reason})."
        hint = (
            "Train what has failed again (--retry failed,diverged,oom), or other rates in another folder (--search-lr)."
        )
        raise BenchError(what, hint)


def _require_same(question: Question, config: Config, path: Path, topic_only: bool = False) -> None:
    """Refuse a folder that holds a verdict on another question, or no verdict at all."""
    _require_intact(config, path)
    # A file's name may hold what separates the parts of a description, so the topic is compared as a whole.
    same_topic = f"{config.description}; ".startswith(f"{question.topic}; ")
    if config.description == question.description or (topic_only and same_topic):
        return
    there, here = config.description, question.topic if topic_only else question.description
    pairs = itertools.zip_longest(there.split("; "), here.split("; "), fillvalue="–")
    differing = [(one, other) for one, other in pairs if one != other and not (topic_only and other == "–")]
    first, second = ("; ".join(parts) for parts in zip(*differing, strict=True))
    hint = "Ask the same as then (a method's file is part of it), or give another --results."
    raise BenchError(f"'{path.parent}' holds another verdict: {first}. This command asks: {second}.", hint)


def _require_intact(config: Config, path: Path) -> None:
    """Refuse a config that `lora-bench verdict` cannot have written: what was tested would not be what it says.

    The looks are multiples of the first one, the margin is that of the question, and there are seeds for the last look.
    """
    compare, looks = config.compare, config.compare.looks
    seeds = {len(values) for block in config.merged() if isinstance(values := block.get("seed"), tuple)}
    is_intact = (
        bool(looks and compare.average and compare.pairs)
        and list(looks) == [looks[0] * number for number in range(1, len(looks) + 1)]
        and seeds == {looks[-1]}
        and f"; {margin_text(compare.margin, compare.over)}; " in config.description
    )
    if not is_intact:
        hint = "Undo what was changed in it, or give another --results."
        raise BenchError(f"'{path}' is not what `lora-bench verdict` wrote.", hint)


def _pairs(question: Question) -> list[Pair]:
    geometry = load_geometry(question.model)
    if geometry is None:
        what = f"The sizes of '{question.model}' are not known, so no sizes of the methods can be matched."
        raise BenchError(what, "Give --model a directory with a config.json.", MISSING)
    return choose_sizes(question.subject, question.reference, question.targets, geometry, question.sizes)


def _read(path: Path) -> str | None:
    """Return the text of a file; None if there is none."""
    return decode(read_file(path), str(path)) if path.exists() else None

"""What a results folder holds of a verdict, and what the next command does with it: begin, continue, or look again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_bench.errors import MISSING, BenchError
from lora_bench.forecast.geometry import load_geometry
from lora_bench.grid.config import Config, load_config, parse_config
from lora_bench.grid.yaml import decode
from lora_bench.records.files import read_file, write_atomically
from lora_bench.run.plan import Plan
from lora_bench.text import counted
from lora_bench.verdict.budget import Planner, fit
from lora_bench.verdict.precision import Deviations, deviations_of
from lora_bench.verdict.question import FILE, SEEDS, Question, add_look, config_text
from lora_bench.verdict.sizes import Pair, choose_sizes


@dataclass(frozen=True)
class Ready:
    """A verdict that is ready to be trained.

    Attributes:
        text: The config, as it will stand in the results folder.
        config: The config.
        plan: What is left to train.
        notes: What the user should know of how it came about, in sentences.
    """

    text: str
    config: Config
    plan: Plan
    notes: tuple[str, ...]

    @property
    def deviations(self) -> Deviations:
        """How far seeds vary on its tasks."""
        return deviations_of(self.plan.known.values(), self.config.compare.average)

    @property
    def half_width(self) -> float:
        """Half the width that the interval is expected to have at this look, over seeds and in points."""
        compare = self.config.compare
        return 100 * self.deviations.half_width(compare.average, compare.looks, len(compare.pairs))

    def write(self, results: Path) -> None:
        """Write the config into the results folder."""
        write_atomically(results / FILE, self.text.encode())


def begin(question: Question, planner: Planner, seeds: int | None, minutes: float | None) -> Ready:
    """Return the verdict on a question: the one that the folder holds, if it is on the same, else a new one.

    Args:
        question: The question.
        planner: Plans configs for the results folder and the device.
        seeds: The number of seeds; None for the default, or for as many as fit into the time.
        minutes: The time, if it is given.

    Raises:
        BenchError: Exit code 2 if the folder holds another verdict, or the time is not enough; 3 if the encoder's sizes
            are not known.
    """
    path = planner.results / FILE
    if path.exists():
        config = load_config(path)
        _require_same(question, config, path)
        first = config.compare.looks[0]
        if seeds is not None and seeds != first:
            hint = f"--more adds {first}; or give another --results."
            raise BenchError(f"'{planner.results}' holds this verdict with {first} seeds, not {seeds}.", hint)
        return Ready(
            _read(path), config, planner.plan(config), ("It was begun before, and continues as it was planned.",)
        )
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
        notes.append(f"Left out for want of time: {', '.join(left_out)}.")
    text = config_text(question, pairs, tasks, count)
    config = parse_config(text, FILE)
    return Ready(text, config, planner.plan(config), tuple(notes))


def look_again(question: Question, planner: Planner, unchanged: bool) -> Ready:
    """Return the folder's verdict with as many seeds more as its first look had; a look that has not ended continues.

    Args:
        question: The question of this command.
        planner: Plans configs for the results folder and the device.
        unchanged: Whether the command gives no settings; then those of the first look need not be repeated.

    Raises:
        BenchError: Exit code 2 if the folder holds no verdict, another one, or cells that were trained with other code.
    """
    path = planner.results / FILE
    if not path.exists():
        hint = "Leave --more out: the first look comes first. Or give --results its folder."
        raise BenchError(f"'{planner.results}' holds no verdict.", hint)
    config = load_config(path)
    _require_same(question, config, path, topic_only=unchanged)
    text, plan = _read(path), planner.plan(config)
    if plan.todo or plan.later:
        return Ready(text, config, plan, ("The last look has not ended: it continues, and no seeds are added.",))
    stale = sum(status.state == "stale" for status in plan.statuses.values())
    if stale:
        what = f"{counted(stale, 'cell')} of the last look were trained with other code, libraries or data."
        raise BenchError(what, "Train them again (--retry stale), or go back to what they were trained with.")
    text = add_look(text, str(path))
    config = parse_config(text, str(path))
    first = config.compare.looks[0]
    note = f"Look {len(config.compare.looks)}: {counted(first, 'seed')} more, {config.compare.looks[-1]} in all."
    return Ready(text, config, planner.plan(config), (note,))


def _require_same(question: Question, config: Config, path: Path, topic_only: bool = False) -> None:
    """Refuse a folder that holds a verdict on another question, or no verdict at all."""
    if not config.compare.looks:
        raise BenchError(f"'{path}' is not what `lora-bench verdict` wrote.", "Give another --results.")
    topic = config.description.partition("; ")[0]
    if topic != question.topic or not (topic_only or config.description == question.description):
        hint = "Give the same options as then, or another --results."
        raise BenchError(f"'{path.parent}' holds another verdict: {config.description}.", hint)


def _pairs(question: Question) -> list[Pair]:
    geometry = load_geometry(question.model)
    if geometry is None:
        what = f"The sizes of '{question.model}' are not known, so no sizes of the methods can be matched."
        raise BenchError(what, "Give --model a directory with a config.json.", MISSING)
    return choose_sizes(question.subject, question.reference, question.targets, geometry, question.sizes)


def _read(path: Path) -> str:
    return decode(read_file(path), str(path))

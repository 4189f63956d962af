"""A question about two methods, and the config that answers it.

The config is an ordinary one: `run --config` trains the same cells, and a report of its results gives the same verdict.
It stands in the results folder as `verdict.yaml`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lora_bench import methods
from lora_bench.compare import Over
from lora_bench.errors import BenchError, unknown
from lora_bench.grid.config import Scalar, Values, parse_config
from lora_bench.grid.search import Search
from lora_bench.grid.yaml import read_yaml, write_yaml
from lora_bench.report.numbers.examples import counts_examples
from lora_bench.tasks import TASKS as DEFINED
from lora_bench.text import clean, counted
from lora_bench.verdict.sizes import Pair, Setting

FILE = "verdict.yaml"  # the config, in the results folder
TASKS = ("cola", "mrpc", "stsb", "rte")  # by default: the four small tasks that encoders learn
# Epochs by task; chosen: a little fewer than in results/minilm, for more seeds in the same time.
EPOCHS = {"cola": 5, "mrpc": 6, "stsb": 5, "rte": 8, "sst2": 1, "qnli": 1, "qqp": 1, "mnli": 1}
OTHER_EPOCHS = 5  # of a task that is not named there
HEAD_LR = 1e-3  # the same for both methods, so that they differ in the adapter alone; chosen, as in results/minilm
FACTORS = (0.5, 1.0, 2.0, 4.0)  # of a method's default rate, to search; chosen
SEARCH_SEEDS = (100, 101)  # chosen: as many as the search behind results/minilm had
LOOK_NOTE = "Trained for look"  # with which the notes of a verdict's records begin
FEWEST_SEEDS = 3  # the report tests nothing with fewer
SEEDS = 20  # by default; chosen

Plain = Mapping[str, Any]  # of what YAML can hold


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        subject: The method that the question is about.
        reference: The method that it is compared with.
        model: The encoder, as the user names it.
        identity: The encoder, as cells name it.
        tasks: The tasks asked for.
        targets: What both methods adapt.
        sizes: At how many sizes.
        margin: Methods whose difference is certainly smaller, in points, are equivalent.
        over: What the interval is over, as in `Comparisons`.
        epochs: By task.
        settings: Further settings of all cells, the precision among them.
        rates: The learning rates to search for both methods; None for some around each one's default.
        search_seeds: The seeds that search.
    """

    subject: str
    reference: str
    model: str
    identity: str
    tasks: tuple[str, ...]
    targets: str
    sizes: int
    margin: float
    over: str
    epochs: Mapping[str, int]
    settings: Plain
    rates: tuple[float, ...] | None
    search_seeds: tuple[int, ...]

    @property
    def topic(self) -> str:
        """What is compared, in one line."""
        return clean(f"{_method_text(self.subject)} against {_method_text(self.reference)} on {self.identity}")

    @property
    def description(self) -> str:
        """The whole question in one line: the same for the same question, whatever time it is given."""
        rates = "default" if self.rates is None else ", ".join(f"{rate:g}" for rate in self.rates)
        epochs = ", ".join(f"{task} {count}" for task, count in self.epochs.items())
        settings = ", ".join(f"{name} {value}" for name, value in sorted(self.settings.items()))
        parts = [
            self.topic,
            f"tasks {', '.join(self.tasks)}",
            f"targets {self.targets}",
            counted(self.sizes, "size"),
            margin_text(self.margin, self.over),
            f"epochs {epochs}",
            settings,
            f"rates {rates} by seeds {', '.join(map(str, self.search_seeds))}",
        ]
        return clean("; ".join(parts))


def margin_text(margin: float, over: str) -> str:
    """Return the part of a description that says what counts as equivalent, and what intervals are over."""
    return f"margin {margin:g} over {over}"


def _method_text(method: str) -> str:
    """Name a method, with its file and a hash of its text if it is not one of the package."""
    origin = methods.origin(method)
    return method if origin is None else f"{method} ({origin})"


def config_name(subject: str, reference: str) -> str:
    """Return the name of a verdict's config, which is that of its results folder too."""
    return re.sub("[^A-Za-z0-9]", "-", f"verdict-{subject}-{reference}")[:64]


def config_text(question: Question, pairs: Sequence[Pair], tasks: Sequence[str], seeds: int) -> str:
    """Return the config of a first look.

    Args:
        question: The question.
        pairs: The settings of both methods at each size.
        tasks: The tasks to train, all or some of those asked for.
        seeds: The number of seeds.
    """
    defaults = {
        "model": question.model,
        "task": list(tasks),
        "targets": question.targets,
        "seed": seeds_without(question.search_seeds, seeds),
        "select": "held-out",
        "epochs": {task: question.epochs[task] for task in tasks},
        **question.settings,
    }
    sides = [(pair.subject, pair.reference) for pair in pairs]
    settings = dict.fromkeys(setting for side in zip(*sides, strict=True) for setting in side)
    compare = {
        "average": list(tasks),
        "margin": question.margin,
        "subject": question.subject,
        "reference": question.reference,
        "pairs": [{"arm": _arm(question, one), "against": _arm(question, other)} for one, other in sides],
        "over": question.over,
        "looks": [seeds],
    }
    return _dump(
        {
            "name": config_name(question.subject, question.reference),
            "description": question.description,
            "defaults": defaults,
            "blocks": [_block(question, setting) for setting in settings],
            "compare": compare,
            "notes": {"all": _note(1, seeds)},
        }
    )


def add_look(text: str, origin: str) -> str:
    """Return a verdict's config with one more look, which adds as many seeds as the first one had.

    The number does not depend on what was seen, and neither do the limits of the looks.

    Args:
        text: The config as it is; it has looks.
        origin: Its file, for messages.
    """
    raw, config = read_yaml(text, origin)[0], parse_config(text, origin)
    looks = config.compare.looks
    seeds = looks[-1] + looks[0]
    settings = (value for block in config.merged() for values in block.values() for value in _flat(values))
    searched = [seed for value in settings if isinstance(value, Search) for seed in value.seeds]
    return _dump(
        {
            **raw,
            "defaults": {**raw.get("defaults", {}), "seed": seeds_without(searched, seeds)},
            "compare": {**raw["compare"], "looks": [*looks, seeds]},
            "notes": {"all": _note(len(looks) + 1, seeds)},
        }
    )


def _flat(values: Values) -> Iterator[Scalar]:
    """Yield the values of a setting, for whatever tasks they are."""
    by_task = [values] if isinstance(values, tuple) else values.values()
    return itertools.chain.from_iterable(by_task)


def seeds_without(taken: Iterable[int], count: int) -> list[int]:
    """Return the first seeds from 0 that are not those of the search."""
    searched = set(taken)
    return [seed for seed in range(count + len(searched)) if seed not in searched][:count]


def rates_around(default: float) -> list[float]:
    """Return the learning rates to search around a default."""
    return [float(f"{factor * default:.3g}") for factor in FACTORS]


def _block(question: Question, setting: Setting) -> Plain:
    recipe = methods.get(setting.method)
    rates = rates_around(recipe.default_lr) if question.rates is None else list(question.rates)
    return {
        "method": setting.method,
        **dict(setting.sizes),
        "lr": {"search": rates, "seeds": list(question.search_seeds)},
    }


def _arm(question: Question, setting: Setting) -> Plain:
    return {"method": setting.method, "targets": question.targets, **dict(setting.sizes)}


def _note(look: int, seeds: int) -> str:
    return f"{LOOK_NOTE} {look} of a verdict, at {seeds} seeds."


def _dump(config: Plain) -> str:
    first = "# Written by `lora-bench verdict`; `lora-bench run --config` trains the same cells."
    return f"{first}\n{write_yaml(config)}"


def check_numbers(sizes: int, margin: float, seeds: int | None, minutes: float | None) -> None:
    """Refuse numbers with which there is no verdict.

    Raises:
        BenchError: Exit code 2.
    """
    if seeds is not None and minutes is not None:
        raise BenchError("--seeds and --minutes exclude each other.", "Give one of them: --minutes chooses the seeds.")
    if seeds is not None and seeds < FEWEST_SEEDS:
        raise BenchError(f"--seeds {seeds} are too few to test anything.", f"Give --seeds {FEWEST_SEEDS} or more.")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise BenchError(f"--minutes {minutes:g} is not a time.", "Give a number of minutes, such as --minutes 10.")
    if not 0 < margin < float("inf"):
        raise BenchError(
            f"--margin {margin:g} is not a margin.", "Give the points below which two methods are equivalent."
        )
    if not 1 <= sizes <= 5:
        raise BenchError(f"--sizes {sizes} is not possible.", "Give 1 to 5 sizes.")


def check_over(over: str, tasks: Sequence[str]) -> None:
    """Refuse what an interval cannot be over.

    Args:
        over: What it is to be over.
        tasks: The tasks, which are defined.

    Raises:
        BenchError: Exit code 2.
    """
    known = get_args(Over)
    if over not in known:
        raise unknown("value of --over", over, known)
    if over != "seeds" and not any(counts_examples(task, DEFINED[task].main_metric) for task in tasks):
        what = f"--over {over}: what other examples of {', '.join(tasks)} would change is not known."
        raise BenchError(what, "It is for accuracy and Matthews correlation: leave --over out.")

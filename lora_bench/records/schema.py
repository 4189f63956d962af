"""The schema of a record: everything that is known of a finished cell, as stored in `DIR/cells/<id>.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from html import escape
from operator import itemgetter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_bench.cell import Cell
from lora_bench.text import clean

SCHEMA: Literal[1] = 1
NEWER = "written by a newer lora-bench"
PROVENANCE = ("code", "torch", "transformers", "tokenizers")  # of the environment: what `provenance.current` has
Finite = Annotated[float, Field(allow_inf_nan=False)]
# JSON has no NaN and no infinities: such values are stored as these words. `float()` converts both forms.
AnyFloat = Finite | Literal["nan", "inf", "-inf"]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Status = Literal["done", "failed", "diverged", "oom"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Epoch(_Part):
    """The evaluation after an epoch.

    Attributes:
        epoch: The number of the epoch, from 1.
        loss: The mean training loss of the epoch.
        metrics: The metrics on the evaluation splits.
        held_out: The metrics on the rows held out from the train split; None if there are none.
        calibration: How well the probabilities are calibrated on all rows of the evaluation splits: `nll`, `ece` (15
            bins) and `brier`, lower is better. None for a regression, and in records from before they were computed.
        held_out_calibration: The same on the rows held out from the train split.
    """

    epoch: Natural
    loss: Finite | None
    metrics: dict[str, Finite | None]
    held_out: dict[str, Finite | None] | None = None
    calibration: dict[str, Finite | None] | None = None
    held_out_calibration: dict[str, Finite | None] | None = None


class Counts(_Part):
    """Numbers of trained parameters, and the sizes of the files that store them.

    Attributes:
        adapter_params: The trained parameters of the adapter, without the head.
        head_params: Those of the head.
        adapter_bytes: The size of the adapter's file.
        modules: The number of adapted modules.
        adapter_bytes_fp16: The size of the adapter's file with 16 bits per value. This and the following fields are
            None in records from before they were counted.
        head_bytes: The size of the head's file.
        head_bytes_fp16: The size of the head's file with 16 bits per value.
    """

    adapter_params: Natural
    head_params: Natural
    adapter_bytes: Natural
    modules: Natural
    adapter_bytes_fp16: Natural | None = None
    head_bytes: Natural | None = None
    head_bytes_fp16: Natural | None = None


class Timing(_Part):
    """The time and memory of training.

    Attributes:
        seconds: The cell's share of its pack's wall time: pack_seconds / pack_size.
        pack_seconds: The wall time of the pack.
        pack_size: The number of cells in the pack.
        tokens: The number of training tokens of the cell in all epochs.
        tokens_per_second: The training tokens of all cells of the pack per second.
        peak_bytes: The pack's peak memory on a GPU; None on other devices.
        halved: How often the pack was split in half because memory ran out.
    """

    seconds: Finite
    pack_seconds: Finite
    pack_size: Natural
    tokens: Natural
    tokens_per_second: Finite
    peak_bytes: Natural | None = None
    halved: Natural = 0


class Protocol(_Part):
    """How the score is obtained.

    Attributes:
        split: The evaluation splits, joined by `+`.
        select: How the epoch is selected, `Cell.select`.
        start: What training starts from: the pretrained model, or a cell of the task that is named here.
        notes: What deviates from the paper.
        start_settings: Where it starts from a cell, a hash of that cell's settings without its seed: the same for the
            seeds of one setting.
        start_trained: Where it starts from a cell, that cell's `Record.trained_with`. None in records from before it
            was stored.
    """

    split: str
    select: str
    start: str = "pretrained"
    notes: tuple[str, ...] = ()
    start_settings: str | None = None
    start_trained: str | None = None


class DataInfo(_Part):
    """The data that a cell was trained on.

    Attributes:
        source: The identity of the data, `Cell.data`.
        train_rows: The number of training rows.
        eval_rows: The number of rows of all evaluation splits.
        fingerprint: A hash of the tokens and labels.
    """

    source: str
    train_rows: Natural
    eval_rows: Natural
    fingerprint: str


class TrainingStep(_Part):
    """One step of a cell's training.

    Attributes:
        step: The number of the step, from 1 and over all epochs.
        loss: The loss on the step's batch, before the update.
        grad_norm: The 2-norm of the gradient of all that the cell trains, before clipping.
        lr: The learning rate `Cell.lr` times the schedule's multiplier.
    """

    step: Natural
    loss: AnyFloat
    grad_norm: AnyFloat
    lr: AnyFloat


class TriedRates(_Part):
    """Rates that a search has tried.

    Attributes:
        lr: The adapter's learning rate; None if it was not searched.
        head_lr: The head's; None if it was not searched.
        held_out: The best held-out metric of each seed, averaged over the seeds; None if a seed failed.
        seeds: The number of seeds.
        failed: How many of them failed or diverged.
    """

    lr: Finite | None = None
    head_lr: Finite | None = None
    held_out: Finite | None = None
    seeds: Natural
    failed: Natural = 0


class SearchInfo(_Part):
    """The search for the rates of a cell.

    Attributes:
        role: `chosen` for a cell that trains with the rates that the search chose, `trial` for a cell of the search,
            `start` for a cell that only cells of searches continue from.
        settings: The settings that were searched: `lr`, `head_lr` or both.
        at: The values of settings at which it was searched, where these are not the cell's own.
        tried: The rates that were tried. A cell of the search has none, since not all have ended.
        edges: The settings whose chosen rate is the lowest or the highest that was tried.
    """

    role: Literal["chosen", "trial", "start"]
    settings: tuple[str, ...] = ()
    at: dict[str, int | str] = {}
    tried: tuple[TriedRates, ...] = ()
    edges: tuple[str, ...] = ()


class PosteriorInfo(_Part):
    """What averaging over a posterior gives, at the epoch of the score, for a method that has one.

    Attributes:
        metrics: The metrics on the evaluation splits, from averaged probabilities.
        calibration: `nll`, `ece` and `brier` of the averaged probabilities on the evaluation splits.
        before: The same of what was trained, without the posterior.
        held_out: The metrics on the rows held out from the train split; None if there are none.
        held_out_calibration: The calibration on these rows.
        prior_precision: The precision of the Gaussian prior, where it was fitted.
        seconds: The time of the cell's fit and evaluation.
    """

    metrics: dict[str, Finite | None]
    calibration: dict[str, Finite | None]
    before: dict[str, Finite | None]
    held_out: dict[str, Finite | None] | None = None
    held_out_calibration: dict[str, Finite | None] | None = None
    prior_precision: Finite | None = None
    seconds: Finite


class Record(_Part):
    """A finished cell.

    Attributes:
        schema_version: The version of this schema.
        id: The cell's id.
        cell: The cell.
        status: How its training ended.
        reason: Why it diverged or failed.
        metric: The name of the task's main metric, of which `best`, `last` and `score` are values.
        epochs: The evaluations.
        best: The best value of all epochs.
        best_epoch: Its epoch.
        last: The value of the last epoch.
        score: The value of the epoch that `Cell.select` selects.
        score_epoch: That epoch.
        predictions: The predictions on the evaluation splits in that epoch.
        counts: The numbers of parameters.
        timing: The time and memory of training.
        protocol: How the score is obtained.
        data: The data.
        environment: The versions of libraries, the device, the fingerprint of the code and the like.
        last_steps: For a cell that diverged, its last steps, at most 50, up to and including the one whose loss or
            gradient norm was not finite (or the last step of the epoch after which the outputs were not finite). None
            for other cells, and in records from before these were stored.
        search: The search for its rates; None if they were given.
        posterior: What averaging over a posterior gives; None for a method without one, and for a regression.
    """

    schema_version: Literal[1] = SCHEMA
    id: str
    cell: Cell
    status: Status
    reason: str | None = None
    metric: str
    epochs: tuple[Epoch, ...] = ()
    best: Finite | None = None
    best_epoch: Natural | None = None
    last: Finite | None = None
    score: Finite | None = None
    score_epoch: Natural | None = None
    predictions: tuple[Finite, ...] = ()
    counts: Counts | None = None
    timing: Timing | None = None
    protocol: Protocol
    data: DataInfo | None = None
    environment: dict[str, str] = {}
    last_steps: tuple[TrainingStep, ...] | None = None
    search: SearchInfo | None = None
    posterior: PosteriorInfo | None = None

    @property
    def is_search(self) -> bool:
        """Whether the cell was trained for a search alone: it chooses rates and is no result."""
        return self.search is not None and self.search.role != "chosen"

    @property
    def is_failure(self) -> bool:
        """Whether the cell failed the run: a rate at which cells of a search diverge is a result of the search."""
        return self.status != "done" and not (self.is_search and self.status == "diverged")

    @property
    def selected_epoch(self) -> Epoch | None:
        """The epoch of the score; None if there is none."""
        return next((epoch for epoch in self.epochs if epoch.epoch == self.score_epoch), None)

    @property
    def best_held_out(self) -> tuple[float, Epoch] | None:
        """The held-out value by which rates and settings are chosen, with its epoch; None if nothing is held out.

        Of the selected epoch if held-out rows have selected it: a rank schedule selects none before its budget is met.
        Otherwise of the first epoch with the best value.
        """
        values = [
            (value, epoch) for epoch in self.epochs if (value := (epoch.held_out or {}).get(self.metric)) is not None
        ]
        selected = [pair for pair in values if pair[1].epoch == self.score_epoch and self.cell.select == "held-out"]
        return max(selected or values, key=itemgetter(0), default=None)

    @property
    def settings(self) -> tuple[Cell, str | None]:
        """What the seeds of one setting have in common: the cell without its seed, and what it starts from."""
        return self.cell.model_copy(update={"seed": 0, "start": None}), self.protocol.start_settings

    @property
    def trained_with(self) -> str:
        """A hash of what its numbers depend on besides the cell: code, libraries, data, and the same of its start."""
        versions = [self.environment.get(name, "").partition("+")[0] for name in PROVENANCE]
        data = "" if self.data is None else self.data.fingerprint
        text = "\n".join([*versions, data, self.protocol.start_trained or ""])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the settings, how it ended, and a table of its epochs."""
        settings = self.cell.model_dump(exclude_none=True)
        lines = {
            "status": self.status if self.reason is None else f"{self.status}: {self.reason}",
            "score": "–" if self.score is None else f"{self.metric} {self.score:.4f} (epoch {self.score_epoch})",
            "trained values": "–" if self.counts is None else f"{self.counts.adapter_params:,}",
            "settings": ", ".join(f"{name}={value}" for name, value in settings.items()),
        }
        definitions = "".join(f"<dt>{name}</dt><dd>{escape(clean(text))}</dd>" for name, text in lines.items())
        names = list(dict.fromkeys(name for epoch in self.epochs for name in epoch.metrics))
        heads = _html_row("th", ["epoch", "loss", *names])
        rows = "".join(
            _html_row("td", [str(epoch.epoch), *map(_html_number, (epoch.loss, *map(epoch.metrics.get, names)))])
            for epoch in self.epochs
        )
        return f"<p>Cell <code>{escape(clean(self.id))}</code></p><dl>{definitions}</dl><table>{heads}{rows}</table>"


def _html_row(tag: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(clean(text))}</{tag}>' for text in texts)}</tr>"


def _html_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

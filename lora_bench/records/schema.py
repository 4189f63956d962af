"""The schema of a record: everything that is known of a finished cell, as `DIR/cells/<id>.json` holds it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_bench.cell import Cell

SCHEMA: Literal[1] = 1
NEWER = "written by a newer lora-bench"
Finite = Annotated[float, Field(allow_inf_nan=False)]
# JSON has no NaN and no infinity: such a value is one of these words. `float()` turns either form into the value.
AnyFloat = Finite | Literal["nan", "inf", "-inf"]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Status = Literal["done", "failed", "diverged", "oom"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Epoch(_Part):
    """One evaluation. `metrics` are of the validation split, `held_out` of the slice kept from train (or None)."""

    epoch: Natural
    loss: Finite | None
    metrics: dict[str, Finite | None]
    held_out: dict[str, Finite | None] | None = None


class Counts(_Part):
    """Numbers of trained values, the adapter without the head and the head beside it, and their files' bytes.

    `_fp16`: the bytes of the same file with every value in 16 bits. None in records from before these were counted.
    """

    adapter_params: Natural
    head_params: Natural
    adapter_bytes: Natural
    modules: Natural
    adapter_bytes_fp16: Natural | None = None
    head_bytes: Natural | None = None
    head_bytes_fp16: Natural | None = None


class Timing(_Part):
    """`seconds` is the cell's share of its pack's wall time: pack_seconds / pack_size.

    `peak_bytes`: the pack's device memory at its peak (a GPU's). `halved`: how often the pack was cut in two because
    memory ran out.
    """

    seconds: Finite
    pack_seconds: Finite
    pack_size: Natural
    tokens: Natural
    tokens_per_second: Finite
    peak_bytes: Natural | None = None
    halved: Natural = 0


class Protocol(_Part):
    """How the number was made: which split, how the epoch is chosen, what training starts from, what deviates."""

    split: str
    select: str
    start: str = "pretrained"
    notes: tuple[str, ...] = ()


class DataInfo(_Part):
    """What was read: the source, the rows of each split and a hash of the tokens and labels."""

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


class Record(_Part):
    """A finished cell. `metric` names the task's main metric; `best`, `last` and `score` are its values.

    `last_steps`, of a cell that diverged: its last steps, at most 50, up to and including the one whose loss or
    gradient norm was not finite (if the outputs after an epoch were not finite, up to the last step of that epoch).
    None for other cells, and in records from before these were kept.
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

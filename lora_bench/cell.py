"""A cell: one training run of the grid, described by everything that can change its result.

Cells are frozen and hashable. A cell's id is a hash of its canonical JSON: keys are sorted, unset fields are left out
(so that a new optional field changes no existing id), and integers and floats are normalised by the field's type. Where
a cell runs (device, pack, paths) is not part of it: a model directory or a data folder is described by its name and a
hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Select = Literal["best", "last", "held-out"]
Precision = Literal["float64", "float32", "bf16"]
Init = Literal["default", "published"]
Head = Literal["model"]

Count = Annotated[int, Field(gt=0, le=2**31)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(abs)]  # -0.0 is 0.0
Name = Annotated[str, Field(min_length=1, max_length=300)]
CellId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


class Cell(BaseModel):
    """One training run. Parameters that the method does not have (rank for `head`, a and b for `lora`) are None.

    Attributes:
        model: The encoder: its id on the Hub, or the name of a directory and a hash of its content (`models.identity`).
        data: The rows: the dataset and its revision on the Hub, or a hash of the files (`DataSource.identity`).
        task: The name of the task.
        method: The name of the method.
        rank: r, the rank of the method's update or of its factors.
        a: A further size, whose meaning is the method's.
        b: As `a`.
        alpha: The update is scaled by alpha / rank, unless the method says otherwise.
        init: How the method's factors start, where it offers a choice.
        targets: The adapted weights, as `--targets` names them (`engine.encoder.targets`).
        seed: Decides what is drawn: factors and head at the start, the order of the rows, dropout, held-out rows.
        lr: The peak of the learning rate's schedule.
        head_lr: The same for the head; None for `lr`.
        weight_decay: That of AdamW.
        warmup: The fraction of the steps in which the learning rate rises from 0, before it falls to 0; both linear.
        clip: The norm to which the gradient of all values of the cell is clipped; 0 for no clipping.
        epochs: Passes over the training rows.
        batch_size: Rows of a step.
        max_length: To how many tokens rows are truncated, special tokens counted.
        select: Which epoch is saved and scored: the best on the evaluation split, the last, or the best on a part of
            the training rows that is held out.
        precision: The type of the frozen weights and of the encoder's products.
        origin: For a method from outside of this package, the name of its file and a hash of the content.
        task_origin: The same for a task that is not one of GLUE's.
        head: The classification head: "model" for that of the model's type, None for RoBERTa's on every model.
        start: The id of the cell of another task that this one continues from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Name
    data: Name
    task: Name
    method: Name
    rank: Count | None = None
    a: Count | None = None
    b: Count | None = None
    alpha: Positive | None = None
    init: Init | None = None
    targets: Name | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    lr: Positive = 1e-3
    head_lr: Positive | None = None
    weight_decay: NotNegative = 0.0
    warmup: Annotated[NotNegative, Field(le=1)] = 0.06
    clip: NotNegative = 1.0
    epochs: Count = 10
    batch_size: Count = 32
    max_length: Annotated[int, Field(ge=4, le=2**16)] = 128
    select: Select = "best"
    precision: Precision = "float32"
    origin: Name | None = None
    task_origin: Name | None = None
    head: Head | None = None
    start: CellId | None = None

    @cached_property
    def id(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values, which are not checked."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("id", None)  # pydantic copies what is cached, too
        return copy

    def canonical(self) -> str:
        """Return the JSON text whose hash is the id."""
        settings = self.model_dump(mode="json", exclude_none=True)
        return _CANONICAL.encode(settings)

    @property
    def effective_head_lr(self) -> float:
        """The head's learning rate: its own, or the adapter's."""
        return self.lr if self.head_lr is None else self.head_lr

    def batch_settings(self) -> tuple[object, ...]:
        """Return the settings that cells of one pack have in common: they see the same batches and dropout masks."""
        held_out = self.select == "held-out"
        return (
            self.model,
            self.data,
            self.task,
            self.seed,
            self.batch_size,
            self.epochs,
            self.max_length,
            self.precision,
            held_out,
            self.head,
        )

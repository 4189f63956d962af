"""Records of cells that never trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_bench.cell import Cell
from lora_bench.records.schema import Counts, DataInfo, Epoch, Protocol, Record, Timing
from lora_bench.tasks import TASKS
from lora_bench.testing.cells import make_cell


def make_epochs(
    *values: float | None, metric: str = "accuracy", held_out: Sequence[float | None] = ()
) -> tuple[Epoch, ...]:
    """Return epochs with these values of the metric on the validation split, and with those on held-out rows."""
    slices: list[dict[str, float | None] | None] = [{metric: value} for value in held_out] or [None] * len(values)
    return tuple(
        Epoch(epoch=number, loss=1.0, metrics={metric: value}, held_out=held)
        for number, (value, held) in enumerate(zip(values, slices, strict=True), 1)
    )


def make_record(
    score: float | None = 0.9,
    *,
    cell: Cell | None = None,
    epochs: Sequence[Epoch] = (),
    params: tuple[int, int] | None = (1000, 592_130),
    seconds: float | None = None,
    device: str = "cpu",
    **fields: Any,
) -> Record:
    """Return a record as a run would have written it.

    Args:
        score: The score, which is the best value too; None where there is none (`status="failed"`).
        cell: The cell; `make_cell()` unless given.
        epochs: The evaluations, as `make_epochs` gives them.
        params: How many values train, in the adapter and in the head; None leaves the counts out.
        seconds: The training time; None leaves the timing out.
        device: The device that the record names.
        fields: Any other fields of `Record`, such as `status`, `reason`, `predictions` or `protocol`. They take
            precedence over the arguments above.
    """
    cell = cell or make_cell()
    task = TASKS.get(cell.task)
    metric = task.main_metric if task else "accuracy"
    rows = len(fields.get("predictions", ())) or (task and task.eval_rows) or 0
    base: dict[str, Any] = {
        "id": cell.id,
        "cell": cell,
        "status": "done",
        "metric": metric,
        "score": score,
        "best": score,
        "last": epochs[-1].metrics.get(metric) if epochs else score,
        "score_epoch": epochs[0].epoch if epochs else None,
        "epochs": tuple(epochs),
        "counts": _counts(*params) if params else None,
        "timing": _timing(seconds) if seconds is not None else None,
        "environment": {"device": device, "lora_bench": "0.1.0"},
        "data": DataInfo(source=cell.data, train_rows=1, eval_rows=rows, fingerprint=f"train+{cell.task}"),
        "protocol": Protocol(split="validation", select=cell.select),
    }
    return Record(**base | fields)


def _counts(adapter: int, head: int) -> Counts:
    return Counts(
        adapter_params=adapter,
        head_params=head,
        adapter_bytes=4 * adapter,
        modules=24,
        adapter_bytes_fp16=2 * adapter,
    )


def _timing(seconds: float) -> Timing:
    return Timing(seconds=seconds, pack_seconds=seconds, pack_size=1, tokens=1, tokens_per_second=1.0)

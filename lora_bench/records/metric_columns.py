"""The columns of metrics.csv that hold metrics."""

from __future__ import annotations

from lora_bench.records.schema import Record


def metric_columns(record: Record) -> dict[str, object]:
    """Return the values of a record that are metrics, by column (`store.row`)."""
    if not record.epochs:
        return {}
    best = next((epoch for epoch in record.epochs if epoch.epoch == record.best_epoch), None)
    values: dict[str, object] = {}
    for which, epoch in (("last", record.epochs[-1]), ("best", best)):
        # The task's metrics come second, so that a user's metric called `nll` replaces the value of the calibration.
        metrics = {} if epoch is None else (epoch.calibration or {}) | epoch.metrics
        values |= {f"{name}_{which}": value for name, value in metrics.items()}
    if record.posterior is not None:
        averaged = record.posterior
        values |= {f"{name}_score": value for name, value in averaged.before.items()}
        metrics = averaged.calibration | averaged.metrics
        values |= {f"{name}_posterior": value for name, value in metrics.items()}
        values["prior_precision"] = averaged.prior_precision
    return values

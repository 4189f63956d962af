"""How well the probabilities of a scope's cells are calibrated, at the epochs of their scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from lora_bench.records.schema import Record
from lora_bench.report.numbers.entries import Scope

if TYPE_CHECKING:
    from pandas import DataFrame

MEASURES = ("nll", "ece", "brier")
AFTER = {name: f"{name}_posterior" for name in MEASURES}  # the columns of averaged probabilities


def calibration_frame(scope: Scope, tasks: Collection[str]) -> DataFrame:
    """Return the calibration of the shown cells of some tasks that have a score, a row per cell.

    Columns: `arm`, `task`, `seed`, the measures of what was trained, and those of probabilities averaged over a
    posterior (`AFTER`). NaN where there is none: of a regression, and of a method without a posterior.
    """
    import pandas as pd

    cells = scope.cells[(scope.cells["entry"] >= 0) & scope.cells["score"].notna()]
    cells = cells[cells["task"].isin(tasks)]
    rows = [
        {"arm": arm, "task": task, "seed": seed, **_scored_calibration(record), **_after_calibration(record)}
        for arm, task, seed, record in zip(*(cells[name] for name in ("arm", "task", "seed", "record")), strict=True)
    ]
    measures = (*MEASURES, *AFTER.values())
    return pd.DataFrame(rows, columns=["arm", "task", "seed", *measures]).astype(dict.fromkeys(measures, float))


def _scored_calibration(record: Record) -> Mapping[str, float | None]:
    return (record.selected_epoch.calibration if record.selected_epoch is not None else None) or {}


def _after_calibration(record: Record) -> Mapping[str, float | None]:
    if record.posterior is None:
        return {}
    return {column: record.posterior.calibration.get(name) for name, column in AFTER.items()}

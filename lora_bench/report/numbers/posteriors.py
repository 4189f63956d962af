"""Calibration before and after averaging over a posterior, for the methods that have one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_bench.records.schema import Record
from lora_bench.report.numbers.frame import is_missing
from lora_bench.report.numbers.tables import DASH, ReportTable, TableColumn, build_table

if TYPE_CHECKING:
    from pandas import DataFrame

_MEASURES = {"nll": "NLL", "ece": "ECE", "brier": "Brier"}
_SETTING = ("model", "task", "method", "rank", "a", "b", "targets")
_NOTE = (
    "Means over the cells of a setting, with all their rates and seeds, on the evaluation split at the epoch of the "
    "score: of the trained point, and of probabilities averaged over the posterior. Lower is better. λ: the precision "
    "of the prior, where it was fitted."
)


def posterior_tables(cells: DataFrame) -> list[ReportTable]:
    """Return a table with a row per setting; none if no cell has a posterior."""
    import pandas as pd

    rows = [row.to_dict() | _values(row["record"]) for _, row in cells.iterrows() if row["record"].posterior]
    if not rows:
        return []
    names = [f"{measure}_{when}" for measure in _MEASURES for when in ("score", "posterior")] + ["prior_precision"]
    frame = pd.DataFrame(rows)[[*_SETTING, *names]]
    grouped = frame.groupby([*_SETTING], dropna=False, sort=True)
    means = grouped[names].mean().assign(cells=grouped.size()).reset_index()
    columns = [
        *(TableColumn(name, name if name in ("task", "method", "targets") else "") for name in _SETTING),
        TableColumn("rank", "rank", lambda row: _text(row["rank"], "g"), numeric=True),
        TableColumn("cells", "cells", numeric=True),
        *(
            _column(f"{name}_{when}", f"{head}\n{when_head}")
            for name, head in _MEASURES.items()
            for when, when_head in (("score", "before"), ("posterior", "after"))
        ),
        TableColumn("prior_precision", "λ", lambda row: _text(row["prior_precision"], ".3g"), numeric=True),
    ]
    return [build_table("posteriors", "Calibration before and after the posterior", columns, means, (_NOTE,), 3)]


def _values(record: Record) -> dict[str, float | None]:
    posterior = record.posterior
    if posterior is None:
        return {}
    values = {f"{name}_score": posterior.before.get(name) for name in _MEASURES}
    values |= {f"{name}_posterior": posterior.calibration.get(name) for name in _MEASURES}
    return values | {"prior_precision": posterior.prior_precision}


def _column(name: str, head: str) -> TableColumn:
    return TableColumn(name, head, lambda row: _text(row[name], ".4f"), numeric=True)


def _text(value: float | None, form: str) -> str:
    return DASH if is_missing(value) else format(value, form)

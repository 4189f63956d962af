"""The searches for learning rates: what was tried, what was chosen, and how flat the optimum is.

A search is rebuilt from the records of its cells (`Record.search`), as `lora-bench choose` does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_bench.grid.choose import ChosenRate, Rates, choose_rates
from lora_bench.records.schema import Record
from lora_bench.report.numbers.frame import device_kind
from lora_bench.report.numbers.tables import Field, ReportTable
from lora_bench.text import counted

if TYPE_CHECKING:
    from pandas import DataFrame

# The columns of the frame, and their headings in print; a column without one is for CSV and JSON alone.
COLUMNS = {
    "task": "task",
    "method": "method",
    "rank": "rank",
    "a": "a",
    "b": "b",
    "targets": "targets",
    "further": "further",
    "searched": "searched\nsettings",
    "seeds": "seeds",
    "tried": "tried",
    "held_out": "held-out\nscores",
    "chosen": "chosen",
    "best": "best",
    "over_second": "over the\nsecond",
    "over_lower": "over the\nlower rate",
    "over_higher": "over the\nhigher rate",
    "edge": "at an edge",
    "failed": "rates that\nfailed",
}
_TEXTS = ("task", "method", "targets", "further", "searched", "tried", "held_out", "chosen", "edge")
_SCORES = ("best", "over_second", "over_lower", "over_higher")
NOTE = (
    "The mean held-out score of the search's seeds at each rate (the best epoch of each, on rows kept from train, "
    "×100), and by how much the chosen rate is better than the second best and than its neighbours: the smaller, the "
    "flatter the optimum. At an edge, a rate that was not tried may be better. A rate at which a seed failed is not "
    "chosen."
)


def search_frame(records: Iterable[Record]) -> DataFrame:
    """Return the searches as a frame with the columns of `COLUMNS`, a row for each setting and task.

    Args:
        records: Records of any cells; those that are not of a search are left out.
    """
    import pandas as pd

    trials = [record for record in records if record.search is not None and record.search.role == "trial"]
    rows = [_row(choice) for choice in choose_rates(trials)] if trials else []
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def _row(choice: ChosenRate) -> dict[str, object]:
    settings, means = choice.settings, dict(choice.means)
    failed = choice.metric == -math.inf
    others = [mean for rates, mean in means.items() if rates != choice.rates]
    lower, higher = _neighbours(choice)
    return {
        "task": choice.task,
        "method": settings.method,
        "rank": settings.rank,
        "a": settings.a,
        "b": settings.b,
        "targets": settings.targets,
        "further": ", ".join(f"{name} {value}" for name, value in choice.further) or None,
        "searched": ", ".join(choice.searched),
        "seeds": choice.seeds,
        "tried": ", ".join(map(_rates_text, means)),
        "held_out": ", ".join("failed" if mean == -math.inf else f"{mean * 100:.1f}" for mean in means.values()),
        "chosen": None if failed else _rates_text(choice.rates),
        "best": None if failed else choice.metric,
        "over_second": None if failed else _less(choice.metric, max(others, default=-math.inf)),
        "over_lower": None if failed else _less(choice.metric, lower),
        "over_higher": None if failed else _less(choice.metric, higher),
        "edge": None if failed else ", ".join(choice.edges) or None,
        "failed": sum(mean == -math.inf for mean in means.values()),
    }


def _neighbours(choice: ChosenRate) -> tuple[float, float]:
    """The means at the next lower and the next higher rate of the adapter, everything else as chosen; -inf for none."""
    tried, chosen = choice.tried, dict(zip(choice.searched, choice.rates, strict=True))

    def mean_at(index: int) -> float:
        if not 0 <= index < len(tried) or "lr" not in chosen:
            return -math.inf
        return choice.means.get(tuple({**chosen, "lr": tried[index]}.values()), -math.inf)

    index = tried.index(choice.lr)
    return mean_at(index - 1), mean_at(index + 1)


def _less(best: float, other: float) -> float | None:
    return None if other == -math.inf else best - other


def _rates_text(rates: Rates) -> str:
    return " / ".join(f"{rate:.3g}" for rate in rates)


def search_tables(records: Iterable[Record]) -> list[ReportTable]:
    """Return a table of the searches; none if nothing was searched."""
    records = list(records)
    frame = search_frame(records)
    if frame.empty:
        return []
    shown = [name for name in COLUMNS if frame[name].notna().any()]
    if (frame["searched"] == "lr").all():
        shown.remove("searched")
    rows = [dict(zip(frame.columns, values, strict=True)) for values in frame.to_numpy()]
    edges = int(frame["edge"].notna().sum())
    finished = int(frame["chosen"].notna().sum())
    summary = f"{finished} of {len(frame)} searches have chosen; {edges} of the chosen rates stand at an edge."
    return [
        ReportTable(
            name="searches",
            title="Searched learning rates",
            heads=tuple(COLUMNS[name] for name in shown),
            label_columns=2,
            rows=tuple(tuple(_field(name, row[name]) for name in shown) for row in rows),
            notes=(f"{summary} {_cost_text(records)}", NOTE),
            data=frame,
        )
    ]


def _cost_text(records: Iterable[Record]) -> str:
    """Say how many cells the searches took, and how long these trained."""
    searches = [record for record in records if record.is_search]
    timed = [record for record in searches if record.timing is not None]
    minutes = sum(record.timing.seconds for record in timed if record.timing is not None) / 60
    unit = f"{device_kind(timed)}minutes"
    return f"They took {counted(len(searches), 'cell')}" + (f", {minutes:,.1f} {unit} of training." if timed else ".")


def _field(name: str, value: object) -> Field:
    if value is None:
        return Field("", numeric=name not in _TEXTS)
    if name in _SCORES and isinstance(value, float):
        return Field(f"{value * 100:.1f}")
    return Field(str(value), numeric=name not in _TEXTS)

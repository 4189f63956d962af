"""Results for a notebook or a script: `load_records(DIR)`, `load_record(DIR, ID)` and `load_report(DIR)` of
`lora_bench`.

No torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench import methods
from lora_bench.errors import NOTHING, BenchError
from lora_bench.grid.config import load_comparisons
from lora_bench.records.schema import Record
from lora_bench.records.store import find_record, read_records, row
from lora_bench.report.content import Content, gather
from lora_bench.report.formats.html import html_fragment
from lora_bench.text import clean

if TYPE_CHECKING:
    from pandas import DataFrame

    from lora_bench.records.store import Loaded


def load_records(results: str | Path) -> DataFrame:
    """Return the records of a results folder as a frame with a row per cell, sorted by id.

    The columns are those of `metrics.csv`, with their types: text, whole numbers and floats, each with `pandas.NA`
    where a cell has no value. Cells that were trained for a search are among them (column `search`). Files that are
    not sound records are left out with a warning.

    Args:
        results: The results folder; `~` is the home folder.

    Raises:
        BenchError: Exit code 4 if there are no records.
    """
    import pandas as pd

    return pd.DataFrame(map(row, _load(Path(results).expanduser()).records)).convert_dtypes()


def load_record(results: str | Path, cell_id: str) -> Record:
    """Return one record of a results folder.

    Args:
        results: The results folder; `~` is the home folder.
        cell_id: The cell's id, or the beginning of it.

    Raises:
        BenchError: Exit code 4 if there is none, 2 if there are several, 1 if its file is damaged.
    """
    return find_record(Path(results).expanduser(), cell_id)


class Report:
    """What a report says of a results folder; a notebook shows its answer and its tables.

    Attributes:
        content: The content, with all of its numbers.
    """

    def __init__(self, content: Content) -> None:
        self.content = content

    @property
    def answer(self) -> tuple[str, ...]:
        """The sentences that answer the report's question, for all scopes one after the other."""
        return tuple(sentence for section in self.content.sections for sentence in section.answer)

    @property
    def tables(self) -> Mapping[str, DataFrame]:
        """The tables by name, as frames: the numbers in full, in the metrics' own units."""
        return {table.name: table.data for table in self.content.tables}

    def __repr__(self) -> str:
        return "\n".join((self.content.status_line, *self.answer))

    def _repr_html_(self) -> str:
        return html_fragment(self.content)


def load_report(results: str | Path) -> Report:
    """Return the report on a results folder, as `lora-bench report` computes it.

    Args:
        results: The results folder; `~` is the home folder.

    Raises:
        BenchError: Exit code 4 if there are no records.
    """
    folder = Path(results).expanduser()
    return Report(gather(_load(folder), compare=load_comparisons(folder), kinds=methods.by_kind().items()))


def _load(folder: Path) -> Loaded:
    """Read a results folder; files that are not sound records are left out with a warning."""
    loaded = read_records(folder)
    for path, reason in loaded.broken:
        warnings.warn(clean(f"Left out: {path} ({reason})"), stacklevel=4)  # 4: the line of the notebook
    if not loaded.records:
        raise BenchError(f"There are no records under '{folder}'.", "Give the folder of a run.", NOTHING)
    return loaded

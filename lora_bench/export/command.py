"""What `lora-bench export` asks for, refused or done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.data import DataSource
from lora_bench.errors import USAGE, BenchError, unknown
from lora_bench.models import SAMPLE

if TYPE_CHECKING:
    from lora_bench.export.trained import Trained

FORMS = ("peft", "merged", "glue")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Wish:
    """Which cells, in which form, from where, to where."""

    ids: tuple[str, ...]
    to: str
    out: Path
    results: Path
    model: Path | None = None
    data_dir: Path | None = None
    dtype: str = "float32"
    device: str = "auto"
    offline: bool = False


def refuse_early(ids: Sequence[str], to: str, dtype: str) -> None:
    """Refuse what no cell could make right, before torch is imported."""
    if to not in FORMS:
        raise unknown("form", to, FORMS)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if to != "glue" and len(ids) > 1:
        raise BenchError(
            f"--to {to} takes one id, not {len(ids)}.", "Export them one by one, each to its --out.", USAGE
        )


def run(wish: Wish) -> list[str]:
    """Export; lines that say what was written."""
    from lora_bench.export import folders, glue, trained
    from lora_bench.run.device import choose_device

    load = partial(
        trained.load, results=wish.results, model=wish.model, device=choose_device(wish.device), offline=wish.offline
    )
    if wish.to == "glue":
        return glue.write([partial(load, name) for name in wish.ids], wish.out, partial(_source, wish))
    (name,) = wish.ids
    return [folders.WRITERS[wish.to](load(name), wish.out, wish.dtype)]


def _source(wish: Wish, cell: Trained) -> DataSource:
    """Where test splits come from: the folder that is given, else where the cell's data came from."""
    return DataSource.parse(wish.data_dir, sample=cell.cell.data.startswith(SAMPLE))

"""Real runs, small enough for a test: grids over a tiny encoder and a small data folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_bench.callbacks import PackStart
from lora_bench.cell import Cell
from lora_bench.grid.cells import Grid, expand
from lora_bench.grid.config import Config
from lora_bench.records.schema import Record
from lora_bench.run import plan as plans
from lora_bench.run.interfaces import Options, View
from lora_bench.run.plan import Plan
from lora_bench.run.runner import Runner
from lora_bench.testing.data import make_data
from lora_bench.testing.encoders import make_model

Blocks = Sequence[dict[str, Any]]  # as in a config: a setting is a value or a list of values


class QuietView(View):
    """A view of a run that shows nothing and remembers its warnings, its number of packs and the ids that ended."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.packs = 0
        self.ended: list[str] = []

    def on_pack_start(self, start: PackStart) -> None:
        """A pack begins to train."""
        self.packs += 1

    def done(self, records: Sequence[Record]) -> None:
        """Cells have ended."""
        self.ended += [record.id for record in records]

    def warn(self, text: str) -> None:
        """Something the user should know."""
        self.warnings.append(text)


class TinyBench:
    """Grids over one encoder and one data folder, whose records go to one results folder.

    Attributes:
        model: The folder of the encoder.
        rows: The data folder.
        results: The results folder, which need not exist.
    """

    def __init__(self, model: Path, rows: Path, results: Path) -> None:
        self.model, self.rows, self.results = model, rows, results

    @classmethod
    def create(cls, folder: Path, *tasks: str, family: str = "roberta") -> TinyBench:
        """Make an encoder (`folder/tiny`) and rows of the tasks (`folder/rows`); records go to `folder/results`."""
        return cls(make_model(folder / "tiny", family), make_data(folder / "rows", *tasks), folder / "results")

    def grid(self, blocks: Blocks, **defaults: Any) -> Grid:
        """Return the grid of a config with these blocks and these `defaults`."""
        base: dict[str, Any] = {
            "model": str(self.model),
            "task": "sst2",
            "epochs": 2,
            "batch_size": 8,
            "max_length": 16,
            "lr": 1e-2,
            "precision": "float64",
        }
        config = Config(name="test", defaults=base | defaults, blocks=tuple(blocks))
        return expand(config, {}, plans.sources(), self.rows)

    def plan(self, blocks: Blocks, limit: int = 16, retry: Sequence[str] = (), **defaults: Any) -> Plan:
        """Return what would run, in packs of at most `limit` cells; `retry` as in `--retry`."""
        return plans.make(self.grid(blocks, **defaults), self.results, limit, retry)

    def run(self, blocks: Blocks, limit: int = 16, retry: Sequence[str] = (), **defaults: Any) -> list[Record]:
        """Train the cells of the blocks that have no record yet, and return the records of all.

        Args:
            blocks: The blocks of a config: settings with a value or a list of values.
            limit: The most cells a pack may have.
            retry: The statuses whose cells run again, as in `--retry`.
            defaults: Settings that all blocks share.
        """
        return self.follow(self.plan(blocks, limit, retry, **defaults), QuietView())

    def follow(self, plan: Plan, view: QuietView) -> list[Record]:
        """Run a plan while a view observes it, and return the records."""
        return Runner(plan, Options(self.results, offline=True), view).run()

    def csv(self) -> list[dict[str, str]]:
        """Return the rows of metrics.csv."""
        with (self.results / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def files(self) -> dict[str, bytes]:
        """Return the content of every file in the results folder, by its path within it."""
        paths = sorted(path for path in self.results.rglob("*") if path.is_file())
        return {str(path.relative_to(self.results)): path.read_bytes() for path in paths}


def by_cell(records: Sequence[Record]) -> dict[Cell, Record]:
    """Return the records by their cell."""
    return {record.cell: record for record in records}


def assert_same_numbers(one: Record, other: Record) -> None:
    """Assert that two records of a cell agree in everything but times; losses may differ by rounding."""
    assert [epoch.metrics for epoch in one.epochs] == [epoch.metrics for epoch in other.epochs]
    assert one.predictions == other.predictions
    losses, others = (np.array([epoch.loss for epoch in record.epochs], dtype=float) for record in (one, other))
    np.testing.assert_allclose(losses, others, rtol=1e-10)
    assert (one.score, one.score_epoch) == (other.score, other.score_epoch)
    assert (one.counts, one.data) == (other.counts, other.data)

"""The table of searched rates, and that cells of searches are no results."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lora_bench.records.schema import Record, SearchInfo
from lora_bench.records.store import Loaded, write_record
from lora_bench.report import build
from lora_bench.report.content import gather
from lora_bench.report.numbers.searches import COLUMNS, search_frame, search_tables
from lora_bench.testing import make_epochs
from tests.report.report_factory import record, shown

TRIAL = SearchInfo(role="trial", settings=("lr",))


def trial(lr: float, held_out: float | None, seed: int = 100, search: SearchInfo = TRIAL, **settings: Any) -> Record:
    """A cell of a search; one that diverged if there is no held-out score."""
    if held_out is None:
        made = record(None, status="diverged", reason="nan", lr=lr, seed=seed, select="held-out", **settings)
    else:
        epochs = make_epochs(0.5, held_out=[held_out])
        made = record(0.5, curve=epochs, lr=lr, seed=seed, select="held-out", **settings)
    return made.model_copy(update={"search": search})


SEARCH = [
    trial(lr, score + shift, seed)
    for lr, score in ((1e-4, 0.6), (3e-4, 0.8), (1e-3, 0.7), (3e-3, 0.5))
    for seed, shift in ((100, 0.01), (101, -0.01))
]


def rows(records: list[Record]) -> list[dict[str, Any]]:
    frame = search_frame(records)
    return [dict(zip(frame.columns, values, strict=True)) for values in frame.to_numpy()]


def test_a_row_says_what_was_tried_and_chosen_and_how_flat_it_is() -> None:
    (row,) = rows(SEARCH)
    assert list(row) == list(COLUMNS)
    assert (row["task"], row["method"], row["rank"], row["seeds"]) == ("sst2", "mini", 4, 2)
    assert row["tried"] == "0.0001, 0.0003, 0.001, 0.003"
    assert row["held_out"] == "60.0, 80.0, 70.0, 50.0"
    assert (row["chosen"], row["edge"], row["failed"]) == ("0.0003", None, 0)
    assert [row[name] for name in ("best", "over_second", "over_lower", "over_higher")] == pytest.approx(
        [0.8, 0.1, 0.2, 0.1]
    )


def test_an_edge_and_a_failed_rate_are_said() -> None:
    sound = [trial(rate, score, seed) for rate, score in ((1e-4, 0.6), (1e-3, 0.7)) for seed in (100, 101)]
    (row,) = rows([*sound, trial(1e-2, 0.9), trial(1e-2, None, 101)])
    assert (row["chosen"], row["edge"], row["failed"]) == ("0.001", None, 1)
    assert row["held_out"] == "60.0, 70.0, failed"
    assert row["over_higher"] is None
    (row,) = rows([trial(1e-4, 0.6), trial(1e-3, 0.7)])
    assert (row["chosen"], row["edge"]) == ("0.001", "lr")


def test_a_search_without_a_choice_is_a_row_too() -> None:
    (row,) = rows([trial(1e-4, None), trial(1e-3, None)])
    assert (row["chosen"], row["best"], row["edge"], row["failed"]) == (None, None, None, 2)


def test_neighbours_are_at_the_chosen_rate_of_the_head() -> None:
    both = SearchInfo(role="trial", settings=("lr", "head_lr"))
    scores = {(1e-3, 1e-3): 0.5, (2e-3, 1e-3): 0.9, (1e-3, 2e-3): 0.8, (2e-3, 2e-3): 0.7}
    (row,) = rows([trial(lr, score, search=both, head_lr=head) for (lr, head), score in scores.items()])
    assert (row["chosen"], row["searched"], row["edge"]) == ("0.002 / 0.001", "lr, head_lr", "lr, head_lr")
    assert row["over_lower"] == pytest.approx(0.4)
    assert row["over_second"] == pytest.approx(0.1)
    (table,) = search_tables(trial(lr, score, search=both, head_lr=head) for (lr, head), score in scores.items())
    assert "searched\nsettings" in table.heads  # what a pair of rates is of


def test_the_table_has_a_row_for_each_search_and_counts_edges() -> None:
    (table,) = search_tables([*SEARCH, trial(1e-4, 0.6, rank=8), trial(1e-3, 0.7, rank=8)])
    assert len(table.rows) == 2
    cells = len(SEARCH) + 2
    assert table.notes[0] == (
        f"2 of 2 searches have chosen; 1 of the chosen rates stand at an edge. They took {cells} cells."
    )
    assert "searched\nsettings" not in table.heads
    timed = [trial(rate, 0.6, seed=seed, seconds=90.0, device="cpu") for rate in (1e-4, 1e-3) for seed in (100, 101)]
    (table,) = search_tables(timed)
    assert table.notes[0].endswith("They took 4 cells, 6.0 CPU-minutes of training.")
    assert search_tables([record()]) == []


def test_cells_of_searches_are_no_results(tmp_path: Path) -> None:
    chosen = [
        record(0.8, seed=seed, select="held-out", lr=3e-4).model_copy(update={"search": SearchInfo(role="chosen")})
        for seed in range(3)
    ]
    start = record(0.8, seed=100, task="rte").model_copy(update={"search": SearchInfo(role="start")})
    content = gather(Loaded((*chosen, *SEARCH, start), ()))
    assert sorted(content.cells["seed"]) == [0, 1, 2]
    assert "searches" in [table.name for table in content.tables]


def test_a_folder_with_nothing_but_a_search_has_a_report(tmp_path: Path) -> None:
    for each in SEARCH:
        write_record(tmp_path, each)
    console = Console(file=io.StringIO(), width=120)
    build(tmp_path, tmp_path, console)
    assert "Searched learning rates" in shown(console)
    assert (tmp_path / "tables" / "searches.csv").read_text().count("\n") == 2

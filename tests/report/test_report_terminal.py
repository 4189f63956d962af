"""What the terminal shows, whole, at 80 and at 120 columns."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from lora_bench.records.schema import Record
from lora_bench.report.formats.render import MAX_ROWS, print_table
from lora_bench.report.numbers.comparisons import scope_statistics
from lora_bench.report.numbers.entries import comparable_scopes
from lora_bench.report.numbers.frame import cell_frame
from lora_bench.report.numbers.score_tables import method_table, rank_tables
from lora_bench.report.numbers.tables import missing_score_tables
from tests.report.report_factory import grid, record, shown, tables

AT_80 = """
Each method's chosen setting: tiny
                                                95%
method               targets    average         interval      rank
──────────────────────────────────────────────────────────────────
mini r=1024 a=8 b=8  attention  75.4 ± 1.0 (3)  [72.9, 77.8]  1
head                                            —

                                    CoLA            SST-2
method               targets    of  Matthews        accuracy
──────────────────────────────────────────────────────────────────
mini r=1024 a=8 b=8  attention   5  52.0 ± 1.0 (3)  92.0 ± 1.0 (3)
head                             1

                                STS-B           adapter     head
method               targets    Pearson          params   params
────────────────────────────────────────────────────────────────
mini r=1024 a=8 b=8  attention  82.0 ± 1.0 (3)    1,000  592,130
head                            80.0 ± 0.0 (3)    1,000  592,130

                                adapter    bytes  seconds  without
method               targets      bytes  as fp16   a cell    score
──────────────────────────────────────────────────────────────────
mini r=1024 a=8 b=8  attention    4,000    2,000                 0
head                              4,000    2,000                 0
One setting of each method on each set of targets: chosen by the score that is
shown (nothing was held out), which flatters a method with many settings; of:
among how many. Intervals and ranks are of the average. Bold: it may be the
best.

Average by rank: others; tiny
method  targets    r=4             r=16
────────────────────────────────────────────────────
mini    attention  74.3 ± 1.0 (3)  74.3 ± 1.4 (2/3)†

method  targets    r=64            r=256           r=1024
─────────────────────────────────────────────────────────────────
mini    attention  74.4 ± 1.0 (3)  74.6 ± 1.0 (3)  75.4 ± 1.0 (3)

Cells without a score
id            task  method  rank  a  b  seed     lr
───────────────────────────────────────────────────
3d292e91506f  sst2  mini      16  8  8     1  0.001

id            status    reason
──────────────────────────────────────────────────────────────────
3d292e91506f  diverged  the loss is not finite at step 120 of 4210
"""

AT_120 = """
Each method's chosen setting: tiny
                                                95%                     CoLA            SST-2
method               targets    average         interval      rank  of  Matthews        accuracy
──────────────────────────────────────────────────────────────────────────────────────────────────────
mini r=1024 a=8 b=8  attention  75.4 ± 1.0 (3)  [72.9, 77.8]  1      5  52.0 ± 1.0 (3)  92.0 ± 1.0 (3)
head                                            —                    1

                                STS-B           adapter     head  adapter    bytes  seconds  without
method               targets    Pearson          params   params    bytes  as fp16   a cell    score
────────────────────────────────────────────────────────────────────────────────────────────────────
mini r=1024 a=8 b=8  attention  82.0 ± 1.0 (3)    1,000  592,130    4,000    2,000                 0
head                            80.0 ± 0.0 (3)    1,000  592,130    4,000    2,000                 0
One setting of each method on each set of targets: chosen by the score that is shown (nothing was held out), which
flatters a method with many settings; of: among how many. Intervals and ranks are of the average. Bold: it may be the
best.

Average by rank: others; tiny
method  targets    r=4             r=16               r=64            r=256           r=1024
────────────────────────────────────────────────────────────────────────────────────────────────────
mini    attention  74.3 ± 1.0 (3)  74.3 ± 1.4 (2/3)†  74.4 ± 1.0 (3)  74.6 ± 1.0 (3)  75.4 ± 1.0 (3)

Cells without a score
id            task  method  rank  a  b  seed     lr  status    reason
─────────────────────────────────────────────────────────────────────────────────────────────────────────
3d292e91506f  sst2  mini      16  8  8     1  0.001  diverged  the loss is not finite at step 120 of 4210
"""


def rows() -> Iterator[Record]:
    """Three tasks, five ranks, a second (a, b) on sst2 alone, one diverged seed there, head on stsb alone."""
    for seed in range(3):
        for task, level in (("cola", 0.5), ("sst2", 0.9), ("stsb", 0.8)):
            score = level + 0.01 * seed
            for rank in (4, 16, 64, 256, 1024):
                if (task, rank, seed) == ("sst2", 16, 1):
                    yield record(
                        None,
                        task=task,
                        rank=rank,
                        seed=seed,
                        status="diverged",
                        reason="the loss is not finite at step 120 of 4210",
                    )
                else:
                    yield record(score + rank / 1e5, task=task, rank=rank, seed=seed)
                if task == "sst2":
                    yield record(score - 0.01, task=task, rank=rank, seed=seed, a=128)
        yield record(0.8, task="stsb", method="head", seed=seed)


@pytest.mark.parametrize(("width", "wanted"), [(80, AT_80), (120, AT_120)])
def test_terminal(width: int, wanted: str) -> None:
    console = Console(file=io.StringIO(), width=width)
    cells = cell_frame(rows())
    (scope,) = comparable_scopes(cells)
    for table in (method_table(scope_statistics(scope)), *rank_tables(scope), *missing_score_tables(cells)):
        print_table(table, console)
    assert shown(console).strip() == wanted.strip()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_cut(width: int) -> None:
    found = [table for table in tables(grid(tasks=("cola",))) if not table.is_data]
    console = Console(file=io.StringIO(), width=width)
    for table in found:
        print_table(table, console)
    text = shown(console)
    assert max(map(cell_len, text.splitlines())) <= width
    words = {word for table in found for row in table.rows[:MAX_ROWS] for field in row for word in field.text.split()}
    assert words <= set(text.split())


@pytest.mark.parametrize("width", [1, 10, 30])
def test_a_terminal_too_narrow_for_one_column_breaks_its_text(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    print_table(tables([record(0.5)])[0], console)
    assert max(map(cell_len, shown(console).splitlines())) <= max(width, 10)


def test_of_a_long_table_the_first_rows_are_shown() -> None:
    (scope,) = comparable_scopes(cell_frame([record(0.5 + size / 1000, a=size) for size in range(1, 101)]))
    console = Console(file=io.StringIO(), width=100)
    print_table(rank_tables(scope)[0], console)
    text = shown(console)
    assert "… 40 more rows in the files." in text
    assert len(text.splitlines()) < 75

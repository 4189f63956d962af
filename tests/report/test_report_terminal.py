"""What the terminal shows, whole, at 80 and at 120 columns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from lora_bench.records.schema import Record
from lora_bench.records.store import Loaded
from lora_bench.report.content import gather
from lora_bench.report.formats.render import MAX_ROWS, print_table
from lora_bench.report.numbers.entries import comparable_subsets
from lora_bench.report.numbers.frame import cell_frame
from lora_bench.report.numbers.score_tables import method_table, rank_tables
from lora_bench.report.numbers.tables import ReportTable, missing_score_tables
from tests.report.report_factory import grid, record, shown

AT_80 = """
Methods: tiny, attention
                      CoLA                  SST-2
method  rank    a  b  Matthews              accuracy
───────────────────────────────────────────────────────────────────
head
mini       4    8  8  51.0 ± 1.0; 51.0 (3)  91.0 ± 1.0; 91.0 (3)
mini       4  128  8                        90.0 ± 1.0; 90.0 (3)
mini      16    8  8  51.0 ± 1.0; 51.0 (3)  91.0 ± 1.4; 91.0 (2/3)†
mini      16  128  8                        90.0 ± 1.0; 90.0 (3)
mini      64    8  8  51.1 ± 1.0; 51.1 (3)  91.1 ± 1.0; 91.1 (3)
mini      64  128  8                        90.0 ± 1.0; 90.0 (3)
mini     256    8  8  51.3 ± 1.0; 51.3 (3)  91.3 ± 1.0; 91.3 (3)
mini     256  128  8                        90.0 ± 1.0; 90.0 (3)
mini    1024    8  8  52.0 ± 1.0; 52.0 (3)  92.0 ± 1.0; 92.0 (3)
mini    1024  128  8                        90.0 ± 1.0; 90.0 (3)

                      STS-B                 adapter     head
method  rank    a  b  Pearson                params   params
────────────────────────────────────────────────────────────
head                  80.0 ± 0.0; 80.0 (3)    1,000  592,130
mini       4    8  8  81.0 ± 1.0; 81.0 (3)    1,000  592,130
mini       4  128  8                          1,000  592,130
mini      16    8  8  81.0 ± 1.0; 81.0 (3)    1,000  592,130
mini      16  128  8                          1,000  592,130
mini      64    8  8  81.1 ± 1.0; 81.1 (3)    1,000  592,130
mini      64  128  8                          1,000  592,130
mini     256    8  8  81.3 ± 1.0; 81.3 (3)    1,000  592,130
mini     256  128  8                          1,000  592,130
mini    1024    8  8  82.0 ± 1.0; 82.0 (3)    1,000  592,130
mini    1024  128  8                          1,000  592,130

                      adapter    bytes  seconds     without
method  rank    a  b    bytes  as fp16   a cell       score
───────────────────────────────────────────────────────────
head                    4,000    2,000        —           0
mini       4    8  8    4,000    2,000        —           0
mini       4  128  8    4,000    2,000        —           0
mini      16    8  8    4,000    2,000        —  1 diverged
mini      16  128  8    4,000    2,000        —           0
mini      64    8  8    4,000    2,000        —           0
mini      64  128  8    4,000    2,000        —           0
mini     256    8  8    4,000    2,000        —           0
mini     256  128  8    4,000    2,000        —           0
mini    1024    8  8    4,000    2,000        —           0
mini    1024  128  8    4,000    2,000        —           0

SST-2 (accuracy) by rank: mini; tiny, attention
      a  b  r=4                   r=16
─────────────────────────────────────────────────────────
      8  8  91.0 ± 1.0; 91.0 (3)  91.0 ± 1.4; 91.0 (2/3)†
    128  8  90.0 ± 1.0; 90.0 (3)  90.0 ± 1.0; 90.0 (3)

average     90.5 ± 1.0; 90.5 (3)  90.5 ± 1.4; 90.5 (2/3)†

      a  b  r=64                  r=256                 r=1024
────────────────────────────────────────────────────────────────────────────
      8  8  91.1 ± 1.0; 91.1 (3)  91.3 ± 1.0; 91.3 (3)  92.0 ± 1.0; 92.0 (3)
    128  8  90.0 ± 1.0; 90.0 (3)  90.0 ± 1.0; 90.0 (3)  90.0 ± 1.0; 90.0 (3)

average     90.5 ± 1.0; 90.5 (3)  90.6 ± 1.0; 90.6 (3)  91.0 ± 1.0; 91.0 (3)

Cells without a score
id            task  method  rank  a  b  seed     lr
───────────────────────────────────────────────────
3d292e91506f  sst2  mini      16  8  8     1  0.001

id            status    reason
──────────────────────────────────────────────────────────────────
3d292e91506f  diverged  the loss is not finite at step 120 of 4210
"""

AT_120 = """
Methods: tiny, attention
                      CoLA                  SST-2                    STS-B
method  rank    a  b  Matthews              accuracy                 Pearson
─────────────────────────────────────────────────────────────────────────────────────────
head                                                                 80.0 ± 0.0; 80.0 (3)
mini       4    8  8  51.0 ± 1.0; 51.0 (3)  91.0 ± 1.0; 91.0 (3)     81.0 ± 1.0; 81.0 (3)
mini       4  128  8                        90.0 ± 1.0; 90.0 (3)
mini      16    8  8  51.0 ± 1.0; 51.0 (3)  91.0 ± 1.4; 91.0 (2/3)†  81.0 ± 1.0; 81.0 (3)
mini      16  128  8                        90.0 ± 1.0; 90.0 (3)
mini      64    8  8  51.1 ± 1.0; 51.1 (3)  91.1 ± 1.0; 91.1 (3)     81.1 ± 1.0; 81.1 (3)
mini      64  128  8                        90.0 ± 1.0; 90.0 (3)
mini     256    8  8  51.3 ± 1.0; 51.3 (3)  91.3 ± 1.0; 91.3 (3)     81.3 ± 1.0; 81.3 (3)
mini     256  128  8                        90.0 ± 1.0; 90.0 (3)
mini    1024    8  8  52.0 ± 1.0; 52.0 (3)  92.0 ± 1.0; 92.0 (3)     82.0 ± 1.0; 82.0 (3)
mini    1024  128  8                        90.0 ± 1.0; 90.0 (3)

                      adapter     head  adapter    bytes  seconds     without
method  rank    a  b   params   params    bytes  as fp16   a cell       score
─────────────────────────────────────────────────────────────────────────────
head                    1,000  592,130    4,000    2,000        —           0
mini       4    8  8    1,000  592,130    4,000    2,000        —           0
mini       4  128  8    1,000  592,130    4,000    2,000        —           0
mini      16    8  8    1,000  592,130    4,000    2,000        —  1 diverged
mini      16  128  8    1,000  592,130    4,000    2,000        —           0
mini      64    8  8    1,000  592,130    4,000    2,000        —           0
mini      64  128  8    1,000  592,130    4,000    2,000        —           0
mini     256    8  8    1,000  592,130    4,000    2,000        —           0
mini     256  128  8    1,000  592,130    4,000    2,000        —           0
mini    1024    8  8    1,000  592,130    4,000    2,000        —           0
mini    1024  128  8    1,000  592,130    4,000    2,000        —           0

SST-2 (accuracy) by rank: mini; tiny, attention
      a  b  r=4                   r=16
─────────────────────────────────────────────────────────
      8  8  91.0 ± 1.0; 91.0 (3)  91.0 ± 1.4; 91.0 (2/3)†
    128  8  90.0 ± 1.0; 90.0 (3)  90.0 ± 1.0; 90.0 (3)

average     90.5 ± 1.0; 90.5 (3)  90.5 ± 1.4; 90.5 (2/3)†

      a  b  r=64                  r=256                 r=1024
────────────────────────────────────────────────────────────────────────────
      8  8  91.1 ± 1.0; 91.1 (3)  91.3 ± 1.0; 91.3 (3)  92.0 ± 1.0; 92.0 (3)
    128  8  90.0 ± 1.0; 90.0 (3)  90.0 ± 1.0; 90.0 (3)  90.0 ± 1.0; 90.0 (3)

average     90.5 ± 1.0; 90.5 (3)  90.6 ± 1.0; 90.6 (3)  91.0 ± 1.0; 91.0 (3)

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


def tables(records: Iterable[Record]) -> tuple[ReportTable, ...]:
    return gather(Loaded(tuple(records), ())).tables


@pytest.mark.parametrize(("width", "wanted"), [(80, AT_80), (120, AT_120)])
def test_terminal(width: int, wanted: str) -> None:
    console = Console(file=io.StringIO(), width=width)
    found = cell_frame(rows())
    (subset,) = comparable_subsets(found)
    shortened = [table for table in rank_tables(subset) if table.title.startswith("SST-2")]
    for table in (method_table(subset), *shortened, *missing_score_tables(found)):
        print_table(table, console)
    assert shown(console).strip() == wanted.strip()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_cut(width: int) -> None:
    found = tables(grid(tasks=("cola",)))
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


def test_of_a_long_table_the_first_rows_and_the_average_are_shown() -> None:
    (subset,) = comparable_subsets(cell_frame([record(0.5 + size / 1000, a=size) for size in range(1, 101)]))
    console = Console(file=io.StringIO(), width=100)
    print_table(rank_tables(subset)[0], console)
    text = shown(console)
    assert "average" in text
    assert "… 40 more rows in the files." in text
    assert len(text.splitlines()) < 75

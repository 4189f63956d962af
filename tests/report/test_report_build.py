"""The whole report: its files, what it prints, how it ends, and that it is the same everywhere."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lora_bench.compare import Comparisons
from lora_bench.errors import DONE, NOTHING, SOME_FAILED, BenchError
from lora_bench.records.store import Loaded, write_record
from lora_bench.report import build
from lora_bench.report.content import gather
from lora_bench.report.formats.html import html_page
from tests.report.report_factory import Fill, record, shown, small

BUILD = """
import sys
import time
from pathlib import Path
from rich.console import Console
from lora_bench.report import build
from lora_bench.report.figures import encoding
encoding.POOL_THRESHOLD = 0  # figures are encoded in other processes
build(Path(sys.argv[1]), Path(sys.argv[2]), Console(width=120, stderr=True))
print("torch" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files(fill: Fill, tmp_path: Path, console: Console) -> None:
    results, out = fill(small()), tmp_path / "out"
    report = build(results, out, console)
    before = contents(out)
    tables = ("frontier", "default", "default-by-task", "overview", "best", "epochs", "methods")
    ranks = ("rank-tiny-mini-attention", "rank-tiny-others")
    figures = ("frontier", "figure2-attention", "accuracy_vs_rank-attention", "heat")
    assert set(before) == {
        "report.html",
        "report.md",
        "report.tex",
        "report.json",
        "tables/settings-tiny.csv",
        *(f"tables/{name}-tiny.{kind}" for name in tables for kind in ("csv", "tex")),
        *(f"tables/{name}.{kind}" for name in (*ranks, "unfinished") for kind in ("csv", "tex")),
        *(f"figures/{name}-tiny.{kind}" for name in figures for kind in ("png", "svg", "pdf")),
    }
    named = {report.page, *report.reports, *report.tables, *report.figures}
    assert named == {path for path in out.rglob("*") if path.is_file()}
    assert (report.code, report.broken) == (DONE, ())


def test_protocol_and_its_notes_are_on_the_page(fill: Fill, tmp_path: Path, console: Console) -> None:
    plain: dict[str, Any] = {"method": "head", "params": None, "select": "held-out"}  # there is nothing to draw
    rows = [record(0.5, notes=("half of the rows",), **plain), record(0.6, seed=1, **plain)]
    report = build(fill(rows), tmp_path / "out", console)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "validation split; epoch chosen on held-out training rows" in page
    assert "- half of the rows" in page
    assert "half of the rows" in shown(console)
    assert "half of the rows" in report.page.read_text()


def test_same_records_same_bytes(fill: Fill, tmp_path: Path, console: Console) -> None:
    records = [each for each in small() if each.cell.task == "sst2"]
    build(fill(records), tmp_path / "one", console)
    other = tmp_path / "elsewhere"
    for each in random.Random(3).sample(records, len(records)):
        write_record(other, each)
    env = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo", "COLUMNS": "60"}
    command = [sys.executable, "-c", BUILD, str(other), str(tmp_path / "two")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert done.stdout.split() == ["False", "False"]


def test_two_models_with_one_slug_do_not_overwrite(fill: Fill, tmp_path: Path, console: Console) -> None:
    report = build(
        fill([record(0.5, model=name, method="lora", rank=4, params=None) for name in ("a/b", "a-b")]),
        tmp_path / "out",
        console,
    )
    assert len(set(report.tables)) == len(report.tables) > 0
    assert all(path.exists() for path in (*report.tables, *report.figures))


@pytest.mark.parametrize("folder", ["none", "with space"])
def test_nothing_there(tmp_path: Path, console: Console, folder: str) -> None:
    with pytest.raises(BenchError) as caught:
        build(tmp_path / folder, tmp_path / "out", console)
    assert caught.value.code == NOTHING
    assert "lora-bench run --preset smoke --results " in caught.value.hint
    assert (f"{folder}'" if " " in folder else folder) in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_broken_records_are_named_and_the_page_is_still_whole(fill: Fill, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=20)
    results = fill(small())
    (results / "cells" / "deadbeef.json").write_text('{"id": 1')
    errors = Console(file=io.StringIO(), width=200)
    report = build(results, tmp_path / "out", console, errors)
    assert report.code == SOME_FAILED
    assert [path.name for path in report.broken] == ["deadbeef.json"]
    assert "deadbeef.json" in shown(errors)
    assert "deadbeef.json" not in shown(console)
    assert shown(console).splitlines()[-1] == str(report.page), "the page's path comes last, whole"
    page = (tmp_path / "out" / "report.md").read_text()
    assert "Records that could not be read" in report.page.read_text()
    assert "## Records that could not be read" in page
    assert "36 cells: 35 done, 1 failed, 0 diverged." in page
    assert "(figures/frontier-tiny.png)" in page
    assert "| lora r=4 | attention | 72.5 ± 0.7 (2/3)† |" in page
    assert "| 53.0 ± 1.0 (3) | 92.5 ± 0.7 (2/3)† | 9,000 | 592,130 |" in page
    assert "†: fewer than 3 seeds" in page
    assert "out of memory" in page
    assert str(tmp_path) not in page


def test_broken_alone_is_nothing(tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "x.json").write_text("[red]")
    with pytest.raises(BenchError):
        build(tmp_path, tmp_path / "out", console)
    assert "x.json" in capsys.readouterr().err


def test_importing_the_report_is_light() -> None:
    heavy = ("torch", "pandas", "matplotlib", "rich", "numpy", "pydantic", "scipy")
    code = f"import sys, lora_bench.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_published_numbers_are_there_when_asked_for(fill: Fill, tmp_path: Path, console: Console) -> None:
    results = fill([record(0.5, method="head", params=None)])
    assert "tables/published.csv" not in contents(build(results, tmp_path / "a", console).page.parent)
    with_paper = contents(build(results, tmp_path / "b", console, vs_paper=True).page.parent)
    assert "tables/published.csv" in with_paper
    assert b"LoRA, arXiv 2106.09685" in with_paper["tables/published.csv"]


def test_ten_thousand_rows_are_quick_to_sort_out() -> None:
    """A tenth of what the report must bear in a minute, without reading and drawing."""
    cells = [
        record(0.5 + 0.001 * lr, task=task, rank=rank, seed=seed, lr=lr * 1e-4)
        for task in ("cola", "sst2", "rte", "stsb")
        for rank in (4, 8, 16, 32, 64)
        for lr in range(1, 101)
        for seed in range(5)
    ]
    start = time.process_time()
    html_page(gather(Loaded(tuple(cells), ())))
    assert time.process_time() - start < 5


def test_the_page_weighs_under_two_megabytes_beside_its_data() -> None:
    page = html_page(gather(Loaded((record(0.5),), ())))
    assert len(page.encode()) < 1_500_000


def test_what_is_compared_can_be_given(fill: Fill, tmp_path: Path, console: Console) -> None:
    results = fill(small())
    build(results, tmp_path / "out", console, compare=Comparisons(average=("cola",)))
    assert "by rank: mini attention" in (tmp_path / "out" / "report.md").read_text()
    assert "Average by rank" not in (tmp_path / "out" / "report.md").read_text()

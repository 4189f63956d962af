"""The whole report: its files, what it prints, how it ends, and that it is the same everywhere."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from report_factory import Fill, record, shown, small
from rich.console import Console

from lora_bench.errors import DONE, NOTHING, SOME_FAILED, BenchError
from lora_bench.report import build
from lora_bench.store import write_record

BUILD = """
import sys
from pathlib import Path
from rich.console import Console
from lora_bench.report import build
build(Path(sys.argv[1]), Path(sys.argv[2]), Console(width=120, stderr=True))
print("torch" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files(fill: Fill, tmp_path: Path, console: Console) -> None:
    results, out = fill(small()), tmp_path / "out"
    report = build(results, out, console)
    before = contents(out)
    assert set(before) == {
        "report.md",
        "tables/methods-tiny-attention.csv",
        "tables/rank-tiny-attention-cola-mini.csv",
        "tables/rank-tiny-attention-cola-others.csv",
        "tables/rank-tiny-attention-sst2-mini.csv",
        "tables/rank-tiny-attention-sst2-others.csv",
        "tables/unfinished.csv",
        "figures/accuracy_vs_rank-tiny-attention.png",
        "figures/accuracy_vs_rank-tiny-attention.svg",
    }
    assert {report.markdown, *report.tables, *report.figures} == {path for path in out.rglob("*") if path.is_file()}
    assert (report.code, report.broken) == (DONE, ())
    build(results, out, console)
    assert contents(out) == before


def test_protocol_and_its_notes_are_on_the_page(fill: Fill, tmp_path: Path, console: Console) -> None:
    rows = [record(0.5, notes=("half of the rows",), select="held-out")]
    rows += [record(0.6, seed=1, select="held-out")]
    page = build(fill(rows), tmp_path / "out", console).markdown.read_text()
    assert "validation split; epoch chosen on held-out training rows" in page
    assert "- half of the rows" in page
    assert "half of the rows" in shown(console)


def test_same_records_same_bytes(fill: Fill, tmp_path: Path, console: Console) -> None:
    results = fill(small())
    build(results, tmp_path / "one", console)
    other = tmp_path / "elsewhere"
    for each in random.Random(3).sample(small(), len(small())):
        write_record(other, each)
    env = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo", "COLUMNS": "60"}
    command = [sys.executable, "-c", BUILD, str(other), str(tmp_path / "two")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert done.stdout.split() == ["False", "False"]


def test_two_models_with_one_slug_do_not_overwrite(fill: Fill, tmp_path: Path, console: Console) -> None:
    report = build(fill([record(0.5, model="a/b"), record(0.6, model="a-b")]), tmp_path / "out", console)
    assert len(set(report.tables)) == 4
    assert len(set(report.figures)) == 4
    assert all(path.exists() for path in (*report.tables, *report.figures))


@pytest.mark.parametrize("folder", ["none", "with space"])
def test_nothing_there(tmp_path: Path, console: Console, folder: str) -> None:
    with pytest.raises(BenchError) as caught:
        build(tmp_path / folder, tmp_path / "out", console)
    assert caught.value.code == NOTHING
    assert "lora-bench run --preset smoke --results " in caught.value.mend
    assert (f"{folder}'" if " " in folder else folder) in caught.value.mend
    assert not (tmp_path / "out").exists()


def test_broken_records_are_named_and_the_page_is_still_whole(fill: Fill, tmp_path: Path, console: Console) -> None:
    results = fill(small())
    (results / "cells" / "deadbeef.json").write_text('{"id": 1')
    errors = Console(file=io.StringIO(), width=200)
    report = build(results, tmp_path / "out", console, errors)
    assert report.code == SOME_FAILED
    assert [path.name for path in report.broken] == ["deadbeef.json"]
    assert "deadbeef.json" in shown(errors)
    assert "deadbeef.json" not in shown(console)
    page = report.markdown.read_text()
    assert "## Records that could not be read" in page
    assert "36 cells: 35 done, 1 failed, 0 diverged." in page
    assert "(figures/accuracy_vs_rank-tiny-attention.png)" in page
    assert "| lora | 4 |  |  | **53.0 ± 1.0 (3)** | **92.5 ± 0.7 (2/3)†** | 9,000 | 592,130 | 1 |" in page
    assert "†: fewer than 3 seeds." in page
    assert "out of memory" in page
    assert str(tmp_path) not in page


def test_broken_alone_is_nothing(tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "x.json").write_text("[red]")
    with pytest.raises(BenchError):
        build(tmp_path, tmp_path / "out", console)
    assert "x.json" in capsys.readouterr().err


def test_importing_the_report_is_light() -> None:
    heavy = ("torch", "pandas", "matplotlib", "rich", "numpy", "pydantic")
    code = f"import sys, lora_bench.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_ends_with_the_figures_path(fill: Fill, tmp_path: Path, console: Console) -> None:
    """The last line says where the figure is."""
    built = build(fill(small()), tmp_path / "out", console)
    told = "".join(shown(console).split())
    assert any(told.endswith(f"Figure:{path}") for path in built.figures)

"""Results in a notebook: frames, what a notebook shows of records and reports, and the example of the documentation."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import lora_bench
from lora_bench.errors import NOTHING, BenchError
from lora_bench.records import store
from lora_bench.records.schema import Record
from lora_bench.records.store import record_path, write_record
from lora_bench.testing import make_cell, make_epochs, make_record

NOTEBOOK = Path(__file__).parent.parent / "docs" / "results.ipynb"
EVIL = "<script>alert(1)</script>\x1b[31m"


def fill(folder: Path, *records: Record) -> Path:
    for record in records:
        write_record(folder, record)
    return folder


def some_records() -> list[Record]:
    cells = [make_cell(method="lora", rank=rank, seed=seed) for rank in (4, 8) for seed in range(3)]
    records = [make_record(0.8 + 0.01 * cell.seed, cell=cell, epochs=make_epochs(0.7, 0.8)) for cell in cells]
    return [*records, make_record(None, cell=make_cell(method="head"), status="failed", params=None)]


def test_records_are_a_frame_with_types(tmp_path: Path) -> None:
    records = some_records()
    frame = lora_bench.load_records(fill(tmp_path, *records))
    assert isinstance(frame, pd.DataFrame)
    assert set(store.COLUMNS) <= set(frame.columns)
    assert frame["id"].tolist() == sorted(record.id for record in records)
    kinds = {name: str(frame[name].dtype) for name in ("rank", "score", "id", "lr")}
    assert kinds == {"rank": "Int64", "score": "Float64", "id": "string", "lr": "Float64"}
    assert frame["score"].isna().sum() == frame["rank"].isna().sum() == 1
    assert frame.groupby("rank")["score"].mean().tolist() == pytest.approx([0.81, 0.81])
    assert lora_bench.load_records(str(tmp_path)).equals(frame)


def test_a_damaged_record_is_left_out_with_a_warning(tmp_path: Path) -> None:
    first, *_ = some_records()
    fill(tmp_path, *some_records())
    record_path(tmp_path, first.id).write_text("{}")
    with pytest.warns(UserWarning, match=f"Left out: .*{first.id}"):
        frame = lora_bench.load_records(tmp_path)
    assert first.id not in set(frame["id"]) and len(frame) == len(some_records()) - 1


@pytest.mark.parametrize("read", [lora_bench.load_records, lora_bench.load_report])
def test_a_folder_without_records_is_refused(tmp_path: Path, read: type) -> None:
    with pytest.raises(BenchError) as caught:
        read(tmp_path)
    assert caught.value.code == NOTHING


def test_a_record_as_html(tmp_path: Path) -> None:
    *_, last = some_records()
    fill(tmp_path, *some_records(), make_record(None, status="failed", reason=EVIL))
    failed = lora_bench.load_record(tmp_path, make_cell().id[:8])
    html = failed._repr_html_()
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html and "\x1b" not in html
    done = some_records()[0]._repr_html_()
    assert "<td>2</td><td>1.0000</td><td>0.8000</td>" in done and "rank=4" in done
    assert "<td>" not in last._repr_html_()


def test_a_report_as_html_and_frames(tmp_path: Path) -> None:
    records = [*some_records(), make_record(0.5, cell=make_cell(method="mini", rank=4, a=8, b=8, model="m<b>x"))]
    report = lora_bench.load_report(fill(tmp_path, *records))
    html = report._repr_html_()
    assert html.startswith(f"<p>{len(records)} cells: {len(records) - 1} done, 1 failed, 0 diverged.</p>")
    assert "<details>" in html and "<script" not in html and "<b>x" not in html
    assert report.answer and all(sentence in str(report) for sentence in report.answer)
    assert all(isinstance(table, pd.DataFrame) for table in report.tables.values())
    assert "unfinished" in report.tables


def as_script(notebook: Path) -> str:
    """The code of a notebook as a script that prints, of each cell that ends with an expression, what it shows."""
    lines = [
        "import json",
        "def show(value):",
        "    html = getattr(value, '_repr_html_', None)",
        "    print('shown', json.dumps(repr(value) if html is None else html()), flush=True)",
    ]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            tree = ast.parse("".join(cell["source"]), cell["id"])
            if isinstance(last := tree.body[-1], ast.Expr):
                last.value = ast.Call(ast.Name("show"), [last.value], [])
            lines.append(ast.unparse(tree))
    return "\n".join([*lines, "import sys", "assert 'torch' not in sys.modules"])


def test_the_example_runs(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(as_script(NOTEBOOK), encoding="utf-8")
    settings = {"PYTHONPATH": str(Path(lora_bench.__file__).parent.parent), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ended = subprocess.run(
        [sys.executable, "example.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | settings | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    outputs = [json.loads(line[6:]) for line in ended.stdout.splitlines() if line.startswith("shown ")]
    _, frame, means, record, epochs, report, tables = outputs
    assert frame.count("<tr") == 5 and "adapter_params" in frame and "head" in means
    assert "<dt>status</dt><dd>done</dd>" in record and "'accuracy':" in epochs
    assert "4 cells: 4 done" in report and "methods sample" in tables

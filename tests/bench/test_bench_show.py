"""The report as files and as a table."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lora_bench.bench import show
from lora_bench.bench.rows import BenchRow, with_ratios
from lora_bench.bench.suite import BenchReport
from tests.bench.bench_factory import report, row

FAILED = BenchRow("packed", "rte", "attention+dense", "mixed", 64, True, error="RuntimeError: something broke")
SHORT = BenchRow("packed", "rte", "attention+dense", "mixed", 32, error="out of memory")


def large() -> BenchReport:
    """A report with the widest numbers."""
    rows = [row("trainer", 11.25), row("processes-8", 45.5, k=8), row("packed", 123456.7, k=4096, mix="mixed")]
    return report(*with_ratios([*rows, SHORT, FAILED]))


def shown(bench_report: BenchReport) -> str:
    console = Console(file=io.StringIO(), width=80)
    show.print_report(bench_report, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_table_fits_eighty_columns() -> None:
    text = shown(large())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for words in ("SST-2, qv", "RTE, attention+dense", "123,457", "10,974", "64 auto", "no memory", "failed"):
        assert words in text
    assert "RuntimeError: something broke" in text


def test_random_weights_are_mentioned() -> None:
    assert "random weights" in shown(large())
    assert "random weights" in show.markdown_page(large())


def test_uneven_repeats_are_mentioned() -> None:
    uneven = report(*with_ratios([row("loop", 9.0, 10.0, 13.0), row("packed", 9.0, 9.5, 9.5)]))
    assert "1 of 2 rows differ by more than 20%" in shown(uneven)
    assert "0.77 to 1.05 of these" in shown(uneven)
    assert "| 0.95 (0.73 to 1.00) |" in show.markdown_page(uneven)
    assert "differ" not in shown(large())


def test_the_page_has_a_line_for_each_row_and_a_cell_for_each_column() -> None:
    lines = [line for line in show.markdown_page(large()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(large().rows)
    assert {line.count("|") for line in lines} == {len(show.MARKDOWN_HEADS) + 1}


def test_each_ratio_stands_below_the_name_of_its_peer() -> None:
    """A row with another value in every column, as a page's line and as a line of the terminal's table."""
    packed = replace(
        row("packed", 100.0), utilisation=0.25, ratio_to_trainer=11.0, ratio_to_loop=22.0, ratio_to_processes=33.0
    )
    expected = {"of peak": "25.0%", "× processes": "33.0", "× trainer": "11.0", "× loop": "22.0"}
    (line,) = (line for line in show.markdown_page(report(packed)).splitlines() if "packed" in line)
    fields = dict(zip(show.MARKDOWN_HEADS, line.strip("| ").split(" | "), strict=True))
    assert {name: fields[name] for name in expected} == expected
    lines = [line.split() for line in shown(report(packed)).splitlines()]
    heads, values = (next(line for line in lines if line[:1] == [first]) for first in ("variant", "packed"))
    expected = {"peak": "25.0%", "×proc.": "33.0", "×trainer": "11.0", "×loop": "22.0"}
    fields = dict(zip(heads, values, strict=True))
    assert {name: fields[name] for name in expected} == expected


def test_the_files(tmp_path: Path) -> None:
    made = show.write_report(large(), tmp_path / "new", "mine")
    assert [path.name for path in made] == ["mine.json", "mine.md"]
    content = json.loads(made[0].read_text())
    assert content.keys() == {"environment", "peak", "rows"}
    assert content["rows"] == json.loads(json.dumps([row.as_json() for row in large().rows]))
    assert made[1].read_text() == show.markdown_page(large())

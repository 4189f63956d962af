"""Text from outside does nothing in a terminal, in Markdown, in a spreadsheet, as a file name."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_factory import record, shown
from rich.console import Console

from lora_bench.report.frame import frame
from lora_bench.report.render import csv_table, markdown_table, print_table
from lora_bench.report.tables import Table, tables
from lora_bench.report.text import ascii_only, clean, markdown, sheet, slug, stems

EVIL = "=1+1 | `x` [bold]b[/bold] [/] <script>alert(1)</script> \x1b[31mred\x1b]0;title\x07\n# head \u202e**x** $y$"


def evil_tables() -> tuple[Table, ...]:
    return tables(frame([record(None, status="failed", reason=EVIL, model=EVIL), record(0.5, seed=1, model=EVIL)]))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\x1b[31;1mb\x1b[0m", "ab"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", "link"),
        ("a\r\n\tb", "a b"),
        ("a\x00\x9b\x7fb", "ab"),
        ("\u202eabc\u200b\ud800", "abc"),
        ("naïve 中文 ±", "naïve 中文 ±"),
    ],
)
def test_clean(text: str, wanted: str) -> None:
    assert clean(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a|b", r"a\|b"),
        ("`c`", r"\`c\`"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("[a](b)", r"\[a\](b)"),
        ("**x** _y_", r"\*\*x\*\* \_y\_"),
        ("a\n# b", r"a \# b"),
        ("a\\|b", r"a\\\|b"),
    ],
)
def test_markdown(text: str, wanted: str) -> None:
    assert markdown(text) == wanted


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n=", " =", "\x00=", "\x1b[0m="])
def test_formulas_get_an_apostrophe(start: str) -> None:
    assert str(sheet(f"{start}1+1")).startswith("'")


def test_numbers_and_harmless_text_stay() -> None:
    assert [sheet(value) for value in (-0.5, 3, "roberta-base", None)] == [-0.5, 3, "roberta-base", ""]


@given(st.text())
def test_no_text_breaks_out(text: str) -> None:
    assert "\n" not in clean(text)
    assert "\x1b" not in clean(text)
    assert "<" not in markdown(text)
    assert not str(sheet(text)).startswith(("=", "+", "-", "@", "\t", "\r"))
    clean(text).encode()
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("FacebookAI/roberta-base", "facebookai-roberta-base"), ("../../etc", "etc"), ("", "unnamed"), ("中", "unnamed")],
)
def test_slug(text: str, wanted: str) -> None:
    assert slug(text) == wanted


def test_stems_are_never_the_same() -> None:
    found = stems(["a/b", "a-b", "A b", "c", "x" * 200, "x" * 201])
    assert len(set(found)) == 6
    assert found[3] == "c"
    assert stems(["a/b"]) == ["a-b"]


def test_markdown_tables_keep_their_columns() -> None:
    for table in evil_tables():
        text = markdown_table(table)
        assert "<script" not in text
        assert "\x1b" not in text
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert {line.replace("\\|", "").count("|") for line in rows} == {len(table.heads) + 1}


def test_csv_reads_back_and_runs_nothing() -> None:
    for table in evil_tables():
        rows = list(csv.DictReader(io.StringIO(csv_table(table))))
        assert len(rows) == len(table.data)
        assert all(row["model"].startswith("'=") for row in rows)


def test_negative_numbers_in_csv_stay_numbers() -> None:
    rows = csv.DictReader(io.StringIO(csv_table(tables(frame([record(-0.25)]))[0])))
    assert next(rows)["mean"] == "-0.25"


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_shows_markup_as_text(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    for table in evil_tables():
        print_table(table, console)
    text = shown(console)
    assert "[bold]b[/bold] [/]" in text
    assert "\x1b[31m" not in text
    assert "\x1b]" not in text
    assert "\u202e" not in text


def test_ascii_terminal() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=100)
    print_table(tables(frame([record(0.5), record(0.6, seed=1)]))[0], console)
    console.file.flush()
    assert b"55.0 +/- 7.1 (2)*" in console.file.buffer.getvalue()  # type: ignore[attr-defined]
    assert ascii_only("中 ± —") == "? +/- --"

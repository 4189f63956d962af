"""Text from outside has no effect in a terminal, in Markdown, in a spreadsheet or as a file name."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lora_bench.records.store import Loaded
from lora_bench.report.content import gather
from lora_bench.report.escaping import ascii_only, escape_markdown, file_stems, slug
from lora_bench.report.formats.html import html_page, html_table
from lora_bench.report.formats.latex import escape_latex, latex_document, latex_table
from lora_bench.report.formats.render import csv_table, json_report, markdown_table, print_table
from lora_bench.report.numbers.tables import ReportTable
from lora_bench.text import clean, sheet
from tests.report.report_factory import record, shown, tables

EVIL = (
    "=1+1 | `x` [bold]b[/bold] [/] <script>alert(1)</script> \x1b[31mred\x1b]0;title\x07\n# head \u202e**x** $y$ "
    "\\input{/etc/passwd} </script> {{data}} &lt; %~^"
)


def evil_tables() -> tuple[ReportTable, ...]:
    return tables([record(None, status="failed", reason=EVIL, model=EVIL), record(0.5, seed=1, model=EVIL)])


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
    assert escape_markdown(text) == wanted


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n=", " =", "\x00=", "\x1b[0m="])
def test_formulas_get_an_apostrophe(start: str) -> None:
    assert str(sheet(f"{start}1+1")).startswith("'")


def test_numbers_and_harmless_text_stay() -> None:
    assert [sheet(value) for value in (-0.5, 3, "roberta-base", None)] == [-0.5, 3, "roberta-base", ""]


@given(st.text())
def test_no_text_breaks_out(text: str) -> None:
    assert "\n" not in clean(text)
    assert "\x1b" not in clean(text)
    assert "<" not in escape_markdown(text)
    assert not str(sheet(text)).startswith(("=", "+", "-", "@", "\t", "\r"))
    clean(text).encode()
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("FacebookAI/roberta-base", "facebookai-roberta-base"), ("../../etc", "etc"), ("", "unnamed"), ("中", "unnamed")],
)
def test_slug(text: str, wanted: str) -> None:
    assert slug(text) == wanted


def test_file_stems_are_unique() -> None:
    found = file_stems(["a/b", "a-b", "A b", "c", "x" * 200, "x" * 201])
    assert len(set(found)) == 6
    assert found[3] == "c"
    assert file_stems(["a/b"]) == ["a-b"]


def printed() -> list[ReportTable]:
    return [table for table in evil_tables() if not table.is_data]


def test_markdown_tables_keep_their_columns() -> None:
    for table in printed():
        text = markdown_table(table)
        assert "<script" not in text
        assert "\x1b" not in text
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert {line.replace("\\|", "").count("|") for line in rows} == {len(table.heads) + 1}


def test_csv_reads_back_and_runs_nothing() -> None:
    for table in evil_tables():
        rows = list(csv.DictReader(io.StringIO(csv_table(table))))
        assert len(rows) == len(table.data)
        assert all(row["model"].startswith("'=") for row in rows if "model" in row)


def test_negative_numbers_in_csv_stay_numbers() -> None:
    rows = csv.DictReader(io.StringIO(csv_table(tables([record(-0.25)])[0])))
    assert next(rows)["mean"] == "-0.25"


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_shows_markup_as_text(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    for table in printed():
        print_table(table, console)
    text = shown(console)
    assert "[bold]b[/bold] [/]" in text
    assert "\x1b[31m" not in text
    assert "\x1b]" not in text
    assert "\u202e" not in text


def test_ascii_terminal() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=100)
    print_table(tables([record(0.5), record(0.6, seed=1)])[0], console)
    console.file.flush()
    assert b"55.0 +/- 7.1 (2)*" in console.file.buffer.getvalue()  # type: ignore[attr-defined]
    assert ascii_only("中 ± —") == "? +/- --"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("a_b & 50% #1 $x$ ~ ^", r"a\_b \& 50\% \#1 \$x\$ \textasciitilde{} \textasciicircum{}"),
        ("91.0 ± 1.0", r"91.0 \ensuremath{\pm} 1.0"),
        ("naïve 中", "naive ?"),
        ("a\x1b[31mb", "ab"),
    ],
)
def test_latex(text: str, wanted: str) -> None:
    assert escape_latex(text) == wanted


@given(st.text())
def test_latex_leaves_nothing_that_tex_acts_on(text: str) -> None:
    bare = re.sub(r"\\(text[a-z]+|ensuremath|pm|times|le|ge|dag|dots|[{}$&#%_])", "", escape_latex(text))
    assert not set("\\$&#%_^~") & set(bare)
    escape_latex(text).encode("ascii")


def test_the_page_shows_names_as_text() -> None:
    failed = record(None, status="failed", reason=EVIL, model=EVIL, task=EVIL, method=EVIL, rank=4)
    written = html_page(gather(Loaded((failed, record(0.5, seed=1, model=EVIL, method=EVIL, rank=4)), ())))
    before, _, rest = written.partition('<script type="application/json" id="data">')
    data, _, after = rest.partition("</script>")
    assert "<" not in data
    assert json.loads(data)["settings"]
    for part in (before, after):
        assert "<script>alert" not in part
        assert "\x1b" not in part
    assert "{{data}}" in before  # the name's own text, left alone
    assert before.count("<script") == 0


def test_html_tables_escape() -> None:
    for table in printed():
        assert "<script" not in html_table(table)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html_table(evil_tables()[-1])


def test_json_reads_back_as_it_was() -> None:
    content = json.loads(json_report({"summary": EVIL}, evil_tables()))
    assert content["summary"] == EVIL
    assert {row["model"] for table in content["tables"] for row in table["rows"] if "model" in row} == {EVIL}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no TeX here")
def test_tex_compiles_and_reads_no_file(tmp_path: Path) -> None:
    (tmp_path / "report.tex").write_text(latex_document(EVIL, [EVIL], map(latex_table, printed())), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-recorder", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 5000
    assert "/etc/passwd" not in (tmp_path / "report.fls").read_text()

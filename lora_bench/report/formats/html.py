"""The report as one HTML page that needs nothing else: no network, no other file.

Text from outside enters it in two ways: escaped in tables and sentences, and as JSON in which no `<` is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from lora_bench.report.content import Content, Section, environments
from lora_bench.report.figures.captions import LEGEND
from lora_bench.report.figures.layout import is_right
from lora_bench.report.formats.explorer import page_data, shared_settings
from lora_bench.report.numbers.tables import Field, Table
from lora_bench.text import clean


def page(content: Content) -> str:
    """The page."""
    from plotly.offline import get_plotlyjs

    parts = {
        "style": _asset("page.css"),
        "summary": text(content.summary),
        "findings": _findings(content) or "<p>Nothing to test: no LoRA cells and no mirrored (a, b).</p>",
        "sections": "".join(_section(section) for section in content.sections),
        "rest": "".join(_details(table, len(table.rows) <= 12) for table in content.rest),
        "protocol": "".join(_protocol(section) for section in content.sections),
        "settings": _facts(shared_settings(content.rows)),
        "environment": _facts({name: "; ".join(values) for name, values in environments(content.rows).items()}),
        "legend": _list(LEGEND),
        "broken": _broken(content),
        "data": json.dumps(page_data(content), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "plotly": get_plotlyjs(),
        "script": _asset("page.js"),
    }
    return "".join(_filled(_asset("page.html"), parts))


def text(value: str) -> str:
    """`value` as it reads, in an element or an attribute."""
    return escape(clean(value))


def html_table(table: Table) -> str:
    """The table with its notes."""
    right = [is_right(table, column) for column in range(len(table.heads))]
    heads = "".join(
        f"<th{_side(number)}>{'<br>'.join(text(part) for part in head.split(chr(10)))}</th>"
        for head, number in zip(table.heads, right, strict=True)
    )
    body = table.rows[: len(table.rows) - table.footer]
    foot = table.rows[len(body) :]
    lines = ["<div class=wide><table><thead><tr>", heads, "</tr></thead><tbody>", *_lines(body, right), "</tbody>"]
    lines += ["<tfoot>", *_lines(foot, right), "</tfoot>"] if foot else []
    notes = "".join(f"<p class=note>{text(note)}</p>" for note in table.notes)
    return "".join([*lines, "</table></div>", notes])


def _asset(name: str) -> str:
    return resources.files("lora_bench.report").joinpath("assets", name).read_text(encoding="utf-8")


def _filled(template: str, parts: Mapping[str, str]) -> Iterable[str]:
    """The template with `{{name}}` replaced, once: what is put in is never looked at again."""
    for at, piece in enumerate(template.split("{{")):
        name, end, after = piece.partition("}}")
        yield from (parts[name], after) if at and end else (piece,)


def _lines(rows: Sequence[Sequence[Field]], right: Sequence[bool]) -> Iterable[str]:
    for row in rows:
        fields = zip(row, right, strict=True)
        yield f"<tr>{''.join(f'<td{_side(number)}>{_strong(field)}</td>' for field, number in fields)}</tr>"


def _side(number: bool) -> str:
    return " class=n" if number else ""


def _strong(field: Field) -> str:
    return f"<strong>{text(field.text)}</strong>" if field.strong else text(field.text)


def _findings(content: Content) -> str:
    said = [section for section in content.sections if section.findings]
    titled = len(said) > 1
    return "".join(
        (f"<h3>{text(section.piece.title)}</h3>" if titled else "") + _list(section.findings) for section in said
    ) + _list(content.findings)


def _section(section: Section) -> str:
    first = 3  # the best settings, against LoRA, which epoch: what a reader comes for
    tables = "".join(_details(table, at < first) for at, table in enumerate(section.tables))
    return f"<section><h3>{text(section.piece.title)}</h3>{tables}</section>"


def _details(table: Table, is_open: bool) -> str:
    return (
        f"<details{' open' if is_open else ''}><summary>{text(table.title)}</summary>{html_table(table)}</details>"
    )  # fmt: skip


def _protocol(section: Section) -> str:
    return f"<h3>{text(section.piece.title)}</h3>{_list(section.protocol)}"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items()) + "</dl>"


def _broken(content: Content) -> str:
    if not content.broken:
        return ""
    lines = _list(f"{path.name}: {reason}" for path, reason in content.broken)
    return f"<section class=warn><h2>Records that could not be read</h2>{lines}</section>"

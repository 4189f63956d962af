"""The report as one HTML page that needs no network and no other file.

Text from outside enters the page in two ways: escaped in tables and sentences, and as JSON that contains no `<`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from lora_bench.report.content import Content, Section, environment_values
from lora_bench.report.formats.explorer import page_data, shared_settings
from lora_bench.report.formats.folding import is_right_aligned
from lora_bench.report.numbers.tables import Field, ReportTable, printed_tables
from lora_bench.text import clean

_OPEN_ROWS = 60  # tables are open if they are no longer than this
_MAX_ROWS = 400  # of a table on the page; the files contain all of them


def html_page(content: Content) -> str:
    """Return the page."""
    environment = {name: "; ".join(values) for name, values in environment_values(content.cells).items()}
    data = json.dumps(page_data(content), allow_nan=False, separators=(",", ":"))
    parts = {
        "style": _asset("page.css"),
        "summary": escape_html(content.status_line),
        "answer": _answer(content) or "<p>No scores yet: there is nothing to say.</p>",
        "sections": "".join(_section(section) for section in content.sections),
        "rest": "".join(_details(table, len(table.rows) <= _OPEN_ROWS) for table in content.other_tables),
        "protocol": "".join(_protocol(section) for section in content.sections),
        "settings": _definitions(shared_settings(content.cells)),
        "environment": _definitions(environment),
        "legend": _list(content.legend),
        "broken": _broken_records(content),
        # Without `<` no text can end the script element.
        "data": data.replace("<", "\\u003c"),
        "plotly": _asset("plotly-basic.min.js"),
        "script": _asset("page.js"),
    }
    return "".join(_fill_template(_asset("page.html"), parts))


def html_fragment(content: Content) -> str:
    """Return the answer and the tables, which are closed, for a notebook: no styles, no scripts."""
    tables = (table for section in content.sections for table in printed_tables(section.tables))
    shown = "".join(_details(table, is_open=False) for table in tables)
    return f"<p>{escape_html(content.status_line)}</p>{_answer(content)}{shown}"


def plain_page(title: str, answer: Iterable[str], tables: Iterable[ReportTable], notes: Iterable[str]) -> str:
    """Return a page without scripts: sentences, the printed tables, and how to read them."""
    printed = printed_tables(tables)
    parts = {
        "title": escape_html(title),
        "style": _asset("page.css"),
        "answer": "".join(f"<p>{escape_html(sentence)}</p>" for sentence in answer),
        "tables": "".join(_details(table, len(table.rows) <= _OPEN_ROWS) for table in printed),
        "notes": _list(notes),
    }
    return "".join(_fill_template(_asset("plain.html"), parts))


def escape_html(text: str) -> str:
    """Escape text for an element or an attribute."""
    return escape(clean(text))


def html_table(table: ReportTable) -> str:
    """Return the table and its notes."""
    right_aligned = [is_right_aligned(table, column) for column in range(len(table.heads))]
    heads = "".join(
        f"<th{_alignment(right)}>{'<br>'.join(escape_html(part) for part in head.split(chr(10)))}</th>"
        for head, right in zip(table.heads, right_aligned, strict=True)
    )
    body = table.rows[:_MAX_ROWS]
    left_out = len(table.rows) - len(body)
    more = f"<p class=note>{left_out:,} more rows in tables/.</p>" if left_out else ""
    lines = [
        f'<div class=wide tabindex=0 role=region aria-label="{escape_html(table.title)}"><table><thead><tr>',
        heads,
        "</tr></thead><tbody>",
    ]
    lines += [*_rows(body, right_aligned), "</tbody>"]
    notes = "".join(f"<p class=note>{escape_html(note)}</p>" for note in table.notes)
    return "".join([*lines, "</table></div>", more, notes])


def _asset(name: str) -> str:
    return resources.files("lora_bench.report").joinpath("assets", name).read_text(encoding="utf-8")


def _fill_template(template: str, parts: Mapping[str, str]) -> Iterable[str]:
    """Replace each `{{name}}` of the template; the inserted text is not searched for further placeholders."""
    for index, chunk in enumerate(template.split("{{")):
        name, end, text = chunk.partition("}}")
        yield from (parts[name], text) if index and end else (chunk,)


def _rows(rows: Sequence[Sequence[Field]], right_aligned: Sequence[bool]) -> Iterable[str]:
    for row in rows:
        fields = zip(row, right_aligned, strict=True)
        yield f"<tr>{''.join(f'<td{_alignment(right)}>{_field(field)}</td>' for field, right in fields)}</tr>"


def _alignment(right: bool) -> str:
    return " class=n" if right else ""


def _field(field: Field) -> str:
    return f"<strong>{escape_html(field.text)}</strong>" if field.bold else escape_html(field.text)


def _answer(content: Content) -> str:
    """Return the answer of each section, with headings if there are several sections, then the report's findings."""
    sections = [section for section in content.sections if section.answer]
    has_headings = len(content.sections) > 1
    return "".join(
        (f"<h3>{escape_html(section.scope.title)}</h3>" if has_headings else "")
        + "".join(f"<p>{escape_html(sentence)}</p>" for sentence in section.answer)
        for section in sections
    ) + _list(content.findings)


def _section(section: Section) -> str:
    tables = "".join(_details(table, len(table.rows) <= _OPEN_ROWS) for table in printed_tables(section.tables))
    return f"<section><h3>{escape_html(section.scope.title)}</h3>{tables}</section>"


def _details(table: ReportTable, is_open: bool) -> str:
    summary = f"<summary>{escape_html(table.title)}</summary>"
    return f"<details{' open' if is_open else ''}>{summary}{html_table(table)}</details>"


def _protocol(section: Section) -> str:
    return f"<h3>{escape_html(section.scope.title)}</h3>{_list(section.protocol)}"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape_html(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _definitions(values: Mapping[str, str]) -> str:
    items = (f"<dt>{escape_html(name)}</dt><dd>{escape_html(value)}</dd>" for name, value in values.items())
    return f"<dl>{''.join(items)}</dl>"


def _broken_records(content: Content) -> str:
    if not content.broken:
        return ""
    lines = _list(f"{path.name}: {reason}" for path, reason in content.broken)
    return f"<section class=warn><h2>Records that could not be read</h2>{lines}</section>"

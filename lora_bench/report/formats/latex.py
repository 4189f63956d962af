"""The tables as LaTeX (booktabs and longtable, folded to the page's width), and a document that contains them all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from lora_bench.report.formats.folding import fold_columns, is_right_aligned
from lora_bench.report.numbers.tables import Field, ReportTable
from lora_bench.text import clean

WIDTH = 150  # characters in a line of the landscape page, in \scriptsize
_WRAPPED_LENGTH = 34  # columns with a longer field are set as paragraphs
_PREAMBLE = r"""\documentclass[10pt,a4paper,landscape]{article}
\usepackage[T1]{fontenc}
\usepackage[margin=12mm]{geometry}
\usepackage{array,booktabs,longtable}
\setlength{\tabcolsep}{3pt}
\setlength{\parindent}{0pt}
\begin{document}
"""
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\ensuremath{<}", ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}", '"': "{''}", "`": "{`}", "'": "{'}",
    "±": r"\ensuremath{\pm}", "×": r"\ensuremath{\times}", "−": r"\ensuremath{-}", "≤": r"\ensuremath{\le}",
    "≥": r"\ensuremath{\ge}", "†": r"\dag{}", "—": "---", "–": "--", "…": r"\dots{}", "·": r"\textperiodcentered{}",
    "[": "{[}", "]": "{]}", "-": "{-}",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Escape everything that TeX would interpret; a letter of another script becomes a question mark."""
    return "".join(_SPECIAL.get(character) or _plain_character(character) for character in clean(text))


def latex_table(table: ReportTable) -> str:
    """Return a title, one longtable per folded part, and the notes; needs array, booktabs and longtable."""
    lines = [rf"\subsection*{{{escape_latex(table.title)}}}", r"{\scriptsize"]
    for columns in fold_columns(table, WIDTH):
        lines += _longtable(table, columns)
    lines += [rf"{escape_latex(note)}\par" for note in table.notes]
    return "\n".join([*lines, "}", ""])


def latex_document(title: str, lines: Iterable[str], tables: Iterable[str]) -> str:
    """Return a complete document with a title, paragraphs and tables, as `latex_table` returns these."""
    paragraphs = "\n".join(rf"{escape_latex(line)}\par" for line in lines)
    body = "\n".join(tables)
    return f"{_PREAMBLE}\\section*{{{escape_latex(title)}}}\n{paragraphs}\n{body}\n\\end{{document}}\n"


def _longtable(table: ReportTable, columns: Sequence[int]) -> list[str]:
    column_types = "".join(_column_type(table, column) for column in columns)
    heads = [table.heads[column].split("\n") for column in columns]
    depth = max(map(len, heads))
    # Short headings are aligned to the bottom.
    padded = [[""] * (depth - len(head)) + head for head in heads]
    body = [_line(_field(row[column]) for column in columns) for row in table.rows]
    return [
        rf"\begin{{longtable}}[l]{{@{{}}{column_types}@{{}}}}",
        r"\toprule",
        *(_line(escape_latex(head[index]) for head in padded) for index in range(depth)),
        r"\midrule\endhead",
        r"\bottomrule\endfoot",
        *body,
        r"\end{longtable}",
    ]


def _column_type(table: ReportTable, column: int) -> str:
    if max(len(row[column].text) for row in table.rows) > _WRAPPED_LENGTH:
        return r">{\raggedright\arraybackslash}p{55mm}"
    return "r" if is_right_aligned(table, column) else "l"


def _line(fields: Iterable[str]) -> str:
    return " & ".join(fields) + r" \\"


def _field(field: Field) -> str:
    return rf"\textbf{{{escape_latex(field.text)}}}" if field.bold else escape_latex(field.text)


def _plain_character(character: str) -> str:
    ascii_form = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9 .,;:!?()/*+=@-]", "", ascii_form) or "?"

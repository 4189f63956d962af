"""The tables as LaTeX: booktabs and longtable, folded to the page's width, and a document that holds them all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from lora_bench.report.figures.layout import folds, is_right
from lora_bench.report.numbers.tables import Field, Table
from lora_bench.text import clean

WIDTH = 150
_WRAPPED = 34
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


def latex(text: str) -> str:
    """`text` as it reads, with nothing that TeX would act on; a letter of another script is a question mark."""
    return "".join(_SPECIAL.get(character) or _plain(character) for character in clean(text))


def latex_table(table: Table) -> str:
    """The table for a document with array, booktabs and longtable: a title, one longtable a fold, notes."""
    lines = [rf"\subsection*{{{latex(table.title)}}}", r"{\scriptsize"]
    for part in folds(table, WIDTH):
        lines += _part(table, part)
    lines += [rf"{latex(note)}\par" for note in table.notes]
    return "\n".join([*lines, "}", ""])


def latex_document(title: str, lines: Iterable[str], tables: Iterable[Table]) -> str:
    """A document that compiles by itself."""
    words = "\n".join(rf"{latex(line)}\par" for line in lines)
    body = "\n".join(latex_table(table) for table in tables)
    return f"{_PREAMBLE}\\section*{{{latex(title)}}}\n{words}\n{body}\n\\end{{document}}\n"


def _part(table: Table, columns: Sequence[int]) -> list[str]:
    kinds = "".join(_kind(table, column) for column in columns)
    heads = [table.heads[column].split("\n") for column in columns]
    depth = max(map(len, heads))
    padded = [[""] * (depth - len(head)) + head for head in heads]
    body = [_line(_field(row[column]) for column in columns) for row in table.rows]
    if table.footer:
        body.insert(len(body) - table.footer, r"\midrule")
    return [
        rf"\begin{{longtable}}[l]{{@{{}}{kinds}@{{}}}}", r"\toprule",
        *(_line(latex(head[at]) for head in padded) for at in range(depth)),
        r"\midrule\endhead", r"\bottomrule\endfoot", *body, r"\end{longtable}",
    ]  # fmt: skip


def _kind(table: Table, column: int) -> str:
    if max(len(row[column].text) for row in table.rows) > _WRAPPED:
        return r">{\raggedright\arraybackslash}p{55mm}"
    return "r" if is_right(table, column) else "l"


def _line(fields: Iterable[str]) -> str:
    return " & ".join(fields) + r" \\"


def _field(field: Field) -> str:
    return rf"\textbf{{{latex(field.text)}}}" if field.strong else latex(field.text)


def _plain(character: str) -> str:
    ascii_form = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9 .,;:!?()/*+=@-]", "", ascii_form) or "?"

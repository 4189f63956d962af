"""Text from outside (model names, reasons) made harmless for a terminal, Markdown, a spreadsheet, a file name."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ASCII = str.maketrans({"±": "+/-", "×": "x", "—": "--", "†": "*", "≥": ">=", "·": "-", "…": "..."})
_LONGEST_SLUG = 80


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """`text` on one line: escape sequences, control, direction-changing and unencodable characters dropped."""
    spaced = re.sub(r"\s+", " ", _ANSI.sub("", text))
    return "".join(character for character in spaced if unicodedata.category(character)[0] != "C")


def markdown(text: str) -> str:
    """`text` as it reads, with nothing that Markdown or HTML would act on."""
    inert = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", inert)


def sheet(value: object) -> object:
    """A value for CSV: text that a spreadsheet would run as a formula gets a leading apostrophe; None is empty."""
    if not isinstance(value, str):
        return "" if value is None else value
    cleaned = clean(value)
    runs = value.startswith(_FORMULA) or cleaned.lstrip().startswith(_FORMULA)
    return f"'{cleaned}" if runs else cleaned


def ascii_only(text: str) -> str:
    """`text` for a terminal that knows no more than ASCII."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def slug(text: str) -> str:
    """`text` as a part of a file name: lower-case letters, digits, `_`, `.` and `-`, never empty, at most 80 long."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_.]+", "-", plain).strip("-._")[:_LONGEST_SLUG] or "unnamed"


def stems(names: Sequence[str]) -> list[str]:
    """A file name for each name, in order; names whose slugs are the same get a piece of their hash as well."""
    slugs = [slug(name) for name in names]
    return [
        f"{stem}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:6]}" if slugs.count(stem) > 1 else stem
        for name, stem in zip(names, slugs, strict=True)
    ]

"""Escaping of text from outside (model names, reasons) for Markdown, an ASCII terminal and file names."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from lora_bench.text import clean

_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")
_ASCII = str.maketrans({"±": "+/-", "×": "x", "—": "--", "†": "*", "≥": ">=", "·": "-", "…": "..."})
_MAX_SLUG_LENGTH = 80


def escape_markdown(text: str) -> str:
    """Escape everything that Markdown or HTML would interpret."""
    inert = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN_SPECIAL.sub(r"\\\1", inert)


def ascii_only(text: str) -> str:
    """Convert text for a terminal that shows only ASCII."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def slug(text: str) -> str:
    """Convert text to a part of a file name: lower-case letters, digits, `_`, `.` and `-`, 1 to 80 characters."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_.]+", "-", plain).strip("-._")[:_MAX_SLUG_LENGTH] or "unnamed"


def file_stems(names: Sequence[str]) -> list[str]:
    """Return a file name without extension for each name; names with the same slug also get a part of their hash."""
    slugs = [slug(name) for name in names]
    return [
        f"{stem}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:6]}" if slugs.count(stem) > 1 else stem
        for name, stem in zip(names, slugs, strict=True)
    ]

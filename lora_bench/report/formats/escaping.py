"""Text from outside (model names, reasons) made harmless for Markdown, an ASCII terminal, a file name."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from lora_bench.text import clean

_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])")
_ASCII = str.maketrans({"±": "+/-", "×": "x", "—": "--", "†": "*", "≥": ">=", "·": "-", "…": "..."})
_LONGEST_SLUG = 80


def markdown(text: str) -> str:
    """`text` as it reads, with nothing that Markdown or HTML would act on."""
    inert = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", inert)


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

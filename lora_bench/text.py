"""Text from outside (names, reasons, paths) made harmless: for a terminal, a spreadsheet, and for those who read it."""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TOKEN = re.compile(r"\b(hf_|gh[opsu]_|github_pat_|sk-|glpat-|AKIA)[\w-]{12,}")
_LOGIN = re.compile(r"(?<=://)[^\s/@]+@")
_PATH = re.compile(r"(?<![\w.:/\\…~-])(?:~[\w.-]*|[A-Za-z]:)?(?:[/\\][^\s/\\:*?\"'<>|,;()\[\]]+)*[/\\](?=[^\s/\\])")


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """`text` on one line: escape sequences, control, direction-changing and unencodable characters dropped."""
    if not text.isprintable():
        spaced = re.sub(r"\s", " ", _ANSI.sub("", text))
        text = "".join(character for character in spaced if unicodedata.category(character)[0] != "C")
    return re.sub("  +", " ", text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 cell`, `2 cells`; `plural` where it is not the noun and an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def sheet(value: object) -> object:
    """A value for CSV: text that a spreadsheet would run as a formula gets a leading apostrophe; None is empty."""
    if not isinstance(value, str):
        return "" if value is None else value
    cleaned = clean(value)
    runs = value.startswith(_FORMULA) or cleaned.lstrip().startswith(_FORMULA)
    return f"'{cleaned}" if runs else cleaned


def discreet(text: str) -> str:
    """`text` for a record that others will read: no folders of this machine, no token, no login."""
    known = text.replace("file://", "")
    with suppress(RuntimeError):  # a user without a home folder
        home = str(Path.home())
        known = known.replace(home, "~") if len(home) > 1 else known
    return _PATH.sub("…/", _LOGIN.sub("…@", _TOKEN.sub(r"\1…", known)))

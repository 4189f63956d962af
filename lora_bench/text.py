"""Makes text from outside (names, reasons, paths) safe to print, to open in a spreadsheet, and to publish."""

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
    """Return `text` on one line, without escape sequences and without characters that a terminal would act on.

    Control characters, those that change the direction of writing and those that cannot be encoded are dropped.
    """
    if not text.isprintable():
        spaced = re.sub(r"\s", " ", _ANSI.sub("", text))
        text = "".join(character for character in spaced if unicodedata.category(character)[0] != "C")
    return re.sub("  +", " ", text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, `1 cell` or `2,000 cells`; `plural` is given if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def sheet(value: object) -> object:
    """Return a value for a CSV file: a leading apostrophe keeps a spreadsheet from running text as a formula.

    None becomes an empty text; numbers stay as they are.
    """
    if not isinstance(value, str):
        return "" if value is None else value
    cleaned = clean(value)
    runs = value.startswith(_FORMULA) or cleaned.lstrip().startswith(_FORMULA)
    return f"'{cleaned}" if runs else cleaned


def discreet(text: str) -> str:
    """Return `text` for a record that others will read: without folders of this machine, tokens and logins."""
    hidden = text.replace("file://", "")
    with suppress(RuntimeError):  # a user without a home folder
        home = str(Path.home())
        hidden = hidden.replace(home, "~") if len(home) > 1 else hidden
    return _PATH.sub("…/", _LOGIN.sub("…@", _TOKEN.sub(r"\1…", hidden)))

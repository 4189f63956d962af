"""Paths that a user gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_bench.errors import BenchError


def expanded(value: Any) -> Any:
    """The value of an option with `~` expanded where it is a path, or a list of paths; no shell does so in `--o=~/x`.

    Raises:
        BenchError: exit code 2 for `~name` where there is no such user, or `~` without a home folder.
    """
    if isinstance(value, list):
        return [expanded(each) for each in value]
    if not isinstance(value, Path) or not str(value).startswith("~"):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        first = value.parts[0]
        raise BenchError(
            f"'{first}' of '{value}' is not a home folder.", f"For a folder of that name: ./{first}."
        ) from None

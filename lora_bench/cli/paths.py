"""Expansion of `~` in the paths that a user gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_bench.errors import BenchError


def expand_home(value: Any) -> Any:
    """Expand `~` in an option's value if it is a path or a list of paths; shells do not in `--option=~/x`.

    Raises:
        BenchError: exit code 2 for `~name` where there is no such user, or `~` without a home folder.
    """
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    if not isinstance(value, Path) or not str(value).startswith("~"):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        first = value.parts[0]
        raise BenchError(
            f"'{first}' of '{value}' is not a home folder.", f"For a folder with that name, write ./{first}."
        ) from None

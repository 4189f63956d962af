"""A strict subset of YAML: one document of plain mappings, lists and scalars.

Duplicate keys, anchors, aliases, tags and keys that are not words are refused. Scalars are read as in YAML 1.2, so
`1e-3` is a number, and `no`, `1:30` and `2024-01-01` are words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from lora_bench.errors import BenchError

Path = tuple[str | int, ...]
Lines = dict[Path, int]

_PLAIN = "Write plain YAML: `name: value` lines, without anchors, aliases, tags or repeated keys."
_TAG = "tag:yaml.org,2002:"
_DIGITS = list("0123456789")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what either version of YAML reads as something other than a text."""

    def ignore_aliases(self, _data: Any) -> bool:
        """Write a list that comes up again once more: the loader refuses anchors."""
        return True


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses what this module's docstring lists."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        for feature in ("anchor", "tag"):
            if getattr(event, feature, None):
                refuse(f"{feature} '{getattr(event, feature)}' is not allowed", event.start_mark)
        if _SURROGATE.search(getattr(event, "value", None) or ""):
            refuse("half of a character (a lone surrogate) is not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != f"{_TAG}str":
                refuse("this key is not a word", key.start_mark)
            if key.value in seen:
                refuse(f"key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# How unquoted scalars are read, after YAML 1.2 and with decimal numbers only. Each row ends with the characters that
# such a scalar can begin with.
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,30})", [*"-+", *_DIGITS]),
    ("float", r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", [*"-+.", *_DIGITS]),
):
    for _class in (_Loader, _Dumper):  # the dumper keeps its own rules, which are those of YAML 1.1
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def refuse(problem: str, mark: yaml.Mark) -> None:
    """Raise the error for a problem at `mark`; `read_yaml` turns it into a BenchError."""
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def read_yaml(text: str, origin: str) -> tuple[Any, Lines]:
    """Parse a YAML text.

    Args:
        text: YAML.
        origin: The name of the text in error messages.

    Returns:
        The value (None for an empty text), and the line of each key and list item by its path.

    Raises:
        BenchError: Exit code 2; it names `origin` and the line.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None, {}) if node is None else (loader.construct_document(node), dict(_lines(node, ())))
    except yaml.YAMLError as error:
        raise BenchError(f"{origin}:{_line(error, text)}: {_problem(error)}.", _PLAIN) from None
    except RecursionError:
        raise BenchError(f"{origin}: the YAML is nested too deeply.", _PLAIN) from None
    finally:
        if loader is not None:
            loader.dispose()


def write_yaml(value: Any) -> str:
    """Write plain mappings, lists and scalars so that `read_yaml` returns the same, whatever a text looks like."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True, stream=None
    )
    return text


def decode(content: bytes, origin: str) -> str:
    """Decode the content of a UTF-8 file, with or without a byte-order mark.

    Raises:
        BenchError: Exit code 2 if it is not UTF-8; it names `origin` and the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BenchError(f"{origin}:{line}: this is not UTF-8 text.", "Save the file as UTF-8.") from None


def line_of(lines: Lines, path: Path) -> int:
    """Return the line of `path`, or of the innermost mapping or list around it that has one."""
    return next((lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines), 1)


def _lines(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _lines(value, (*path, index))


def _line(error: yaml.YAMLError, text: str) -> int:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "this is not YAML"
    return str(problem).removeprefix("but ")

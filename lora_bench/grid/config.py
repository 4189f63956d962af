"""Config files. A config describes a grid of cells as data; it contains no code.

A config has `name`, `description`, `defaults`, `blocks`, `notes` and `compare`. `defaults` and each block map a setting
(a field of `Cell` other than `data`, `origin` and `task_origin`) to a value, a list of values, or a mapping from task
(or `default`) to either. In place of a value of `lr` and `head_lr` may stand a search (`grid.search`). The value of
`start` is a task: the cells continue from this config's cells of that task.
The grid is the union of the blocks, each merged over the defaults; without blocks, the defaults are the only block.
`notes` map a task, or `all`, to deviations from the paper. They go into every record of that task and into no id.
`compare` declares what the report compares (`lora_bench.compare`).
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.compare import NAME as COMPARE_FILE
from lora_bench.compare import Comparisons
from lora_bench.errors import BenchError, nearest, unknown
from lora_bench.grid.search import SEARCHABLE, SHARABLE, Search
from lora_bench.grid.yaml import Lines, decode, line_of, read_yaml
from lora_bench.records.files import read_file, write_atomically

Scalar = str | int | float | None | Search
Alternatives = tuple[Scalar, ...]  # the values of one setting; the grid has cells for each of them
Values = Alternatives | Mapping[str, Alternatives]  # the same for all tasks, or by task

SETTINGS = tuple(field for field in Cell.model_fields if field not in ("data", "origin", "task_origin"))
MAX_BYTES = 1_000_000
DEFAULT, ALL = "default", "all"

# The fields that a `Cell` needs when a single setting is validated.
_REQUIRED = {"model": "model", "data": "data", "task": "task", "method": "method"}


def normalize_value(setting: str, value: object) -> Scalar:
    """Return a setting's value as `Cell` normalizes it: `"8"` and `8.0` are 8 for a count.

    Raises:
        BenchError: Exit code 2 for a setting or value that is not allowed; the hint says what is.
    """
    if setting not in SETTINGS:
        raise unknown("setting", setting, SETTINGS)
    if setting in SEARCHABLE and isinstance(value, Search):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise BenchError(f"{setting}: {_shown(value)} is not a value.", "Write a number, a word, or a list of them.")
    if setting == "start":  # a task here; the id of one of its cells in a `Cell`
        return None if value is None else tasks.get(str(value)).name
    try:
        normalized: Scalar = getattr(Cell.model_validate({**_REQUIRED, setting: value}), setting)
    except ValidationError as error:
        allowed = error.errors()[0]["msg"].replace("Input", setting)
        raise BenchError(f"{setting}: {_shown(value)} is not allowed.", f"{allowed}.") from None
    if setting == "task":
        tasks.get(str(normalized))
    if setting == "method":
        methods.get(str(normalized))
    return normalized


def parse_alternatives(setting: str, raw: object) -> Alternatives:
    """Return the alternatives of a setting, given as one value or a list; each is checked, repetitions are dropped.

    Raises:
        BenchError: Exit code 2 for an empty list or a value that is not allowed.
    """
    values = raw if isinstance(raw, list | tuple) else [raw]
    if not values:
        raise BenchError(f"{setting}: the list is empty.", "Give it a value, or leave the setting out.")
    return tuple(dict.fromkeys(normalize_value(setting, value) for value in values))


def _parse_values(setting: str, raw: object) -> Values:
    if setting not in SETTINGS:
        raise unknown("setting", setting, SETTINGS)
    if not isinstance(raw, dict):
        return parse_alternatives(setting, raw)
    if "search" in raw:
        return (parse_search(setting, raw),)
    if setting == "task" or not raw:
        raise BenchError(f"{setting}: {_shown(raw)} is not a value.", "Write a value or a list of values.")
    _require_tasks(raw, DEFAULT)
    return {
        task: (parse_search(setting, values),)
        if isinstance(values, dict) and "search" in values
        else parse_alternatives(setting, values)
        for task, values in raw.items()
    }


def parse_search(setting: str, raw: Mapping[str, object]) -> Search:
    """Return the search that a mapping describes; see `grid.search`.

    Raises:
        BenchError: Exit code 2 for a setting that cannot be searched, and for a key or value that is not allowed.
    """
    if setting not in SEARCHABLE:
        raise BenchError(f"{setting} cannot be searched.", f"A search is for {' and '.join(SEARCHABLE)}.")
    for key in raw:
        if key not in ("search", "seeds", "extend", "share"):
            raise unknown("key of a search", str(key), ("search", "seeds", "extend", "share"))
    rates = sorted({rate for rate in _parse_list(setting, raw["search"]) if isinstance(rate, float)})
    if len(rates) < 2:
        number = "only one rate" if rates else "no rate"
        raise BenchError(f"{setting}: there is {number} to search.", "Write two rates or more: `search: [1e-4, 3e-4]`.")
    given: dict[str, Any] = {}
    if "seeds" in raw:
        given["seeds"] = parse_alternatives("seed", raw["seeds"])
    if "extend" in raw:
        if not isinstance(raw["extend"], bool):
            raise BenchError(f"extend: {_shown(raw['extend'])} is not allowed.", "Write `true` or `false`.")
        given["extend"] = raw["extend"]
    if "share" in raw:
        given["share"] = tuple(_parse_share(raw["share"]))
    return Search(tuple(rates), **given)


def _parse_list(setting: str, raw: object) -> Alternatives:
    """The values of a list, which may be empty."""
    return () if raw == [] else parse_alternatives(setting, raw)


def _parse_share(raw: object) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    if not isinstance(raw, dict):
        raise BenchError(f"share: {_shown(raw)} is not a mapping.", "Write the values to search: `share: {rank: 16}`.")
    for setting, values in raw.items():
        if setting not in SHARABLE:
            raise unknown("setting that can be shared", str(setting), SHARABLE)
        parsed = tuple(value for value in parse_alternatives(setting, values) if isinstance(value, int | str))
        if not parsed or (setting == "targets" and len(parsed) > 1):
            raise BenchError(f"share: {setting}: {_shown(values)} is not allowed.", "Write the values to search.")
        yield setting, parsed


def _require_tasks(names: Mapping[str, object], other: str) -> None:
    for name in names:
        if name not in tasks.TASKS and name != other:
            raise unknown("task", str(name), [*tasks.TASKS, other])


def _parse_settings(raw: object) -> dict[str, Values]:
    with _located():
        settings = _require_mapping(raw, "settings")
    parsed: dict[str, Values] = {}
    for key, value in settings.items():
        with _located(key):
            parsed[key] = _parse_values(key, value)
    return parsed


def _parse_notes(raw: object) -> dict[str, tuple[str, ...]]:
    with _located():
        notes = _require_mapping(raw, "notes")
    parsed: dict[str, tuple[str, ...]] = {}
    for task, texts in notes.items():
        with _located(task):
            _require_tasks({task: texts}, ALL)
            parsed[task] = _parse_texts(texts)
    return parsed


def _require_mapping(raw: object, kind: str) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise BenchError(f"{_shown(raw)} is not a mapping.", f"Write the {kind} as lines of `name: value`.")
    return {str(key): value for key, value in raw.items()}


def _parse_texts(raw: object) -> tuple[str, ...]:
    texts = raw if isinstance(raw, list | tuple) else [raw]
    for text in texts:
        if not isinstance(text, str):
            raise BenchError(f"{_shown(text)} is not a text.", "Write a note as a text or a list of texts.")
    return tuple(texts)


def _shown(value: object) -> str:
    return reprlib.repr(value)


@contextmanager
def _located(*path: str) -> Iterator[None]:
    """Turn a BenchError into an error of pydantic, which adds the path of the setting within the config."""
    try:
        yield
    except BenchError as error:
        context = {"what": error.what, "hint": error.hint, "path": path}
        raise PydanticCustomError("setting", "{what}", context) from None


def _folder_name(name: str) -> str:
    """Refuse a name that cannot be a folder on every system: results go to a folder of the config's name."""
    if re.fullmatch("con|prn|aux|nul|com[0-9]|lpt[0-9]", name, re.IGNORECASE):
        with _located():
            raise BenchError(f"name: '{name}' is a device on Windows.", "Give the config another name.")
    return name


Model = TypeVar("Model", bound=BaseModel)
Settings = Annotated[dict[str, Values], PlainValidator(_parse_settings)]


class Config(BaseModel):
    """A config file, or the grid that the command line alone describes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"), AfterValidator(_folder_name)]
    description: str = ""
    defaults: Settings = {}
    blocks: tuple[Settings, ...] = ()
    notes: Annotated[dict[str, tuple[str, ...]], PlainValidator(_parse_notes)] = {}
    compare: Comparisons = Comparisons()

    def merged(self) -> list[dict[str, Values]]:
        """Return the blocks, each merged over the defaults."""
        return [{**self.defaults, **block} for block in self.blocks] or [dict(self.defaults)]

    def notes_for(self, task: str) -> tuple[str, ...]:
        """Return the notes that go into every record of a task."""
        return self.notes.get(ALL, ()) + self.notes.get(task, ())


def parse_config(text: str, origin: str) -> Config:
    """Parse a config.

    Args:
        text: YAML.
        origin: The name of the text in error messages, such as its file.

    Raises:
        BenchError: Exit code 2; it names `origin` and the line.
    """
    return _parse(text, origin, Config)


def _parse(text: str, origin: str, model: type[Model]) -> Model:
    data, lines = read_yaml(text, origin)
    if data is None:
        raise BenchError(f"{origin}:1: the file is empty.", "A config begins with `name: …`; see configs/.")
    if not isinstance(data, dict):
        raise BenchError(
            f"{origin}:1: a config is a mapping, not {_shown(data)}.", f"Its keys are {', '.join(model.model_fields)}."
        )
    try:
        return model.model_validate({key: value for key, value in data.items() if value is not None})
    except ValidationError as error:
        raise _as_user_error(error, origin, lines, model) from None


def _as_user_error(error: ValidationError, origin: str, lines: Lines, model: type[BaseModel]) -> BenchError:
    first = error.errors(include_url=False)[0]
    context, path = first.get("ctx", {}), tuple(first["loc"])
    where = f"{origin}:{line_of(lines, path + context.get('path', ()))}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return BenchError(f"{where}: unknown key '{path[-1]}'{more}.", nearest(str(path[-1]), model.model_fields))
    if first["type"] == "setting":
        return BenchError(f"{where}: {first['msg']}{more}", str(context["hint"]))
    field = ".".join(str(part) for part in path)
    if first["type"] == "missing":
        return BenchError(f"{where}: there is no '{field}'{more}.", f"Write `{field}: …`.")
    return BenchError(
        f"{where}: {field}: {_shown(first['input'])} is not allowed{more}.", f"{first['msg'].replace('tuple', 'list')}."
    )


def load_config(path: Path) -> Config:
    """Read a config file of at most 1 MB.

    Raises:
        BenchError: Exit code 2 if it cannot be read or is not a config.
    """
    return parse_config(_read_text(path), str(path))


def load_comparisons(results: Path, config: Path | None = None) -> Comparisons:
    """Return what a config declares, or `compare.yaml` of a results folder, or the default.

    Raises:
        BenchError: Exit code 2 if the file cannot be read or declares something else.
    """
    if config is not None:
        return load_config(config).compare
    path = results / COMPARE_FILE
    return _parse(_read_text(path), str(path), Comparisons) if path.exists() else Comparisons()


def keep_comparisons(results: Path, compare: Comparisons) -> None:
    """Write what a config declares into the results folder, where the report looks for it; nothing if it declares none.

    JSON, which is YAML too.
    """
    if compare != Comparisons():
        declared = compare.model_dump_json(exclude_defaults=True, indent=1)
        write_atomically(results / COMPARE_FILE, f"{declared}\n".encode())


def _read_text(path: Path) -> str:
    try:
        content = read_file(path, limit=MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BenchError(f"{path}: {reason}.", "Give --config a YAML file, or use --preset.") from None
    if len(content) > MAX_BYTES:
        raise BenchError(f"{path} is larger than 1 MB.", "A config is a page of YAML: is this the right file?")
    return decode(content, str(path))


def parse_set(text: str) -> tuple[str, Alternatives]:
    """Parse the `key=value` of `--set`, where the value is a YAML scalar or list.

    Raises:
        BenchError: Exit code 2 for an unknown setting or a value that is not allowed.
    """
    key, equals, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals:
        raise BenchError(f"--set {_shown(text)} has no '='.", "Write --set key=value, as in --set weight_decay=0.1.")
    if key not in SETTINGS:
        raise unknown("setting", key, SETTINGS)
    return key, parse_alternatives(key, read_yaml(value, f"--set {key}")[0])

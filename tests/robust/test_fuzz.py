"""Made-up configs, records, manifests and CSV texts: the readers give a sound value or their declared error.

CI tries a few hundred; LORA_BENCH_FUZZ=100000 tries that many in all.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import State
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.grid.config import Config, load_config, parse_config, parse_set
from lora_bench.grid.yaml import read_yaml
from lora_bench.records.schema import Record
from lora_bench.records.seal import seal
from lora_bench.records.store import COLUMNS, read_record, record_text, row, write_csv
from lora_bench.testing import make_record
from lora_bench.text import sheet

TESTS = 9  # of this file
EXAMPLES = -(-int(os.environ.get("LORA_BENCH_FUZZ", 450)) // TESTS)
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

TEXTS = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["\ud800", "\0", "=1", "../x", "\x1b[31m", ""]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.integers(10**30, 10**40)
WORDS = [
    *Config.model_fields,
    *Cell.model_fields,
    *Record.model_fields,
    *tasks.TASKS,
    "default",
    "all",
    "mini",
    "crc32",
]
KEYS = st.sampled_from(WORDS) | TEXTS
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
YAML = [*"&*!{}[],:#|>%?-\t\0'\"\\\n", "  ", ": ", "- ", "---\n", "...", "<<", "name: x\n", "1e999", "\ud800", "9" * 40]
LINES = st.lists(st.sampled_from([*YAML, *WORDS]), max_size=30).map("".join)

CELL = Cell(model="tiny@0", data="files:0", task="sst2", method="lora", rank=2, alpha=1.0, targets="qv")
RECORD: dict[str, Any] = {
    "schema_version": 1, "id": CELL.id, "cell": CELL.model_dump(mode="json"), "status": "done", "reason": None,
    "metric": "accuracy", "epochs": [{"epoch": 1, "loss": 0.5, "metrics": {"accuracy": 0.5}, "held_out": None}],
    "best": 0.5, "best_epoch": 1, "last": 0.5, "score": 0.5, "score_epoch": 1, "predictions": [0.0, 1.0],
    "counts": {"adapter_params": 1, "head_params": 2, "adapter_bytes": 3, "modules": 4},
    "timing": {"seconds": 1.0, "pack_seconds": 1.0, "pack_size": 1, "tokens": 1, "tokens_per_second": 1.0},
    "protocol": {"split": "validation", "select": "best"},
    "data": {"source": "files:0", "train_rows": 1, "eval_rows": 1, "fingerprint": "0"},
    "environment": {"device": "cpu"},
}  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, content: dict[str, Any]) -> dict[str, Any]:
    """The content with a few values, at any depth, replaced, removed or added."""
    made: dict[str, Any] = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = made
        while True:
            inner = [each for each in (place.values() if isinstance(place, dict) else place) if each]
            inner = [each for each in inner if isinstance(each, dict | list)]
            if not inner or draw(st.booleans()):
                break
            place = draw(st.sampled_from(inner))
        keys: Any = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys)) if keys else None
        if isinstance(place, dict) and draw(st.booleans()):
            place[draw(KEYS)] = draw(TREES)
        elif key is not None and draw(st.booleans()):
            place[key] = draw(TREES)
        elif key is not None:
            del place[key]
    return made


@st.composite
def spliced(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a piece of it replaced by other bytes."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 8)))
    return content[:start] + draw(st.binary(max_size=8)) + content[end:]


def assert_config_or_error(read: Callable[[], object]) -> None:
    """A config or a setting, or two lines of exit code 2."""
    try:
        assert read() is not None
    except BenchError as error:
        assert error.code == USAGE
        assert "\n" not in error.what
        assert error.hint


@fuzz
@given(LINES | st.text(max_size=60))
def test_fuzzed_config_texts(text: str) -> None:
    assert_config_or_error(lambda: parse_config(text, "-"))
    assert_config_or_error(lambda: parse_config(f"name: x\n{text}", "-"))


@fuzz
@given(content=st.binary(max_size=60) | LINES.map(lambda text: text.encode(errors="surrogatepass")))
def test_fuzzed_config_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: x\n" + content)
    assert_config_or_error(lambda: load_config(tmp_path / "x.yaml"))


@fuzz
@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_fuzzed_config_trees(tree: dict[str, object]) -> None:
    assert_config_or_error(lambda: parse_config(yaml.safe_dump({"name": "x", **tree}), "-"))
    assert_config_or_error(lambda: parse_config(json.dumps({"name": "x", "defaults": tree}), "-"))


@fuzz
@given(st.sampled_from([*Cell.model_fields, "x"]), LINES | TEXTS)
def test_fuzzed_set_options(key: str, value: str) -> None:
    assert_config_or_error(lambda: parse_set(f"{key}={value}"))


@fuzz
@given(LINES)
def test_fuzzed_yaml_is_what_safe_yaml_reads(text: str) -> None:
    """Where ours reads a text it means what YAML means, scalars aside: the same keys, the same shape."""

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return [shape(inner) for inner in value] if isinstance(value, list) else None

    try:
        value, lines = read_yaml(text, "-")
    except BenchError:
        return
    assert shape(value) == shape(yaml.BaseLoader(text).get_single_data())
    assert all(0 < line <= text.count("\n") + 1 for line in lines.values())


def assert_record_or_error(path: Path, content: bytes) -> None:
    """A record that can be written again and has a row, or an error of one line."""
    path.write_bytes(content)
    try:
        record = read_record(path)
    except ValueError as error:
        assert str(error)
        assert "\n" not in str(error)
        return
    assert list(row(record)) == list(COLUMNS)
    path.write_bytes(record_text(record))
    assert read_record(path) == record


@fuzz
@given(content=edited(RECORD), sealed=st.booleans())
def test_fuzzed_records(tmp_path: Path, content: dict[str, Any], sealed: bool) -> None:
    text = json.dumps(content)
    assert_record_or_error(tmp_path / f"{CELL.id}.json", seal(text) if sealed else text.encode())


@fuzz
@given(content=st.binary(max_size=40) | spliced(seal(json.dumps(RECORD))) | spliced(json.dumps(RECORD).encode()))
def test_fuzzed_record_files(tmp_path: Path, content: bytes) -> None:
    assert_record_or_error(tmp_path / f"{CELL.id}.json", content)


@fuzz
@given(data=st.data())
def test_fuzzed_manifests(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "adapter"
    if not folder.exists():
        saved.save(folder, CELL, 2, State({"x.A": torch.ones(1, 2)}, {"w": torch.zeros(2)}))
        (folder / "sound").write_bytes((folder / "adapter.json").read_bytes())
    sound = (folder / "sound").read_bytes()
    content = json.loads(sound)
    del content["crc32"]
    made = data.draw(edited(content).map(lambda tree: seal(json.dumps(tree))) | spliced(sound) | st.binary(max_size=40))
    (folder / "adapter.json").write_bytes(made)
    try:
        cell, outputs, state = saved.read(folder)
    except BenchError as error:
        assert error.code == MISSING
        assert "\n" not in error.what
    else:
        assert isinstance(cell, Cell)
        assert outputs > 0
        assert list(state.head) == ["w"]


@fuzz
@given(
    texts=st.lists(st.text(max_size=40), min_size=4, max_size=4),
    number=st.floats(allow_nan=False, allow_infinity=False),
)
def test_fuzzed_csv_comes_back(tmp_path: Path, texts: list[str], number: float) -> None:
    """Python's csv and pandas read what was written: as many rows and columns, texts made safe and nothing else."""
    model, data, reason, device = texts
    cells = [CELL.model_copy(update={"seed": seed, "model": model or "m", "data": data or "d"}) for seed in (0, 1)]
    records = [
        make_record(None, cell=cell, params=None, status="failed", reason=reason, best=number, device=device)
        for cell in cells
    ]
    text = write_csv(tmp_path, records).read_text(encoding="utf-8")
    by_csv = list(csv.DictReader(io.StringIO(text, newline="")))
    by_pandas = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    assert list(by_pandas.columns) == list(COLUMNS)
    assert by_pandas.to_dict("records") == by_csv
    for found, record in zip(by_csv, sorted(records, key=lambda each: each.id), strict=True):
        wanted = {"model": record.cell.model, "data": record.cell.data, "reason": reason, "device": device}
        assert {name: found[name] for name in wanted} == {name: sheet(value) for name, value in wanted.items()}
        assert float(found["best"]) == number


def test_the_examples_are_as_many_as_asked_for() -> None:
    assert len([name for name in globals() if name.startswith("test_fuzzed")]) == TESTS
    assert int(os.environ.get("LORA_BENCH_FUZZ", 450)) <= TESTS * EXAMPLES

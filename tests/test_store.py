"""Records on disk: written whole, read back the same, and never trusted."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lora_bench.cell import Cell
from lora_bench.records.files import write_atomically
from lora_bench.records.schema import Counts, DataInfo, Epoch, Protocol, Record, Timing
from lora_bench.records.store import (
    COLUMNS,
    find_record,
    read_metrics,
    read_record,
    read_records,
    record_path,
    write_csv,
    write_record,
)
from lora_bench.testing import make_record
from lora_bench.text import sheet

FROZEN = (
    "id,model,task,method,rank,a,b,targets,seed,lr,alpha,epochs,batch_size,max_length,status,adapter_params,head_params,"
    "adapter_bytes,metric,best,best_epoch,last,seconds,tokens_per_second,score,score_epoch,select,init,head_lr,"
    "weight_decay,warmup,clip,precision,data,modules,pack_size,pack_seconds,peak_bytes,halved,train_rows,eval_rows,"
    "accuracy_best,accuracy_last,f1_best,f1_last,matthews_best,matthews_last,pearson_best,pearson_last,spearman_best,spearman_last,"
    "accuracy_matched_best,accuracy_matched_last,accuracy_mismatched_best,accuracy_mismatched_last,lora_bench,python,"
    "torch,transformers,device,reason,"
    "adapter_bytes_fp16,head_bytes,head_bytes_fp16,origin,cell"
)
GOLDEN = (
    "1c5ac4067df0,tiny@0123,mrpc,mini,8,16,32,attention,3,0.002,16.0,2,32,128,done,1536,1122,6400,accuracy,0.75,1,0.5,"
    "1.5,2000.0,0.75,1,best,default,,0.01,0.06,1.0,float32,files:abc,4,2,3.0,,0,100,50,0.75,0.5,0.8,0.6,,,,,,,,,,,0.1.0,"
    "3.11.7,2.11.0,5.17.0,cpu,,,,,,cell-1c5ac4067df0"
)


def record(**changes: Any) -> Record:
    """A finished record of LoRA-Mini on MRPC; `cell` changes its settings."""
    settings: dict[str, Any] = {
        "model": "tiny@0123", "data": "files:abc", "task": "mrpc", "method": "mini", "rank": 8, "a": 16, "b": 32,
        "alpha": 16.0, "init": "default", "targets": "attention", "seed": 3, "lr": 2e-3, "weight_decay": 0.01,
        "epochs": 2,
    }  # fmt: skip
    cell = Cell(**settings | changes.pop("cell", {}))
    epochs = (
        Epoch(epoch=1, loss=0.6, metrics={"accuracy": 0.75, "f1": 0.8}),
        Epoch(epoch=2, loss=None, metrics={"accuracy": 0.5, "f1": 0.6}, held_out={"accuracy": None}),
    )
    base: dict[str, Any] = {
        "best": 0.75, "best_epoch": 1, "predictions": (0.0, 1.0, 1.0),
        "counts": Counts(adapter_params=1536, head_params=1122, adapter_bytes=6400, modules=4),
        "timing": Timing(seconds=1.5, pack_seconds=3.0, pack_size=2, tokens=3000, tokens_per_second=2000.0),
        "protocol": Protocol(split="validation", select="best", notes=("ours",)),
        "data": DataInfo(source="files:abc", train_rows=100, eval_rows=50, fingerprint="f+g"),
        "environment": {
            "lora_bench": "0.1.0", "python": "3.11.7", "torch": "2.11.0", "transformers": "5.17.0", "device": "cpu",
        },
    }  # fmt: skip
    fields: dict[str, Any] = {"score": 0.75, "cell": cell, "epochs": epochs} | base | changes
    return make_record(**fields)


def failed(reason: str = "RuntimeError: no", **settings: Any) -> Record:
    """The record of a cell that never trained."""
    cell = record(cell=settings).cell
    return make_record(None, cell=cell, params=None, status="failed", reason=reason, environment={}, data=None)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("one", [record(), failed(), record(status="diverged", reason="loss not finite", score=None)])
def test_a_record_is_read_back_the_same(tmp_path: Path, one: Record) -> None:
    write_record(tmp_path, one)
    assert record_path(tmp_path, one.id) == tmp_path / "cells" / f"{one.id}.json"
    assert read_record(record_path(tmp_path, one.id)) == one
    assert read_records(tmp_path).records == (one,)


@given(score=st.floats(allow_nan=False, allow_infinity=False), reason=st.text(max_size=60), lr=st.floats(1e-12, 1e12))
def test_any_text_and_number_survives(
    tmp_path_factory: pytest.TempPathFactory, score: float, reason: str, lr: float
) -> None:
    folder = tmp_path_factory.mktemp("any")
    one = record(score=score, reason=reason, cell={"lr": lr})
    write_record(folder, one)
    assert read_records(folder).records == (one,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_record_that_can_be_made_can_be_read(tmp_path: Path, value: float) -> None:
    """A regression that overflows in its last step predicts such values."""
    with suppress(ValidationError):
        write_record(tmp_path, record(predictions=(0.5, value)))
    assert read_records(tmp_path).broken == ()


def test_records_come_in_the_order_of_ids(tmp_path: Path) -> None:
    several = [record(cell={"seed": seed}) for seed in range(6)]
    for one in several:
        write_record(tmp_path, one)
    found = [one.id for one in read_records(tmp_path).records]
    assert found == sorted(one.id for one in several)


def test_a_folder_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none").records == ()
    assert read_records(tmp_path / "none").broken == ()


WAYS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda content: json.dumps(content)[:200].encode(),
    "not text": lambda content: b"\xff\xfe\x00" + json.dumps(content).encode(),
    "foreign": lambda _: b'{"hello": "world"}',
    "list": lambda _: b"[]",
    "nested": lambda _: b"[" * 100_000,
    "wrong id": lambda content: json.dumps(content | {"id": "0" * 12}).encode(),
    "edited": lambda content: json.dumps(content | {"cell": content["cell"] | {"lr": 0.5}}).encode(),
    "extra": lambda content: json.dumps(content | {"surprise": 1}).encode(),
    "status": lambda content: json.dumps(content | {"status": "splendid"}).encode(),
}


@pytest.mark.parametrize("how", WAYS)
def test_a_spoiled_file_is_reported_and_the_others_are_read(tmp_path: Path, how: str) -> None:
    good, bad = record(), record(cell={"seed": 4})
    write_record(tmp_path, good)
    write_record(tmp_path, bad)
    path = record_path(tmp_path, bad.id)
    path.write_bytes(WAYS[how](json.loads(path.read_text())))
    loaded = read_records(tmp_path)
    assert loaded.records == (good,)
    ((where, why),) = loaded.broken
    assert where == path
    assert why
    assert "\n" not in why


def test_a_record_under_another_name_is_reported(tmp_path: Path) -> None:
    one = record()
    write_record(tmp_path, one)
    record_path(tmp_path, one.id).rename(tmp_path / "cells" / "copy.json")
    loaded = read_records(tmp_path)
    assert loaded.records == ()
    assert [reason for _, reason in loaded.broken] == ["its id is not its file's name"]


def test_a_folder_in_the_place_of_a_record_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cells" / "folder.json").mkdir(parents=True)
    (tmp_path / "cells" / "gone.json").symlink_to(tmp_path / "nothing")
    assert len(read_records(tmp_path).broken) == 2


def test_the_columns_are_frozen() -> None:
    assert ",".join(COLUMNS) == FROZEN


def test_what_a_task_of_ones_own_needs_follows_where_records_have_it(tmp_path: Path) -> None:
    """Its origin, then its metrics; rows of other tasks have empty fields there."""
    glue = record()
    own_cell = glue.cell.model_copy(update={"task": "mine", "task_origin": "mine.py@0123456789ab"})
    epochs = (Epoch(epoch=1, loss=1.0, metrics={"macro_f1": 0.25, "kappa": 0.5}),)
    mine = make_record(0.25, cell=own_cell, epochs=epochs, best_epoch=1, metric="macro_f1", data=glue.data)
    header, *rows = csv.reader(write_csv(tmp_path, [glue, mine]).read_text().splitlines())
    further = ["task_origin", "kappa_best", "kappa_last", "macro_f1_best", "macro_f1_last"]
    assert header == [*COLUMNS, *further]
    by_task = {row[header.index("task")]: row[len(COLUMNS) :] for row in rows}
    assert by_task == {"mine": ["mine.py@0123456789ab", "0.5", "0.5", "0.25", "0.25"], glue.cell.task: [""] * 5}


def test_a_models_own_head_has_a_column_where_records_have_it(tmp_path: Path) -> None:
    other = make_record(cell=record().cell.model_copy(update={"head": "model"}))
    header, *lines = csv.reader(write_csv(tmp_path, [record(), other]).read_text().splitlines())
    assert header == [*COLUMNS, "head"]
    assert sorted(line[-1] for line in lines) == ["", "model"]


def test_a_golden_row(tmp_path: Path) -> None:
    assert write_csv(tmp_path, [record()]) == tmp_path / "metrics.csv"
    assert (tmp_path / "metrics.csv").read_text() == f"{FROZEN}\n{GOLDEN}\n"


def test_a_cell_that_diverged_has_no_best_epoch_in_the_table(tmp_path: Path) -> None:
    diverged = record(status="diverged", best=None, best_epoch=None, score=None, score_epoch=None, last=None)
    (row,) = rows(write_csv(tmp_path, [diverged]))
    assert (row["best"], row["accuracy_best"], row["accuracy_last"]) == ("", "", "0.5")


def test_the_csv_has_a_row_a_record_by_id(tmp_path: Path) -> None:
    several = [record(cell={"seed": seed}) for seed in range(5)] + [failed(seed=9)]
    found = rows(write_csv(tmp_path, several))
    assert [row["id"] for row in found] == sorted(one.id for one in several)
    (bad,) = [row for row in found if row["status"] == "failed"]
    assert bad["reason"] == "RuntimeError: no"
    assert bad["best"] == bad["adapter_params"] == bad["seconds"] == ""


@pytest.mark.parametrize("lead", ["=", "+", "-", "@", "\t=", "\r=", "\n=", "\x00@", "\x7f+"])
def test_text_that_a_spreadsheet_would_run_is_quoted(tmp_path: Path, lead: str) -> None:
    evil = f"{lead}cmd('/C calc')!A0"
    one = failed(evil, model=evil, data=evil, targets=evil)
    (row,) = rows(write_csv(tmp_path, [one]))
    for column in ("model", "data", "targets", "reason"):
        assert row[column].startswith("'"), column
        assert row[column].isprintable()
        assert row[column].endswith("cmd('/C calc')!A0")


@given(st.text())
def test_safe_text_never_begins_a_formula_or_a_line(text: str) -> None:
    safe = str(sheet(text))
    assert not safe.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert safe.isprintable()
    assert sheet(safe) == safe


def test_negative_numbers_stay_numbers(tmp_path: Path) -> None:
    (row,) = rows(write_csv(tmp_path, [record(best=-0.25, last=-0.5)]))
    assert (row["best"], row["last"]) == ("-0.25", "-0.5")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "file.txt"
    write_atomically(path, b"old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(OSError, match="no space left"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert [each.name for each in path.parent.iterdir()] == ["file.txt"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_write_that_is_interrupted_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_record(tmp_path, record())
    assert list((tmp_path / "cells").iterdir()) == []


def looks_like_a_number(kind: str) -> Record:
    """A record whose id a spreadsheet takes for a number."""
    wanted = {"digits": r"[0-9]+", "exponent": r"[0-9]+e[0-9]+"}[kind]
    for seed in range(100_000):
        settings = record().cell.model_dump() | {"seed": seed}
        if re.fullmatch(wanted, Cell(**settings).id):
            return record(cell={"seed": seed})
    raise AssertionError("there is none")


@pytest.mark.parametrize("kind", ["digits", "exponent"])
def test_an_id_that_looks_like_a_number_is_text_to_pandas(tmp_path: Path, kind: str) -> None:
    """Where all ids of a folder do, pandas reads numbers, and no quoting helps: the column `cell` is always text."""
    one = looks_like_a_number(kind)
    write_record(tmp_path, one)
    path = write_csv(tmp_path, [one])
    assert pd.read_csv(path)["cell"].tolist() == [f"cell-{one.id}"]
    assert read_metrics(tmp_path)["id"].tolist() == [one.id]
    assert rows(path)[0]["id"] == one.id
    assert find_record(tmp_path, pd.read_csv(path)["cell"][0]) == one
    assert find_record(tmp_path, one.id[:6]) == one

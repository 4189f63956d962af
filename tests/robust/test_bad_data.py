"""Bad data files at the command line: two lines that name the file and the row, exit code 3; odd texts simply train."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_bench.errors import DONE, MISSING, USAGE
from tests.robust.robust_kit import assert_clear_error, make_rows, run, tree

Write = Callable[[Path], object]


def table(**columns: object) -> pa.Table:
    """Sixteen sound rows, some columns replaced."""
    texts, labels = [f"the film {number}" for number in range(16)], [0, 1] * 8
    return pa.table({"sentence": texts, "label": labels} | columns)


def parquet(made: pa.Table, keep: float = 1.0) -> Write:
    """Writes `<split>.parquet`, or the first part of it."""

    def write(stem: Path) -> None:
        path = stem.with_suffix(".parquet")
        pq.write_table(made, path)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return write


def lines(content: bytes) -> Write:
    """Writes `<split>.jsonl`."""
    return lambda stem: stem.with_suffix(".jsonl").write_bytes(content)


def objects(rows: Iterable[dict[str, object]]) -> Write:
    """Writes `<split>.jsonl` from rows."""
    return lines("".join(json.dumps(row) + "\n" for row in rows).encode())


def not_utf8() -> pa.Table:
    """A column that says it is text and is not."""
    offsets, content = np.array([0, 2, 4], np.int32).tobytes(), b"\xff\xfe\xff\xfe"
    texts = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    return pa.table({"sentence": texts, "label": [0, 1]})


def two_columns_of_a_name() -> pa.Table:
    return pa.table([pa.array(["x"]), pa.array(["y"]), pa.array([0])], names=["sentence", "sentence", "label"])


def holes(size: int) -> Write:
    """Writes `<split>.jsonl` of so many bytes, none of which takes room."""

    def write(stem: Path) -> None:
        with stem.with_suffix(".jsonl").open("wb") as file:
            file.truncate(size)

    return write


def one_text_2000_times() -> pa.Table:
    texts = pa.DictionaryArray.from_arrays(np.zeros(2000, np.int32), ["a" * 2**20])
    return pa.table({"sentence": texts, "label": [0] * 2000})


def by_pandas(text: str) -> Write:
    """Writes `<split>.tsv` as `to_csv` does."""
    rows = pd.DataFrame({"sentence": [text.format(row) for row in range(16)], "label": [0, 1] * 8})
    return lambda stem: rows.to_csv(stem.with_suffix(".tsv"), sep="\t", index=False)


def class_names(*names: str) -> pa.Table:
    """Sound rows whose schema names the classes."""
    label = {"names": names, "_type": "ClassLabel"}
    content = json.dumps({"info": {"features": {"label": label}}})
    return table().replace_schema_metadata({"huggingface": content})


BAD: dict[str, tuple[Write, str]] = {
    "a parquet of no bytes": (parquet(table(), 0), "train.parquet' cannot be read as parquet"),
    "a parquet cut in its head": (parquet(table(), 0.01), "cannot be read as parquet"),
    "a parquet cut in the middle": (parquet(table(), 0.5), "cannot be read as parquet"),
    "a parquet without its last byte": (parquet(table(), 0.9999), "cannot be read as parquet"),
    "other columns": (parquet(pa.table({"text": ["a"], "y": [0]})), "train.parquet: no column 'sentence'"),
    "no label": (parquet(pa.table({"sentence": ["a"]})), "no column 'label'"),
    "labels that are NaN": (parquet(table(label=[float("nan")] * 16)), "row 1: label nan is not one of 0 negative"),
    "labels that are null": (parquet(table(label=pa.array([None] * 16, pa.int64()))), "row 1: label None is not"),
    "a label out of range": (parquet(table(label=[0] * 15 + [2])), "row 16: label 2 is not one of"),
    "the hidden labels of the test set": (parquet(table(label=[-1] * 16)), "hidden test label"),
    "labels that are fractions": (parquet(table(label=[0.5] * 16)), "label 0.5 is not one of"),
    "texts that are null": (parquet(table(sentence=pa.array([None] * 16, pa.string()))), "'sentence' is null"),
    "texts that are lists": (parquet(table(sentence=[["x"]] * 16)), "'sentence' is list and not text"),
    "texts that are bytes": (parquet(table(sentence=[b"\xff"] * 16)), "'sentence' is bytes and not text"),
    "texts that are not UTF-8": (parquet(not_utf8()), "UnicodeDecodeError"),
    "two columns of one name": (parquet(two_columns_of_a_name()), "2 columns are named"),
    "no rows": (parquet(table().slice(0, 0)), "no rows"),
    "an empty file": (lines(b""), "train.jsonl: no rows"),
    "empty lines": (lines(b"\n \n"), "no rows"),
    "NUL alone": (lines(b"\0" * 64), "line 1: not JSON"),
    "a list": (lines(b"[1]\n"), "line 1: not a JSON object but list"),
    "a line cut off": (lines(b'{"sentence": "x", "label": 0}\n{"sentence": "x", "la'), "line 2: not JSON"),
    "not UTF-8": (lines(b'{"sentence": "\xff", "label": 0}\n'), "cannot be read as jsonl"),
    "deep nesting": (lines(b'{"sentence": ' + b"[" * 100_000 + b"\n"), "not JSON (RecursionError"),
    "a label of 10,000 digits": (lines(b'{"sentence": "x", "label": ' + b"9" * 10_000 + b"}\n"), "not JSON"),
    "escape codes in a label": (objects([{"sentence": "x", "label": "\x1b[31m\n[/red]"}]), "is not one of"),
    "escape codes in a column": (objects([{"sent\x1b[31m\nence": "x", "label": 0}]), "no column 'sentence'"),
    "a folder": (lambda stem: stem.with_suffix(".parquet").mkdir(), "is not a regular file but a folder"),
    "a link to itself": (
        lambda stem: stem.with_suffix(".jsonl").symlink_to("train.jsonl"),
        "is not a regular file but a link",
    ),
    "a pipe": (lambda stem: os.mkfifo(stem.with_suffix(".jsonl")), "is not a regular file but a pipe"),
    "a git-lfs pointer": (lines(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "is a git-lfs pointer"),
    "a small parquet of 2 GB": (parquet(one_text_2000_times()), "GiB unpacked; a split may have 1 GiB"),
    "quotes by pandas": (by_pandas('say "no" {}'), "line 2: its fields are quoted"),
    "line breaks by pandas": (by_pandas("two\nlines {}"), "line 2: 1 field, not 2"),
    "names that are not the task's": (parquet(class_names("bad", "good")), "row 1: label 'bad' is not one of"),
    "a device": (lambda stem: stem.with_suffix(".jsonl").symlink_to("/dev/zero"), "is not a regular file but a device"),
}
ODD: dict[str, Write] = {
    "empty texts": parquet(table(sentence=[""] * 16)),
    "a text of 100,000 words": objects([{"sentence": "the film " * 50_000, "label": 1}]),
    "NUL in texts": parquet(table(sentence=["a\0b\0"] * 16)),
    "half a character": objects([{"sentence": "\ud800 film", "label": 0}, {"sentence": "x\udfff", "label": 1}]),
    "escape codes": parquet(table(sentence=["\x1b[31m\r\n[/red]"] * 16)),
    "one class only": parquet(table(label=[1] * 16)),
    "one row": parquet(table().slice(0, 1)),
    "texts as a dictionary": parquet(table(sentence=pa.array(["x"] * 16).dictionary_encode())),
}


def folder_with(write: Write, split: str) -> Path:
    """A data folder with one split written anew."""
    root = make_rows(Path("data"))
    stem = root / "sst2" / split
    stem.with_suffix(".jsonl").unlink()
    write(stem)
    return root


@pytest.mark.parametrize("how", BAD)
def test_bad_rows_are_two_lines(how: str, workplace: Path) -> None:
    write, words = BAD[how]
    folder_with(write, "train")
    before = tree(workplace / "data")
    assert_clear_error(run(data_dir="data"), MISSING, words)
    assert tree(workplace / "data") == before
    assert list((workplace / "results" / "cells").iterdir() if (workplace / "results").exists() else []) == []


def test_rows_left_out_are_said(workplace: Path) -> None:
    """A broken row of QQP is left out as on the Hub, and the user is told how many there are."""
    root = workplace / "data" / "QQP"
    root.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        lines = [f"{row}\t1\t2\twhy {row}\twho {row}\t{row % 2}\n" for row in range(16)]
        cut = ["99\t1\t2\tcut\n"] if name == "train.tsv" else []
        header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        (root / name).write_text("".join([header, *lines, *cut]))
    ended = run(task="qqp", data_dir="data")
    assert ended.code == DONE, ended
    assert (ended.out + ended.errors).count("1 of 17 rows have too few fields and are left out") == 1, ended


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_cannot_be_data_is_refused_before_anything_is_read(command: str) -> None:
    for write, words in (BAD["a git-lfs pointer"], (holes(5 * 2**30), "train.jsonl: 5.0 GiB; a split may have 1 GiB")):
        folder_with(write, "train")
        assert_clear_error(run(command=command, data_dir="data"), MISSING, words)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("how", ODD)
def test_odd_rows_train(how: str, split: str) -> None:
    folder_with(ODD[how], split)
    ended = run(data_dir="data")
    assert ended.code == DONE, ended
    assert "\x1b" not in ended.out


def test_a_score_that_never_changes_has_no_correlation_and_is_recorded(workplace: Path) -> None:
    """Pearson of a constant is not defined: the cell is done, its score is none."""
    root = make_rows(Path("data"), "stsb")
    path = root / "stsb" / "validation.jsonl"
    rows = [json.loads(line) | {"label": 2.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = run(task="stsb", data_dir="data")
    assert ended.code == DONE, ended
    (record,) = (json.loads(file.read_text()) for file in (workplace / "results" / "cells").iterdir())
    assert (record["status"], record["best"]) == ("done", None)


def test_a_single_row_cannot_be_held_out() -> None:
    folder_with(ODD["one row"], "train")
    assert_clear_error(run("--set", "select=held-out", data_dir="data"), USAGE, "one row cannot be divided")

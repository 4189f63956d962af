"""Files to rows: four formats read alike, and each thing that can be wrong is reported in one line."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_bench.data import DataSource, load, sources
from lora_bench.data.sources import Rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.tasks import TASKS, Task, get
from lora_bench.tasks.glue import tsv_file
from lora_bench.tasks.task import Tsv

Table = dict[str, list[Any]]

HEADERS = {
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
NAMED = ("mnli", "qnli", "rte")  # GLUE's tsv spells these tasks' labels out


def table(task: Task, rows: int = 4) -> Table:
    """Columns of a small split, every label in it and a few awkward texts."""
    odd = ['He said "so', "a 'b' \u2028 \u0085 c", "nul \x00 here", "", "caf\u00e9 \U0001f600 "]
    texts = {name: [f"{odd[i % 5]}{name}{i}" if i % 5 != 3 else "" for i in range(rows)] for name in task.columns}
    labels = [i * 5 / rows for i in range(rows)] if task.is_regression else [i % task.num_outputs for i in range(rows)]
    return {**texts, "label": labels}


def layout(task: Task) -> Tsv:
    """How GLUE's own files of the task are stored."""
    assert task.tsv is not None
    return task.tsv


def write_parquet(path: Path, task: Task, columns: Table) -> None:
    pq.write_table(pa.table(columns), path)


def write_jsonl(path: Path, task: Task, columns: Table) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tsv(path: Path, task: Task, columns: Table) -> None:
    """As GLUE lays it out: its headers, none for CoLA, labels by name where GLUE names them."""
    names = list(layout(task).names) or HEADERS[task.name].split("\t")
    lines = [] if layout(task).names else ["\t".join(names)]
    for *texts, label in zip(*columns.values(), strict=True):
        fields = dict.fromkeys(names, "x") | dict(zip(layout(task).columns, texts, strict=True))
        fields[layout(task).label] = task.labels[label] if task.name in NAMED and label in range(9) else str(label)
        lines.append("\t".join(fields[name] for name in names))
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def write_csv(path: Path, task: Task, columns: Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


Writer = Callable[[Path, Task, Table], None]
WRITERS: dict[str, Writer] = {"parquet": write_parquet, "jsonl": write_jsonl, "tsv": write_tsv, "csv": write_csv}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
each_format = pytest.mark.parametrize("form", WRITERS)


def read(tmp_path: Path, form: str, task: Task, columns: Table) -> Rows:
    path = tmp_path / f"train.{form}"
    WRITERS[form](path, task, columns)
    return sources.read(path, task)


def refused(call: Callable[[], object], *parts: str) -> BenchError:
    with pytest.raises(BenchError) as caught:
        call()
    error = caught.value
    assert error.code == MISSING
    assert "\n" not in error.what + error.hint
    assert all(part in error.what + " " + error.hint for part in parts), str(error)
    return error


@each_format
@each_task
def test_every_format_gives_the_same_rows(task: Task, form: str, tmp_path: Path) -> None:
    columns = table(task, 11)
    rows = read(tmp_path, form, task, columns)
    assert list(rows.texts) == [columns[name] for name in task.columns]
    assert rows.labels.dtype == (np.float32 if task.is_regression else np.int64)
    assert np.array_equal(rows.labels, np.array(columns["label"], dtype=rows.labels.dtype))
    assert len(rows) == 11


# Without the quotes of which so small a tsv would be taken for a quoted one.
text = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: '""' not in text and not (len(text) > 1 and text[0] == text[-1] == '"')
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(text, text, st.integers(0, 1)), min_size=1, max_size=6))
def test_any_text_survives_every_format(tmp_path: Path, rows: list[tuple[str, str, int]]) -> None:
    first, second, label = map(list, zip(*rows, strict=True))
    columns = {"sentence1": first, "sentence2": second, "label": label}
    for form in WRITERS:
        found = read(tmp_path, form, get("rte"), columns)
        assert list(found.texts) == [first, second]
        assert found.labels.tolist() == label


@pytest.mark.parametrize("name", ["wnli", "rte"])
def test_a_tsv_may_give_labels_as_ids_or_as_names(name: str, tmp_path: Path) -> None:
    task = get(name)
    path = tmp_path / "dev.tsv"
    path.write_text(HEADERS[name] + f"\n0\ta\tb\t1\n1\tc\td\t{task.labels[0]}\n")
    assert sources.read(path, task).labels.tolist() == [1, 0]


def test_a_tsv_may_use_the_columns_of_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("sentence1\tsentence2\tlabel\na\tb\t1\n")
    assert sources.read(path, get("mrpc")).texts == (["a"], ["b"])


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path: Path) -> None:
    tsv, jsonl = tmp_path / "train.tsv", tmp_path / "train.jsonl"
    tsv.write_bytes(b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t2\t3\ta\tb\r\n")
    jsonl.write_bytes(b'\xef\xbb\xbf{"sentence1": "a", "sentence2": "b", "label": 1}\n\n')
    for path in (tsv, jsonl):
        assert sources.read(path, get("mrpc")).texts == (["a"], ["b"])


def test_short_rows_of_qqp_are_left_out_as_on_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(HEADERS["qqp"] + "\n1\t2\t3\ta\tb\t0\n4\t5\tcut\n6\t7\t8\tc\td\t1\n")
    rows = sources.read(path, get("qqp"))
    assert rows.texts == (["a", "c"], ["b", "d"])
    assert rows.notes == (f"{path}: 1 of 3 rows have too few fields and are left out, as on the Hub.",)


@each_format
@pytest.mark.parametrize(
    ("label", "says"),
    [(2, "not one of 0 negative, 1 positive"), (-1, "hidden test label"), (7, "label"), (-2, "not one of")],
)
def test_a_class_out_of_range(form: str, label: int, says: str, tmp_path: Path) -> None:
    task = get("sst2")
    columns = table(task) | {"label": [0, 1, label, 1]}
    where = {"parquet": "row 3", "jsonl": "line 3", "tsv": "line 4", "csv": "line 4"}[form]
    refused(lambda: read(tmp_path, form, task, columns), f"train.{form}, {where}: label", says)


@each_format
@pytest.mark.parametrize("label", [5.5, -0.5, float("nan"), float("inf"), -1.0])
def test_a_score_out_of_range(form: str, label: float, tmp_path: Path) -> None:
    columns = table(get("stsb")) | {"label": [0.0, label, 1.0, 2.0]}
    says = "hidden test label" if label == -1 else "not a number from 0 to 5"
    refused(lambda: read(tmp_path, form, get("stsb"), columns), f"train.{form}", says)


@pytest.mark.parametrize("label", ["1.5e1", "true", "null", '"maybe"', "[1]", "{}", "1e999", "NaN", '""', '"x\\u0000"'])
@pytest.mark.parametrize("name", ["sst2", "stsb"])
def test_a_label_of_the_wrong_type(name: str, label: str, tmp_path: Path) -> None:
    task = get(name)
    path = tmp_path / "train.jsonl"
    texts = ", ".join(f'"{column}": "a"' for column in task.columns)
    path.write_text(f'{{{texts}, "label": {label}}}\n')
    refused(lambda: sources.read(path, task), "line 1: label")


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.timestamp("s"), pa.decimal128(25, 2)])
def test_a_parquet_label_of_the_wrong_type(kind: pa.DataType, tmp_path: Path) -> None:
    columns = {"sentence": ["a"], "label": pa.array([1]).cast(kind)}
    refused(lambda: read(tmp_path, "parquet", get("sst2"), columns), "row 1: label", "not one of")


NULL, INT, BYTES = (None, "is null"), (3, "int and not text"), (b"x", "bytes and not text")


@pytest.mark.parametrize(
    ("form", "bad"), [("parquet", NULL), ("parquet", INT), ("parquet", BYTES), ("jsonl", NULL), ("jsonl", INT)]
)
def test_a_text_that_is_none(form: str, bad: tuple[object, str], tmp_path: Path) -> None:
    value, says = bad
    columns: Table = {"sentence": [value], "label": [0]}
    refused(lambda: read(tmp_path, form, get("sst2"), columns), ": 'sentence' ", says)


@each_format
def test_a_missing_column_names_the_nearest(form: str, tmp_path: Path) -> None:
    columns: Table = {"sentence_1": ["a"], "sentence2": ["b"], "label": [0]}
    path = tmp_path / f"train.{form}"
    if form == "tsv":
        path.write_text("sentence_1\tsentence2\tlabel\na\tb\t0\n")
    else:
        WRITERS[form](path, get("rte"), columns)
    refused(lambda: sources.read(path, get("rte")), f"train.{form}", "no column 'sentence1'", "mean 'sentence_1'")


def test_a_column_missing_from_one_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"sentence": "a", "label": 1}\n{"sentence": "b"}\n')
    refused(lambda: sources.read(path, get("sst2")), "line 2: no column 'label'")


@each_format
@each_task
def test_an_empty_split(task: Task, form: str, tmp_path: Path) -> None:
    refused(lambda: read(tmp_path, form, task, {name: [] for name in table(task)}), f"train.{form}: no rows")


@each_format
def test_a_file_of_no_bytes(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.{form}"
    path.touch()
    refused(lambda: sources.read(path, get("sst2")), f"train.{form}")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_a_truncated_parquet(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_parquet(path, get("sst2"), table(get("sst2"), 50))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    refused(lambda: sources.read(path, get("sst2")), "cannot be read as parquet")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_rows_or_one_error(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever byte is changed, there is no traceback."""
    form = data.draw(st.sampled_from(list(WRITERS)))
    path = tmp_path / f"train.{form}"
    WRITERS[form](path, get("rte"), table(get("rte"), 6))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert len(sources.read(path, get("rte"))) > 0
    except BenchError as error:
        assert error.code == MISSING and "\n" not in error.what


@pytest.mark.parametrize(
    ("line", "says"),
    [('{"sentence": "a", "lab', "not JSON"), ("[1]", "not a JSON object but list"), ("[" * 99999, "not JSON")],
)
def test_a_broken_line_of_jsonl(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"sentence": "a", "label": 1}\n' + line)
    refused(lambda: sources.read(path, get("sst2")), "train.jsonl, line 2", says)


@pytest.mark.parametrize("form", ["jsonl", "tsv"])
def test_a_file_that_is_not_utf8(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.{form}"
    path.write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    refused(lambda: sources.read(path, get("sst2")), "cannot be read", "UnicodeDecodeError")


def test_a_tsv_row_cut_short_and_a_field_without_end(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\na\t1\nb\n")
    refused(lambda: sources.read(path, get("sst2")), "train.tsv, line 3: 1 field, not 2")
    path.write_text("sentence\tlabel\n" + "a" * 200_000 + "\t1\n")
    refused(lambda: sources.read(path, get("sst2")), "cannot be read as tsv", "field larger")


def test_lone_surrogates_are_replaced_and_pairs_are_not(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"sentence": "a\\ud800b \\ud83d\\ude00 \\u0000", "label": 1}\n')
    assert sources.read(path, get("sst2")).texts == (["a\ufffdb \U0001f600 \x00"],)


@pytest.mark.parametrize("folder", ["sst2", "SST-2"])
@pytest.mark.parametrize(
    "name", ["train.parquet", "train.jsonl", "train-00000-of-00001.parquet", "train.tsv", "train.csv"]
)
def test_find_knows_the_usual_layouts(folder: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / folder / name
    path.parent.mkdir()
    path.touch()
    assert sources.find(tmp_path, get("sst2"), "train") == (path,)


def test_find_takes_glues_names_of_mnlis_splits(tmp_path: Path) -> None:
    (tmp_path / "MNLI").mkdir()
    for split in get("mnli").splits:
        (tmp_path / "MNLI" / tsv_file(split)).touch()
        assert [path.name for path in sources.find(tmp_path, get("mnli"), split)] == [tsv_file(split)]


def test_a_missing_file_says_what_was_expected(tmp_path: Path) -> None:
    expected = [str(tmp_path / "sst2" / "train.parquet"), str(tmp_path / "SST-2" / "train.tsv")]
    refused(lambda: sources.find(tmp_path, get("sst2"), "train"), "No file of sst2's split 'train'", *expected)
    refused(lambda: sources.find(tmp_path / "no", get("sst2"), "train"), "does not exist", "sst2")


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "link to nothing"])
def test_what_has_a_files_name_but_is_none_is_not_passed_over(kind: str, tmp_path: Path) -> None:
    """The rows of the next file in the order would be read without a word."""
    (tmp_path / "sst2").mkdir()
    write_jsonl(tmp_path / "sst2" / "train.jsonl", get("sst2"), table(get("sst2")))
    path = tmp_path / "sst2" / "train.parquet"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.symlink_to("nowhere")
    refused(
        lambda: sources.find(tmp_path, get("sst2"), "train"), "train.parquet' is not a regular file", f"but a {kind}"
    )


@pytest.mark.parametrize("name", ["not-entailment", "LABEL_1"])
def test_an_unknown_name_of_a_class_says_which_are_known(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"sentence1": "a", "sentence2": "b", "label": name}) + "\n")
    error = refused(lambda: sources.read(path, get("rte")), f"line 1: label '{name}' is not one of")
    assert error.hint == "Labels of rte are 0 to 1, or by name: entailment, not_entailment."


def test_a_folder_of_one_task_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").touch()
    refused(lambda: sources.find(tmp_path, get("sst2"), "train"), "the folder above")


CSV_HEADER = "sentence,label\n"


def test_a_csv_holds_commas_quotes_and_line_breaks_and_names_the_line_where_a_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(f'\ufeff{CSV_HEADER}"a, ""b""\nc",1\n\nplain \'d\' "e",negative\n', encoding="utf-8")
    rows = sources.read(path, get("sst2"))
    assert rows.texts == (['a, "b"\nc', "plain 'd' \"e\""],) and rows.labels.tolist() == [1, 0]
    path.write_text(f'{CSV_HEADER}"a\nb",1\n"c\nd",5\n', encoding="utf-8")
    refused(lambda: sources.read(path, get("sst2")), "train.csv, line 4: label '5' is not one of")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{CSV_HEADER}a,b,1\n", "line 2: 3 fields, not 2"),
        (f"{CSV_HEADER}a,1\nb\n", "line 3: 1 field, not 2"),
        (f'{CSV_HEADER}a,1\n"b,1\nc,1\n', "line 3: not csv"),
        (f'{CSV_HEADER}"a"b,1\n', "line 2: not csv"),
        ("sentence;label\na;1\n", "no column 'sentence'"),
        ("sentence,label,label\na,1,0\n", "2 columns are named 'label'"),
        ("", "no rows"),
        (CSV_HEADER, "no rows"),
        (f"{CSV_HEADER}a,\n", "line 2: label '' is not one of"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(text, encoding="utf-8")
    refused(lambda: sources.read(path, get("sst2")), "train.csv", said)


def test_the_parts_of_a_split_are_read_one_after_another(tmp_path: Path) -> None:
    folder, task = tmp_path / "sst2", get("sst2")
    folder.mkdir()
    parts = [folder / f"train-0000{number}-of-00002.jsonl" for number in range(2)]
    for path, text in zip(parts, "ab", strict=True):
        write_jsonl(path, task, {"sentence": [text], "label": [1]})
    write_jsonl(folder / "validation.jsonl", task, table(task))
    assert sources.find(tmp_path, task, "train") == tuple(parts)
    loaded = load(task, DataSource("folder", tmp_path))
    assert loaded.train.texts == (["a", "b"],) and loaded.train.labels.tolist() == [1, 1]
    parts[0].unlink()
    refused(lambda: sources.find(tmp_path, task, "train"), "1 of 2 parts", parts[0].name)
    write_jsonl(folder / "train-00000-of-00003.jsonl", task, table(task))
    refused(lambda: sources.find(tmp_path, task, "train"), "different numbers of parts")

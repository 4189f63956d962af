"""Tasks that are not GLUE's: included files, installed packages, and the page that explains them."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from sklearn.metrics import f1_score, matthews_corrcoef
from typer.testing import CliRunner

from lora_bench import tasks
from lora_bench.cli.app import app
from lora_bench.cli.options import including
from lora_bench.data import DataSource, load
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.records.store import read_records
from lora_bench.report.numbers.rows import cell_rows

PAGE = Path(__file__).parents[1] / "docs" / "own-task.md"
MINE = """
from lora_bench.tasks import Files, Hub, Task

TASK = Task(
    name="mine",
    title="Mine",
    columns=("text",),
    labels=("bad", "good"),
    metrics=("f1", "matthews"),
    source=Files({"train": "train.csv", "validation": "validation.csv"}),
)
"""


@pytest.fixture(autouse=True)
def restored_registry() -> Iterator[None]:
    """The registry as it was, after every test."""
    with tasks.registered():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a task and its rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    for split, count in (("train", 40), ("validation", 20)):
        rows = [f"the {'happy' if row % 3 else 'sad'} dog {row},{row % 3 and 1}" for row in range(count)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return tmp_path


def invoke(*words: str) -> tuple[int, str]:
    """A command in this process, which leaves the registry as it was: exit code and output."""
    with tasks.registered():
        ended = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    return ended.exit_code, ended.output


def blocks() -> list[tuple[str, str]]:
    """The code blocks of the page: language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(600)  # eight commands, of which each imports torch
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    """From an empty folder: files are written, commands are run, in the order of the page."""
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = os.environ | {"PATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    said = ""
    for language, text in blocks():
        if language == "python":
            (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
            continue
        if " ID " in text:
            text = text.replace(" ID ", f" {read_records(tmp_path / 'out').records[0].id} ")
        done = subprocess.run(
            ["bash", "-ec", text], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    assert "replies: 5 of 5 contracts are kept." in said
    assert said.count(" same\n") == 2
    assert "macro_f1, accuracy, found_yes" in said and "no, yes, unrelated" in said
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "replies" in report and "macro F1" in report
    config = json.loads((tmp_path / "replies-model" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes", "2": "unrelated"}
    records = read_records(tmp_path / "out").records
    assert all(set(epoch.metrics) == {"macro_f1", "accuracy", "found_yes"} for r in records for epoch in r.epochs)
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["task_origin"].startswith("my_task.py@") and row["macro_f1_best"] == row["best"]


def test_two_classes_have_an_f1_and_glue_stays_as_it_is(folder: Path) -> None:
    words = ["--model", "sample", "--method", "head", "--epochs", "1", "--results", "out"]
    code, said = invoke("run", *words, "--task", "mine", "--task", "wnli", "--include", "mine.py")
    assert code == 0, said
    records = {record.cell.task: record for record in read_records(folder / "out").records}
    with (folder / "validation.csv").open(newline="") as file:
        labels = [int(row["label"]) for row in csv.DictReader(file)]
    mine = records["mine"]
    assert mine.metric == "f1" and mine.score == f1_score(labels, mine.predictions, zero_division=0)
    assert mine.epochs[0].metrics["matthews"] == pytest.approx(matthews_corrcoef(labels, mine.predictions))
    assert mine.cell.data.startswith("files:") and records["wnli"].cell.data.startswith("sample:")
    assert mine.cell.task_origin is not None and records["wnli"].cell.task_origin is None
    assert "task_origin" not in records["wnli"].cell.canonical()
    code, said = invoke("export", mine.id, "--to", "peft", "--results", "out", "--out", "x")
    assert (code, "--include FILE" in said) == (USAGE, True), said
    code, said = invoke("export", mine.id, "--to", "glue", "--results", "out", "--out", "x", "--include", "mine.py")
    assert (code, "is not a task of GLUE's leaderboard" in said) == (USAGE, True), said
    (folder / "mine.py").write_text(MINE + "# another text\n")
    code, said = invoke("export", mine.id, "--to", "peft", "--results", "out", "--out", "x", "--include", "mine.py")
    assert (code, "Include the file as it was" in said) == (MISSING, True), said
    code, said = invoke("report", "--results", "out")
    assert code == 0, said


def test_cells_of_two_definitions_share_no_row_of_a_table(folder: Path) -> None:
    records = []
    for text in (MINE, MINE + "# another text\n"):
        (folder / "mine.py").write_text(text)
        code, said = invoke("run", "--model", "sample", "--method", "head", "--epochs", "1", "--results", "out",
                            "--task", "mine", "--include", "mine.py")  # fmt: skip
        assert code == 0, said
        records = list(read_records(folder / "out").records)
    assert len(records) == 2
    names = {row["task"] for row in cell_rows(records)}
    assert len(names) == 2 and all(name.startswith("mine (mine.py@") for name in names)
    assert {row["task"] for row in cell_rows(records[:1])} == {"mine"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('name="mine"', 'name="sst2"', "'sst2', which exists already"),
        ('name="mine"', "name=5", "line 5: name is 5, not a word"),
        ('name="mine"', 'name="default"', "name is 'default', not a word"),
        ('columns=("text",)', 'columns=("a", "b", "c")', "line 7: columns is ('a', 'b', 'c'), not a tuple of one"),
        ('labels=("bad", "good")', 'labels=("bad",)', "line 8: labels is ('bad',), not a tuple of two"),
        ('labels=("bad", "good")', 'labels=("bad", "bad")', "labels is"),
        ('labels=("bad", "good")', 'labels=("bad", "good", "fair")', "metric of two classes, and there are 3"),
        ('labels=("bad", "good")', "labels=()", "line 9: 'f1' is not a metric of a regression"),
        ('"matthews")', '"mathews")', "there is no metric 'mathews'"),
        ('"matthews")', '"f1")', "metrics names f1 twice"),
        ('"matthews")', '"accuracy_matched")', "there is no metric 'accuracy_matched'"),
        ('"matthews")', "lambda a, b: 1)", "not a tuple of names and of named functions"),
        ('"validation": "validation.csv"', '"test": "test.csv"', "splits name 'test', which the task does not have"),
        (', "validation": "validation.csv"', "", "line 10: the source has no files of the split 'validation'"),
        ('"validation.csv"})', '"validation.csv"}, columns={"txt": "x"})', "name 'txt', which the task does not have"),
        ('"validation.csv"})', '"validation.csv"}, label="text", columns={"text": "text"})', "are not different texts"),
        ('Files({"train": "train.csv", "validation": "validation.csv"})', 'Hub("a/b", revision="main")',
         "the source's revision is not a commit"),
        ("TASK = Task(", "TASK = dict(", "is not a Task"),
        ('    title="Mine",\n', "", "TypeError"),
    ],
)  # fmt: skip
def test_a_definition_that_is_not_complete_is_refused_with_its_line(
    before: str, after: str, said: str, folder: Path
) -> None:
    assert before in MINE
    (folder / "mine.py").write_text(MINE.replace(before, after))
    with pytest.raises(BenchError) as error:
        including([Path("mine.py")])
    assert said in error.value.what, error.value.what
    assert error.value.code == USAGE and len(str(error.value).splitlines()) == 2
    assert "mine" not in tasks.TASKS


def test_a_task_is_registered_for_a_block(folder: Path) -> None:
    rows = tasks.Files({"train": "train.csv", "validation": "validation.csv"})
    task = tasks.Task("cola", "Mine", ("text",), ("bad", "good"), ("f1",), rows)
    official = tasks.get("cola")
    with tasks.registered(task):
        assert tasks.get("cola").metrics == ("f1",)
        assert len(load(tasks.get("cola"), DataSource.parse()).train) == 40
        tasks.include(folder / "mine.py")
    assert tasks.get("cola") is official
    assert "mine" not in tasks.TASKS and tasks.origin("mine") is None


def test_a_file_with_neither_is_refused_and_one_with_both_adds_both(folder: Path) -> None:
    (folder / "none.py").write_text("x = 1\n")
    with pytest.raises(BenchError, match="defines no RECIPE and no TASK"):
        including([Path("none.py")])
    assert including([Path("mine.py")]) == [(None, tasks.get("mine"))]
    again = including([Path("mine.py")])
    assert again[0].task is tasks.get("mine"), "the same file again changes nothing"


FUNCTION = MINE.replace('"matthews")', "own)").replace(
    "TASK =", "def own(predictions, labels):\n    return ANSWER\n\n\nTASK ="
)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("'high'", "own returned 'high', not a number from -1 to 1"),
        ("7.0", "own returned 7.0, not a number"),
        ("True", "own returned True, not a number"),
        ("1 / 0", "ZeroDivisionError"),
        ("predictions.fill(0)", "own returned None"),
        ("exit()", "SystemExit"),
    ],
)
def test_a_metric_that_fails_fails_the_cell_and_names_the_file(answer: str, said: str, folder: Path) -> None:
    (folder / "mine.py").write_text(FUNCTION.replace("ANSWER", answer))
    code, output = invoke("run", "--model", "sample", "--method", "head", "--epochs", "1", "--results", "out",
                          "--task", "mine", "--include", "mine.py")  # fmt: skip
    assert code == 1, output
    (record,) = read_records(folder / "out").records
    assert record.status == "failed" and said in str(record.reason), record.reason


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("float((predictions != labels).mean())", "own is 0 for right predictions and 1 for wrong ones"),
        ("float(predictions[0] == labels[0])", r"own is [01], and [01] in another order"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_check_notices_a_metric_that_is_no_score(function: str, fault: str, folder: Path) -> None:
    (folder / "mine.py").write_text(FUNCTION.replace("ANSWER", function))
    code, output = invoke("check", "mine.py")
    assert code == 1 and re.search(f"- .*{fault}", output), output


def test_check_notices_a_label_that_does_not_occur(folder: Path) -> None:
    (folder / "train.csv").write_text("text,label\na,good\nb,good\n")
    code, output = invoke("check", "mine.py")
    assert (code, "no row of the train split has the label bad" in output) == (1, True), output


def test_missing_files_and_a_missing_source_are_refused_in_two_lines(folder: Path) -> None:
    (folder / "validation.csv").unlink()
    plan = ["plan", "--model", "sample", "--method", "head", "--task", "mine", "--include", "mine.py"]
    code, output = invoke(*plan)
    assert (code, "validation.csv' does not exist" in output) == (MISSING, True), output
    without = re.sub(r"    source=.*\n", "", MINE)
    (folder / "mine.py").write_text(without)
    code, output = invoke(*plan)
    assert (code, "does not say where its data are" in output) == (MISSING, True), output
    (folder / "rows" / "mine").mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / "rows" / "mine" / f"{split}.jsonl").write_text('{"text": "a", "label": 1}\n')
    code, output = invoke(*plan, "--data-dir", "rows")
    assert code == 0, output


def test_parts_are_read_in_their_order_and_named_by_their_bytes(folder: Path) -> None:
    for number, label in ((1, "good"), (2, "bad")):
        (folder / f"part-{number}.csv").write_text(f"text,label\ntext {number},{label}\n")
    (folder / "more.jsonl").write_text('{"text": "text 3", "label": 0}\n')
    source = 'Files({"train": ["part-*.csv", "more.jsonl"], "validation": "validation.csv"})'
    (folder / "mine.py").write_text(re.sub(r"Files\(.*\)", source, MINE))
    task = tasks.include(folder / "mine.py")
    rows = load(task, DataSource.parse()).train
    assert rows.texts == (["text 1", "text 2", "text 3"],) and rows.labels.tolist() == [1, 0, 0]
    before = DataSource.parse().identity(task)
    (folder / "part-2.csv").write_text("text,label\ntext 2,good\n")
    assert DataSource.parse().identity(task) != before


def test_a_number_as_the_name_of_a_label_is_a_name(folder: Path) -> None:
    (folder / "mine.py").write_text(MINE.replace('("bad", "good")', '("1", "2", "3")').replace('"f1"', '"macro_f1"'))
    (folder / "train.csv").write_text("text,label\na,1\nb,3\nc,2\n")
    (folder / "validation.csv").write_text("text,label\na,0\n")
    task = tasks.include(folder / "mine.py")
    _, rows = DataSource.parse().read(task)
    assert next(rows)[1].labels.tolist() == [0, 2, 1]
    with pytest.raises(BenchError, match=r"validation.csv, line 2: label '0' is not one of 1, 2, 3"):
        next(rows)


def test_a_regression_has_its_own_bounds(folder: Path) -> None:
    text = MINE.replace('("bad", "good")', "()").replace('("f1", "matthews")', '("pearson",)')
    (folder / "mine.py").write_text(text.replace("    source", "    bounds=(-1, 1),\n    source"))
    (folder / "train.csv").write_text("text,label\na,-1\nb,0.5\n")
    (folder / "validation.csv").write_text("text,label\na,1.5\n")
    with tasks.registered(), pytest.raises(BenchError, match=r"label '1.5' is not a number from -1 to 1"):
        load(tasks.include(folder / "mine.py"), DataSource.parse())
    (folder / "mine.py").write_text(text)
    assert load(tasks.include(folder / "mine.py"), DataSource.parse()).evals["validation"].labels.tolist() == [1.5]
    (folder / "validation.csv").write_text("text,label\na,1e39\n")
    with pytest.raises(BenchError, match="is not a finite number"):
        load(tasks.get("mine"), DataSource.parse())


def test_a_packages_tasks_are_there_and_a_broken_one_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.py").rename(folder / "package_of_mine.py")
    monkeypatch.syspath_prepend(str(folder))
    tasks.add_installed([
        EntryPoint("mine", "package_of_mine", tasks.GROUP),
        EntryPoint("lost", "no_such_module", tasks.GROUP),
        EntryPoint("odd", "json:dumps", tasks.GROUP),
    ])  # fmt: skip
    assert str(tasks.origin("mine")).startswith("package_of_mine.py@")
    assert len(load(tasks.get("mine"), DataSource.parse()).train) == 40
    assert "ModuleNotFoundError" in tasks.BROKEN["lost"] and "is not a Task" in tasks.BROKEN["odd"]
    with pytest.raises(BenchError, match="cannot be loaded") as error:
        tasks.get("lost")
    assert error.value.code == MISSING

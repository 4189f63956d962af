"""GLUE submissions: the leaderboard's files, from test splits as the Hub, jsonl and GLUE's own tsv have them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_bench import tasks
from lora_bench.data import DataSource
from lora_bench.errors import BenchError
from lora_bench.export import glue, unlabelled
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records
from lora_bench.tasks import TASKS
from lora_bench.tasks.glue import DIAGNOSTIC
from lora_bench.testing import TinyBench
from tests import cli_kit

NAMES = ("rte", "stsb", "mnli", "wnli")
OFFICIAL = {  # rows, by the lines of a published submission
    "AX": 1104, "CoLA": 1063, "MNLI-m": 9796, "MNLI-mm": 9847, "MRPC": 1725, "QNLI": 5463, "QQP": 390965, "RTE": 3000,
    "SST-2": 1821, "STS-B": 1379, "WNLI": 146,
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> TinyBench:
    """One cell of four tasks; the test splits are the validation splits, shuffled and without labels."""
    root = tmp_path_factory.mktemp("glue")
    made = TinyBench.create(root, *NAMES)
    made.run([{"method": "lora", "rank": 4, "task": list(NAMES)}], precision="float32", lr=1e-2, epochs=20)
    for name in NAMES:
        for submission, split in zip(tasks.get(name).submissions, tasks.get(name).eval_splits, strict=True):
            lines = (root / "rows" / name / f"{split}.jsonl").read_text().splitlines()
            hide(lines, root / "rows" / name / f"{submission.split}.jsonl")
    return made


def hide(lines: list[str], path: Path) -> None:
    """Rows in another order, with the Hub's `idx` and hidden label."""
    rows = [json.loads(line) | {"label": -1, "idx": number} for number, line in enumerate(lines)]
    order = np.random.default_rng(0).permutation(len(rows))
    path.write_text("".join(json.dumps(rows[place]) + "\n" for place in order))


def record_of(bench: TinyBench, task: str) -> Record:
    """The cell of a task."""
    return next(record for record in read_records(bench.results).records if record.cell.task == task)


def export(bench: TinyBench, out: Path, names: tuple[str, ...], *words: str) -> tuple[int, str]:
    """`lora-bench export --to glue` for the cells of these tasks."""
    ids = [record_of(bench, name).id for name in names]
    return cli_kit.export(bench, out, *ids, "--to", "glue", *words)


def answers(archive: Path) -> dict[str, list[str]]:
    """The second column of every file of a zip."""
    with zipfile.ZipFile(archive) as file:
        texts = {name: file.read(name).decode() for name in file.namelist()}
    for text in texts.values():
        header, *lines = text.splitlines()
        assert header == "index\tprediction"
        assert [line.split("\t")[0] for line in lines] == [str(number) for number in range(len(lines))]
        assert text.endswith("\n")
    return {name: [line.split("\t")[1] for line in text.splitlines()[1:]] for name, text in texts.items()}


@pytest.fixture(scope="module")
def submitted(bench: TinyBench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All four tasks in one zip, and what the command said."""
    out = tmp_path_factory.mktemp("out") / "glue"
    code, said = export(bench, out, NAMES, "--data-dir", str(bench.rows))
    assert code == 0, said
    return out, said


def test_predictions_are_those_of_the_record(bench: TinyBench, submitted: tuple[Path, str]) -> None:
    """The test rows are the validation rows, whose predictions the record holds."""
    found = answers(submitted[0] / "submission.zip")
    rte, wnli, stsb, mnli = (list(record_of(bench, name).predictions) for name in ("rte", "wnli", "stsb", "mnli"))
    assert found["RTE.tsv"] == [("entailment", "not_entailment")[int(value)] for value in rte]
    assert found["WNLI.tsv"] == [str(int(value)) for value in wnli]
    named = [("entailment", "neutral", "contradiction")[int(value)] for value in mnli]
    assert found["MNLI-m.tsv"] + found["MNLI-mm.tsv"] == named
    assert [float(text) for text in found["STS-B.tsv"]] == pytest.approx(np.clip(stsb, 0, 5).tolist(), abs=6e-4)
    assert len(set(rte)) > 1 or len(set(mnli)) > 1


def test_what_the_leaderboard_misses_is_said(submitted: tuple[Path, str]) -> None:
    out, said = submitted
    absent = re.search(r"missing: ([^.]*\.tsv.*)\.", said)
    assert absent is not None
    assert set(absent[1].split(", ")) == {f"{name}.tsv" for name in ("AX", "CoLA", "MRPC", "QNLI", "QQP", "SST-2")}
    assert "RTE.tsv: 24 rows, GLUE's test split has 3,000." in said
    card = (out / "README.md").read_text()
    assert "license: other" in card.split("---")[1]
    assert "AX.tsv" in card
    assert card.count("lora-bench run ") == len(NAMES)


def test_all_eleven_files_are_the_leaderboards() -> None:
    assert {name: submission.rows for name, (_, submission) in glue.ALL.items()} == {
        f"{name}.tsv": rows for name, rows in OFFICIAL.items()
    }
    files = {}
    for name, (task, submission) in glue.ALL.items():
        if task.name == "qqp":  # 390,965 rows take seconds
            continue
        numbers = range(submission.rows)
        values = np.arange(submission.rows) % task.num_outputs
        files[name] = glue.tsv(task, numbers, values.astype(float))
    assert glue.problems(files) == ["The leaderboard requires all files; missing: QQP.tsv."]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("RTE.tsv", "0\tentailment\n", "first line"),
        ("RTE.tsv", "index\tprediction\n0\t1\n", "not of the task"),
        ("CoLA.tsv", "index\tprediction\n0\tacceptable\n", "not of the task"),
        ("STS-B.tsv", "index\tprediction\n0\t5.2\n", "not of the task"),
        ("STS-B.tsv", "index\tprediction\n0\tnan\n", "not of the task"),
        ("WNLI.tsv", "index\tprediction\n1\t0\n", "index is not"),
        ("WNLI.tsv", "index\tprediction\n0\t0\n", "1 rows"),
        ("rte.tsv", "index\tprediction\n0\tentailment\n", "not a file of"),
    ],
)
def test_faults_are_found(name: str, text: str, fault: str) -> None:
    assert any(line.startswith(name) and fault in line for line in glue.problems({name: text}))


def test_scores_are_cut_to_the_scale() -> None:
    assert [glue.answer(TASKS["stsb"], value) for value in (-0.2, 2.34567, 5.4)] == ["0.000", "2.346", "5.000"]


def test_the_diagnostic_set_goes_with_mnli(bench: TinyBench, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    for split in ("test_matched", "test_mismatched"):
        (rows / "MNLI").mkdir(parents=True, exist_ok=True)
        write_tsv(
            rows / "MNLI" / f"{split}.tsv", ["index", "promptID", "sentence1", "sentence2"], [["0", "7", "w1 w2", "w3"]]
        )
    (rows / "diagnostic").mkdir()
    write_tsv(
        rows / "diagnostic/diagnostic.tsv", ["index", "sentence1", "sentence2"], [["0", 'w"1', "w2"], ["1", "w3", "w4"]]
    )
    code, said = export(bench, tmp_path / "out", ("mnli",), "--data-dir", str(rows))
    assert code == 0, said
    found = answers(tmp_path / "out/submission.zip")
    assert {name: len(lines) for name, lines in found.items()} == {"MNLI-m.tsv": 1, "MNLI-mm.tsv": 1, "AX.tsv": 2}


def write_tsv(path: Path, names: list[str], rows: list[list[str]]) -> None:
    """As GLUE writes them: nothing quoted."""
    path.write_text("".join("\t".join(line) + "\n" for line in [names, *rows]))


def test_formats_of_a_test_split(tmp_path: Path) -> None:
    """CoLA's test file has a header, unlike its others; parquet has the Hub's columns."""
    cola, mrpc = TASKS["cola"], TASKS["mrpc"]
    (tmp_path / "CoLA").mkdir()
    write_tsv(tmp_path / "CoLA/test.tsv", ["index", "sentence"], [["1", "b"], ["0", "a"]])
    rows, numbers = unlabelled.read(cola, cola.submissions[0], DataSource("folder", tmp_path), offline=True)
    assert (rows.texts, numbers) == ((["b", "a"],), [1, 0])
    (tmp_path / "mrpc").mkdir()
    table: dict[str, Any] = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [-1, -1], "idx": [0, 1]}
    pq.write_table(pa.table(table), tmp_path / "mrpc/test.parquet")
    rows, numbers = unlabelled.read(mrpc, mrpc.submissions[0], DataSource("folder", tmp_path), offline=True)
    assert (rows.texts, numbers) == ((["a", "b"], ["c", "d"]), [0, 1])


def odd_texts() -> list[str]:
    return ["a\u2028b", "c\u0085d", "e\x0bf\x1cg", 'h "i']


@pytest.mark.parametrize("form", ["jsonl", "parquet", "tsv"])
@pytest.mark.parametrize("kind", [int, float], ids=["0", "0.0"])
def test_a_test_split_reads_as_train_does(form: str, kind: type, tmp_path: Path) -> None:
    """Separators that only Python takes for line ends, blank last lines, numbers that went through a float."""
    (tmp_path / "sst2").mkdir()
    path, texts, numbers = tmp_path / f"sst2/test.{form}", odd_texts(), [kind(number) for number in (2, 0, 3, 1)]
    if form == "parquet":
        pq.write_table(pa.table({"sentence": texts, "idx": numbers, "label": [-1] * 4}), path)
    elif form == "jsonl":
        rows = [{"sentence": text, "idx": number} for text, number in zip(texts, numbers, strict=True)]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n \n")
    else:
        write_tsv(path, ["index", "sentence"], [list(map(str, row)) for row in zip(numbers, texts, strict=True)])
        path.write_text(path.read_text() + "\n\n")
    sst2 = TASKS["sst2"]
    rows_read, index = unlabelled.read(sst2, sst2.submissions[0], DataSource("folder", tmp_path), offline=True)
    assert (rows_read.texts, index) == ((texts,), [2, 0, 3, 1])
    assert [type(number) for number in index] == [int] * 4


def test_a_test_split_without_an_index_loses_no_blank_row(tmp_path: Path) -> None:
    """In a file of one column a blank line may be a text: all rows after it would be answered for the one before."""
    (tmp_path / "sst2").mkdir()
    path, sst2 = tmp_path / "sst2/test.tsv", TASKS["sst2"]
    source = DataSource("folder", tmp_path)
    path.write_text("sentence\na\nb\n\n")
    rows, index = unlabelled.read(sst2, sst2.submissions[0], source, offline=True)
    assert (rows.texts, index) == ((["a", "b"],), [0, 1])
    path.write_text("sentence\na\n\nb\n")
    with pytest.raises(BenchError, match="line 3: 0 fields, not 1"):
        unlabelled.read(sst2, sst2.submissions[0], source, offline=True)


def test_a_test_split_written_by_pandas_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    rows = pd.DataFrame({"index": range(4), "sentence": ["a", 'say "no"', "b", "c"]})
    rows.to_csv(tmp_path / "sst2/test.tsv", sep="\t", index=False)
    sst2 = TASKS["sst2"]
    with pytest.raises(BenchError, match="line 3: its fields are quoted"):
        unlabelled.read(sst2, sst2.submissions[0], DataSource("folder", tmp_path), offline=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"sentence": "a", "idx": 3}\n', "its index is not 0 to 0"),
        ('{"sentence": "a", "idx": 0}\n{"sentence": "b", "idx": 0}\n', "its index is not 0 to 1"),
        ('{"text": "a"}\n', "no column 'sentence'"),
        ('{"sentence": null}\n', "'sentence' is null"),
        ("[1]\n", "line 1: not a JSON object but list"),
        ('{"sentence": "a"', "line 1: not JSON"),
        ("", "no rows"),
        ('{"sentence": "a", "idx": 0.5}\n', "its index is not 0 to 0"),
        ('{"sentence": "a", "idx": null}\n', "its index is not 0 to 0"),
        ('{"sentence": "a", "idx": true}\n', "its index is not 0 to 0"),
    ],
)
def test_a_bad_test_split_is_reported(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2/test.jsonl").write_text(content)
    sst2 = TASKS["sst2"]
    with pytest.raises(BenchError, match=said) as error:
        unlabelled.read(sst2, sst2.submissions[0], DataSource("folder", tmp_path), offline=True)
    assert error.value.code == 3


def test_refusals(bench: TinyBench, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", str(bench.rows)
    code, said = export(bench, out, ("rte", "rte"), "--data-dir", rows)
    assert (code, "one id for each task" in said) == (2, True), said
    (tmp_path / "empty/rte").mkdir(parents=True)
    code, said = export(bench, out, ("rte",), "--data-dir", str(tmp_path / "empty"))
    assert (code, "split 'test'" in said) == (3, True), said
    assert not out.exists()
    assert DIAGNOSTIC.labels == TASKS["mnli"].labels

"""GLUE's tsv, which is never quoted, apart from files that others have written with quotes, or cut short."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from lora_bench.data import sources
from lora_bench.tasks import TASKS, Task, get
from tests.test_sources import HEADERS, NAMED, layout, refused

GLUE = os.environ.get("LORA_BENCH_GLUE")
SST2, QQP = get("sst2"), get("qqp")
QUOTING = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)


def frame(task: Task, texts: list[str]) -> pd.DataFrame:
    """Rows under GLUE's names, each text in all text columns."""
    count = max(task.num_outputs, 2)
    labels = [task.labels[row % count] if task.name in NAMED else row % count for row in range(len(texts))]
    filler = dict.fromkeys(layout(task).names or HEADERS[task.name].split("\t"), "x")
    return pd.DataFrame(filler | dict.fromkeys(layout(task).columns, texts) | {layout(task).label: labels})


def by_pandas(path: Path, rows: pd.DataFrame, task: Task, quoting: int = csv.QUOTE_MINIMAL) -> Path:
    rows.to_csv(path, sep="\t", index=False, header=not layout(task).names, quoting=quoting)  # type: ignore[call-overload]
    return path


@pytest.mark.parametrize("quoting", QUOTING)
@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.labels], ids=lambda task: task.name)
def test_texts_with_quotes_written_by_pandas_are_refused(task: Task, quoting: int, tmp_path: Path) -> None:
    """A fourth of the texts have quotes, which such a file doubles."""
    texts = [f'he said "no" {row}' if row % 4 == 0 else f"a film {row}" for row in range(96)]
    path = by_pandas(tmp_path / "train.tsv", frame(task, texts), task, quoting)
    error = refused(lambda: sources.read(path, task), "train.tsv", "quoted")
    assert "QUOTE_NONE" in error.hint


@pytest.mark.parametrize("mark", ["\n", "\r", "\r\n", "\t", "\n\n"])
@pytest.mark.parametrize("task", [SST2, QQP, get("mrpc"), get("rte")], ids=lambda task: task.name)
def test_line_breaks_and_tabs_written_by_pandas_are_refused(task: Task, mark: str, tmp_path: Path) -> None:
    """A third of the rows would be lost, or have their fields moved."""
    texts = [f"why is {mark} that {row}" if row % 3 == 0 else f"a film {row}" for row in range(96)]
    path = by_pandas(tmp_path / "train.tsv", frame(task, texts), task)
    # Whether a lone carriage return is quoted depends on the version of pandas.
    cause = "quoted" if b'"' in path.read_bytes() else "download"
    refused(lambda: sources.read(path, task), "train.tsv, line", "field", "rows", cause)


@pytest.mark.parametrize("task", [SST2, QQP, get("rte")], ids=lambda task: task.name)
def test_rows_cut_short_are_refused_and_counted(task: Task, tmp_path: Path) -> None:
    path = by_pandas(tmp_path / "train.tsv", frame(task, [f"a film {row}" for row in range(96)]), task)
    header, *lines = path.read_text().splitlines()
    cut = [line.rpartition("\t")[0] if row % 2 else line for row, line in enumerate(lines)]
    path.write_text("\n".join([header, *cut]) + "\n")
    count = len(header.split("\t"))
    words = (f"line 3: {count - 1} field", f"not {count}", "48 of 96 rows", "download the file again")
    refused(lambda: sources.read(path, task), *words)


@pytest.mark.parametrize("text", ["why is\nthat", 'why\n"so"'])
def test_one_line_break_in_a_quoted_qqp_is_named_as_the_cause(text: str, tmp_path: Path) -> None:
    """With the Hub's columns the rest of the row is long enough to be taken for one, and its number for the label."""
    texts = [f"a film {row}" for row in range(96)]
    columns = {"question1": texts, "question2": texts, "label": [row % 2 for row in range(96)], "idx": range(96)}
    rows = pd.DataFrame(columns)
    rows.loc[7, "question2"] = text
    path = by_pandas(tmp_path / "train.tsv", rows, QQP)
    words = ("label '7' is not one of", "line 9 opens a quote", "line breaks", "QUOTE_NONE")
    refused(lambda: sources.read(path, QQP), "train.tsv, line 10", *words)


def test_a_field_too_many_is_refused(tmp_path: Path) -> None:
    """A tab within a text moves what follows; here the label comes first and would hide it."""
    path = tmp_path / "train.tsv"
    path.write_text(HEADERS["mrpc"] + "\n1\t2\t3\ta\tb\n0\t4\t5\tc\td\te\n")
    refused(lambda: sources.read(path, get("mrpc")), "line 3: 6 fields, not 5")
    path.write_text(HEADERS["mrpc"] + "\n1\t2\t3\ta\tb\n0\t4\t5\tc\td\t\n")
    assert sources.read(path, get("mrpc")).texts == (["a", "c"], ["b", "d"])


def test_quotes_that_nobody_doubled_are_texts(tmp_path: Path) -> None:
    texts = ['"', '"lone', 'lone"', '"whole"', 'in "the" middle', '""', '"a" and "b"', '""double"']
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    assert sources.read(path, SST2).texts == (texts,)


@pytest.mark.parametrize(("every", "comma"), [(4, True), (32, True), (2, False), (10, False), (1, False)])
@pytest.mark.parametrize("task", [SST2, QQP, get("mrpc"), get("rte")], ids=lambda task: task.name)
def test_texts_wrapped_by_a_spreadsheet_are_refused(task: Task, every: int, comma: bool, tmp_path: Path) -> None:
    """Excel wraps the texts with a comma, other programs some that need it not; no quote is doubled."""
    plain = [f"a film{',' * (comma and row % every == 0)} it is {row}" for row in range(96)]
    texts = [f'"{text}"' if row % every == 0 else text for row, text in enumerate(plain)]
    path = by_pandas(tmp_path / "train.tsv", frame(task, [f"@{row}@" for row in range(96)]), task)
    path.write_text(re.sub("@([0-9]+)@", lambda found: texts[int(found[1])], path.read_text()))
    count = len(task.columns) * -(-96 // every)
    cause = f"{count} of {len(task.columns) * 96} texts " + ("that have a comma" if comma else "from end to end")
    error = refused(lambda: sources.read(path, task), "train.tsv, line 2", "quoted", cause)
    assert "QUOTE_NONE" in error.hint


def test_a_few_wrapped_texts_among_others_are_texts(tmp_path: Path) -> None:
    """As MRPC and STS-B have them: some with a comma, some without, and more quotes elsewhere."""
    for quoted in (['"so, he said"', '"so it is"', '"and, well"'], ['"a, b"'] * 2, ['"whole"'] * 9 + ['"so," he'] * 9):
        texts = [*quoted, *(f"a film {row}" for row in range(60))]
        path = tmp_path / "train.tsv"
        path.write_text("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
        assert sources.read(path, SST2).texts == (texts,)


def test_glues_own_qqp_keeps_the_quotes_that_it_has(tmp_path: Path) -> None:
    """GLUE cut it, line by line, from a quoted file: as many rows as the official split has, and a few broken ones."""
    texts = [f'"why ""{row}""?"' if row % 100 == 0 else f"why {row}?" for row in range(QQP.eval_rows or 0)]
    lines = [f"{row}\t1\t2\t{text}\tb\t{row % 2}" for row, text in enumerate(texts)]
    broken = ['7\t1\t2\t"why', 'not?"\tb\t1'] * 12
    path = tmp_path / "dev.tsv"
    path.write_text("\n".join([HEADERS["qqp"], *lines, *broken]) + "\n")
    rows = sources.read(path, QQP)
    assert rows.texts[0] == texts
    assert "24 of 40,454 rows" in rows.notes[0]


@pytest.mark.skipif(not GLUE, reason="LORA_BENCH_GLUE names no folder with the real GLUE")
@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "qnli", "rte", "wnli", "stsb"])
def test_real_rows_as_glue_writes_them_read_as_the_parquet(name: str, tmp_path: Path) -> None:
    """And the same rows written by pandas, which quotes, are refused wherever a text has a quote."""
    task = get(name)
    folder = Path(str(GLUE)) / name
    for file in sorted(folder.glob("*.parquet")):
        table = pq.read_table(file).to_pydict()
        wanted = sources.read(file, task)
        filler = dict.fromkeys(layout(task).names or HEADERS[name].split("\t"), ["x"] * len(wanted))
        texts = {glue: table[hub] for glue, hub in zip(layout(task).columns, task.columns, strict=True)}
        labels = [task.labels[label] for label in table["label"]] if name in NAMED else table["label"]
        columns = filler | texts | {layout(task).label: labels}
        lines = [] if layout(task).names else ["\t".join(columns)]
        lines += ["\t".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        path = tmp_path / "train.tsv"
        path.write_text("\n".join(lines) + "\n", newline="")
        rows = sources.read(path, task)
        assert rows.texts == wanted.texts and rows.labels.tolist() == wanted.labels.tolist() and not rows.notes
        if any('"' in text for column in wanted.texts for text in column):
            by_pandas(path, pd.DataFrame(columns), task)
            refused(lambda: sources.read(path, task), "quoted")  # noqa: B023

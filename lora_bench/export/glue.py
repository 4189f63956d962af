"""Predictions of GLUE's test splits in the leaderboard's format: a zip of tsv files with official names.

RTE, QNLI, MNLI and its diagnostic set AX take label names as answers, STS-B a number from 0 to 5, the others 0 or 1.
The leaderboard requires all eleven files; `problems` lists what is wrong with a submission.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_bench.data import DataSource
from lora_bench.data.tokens import tokenize
from lora_bench.engine.evaluation import Split
from lora_bench.engine.trainer import Trainer
from lora_bench.errors import USAGE, BenchError
from lora_bench.export import card, unlabelled
from lora_bench.export.trained import Trained
from lora_bench.export.writing import complete_folder
from lora_bench.run.inputs import check_fits
from lora_bench.tasks import TASKS
from lora_bench.tasks.glue import DIAGNOSTIC, RECORDS
from lora_bench.tasks.task import Submission, Task

HEADER = "index\tprediction"
ZIP = "submission.zip"
ALL: Mapping[str, tuple[Task, Submission]] = {
    f"{test.file}.tsv": (task, test) for task in (*RECORDS, DIAGNOSTIC) for test in task.submissions
}
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in the zip, so that the same predictions give the same bytes


def write(cells: Iterable[Callable[[], Trained]], out: Path, source: Callable[[Trained], DataSource]) -> list[str]:
    """Predict the test splits of the cells' tasks and write the submission.

    Args:
        cells: Functions that load the cells, one for each task. They are called one after another, so that one encoder
            is in memory at a time.
        out: The new folder.
        source: Returns the source of a cell's test split.

    Returns:
        Lines about what was written and what the submission lacks.

    Raises:
        BenchError: Exit code 2 for two cells of one task, or one that is not GLUE's; 3 if a test split cannot be read.
    """
    files: dict[str, str] = {}
    sections: list[str] = []
    for load in cells:
        trained = load()
        if not trained.task.submissions:
            hint = f"--to glue takes cells of GLUE's tasks: {', '.join(task.name for task in RECORDS)}."
            raise BenchError(f"'{trained.task.name}' is not a task of GLUE's leaderboard.", hint, USAGE)
        predicted = predictions(trained, source(trained))
        if predicted.keys() & files.keys():
            hint = "Give one id for each task."
            raise BenchError(f"Two of the cells are of the task {trained.task.title}.", hint, USAGE)
        files |= predicted
        sections.append(card.submission_section(trained, ", ".join(predicted)))
    with complete_folder(out) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / ZIP).write_bytes(zipped(files))
        (folder / "README.md").write_text(card.submission_card(sections, problems(files)), encoding="utf-8")
    return [f"{ZIP} with {', '.join(files)}", *problems(files)]


def predictions(trained: Trained, source: DataSource) -> dict[str, str]:
    """Return the files of a cell's task by name; for MNLI also the diagnostic set, where the source has it."""
    files = {f"{test.file}.tsv": _predict(trained, trained.task, test, source) for test in trained.task.submissions}
    if trained.task == TASKS["mnli"]:
        (test,) = DIAGNOSTIC.submissions
        try:
            files[f"{test.file}.tsv"] = _predict(trained, DIAGNOSTIC, test, source)
        except BenchError:
            if source.root is not None and _has_diagnostic(source.root, test):
                raise
    return files


def _has_diagnostic(root: Path, test: Submission) -> bool:
    try:
        return all(path.is_file() for path in unlabelled.find(root, DIAGNOSTIC, test))
    except BenchError:
        return False


def _predict(trained: Trained, task: Task, test: Submission, source: DataSource) -> str:
    rows, numbers = unlabelled.read(task, test, source, trained.offline)
    tokenizer = trained.tokenizer()
    tokens = tokenize(rows, tokenizer, trained.cell.max_length)
    check_fits(tokens, trained.pack.backbone)
    table = trained.pack.backbone.table(tokens)
    with trained.pack:
        (values,) = Trainer(trained.pack, trained.task, table, Split(table)).predict(table)
    if not np.isfinite(values).all():
        raise BenchError(
            f"{trained.record.id} gives outputs that are not finite numbers.", "Choose a cell that is done.", USAGE
        )
    return tsv(task, numbers, values)


def tsv(task: Task, numbers: Sequence[int], values: NDArray[np.float64]) -> str:
    """Return a file's text.

    Args:
        task: The task.
        numbers: The leaderboard's number of each row, `[N]`; the lines are sorted by it.
        values: Class numbers or scores, `[N]`.
    """
    lines = [f"{numbers[row]}\t{answer(task, float(values[row]))}" for row in np.argsort(np.asarray(numbers))]
    return "\n".join([HEADER, *lines]) + "\n"


def answer(task: Task, value: float) -> str:
    """Return a prediction in the leaderboard's form."""
    if task.is_regression:
        lowest, highest = task.bounds
        return f"{min(max(value, lowest), highest):.3f}"
    return task.labels[int(value)] if task.submits_names else str(int(value))


def zipped(files: Mapping[str, str]) -> bytes:
    """Return a zip with the files at its top level."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _DATE), text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def problems(files: Mapping[str, str]) -> list[str]:
    """Return what the leaderboard would not accept: missing files, wrong numbers of rows, invalid answers."""
    absent = [name for name in ALL if name not in files]
    missing = [f"The leaderboard requires all files; missing: {', '.join(absent)}."] if absent else []
    return missing + list(chain.from_iterable(_file_problems(name, text) for name, text in files.items()))


def _file_problems(name: str, text: str) -> list[str]:
    if name not in ALL:
        return [f"{name}: not a file of the leaderboard."]
    task, test = ALL[name]
    header, *lines = text.splitlines()
    fields = [line.split("\t") for line in lines]
    faults = [] if header == HEADER else [f"{name}: its first line is not '{HEADER}'."]
    if len(lines) != test.rows:
        faults.append(f"{name}: {len(lines):,} rows, GLUE's test split has {test.rows:,}.")
    if [field[0] for field in fields] != [str(number) for number in range(len(lines))]:
        faults.append(f"{name}: the index is not 0, 1, 2 and so on.")
    answers = {field[-1] for field in fields}
    if {len(field) for field in fields} - {2} or not all(_is_answer(task, text) for text in answers):
        faults.append(f"{name}: an answer is not of the task.")
    return faults


def _is_answer(task: Task, text: str) -> bool:
    if not task.is_regression:
        return text in (task.labels if task.submits_names else map(str, range(len(task.labels))))
    lowest, highest = task.bounds
    try:
        return lowest <= float(text) <= highest
    except ValueError:
        return False

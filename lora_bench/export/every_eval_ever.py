"""Records as JSON of Every Eval Ever, a common format of evaluation results (https://evalevalai.com).

A file is a cell: `data/lora-bench/<developer>/<model>/<uuid>.json`, the layout of its datastore. Its scores are those
of the epoch that the cell's protocol selects. What a record does not know is left out, or called unknown where the
format asks for it: the organization that provides the data, and whether the weights are public.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lora_bench.errors import NOTHING, BenchError
from lora_bench.export.writing import complete_folder
from lora_bench.records.schema import Epoch, Record
from lora_bench.tasks import TASKS
from lora_bench.text import clean, counted

SCHEMA = "0.3.0"  # the version of the format
COLLECTION = "lora-bench"
LONGEST_NAME = 100  # bytes of a model or a method: both are in the name of a folder, which has 255 at most
# The range of each metric, and whether a lower value is better. Others, of users' tasks, have no known range.
_BOUNDED = {
    **dict.fromkeys(("accuracy", "f1", "macro_f1"), (0.0, 1.0, False)),
    **dict.fromkeys(("matthews", "pearson", "spearman"), (-1.0, 1.0, False)),
    "nll": (0.0, "Infinity", True),
    "ece": (0.0, 1.0, True),
    "brier": (0.0, 2.0, True),
}


def write(records: Sequence[Record], out: Path, now: int) -> str:
    """Write the records that have a score to a new folder; return a line about what was written.

    Args:
        records: The records.
        out: The folder.
        now: The time, in seconds since 1970; the format asks when its files were made.

    Raises:
        BenchError: Exit code 4 if no record has a score, 2 if `out` is not a new folder.
    """
    scored = [record for record in records if _selected(record) is not None]
    if not scored:
        raise BenchError("None of these cells has a score.", "Give cells that are `done`.", NOTHING)
    with complete_folder(out) as folder:
        for record in scored:
            path = folder / path_of(record)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(evaluation(record, now), indent=2, ensure_ascii=False, allow_nan=False)
            path.write_text(f"{content}\n", encoding="utf-8")
    left_out = f"; {len(records) - len(scored)} without a score are left out" if len(scored) < len(records) else ""
    return f"{counted(len(scored), 'evaluation')} as Every Eval Ever {SCHEMA}{left_out}"


def path_of(record: Record) -> Path:
    """Return the file of a record within the folder; the same record has the same one."""
    developer, model = _model_id(record).split("/")
    name = uuid.UUID(bytes=hashlib.sha256(record.id.encode()).digest()[:16], version=4)
    return Path("data", COLLECTION, developer, model, f"{name}.json")


def evaluation(record: Record, now: int) -> dict[str, object]:
    """Return a record that has a score in the form of the format's schema.

    Args:
        record: The record.
        now: The time, in seconds since 1970.
    """
    environment = record.environment
    versions = {name: value for name, value in environment.items() if name != "lora_bench"}
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"{COLLECTION}/{_model_id(record)}/{now}",
        "retrieved_timestamp": str(now),
        "source_metadata": {
            "source_name": f"lora-bench record {record.id}",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "first_party",
        },
        "eval_library": {
            "name": "lora-bench",
            "version": environment.get("lora_bench", "unknown"),
            "additional_details": _texts(versions),
        },
        "model_info": _model(record),
        "evaluation_results": list(_results(record)),
    }


def _selected(record: Record) -> Epoch | None:
    """Return the epoch whose metrics are the cell's result; None if it has none."""
    if record.status != "done" or record.score is None:
        return None
    return record.selected_epoch


def _base(record: Record) -> str:
    """Return the base model's name without its owner, for a file name."""
    name = record.cell.model.partition("@")[0].rpartition("/")[2]
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".") or "model"


def _model_id(record: Record) -> str:
    """Name the trained model: not as its base, whose score this is not."""
    names = (name.encode()[:LONGEST_NAME].decode(errors="ignore") for name in (_base(record), record.cell.method))
    return f"lora-bench/{'-'.join(names)}-{record.id}"


def _model(record: Record) -> dict[str, object]:
    cell = record.cell
    sizes = "".join(f" {name}={getattr(cell, name)}" for name in ("rank", "a", "b") if getattr(cell, name) is not None)
    settings = cell.model_dump(exclude_none=True, exclude={"model", "data", "task"})
    counts = {} if record.counts is None else record.counts.model_dump(exclude_none=True)
    return {
        "name": clean(f"{cell.method}{sizes} on {cell.model.partition('@')[0]}, seed {cell.seed}"),
        "id": _model_id(record),
        "developer": "unknown",
        "inference_engine": {"name": "lora-bench", "version": record.environment.get("lora_bench", "unknown")},
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": "unknown",
            "base_model": clean(cell.model),
            **_texts(settings),
            **_texts(counts),
        },
    }


def _results(record: Record) -> Iterable[dict[str, object]]:
    """Yield a result for each metric of the selected epoch, the main one first."""
    epoch = _selected(record)
    assert epoch is not None
    metrics = {**epoch.metrics, **(epoch.calibration or {})}
    for name in sorted(metrics, key=lambda name: name != record.metric):
        value = metrics[name]
        if value is not None:
            yield {
                "evaluation_result_id": f"{record.id}/{name}",
                "evaluation_name": f"{_title(record)}: {name}",
                "source_data": _source(record),
                "metric_config": _metric(name, record),
                "score_details": {"score": value, "details": {"epoch": str(epoch.epoch)}},
            }


def _title(record: Record) -> str:
    task = TASKS.get(record.cell.task)
    return clean(task.title if task is not None and record.cell.task_origin is None else record.cell.task)


def _metric(name: str, record: Record) -> dict[str, object]:
    """Describe a metric; one of an evaluation split, `accuracy_matched`, is of the kind of its first word."""
    kind = name if name in _BOUNDED else name.partition("_")[0]
    config: dict[str, object] = {
        "metric_id": name,
        "metric_name": name,
        "metric_kind": kind,
        "lower_is_better": False,
        "additional_details": {
            "main_metric": str(name == record.metric),
            "split": clean(record.protocol.split),
            "epoch_chosen_by": record.cell.select,
        },
    }
    if kind in _BOUNDED:
        low, high, lower = _BOUNDED[kind]
        config |= {"score_type": "continuous", "min_score": low, "max_score": high, "lower_is_better": lower}
    return config


def _source(record: Record) -> dict[str, object]:
    """Describe the data: a dataset of the Hub by its name and revision, others by a hash of their content."""
    name, at, revision = record.cell.data.partition("@")
    details = {"task": record.cell.task, "data": record.cell.data, "split": record.protocol.split}
    if record.data is not None:
        details |= {"train_rows": str(record.data.train_rows), "fingerprint": record.data.fingerprint}
    if not at:
        rows = {} if record.data is None else {"eval_rows": str(record.data.eval_rows)}
        return {
            "dataset_name": _title(record),
            "source_type": "other",
            "additional_details": _texts({**details, **rows}),
        }
    number = {} if record.data is None else {"samples_number": record.data.eval_rows}
    return {
        "dataset_name": _title(record),
        "source_type": "hf_dataset",
        "hf_repo": name,
        "hf_split": "val" if record.protocol.split.startswith("validation") else clean(record.protocol.split),
        **number,
        "additional_details": _texts({**details, "revision": revision}),
    }


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as text, the only kind that the format takes here."""
    return {name: clean(str(value)) for name, value in values.items()}

"""Records as JSON of Every Eval Ever: valid by its own schema, and with the numbers of the record."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lora_bench.errors import DONE, NOTHING, USAGE
from lora_bench.export.every_eval_ever import evaluation, path_of, write
from lora_bench.records.schema import Record, SearchInfo
from lora_bench.records.store import write_record
from lora_bench.tasks import TASKS
from lora_bench.testing import make_cell, make_epochs, make_record
from tests.cli_kit import invoke

EXPORT = ("export", "--to", "eee")

NOW = 1_800_000_000


@pytest.fixture(scope="module")
def schema() -> Any:
    """The schema of the package that `make` installs for it; it is not imported, since it needs a newer Python."""
    try:
        files = importlib.metadata.files("every-eval-ever") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("every-eval-ever, which has the schema, is not installed: `make` does it")
    (path,) = (file for file in files if file.name == "eval.schema.json")
    return json.loads(Path(str(path.locate())).read_text(encoding="utf-8"))


def record_of(task: str, data: str = "glue", **fields: Any) -> Record:
    metrics = {name: 0.1 + 0.1 * number for number, name in enumerate(TASKS[task].metric_names)}
    calibration = {"nll": 0.7, "ece": 0.05, "brier": 0.4}
    (epoch,) = make_epochs(0.5)
    epoch = epoch.model_copy(update={"metrics": metrics, "calibration": calibration})
    cell = make_cell(task=task, data=data, **fields)
    return make_record(metrics[TASKS[task].main_metric], cell=cell, epochs=[epoch], metric=TASKS[task].main_metric)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("data", ["nyu-mll/glue@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", "files:0123456789ab"])
def test_every_task_is_valid(task: str, data: str, schema: Any) -> None:
    content = evaluation(record_of(task, data), NOW)
    jsonschema.Draft7Validator(schema).validate(content)
    assert content["schema_version"] == schema["version"]


@pytest.mark.parametrize("name", ["m" * 280, "模" * 280, "../..", "a b\u202e|<script>"])
def test_any_models_name_gives_a_file(name: str, tmp_path: Path, schema: Any) -> None:
    record = record_of("sst2", model=name)
    write([record], tmp_path / "out", NOW)
    (path,) = (tmp_path / "out").rglob("*.json")
    assert path == tmp_path / "out" / path_of(record) and path.is_relative_to(tmp_path / "out" / "data")
    jsonschema.Draft7Validator(schema).validate(json.loads(path.read_text(encoding="utf-8")))


def test_numbers_and_settings_are_those_of_the_record(schema: Any) -> None:
    record = record_of("stsb", "nyu-mll/glue@abc", method="mini", rank=4, a=8, b=8, seed=3)
    content: Any = evaluation(record, NOW)
    results = {result["metric_config"]["metric_id"]: result for result in content["evaluation_results"]}
    assert next(iter(results)) == record.metric == "pearson"
    scores = {name: result["score_details"]["score"] for name, result in results.items()}
    assert scores == {**record.epochs[0].metrics, **(record.epochs[0].calibration or {})}
    assert [results[name]["metric_config"]["lower_is_better"] for name in ("pearson", "nll")] == [False, True]
    assert results["spearman"]["metric_config"]["min_score"] == -1
    source = results["pearson"]["source_data"]
    assert (source["hf_repo"], source["hf_split"]) == ("nyu-mll/glue", "val")
    details = content["model_info"]["additional_details"]
    assert {"method": "mini", "rank": "4", "a": "8", "seed": "3"}.items() <= details.items()
    assert record.id in content["model_info"]["id"] and content["retrieved_timestamp"] == str(NOW)


def test_text_from_outside_harms_neither_names_nor_json(schema: Any) -> None:
    record = record_of("sst2", "files:x", model="../../evil model\x1b[31m@0123", method="lora", rank=2)
    jsonschema.Draft7Validator(schema).validate(evaluation(record, NOW))
    path = path_of(record)
    assert ".." not in path.parts and path.parts[:3] == ("data", "lora-bench", "lora-bench")
    assert path == path_of(record) != path_of(record_of("sst2", "files:x"))


def test_a_folder_or_some_cells(tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = [record_of("sst2", seed=seed) for seed in range(3)]
    failed = make_record(None, cell=make_cell(seed=9), status="failed")
    trial = record_of("sst2", seed=100).model_copy(update={"search": SearchInfo(role="trial")})
    for record in (*done, failed, trial):
        write_record(results, record)
    code, output = invoke(*EXPORT, "--results", results, "--out", tmp_path / "all")
    assert code == DONE and "3 evaluations as Every Eval Ever 0.3.0; 1 without a score are left out" in output
    files = {path.relative_to(tmp_path / "all") for path in (tmp_path / "all").rglob("*.json")}
    assert files == {path_of(record) for record in done}
    code, output = invoke(*EXPORT, done[0].id, "--results", results, "--out", tmp_path / "one")
    assert code == DONE and len(list((tmp_path / "one").rglob("*.json"))) == 1, output
    code, output = invoke(*EXPORT, failed.id, "--results", results, "--out", tmp_path / "none")
    assert code == NOTHING and "None of these cells has a score" in output and not (tmp_path / "none").exists()
    code, output = invoke(*EXPORT, "--results", results, "--out", tmp_path / "all")
    assert code == USAGE and "exists and is not an empty folder" in output
    code, output = invoke("export", "--to", "peft", "--out", tmp_path / "x")
    assert code == USAGE and "needs the id of a cell" in output

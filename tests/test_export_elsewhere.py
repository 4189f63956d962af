"""Exports where this package is not: the cards' snippets as they stand, second adapters, bases of any name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from lora_bench import tasks
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records
from lora_bench.testing import TinyBench, make_data, make_model
from tests import cli_kit

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
TASKS = ("rte", "stsb")
ANSWERS = """
import json, sys
import torch
rows = json.load(sys.stdin)
assert not any(module.startswith("lora_bench") for module in sys.modules)
found = []
with torch.no_grad():
    for texts in zip(*rows):
        inputs = tokenizer(*texts, truncation=True, max_length=16, return_tensors="pt")
        found.append(model(**inputs).logits[0].tolist())
print(json.dumps([found, model.config.id2label]))
"""
SECOND = """
import copy, json, sys, warnings
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification as Auto
warnings.simplefilter("ignore")
asked = json.load(sys.stdin)
ids = torch.tensor(asked["ids"])
base = Auto.from_pretrained(asked["base"], num_labels=2)

@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=ids).logits

def alone(folder):
    return PeftModel.from_pretrained(copy.deepcopy(base), folder)

first, second = asked["folders"]
wanted = [logits(alone(folder)) for folder in (first, second)]
model = alone(first)
model.load_adapter(second, adapter_name="other")
model.set_adapter("other")
found = {"other": float((logits(model) - wanted[1]).abs().max())}
model.set_adapter("default")
found["default"] = float((logits(model) - wanted[0]).abs().max())
found["apart"] = float((wanted[0] - wanted[1]).abs().max())
try:
    model.add_weighted_adapter(["default", "other"], [0.7, 0.3], "both", combination_type="cat")
    found["refused"] = None
except ValueError as error:
    found["refused"] = str(error)

def headless(folder):
    config = PeftConfig.from_pretrained(folder)
    config.modules_to_save = config.task_type = None
    return config

model = PeftModel.from_pretrained(copy.deepcopy(base), first, config=headless(first))
model.add_adapter("other", headless(second))
model.load_adapter(second, adapter_name="other")
model.add_weighted_adapter(["default", "other"], [0.7, 0.3], "both", combination_type="cat")
model.set_adapter("both")
merged = [dict(alone(folder).merge_and_unload().named_parameters()) for folder in (first, second)]
plain = copy.deepcopy(base)
with torch.no_grad():
    for name, value in plain.named_parameters():
        one, two = merged[0][name], merged[1][name]
        value.copy_(two if "classifier" in name else value + 0.7 * (one - value) + 0.3 * (two - value))
found["both"] = float((logits(model) - logits(plain)).abs().max())
print(json.dumps(found))
"""


def with_head(folder: Path, outputs: int = 3, dtype: str = "float32") -> Path:
    """The tiny encoder with a classification head of another task, as models on the Hub often are."""
    make_model(folder)
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=outputs, dtype=dtype)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models and data are."""
    place = tmp_path_factory.mktemp("elsewhere")
    make_data(place / "rows", *TASKS)
    return place


def trained(root: Path, model: Path) -> TinyBench:
    """Two cells of RTE and one of STS-B over a model, in a results folder of the model's name."""
    bench = TinyBench(model, root / "rows", root / f"results-{model.name}")
    blocks = [
        {"method": "mini", "rank": 4, "a": 8, "b": 6, "task": list(TASKS)},
        {"method": "lora", "rank": 3, "task": "rte"},
    ]
    bench.run(blocks, limit=32, precision="float32", lr=1e-2, epochs=20, select="last")
    return bench


@pytest.fixture(scope="module")
def headed(root: Path) -> TinyBench:
    """Over a model with a head of three classes."""
    return trained(root, with_head(root / "headed"))


@pytest.fixture(scope="module")
def sample(root: Path) -> TinyBench:
    """Over a folder named `sample` that is not the bundled encoder: without a head, in half precision."""
    make_model(root / "sample")
    hf.AutoModel.from_pretrained(root / "sample", dtype="float16").save_pretrained(root / "sample")
    return trained(root, root / "sample")


@pytest.fixture(scope="module")
def roberta(root: Path) -> TinyBench:
    """Over a folder named `roberta-base` that is not the Hub's model."""
    return trained(root, with_head(root / "roberta-base", outputs=1))


def record_of(bench: TinyBench, task: str, method: str = "mini") -> Record:
    """The cell of a task and method."""
    return next(r for r in read_records(bench.results).records if (r.cell.task, r.cell.method) == (task, method))


def export(bench: TinyBench, record: Record, form: str, out: Path) -> Path:
    """The cell exported to a new folder."""
    code, said = cli_kit.export(bench, out, record.id, "--to", form)
    assert code == 0, said
    return out


def snippet(folder: Path) -> str:
    """The one block of Python in a card."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(code)


def answers(
    code: str, texts: list[list[str]], place: Path, env: dict[str, str] = OFFLINE
) -> tuple[np.ndarray, Any, str]:
    """The snippet as it stands, then its model's logits of each row; the labels' names; what the snippet prints."""
    (place / "snippet.py").write_text(code + ANSWERS, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "snippet.py"], input=json.dumps(texts), capture_output=True, text=True, cwd=place, env=env
    )
    assert ran.returncode == 0, ran.stderr
    said, last = ran.stdout.strip().splitlines()
    logits, labels = json.loads(last)
    return np.array(logits), labels, said


def held(root: Path, task: str) -> list[list[str]]:
    """The texts that the records' predictions are of, a list a column."""
    lines = (root / "rows" / task / "validation.jsonl").read_text().splitlines()
    return [[json.loads(line)[column] for line in lines] for column in tasks.get(task).columns]


def assert_same_answers(logits: np.ndarray, labels: Any, said: str, record: Record) -> None:
    """The logits' answers are the record's predictions, and the labels have the task's names."""
    task = tasks.of(record.cell)
    if task.is_regression:
        np.testing.assert_allclose(logits[:, 0], record.predictions, atol=2e-5)
        float(said)
        return
    assert logits.argmax(-1).tolist() == list(record.predictions)
    assert len(set(record.predictions)) > 1
    assert labels == {str(number): name for number, name in enumerate(task.labels)}
    assert said in task.labels


@pytest.mark.parametrize(
    ("base", "task", "form"),
    [
        ("headed", "rte", "peft"), ("headed", "rte", "merged"), ("sample", "stsb", "peft"), ("sample", "rte", "peft"),
        ("roberta", "rte", "peft"), ("roberta", "stsb", "merged"),
    ],
)  # fmt: skip
def test_the_cards_snippet_gives_the_records_predictions(
    base: str, task: str, form: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bench: TinyBench = request.getfixturevalue(base)
    record = record_of(bench, task)
    folder = export(bench, record, form, tmp_path / "out")
    code = snippet(folder).replace("THIS_FOLDER", str(folder)).replace("BASE_MODEL", str(bench.model))
    assert_same_answers(*answers(code, held(root, task), tmp_path), record)


def test_a_model_of_the_hub_is_named_and_found(root: Path, tmp_path: Path) -> None:
    """Out of a cache that is laid out as the Hub's client does it: nothing in the snippet has to be filled in."""
    revision = "0" * 40
    cache = tmp_path / "home" / "hub" / "models--acme--tiny"
    shutil.copytree(with_head(tmp_path / "model"), cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    env = OFFLINE | {"HF_HOME": str(tmp_path / "home")}
    sizes = ["--epochs", "20", "--batch-size", "8", "--max-length", "16", "--rank", "3", "--set", "lr=0.02"]
    places = ["--results", str(tmp_path / "results"), "--offline", "--device", "cpu"]
    program = [sys.executable, "-m", "lora_bench"]
    run = [
        *program,
        "run",
        "--task",
        "rte",
        "--method",
        "lora",
        "--model",
        "acme/tiny",
        "--data-dir",
        str(root / "rows"),
        *sizes,
        *places,
    ]
    subprocess.run(run, check=True, capture_output=True, env=env)
    (record,) = read_records(tmp_path / "results").records
    folder = tmp_path / "out"
    subprocess.run(
        [*program, "export", record.id, "--to", "peft", "--out", str(folder), *places],
        check=True, capture_output=True, env=env,
    )  # fmt: skip
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "acme/tiny"
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "acme/tiny"
    code = snippet(folder).replace("THIS_FOLDER", str(folder))
    assert_same_answers(*answers(code, held(root, "rte"), tmp_path, env), record)
    (call,) = re.findall(r"`(AutoPeft\S+\(.*?\))`", card)
    auto = f"""from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer
model = {call}.eval()
tokenizer = AutoTokenizer.from_pretrained("acme/tiny")
print("loaded")
"""
    logits, _, _ = answers(auto.replace("THIS_FOLDER", str(folder)), held(root, "rte"), tmp_path, env)
    assert logits.argmax(-1).tolist() == list(record.predictions)


@pytest.mark.parametrize("base", ["headed", "sample", "roberta"])
def test_a_folder_is_never_named_as_a_model_of_the_hub(
    base: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bench: TinyBench = request.getfixturevalue(base)
    record = record_of(bench, "rte")
    folder = export(bench, record, "peft", tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == record.cell.model
    with pytest.raises(HFValidationError):
        validate_repo_id(config["base_model_name_or_path"])
    card = (folder / "README.md").read_text()
    assert "base_model" not in yaml.safe_load(card.split("---")[1])
    assert f"`{record.cell.model}`, a directory called `{bench.model.name}`" in card
    assert "--model MODEL_DIR" in card
    assert "cannot find the base model by itself" in card
    from peft import AutoPeftModelForSequenceClassification

    with pytest.raises(OSError, match=re.escape(record.cell.model)):  # it says which, and asks no network
        AutoPeftModelForSequenceClassification.from_pretrained(folder)


def test_a_folder_named_sample_is_asked_for(sample: TinyBench, tmp_path: Path) -> None:
    """It is not the bundled encoder, which needs no `--model`."""
    given = ("--out", tmp_path / "out", "--results", sample.results, "--offline", "--device", "cpu")
    code, said = cli_kit.invoke("export", record_of(sample, "rte").id, "--to", "peft", *given)
    assert (code, "--model DIR" in said) == (3, True), said


def test_the_bundled_encoder_is_said_to_be_it(root: Path, tmp_path: Path) -> None:
    bench = TinyBench(root / "none", root / "rows", root / "results-bundled")
    (record,) = bench.run([{"method": "lora", "rank": 2, "task": "rte"}], model="sample", epochs=1, precision="float32")
    given = ("--results", bench.results, "--device", "cpu", "--offline", "--out", tmp_path / "out")
    assert cli_kit.invoke("export", record.id, "--to", "peft", *given)[0] == 0
    card = (tmp_path / "out/README.md").read_text()
    assert f"`{record.cell.model}`, which comes with lora-bench" in card
    assert "lora-bench run --model sample" in card
    (show,) = re.findall(r"`python -c '(.*?)'`", card)
    shown = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True).stdout.strip()
    code = snippet(tmp_path / "out").replace("THIS_FOLDER", str(tmp_path / "out")).replace("BASE_MODEL", shown)
    same = answers(code, held(root, "rte"), tmp_path)
    assert same[0].argmax(-1).tolist() == list(record.predictions)


def test_two_adapters_over_one_base(headed: TinyBench, tmp_path: Path) -> None:
    """Of different methods and ranks: chosen one after the other, and combined as the card says."""
    records = [record_of(headed, "rte", method) for method in ("mini", "lora")]
    folders = [str(export(headed, record, "peft", tmp_path / record.cell.method)) for record in records]
    base = make_model(tmp_path / "base")  # the encoder alone: `headed` has the same
    asked = json.dumps({"folders": folders, "base": str(base), "ids": [[0, 5, 9, 11, 2], [0, 33, 40, 7, 2]]})
    ran = subprocess.run([sys.executable, "-c", SECOND], input=asked, capture_output=True, text=True, env=OFFLINE)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.strip().splitlines()[-1])
    assert found["apart"] > 1e-2
    assert max(found[name] for name in ("other", "default", "both")) < 1e-5
    card = (tmp_path / "mini/README.md").read_text()
    assert "modules_to_save" in found["refused"]
    assert "`model.add_weighted_adapter` is refused by peft" in card
    assert "`config.modules_to_save = config.task_type = None`" in card

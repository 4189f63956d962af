"""Cells of every model type with its own head, exported, and loaded in a fresh process without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from lora_bench import load_adapted_model
from lora_bench.errors import BenchError
from lora_bench.export import trained
from lora_bench.records.schema import Record
from lora_bench.testing import VALIDATION_ROWS, TinyBench, make_data, make_model
from tests import cli_kit

TYPES = (
    "roberta", "bert", "xlm-roberta", "camembert", "electra", "mpnet", "distilbert", "deberta", "deberta-v2", "albert",
    "megatron-bert",
)  # fmt: skip
FORMS = ("peft", "merged")
BLOCK = {"method": "lora", "rank": 4, "targets": "attention+dense"}
FRESH = """
import json, sys, warnings
import numpy as np, torch
from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer
from peft import PeftModel
warnings.simplefilter("ignore")
asked = json.load(sys.stdin)
logits = {}
for name, (form, base, folder) in asked["folders"].items():
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer(*asked["rows"], padding=True, truncation=True, max_length=16, return_tensors="pt")
    if form == "peft":
        model = PeftModel.from_pretrained(Auto.from_pretrained(base, num_labels=2), folder)
    else:
        model = Auto.from_pretrained(folder)
    with torch.no_grad():
        logits[name] = model.eval()(**inputs).logits.numpy()
        if form == "peft":
            logits[name + " merged"] = model.merge_and_unload().eval()(**inputs).logits.numpy()
assert not any(module.startswith("lora_bench") for module in sys.modules)
np.savez(asked["out"], **logits)
"""


def export(bench: TinyBench, record: Record, form: str, out: Path) -> tuple[int, str]:
    """`lora-bench export`; its exit code and what it says."""
    return cli_kit.export(bench, out, record.id, "--to", form)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentence pairs."""
    return make_data(tmp_path_factory.mktemp("rows") / "rows", "rte")


def bench_of(folder: Path, rows: Path, kind: str) -> TinyBench:
    """A tiny encoder of a type, its files with a pooler where the type has one."""
    return TinyBench(make_model(folder / kind, kind), rows, folder / f"results-{kind}")


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> dict[str, tuple[TinyBench, Record]]:
    """A cell of each type with the type's own head."""
    root = tmp_path_factory.mktemp("heads")
    benches = {kind: bench_of(root, rows, kind) for kind in TYPES}
    settings: dict[str, Any] = {"task": "rte", "head": "model", "precision": "float32", "lr": 1e-2, "epochs": 6}
    return {kind: (bench, bench.run([BLOCK], **settings)[0]) for kind, bench in benches.items()}


@pytest.fixture(scope="module")
def logits(
    benches: Mapping[str, tuple[TinyBench, Record]], tmp_path_factory: pytest.TempPathFactory, rows: Path
) -> dict[str, np.ndarray]:
    """The logits of a fresh process by `type form`, on the rows that the records' predictions are of."""
    root = tmp_path_factory.mktemp("out")
    folders: dict[str, tuple[str, str, str]] = {}
    for kind, (bench, record) in benches.items():
        for form in FORMS:
            name = f"{kind} {form}"
            code, said = export(bench, record, form, root / name)
            assert code == 0, said
            folders[name] = form, str(bench.model), str(root / name)
    lines = [json.loads(line) for line in (rows / "rte/validation.jsonl").read_text().splitlines()]
    texts = [[line[column] for line in lines] for column in ("sentence1", "sentence2")]
    asked = json.dumps({"folders": folders, "rows": texts, "out": str(root / "logits.npz")})
    ran = subprocess.run([sys.executable, "-c", FRESH], input=asked, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with np.load(root / "logits.npz") as file:
        return dict(file)


@pytest.mark.parametrize("kind", TYPES)
def test_a_fresh_process_answers_as_the_records_say(
    kind: str, benches: Mapping[str, tuple[TinyBench, Record]], logits: Mapping[str, np.ndarray]
) -> None:
    predictions = benches[kind][1].predictions
    assert len(predictions) == VALIDATION_ROWS
    assert len(set(predictions)) > 1
    for form in (*FORMS, "peft merged"):
        answers = logits[f"{kind} {form}"]
        assert answers.argmax(-1).tolist() == list(predictions)
        np.testing.assert_allclose(answers, logits[f"{kind} merged"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "saved", "adapted"),
    [
        ("bert", {"pooler", "classifier"}, 12),
        ("distilbert", {"pre_classifier", "classifier"}, 12),
        ("deberta", {"pooler", "classifier"}, 12),
        ("albert", {"pooler", "classifier"}, 6),  # its two layers share their weights, and so their adapters
        ("electra", {"classifier"}, 12),
    ],
)
def test_the_adapter_names_the_types_own_modules(
    kind: str,
    saved: set[str],
    adapted: int,
    benches: Mapping[str, tuple[TinyBench, Record]],
    tmp_path: Path,
) -> None:
    bench, record = benches[kind]
    assert export(bench, record, "peft", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert set(config["modules_to_save"]) == saved
    assert record.counts is not None
    assert kind == "deberta" or record.counts.modules == adapted


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_roberta_s_head_fits_where_the_types_own_computes_the_same(kind: str, tmp_path: Path, rows: Path) -> None:
    """Without dropout it is the pooler, tanh and the classifier."""
    bench = bench_of(tmp_path, rows, kind)
    (record,) = bench.run([BLOCK], task="rte", epochs=1)
    code, said = export(bench, record, "merged", tmp_path / "out")
    assert code == 0, said


@pytest.mark.parametrize("kind", ["electra", "distilbert", "deberta-v2"])
def test_roberta_s_head_is_refused_elsewhere(kind: str, tmp_path: Path, rows: Path) -> None:
    bench = bench_of(tmp_path, rows, kind)
    (record,) = bench.run([BLOCK], task="rte", epochs=1)
    for form in FORMS:
        code, said = export(bench, record, form, tmp_path / "out")
        assert code == 2
        assert f"'{kind}' has another head" in said
        assert "--set head=model" in said
        assert not (tmp_path / "out").exists()
    folder = bench.results / "adapters" / record.id
    classifier = AutoModelForSequenceClassification.from_pretrained(bench.model, num_labels=2)
    with pytest.raises(BenchError, match="another head"):
        load_adapted_model(classifier, folder)
    load_adapted_model(AutoModel.from_pretrained(bench.model), folder)  # the adapter alone


def test_a_config_that_gives_the_head_other_shapes(tmp_path: Path, rows: Path) -> None:
    """DeBERTa's may name a width of its pooler; transformers' own classifier does not run with it."""
    bench = TinyBench(make_model(tmp_path / "m", "deberta", pooler_hidden_size=16), rows, tmp_path / "results")
    (record,) = bench.run([BLOCK], task="rte", epochs=1, head="model")
    code, said = export(bench, record, "merged", tmp_path / "out")
    assert (code, "other shapes" in said) == (3, True), said


def test_a_type_without_a_known_head(tmp_path: Path, rows: Path) -> None:
    """It is neither exported nor trained with its own head, and the run says so before anything trains."""
    bench = bench_of(tmp_path, rows, "modernbert")
    (record,) = bench.run([{"method": "head"}], task="rte", epochs=1)
    code, said = export(bench, record, "merged", tmp_path / "out")
    assert (code, "another head" in said, "head=model" in said) == (2, True, False), said
    words = ("run", "--model", bench.model, "--data-dir", rows, "--task", "rte", "--method", "head")
    given = ("--set", "head=model", "--results", tmp_path / "new", "--device", "cpu", "--offline")
    code, said = cli_kit.invoke(*words, *given)
    assert code == 3, said
    assert "the classification head of 'modernbert' cannot be trained here" in said
    assert "Leave `head` unset" in said


@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert", "deberta"])
@torch.no_grad()
def test_the_python_api_loads_it(
    kind: str,
    benches: Mapping[str, tuple[TinyBench, Record]],
    tmp_path: Path,
) -> None:
    """Into transformers' classifier of the type, the pooler of BERT included; and saved again it is the same."""
    bench, record = benches[kind]
    folder = bench.results / "adapters" / record.id
    ids = torch.tensor([[0, 5, 9, 11, 2], [0, 33, 40, 7, 2]])
    cell = trained.load(record.id, bench.results, bench.model, offline=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(bench.model, num_labels=2)
    adapted = load_adapted_model(classifier.eval(), folder)
    adapted.save(tmp_path)
    again = load_adapted_model(
        AutoModelForSequenceClassification.from_pretrained(bench.model, num_labels=2).eval(), tmp_path
    )
    first = load_adapted_model(AutoModel.from_pretrained(bench.model).eval(), folder)(input_ids=ids).last_hidden_state
    heads = cell.pack.heads
    expected = heads.logits(heads.block.matrix, first[None, :, 0], None)[0]
    for model in (adapted, again):
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    trainable = {name for name, value in adapted.model.named_parameters() if value.requires_grad}
    assert trainable == set(heads.form.parameters(classifier.base_model_prefix).values())

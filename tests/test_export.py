"""Exported cells, loaded by peft and transformers in a process that has never heard of this package."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lora_bench import methods, tasks
from lora_bench.data.sources import Rows
from lora_bench.data.tokens import tokenize
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.errors import BenchError
from lora_bench.export import trained as trains
from lora_bench.records.schema import Record
from lora_bench.records.store import write_record
from lora_bench.testing import VALIDATION_ROWS, TinyBench, make_cell, make_data, make_model, make_record
from tests.cli_kit import export, invoke

SIZES = {"rank": 4, "a": 7, "b": 6, "alpha": 8.0, "targets": "attention+dense"}
PACKED = [name for name, recipe in methods.RECIPES.items() if not recipe.trains_backbone]
TEXTS = ["w1 w2 w3", "w40 w50 w3 w9 w9 w10 w11", "w7", "w20 w21 w22 w23 w24 w25"]
FRESH = """
import json, sys, warnings
import numpy as np, torch
from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer
warnings.simplefilter("ignore")
asked = json.load(sys.stdin)
found = {}
for name, (form, folder) in asked["folders"].items():
    base = asked["base"] if form == "peft" else folder
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer(asked["texts"], padding=True, return_tensors="pt")
    if form == "peft":
        from peft import PeftModel
        plain = Auto.from_pretrained(base, num_labels=asked["outputs"])
        model = PeftModel.from_pretrained(plain, folder).eval()
        found[name + " merged"] = None
    else:
        model = Auto.from_pretrained(folder).eval()
    with torch.no_grad():
        found[name] = model(**inputs).logits.numpy()
        if form == "merged":
            rows = tokenizer(asked["rows"], padding=True, truncation=True, max_length=16, return_tensors="pt")
            found[name + " predictions"] = model(**rows).logits.argmax(-1).numpy()
        if form == "peft":
            found[name + " merged"] = model.merge_and_unload().eval()(**inputs).logits.numpy()
assert not any(module.startswith("lora_bench") for module in sys.modules)
np.savez(asked["out"], **found)
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> TinyBench:
    """A trained cell of every method that packs, and two more seeds of LoRA."""
    root = tmp_path_factory.mktemp("export")
    made = TinyBench.create(root)
    cells = [make_cell(name, **SIZES) for name in PACKED]
    blocks = [
        {"method": cell.method, **{k: getattr(cell, k) for k in SIZES if k in methods.of(cell).parameters}}
        for cell in cells
    ]
    made.run(blocks, limit=32, precision="float32", lr=2e-2)
    made.run([block for block in blocks if block["method"] == "lora"], precision="float32", lr=2e-2, seed=[1, 2])
    return made


def record_of(bench: TinyBench, method: str) -> Record:
    """The cell of a method, seed 0."""
    from lora_bench.records.store import read_records

    return next(r for r in read_records(bench.results).records if r.cell.method == method and r.cell.seed == 0)


def our_logits(bench: TinyBench, record: Record) -> np.ndarray:
    """What the trained cell itself says of the texts, through windows."""
    cell = trains.load(record.id, bench.results, bench.model, offline=True)
    rows = Rows((list(TEXTS),), np.zeros(len(TEXTS), dtype=np.int64))
    table = cell.pack.backbone.table(tokenize(rows, AutoTokenizer.from_pretrained(bench.model), 16))
    with cell.pack, torch.no_grad():
        cell.pack.compose()
        return cell.pack.logits(next(table.batches([np.arange(len(TEXTS))])))[0].numpy()


@pytest.fixture(scope="module")
def loaded(bench: TinyBench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Every method exported in both forms, and the logits of a fresh process by `method form`."""
    root = tmp_path_factory.mktemp("out")
    folders: dict[str, tuple[str, str]] = {}
    for method in PACKED:
        for form in ("peft", "merged"):
            folder = root / f"{method}-{form}"
            code, said = export(bench, folder, record_of(bench, method).id, "--to", form)
            if code == 0:
                folders[f"{method} {form}"] = form, str(folder)
            else:
                assert (code, form) == (2, "peft") and "--to merged" in said, said
    lines = (bench.rows / "sst2/validation.jsonl").read_text().splitlines()
    asked = {
        "folders": folders, "texts": TEXTS, "base": str(bench.model), "outputs": 2, "out": str(root / "found.npz"),
        "rows": [json.loads(line)["sentence"] for line in lines],
    }  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", FRESH], input=json.dumps(asked), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with np.load(root / "found.npz") as file:
        return dict(file)


@pytest.mark.parametrize("method", PACKED)
def test_a_fresh_process_has_the_same_logits(method: str, bench: TinyBench, loaded: dict[str, np.ndarray]) -> None:
    ours = our_logits(bench, record_of(bench, method))
    forms = [name for name in loaded if name.split()[0] == method and not name.endswith("predictions")]
    worst = {name: float(np.abs(loaded[name] - ours).max()) for name in forms}
    print({name: f"{value:.1e}" for name, value in worst.items()})
    assert f"{method} merged" in forms
    change = 1.0 if method == "head" else float(np.abs(ours - our_logits(bench, record_of(bench, "head"))).max())
    assert change > 1e-6  # Uni-LoRA's few values change little
    assert max(worst.values()) < min(1e-5, change / 10)  # else a model without the adapter would pass


@pytest.mark.parametrize("method", PACKED)
def test_merged_it_answers_as_the_record_says(method: str, bench: TinyBench, loaded: dict[str, np.ndarray]) -> None:
    """transformers alone, on the rows that the record's predictions are of."""
    record = record_of(bench, method)
    assert loaded[f"{method} merged predictions"].tolist() == list(record.predictions)
    assert len(record.predictions) == VALIDATION_ROWS


def test_the_card_of_a_cell_with_a_start_counts_its_seeds(bench: TinyBench, tmp_path: Path) -> None:
    """Each seed continues from another cell, so the settings of the seeds differ in more than the seed."""
    results = TinyBench(bench.model, make_data(tmp_path / "rows", "mnli", "rte"), tmp_path / "results")
    settings: dict[str, Any] = {"task": ["mnli", "rte"], "start": {"rte": "mnli"}, "seed": [0, 1], "epochs": 1}
    records = results.run([{"method": "head"}], **settings)
    (record,) = (record for record in records if (record.cell.task, record.cell.seed) == ("rte", 0))
    code, said = export(results, tmp_path / "out", record.id, "--to", "peft")
    assert code == 0, said
    assert "accuracy over 2 seeds: " in (tmp_path / "out" / "README.md").read_text()


def test_data_of_the_hub_are_not_the_bundled_ones_whatever_they_are_called() -> None:
    for data, is_bundled in (("sample:059284833733", True), ("sampled/rows@0123abcd", False), ("files:0", False)):
        record = make_record(0.5, cell=make_cell("lora", data=data))
        nothing: Any = None
        assert trains.Trained(record, (), nothing, nothing, True).has_bundled_data is is_bundled


@pytest.mark.parametrize("status", ["diverged", "failed", "oom"])
def test_a_cell_that_is_not_done_has_nothing_to_export(bench: TinyBench, status: Any, tmp_path: Path) -> None:
    record = make_record(None, cell=record_of(bench, "lora").cell, status=status, reason="so it was")
    write_record(tmp_path, record)
    code, said = export(TinyBench(bench.model, bench.rows, tmp_path), tmp_path / "out", record.id, "--to", "peft")
    assert (code, len(said.splitlines())) == (3, 2), said
    assert f"its training ended as {status}: so it was." in said
    assert f"`run --retry {status}` trains this one again." in said


@pytest.mark.parametrize("method", sorted(methods.RECIPES.keys() - set(PACKED)))
def test_a_method_that_trains_the_encoder_leaves_nothing_to_export(
    method: str, bench: TinyBench, tmp_path: Path
) -> None:
    record = make_record(0.5, cell=make_cell(method, **SIZES))
    write_record(tmp_path, record)
    code, said = export(TinyBench(bench.model, bench.rows, tmp_path), tmp_path / "out", record.id, "--to", "merged")
    assert (code, len(said.splitlines())) == (3, 2), said
    assert "it trained the whole model, which is not saved" in said


def test_a_whole_model_that_was_kept_is_merged(bench: TinyBench, tmp_path: Path) -> None:
    """`run` keeps none: this one is put in place by hand."""
    (record,) = bench.run([{"method": "full"}], precision="float32", epochs=1, lr=1e-3)
    code, said = export(bench, tmp_path / "none", record.id, "--to", "merged")
    assert (code, "it trained the whole model, which is not saved" in said) == (3, True), said
    backbone = backbones.load(str(bench.model), torch.device("cpu"), "float32", trains=True)
    state = Pack([record.cell], backbone, 2).state(0)
    moved = {name: value + 0.01 * torch.randn_like(value) for name, value in state.adapter.items()}
    saved.save(bench.results / "adapters" / record.id, record.cell, 2, State(moved, state.head))
    assert export(bench, tmp_path / "peft", record.id, "--to", "peft")[0] == 2
    code, said = export(bench, tmp_path / "out", record.id, "--to", "merged")
    assert code == 0, said
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits.numpy()
    assert np.abs(found - our_logits(bench, record)).max() < 1e-5


def test_low_rank_methods_are_loras(loaded: dict[str, np.ndarray]) -> None:
    """Which methods are, follows from their numbers; of these it is known."""
    known = {"lora", "mini", "xs", "cora", "pissa", "vera", "head"}
    known |= {"moslora", "miss", "mica", "delora", "melora", "gralora"}
    assert {f"{method} peft merged" for method in known} <= loaded.keys()


def test_the_adapter_is_as_small_as_its_rank(bench: TinyBench, tmp_path: Path) -> None:
    assert export(bench, tmp_path / "out", record_of(bench, "mini").id, "--to", "peft")[0] == 0
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert set(config["target_modules"]) == {
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "intermediate.dense", "output.dense",
    }  # fmt: skip
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert str(bench.model.parent) not in "".join(
        path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"
    )


def test_half_precision_is_half_as_large(bench: TinyBench, tmp_path: Path) -> None:
    name = record_of(bench, "lora").id
    for dtype in ("float32", "float16"):
        assert export(bench, tmp_path / dtype, name, "--to", "merged", "--dtype", dtype)[0] == 0
    sizes = {dtype: (tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("float32", "float16")}
    assert 1.8 < sizes["float32"] / sizes["float16"] < 2


def test_the_card_is_one_and_its_command_makes_the_cell(bench: TinyBench, tmp_path: Path) -> None:
    record = record_of(bench, "lora")
    assert export(bench, tmp_path / "out", record.id, "--to", "merged")[0] == 0
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "other"
    assert "set `license:` above yourself" in card.text
    assert card.data.to_dict()["library_name"] == "transformers"
    (result,) = card.data.eval_results or []
    assert (result.metric_type, result.dataset_config) == ("accuracy", "sst2")
    assert result.metric_value == pytest.approx(record.score, abs=1e-6)
    assert result.dataset_type == "files"
    assert "over 3 seeds" in card.text and "95% interval" in card.text
    command = next(line for line in card.text.splitlines() if line.startswith("lora-bench run "))
    words = shlex.split(command.replace("MODEL_DIR", str(bench.model)).replace("DATA_DIR", str(bench.rows)))
    code, planned = invoke("plan", *words[2:], "--results", bench.results)
    assert code == 0, planned
    assert "1 cell" in planned
    assert "0 to train" in planned


def test_the_licence_is_the_base_models_own(bench: TinyBench, tmp_path: Path) -> None:
    card = bench.model / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# A model\n")
    try:
        assert export(bench, tmp_path / "out", record_of(bench, "xs").id, "--to", "peft")[0] == 0
    finally:
        card.unlink()
    front = (tmp_path / "out/README.md").read_text().split("---")[1]
    assert yaml.safe_load(front)["license"] == "mit"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--to", "peftt"), 2, "peft"),
        (("--to", "peft", "--dtype", "float8"), 2, "float32"),
        (("ffff", "--to", "peft"), 2, "one id"),
    ],
)
def test_wishes_that_cannot_be(words: tuple[str, ...], code: int, said: str, bench: TinyBench, tmp_path: Path) -> None:
    found, text = export(bench, tmp_path / "out", record_of(bench, "lora").id, *words)
    assert (found, said in text) == (code, True), text
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_reported(bench: TinyBench, tmp_path: Path) -> None:
    name = record_of(bench, "lora").id
    out = tmp_path / "out"
    assert export(bench, out, "ffff", "--to", "peft")[0] == 4
    out.mkdir()
    (out / "mine").write_text("mine")
    assert export(bench, out, name, "--to", "peft")[0] == 2
    assert [path.name for path in out.iterdir()] == ["mine"]
    code, said = invoke("export", name, "--to", "peft", "--out", tmp_path / "new", "--results", bench.results)
    assert code == 3
    assert "--model DIR" in said
    other = make_model(tmp_path / "other", vocab_size=70)
    with pytest.raises(BenchError, match="was trained over tiny@"):
        trains.load(name, bench.results, other, offline=True)
    assert not (tmp_path / "new").exists()


def test_another_head_is_refused(tmp_path: Path) -> None:
    """ELECTRA's head has the same names and computes something else."""
    import transformers as hf

    bench = TinyBench(make_model(tmp_path / "m"), make_data(tmp_path / "rows"), tmp_path / "results")
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    config = hf.ElectraConfig(vocab_size=60, embedding_size=32, max_position_embeddings=40, **sizes)
    hf.ElectraModel(config).save_pretrained(bench.model)
    (record,) = bench.run([{"method": "lora", "rank": 2}], epochs=1)
    code, said = export(bench, tmp_path / "out", record.id, "--to", "merged")
    assert code == 2
    assert "another head" in said
    assert tasks.get("sst2").title not in said
    assert not (tmp_path / "out").exists()

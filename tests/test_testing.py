"""The module that plug-in authors test with: its example runs, its encoders load, and its makers agree."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lora_bench.testing
from lora_bench import methods
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.testing import (
    FAMILIES,
    WORDS,
    TinyBench,
    make_cell,
    make_data,
    make_encoder,
    make_epochs,
    make_model,
    make_record,
    make_tokens,
)

CPU = torch.device("cpu")


def test_the_example_of_the_module_is_right() -> None:
    outcome = doctest.testmod(lora_bench.testing)
    assert (outcome.failed, outcome.attempted) == (0, 7)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    program = "import sys, lora_bench.testing; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_the_same_every_time_and_can_be_adapted(family: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = make_encoder(family), make_encoder(family), make_encoder(family, seed=12)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights, others = first.state_dict(), other.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert any(not torch.equal(value, others[name]) for name, value in weights.items())
    assert Backbone(first, CPU, "float64").hidden_size == 32


def test_the_data_of_a_folder_has_no_word_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path / "tiny"))
    text = "".join(path.read_text() for path in make_data(tmp_path / "rows", "mnli", "stsb").rglob("*.jsonl"))
    assert tokenizer.unk_token_id not in tokenizer(" ".join(word for word in WORDS if word in text))["input_ids"]
    assert len(tokenizer) == len(WORDS) == make_encoder().config.vocab_size


def test_tables_have_the_lengths_asked_for() -> None:
    assert make_tokens([3, 5]).lengths.tolist() == [3, 5]
    several = make_tokens(40, task="stsb")
    assert len(several) == 40
    assert several.labels.dtype == "float32"
    assert 4 <= several.lengths.min() <= several.lengths.max() < 24


@pytest.mark.parametrize("method", methods.RECIPES)
def test_a_cell_of_any_method_has_its_parameters_and_no_others(method: str) -> None:
    cell = make_cell(method, rank=3, a=5, alpha=2.0, lr=0.5)
    parameters = {"rank", "a", "b", "alpha", "init", "targets"}
    assert {name for name in parameters if getattr(cell, name) is not None} <= methods.get(method).parameters
    rank = 3 * 4 if method in ("melora", "gralora", "vb-lora") else 3  # they divide by a or b, here 4
    assert cell.rank == (rank if "rank" in methods.get(method).parameters else None)
    assert cell.lr == 0.5


def test_a_record_says_of_its_cell_what_a_run_would() -> None:
    record = make_record(0.5, cell=make_cell("head", task="cola"), epochs=make_epochs(0.4, 0.5, metric="matthews"))
    assert (record.id, record.metric, record.last) == (record.cell.id, "matthews", 0.5)
    failed = make_record(None, params=None, status="failed", reason="out of memory")
    assert (failed.score, failed.counts, failed.reason) == (None, None, "out of memory")


def test_a_bench_trains_an_included_method(tmp_path: Path) -> None:
    """A test of a method from elsewhere, as its author would write it."""
    path = tmp_path / "half.py"
    path.write_text(
        "from lora_bench.methods.lora import Lora\n\n\n"
        'class Half(Lora):\n    name = "half-of-a-test"\n    title = "LoRA"\n    source = "a test"\n\n\n'
        "RECIPE = Half()\n"
    )
    with methods.registered():
        recipe = methods.include(path)
        bench = TinyBench.create(tmp_path, family="electra")
        (record,) = bench.run([{"method": recipe.name, "rank": 2}], epochs=1)
        assert record.status == "done"
        assert record.cell.origin == methods.origin(recipe.name)
        assert bench.csv()[0]["method"] == recipe.name
    assert recipe.name not in methods.RECIPES

"""What both sides train on: the same rows in the same order, on the same encoder; cells that all differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lora_bench.bench import workload
from lora_bench.bench.peers import Stream
from lora_bench.bench.workload import Collate
from lora_bench.engine import randomness
from lora_bench.engine.encoder.windows import slices
from lora_bench.errors import MISSING, BenchError
from lora_bench.run.tokenizer import load_tokenizer
from lora_bench.sample import ENCODER
from tests.bench.bench_factory import SAMPLE, bench_settings, work


def test_the_order_is_our_trainers_without_the_rest_of_each_epoch() -> None:
    made = work()
    assert made.order.shape == (workload.MAX_STEPS, 32)
    for epoch in (1, 2, 3):
        expected = slices(randomness.permutation(400, workload.SEED, "order", epoch), 32)[:12]
        assert np.array_equal(made.order[12 * (epoch - 1) : 12 * epoch], np.stack(expected))
    assert made.epochs * 12 >= workload.MAX_STEPS
    assert made.tokens[5] == made.table.lengths[made.order[5]].sum()


def test_the_peers_read_the_same_batches() -> None:
    """A peer's data set, collated, has the tokens and labels of the order's rows, padded to the longest."""
    made = work()
    rows = workload.table_rows(made.table, with_types=False)
    stream = Stream(rows, made.order)
    batch = Collate(made.pad_id)([stream[32 * 7 + index] for index in range(32)])
    lengths = made.table.lengths[made.order[7]]
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == (32, lengths.max())
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
    assert batch["labels"].tolist() == made.table.labels[made.order[7]].tolist()
    kept = batch["input_ids"][batch["attention_mask"].bool()]
    assert kept.tolist() == made.table.take(made.order[7]).ids.tolist()
    assert (batch["input_ids"][~batch["attention_mask"].bool()] == made.pad_id).all()


def test_token_types_are_padded_with_zeros() -> None:
    rows = [
        {"input_ids": [5, 6], "token_type_ids": [0, 1], "labels": 0.5},
        {"input_ids": [7], "token_type_ids": [1], "labels": 2.0},
    ]
    batch = Collate(9)(rows)
    assert batch["token_type_ids"].tolist() == [[0, 1], [1, 0]]
    assert batch["labels"].dtype == torch.float32


@pytest.mark.parametrize("mix", ["lora", "mixed"])
def test_cells_of_a_pack_all_differ_and_share_batches(mix: str) -> None:
    made = workload.make_cells(work(), "qv", mix, 64, 768)
    assert len(set(made)) == 64
    assert len({cell.id for cell in made}) == 64
    assert len({cell.batch_settings() for cell in made}) == 1
    assert {cell.targets for cell in made} == {"qv"}


def test_mixes() -> None:
    """LoRA alone is of rank 16; the mix has four methods, each at five ranks, none above the encoder's width."""
    assert {(cell.method, cell.rank) for cell in workload.make_cells(work(), "qv", "lora", 8, 768)} == {("lora", 16)}
    mixed = {(cell.method, cell.rank) for cell in workload.make_cells(work(), "qv", "mixed", 20, 768)}
    assert mixed == {(method, rank) for method in ("lora", "mini", "xs", "cora") for rank in (4, 8, 16, 32, 64)}
    assert max(cell.rank or 0 for cell in workload.make_cells(work(), "qv", "mixed", 20, 40)) == 32


def test_full_is_one_cell_that_has_nothing_of_an_adapter() -> None:
    """The method's own learning rate; it shares everything else with the others."""
    (cell,) = workload.make_cells(work(), "all", "full", 1, 64)
    assert (cell.method, cell.lr, cell.targets, cell.rank, cell.alpha) == ("full", 2e-5, None, None, None)
    assert cell.batch_settings() == workload.make_cells(work(), "qv", "lora", 1, 64)[0].batch_settings()


def test_tokens_of_a_sequence() -> None:
    made = work()
    assert made.mean_tokens == pytest.approx(made.table.lengths[made.order].mean())


def test_a_directory_without_weights_is_given_random_ones(tmp_path: Path) -> None:
    """Config and tokenizer suffice; both sides load the same files, made from a fixed seed."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((ENCODER / name).read_bytes())
    one = workload.prepare_model(bench_settings(model=str(bare)), tmp_path / "one")
    other = workload.prepare_model(bench_settings(model=str(bare)), tmp_path / "other")
    assert one.random
    weights, same = (load_file(Path(model.location) / "model.safetensors") for model in (one, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert (
        load_tokenizer(one.location, offline=True)("the film")["input_ids"]
        == load_tokenizer(SAMPLE.location, offline=True)("the film")["input_ids"]
    )
    assert not list(bare.glob("*.safetensors"))
    assert json.loads((Path(one.location) / "config.json").read_text())["num_hidden_layers"] == 4


def test_a_model_with_weights_is_taken_as_it_is(tmp_path: Path) -> None:
    made = workload.prepare_model(bench_settings(), tmp_path)
    assert (made.random, made.location) == (False, str(ENCODER))


@pytest.mark.parametrize(("name", "words"), [("./nowhere", "./nowhere"), ("empty", "config.json")])
def test_a_model_that_is_not_there(tmp_path: Path, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(BenchError, match=words) as caught:
        workload.prepare_model(bench_settings(model=name), tmp_path)
    assert caught.value.code == MISSING


def test_fewer_rows_than_a_batch() -> None:
    with pytest.raises(BenchError, match="400 rows"):
        work(batch=401)

"""The forecast follows from counts: linear in cells and epochs, corrected by finished cells, None if unknown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.engine.encoder import windows
from lora_bench.forecast import devices, families
from lora_bench.forecast.cost import USUAL_FRACTION, Estimate
from lora_bench.forecast.geometry import Geometry, load_geometry
from lora_bench.forecast.pack import LARGE_TENSOR_BYTES, LIBRARY_BYTES, TENSORS_OF_LAYER
from lora_bench.records.schema import DataInfo, Record, Timing
from lora_bench.testing import make_cell, make_record

KNOWN = {"layer": 1e-5, "flop": 1e-15, "byte": 1e-13, "adapter_byte": 1e-12, "value": 1e-11, "setup": 2.0}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with the sizes of RoBERTa-base."""
    sizes = {
        "model_type": "roberta",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "vocab_size": 50265,
        "max_position_embeddings": 514,
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    return str(tmp_path)


def cells(count: int = 4, method: str = "lora", **other: Any) -> list[Cell]:
    base: dict[str, Any] = {
        "model": "m",
        "data": "d",
        "task": "mrpc",
        "rank": 8,
        "alpha": 16.0,
        "seed": 0,
        "epochs": 4,
        "batch_size": 32,
        "max_length": 128,
        "head_lr": None,
        "select": "best",
        "precision": "float32",
    }
    return [make_cell(method, **base | {"lr": 1e-3 * (1 + i)} | other) for i in range(count)]


def finished(members: list[Cell], seconds: float, peak: int, device: str = "card") -> list[Record]:
    timing = Timing(
        seconds=seconds / len(members),
        pack_seconds=seconds,
        pack_size=len(members),
        tokens=4 * 3668 * 50,
        tokens_per_second=1.0,
        peak_bytes=peak,
    )
    info = DataInfo(source="d", train_rows=3668, eval_rows=408, fingerprint="f")
    return [make_record(None, cell=cell, params=None, timing=timing, data=info, device=device) for cell in members]


def test_sizes_are_read_from_the_config_and_count_its_weights(model: str) -> None:
    sizes = load_geometry(model)
    assert sizes == Geometry(12, 768, 3072, 12, 50779, "roberta")
    assert sizes.linear == 12 * (4 * 768 * 768 + 2 * 768 * 3072) == 84_934_656
    assert len(sizes.adapted("attention+dense")) == 6
    assert load_geometry("no/such-model") is None


def test_sizes_that_no_encoder_has_are_none(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}
    config = {**sizes, "max_position_embeddings": 3, "model_type": "albert", "num_hidden_groups": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_geometry(str(tmp_path)) is None


def test_sizes_of_distilbert_have_other_names(tmp_path: Path) -> None:
    named = {"dim": 8, "n_layers": 2, "hidden_dim": 16, "n_heads": 2, "vocab_size": 9, "max_position_embeddings": 3}
    (tmp_path / "config.json").write_text(json.dumps(named))
    assert load_geometry(str(tmp_path)) == Geometry(2, 8, 16, 2, 12)


def test_trained_values_are_the_formulas(model: str) -> None:
    sizes = load_geometry(model)
    assert sizes is not None
    demand = Estimate().demand(cells(3), sizes)
    head = 768 * 769 + 2 * 769
    assert demand.values == 3 * (36 * 8 * 1536 + head)
    assert Estimate().demand(cells(1, method="mini", a=16, b=24), sizes).values == 36 * 8 * 40 + head
    assert Estimate().demand(cells(1, method="full"), sizes).values > 120e6


def test_more_epochs_and_longer_batches_cost_more(model: str) -> None:
    estimate = Estimate(KNOWN)
    once, twice = (estimate.seconds(cells(epochs=epochs), model) for epochs in (4, 8))
    assert once is not None
    assert twice is not None
    assert twice - KNOWN["setup"] == pytest.approx(2 * (once - KNOWN["setup"]))
    assert estimate.seconds(cells(task="cola"), model) != once
    few, many = (estimate.bytes(cells(count), model) for count in (4, 64))
    assert few is not None
    assert many is not None
    assert few < many < 16 * few


def test_rows_that_are_held_out_are_evaluated_instead(model: str) -> None:
    sizes = load_geometry(model)
    assert sizes is not None
    best, held = (Estimate().demand(cells(task="sst2", select=select), sizes) for select in ("best", "held-out"))
    assert held.steps == pytest.approx(0.9 * best.steps, rel=1e-3)
    # A tenth of the phrases of train beside 872 whole sentences, which are nearly twice as long.
    more = held.eval_slots * held.evaluations / (best.eval_slots * best.evaluations)
    assert more == pytest.approx(1 + 6061 / 872 / tasks.get("sst2").eval_length, rel=0.01)
    assert held.bytes() > best.bytes()


def test_there_is_no_forecast_of_what_is_not_known(model: str) -> None:
    assert Estimate(None).seconds(cells(), model) is None
    assert Estimate(KNOWN).seconds(cells(), "no/such-model") is None
    uncounted = replace(tasks.get("mrpc"), name="uncounted", mean_tokens=None)
    with tasks.registered(uncounted):
        assert Estimate(KNOWN).seconds(cells(task="uncounted"), model) is None
    assert Estimate().bytes(cells(), "no/such-model") is None


def test_finished_cells_correct_time_and_memory(model: str) -> None:
    plain = Estimate(KNOWN)
    first = plain.refined([], "card", {"m": model})
    done = finished(cells(), 1000.0, 3 * 2**30)
    better = plain.refined(done, "card", {"m": model})
    assert better.seconds(cells(), model) == pytest.approx(1000.0)
    assert better.bytes(cells(), model) == pytest.approx(3 * 2**30)
    assert better.mean_tokens(cells()[0]) == pytest.approx(50.0)
    assert first.seconds(cells(), model) != pytest.approx(1000.0)
    elsewhere = plain.refined(finished(cells(), 1000.0, 1, "another card"), "card", {"m": model})
    assert elsewhere.time_factor == 1.0
    assert elsewhere.mean_tokens(cells()[0]) == pytest.approx(50.0)


def test_a_pack_fills_the_device(model: str) -> None:
    short, long = cells(1, task="sst2")[0], cells(1, task="rte")[0]
    estimate = Estimate()
    few, many = (estimate.cells_per_pack(cell, "cuda", model) for cell in (long, short))
    assert 12 < 3 * few < many
    assert many < estimate.cells_per_pack(short, "cuda", "sample") <= 512
    assert 1 <= estimate.cells_per_pack(long, "cpu", model) <= estimate.cells_per_pack(short, "cpu", model) <= 16


def test_bases_cost_time_once(model: str) -> None:
    """LoRA-XS: 72 weights of 768 directions; CoRA adds 12 joined weights; LoRA-SB's belong to its pack."""
    estimate = Estimate(KNOWN | {"direction": 1e-4})
    xs, cora, sb = (cells(method=method, targets="attention+dense") for method in ("xs", "cora", "lora-sb"))
    lora = cells(targets="attention+dense")

    def extra(pack: list[Cell], *before: list[Cell]) -> float:
        kept = frozenset().union(*(estimate.bases(other, model) for other in before))
        plain = Estimate(KNOWN).seconds(pack, model)
        found = estimate.seconds(pack, model, kept)
        assert plain is not None
        assert found is not None
        return found - plain

    assert extra(xs) == pytest.approx(72 * 768e-4)
    assert extra(cora) == pytest.approx(48 * 768e-4)
    assert extra(cora, xs) == pytest.approx(12 * 768e-4)
    assert extra(xs, xs) == pytest.approx(0.0, abs=1e-9)
    assert extra(sb, sb) == pytest.approx(72 * 768e-4)
    assert extra(lora) == pytest.approx(0.0, abs=1e-9)


def test_what_the_newest_methods_do_to_outputs_costs_time_and_memory(model: str) -> None:
    known = KNOWN | {"dress_byte": 1e-13, "operand": 1e-11, "remade": 1e-10}
    for method in ("dora", "bitfit", "ia3"):
        pack = cells(method=method)
        plain, more = Estimate(KNOWN).seconds(pack, model), Estimate(known).seconds(pack, model)
        assert plain is not None
        assert more is not None
        assert more > plain
    lora, dora = Estimate().bytes(cells(), model), Estimate().bytes(cells(method="dora"), model)
    assert lora is not None
    assert dora is not None
    assert dora > 1.1 * lora
    wide = cells(method="svft")
    assert (Estimate(known).seconds(wide, model) or 0) > 1.1 * (Estimate(KNOWN).seconds(wide, model) or 0)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_attention_weights_take_memory_where_no_kernel_recomputes_them(model: str, precision: str) -> None:
    sizes = load_geometry(model)
    assert sizes is not None
    pack = cells(24, task="rte", precision=precision)
    few, many = (Estimate().demand(pack, replace(sizes, heads=heads)).bytes() for heads in (1, 12))
    assert (many > 1.1 * few) == (precision == "float32")


def test_masks_take_memory_once_for_all_cells(model: str) -> None:
    """A byte for each value that a dropout may drop, in windows of 128: 12 layers of two outputs and 12 heads."""
    sizes = load_geometry(model)
    assert sizes is not None
    one, two, more = (Estimate().demand(cells(count, task="mrpc"), sizes) for count in (1, 2, 3))
    windows, outputs, attention = 24, 25 * 768, 12 * 12 * 128
    assert one.window == 128
    per_cell = two.bytes() - one.bytes()
    assert more.bytes() - two.bytes() == pytest.approx(per_cell)
    fixed = one.bytes() - per_cell
    blocks = 12 * TENSORS_OF_LAYER * LARGE_TENSOR_BYTES / 2
    masks = windows * 128 * (outputs + attention)
    assert fixed == pytest.approx(LIBRARY_BYTES + 4 * sizes.weights + masks + blocks, rel=0.02)


def test_bases_that_earlier_packs_left_stay_in_memory(model: str) -> None:
    """LoRA-XS's of one query weight: 12 layers' U and V of 768 x 768, in float32."""
    estimate, pack = Estimate(), cells(method="xs", targets="query")
    left = estimate.bases(pack, model)
    lora, after = estimate.bytes(cells(), model), estimate.bytes(cells(), model, left)
    assert lora is not None
    assert after is not None
    assert after - lora == pytest.approx(3 * 12 * 2 * 768 * 768 * 4)
    assert estimate.bytes(pack, model, left) == estimate.bytes(pack, model)


def test_metrics_cost_time_by_cell_and_epoch(model: str) -> None:
    plain, scored = Estimate(KNOWN), Estimate(KNOWN | {"score": 0.5})
    assert (scored.seconds(cells(), model) or 0) - (plain.seconds(cells(), model) or 0) == pytest.approx(4 * 4 * 0.5)


def test_terms_missing_in_an_old_calibration_are_the_shipped_ones(tmp_path: Path) -> None:
    measured = tmp_path / "devices.json"
    measured.write_text(json.dumps({"NVIDIA H200": {"bf16": KNOWN}}))
    device = devices.find_device("NVIDIA H200", "bf16", measured)
    assert device is not None
    assert device.coefficients == devices.shipped_coefficients()["NVIDIA H200"]["bf16"] | KNOWN


def test_measured_coefficients_replace_the_shipped_ones(tmp_path: Path) -> None:
    measured = tmp_path / "devices.json"
    measured.write_text(json.dumps({"card": {"bf16": KNOWN}}))
    device = devices.find_device("card", "bf16", measured)
    assert device == devices.Device(KNOWN)
    assert devices.find_device("card", "float32", measured) is None
    assert devices.find_device("no card", "bf16", measured) is None


def test_windows_hold_as_many_sequences_as_in_the_engine() -> None:
    assert windows.USUAL == USUAL_FRACTION  # the forecast may not import the engine


def test_every_task_of_glue_has_its_length_and_its_rows() -> None:
    for task in tasks.TASKS.values():
        assert task.mean_tokens is not None
        assert task.rows


@pytest.mark.parametrize(
    ("model", "weights", "way"),
    [  # the numbers of weights of the layers and embeddings, as the models' pages round them
        ("roberta-base", 124e6, "fused"),
        ("FacebookAI/roberta-large", 355e6, "fused"),
        ("FacebookAI/xlm-roberta-base", 278e6, "fused"),
        ("FacebookAI/xlm-roberta-large", 560e6, "fused"),
        ("google-bert/bert-base-uncased", 109e6, "fused"),
        ("bert-large-uncased", 335e6, "fused"),
        ("camembert-base", 110e6, "fused"),
        ("google/electra-base-discriminator", 109e6, "fused"),
        ("microsoft/mpnet-base", 109e6, "fused"),
        ("distilbert-base-uncased", 66e6, "windows"),
        ("answerdotai/ModernBERT-base", 149e6, "windows"),
        ("answerdotai/ModernBERT-large", 395e6, "windows"),
        ("albert/albert-base-v2", 11.7e6, "windows"),
        ("microsoft/deberta-base", 139e6, "windows"),
        ("microsoft/deberta-v3-base", 184e6, "windows"),
        ("microsoft/deberta-v3-large", 435e6, "windows"),
    ],
)
def test_the_usual_encoders_are_known_without_the_hub(
    model: str, weights: float, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    load_geometry.cache_clear()
    sizes = load_geometry(model)
    load_geometry.cache_clear()
    assert sizes is not None
    assert sizes.weights == pytest.approx(weights, rel=0.07)
    assert families.of(sizes.model_type).way == way


# Steps · cells a second of packs of 1 and of `count` cells, and GiB that the allocator reserved: MRPC, all linears,
# LoRA of rank 16, batch 32, bf16, one NVIDIA H200 (docs/guide.md).
RATES = [
    ("google-bert/bert-base-uncased", 223.0, 437.0, None),
    ("google/electra-base-discriminator", 222.0, 435.0, None),
    ("microsoft/mpnet-base", None, 427.0, None),
    ("distilbert/distilbert-base-uncased", 26.0, 405.0, 14.1),
    ("answerdotai/ModernBERT-base", 12.1, 95.2, 30.8),
    ("albert/albert-base-v2", 24.6, 171.0, 44.7),
    ("microsoft/deberta-v3-base", None, 125.0, 30.0),
    ("microsoft/deberta-base", 10.6, 98.6, 33.1),
    ("megatron", 13.8, 94.7, 8.7),
]
RESERVED = 1.48  # bytes that the allocator reserves over those that tensors take, where no CUDA graph holds memory


@pytest.mark.parametrize(("model", "alone", "packed", "gib"), RATES)
def test_measured_families_are_predicted(model: str, alone: float | None, packed: float, gib: float | None) -> None:
    bert = load_geometry("google-bert/bert-base-uncased")
    assert bert is not None
    sizes = replace(bert, model_type="megatron-bert") if model == "megatron" else load_geometry(model)
    assert sizes is not None
    coefficients = devices.shipped_coefficients()["NVIDIA H200"]["bf16"]
    one, many = (
        Estimate().demand(cells(count, rank=16, targets="attention+dense", precision="bf16"), sizes)
        for count in (1, 16)
    )
    if alone is not None:
        assert 1 / one.step_seconds(coefficients) == pytest.approx(alone, rel=0.08)
    assert 16 / many.step_seconds(coefficients) == pytest.approx(packed, rel=0.05)
    if gib is not None:
        assert many.bytes() / 2**30 * RESERVED == pytest.approx(gib, rel=0.05)


def test_an_encoder_of_an_unknown_type_is_a_guess() -> None:
    assert not families.of("never-heard-of").measured
    assert families.of("never-heard-of").way == "padded"
    assert not families.of("esm").measured
    assert families.of("modernbert").measured


def test_padded_rows_are_wider_where_lengths_differ_more(model: str) -> None:
    roberta = load_geometry(model)
    assert roberta is not None
    sizes = replace(roberta, model_type="megatron-bert")
    counts = {task: Estimate().demand(cells(task=task), sizes) for task in ("mrpc", "sst2")}
    padding = {task: demand.rows * demand.longest / demand.slots for task, demand in counts.items()}
    assert 1 < padding["mrpc"] < padding["sst2"] < 3
    alone, packed = (Estimate().demand(cells(count), sizes).bytes() for count in (1, 2))
    assert packed < alone  # of one cell nothing is computed again


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H200", "H200"),
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("AMD Instinct MI300X", "MI300X"),
        ("cpu, x86_64, 4 threads", None),
        ("NVIDIA Quadro", None),
    ],
)
def test_cards_are_known_by_their_names(name: str, card: str | None) -> None:
    assert devices.find_card(name) == card


def test_a_card_that_was_not_measured_is_scaled_from_the_nearest(tmp_path: Path) -> None:
    h100, a100, t4, b200 = (devices.find_device(name, "bf16") for name in ("H100", "A100", "T4", "B200"))
    assert h100 is not None
    assert h100.scaled_from is None
    assert a100 is not None
    assert a100.scaled_from == "NVIDIA H100 80GB HBM3"
    assert a100.memory == 80e9
    ratios = {term: a100.coefficients[term] / h100.coefficients[term] for term in ("flop", "byte", "layer", "start")}
    assert ratios == pytest.approx({"flop": 989 / 312, "byte": 3.35 / 2.039, "layer": 1.0, "start": 1.0})
    assert t4 is not None
    assert t4.coefficients["flop"] > 10 * a100.coefficients["flop"]
    assert b200 is not None
    assert b200.scaled_from == "NVIDIA H200"
    assert devices.find_device("H100", "float32") is not None
    assert devices.find_device("no card", "bf16") is None
    measured = tmp_path / "devices.json"
    measured.write_text(json.dumps({"NVIDIA A100-SXM4-80GB": {"bf16": KNOWN}}))
    assert devices.find_device("a100", "bf16", measured) == devices.Device(KNOWN, memory=80e9)

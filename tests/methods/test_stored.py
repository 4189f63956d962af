"""What VB-LoRA stores where vectors have larger numbers than a byte holds, and how many bytes it says that are."""

from __future__ import annotations

import pytest
import torch

from lora_bench.contracts.kit import Workbench, cell_of, logits_of, train
from lora_bench.engine.adapters import saved
from lora_bench.methods.recipe import Shape
from lora_bench.methods.vb_lora import RECIPE
from lora_bench.tasks import get


@pytest.mark.parametrize("count", [2, 255, 256, 257, 400])
def test_a_bank_of_any_size_comes_back(count: int, bench: Workbench) -> None:
    cell = cell_of("vb-lora", rank=1, a=count, b=16, epochs=1, targets="attention+dense")
    run = train([cell], bench.load("float32"), get("cola"))
    folder = bench.new_folder()
    saved.save(folder, run.cell, run.task.num_outputs, run.pack.state(0))
    loaded = saved.load(folder, bench.load("float32"))
    torch.testing.assert_close(logits_of(loaded, run.task), logits_of(run.pack, run.task), rtol=0, atol=1e-6)
    shapes = [family.shape for g in run.pack.bank.groups for family, modules in g.families.items() for _ in modules]
    stored = saved.compacted(run.cell, run.pack.state(0).adapter)
    kept = sum(value.numel() * value.element_size() for name, value in stored.items() if "bank" not in name)
    assert kept == sum(RECIPE.compact_bytes(run.cell, shape) for shape in shapes)


def test_the_numbers_are_those_of_the_two_largest_logits() -> None:
    cell = cell_of("vb-lora", rank=1, a=300, b=16)
    logits = torch.zeros(1, 2 * 300)
    logits[0, 299], logits[0, 7], logits[0, 300 + 256], logits[0, 300 + 255] = 2.0, 1.0, 4.0, 3.0
    parts = RECIPE.compact(cell, "A_logits", logits)
    assert parts["index"].tolist() == [[[299, 7], [256, 255]]]
    restored = RECIPE.restore(cell, "A_logits", parts).view(2, 300)
    assert torch.equal(restored.topk(2).values, torch.tensor([[2.0, 1.0], [4.0, 3.0]]))
    assert restored.topk(2).indices.tolist() == [[299, 7], [256, 255]]
    assert RECIPE.compact_bytes(cell, Shape(16, 32)) == 2 * 3 * (4 + 2)


def test_numbers_that_two_bytes_do_not_hold() -> None:
    cell = cell_of("vb-lora", rank=1, a=2**15 + 9, b=16)
    logits = torch.zeros(1, 2**15 + 9)
    logits[0, -1], logits[0, 5] = 2.0, 1.0
    parts = RECIPE.compact(cell, "A_logits", logits)
    assert parts["index"].tolist() == [[[2**15 + 8, 5]]]
    assert RECIPE.restore(cell, "A_logits", parts).argmax() == 2**15 + 8
    assert RECIPE.compact_bytes(cell, Shape(16, 32)) == 2 * 3 * (4 + 4)

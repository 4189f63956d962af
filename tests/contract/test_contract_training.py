"""Every method after training: what may move moves, nothing else does, saved or merged is the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contract_kit import (
    ADAPTING,
    KINDS,
    METHODS,
    SIZED,
    Load,
    Run,
    Trained,
    cell_of,
    frozen_of,
    head_by_hand,
    logits_of,
    made_of_data,
    padded,
    plain_encoder,
    sizes_of,
    tokens,
    train,
    trained_names,
)
from safetensors.torch import load_file
from torch import Tensor

from lora_bench import tasks
from lora_bench.engine import backbone as backbones
from lora_bench.engine import checkpoint
from lora_bench.methods import RECIPES

over_kinds = pytest.mark.parametrize("task", KINDS)
over_methods = pytest.mark.parametrize("method", METHODS)
over_sized = pytest.mark.parametrize("method", SIZED)
over_adapting = pytest.mark.parametrize("method", ADAPTING)


@over_kinds
@over_methods
def test_frozen_values_stay_to_the_bit(method: str, task: str, trained: Trained) -> None:
    run = trained(method, task, "float32")
    after = frozen_of(run.pack)
    assert after.keys() == run.frozen.keys()
    moved = [name for name, value in after.items() if not torch.equal(value, run.frozen[name])]
    assert not moved


@over_kinds
@over_methods
def test_all_that_trains_moves(method: str, task: str, trained: Trained) -> None:
    run = trained(method, task, "float32")
    after, before = run.pack.state(0), run.start[0]
    stuck = [name for name, value in after.head.items() if torch.equal(value, before.head[name])]
    for name, value in after.adapter.items():
        still = value == before.adapter[name]
        idle = bool(still.all()) if run.recipe.trains_backbone else int(still.sum()) > 1  # one may come back by chance
        idle = idle and (run.recipe.trains_backbone or name.rpartition(".")[2] in trained_names(run.cell))
        stuck += [name] if idle and not name.endswith("key.bias") else []  # softmax ignores a shift of all keys
    assert not stuck


@over_adapting
def test_every_weight_has_every_factor_that_cannot_be_made_again(method: str, trained: Trained) -> None:
    run = trained(method, "cola", "float32")
    (group,) = run.pack.bank.groups
    expected = {
        f"{module}.{factor.name}": (factor.rows, factor.cols)
        for family, modules in group.families.items()
        for factor in run.recipe.factors(run.cell, family.shape)
        if factor.saved
        for module in modules
    }
    assert {name: tuple(value.shape) for name, value in run.pack.state(0).adapter.items()} == expected


@over_kinds
@over_methods
def test_saved_and_loaded_is_the_same(method: str, task: str, trained: Trained, folder: Path, tmp_path: Path) -> None:
    run = trained(method, task, "float32")
    checkpoint.save(tmp_path, run.cell, run.task.num_outputs, run.pack.state(0))
    loaded = checkpoint.load(tmp_path, backbones.load(str(folder), torch.device("cpu"), "float32"))
    assert loaded.cells == (run.cell,)
    assert_same_state(run, loaded.state(0).adapter)
    torch.testing.assert_close(logits_of(loaded, run.task), logits_of(run.pack, run.task), rtol=0, atol=1e-7)


def assert_same_state(run: Run, adapter: dict[str, Tensor]) -> None:
    """The adapter is the run's to the bit."""
    own = run.pack.state(0).adapter
    assert adapter.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in adapter.items())


@over_methods
def test_saved_file_holds_only_what_trains(method: str, trained: Trained, tmp_path: Path) -> None:
    run = trained(method, "cola", "float32")
    checkpoint.save(tmp_path, run.cell, run.task.num_outputs, run.pack.state(0))
    file = tmp_path / "adapter.safetensors"
    values = load_file(file) if file.exists() else {}
    own = trained_names(run.cell)
    trained = {name for name in values if run.recipe.trains_backbone or name.rpartition(".")[2] in own}
    assert sum(values[name].numel() for name in trained) == run.pack.adapter_params(0)
    assert checkpoint.adapter_bytes(run.pack.state(0)) == (file.stat().st_size if values else 0)
    frozen = {name for group in run.pack.bank.groups for _, name in group.frozen}
    assert frozen & {name.rsplit(".", 1)[-1] for name in values} == made_of_data(method)


@over_kinds
@over_methods
def test_merged_weights_are_the_same_model(method: str, task: str, trained: Trained, folder: Path) -> None:
    run = trained(method, task, "float32")
    rows = tokens(run.task)
    ids, mask = padded(rows, range(len(rows)))
    with torch.no_grad():
        hidden = merged(run, folder)(input_ids=ids, attention_mask=mask).last_hidden_state
        by_hand = head_by_hand(hidden[:, 0], run.pack.state(0).head)
    ours = logits_of(run.pack, run.task)[0]
    torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-5)
    untrained = plain_encoder(folder)(input_ids=ids, attention_mask=mask).last_hidden_state
    assert method == "head" or (hidden - untrained).abs().max() > 1e-2


@torch.no_grad()
def merged(run: Run, folder: Path) -> torch.nn.Module:
    """The plain encoder with the cell's updates added to its weights (or its weights replaced)."""
    plain = plain_encoder(folder)
    for name, delta in run.pack.deltas(0).items():
        weight = plain.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight += delta
    for name, delta in run.pack.bias_deltas(0).items():
        bias = plain.get_submodule(name).bias
        assert isinstance(bias, Tensor)
        bias += delta
    if run.recipe.trains_backbone:
        unknown = plain.load_state_dict(run.pack.state(0).adapter, strict=False)
        assert not unknown.unexpected_keys
        assert all("pooler" in name for name in unknown.missing_keys)
    return plain


@over_adapting
def test_rank_of_the_update(method: str, trained: Trained) -> None:
    run = trained(method, "cola", "float64")
    assert_ranks(run)


@over_sized
@pytest.mark.parametrize(("rank", "a", "b"), [(1, 7, 6), (5, 2, 6), (5, 7, 3)])
def test_rank_of_the_update_by_its_sizes(method: str, rank: int, a: int, b: int, load: Load) -> None:
    cell = cell_of(method, precision="float64", rank=rank, a=a, b=b)
    run = train([cell], load("float64"), tasks.get("cola"))
    assert_ranks(run)


def assert_ranks(run: Run) -> None:
    """Every ΔW is of at most the stated rank, and of some if it has any."""
    stated, deltas = run.recipe.update_rank(run.cell), run.pack.deltas(0)
    assert deltas
    for name, delta in deltas.items():
        bound = min(delta.shape) if stated is None else stated
        assert delta.dtype == torch.float64
        assert min(1, bound) <= int(torch.linalg.matrix_rank(delta)) <= bound, name
    assert bool(run.pack.bias_deltas(0)) == (run.cell.method in ("bitfit", "ia3"))


@over_methods
def test_same_seed_same_losses(method: str, trained: Trained, load: Load) -> None:
    first = trained(method, "cola", "float32")
    again = train([first.cell], load("float32"), first.task)
    other = train([cell_of(method, seed=1)], load("float32"), first.task)
    assert first.progress[0].losses == again.progress[0].losses
    assert_same_state(first, again.pack.state(0).adapter)
    assert all(one != two for one, two in zip(first.progress[0].losses, other.progress[0].losses, strict=True))


@over_sized
def test_padding_is_trimmed_from_the_state(method: str, load: Load) -> None:
    run = train(sizes_of(method), load("float32"), tasks.get("cola"))
    for place, cell in enumerate(run.pack.cells):
        (group,) = [group for group in run.pack.bank.groups if place in group.places]
        state = run.pack.state(place).adapter
        for family, modules in group.families.items():
            for factor in RECIPES[method].factors(cell, family.shape):
                found = {tuple(state[f"{m}.{factor.name}"].shape) for m in modules} if factor.saved else set()
                assert found <= {(factor.rows, factor.cols)}


@pytest.mark.parametrize("method", [m for m in SIZED if len({RECIPES[m].layout(c) for c in sizes_of(m)}) == 1])
def test_padding_holds_exact_zeros_after_training(method: str, load: Load) -> None:
    cells = sizes_of(method)
    (group,) = train(cells, load("float32"), tasks.get("cola")).pack.bank.groups
    small = sum(RECIPES[method].trainable(cells[0], f.shape) * len(names) for f, names in group.families.items())
    assert int(group.block.matrix[0].count_nonzero()) == small < group.block.matrix.shape[1]


@over_adapting
def test_a_small_cell_is_loaded_among_larger_ones(method: str, trained: Trained, load: Load) -> None:
    run = trained(method, "cola", "float32")
    cells = [cell_of(method, rank=6, a=9, b=8), cell_of("head"), run.cell]
    mixed = type(run.pack)(cells, load("float32"), run.task.num_outputs)
    before = mixed.state(0).adapter
    place = max(k for k, cell in enumerate(mixed.cells) if cell == run.cell)  # without sizes, the first is alike
    mixed.load(place, run.pack.state(0))
    assert_same_state(run, mixed.state(place).adapter)
    assert all(torch.equal(value, before[name]) for name, value in mixed.state(0).adapter.items())
    alone, among = logits_of(run.pack, run.task)[0], logits_of(mixed, run.task)[place]
    torch.testing.assert_close(among, alone, rtol=1e-5, atol=1e-5)

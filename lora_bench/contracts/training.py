"""The contracts of a trained method: only what should move has moved, and saved or merged it is the same model."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_bench import tasks
from lora_bench.contracts.kit import (
    KINDS,
    ROWS,
    Run,
    Workbench,
    alike,
    cell_of,
    frozen_of,
    head_by_hand,
    logits_of,
    padded,
    plain_encoder,
    require,
    sparse_names,
    tokens,
    train,
    trained_names,
)
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.targets import KEY
from lora_bench.methods.rules import Step

# Singular values below this part of the largest one count as zero when the rank of a float64 matrix is computed.
# Rounding is far below it, and what training adds is far above.
RANK_TOLERANCE = 1e-10
SMALLEST_CHANGE = 1e-5  # of a hidden state by training: ten times the rounding of float32


def what_is_frozen_stays(method: str, bench: Workbench) -> None:
    """the encoder and the frozen factors stay to the bit"""
    for task in KINDS:
        run = bench.trained(method, task, "float32")
        moved = [name for name, value in frozen_of(run.pack).items() if not torch.equal(value, run.frozen[name])]
        require(not moved, f"{task}: {', '.join(moved)} moved")


def what_trains_moves(method: str, bench: Workbench) -> None:
    """every trained value moves"""
    for task in KINDS:
        run = bench.trained(method, task, "float32")
        after, before = run.pack.state(0), run.start[0]
        stuck = [name for name, value in after.head.items() if torch.equal(value, before.head[name])]
        for name, value in after.adapter.items():
            module, _, part = name.rpartition(".")
            if not run.recipe.trains_backbone and part not in trained_names(run.cell):
                continue
            if run.pack.whole is not None and not run.pack.whole.trains(name):
                continue
            still = value == before.adapter[name]
            # One value may return to its start by chance, and a rank schedule may return a gate to it.
            may_stay = run.recipe.trains_backbone or part == run.recipe.gate or part in sparse_names(run.cell)
            idle = bool(still.all()) if may_stay else int(still.sum()) > 1
            is_key_bias = part == "bias" and module.rpartition(".")[2] in KEY  # softmax ignores a shift of all keys
            stuck += [name] if idle and not is_key_bias else []
        require(not stuck, f"{task}: {', '.join(stuck)} stayed, at least in part")


def it_comes_back_as_it_was_saved(method: str, bench: Workbench) -> None:
    """saved and loaded it is the same to the bit, but for what the method does not store"""
    for task in KINDS:
        run, folder = bench.trained(method, task, "float32"), bench.new_folder()
        saved.save(folder, run.cell, run.task.num_outputs, run.pack.state(0))
        loaded = saved.load(folder, bench.load("float32"))
        require(loaded.cells == (run.cell,), "another cell came back")
        expected = saved.restored(run.cell, saved.compacted(run.cell, run.pack.state(0).adapter))
        _same_values(loaded.state(0).adapter, expected)
        alike(logits_of(loaded, run.task), logits_of(run.pack, run.task), 1e-5, f"{task}: a logit of what was loaded")


def another_task_continues_from_it(method: str, bench: Workbench) -> None:
    """a cell of another task that continues from it begins with its adapter to the bit, and with the same change"""
    run = bench.trained(method, KINDS[0], "float32")
    earlier = run.pack.state(0)
    for task in KINDS[1:]:
        pack = Pack([cell_of(method, task)], bench.load("float32"), tasks.get(task).num_outputs)
        drawn = pack.state(0).head
        pack.continue_from(0, earlier)
        _same_state(run, pack.state(0).adapter)
        expected, changes = run.pack.deltas(0), pack.deltas(0)
        require(changes.keys() == expected.keys(), f"{task}: other weights change")
        for name, change in changes.items():
            alike(change, expected[name], 1e-6, f"{task}: the change of {name}")
        for name, value in pack.state(0).head.items():
            source = drawn if pack.heads.is_output(name) else earlier.head
            require(torch.equal(value, source[name]), f"{task}: the head's {name} has other values")


def _same_state(run: Run, adapter: dict[str, Tensor]) -> None:
    """Require that the adapter is the run's to the bit."""
    _same_values(adapter, run.pack.state(0).adapter)


def _same_values(adapter: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    require(adapter.keys() == expected.keys(), "other factors came back")
    changed = [name for name, value in adapter.items() if not torch.equal(value, expected[name])]
    require(not changed, f"{', '.join(changed)} came back with other values")


def its_file_holds_what_trains_alone(method: str, bench: Workbench) -> None:
    """a saved adapter holds no frozen value that can be computed again"""
    run, folder = bench.trained(method, "cola", "float32"), bench.new_folder()
    saved.save(folder, run.cell, run.task.num_outputs, run.pack.state(0))
    file = folder / "adapter.safetensors"
    values = load_file(file) if file.exists() else {}
    written = file.stat().st_size if values else 0
    state = run.pack.state(0).adapter
    require(saved.stored_bytes(saved.compacted(run.cell, state)) == written, "the reported size is not the file's")
    if run.recipe.trains_backbone:
        return
    shapes = [family.shape for group in run.pack.bank.groups for family in group.families]
    factors = {f.name: f for shape in shapes for f in run.recipe.factors(run.cell, shape)}
    values = saved.restored(run.cell, values)
    stored = {name.rsplit(".", 1)[-1] for name in values}
    require(stored == {name for name, factor in factors.items() if factor.saved}, f"the file holds {sorted(stored)}")
    count = sum(value.numel() for name, value in values.items() if name.rsplit(".", 1)[-1] in trained_names(run.cell))
    trained = run.pack.adapter_params(0)
    require(count == trained, f"the file holds {count} trained values, {trained} train: what is shared is stored once")


def merged_it_is_the_same_model(method: str, bench: Workbench) -> None:
    """its change added to the plain encoder's weights gives its logits"""
    for task in KINDS:
        run = bench.trained(method, task, "float32")
        rows = tokens(run.task)
        ids, mask = padded(rows, range(len(rows)))
        with torch.no_grad():
            hidden = merged_encoder(run, bench)(input_ids=ids, attention_mask=mask).last_hidden_state
            by_hand = head_by_hand(hidden[:, 0], run.pack.state(0).head)
            plain = plain_encoder(bench.folder)(input_ids=ids, attention_mask=mask).last_hidden_state
        change = float((hidden - plain).abs().max()) if run.recipe.adapts or run.recipe.trains_backbone else 1.0
        require(change > SMALLEST_CHANGE, f"{task}: training changed nothing")
        # A tenth of the change, where that is small: else a merged model without it would pass.
        tolerance = min(1e-5, change / 10)
        alike(by_hand, logits_of(run.pack, run.task)[0], tolerance, f"{task}: a logit of the merged model")


@torch.no_grad()
def merged_encoder(run: Run, bench: Workbench) -> nn.Module:
    """Return the plain encoder with the cell's updates added to its weights (or its weights replaced)."""
    plain = plain_encoder(bench.folder)
    values = dict(plain.named_parameters())
    for name, delta in run.pack.deltas(0).items():
        values[f"{name}.weight"].add_(delta)
    for name, delta in run.pack.bias_deltas(0).items():
        values[f"{name}.bias"].add_(delta)
    if run.recipe.trains_backbone:
        unknown = plain.load_state_dict(run.pack.state(0).adapter, strict=False)
        require(all("pooler" in name for name in unknown.missing_keys), "not every parameter was saved")
    return plain


def its_change_has_the_rank_it_states(method: str, bench: Workbench) -> None:
    """the rank of what it adds to a weight is at most `update_rank`"""
    runs = [bench.trained(method, "cola", "float64")]
    for rank, a, b in ((1, 7, 6), (5, 2, 6), (5, 7, 3)):
        cell = cell_of(method, precision="float64", rank=rank, a=a, b=b)
        if cell != runs[0].cell:
            runs.append(train([cell], bench.load("float64"), runs[0].task))
    for run in runs:
        for name, delta in run.pack.deltas(0).items():
            stated = run.recipe.update_rank(run.cell)
            bound = min(delta.shape) if stated is None else stated
            rank_measured = int(torch.linalg.matrix_rank(delta, rtol=RANK_TOLERANCE))
            least = 0 if run.recipe.gate else min(1, bound)  # a rank schedule may leave a weight nothing
            require(least <= rank_measured <= bound, f"{name}: rank {rank_measured}, stated {bound}")


def its_schedule_ends_with_its_budget(method: str, bench: Workbench) -> None:
    """a rank schedule leaves as many entries of the gate as it states, and those alone"""
    run = bench.trained(method, "cola", "float64")
    recipe, gate = run.recipe, run.recipe.gate
    if not gate or not recipe.memory:
        return
    gates = [value for name, value in run.pack.state(0).adapter.items() if name.rpartition(".")[2] == gate]
    require(bool(gates), f"there is no factor {gate}")
    entries, steps = sum(value.numel() for value in gates), len(run.progress[0].losses)
    zeros = sum(int((value == 0).sum()) for value in gates)
    stated = recipe.cut(run.cell, Step(steps, steps, ROWS), entries)
    require(0 < stated < entries, f"{stated} of {entries} entries are cut in the end")
    require(zeros == stated, f"{zeros} entries of {gate} are zero, stated {stated}")


def the_same_seed_gives_the_same(method: str, bench: Workbench) -> None:
    """the same seed gives the same losses, another seed others"""
    first = bench.trained(method, "cola", "float32")
    again = train([first.cell], bench.load("float32"), first.task)
    other = train([cell_of(method, seed=1)], bench.load("float32"), first.task)
    require(first.progress[0].losses == again.progress[0].losses, "the same seed gave other losses")
    _same_state(first, again.pack.state(0).adapter)
    pairs = zip(first.progress[0].losses, other.progress[0].losses, strict=True)
    require(all(one != two for one, two in pairs), "another seed gave the same losses")

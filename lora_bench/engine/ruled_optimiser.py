"""AdamW for whole encoders whose weights train by a rule: projected gradients, or some layers at a time.

A pack of one. The moments of a projected gradient lie at the beginning of the range of columns that its weight has in
the matrices of moments. So they take as much memory as those of full fine-tuning, and checkpoints hold them as they
hold any other moments. The head trains as in every pack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import layer_outliers, randomness
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.adapters.whole import WholeBackbone, decays
from lora_bench.engine.block import Block, ByRow
from lora_bench.engine.encoder.targets import layer_of
from lora_bench.engine.encoder.windows import Batch
from lora_bench.engine.optimiser import BETA1, BETA2, CLIP_EPSILON, PackedAdamW
from lora_bench.methods.rules import LayerDraws

# The share that a layer without outliers counts as: far below any real one, so that it is drawn only when no other is
# left (chosen; its logarithm must be finite).
SMALLEST_SHARE = 1e-9


class _Entries(NamedTuple):
    """What a step does to each entry of the matrix `[1, values]`.

    Attributes:
        trained: Whether it belongs to a parameter that trains.
        updated: Whether Adam's moments of this entry are updated. A projected weight has moments of its projected
            gradient alone, in the first of its entries.
        decay: The weight decay; 0 where it does not apply.
    """

    trained: Tensor
    updated: Tensor
    decay: Tensor


class RuledAdamW(PackedAdamW):
    """The optimiser of a cell whose encoder trains by a rule.

    Args:
        blocks: The encoder's parameters and the head.
        cells: The cell.
        total_steps: The number of steps of the whole training.
        whole: The encoder's parameters.
        shares: Returns the share of outliers of each layer above a threshold.

    Attributes:
        bases: P of each projected weight by its name, as rows `[rank, in]` or columns `[out, rank]`.
        steps_trained: In how many steps each parameter has trained: Adam's bias corrections and the gap count these.
        layers: The names of the encoder's layers, in its order.
        weights_of_layers: The logarithm of the weight with which each layer is drawn, `[layers]`.
    """

    is_recordable = False

    def __init__(
        self,
        blocks: Sequence[Block],
        cells: Sequence[Cell],
        total_steps: int,
        whole: WholeBackbone,
        shares: Callable[[float], Mapping[str, float]],
    ) -> None:
        super().__init__(blocks, cells, total_steps)
        if whole.rule is None:
            raise ValueError("the encoder trains by no rule")
        self.whole, self.rule, self.seed = whole, whole.rule, cells[0].seed
        self.weight_decay, self.clip = cells[0].weight_decay, cells[0].clip
        self.bases: dict[str, Tensor] = {}
        self.steps_trained = dict.fromkeys(whole.shapes, 0)
        self.layers = list(dict.fromkeys(layer for name in whole.shapes if (layer := layer_of(name))))
        self._entries: tuple[tuple[str, ...], _Entries] | None = None
        self.weights_of_layers = _log_weights(self.rule.layers, self.layers, shares)

    def active_layers(self, step: int) -> frozenset[str]:
        """The layers that train at a step (from 0): a function of the seed and the number of the interval.

        They are drawn without replacement by the Gumbel top-k trick: those with the largest log weight + Gumbel noise.
        """
        draws = self.rule.layers
        if draws is None:
            return frozenset(self.layers)
        uniform = (randomness.uniform(1, len(self.layers), self.seed, "layers", step // draws.interval)[0] + 1) / 2
        keys = self.weights_of_layers - np.log(-np.log(uniform))
        return frozenset(self.layers[index] for index in np.argsort(-keys, kind="stable")[: draws.count])

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], losses: Tensor) -> Tensor:
        """Take one step; see `PackedAdamW.step`."""
        head_norm = torch.linalg.vector_norm(gradients[1])
        finite = torch.isfinite(losses).all() & torch.isfinite(gradients[0]).all() & torch.isfinite(head_norm)
        self.active.logical_and_(finite)
        # Here the host waits for the device, once a step: what follows depends on both numbers.
        step, is_active = torch.cat([self.count, self.active.long()]).tolist()
        by_name = self.whole.weights(gradients[0])
        layers = self.active_layers(step)
        names = [name for name in by_name if self.whole.trains(name) and layer_of(name) in {None, *layers}]
        renewed = is_active and self._renew_bases({name: by_name[name] for name in names}, step)
        entries = self._entries_of(names)
        seen = torch.where(entries.updated, gradients[0], 0)
        for name, low in self._slots(seen, names).items():
            low.copy_(self._project(name, by_name[name]))
        measured = seen if self._is_factor else torch.where(entries.trained, gradients[0], 0)
        norm = torch.stack([head_norm, torch.linalg.vector_norm(measured)]).square().sum().sqrt()
        self.count += 1
        self.steps_taken += self.active
        if is_active and not (self._is_factor and renewed):
            clip = (self.clip / (norm + CLIP_EPSILON)).clamp(max=1) if self.clip else torch.ones_like(norm)
            self._step_weights(seen * clip, names, entries, step)
            self._step_head(gradients[1], clip, step)
        return norm[None]

    @property
    def _is_factor(self) -> bool:
        return self.rule.projection is not None and self.rule.projection.is_factor

    def _renew_bases(self, gradients: Mapping[str, Tensor], step: int) -> bool:
        """Compute P of each weight for which that is due at a step (from 0); return whether there was any."""
        projection = self.rule.projection
        if projection is None:
            return False
        # For a factor, batches that give a P count as well, though they make no step.
        counts = dict.fromkeys(gradients, step) if projection.is_factor else self.steps_trained
        due = [
            name
            for name in gradients
            if name in self.whole.linears and (name not in self.bases or counts[name] % projection.gap == 0)
        ]
        for name in due:
            left, _, right = torch.linalg.svd(gradients[name], full_matrices=False)
            out, inputs = gradients[name].shape
            # `contiguous`, so that a checkpoint does not hold all directions.
            part = right[: projection.rank] if out >= inputs else left[:, : projection.rank]
            self.bases[name] = part.contiguous()
        return bool(due)

    def _project(self, name: str, gradient: Tensor) -> Tensor:
        """The projection of a weight's gradient, for Adam: `G Pᵀ` or `Pᵀ G`, for a factor that of B."""
        basis, (out, inputs) = self.bases[name], gradient.shape
        low = gradient @ basis.mT if out >= inputs else basis.mT @ gradient
        return low * self.rule.projection.scale if self._is_factor and self.rule.projection else low

    def _low_shape(self, name: str) -> tuple[int, int]:
        """The shape of a projected weight's gradient: `[out, rank]` or `[rank, in]`."""
        out, inputs = self.whole.shapes[name]
        return (out, len(self.bases[name])) if out >= inputs else (self.bases[name].shape[1], inputs)

    def _slots(self, matrix: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The entries for projected gradients in a tensor of the matrix's shape, by weight, as views."""
        values = self.whole.weights(matrix)
        shapes = {name: self._low_shape(name) for name in names if name in self.bases}
        return {name: values[name].flatten()[: math.prod(shape)].view(shape) for name, shape in shapes.items()}

    def _entries_of(self, names: Sequence[str]) -> _Entries:
        """What a step on these parameters does to each entry of the matrix; cached until other parameters train."""
        key = tuple(names)
        if self._entries is None or self._entries[0] != key:
            trained = torch.zeros_like(self.blocks[0].matrix, dtype=torch.bool)
            updated = trained.clone()
            decay = torch.zeros_like(self.blocks[0].matrix)
            parts = [self.whole.weights(tensor) for tensor in (trained, updated, decay)]
            slots = self._slots(updated, names)
            for name in names:
                parts[0][name].fill_(True)
                slots.get(name, parts[1][name]).fill_(True)
                decays_too = decays(name, parts[2][name]) and not (self._is_factor and name in self.bases)
                parts[2][name].fill_(self.weight_decay if decays_too else 0.0)
            self._entries = key, _Entries(trained, updated, decay)
        return self._entries[1]

    def _step_weights(self, gradient: Tensor, names: Sequence[str], entries: _Entries, step: int) -> None:
        """Adam on these parameters, each with its own count of steps; then weight decay.

        All of them at once, as one kernel for each parameter and operation would take longer than the rest of the step.
        """
        for name in names:
            self.steps_trained[name] += 1
        counts = [max(self.steps_trained[name], 1) for name in self.whole.shapes]
        corrections = [self._by_entry([1 - beta**count for count in counts]) for beta in (BETA1, BETA2)]
        first, second, matrix = self.first[0], self.second[0], self.blocks[0].matrix.detach()
        first.lerp_(gradient, torch.where(entries.updated, 1 - BETA1, torch.zeros_like(first)))
        second.mul_(torch.where(entries.updated, BETA2, torch.ones_like(second)))
        second.addcmul_(gradient, gradient, value=1 - BETA2)  # zero where nothing is updated
        # If `is_early`, Adam divides by (√v + ε) / √c, with the bias correction c, instead of √(v / c) + ε.
        root = (second / corrections[1]).sqrt_()
        root += self.rule.epsilon / corrections[1].sqrt() if self.rule.is_early else self.rule.epsilon
        change = torch.where(entries.updated, first / corrections[0] / root, 0)
        by_name = self.whole.weights(change)
        for name, low in self._slots(change, names).items():
            by_name[name].copy_(self._project_back(name, low))
        (lr,) = self.lr_multipliers[step] * self.blocks[0].lrs
        matrix.sub_(lr * change)
        if self.weight_decay:  # after the step, as in GaLoreAdamW
            matrix.sub_(lr * entries.decay * matrix)

    def _by_entry(self, values: Sequence[float]) -> Tensor:
        """`[1, values]` from one number a parameter. Neighbours mostly have the same one: each run is one fill."""
        filled, start = torch.empty_like(self.blocks[0].matrix), 0
        for value, run in itertools.groupby(zip(values, self.whole.sizes, strict=True), itemgetter(0)):
            end = start + sum(size for _, size in run)
            filled[:, start:end] = value
            start = end
        return filled

    def _project_back(self, name: str, low: Tensor) -> Tensor:
        """Project a change back to the shape of the weight."""
        basis, (out, inputs) = self.bases[name], self.whole.shapes[name]
        scale = 1.0 if self.rule.projection is None else self.rule.projection.scale
        return (low @ basis if out >= inputs else basis @ low) * scale

    def _step_head(self, gradient: Tensor, clip: Tensor, step: int) -> None:
        block = self.blocks[1]
        by_row = ByRow(self.lr_multipliers[step] * block.lrs, self.decay, clip[None], self.active)
        corrections = 1 - BETA1 ** self._head_steps(step), 1 - BETA2 ** self._head_steps(step)
        as_tensor = self.corrections.new_tensor(corrections)
        self._update(block, gradient, (self.first[1], self.second[1]), by_row, as_tensor)

    def _head_steps(self, step: int) -> int:
        """How many steps the head has taken with this one: all batches so far but those that only gave a P."""
        projection = self.rule.projection
        return step + 1 - (step // projection.gap + 1 if projection is not None and projection.is_factor else 0)

    def memory(self) -> dict[str, Tensor]:
        """P of each weight (`basis.<name>`), and the number of steps in which each parameter has trained (`taken`)."""
        bases = {f"basis.{name}": value.cpu() for name, value in self.bases.items()}
        return {**bases, "taken": torch.tensor([self.steps_trained[name] for name in self.whole.shapes])}

    def load_memory(self, memory: Mapping[str, Tensor]) -> None:
        """Restore what `memory` has returned."""
        matrix, self._entries = self.blocks[0].matrix, None
        self.steps_trained = dict(zip(self.whole.shapes, memory["taken"].tolist(), strict=True))
        self.bases = {
            name.removeprefix("basis."): value.to(matrix) for name, value in memory.items() if name != "taken"
        }


def optimiser_of(pack: Pack, total_steps: int, batches: Callable[[], Iterable[Batch]]) -> PackedAdamW:
    """The optimiser of a pack.

    Args:
        pack: The pack, at its start.
        total_steps: The number of steps of the whole training.
        batches: Returns the batches of the first epoch: rules that draw layers by their outliers measure the first.
    """
    whole = pack.whole
    if whole is None or whole.rule is None:
        return PackedAdamW(pack.blocks(), pack.cells, total_steps)

    def shares(threshold: float) -> dict[str, float]:
        count = -(-layer_outliers.ROWS // pack.cells[0].batch_size)
        return layer_outliers.shares(pack.backbone, itertools.islice(batches(), count), threshold)

    return RuledAdamW(pack.blocks(), pack.cells, total_steps, whole, shares)


def _log_weights(
    draws: LayerDraws | None, layers: Sequence[str], shares: Callable[[float], Mapping[str, float]]
) -> np.ndarray:
    if draws is None or draws.outliers is None:
        return np.zeros(len(layers))
    by_layer = shares(draws.outliers)
    return np.log([max(by_layer.get(layer, 0.0), SMALLEST_SHARE) for layer in layers])

"""A transformers model with the adapter of any method, for a training loop of one's own.

The adapter is a pack of one over the model's own forward: the same recipe, the same start for the same seed and the
same saved files as in the benchmark. What lies outside of the encoder (`model.base_model`), a classification head
above all, is left as it is: it trains, and is saved beside the adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.group import StackedFactor, targets_of
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.families import Family, by_shape
from lora_bench.errors import BenchError, unknown
from lora_bench.methods.recipe import FirstStep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lora_bench.engine.encoder.backbone import Backbone

OWN = "own"  # the data and task of a cell that the benchmark did not train


class Host:
    """An untouched encoder as a pack sees a `Backbone`: its linears by name, as the benchmark's draws know them."""

    fused = None
    hidden_size = 1  # of the pack's own head, which is not used

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.bases: dict[tuple[str, str], tuple[Tensor, ...]] = {}
        first = next(iter(self.linears().values()), None)
        if first is None:
            raise BenchError(f"{type(model).__name__} has no linear layer.", "Adapt a model that has some.")
        self.device, self.dtype = first.weight.device, first.weight.dtype
        self.exact = torch.promote_types(self.dtype, torch.float32)

    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers by name."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, nn.Linear)}

    def families(self, wanted: Collection[str]) -> list[Family]:
        """The wanted weights of each shape."""
        return by_shape(self.linears(), wanted)


class AdaptedModel(nn.Module):
    """`model` with an adapter. Of the encoder nothing trains but the method's own factors.

    `model` itself is changed: its encoder is frozen and its linears have hooks, until `merge` takes both away.
    `factors` holds the trained factors, `[1, weights, rows, cols]` for all weights of one shape.
    """

    def __init__(self, model: nn.Module, cell: Cell) -> None:
        super().__init__()
        if methods.get(cell.method).trains_backbone:
            raise BenchError(f"'{cell.method}' adapts nothing: it trains the whole model.", "Train the model as it is.")
        self.model, self.cell = model, cell
        pack = self._made_pack()  # before the model is changed: it may refuse the cell
        self._grad = {name: value.requires_grad for name, value in self.encoder.named_parameters()}
        self.encoder.requires_grad_(False)
        self._pack = pack.__enter__()
        self.factors = nn.ParameterDict(dict(self._starts()))
        self._hook = self.encoder.register_forward_pre_hook(lambda *_: self._compose())

    @property
    def encoder(self) -> nn.Module:
        """The part that is adapted: transformers' `base_model`, or the model itself."""
        return _encoder_of(self.model)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The model's own forward."""
        return self.model(*inputs, **named)

    def parameter_groups(self, lr: float, head_lr: float | None = None) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser, as the benchmark trains them.

        What weight decay does not apply to has `weight_decay: 0.0`: a factor whose method says so (BitFit's biases),
        and of the head all vectors (biases, norms). Whatever else has no `weight_decay` and takes the optimiser's.

        Args:
            lr: The rate of the factors, times the method's own multiples of it (LoRA+).
            head_lr: The rate of what trains outside of the encoder; `lr` unless given.

        Returns:
            A group a factor, then the head's matrices and the head's vectors, where there are some.
        """
        stacks = {_key(stack.name, stack.family): stack for stack in self._stacks()}
        groups = [
            _group([value], lr * stacks[name].lr_multiplier, stacks[name].decays)
            for name, value in self.factors.items()
        ]
        head = [value for value in self._outside().values() if value.requires_grad]
        for decays in (True, False):
            own = [value for value in head if (value.ndim > 1) == decays]
            groups += [_group(own, lr if head_lr is None else head_lr, decays)] if own else []
        return groups

    @torch.no_grad()
    def save(self, folder: str | Path) -> None:
        """Write the trained factors, the settings with the seed, and what trains outside of the encoder."""
        head = {name: value.detach().cpu().clone() for name, value in self._outside().items() if value.requires_grad}
        outputs = int(getattr(getattr(self.model, "config", None), "num_labels", 1))
        saved.save(Path(folder), self.cell, outputs, State(self._state(), head))

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The plain model with the adapter in its weights, in place; this object is of no more use."""
        self._compose()
        linears = {name: module for name, module in self.encoder.named_modules() if isinstance(module, nn.Linear)}
        changes = [(linears[name].weight, delta) for name, delta in self._pack.deltas(0).items()]
        changes += [(linears[name].bias, delta) for name, delta in self._pack.bias_deltas(0).items()]
        self._pack.__exit__(None, None, None)
        self._hook.remove()
        for value, delta in changes:
            value.copy_(value.double() + delta.double())
        for name, value in self.encoder.named_parameters():
            value.requires_grad_(self._grad[name])
        return self.model

    @torch.no_grad()
    def put(self, state: State) -> None:
        """Put a saved state in the place of the present one.

        Raises:
            BenchError: the saved head is not that of this model.
        """
        for group in self._pack.bank.groups:
            group.load(0, state.adapter, group.block.matrix.detach())
        for name, start in self._starts():
            self.factors[name].copy_(start)
        outside = self._outside()
        head = {name if name in outside else f"classifier.{name}": value for name, value in state.head.items()}
        if not outside:
            return
        if any(name not in outside or outside[name].shape != value.shape for name, value in head.items()):
            raise BenchError(
                "The saved head is not that of this model.", "Load it over the kind of model it was made with."
            )
        for name, value in head.items():
            outside[name].copy_(value)

    def _made_pack(self) -> Pack:
        return Pack([self.cell], cast("Backbone", Host(self.encoder)), 1)

    def _stacks(self) -> list[StackedFactor]:
        return [stack for group in self._pack.bank.groups for stack in group.trained]

    def _starts(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained factors as they are in the pack."""
        for group in self._pack.bank.groups:
            values = group.factors(group.block.matrix.detach())
            for stack in group.trained:
                yield _key(stack.name, stack.family), nn.Parameter(values[stack.family][stack.name].clone())

    def _gather(self) -> None:
        """Hand the factors to the pack."""
        for group in self._pack.bank.groups:
            own = [self.factors[_key(stack.name, stack.family)].flatten(1) for stack in group.trained]
            group.block.matrix = torch.cat(own, dim=1)

    def _compose(self) -> None:
        self._gather()
        self._pack.compose()

    def _state(self) -> dict[str, Tensor]:
        self._gather()
        return self._pack.state(0).adapter

    def _outside(self) -> dict[str, nn.Parameter]:
        """The model's parameters outside of the encoder."""
        within = {id(value) for value in self.encoder.parameters()}
        return {name: value for name, value in self.model.named_parameters() if id(value) not in within}

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptedModel:
        """Moved or cast: what is frozen of the adapter is made again beside the weights."""
        with torch.no_grad():
            state = self._state()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._pack.__exit__(None, None, None)
        self._pack = self._made_pack().__enter__()
        for group in self._pack.bank.groups:
            group.load(0, state, group.block.matrix.detach())
        return self


def get_adapted_model(
    model: PreTrainedModel | nn.Module, method: str = "mini", *, seed: int = 0, **settings: Any
) -> AdaptedModel:
    """Adapt `model` in place. `settings` are the method's: rank, a, b, alpha, init, targets (see `lora-bench list`).

    Raises:
        BenchError: no such method or setting, targets that the model lacks, or a start that needs data (LoRA-SB).
    """
    recipe = methods.get(method)
    for name in settings:
        if name not in recipe.parameters:
            raise unknown(f"setting of {method}", name, recipe.parameters)
    name = str(getattr(model, "name_or_path", "")) or type(model).__name__
    label = Path(name).name if Path(name).is_dir() else name
    given: dict[str, Any] = {**recipe.defaults, **settings, "lr": recipe.default_lr, "seed": seed}
    try:
        cell = Cell(model=label, data=OWN, task=OWN, method=method, origin=methods.origin(method), **given)
    except ValidationError as error:
        first = error.errors()[0]
        raise BenchError(f"{first['loc'][0]}: {first['input']!r} is not allowed.", f"{first['msg']}.") from None
    if _starts_from_data(model, cell):
        raise BenchError(
            f"'{method}' starts from a gradient of the benchmark's data.", "Train it with `lora-bench run`."
        )
    return AdaptedModel(model, cell)


def load_adapted_model(model: PreTrainedModel | nn.Module, folder: str | Path) -> AdaptedModel:
    """Adapt `model` as it was when `folder` was saved: by `AdaptedModel.save`, or by a run of the benchmark.

    A benchmark's head goes to `model.classifier`, where that is RoBERTa's; a model without a head takes the adapter.

    Raises:
        BenchError: the folder holds no whole adapter, or it does not fit the model.
    """
    cell, _, state = saved.read(Path(folder))
    adapted = AdaptedModel(model, cell)
    adapted.put(state)
    return adapted


def _encoder_of(model: nn.Module) -> nn.Module:
    found: nn.Module = getattr(model, "base_model", model)
    return found


def _starts_from_data(model: nn.Module, cell: Cell) -> bool:
    """Whether a factor of the cell, on the weights that this model has, starts from a gradient."""
    recipe = methods.get(cell.method)
    if not recipe.adapts:
        return False
    host = Host(_encoder_of(model))
    shapes = {family.shape for family in host.families(targets_of(cell, cast("Backbone", host)))}
    return any(isinstance(factor.start, FirstStep) for shape in shapes for factor in recipe.factors(cell, shape))


def _group(params: list[nn.Parameter], lr: float, decays: bool) -> dict[str, Any]:
    """A torch optimiser's parameter group."""
    return {"params": params, "lr": lr} | ({} if decays else {"weight_decay": 0.0})


def _key(factor: str, family: Family) -> str:
    return f"{factor}_{family.name}"

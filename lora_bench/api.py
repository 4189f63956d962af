"""The Python API: a transformers model with the adapter of any method, for your own training loop.

The adapter is a pack of one cell over the model's own forward pass. It has the same recipe, the same start for the same
seed and the same saved files as in the benchmark. Modules outside of the encoder (`model.base_model`), such as a
classification head, are left as they are: they train, and are saved beside the adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lora_bench import methods
from lora_bench.cell import Cell, Head
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.group import StackedFactor, targets_of
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder import head_forms
from lora_bench.engine.encoder.families import Family, by_shape
from lora_bench.errors import BenchError, unknown
from lora_bench.methods.recipe import FirstStep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lora_bench.engine.encoder.backbone import Backbone

OWN = "own"  # the data and the task of a cell that the user's own loop trains; a part of the cell's id


class Host:
    """An unchanged encoder with the interface of a `Backbone` that a pack needs.

    Its linear layers have the same names as in the benchmark: random factors are drawn for these names.
    """

    fused = None
    # For the head that a pack creates, which is not used here.
    hidden_size = 1
    config = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.bases: dict[tuple[str, str], tuple[Tensor, ...]] = {}
        first = next(iter(self.linears().values()), None)
        if first is None:
            raise BenchError(f"{type(model).__name__} has no linear layer.", "Adapt a model that has linear layers.")
        self.device, self.dtype = first.weight.device, first.weight.dtype
        self.exact = torch.promote_types(self.dtype, torch.float32)

    def linears(self) -> dict[str, nn.Linear]:
        """Return the linear layers by name."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, nn.Linear)}

    def families(self, names: Collection[str]) -> list[Family]:
        """Return the weights of the named layers, grouped by shape."""
        return by_shape(self.linears(), names)


class AdaptedModel(nn.Module):
    """A model with an adapter: of the encoder, only the method's factors train.

    `model` itself is changed: its encoder is frozen and its linear layers have hooks, until `merge` undoes both.

    Attributes:
        model: The model that was adapted.
        cell: The settings of the adapter.
        factors: The trained factors, `[1, weights, rows, cols]` for all weights of one shape; `[1, 1, rows, cols]` for
            one that the weights share.
    """

    def __init__(self, model: nn.Module, cell: Cell) -> None:
        super().__init__()
        if methods.of(cell).trains_backbone:
            raise BenchError(f"'{cell.method}' adapts nothing: it trains the whole model.", "Train the model as it is.")
        self.model, self.cell = model, cell
        pack = self._create_pack()  # before the model is changed, as it may refuse the cell
        self._required_grad = {name: value.requires_grad for name, value in self.encoder.named_parameters()}
        self.encoder.requires_grad_(False)
        for value in self._pooler().values():
            value.requires_grad_(True)
        self._pack = pack.__enter__()
        self.factors = nn.ParameterDict(dict(self._pack_factors()))
        self._hook = self.encoder.register_forward_pre_hook(lambda *_: self._compose())

    @property
    def encoder(self) -> nn.Module:
        """The part that is adapted: transformers' `base_model`, or the model itself if it has none."""
        return _encoder_of(self.model)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the model's own forward pass with the adapter."""
        return self.model(*inputs, **named)

    def parameter_groups(self, lr: float, head_lr: float | None = None) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimiser, with the rates and the weight decay of the benchmark.

        Groups without weight decay have `weight_decay: 0.0`: factors for which the method says so (BitFit's biases) and
        the vectors of the head (biases, norms). The other groups take the optimiser's `weight_decay`.

        Args:
            lr: The learning rate of the factors; a method may multiply it for some of them (LoRA+).
            head_lr: The learning rate of the parameters outside of the encoder (default: `lr`).

        Returns:
            One group for each factor, then one for the head's matrices and one for its vectors, if it has any.
        """
        stacks = {_key(stack): stack for stack in self._stacks()}
        groups = [
            _group([value], lr * stacks[name].lr_multiplier, stacks[name].decays)
            for name, value in self.factors.items()
        ]
        head = [value for value in self._outside().values() if value.requires_grad]
        for decays in (True, False):
            params = [value for value in head if (value.ndim > 1) == decays]
            groups += [_group(params, lr if head_lr is None else head_lr, decays)] if params else []
        return groups

    @torch.no_grad()
    def save(self, folder: str | Path) -> None:
        """Write the trained factors, the settings with the seed, and the trained parameters outside of the encoder."""
        head = {name: value.detach().cpu().clone() for name, value in self._outside().items() if value.requires_grad}
        outputs = int(getattr(getattr(self.model, "config", None), "num_labels", 1))
        saved.save(Path(folder), self.cell, outputs, State(self._state(), head))

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Add the adapter to the model's weights, in place, and return the model; do not use this object afterwards."""
        self._compose()
        linears = {name: module for name, module in self.encoder.named_modules() if isinstance(module, nn.Linear)}
        changes = [(linears[name].weight, delta) for name, delta in self._pack.deltas(0).items()]
        changes += [(linears[name].bias, delta) for name, delta in self._pack.bias_deltas(0).items()]
        self._pack.__exit__(None, None, None)
        self._hook.remove()
        for value, delta in changes:
            value.copy_(value.double() + delta.double())
        for name, value in self.encoder.named_parameters():
            value.requires_grad_(self._required_grad[name])
        return self.model

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Replace the factors and the head by saved ones.

        Raises:
            BenchError: Exit code 2 if the saved head does not fit this model's.
        """
        for group in self._pack.bank.groups:
            group.load(0, state.adapter, group.block.matrix.detach())
        for name, start in self._pack_factors():
            self.factors[name].copy_(start)
        outside = self._outside()
        if not outside:
            return
        names = {} if state.head.keys() <= outside.keys() else self._head_names()
        head = {names.get(name, name): value for name, value in state.head.items()}
        if any(name not in outside or outside[name].shape != value.shape for name, value in head.items()):
            raise BenchError(
                "The saved head does not fit this model.", "Load it over the kind of model that it was trained with."
            )
        for name, value in head.items():
            outside[name].copy_(value)

    def _create_pack(self) -> Pack:
        cell = self.cell.model_copy(update={"head": None})  # the model has its own head
        return Pack([cell], cast("Backbone", Host(self.encoder)), 1)

    def _stacks(self) -> list[StackedFactor]:
        return [stack for group in self._pack.bank.groups for stack in group.trained]

    def _pack_factors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield copies of the pack's trained factors, with their names in `factors`."""
        for group in self._pack.bank.groups:
            for stack, values in group.stacks(group.block.matrix.detach()):
                yield _key(stack), nn.Parameter(values.clone())

    def _write_factors(self) -> None:
        """Write the factors into the pack."""
        for group in self._pack.bank.groups:
            values = [self.factors[_key(stack)].flatten(1) for stack in group.trained]
            group.block.matrix = torch.cat(values, dim=1)

    def _compose(self) -> None:
        self._write_factors()
        self._pack.compose()

    def _state(self) -> dict[str, Tensor]:
        self._write_factors()
        return self._pack.state(0).adapter

    def _outside(self) -> dict[str, nn.Parameter]:
        """Return the model's parameters that train beside the adapter: those outside of the encoder, and `_pooler`."""
        within = {id(value) for value in self.encoder.parameters()}
        parameters = self.model.named_parameters()
        return {name: value for name, value in parameters if id(value) not in within} | self._pooler()

    def _pooler(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the encoder's pooler, if the cell trained it as a part of its head."""
        if self.cell.head is None:
            return {}
        within = {id(value) for value in self.encoder.parameters()}
        head = set(self._head_names().values())
        return {name: value for name, value in self.model.named_parameters() if name in head and id(value) in within}

    def _head_names(self) -> dict[str, str]:
        """Return the names of the model's parameters that take the head of a benchmark's cell."""
        config = getattr(self.model, "config", None)
        if head_forms.of(config) is None:  # a model of the user's own may have the benchmark's head
            return head_forms.BENCHMARK.parameters("")
        form = head_forms.in_classifier(self.cell.head, config)
        return form.parameters(str(getattr(self.model, "base_model_prefix", "")))

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptedModel:
        """Move or cast the model; the adapter's frozen factors are computed again from the moved weights."""
        with torch.no_grad():
            state = self._state()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._pack.__exit__(None, None, None)
        self._pack = self._create_pack().__enter__()
        for group in self._pack.bank.groups:
            group.load(0, state, group.block.matrix.detach())
        return self


def get_adapted_model(
    model: PreTrainedModel | nn.Module,
    method: str = "mini",
    *,
    seed: int = 0,
    head: Head | None = None,
    **settings: Any,
) -> AdaptedModel:
    """Adapt a model in place.

    Args:
        model: The model; its `base_model` is adapted, or the model itself if it has none.
        method: The method's name; see `lora-bench list methods`.
        seed: The seed of random factors.
        head: "model" trains the encoder's pooler as well, where it is a part of the model's classification head (BERT,
            ALBERT), as cells with `head: model` do. None leaves it frozen with the encoder.
        **settings: The method's settings: some of rank, a, b, alpha, init and targets.

    Raises:
        BenchError: Exit code 2 for an unknown method or setting, targets that the model lacks, or a method that starts
            from data (LoRA-SB), has a penalty or a rank schedule, or draws noise.
    """
    recipe = methods.get(method)
    for name in settings:
        if name not in recipe.parameters:
            raise unknown(f"setting of {method}", name, recipe.parameters)
    name = str(getattr(model, "name_or_path", "")) or type(model).__name__
    label = Path(name).name if Path(name).is_dir() else name
    given: dict[str, Any] = {**recipe.defaults, **settings, "lr": recipe.default_lr, "seed": seed, "head": head}
    try:
        cell = Cell(model=label, data=OWN, task=OWN, method=method, origin=methods.origin(method), **given)
    except ValidationError as error:
        first = error.errors()[0]
        raise BenchError(f"{first['loc'][0]}: {first['input']!r} is not allowed.", f"{first['msg']}.") from None
    if recipe.beyond_the_loss:
        what = f"'{method}' {recipe.beyond_the_loss}, which your loop would leave out."
        raise BenchError(what, "Train it with `lora-bench run`.")
    if _starts_from_data(model, cell):
        raise BenchError(
            f"'{method}' starts from a gradient of the benchmark's data.", "Train it with `lora-bench run`."
        )
    return AdaptedModel(model, cell)


def load_adapted_model(model: PreTrainedModel | nn.Module, folder: str | Path) -> AdaptedModel:
    """Adapt a model in place with a saved adapter.

    The head of a benchmark's cell is loaded into the model's classification head, which must compute the same function.
    If the model has no head, only the adapter is loaded.

    Args:
        model: A model like the one that was adapted.
        folder: What `AdaptedModel.save` or a run of the benchmark has written.

    Raises:
        BenchError: The folder holds no complete adapter, or it does not fit the model.
    """
    cell, _, state = saved.read(Path(folder))
    adapted = AdaptedModel(model, cell)
    adapted.load_state(state)
    return adapted


def _encoder_of(model: nn.Module) -> nn.Module:
    encoder: nn.Module = getattr(model, "base_model", model)
    return encoder


def _starts_from_data(model: nn.Module, cell: Cell) -> bool:
    """Return whether a factor of the cell, on the weights that this model has, starts from a gradient."""
    recipe = methods.of(cell)
    if not recipe.adapts:
        return False
    host = Host(_encoder_of(model))
    shapes = {family.shape for family in host.families(targets_of(cell, cast("Backbone", host)))}
    return any(isinstance(factor.start, FirstStep) for shape in shapes for factor in recipe.factors(cell, shape))


def _group(params: list[nn.Parameter], lr: float, decays: bool) -> dict[str, Any]:
    """Return a parameter group of a torch optimiser."""
    return {"params": params, "lr": lr} | ({} if decays else {"weight_decay": 0.0})


def _key(stack: StackedFactor) -> str:
    return f"{stack.name}_{stack.families[0].name}"

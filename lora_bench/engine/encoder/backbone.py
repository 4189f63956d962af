"""The frozen encoder: loaded through transformers, checked, and run on windows for K cells at once.

There are three ways to run one, and the first that gives the model's own numbers is taken: the hand-written form
(`bert`), transformers' code on windows (`attention`), and transformers' code on padded rows (`padded`), which is the
slowest. A model whose attention ignores our function would give wrong numbers on windows in silence. So every load
compares each way with the model's own padded forward, and a model that no way fits is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lora_bench.engine.encoder import architectures, attention, head_forms, padded, probe, weights
from lora_bench.engine.encoder.attention import ForwardContext
from lora_bench.engine.encoder.bert import Encoder
from lora_bench.engine.encoder.families import Family, by_product, by_shape
from lora_bench.engine.encoder.head_forms import BENCHMARK, HeadForm
from lora_bench.engine.encoder.padded import PaddedEncoder, UseOperands
from lora_bench.engine.encoder.product import Operands
from lora_bench.engine.encoder.windows import Batch, Form, Table, Tokens
from lora_bench.engine.freed_memory import keep_freed_memory
from lora_bench.engine.masks import Masks, Site
from lora_bench.engine.shortage import is_shortage, shortages
from lora_bench.errors import MISSING, BenchError, one_line, rust_panics
from lora_bench.model_files import watched

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}


class Backbone:
    """An encoder on a device, frozen.

    With `precision="bf16"` the frozen weights are bfloat16; weights that are to be trained (`full`) stay float32 and
    run under autocast.

    Args:
        model: The encoder.
        device: Where it runs.
        precision: `float64`, `float32` or `bf16`.
        trains: Whether its weights are to be trained.
        pooler: The `weight` and `bias` of its pretrained pooler, from which some heads start; empty where it has none.

    Attributes:
        dtype: The type of the encoder's weights.
        exact: The type of what trains, of losses and of the decompositions of weights: float32, or float64.
        context: The forward pass in progress, which the model's modules read.
        bases: Decompositions of weights by name and kind, which `adapters.bases` caches here.
        padding_idx: See `_padding_idx`.
        position_base: The position of a sequence's first token in the model's table.
        sites: The dropouts of a forward pass on windows, in their order.
        fused: The hand-written form of the encoder; None if it has none.
        padded: The encoder on padded rows, if it runs in no other way; else None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        precision: str,
        trains: bool = False,
        pooler: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.precision, self.pooler = precision, pooler
        mixed = trains and precision == "bf16"
        self.autocast = False  # not while the model is checked
        self.dtype = torch.float32 if mixed else DTYPES[precision]
        self.exact = torch.promote_types(DTYPES[precision], torch.float32)
        self.device = device
        prepare_device(device)
        self.config = model.config
        self.config.return_dict = True  # what is read is an output's field, whatever the config asks for
        self.config.output_attentions = self.config.output_hidden_states = False  # a step would keep them
        self.context = ForwardContext()
        self.bases: dict[tuple[str, str], tuple[Tensor, ...]] = {}
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        self.padding_idx = _padding_idx(model)
        self.position_base = 0 if self.padding_idx is None else self.padding_idx + 1
        self.sites: tuple[Site, ...] = ()
        self.fused: Encoder | None = None
        self.padded: PaddedEncoder | None = None
        self._called: set[str] | None = None  # the linears that the forward calls as modules; None if not checked
        self.model = self._prepare(model)
        self.autocast = mixed
        if mixed:
            self._check_autocast()

    def _prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Find the fastest of the three ways that gives the model's own numbers."""
        model.requires_grad_(False).train(False)
        module: nn.Module = model
        module.to(self.device)
        self.model = model
        reference = probe.reference(model, self.longest, self.takes_types)
        try:
            self._run_on_windows(model, reference)
        except BenchError:
            self._run_padded(model, reference)
        module.to(self.dtype)
        if self.fused is not None:  # `to` may give the modules new weights, which are joined again
            self.fused = Encoder.from_model(model, self.context)
        return model

    @torch.no_grad()
    def _check_autocast(self) -> None:
        """Refuse a model whose code does not run under autocast, as DeBERTa's with talking heads."""
        try:
            self.encode(self.probe_batch(), 1)
        except probe.MODEL_ERRORS as error:
            if is_shortage(error):
                raise
            what = f"The model type '{self.config.model_type}' cannot be fully trained in bf16: {one_line(error)}."
            raise BenchError(what, "Train it with --precision float32.", MISSING) from error

    def _run_on_windows(self, model: PreTrainedModel, reference: list[Tensor]) -> None:
        attention.register()
        with quiet_transformers():
            model.set_attn_implementation(attention.NAME)
        attention.attach(model, self.context)
        prepare = architectures.ATTEND_WITHIN_WINDOWS.get(model.config.model_type)
        if prepare is not None:
            prepare(model, self.context)
        self._check(reference)
        self.sites = self._find_sites()
        self.fused = Encoder.from_model(model, self.context)
        if self.fused is not None:
            self._check(reference)

    def _run_padded(self, model: PreTrainedModel, reference: list[Tensor]) -> None:
        attention.detach(model)
        with quiet_transformers():
            model.set_attn_implementation("eager")
        self.fused, self.sites = None, ()
        self.padded = PaddedEncoder(model, self.takes_types)
        self._check(reference)
        tokens = probe.tokens(self.config, min(probe.SHORT, self.longest), self.takes_types)
        batch = next(self.table(tokens).batches([np.arange(len(tokens.labels))]))
        try:
            self._called = padded.check(self.padded, batch, self.masks(batch.shape), self.linears())
            sees_all = padded.first_token_sees_all(self.padded, batch)
            if self._called and sees_all:
                module: nn.Module = model
                module.to(self.dtype)  # whether gradients are finite may depend on it
                padded.check_gradients(self.padded, batch, self.masks(batch.shape), self.linears())
        except probe.MODEL_ERRORS as error:
            if is_shortage(error):
                raise
            raise probe.refusal(self.config, one_line(error)) from error
        if not sees_all:
            raise probe.refusal(self.config, "its first token, which the head reads, does not depend on the others")

    @torch.no_grad()
    def _find_sites(self) -> tuple[Site, ...]:
        """The dropouts of a step in the order in which they come."""
        self.context.recorded_sites = []
        self.encode(self.probe_batch(), 1, training=True)
        sites, self.context.recorded_sites = tuple(self.context.recorded_sites), None
        return sites

    def table(self, tokens: Tokens) -> Table:
        """A task's tokens on the device, with the positions that this model gives them."""
        return Table(tokens, self.device, padding_idx=self.padding_idx)

    def probe_batch(self) -> Batch:
        """The probe sequences on windows."""
        tokens = probe.tokens(self.config, self.longest, self.takes_types)
        return next(self.table(tokens).batches([np.arange(len(tokens.labels))]))

    def masks(self, form: Form, head: HeadForm = BENCHMARK) -> Masks:
        """Room for the dropout masks of batches of this shape, and of a head of this form."""
        dropouts = head.dropouts(self.config, self.hidden_size)
        return Masks(self.sites, form.width, form.windows, dropouts, form.rows, self.device)

    def families(self, wanted: Collection[str]) -> list[Family]:
        """These weights, grouped into families that the encoder computes together."""
        if self.fused is None:
            return by_shape(self.linears(), wanted)
        return by_product(self.linears(), wanted, self.fused.module_names)

    @property
    def hidden_size(self) -> int:
        """The number of features of hidden states, d."""
        return int(self.config.hidden_size)

    @property
    def longest(self) -> int:
        """The longest sequence that the model's positions allow."""
        return int(getattr(self.config, "max_position_embeddings", 512)) - self.position_base

    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers that can be adapted, by name."""
        linears = {name: module for name, module in self.model.named_modules() if isinstance(module, nn.Linear)}
        return linears if self._called is None else {name: linears[name] for name in linears if name in self._called}

    def encode(
        self,
        batch: Batch,
        cells: int,
        masks: Masks | None = None,
        weights: Mapping[str, Tensor] | None = None,
        training: bool = False,
        rows: Tensor | None = None,
        operands: Mapping[str, Operands] | None = None,
        use: UseOperands | None = None,
    ) -> Tensor:
        """Hidden states `[cells, rows, d]` of the last layer, through transformers' own code.

        Args:
            batch: The batch.
            cells: K.
            masks: The dropout masks while training.
            weights: Replaces parameters of the model by name.
            training: Whether the model is in training mode without masks, while its dropouts are recorded.
            rows: The slots whose states are returned, all by default.
            operands: The adapters of all cells by weight. On padded rows they are passed to `use` cell by cell; on
                windows they are not read, as the hooks have them already.
            use: Called with the operands of one cell before that cell's forward.
        """
        self.model.train(training or masks is not None)
        mixed = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()
        if self.padded is not None:
            with mixed:
                states = self.padded.encode(batch, cells, masks, operands or {}, use, weights)
            slots = torch.arange(batch.slots.shape[1], device=self.device) if rows is None else rows
            return padded.of_slots(states, batch, slots)
        self.context.begin(batch.segments, batch.width, masks)
        inputs: dict[str, Any] = {
            "input_ids": batch.ids.expand(cells, -1),
            "position_ids": (batch.positions + self.position_base).expand(cells, -1),
        }
        if batch.types is not None and self.takes_types:
            inputs["token_type_ids"] = batch.types.expand(cells, -1)
        with mixed:
            output = functional_call(self.model, dict(weights), (), inputs) if weights else self.model(**inputs)
        hidden: Tensor = output.last_hidden_state
        return hidden if rows is None else hidden[:, rows]

    def encode_fused(
        self,
        batch: Batch,
        cells: int,
        masks: Masks | None = None,
        updates: Mapping[Family, Operands] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """As `encode`, through the hand-written form: `updates` are the adapters by family."""
        if self.fused is None:
            raise RuntimeError("this encoder has no fused form")
        self.context.begin(batch.segments, batch.width, masks)
        # Of the model's modules only these run here. To set the mode of all takes a twentieth of a small step.
        self.fused.model.embeddings.train(masks is not None)
        types = batch.types if self.takes_types else None
        hidden = self.fused.embed(batch.ids, batch.positions + self.position_base, types)
        return self.fused.encode(hidden.expand(cells, -1, -1), batch.segments, batch.width, updates or {}, rows)

    @property
    def takes_types(self) -> bool:
        """Whether the model has more than one kind of token type."""
        return "token_type_ids" in self._accepted and getattr(self.config, "type_vocab_size", 0) > 1

    def _check(self, reference: list[Tensor]) -> None:
        """Refuse a model that gives other hidden states in the present way than by its own padded forward."""
        try:
            batch = self.probe_batch()
            with torch.no_grad():
                hidden = (self.encode if self.fused is None else self.encode_fused)(batch, 2)[1].float()
            worst = max(
                float((hidden[start : start + len(rows)] - rows).abs().max() / rows.abs().max())
                for start, rows in zip(batch.first.tolist(), reference, strict=True)
            )
        except probe.MODEL_ERRORS as error:
            if is_shortage(error):  # another way would give other dropout masks: it is no way out of a full device
                raise
            raise probe.refusal(self.config, f"it does not run {self._way} ({one_line(error)})") from error
        if not worst < probe.TOLERANCE:
            raise probe.refusal(self.config, f"{self._way} it gives other numbers (relative difference {worst:.1g})")

    @property
    def _way(self) -> str:
        return "on windows" if self.padded is None else "on padded rows"


def prepare_device(device: torch.device) -> None:
    """Prepare the process for a device.

    A numbered GPU becomes the current one: Triton, and libraries that take no device, use that. On a CPU the memory of
    freed tensors is kept.
    """
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def load(location: str, device: torch.device, precision: str, trains: bool = False, offline: bool = False) -> Backbone:
    """Load an encoder from a directory or the Hub (safetensors only).

    Raises:
        BenchError: Exit code 3 if there is no such model, its files are unsound, or it cannot be packed.
    """
    with shortages(f"the model '{location}' was loaded"):
        with watched(location):
            model, fresh = _pretrained(location, offline)
        return Backbone(model, device, precision, trains, head_forms.take_pooler(model, fresh))


def _pretrained(location: str, offline: bool) -> tuple[PreTrainedModel, set[str]]:
    """The model as transformers loads it, checked before and after, and the parameters that its files do not hold."""
    try:
        with quiet_transformers(), rust_panics():
            if Path(location).is_dir():
                weights.check_files(Path(location))
            model, info = AutoModel.from_pretrained(
                location,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=offline,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except BenchError:
        raise
    except Exception as error:  # of many families: a config.json can make any line of transformers fail
        raise unreachable("model", location, error) from error
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return weights.check_loaded(location, model, info), fresh


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load reports and progress bars; what matters in them is checked here."""
    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()


def unreachable(kind: str, location: str, error: Exception) -> BenchError:
    """The error for a model or tokenizer that could not be loaded, with what the user can do."""
    hint = "Without a network use --preset smoke, or --model DIR and --data-dir DIR."
    if Path(location).is_dir():
        hint = "Give a directory as transformers saves it: config.json, safetensors weights, the tokenizer's files."
    return BenchError(f"The {kind} '{location}' cannot be loaded: {one_line(error)}.", hint, MISSING)


def _padding_idx(model: PreTrainedModel) -> int | None:
    """The id that positions do not count, where they follow RoBERTa's rule: from that id + 1, itself at that id.

    Its table of positions has a padding index then. None: positions count every id, from 0. The probe has such ids
    within texts, so a model with another rule is refused.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            parent = model.get_submodule(name.rpartition(".")[0])  # as configured; the table's own is never negative
            index = getattr(parent, "padding_idx", module.padding_idx)
            return None if module.padding_idx is None or index is None else int(index)
    return None

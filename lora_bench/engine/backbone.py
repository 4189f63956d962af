"""The frozen encoder: loaded through transformers, checked, and run on windows for K cells at once.

A model that cannot be packed (its attention ignores our function, as DeBERTa's and MPNet's do) gives wrong numbers in
silence. So every load compares a windowed with the model's own padded forward, and a model that differs is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lora_bench.engine import attention
from lora_bench.engine.attention import Step
from lora_bench.engine.windows import Batch
from lora_bench.errors import MISSING, BenchError

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}
PACKABLE = "RoBERTa, BERT, XLM-R, CamemBERT, ELECTRA, DistilBERT and ModernBERT can"
PROBE_LENGTHS = (5, 23, 11, 150, 3, 64)


class Backbone:
    """An encoder on a device, frozen.

    `dtype` is the type of the frozen weights; `precision` the cell's word for it. With `precision="bf16"` the frozen
    weights are bfloat16; weights that are to be trained (`full`) stay float32 and run under autocast.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, precision: str, trains: bool = False) -> None:
        self.precision = precision
        mixed = trains and precision == "bf16"
        self.autocast = False  # not while the model is checked
        self.dtype = torch.float32 if mixed else DTYPES[precision]
        self.exact = torch.promote_types(DTYPES[precision], torch.float32)
        self.device = device
        self.config = model.config
        self.step = Step()
        self.bases: dict[tuple[str, str], Tensor] = {}
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        self.position_base = _position_base(model)
        self.model = self._prepare(model)
        self.autocast = mixed

    def _prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        model.requires_grad_(False).train(False)
        module: nn.Module = model
        module.to(self.device)
        reference = _probe_padded(model)
        attention.register()
        with quiet_transformers():
            model.set_attn_implementation(attention.NAME)
        attention.attach(model, self.step)
        self.model = model
        self._check(reference)
        module.to(self.dtype)
        return model

    @property
    def hidden_size(self) -> int:
        """d."""
        return int(self.config.hidden_size)

    @property
    def longest(self) -> int:
        """The longest sequence that the model's positions allow."""
        return int(self.config.max_position_embeddings) - self.position_base

    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers by name."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, nn.Linear)}

    def encode(
        self, batch: Batch, cells: int, generator: torch.Generator | None, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Hidden states `[cells, S, d]` of the last layer. `weights` replaces parameters of the model by name."""
        self.step.begin(batch.segments, batch.positions, batch.width, generator)
        self.model.train(generator is not None)
        inputs: dict[str, Any] = {
            "input_ids": batch.ids.expand(cells, -1),
            "position_ids": (batch.positions + self.position_base).expand(cells, -1),
        }
        if batch.types is not None and self.takes_types:
            inputs["token_type_ids"] = batch.types.expand(cells, -1)
        mixed = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()
        with mixed:
            output = functional_call(self.model, dict(weights), (), inputs) if weights else self.model(**inputs)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @property
    def takes_types(self) -> bool:
        """Whether the model has more than one kind of token type."""
        return "token_type_ids" in self._accepted and getattr(self.config, "type_vocab_size", 0) > 1

    def _check(self, reference: list[Tensor]) -> None:
        """Refuse a model whose windowed forward is not its padded one."""
        batch = _probe_windows(self.config, self.device)
        try:
            with torch.no_grad():
                hidden = self.encode(batch, 2, None)[1]
            worst = max(
                float((hidden[start : start + len(rows)] - rows).abs().max() / rows.abs().max())
                for start, rows in zip(batch.first.tolist(), reference, strict=True)
            )
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError) as error:
            raise _refusal(self.config, f"it does not run on windows ({_line(error)})") from error
        if not worst < 1e-4:
            raise _refusal(self.config, f"on windows it gives other numbers (relative difference {worst:.1g})")


def load(location: str, device: torch.device, precision: str, trains: bool = False, offline: bool = False) -> Backbone:
    """Load an encoder from a directory or the Hub (safetensors only).

    Raises:
        BenchError: exit code 3 if there is no such model, its files are unsound, or it cannot be packed.
    """
    try:
        with quiet_transformers():
            model, info = AutoModel.from_pretrained(
                location, dtype=torch.float32, use_safetensors=True, local_files_only=offline,
                attn_implementation="eager", output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise unreachable("model", location, error) from error
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing or not isinstance(model, PreTrainedModel):
        what = f"'{location}' lacks weights ({missing[0]} …)." if missing else f"'{location}' is not an encoder."
        raise BenchError(what, "Use a complete encoder in safetensors format.", MISSING)
    if getattr(model, "pooler", None) is not None:
        model.register_module("pooler", None)  # our head reads the first token
    return Backbone(model, device, precision, trains)


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
    """The error for something that could not be had, with the three ways out."""
    return BenchError(
        f"The {kind} '{location}' cannot be loaded: {_line(error)}.",
        "Without a network use --preset smoke, or --model DIR and --data-dir DIR.",
        MISSING,
    )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 200 else text[:199] + "…"


def _position_base(model: PreTrainedModel) -> int:
    """The id of the first position: after the padding index where positions have one (RoBERTa), else 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else int(module.padding_idx) + 1
    return 0


def _probe_ids(config: Any) -> list[Tensor]:
    room = int(getattr(config, "max_position_embeddings", 512)) - 8
    reserved = {getattr(config, "pad_token_id", None) or 0}
    allowed = [token for token in range(min(int(config.vocab_size), 997)) if token not in reserved]
    return [
        torch.tensor([allowed[(7 * index + 13 * length) % len(allowed)] for index in range(min(length, room))])
        for length in PROBE_LENGTHS
    ]


@torch.no_grad()
def _probe_padded(model: PreTrainedModel) -> list[Tensor]:
    """The model's own hidden states of the probe sequences, padded into one batch."""
    sequences = _probe_ids(model.config)
    pad = int(getattr(model.config, "pad_token_id", None) or 0)
    device = next(model.parameters()).device
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad).to(device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    try:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise _refusal(model.config, f"it is not an encoder ({_line(error)})") from error
    return [rows[: len(sequence)] for rows, sequence in zip(hidden, sequences, strict=True)]


def _probe_windows(config: Any, device: torch.device) -> Batch:
    """The probe sequences side by side in one window."""
    sequences = _probe_ids(config)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return Batch(
        ids=torch.cat(sequences).to(device), positions=positions.to(device), types=None,
        segments=torch.arange(len(sequences)).repeat_interleave(lengths).to(device),
        first=(lengths.cumsum(0) - lengths).to(device), labels=lengths, rows=lengths.numpy(),
        width=int(lengths.sum()), tokens=int(lengths.sum()),
    )  # fmt: skip


def _refusal(config: Any, why: str) -> BenchError:
    return BenchError(f"The model type '{config.model_type}' cannot be packed: {why}.", f"{PACKABLE} be.", MISSING)

"""Probe sequences: what an encoder makes of them by itself, padded, is what it must make of them on our paths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_bench.engine.encoder.windows import Batch
from lora_bench.errors import MISSING, BenchError

PACKABLE = "RoBERTa, BERT, XLM-R, CamemBERT, ELECTRA, DistilBERT and ModernBERT can"
LENGTHS = (5, 23, 11, 150, 3, 64)
TOLERANCE = 1e-4


def _ids(config: Any) -> list[Tensor]:
    room = int(getattr(config, "max_position_embeddings", 512)) - 8
    reserved = {getattr(config, "pad_token_id", None) or 0}
    allowed = [token for token in range(min(int(config.vocab_size), 997)) if token not in reserved]
    return [
        torch.tensor([allowed[(7 * index + 13 * length) % len(allowed)] for index in range(min(length, room))])
        for length in LENGTHS
    ]


def batch(config: Any) -> tuple[Tensor, Tensor]:
    """The probe sequences padded into one batch: ids and attention mask, `[rows, longest]`."""
    sequences = _ids(config)
    pad = int(getattr(config, "pad_token_id", None) or 0)
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


@torch.no_grad()
def padded(model: PreTrainedModel) -> list[Tensor]:
    """The model's own hidden states of the probe sequences, padded into one batch."""
    device = next(model.parameters()).device
    ids, mask = (part.to(device) for part in batch(model.config))
    try:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise refusal(model.config, f"it is not an encoder ({one_line(error)})") from error
    if not torch.isfinite(hidden[mask.bool()]).all():
        raise BenchError(
            "The model makes numbers that are not finite.", "Its weights are damaged: get them again.", MISSING
        )
    return [rows[:length] for rows, length in zip(hidden, mask.sum(1).tolist(), strict=True)]


def windows(config: Any, device: torch.device) -> Batch:
    """The probe sequences side by side in one window."""
    sequences = _ids(config)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    segments = torch.arange(len(sequences)).repeat_interleave(lengths)
    return Batch(
        slots=torch.stack([torch.cat(sequences), positions, segments]).to(device),
        first=(lengths.cumsum(0) - lengths).to(device), labels=lengths, weights=torch.ones(len(sequences)),
        rows=lengths.numpy(), width=int(lengths.sum()), windows=1, tokens=int(lengths.sum()),
    )  # fmt: skip


def refusal(config: Any, why: str) -> BenchError:
    return BenchError(f"The model type '{config.model_type}' cannot be packed: {why}.", f"{PACKABLE} be.", MISSING)


def one_line(error: Exception) -> str:
    """An error's message on one line of at most 200 characters."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"

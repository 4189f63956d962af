"""Probe sequences, on which each way to run an encoder is compared with the model's own padded forward.

They hold the cases in which two implementations can differ: ids of padding within a text, all special ids that the
config names, both ends of the vocabulary, one token and many, and pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_bench.errors import MISSING, BenchError, one_line

PACKABLE = "RoBERTa, BERT, XLM-R, ELECTRA, MPNet, DistilBERT, ModernBERT, DeBERTa and most other encoders can"
SHORT = 40  # tokens of the longest sequence in trials of training (chosen, to keep them fast)
LENGTHS = (5, 23, 11, 256, 1, 3, 64)  # chosen: one token and many, in an order that packing into windows changes
LONG = 2  # sequences that are padded by themselves, to keep the padding of the others short
PADDED = {2: (0,), 17: (1, 2, 9, 16), 40: (0, 7, 39)}  # lengths of further sequences, and where they hold padding ids
# The largest difference of hidden states, relative to the largest value of the sequence (chosen): rounding in float32
# is far below it, and the effect of a wrong position or mask far above.
TOLERANCE = 1e-4
# The exceptions that a model's code raises where it cannot be run in some way.
MODEL_ERRORS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)

Ids = NDArray[np.int32]


class Sequences(NamedTuple):
    """The probe sequences end to end, as a table takes them (`windows.Tokens`)."""

    ids: Ids
    types: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        lengths: list[int] = np.diff(self.offsets).tolist()
        return lengths


def tokens(config: Any, longest: int, typed: bool) -> Sequences:
    """The probe sequences, none longer than `longest`; pairs if `typed`."""
    texts = [text[: max(1, longest)] for text in _texts(config)]
    lengths = np.array([len(text) for text in texts])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    pairs = np.repeat((lengths // 3) * (np.arange(len(texts)) % 2), lengths)  # where the second text starts, in half
    types = ((within >= pairs) & (pairs > 0)).astype(np.uint8) if typed else None
    return Sequences(np.concatenate(texts), types, offsets, np.zeros(len(texts), dtype=np.int64))


def _texts(config: Any) -> Iterator[Ids]:
    size, pad = int(config.vocab_size), padding(config)

    def ordinary(length: int) -> Ids:
        # In steps of a prime, so that ids differ and are spread over the vocabulary. None of them is that of padding.
        ids = ((7919 * np.arange(length) + 13 * length) % size).astype(np.int32)
        return np.where(ids == pad, (pad + 1) % size, ids).astype(np.int32)

    for length in LENGTHS:
        yield ordinary(length)
    for length, places in PADDED.items():
        ids = ordinary(length)
        ids[list(places)] = pad
        yield ids
    named = {value for name, value in config.to_dict().items() if name.endswith("_token_id") and type(value) is int}
    special = sorted({token % size for token in (0, 1, 2, 3, size - 1, *named)})
    yield np.array([token for token in special for _ in range(2)], dtype=np.int32)


def padding(config: Any) -> int:
    """The id that fills up short rows: the config's if it is an id of the vocabulary, else 0."""
    pad = getattr(config, "pad_token_id", None)
    return int(pad) if pad is not None and 0 <= pad < int(config.vocab_size) else 0


def inputs(table: Sequences, pad: int, chosen: Collection[int] | None = None) -> dict[str, Tensor]:
    """The chosen sequences, or all, padded into one batch as transformers takes it: `[rows, longest]` each."""

    def rows(values: NDArray[Any], fill: int) -> Tensor:
        parts = torch.from_numpy(values.astype(np.int64)).split(table.lengths)
        kept = [part for row, part in enumerate(parts) if chosen is None or row in chosen]
        return nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=fill)

    padded = {"input_ids": rows(table.ids, pad), "attention_mask": rows(np.ones(len(table.ids)), 0)}
    return padded if table.types is None else padded | {"token_type_ids": rows(table.types, 0)}


@torch.no_grad()
def reference(model: PreTrainedModel, longest: int, typed: bool) -> list[Tensor]:
    """The model's own hidden states of each probe sequence, padded into two batches: the short ones and the long ones.

    Raises:
        BenchError: Exit code 3 if it is no encoder, or its numbers are not finite.
    """
    device = next(model.parameters()).device
    hidden: dict[int, Tensor] = {}
    try:
        table = tokens(model.config, longest, typed)
        order = np.argsort(table.lengths, kind="stable").tolist()
        for rows in (sorted(order[:-LONG]), sorted(order[-LONG:])):
            batch = {name: part.to(device) for name, part in inputs(table, padding(model.config), rows).items()}
            hidden |= dict(zip(rows, model(**batch).last_hidden_state, strict=True))
    except MODEL_ERRORS as error:
        raise refusal(model.config, f"it is not an encoder ({one_line(error)})") from error
    states = [hidden[row][:length] for row, length in enumerate(table.lengths)]
    if not torch.isfinite(torch.cat(states)).all():
        raise BenchError(
            "The model makes numbers that are not finite.", "Its weights are damaged: get them again.", MISSING
        )
    return states


def refusal(config: Any, why: str) -> BenchError:
    """The error for a model that cannot be packed."""
    return BenchError(f"The model type '{config.model_type}' cannot be packed: {why}.", f"{PACKABLE} be.", MISSING)

"""From rows to one flat table of tokens.

A table of tokens holds all sequences of a split end to end with offsets, unpadded, so that a batch is a gather. It may
be kept in a file: 32 bytes of SHA-256, then an .npz; a file whose hash is wrong is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lora_bench.data.content import first_line
from lora_bench.data.sources import Labels, Rows
from lora_bench.errors import MISSING, USAGE, BenchError, rust_panics
from lora_bench.records.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 8192
_DIGEST = 32
_FORMAT = 2  # of the token files
_HELD_OUT = 0x48454C44  # keeps this draw apart from every other one of the same seed


@dataclass(frozen=True, eq=False)
class TokenTable:
    """N tokenised sequences end to end: sequence i is `ids[offsets[i]:offsets[i + 1]]`.

    `ids` int32 [T]; `types` uint8 [T], or None where the tokenizer has no token types; `offsets` int64 [N + 1];
    `labels` [N], int64 classes or float32 scores.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, int64 [N]; at least 1."""
        return np.diff(self.offsets)

    @cached_property
    def max_id(self) -> int:
        """The largest token id, which must be below the size of the encoder's vocabulary."""
        return int(self.ids.max())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over ids, offsets and labels."""
        digest = hashlib.sha256()
        for array in (self.ids, self.offsets, self.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def take(self, rows: NDArray[np.int64]) -> TokenTable:
        """The table of the sequences `rows` [M], in that order."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        types = None if self.types is None else self.types[places]
        return TokenTable(self.ids[places], types, offsets, self.labels[rows])


def join(tables: Sequence[TokenTable]) -> TokenTable:
    """The tables end to end, as one."""
    if len(tables) == 1:
        return tables[0]
    kinds = [table.types for table in tables if table.types is not None]
    labels: Any = np.concatenate([table.labels for table in tables])
    return TokenTable(
        ids=np.concatenate([table.ids for table in tables]),
        types=np.concatenate(kinds) if len(kinds) == len(tables) else None,
        offsets=_offsets(np.concatenate([table.lengths for table in tables])),
        labels=labels,
    )


def _offsets(lengths: Iterable[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    steps = np.fromiter(lengths, dtype=np.int64)
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(steps)))


def tokenize(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path | None = None) -> TokenTable:
    """The rows as tokens, cut to `max_length` (the longer text first), never padded.

    `cache` is a folder for token files, named by the texts and by all that decides their tokens.
    Padding and truncation baked into the tokenizer's file are ignored. Raises BenchError when `max_length` has no room
    for text (usage), or when an empty text gives no token at all (code 3).
    """
    _check_room(rows, tokenizer, max_length)
    path = _cache_file(cache, tokenizer, max_length, rows)
    table = _read_cache(path, rows) if path else None
    if table is None:
        table = _encode(rows, tokenizer, max_length)
        if path:
            _write_cache(path, table)
    return table


def _check_room(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=len(rows.texts) == 2)
    if max_length <= special:
        what = f"A maximum length of {max_length} leaves no room beside the tokenizer's {special} special tokens."
        raise BenchError(what, f"Give --max-length {special + 1} or more; 128 is usual.", USAGE)


def _encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenTable:
    ids: list[NDArray[np.int32]] = []
    types: list[NDArray[np.uint8]] = []
    lengths: list[int] = []
    for start in range(0, len(rows), CHUNK):
        texts = [column[start : start + CHUNK] for column in rows.texts]
        out = _tokens(tokenizer, texts, start, max_length)
        lengths += map(len, out["input_ids"])
        ids.append(_flat(out["input_ids"], np.int32))
        if "token_type_ids" in out:
            types.append(_flat(out["token_type_ids"], np.uint8))
    if not min(lengths):
        what = f"The tokenizer gives no token for row {lengths.index(0) + 1}, {rows.texts[0][lengths.index(0)][:40]!r}."
        raise BenchError(what, "Use a tokenizer that adds special tokens, or leave such rows out.", MISSING)
    return TokenTable(np.concatenate(ids), np.concatenate(types) if types else None, _offsets(lengths), rows.labels)


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[list[str]], start: int, max_length: int) -> Any:
    """What the tokenizer makes of the columns. `start`: the row of the first texts, for an error's sake."""
    try:
        with rust_panics():
            return tokenizer(
                *texts, padding=False, truncation="longest_first", max_length=max_length, return_attention_mask=False
            )
    except MemoryError:
        raise
    except Exception as error:  # tokenizers raises `Exception` itself
        what = f"The tokenizer fails on rows {start + 1} to {start + len(texts[0])} ({first_line(error)})."
        raise BenchError(what, "Use a tokenizer that takes any text, or leave such rows out.", MISSING) from error


def _flat(sequences: list[list[int]], dtype: Any) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(sequences), dtype=dtype)


def _cache_file(cache: Path | None, tokenizer: PreTrainedTokenizerBase, max_length: int, rows: Rows) -> Path | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if cache is None or backend is None:  # a slow tokenizer has no content to hash
        return None
    name = json.dumps([_tokenizer_content(tokenizer, backend), max_length, _digest(rows), _FORMAT])
    return cache / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.tokens"


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase, backend: Any) -> list[Any]:
    """All that decides the tokens of a text. Padding and truncation do not: every call sets its own."""
    import tokenizers

    content = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    side, inputs = tokenizer.truncation_side, list(tokenizer.model_input_names)
    splits = bool(getattr(tokenizer, "split_special_tokens", False))
    return [content, side, inputs, splits, type(tokenizer).__name__, tokenizers.__version__]


def _digest(rows: Rows) -> str:
    """A hash over the texts, hexadecimal."""
    digest = hashlib.sha256()
    for column in rows.texts:
        digest.update(np.fromiter(map(len, column), dtype="<i8", count=len(column)).tobytes())
        digest.update("".join(column).encode())
    return digest.hexdigest()


def _read_cache(path: Path, rows: Rows) -> TokenTable | None:
    """The table kept in `path`, or None when there is none, it is damaged, or it is not of as many rows."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        return None
    with np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False) as file:
        arrays = dict(file)
    if len(arrays["offsets"]) != len(rows) + 1:
        return None
    return TokenTable(arrays["ids"], arrays.get("types"), arrays["offsets"], rows.labels)


def _write_cache(path: Path, table: TokenTable) -> None:
    """Whole or not at all. A cache that cannot be written is no reason to stop."""
    arrays = {"ids": table.ids, "offsets": table.offsets}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays if table.types is None else arrays | {"types": table.types})  # type: ignore[arg-type]
    content = buffer.getvalue()
    with suppress(OSError):
        write_atomically(path, hashlib.sha256(content).digest() + content)


def held_out(table: TokenTable, seed: int, fraction: float) -> tuple[TokenTable, TokenTable]:
    """The table in two, (train, held out): `fraction` of the N rows at random by `seed`, at least one row on each side.

    The same on every machine and version of numpy: the draw is Philox's raw stream. Raises BenchError for N < 2.
    """
    total = len(table)
    if total < 2:
        raise BenchError("A train split of one row cannot be divided.", "Choose --set select=best or last.", USAGE)
    count = min(max(round(total * fraction), 1), total - 1)
    order = np.argsort(np.random.Philox([seed, _HELD_OUT]).random_raw(total), kind="stable")
    return table.take(np.sort(order[count:])), table.take(np.sort(order[:count]))

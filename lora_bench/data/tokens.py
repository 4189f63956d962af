"""Tokenizes rows into a flat table of tokens.

A table of tokens contains the sequences of a split one after another, without padding, and their offsets, so that one
indexing operation gathers a batch. It may be cached in a file: 32 bytes of SHA-256, then an .npz. A file with a wrong
hash is replaced.
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

CHUNK = 8192  # rows in one call of the tokenizer (chosen)
_DIGEST = 32  # bytes of a SHA-256
_FORMAT = 2  # the version of the cache files
_HELD_OUT = 0x48454C44  # "HELD": makes this draw independent of all others with the same seed


@dataclass(frozen=True, eq=False)
class TokenTable:
    """N tokenized sequences one after another: sequence i is `ids[offsets[i]:offsets[i + 1]]`. T tokens in all.

    Attributes:
        ids: Token ids, int32 `[T]`.
        types: Token types, uint8 `[T]`; None if the tokenizer has none.
        offsets: int64 `[N + 1]`.
        labels: `[N]`, int64 classes, or float32 values of a regression.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each sequence, at least 1; int64 `[N]`."""
        return np.diff(self.offsets)

    @cached_property
    def max_id(self) -> int:
        """The largest token id, which must be below the size of the encoder's vocabulary."""
        return int(self.ids.max())

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of ids, offsets and labels."""
        digest = hashlib.sha256()
        for array in (self.ids, self.offsets, self.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def take(self, rows: NDArray[np.int64]) -> TokenTable:
        """Return the table of the sequences `rows`, `[M]`, in that order."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        indices = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        types = None if self.types is None else self.types[indices]
        return TokenTable(self.ids[indices], types, offsets, self.labels[rows])


def join(tables: Sequence[TokenTable]) -> TokenTable:
    """Return the tables as one table, one after another."""
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
    """Tokenize rows without padding, truncated to `max_length` tokens (the longer text first).

    Padding and truncation that the tokenizer's own file asks for are ignored.

    Args:
        rows: The rows.
        tokenizer: The tokenizer.
        max_length: The largest number of tokens of a sequence, with special tokens.
        cache: A folder for cache files, which are named by a hash of the texts and of all settings that decide their
            tokens; None for no cache.

    Raises:
        BenchError: Exit code 2 if `max_length` leaves no room for text; 3 if the tokenizer fails, or returns no token
            for a row.
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
    """Call the tokenizer; `start` is the index of the first row, for error messages."""
    try:
        with rust_panics():
            return tokenizer(
                *texts, padding=False, truncation="longest_first", max_length=max_length, return_attention_mask=False
            )
    except MemoryError:
        raise
    except Exception as error:  # tokenizers raises the class `Exception` itself
        what = f"The tokenizer fails on rows {start + 1} to {start + len(texts[0])} ({first_line(error)})."
        raise BenchError(what, "Use a tokenizer that takes any text, or leave such rows out.", MISSING) from error


def _flat(sequences: list[list[int]], dtype: Any) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(sequences), dtype=dtype)


def _cache_file(cache: Path | None, tokenizer: PreTrainedTokenizerBase, max_length: int, rows: Rows) -> Path | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if cache is None or backend is None:  # a tokenizer in Python has no content to hash
        return None
    name = json.dumps([_tokenizer_content(tokenizer, backend), max_length, _digest(rows), _FORMAT])
    return cache / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.tokens"


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase, backend: Any) -> list[Any]:
    """All settings that decide the tokens of a text. Padding and truncation do not, as every call sets them."""
    import tokenizers

    content = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    side, inputs = tokenizer.truncation_side, list(tokenizer.model_input_names)
    splits = bool(getattr(tokenizer, "split_special_tokens", False))
    return [content, side, inputs, splits, type(tokenizer).__name__, tokenizers.__version__]


def _digest(rows: Rows) -> str:
    """The hexadecimal SHA-256 of the texts and their lengths."""
    digest = hashlib.sha256()
    for column in rows.texts:
        digest.update(np.fromiter(map(len, column), dtype="<i8", count=len(column)).tobytes())
        digest.update("".join(column).encode())
    return digest.hexdigest()


def _read_cache(path: Path, rows: Rows) -> TokenTable | None:
    """The cached table; None if there is none, if it is damaged, or if it has another number of rows."""
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
    """Write the cache file atomically. Errors are ignored, since the cache is optional."""
    arrays = {"ids": table.ids, "offsets": table.offsets}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays if table.types is None else arrays | {"types": table.types})  # type: ignore[arg-type]
    content = buffer.getvalue()
    with suppress(OSError):
        write_atomically(path, hashlib.sha256(content).digest() + content)


def held_out(table: TokenTable, seed: int, fraction: float) -> tuple[TokenTable, TokenTable]:
    """Split a table at random into rows for training and held-out rows, at least one each.

    The split is the same on every machine and with every version of numpy, as it uses Philox's raw stream.

    Args:
        table: The table, N rows.
        seed: The seed of the draw.
        fraction: The fraction of rows to hold out.

    Returns:
        The training table and the held-out table, with rows in the table's order.

    Raises:
        BenchError: Exit code 2 if N < 2.
    """
    total = len(table)
    if total < 2:
        raise BenchError("A train split of one row cannot be divided.", "Choose --set select=best or last.", USAGE)
    count = min(max(round(total * fraction), 1), total - 1)
    order = np.argsort(np.random.Philox([seed, _HELD_OUT]).random_raw(total), kind="stable")
    return table.take(np.sort(order[count:])), table.take(np.sort(order[:count]))

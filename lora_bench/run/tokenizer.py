"""Loads the tokenizer of a model through transformers, and compares it with the tokenizer.json beside it.

transformers rebuilds many tokenizers from the vocabulary of a tokenizer.json, by a class that it takes from
tokenizer_config.json or, without that, from the model type. The wrong class tokenizes texts differently without any
error, hence the comparison.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lora_bench.data import hub
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.errors import MISSING, BenchError, rust_panics
from lora_bench.model_files import watched

# Texts that no setting changes (lower case, ASCII, a space before) ...
PLAIN = (" the cat sat on the mat", " it was not a good film at all", " unbelievably", " zqxjv wkqzz")
# ... and texts that a setting may change.
ODD = (
    "The cat SAT on the Mat.",
    "naïve café, Ünïcode",
    "日本語 テスト",
    "\u2603 \U0001f600 \u0416",
    "it's 3.14% of $5",
    "  two  spaces\tand a tab",
    "",
    "x" * 120,
)
PAIRS = ((" the cat sat", " on the mat"), (" a film", ""))
SETTINGS = frozenset({"add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars"})
WORDS = 256  # of the vocabulary that are compared, about (chosen)
FEWEST_WORDS = 2  # that a tokenizer must have (chosen)


def load_tokenizer(location: str, offline: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model.

    Args:
        location: What transformers loads: a directory or a Hub id.
        offline: Whether transformers must not ask the Hub.

    Raises:
        BenchError: Exit code 3 if it cannot be loaded, tokenizes texts differently from its own tokenizer.json, or does
            not know words.
    """
    try:
        with watched(location), encoders.quiet_transformers(), hub.hub_mode(offline), rust_panics():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, local_files_only=offline)
            _require_equal(tokenizer, location)
            _require_words(tokenizer, location)
    except BenchError:
        raise
    except Exception as error:  # of many families: its files can make any line of transformers fail
        raise encoders.unreachable("tokenizer of", location, error) from error
    return tokenizer


def _require_equal(tokenizer: PreTrainedTokenizerBase, location: str) -> None:
    """Refuse a tokenizer that tokenizes texts differently from its tokenizer.json, if it has one."""
    path, settings = _find_file(location, "tokenizer.json"), _settings(location)
    if path is None or "fast_tokenizer_files" in settings:  # which names another file for each version
        return
    reference: Any = Tokenizer.from_file(str(path))  # Any: the stubs lack the signature of `encode`
    reference.no_truncation()
    reference.no_padding()
    for texts in _texts(reference, is_declared=bool(SETTINGS & settings.keys())):
        ids = tokenizer(*texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
        if ids != reference.encode(*texts, add_special_tokens=False).ids:
            text = " ".join(texts).strip()[:40]
            raise BenchError(
                f"The tokenizer of '{location}' is loaded as {type(tokenizer).__name__}, which reads {text!r} "
                "otherwise than its tokenizer.json.",
                "Add the tokenizer_config.json that belongs to it; "
                '"tokenizer_class": "PreTrainedTokenizerFast" takes tokenizer.json as it is.',
                MISSING,
            )


def _texts(reference: Any, is_declared: bool) -> Iterator[tuple[str, ...]]:
    """Texts, and pairs of texts: ordinary words, words of the vocabulary, characters that it may not have.

    Where `is_declared`, tokenizer_config.json has settings which transformers rightly follows instead of the file. Then
    there are only texts that no setting changes.
    """
    vocabulary = reference.get_vocab(with_added_tokens=False)
    ids = sorted(vocabulary.values())
    decoded = (reference.decode([token]).strip() for token in ids[:: max(1, len(ids) // WORDS)])
    words = [word for word in decoded if word.isascii() and word.isalpha() and word.islower()]
    plain = [*PLAIN, *(" " + " ".join(words[start : start + 32]) for start in range(0, len(words), 32))]
    yield from ((text,) for text in (plain if is_declared else [*plain, *ODD]))
    yield from PAIRS


def _require_words(tokenizer: PreTrainedTokenizerBase, location: str) -> None:
    """Refuse a tokenizer that has no words, or misreads most of them: transformers makes one even of no files."""
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_encoder.values()}
    tokens = sorted(set(tokenizer.get_vocab().values()) - added)
    decoded = ((token, _decode(tokenizer, [token])) for token in tokens[:: max(1, len(tokens) // (2 * WORDS))])
    words = [(token, word) for token, word in decoded if word.isalnum()][:WORDS]
    misread = sum(not _reads(tokenizer, *word) for word in words)
    if len(words) < FEWEST_WORDS or 2 * misread >= len(words):
        trouble = f"reads {misread} of {len(words)} of its own words otherwise" if words else "has no words"
        raise BenchError(
            f"The tokenizer of '{location}' is loaded as {type(tokenizer).__name__}, which {trouble}: it would read "
            "texts as unknown, or all alike.",
            "Put the files of the tokenizer that belongs to the model into its directory.",
            MISSING,
        )


def _reads(tokenizer: PreTrainedTokenizerBase, token: int, word: str) -> bool:
    """Whether it reads a word of its vocabulary as that word, at the beginning of a text or after a space."""
    for text in (f" {word}", word):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids == [token] or _decode(tokenizer, ids) == word:
            return True
    return False


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of tokens without spaces, case and accents, which tokenizers may drop."""
    text = "".join(str(tokenizer.decode(ids)).split()).casefold()
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if unicodedata.category(letter) != "Mn")


def _settings(location: str) -> dict[str, Any]:
    path = _find_file(location, "tokenizer_config.json")
    content = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return content if isinstance(content, dict) else {}


def _find_file(location: str, name: str) -> Path | None:
    """A file in the model's directory, or in the cache of the Hub's files."""
    if Path(location).is_dir():
        path: object = Path(location) / name
    else:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(location, name)
    return Path(path) if isinstance(path, str | Path) and Path(path).is_file() else None

"""The tokenizer of a model, loaded through transformers and compared with the tokenizer.json beside it.

transformers builds many tokenizers anew from the words of a tokenizer.json, by a class that it takes from
tokenizer_config.json or, without one, from the model type. The wrong class reads texts otherwise, and says nothing.
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

PLAIN = (" the cat sat on the mat", " it was not a good film at all", " unbelievably", " zqxjv wkqzz")
ODD = (
    "The cat SAT on the Mat.", "naïve café, Ünïcode", "日本語 テスト", "\u2603 \U0001f600 \u0416", "it's 3.14% of $5",
    "  two  spaces\tand a tab", "", "x" * 120,
)  # fmt: skip
PAIRS = ((" the cat sat", " on the mat"), (" a film", ""))
SETTINGS = frozenset({"add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars"})
WORDS = 256
FEWEST = 2


def load_tokenizer(location: str, offline: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's directory or of the Hub.

    Args:
        location: What transformers loads.
        offline: Whether the Hub is not asked.

    Raises:
        BenchError: exit code 3 if it cannot be loaded, reads texts otherwise than its own tokenizer.json, or does not
            know words.
    """
    try:
        with watched(location), encoders.quiet_transformers(), hub.hub_mode(offline), rust_panics():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, local_files_only=offline)
            _compare(tokenizer, location)
            _check_words(tokenizer, location)
    except BenchError:
        raise
    except Exception as error:  # of many families: its files can make any line of transformers fail
        raise encoders.unreachable("tokenizer of", location, error) from error
    return tokenizer


def _compare(tokenizer: PreTrainedTokenizerBase, location: str) -> None:
    path, settings = _file(location, "tokenizer.json"), _settings(location)
    if path is None or "fast_tokenizer_files" in settings:  # names another file by version
        return
    core: Any = Tokenizer.from_file(str(path))  # its stubs lack `encode`'s own signature
    core.no_truncation()
    core.no_padding()
    for texts in _texts(core, declared=bool(SETTINGS & settings.keys())):
        ids = tokenizer(*texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
        if ids != core.encode(*texts, add_special_tokens=False).ids:
            raise BenchError(
                f"The tokenizer of '{location}' is loaded as {type(tokenizer).__name__}, which reads "
                f"{' '.join(texts).strip()[:40]!r} otherwise than its tokenizer.json.",
                "Add the tokenizer_config.json that belongs to it; "
                '"tokenizer_class": "PreTrainedTokenizerFast" takes tokenizer.json as it is.', MISSING,
            )  # fmt: skip


def _texts(core: Any, declared: bool) -> Iterator[tuple[str, ...]]:
    """Texts, and pairs of them: ordinary words, words of its own vocabulary, characters that it may not know.

    Where its settings are `declared`, transformers rightly follows them instead of the file: then only texts that no
    setting changes (lower case, ASCII, a space before).
    """
    vocabulary = core.get_vocab(with_added_tokens=False)
    ids = sorted(vocabulary.values())
    known = (core.decode([token]).strip() for token in ids[:: max(1, len(ids) // WORDS)])
    words = [word for word in known if word.isascii() and word.isalpha() and word.islower()]
    plain = [*PLAIN, *(" " + " ".join(words[start : start + 32]) for start in range(0, len(words), 32))]
    yield from ((text,) for text in (plain if declared else [*plain, *ODD]))
    yield from PAIRS


def _check_words(tokenizer: PreTrainedTokenizerBase, location: str) -> None:
    """Refuse a tokenizer that has no words, or does not read most of its own: transformers makes one of nothing."""
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_encoder.values()}
    own = sorted(set(tokenizer.get_vocab().values()) - added)
    named = ((token, _decoded(tokenizer, [token])) for token in own[:: max(1, len(own) // (2 * WORDS))])
    words = [(token, word) for token, word in named if word.isalnum()][:WORDS]
    lost = sum(not _reads(tokenizer, *word) for word in words)
    if len(words) < FEWEST or 2 * lost >= len(words):
        lacking = f"reads {lost} of {len(words)} of its own words otherwise" if words else "has no words"
        raise BenchError(
            f"The tokenizer of '{location}' is loaded as {type(tokenizer).__name__}, which {lacking}: it would read "
            "texts as unknown, or all alike.",
            "Put the files of the tokenizer that belongs to the model into its directory.", MISSING,
        )  # fmt: skip


def _reads(tokenizer: PreTrainedTokenizerBase, token: int, word: str) -> bool:
    """Whether it reads the word of its vocabulary as such, at the begin of a text or after a space."""
    for text in (f" {word}", word):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids == [token] or _decoded(tokenizer, ids) == word:
            return True
    return False


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text without spaces, case and accents, which tokenizers may drop."""
    text = "".join(str(tokenizer.decode(ids)).split()).casefold()
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if unicodedata.category(letter) != "Mn")


def _settings(location: str) -> dict[str, Any]:
    path = _file(location, "tokenizer_config.json")
    content = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return content if isinstance(content, dict) else {}


def _file(location: str, name: str) -> Path | None:
    """The file in the directory, or in the cache of the Hub's files."""
    if Path(location).is_dir():
        path: object = Path(location) / name
    else:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(location, name)
    return Path(path) if isinstance(path, str | Path) and Path(path).is_file() else None

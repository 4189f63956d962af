"""Options become settings; an invalid value is an error at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_bench.bench.settings import BenchOptions, resolve_options
from lora_bench.errors import USAGE, BenchError


def test_quick_is_small_and_needs_no_network() -> None:
    """The bundled encoder and data, K = 1 and 8, both mixes, all peers with two processes."""
    settings = resolve_options(BenchOptions(quick=True))
    assert (settings.model, settings.data, settings.tasks, settings.packs) == (
        "sample",
        "sample",
        ("sst2",),
        ("1", "8"),
    )
    assert (settings.mixes, settings.peers, settings.process_counts) == (
        ("lora", "mixed"),
        ("trainer", "loop", "processes"),
        (2,),
    )
    assert (settings.threads, resolve_options(BenchOptions()).threads) == (1, None)


def test_the_defaults() -> None:
    """Short and long tasks, two target sets, six pack sizes, three numbers of processes, on RoBERTa-base."""
    settings = resolve_options(BenchOptions())
    assert settings.model == "FacebookAI/roberta-base"
    assert settings.data == "task"
    assert settings.tasks == ("sst2", "cola", "mrpc", "rte")
    assert settings.targets == ("qv", "attention+dense")
    assert settings.packs == ("1", "8", "16", "32", "64", "auto")
    assert settings.process_counts == (2, 4, 8)
    assert settings.seconds > resolve_options(BenchOptions(quick=True)).seconds


def test_options_replace_defaults_and_count_once() -> None:
    settings = resolve_options(
        BenchOptions(
            quick=True,
            model="some/encoder",
            data_dir=Path("data"),
            task=["rte", "rte"],
            targets=["query"],
            mix=["mixed"],
            pack=["4", "04", "auto"],
            peers="loop, trainer",
            batch_size=8,
            seconds=2.5,
            name="mine",
        )
    )
    assert (settings.model, settings.data, settings.tasks, settings.targets) == (
        "some/encoder",
        Path("data"),
        ("rte",),
        ("query",),
    )
    assert (settings.mixes, settings.packs, settings.peers) == (("mixed",), ("4", "auto"), ("loop", "trainer"))
    assert (settings.batch_size, settings.seconds, settings.name) == (8, 2.5, "mine")


def test_resolving_options_does_not_import_torch() -> None:
    """So that a wrong option shows at once."""
    probe = "import sys; from lora_bench.bench import settings; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_full_is_measured_on_request() -> None:
    assert resolve_options(BenchOptions(mix=["full", "lora"])).mixes == ("full", "lora")
    assert "full" not in resolve_options(BenchOptions()).mixes


def test_no_peers() -> None:
    assert resolve_options(BenchOptions(peers="none")).peers == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": ["sst3"]}, "sst2"),
        ({"mix": ["mixt"]}, "mixed"),
        ({"pack": ["many"]}, "--pack"),
        ({"pack": ["0"]}, "--pack"),
        ({"peers": "trainer,lopp"}, "loop"),
        ({"precision": "bf61"}, "bf16"),
        ({"batch_size": 0}, "--batch-size"),
        ({"seconds": float("nan")}, "--seconds"),
        ({"name": "../up"}, "--name"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_the_valid_ones(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError) as caught:
        resolve_options(BenchOptions(**options))
    assert words in str(caught.value)
    assert caught.value.code == USAGE

"""Options become a choice; what is no value is told at once."""

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
    chosen = resolve_options(BenchOptions(quick=True))
    assert (chosen.model, chosen.data, chosen.tasks, chosen.packs) == ("sample", "sample", ("sst2",), ("1", "8"))
    assert (chosen.mixes, chosen.peers, chosen.process_counts) == (
        ("lora", "mixed"),
        ("trainer", "loop", "processes"),
        (2,),
    )
    assert (chosen.threads, resolve_options(BenchOptions()).threads) == (1, None)


def test_by_default_all_that_was_promised() -> None:
    """Short and long tasks, two target sets, six pack sizes, three numbers of processes, on RoBERTa-base."""
    chosen = resolve_options(BenchOptions())
    assert chosen.model == "FacebookAI/roberta-base"
    assert chosen.data == "hub"
    assert chosen.tasks == ("sst2", "cola", "mrpc", "rte")
    assert chosen.targets == ("qv", "attention+dense")
    assert chosen.packs == ("1", "8", "16", "32", "64", "auto")
    assert chosen.process_counts == (2, 4, 8)
    assert chosen.seconds > resolve_options(BenchOptions(quick=True)).seconds


def test_wishes_go_before_defaults_and_count_once() -> None:
    chosen = resolve_options(
        BenchOptions(
            quick=True, model="some/encoder", data_dir=Path("data"), task=["rte", "rte"], targets=["query"],
            mix=["mixed"], pack=["4", "04", "auto"], peers="loop, trainer", batch_size=8, seconds=2.5, name="mine",
        )
    )  # fmt: skip
    assert (chosen.model, chosen.data, chosen.tasks, chosen.targets) == ("some/encoder", "data", ("rte",), ("query",))
    assert (chosen.mixes, chosen.packs, chosen.peers) == (("mixed",), ("4", "auto"), ("loop", "trainer"))
    assert (chosen.batch_size, chosen.seconds, chosen.name) == (8, 2.5, "mine")


def test_choosing_costs_no_torch() -> None:
    """What is wrong with the options shows at once."""
    probe = "import sys; from lora_bench.bench import settings; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_full_is_there_for_who_asks() -> None:
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
def test_what_is_no_value_is_told_with_what_is(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError) as caught:
        resolve_options(BenchOptions(**options))
    assert words in str(caught.value)
    assert caught.value.code == USAGE

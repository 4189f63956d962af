"""Memory, threads and devices that run out: named as what they are, also where a library says something else."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import RobertaConfig, RobertaModel

from lora_bench.engine.shortage import is_memory, shortages
from lora_bench.errors import MISSING, BenchError
from lora_bench.testing import make_data

MEMORY = "Memory ran out while the model was loaded."
CASES = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."), MEMORY),
    (MemoryError(), MEMORY),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), MEMORY),
    (OSError(12, "Cannot allocate memory"), MEMORY),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MEMORY),
    (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), MEMORY),
    (RuntimeError("can't start new thread"), "The system started no further thread while the model was loaded."),
    (BlockingIOError(11, "Resource temporarily unavailable"), "The system started no further thread"),
    (
        RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might be"),
        "All devices were busy or unavailable while the model was loaded.",
    ),
    (
        RuntimeError("CUDA error: unspecified launch failure\nmore"),
        "The device failed while the model was loaded: CUDA",
    ),
]
LIMITED = """
import resource, sys
from lora_bench.cli.app import app
import lora_bench.run.worker, pandas, transformers.models.roberta.modeling_roberta
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
app(sys.argv[2:])
"""


@pytest.mark.parametrize(("error", "words"), CASES)
def test_a_shortage_is_named(error: Exception, words: str) -> None:
    with pytest.raises(BenchError) as named, shortages("the model was loaded"):
        raise error
    assert named.value.code == MISSING
    assert named.value.what.startswith(words)
    assert "\n" not in named.value.what
    assert is_memory(error) == (words == MEMORY)


def test_a_shortage_is_named_where_it_was_taken_for_something_else() -> None:
    error = BenchError("It is not an encoder.", "Use another.", MISSING)
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(BenchError, match="Memory ran out"), shortages("the model was loaded"):
        raise error


def test_what_is_no_shortage_stays_as_it_is() -> None:
    for error in (ValueError("out of memory"), BenchError("out of memory", "no"), RuntimeError("shapes differ")):
        with pytest.raises(type(error)) as same, shortages("the model was loaded"):
            raise error
        assert same.value is error


def test_a_thread_that_does_not_start() -> None:
    before = threading.stack_size(2**60)  # larger than the address space of any processor
    try:
        with pytest.raises(BenchError, match="no further thread"), shortages("the model was loaded"):
            threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_memory_that_runs_out_while_the_encoder_is_loaded(tmp_path: Path) -> None:
    """In a process that may take 150 MB more, a model of 256 MB: two lines and exit code 3."""
    config = RobertaConfig(
        vocab_size=1_000_000, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    with torch.device("meta"):
        shapes = {name: part.shape for name, part in RobertaModel(config).state_dict().items()}
    (tmp_path / "model").mkdir()
    save_file(
        {n: torch.zeros(s) for n, s in shapes.items()}, tmp_path / "model" / "model.safetensors", {"format": "pt"}
    )
    (tmp_path / "model" / "config.json").write_text(json.dumps(config.to_dict()))
    words = (
        "run", "--model", "model", "--data-dir", str(make_data(tmp_path / "rows")), "--task", "sst2", "--method",
        "lora", "--rank", "2", "--results", "results", "--offline", "--device", "cpu",
    )  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, "150", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == MISSING, ended.stderr
    assert ended.stderr.splitlines()[0] == "Error: Memory ran out while the model 'model' was loaded."
    assert len(ended.stderr.splitlines()) == 2

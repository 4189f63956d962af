"""A pack on a CPU takes its memory from the system once, not in every step."""

from __future__ import annotations

import platform
import sys

import pytest

from lora_bench.testing import make_cell
from tests.engine.engine_factory import backbone, trainer

if sys.platform != "win32":
    import resource

PAGE_FAULTS = 2000  # of a step (chosen): a step of this pack frees 15,500 pages; the heap may still grow a little


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides for itself")
def test_a_step_takes_no_new_memory_from_the_system() -> None:
    pack = trainer([make_cell("lora", rank=rank, batch_size=32) for rank in range(1, 17)], backbone(), count=320)
    batches = pack.batch_rows(1)
    with pack.pack:
        pack.train(batches)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        pack.train(batches)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < PAGE_FAULTS * len(batches)

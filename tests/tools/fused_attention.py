"""Other launches of the attention kernels of `engine.kernels.layers`, on the sizes of `fused_products`' packs.

A backward program holds a whole window in registers, so that one fits on a multiprocessor, and nothing hides the time
until its values arrive. With fewer registers (`maxnreg`) or smaller blocks two fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from lora_bench.engine.kernels.types import AttentionLayout
from lora_bench.engine.masks import DropoutMask
from tests.tools.fused_loads import DEVICE

HEADS, HEAD = 12, 64


@dataclass(frozen=True)
class Launch:
    """Queries of a block, warps, and the most registers of a thread (None for the compiler's choice)."""

    queries: int
    warps: int
    registers: int | None = None


NOW: Launch | None = None  # the engine's own
LAUNCHES: dict[tuple[int, bool], tuple[Launch | None, ...]] = {
    (128, True): (NOW, Launch(128, 8), Launch(128, 8, 128), Launch(32, 4)),
    (128, False): (NOW, Launch(128, 8, 128), Launch(128, 8, 168), Launch(64, 4)),
    (64, True): (NOW, Launch(64, 8), Launch(32, 4)),
    (64, False): (NOW, Launch(64, 8), Launch(64, 4, 128), Launch(32, 4, 128)),
}
PACKS = {128: (32, 14), 64: (64, 7)}  # cells and windows of a pack, by the windows' width


@contextmanager
def launched_by(launch: Launch | None) -> Iterator[None]:
    """Let the kernels be launched so."""
    from lora_bench.engine.kernels import layers

    engines = layers._attention_launch

    def changed(*args: Any) -> dict[str, Any]:
        values = engines(*args)
        if launch is not None:
            values |= {"M": launch.queries, "num_warps": launch.warps}
            values |= {} if launch.registers is None else {"maxnreg": launch.registers}
        return values

    with patch.object(layers, "_attention_launch", changed):
        yield


def make_call(width: int, is_forward: bool, cells: int, windows: int) -> Callable[[], Tensor]:
    """One direction of attention over fresh values, with dropout."""
    from lora_bench.engine.kernels import layers

    slots, size = windows * width, HEADS * HEAD
    qkv = torch.randn(cells, slots, 3 * size, device=DEVICE, dtype=torch.bfloat16)
    grad = torch.randn(cells, slots, size, device=DEVICE, dtype=torch.bfloat16)
    segments = torch.arange(slots, device=DEVICE) // (width // 2)
    mask = DropoutMask(torch.rand(windows, HEADS, width, width, device=DEVICE) >= 0.1, 1 / 0.9)
    layout = AttentionLayout(segments, width, HEADS, HEAD**-0.5)
    if is_forward:
        return partial(layers.attention, qkv, layout, mask)
    return partial(layers.attention_backward, grad, qkv, layout, mask)


def compile_attention() -> None:
    """Run every launch once on a small pack."""
    for (width, is_forward), launches in LAUNCHES.items():
        call = make_call(width, is_forward, 2, 2)
        for launch in launches:
            with launched_by(launch):
                call()
    torch.cuda.synchronize()


def compare_attention(milliseconds: Callable[[Callable[[], object]], float], deadline: float) -> None:
    """Time every launch, and compare its results with those of the engine's own."""
    for (width, is_forward), launches in LAUNCHES.items():
        cells, windows = PACKS[width]
        call = make_call(width, is_forward, cells, windows)
        known = call()
        floor = known.numel() * 2 * (4 if is_forward else 7 / 3) / 3e12 * 1e3  # all that is read and written, at 3 TB/s
        print(f"\nattention {'forward' if is_forward else 'backward'}, {cells} cells, {windows} windows of {width}:")
        for launch in launches:
            if time.perf_counter() > deadline:
                return
            try:
                with launched_by(launch):
                    values = call()
                    apart = float((values.double() - known.double()).norm() / known.double().norm())
                    print(f"   {launch or 'now'}: {milliseconds(call):.3f} ms (floor {floor:.3f}), apart {apart:.1e}")
            except Exception as error:
                print(f"   {launch}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")

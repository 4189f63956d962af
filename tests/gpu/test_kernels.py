"""Every GPU kernel gives what the plain implementation in float64 gives, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lora_bench.engine.kernels import ops
from lora_bench.engine.kernels.types import AttentionLayout, Norm
from lora_bench.engine.masks import DropoutMask

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
K, N = 3, 4

over_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
over_masks = pytest.mark.parametrize("drops", [False, True], ids=["whole", "dropped"])


@pytest.fixture
def stream() -> torch.Generator:
    """Fresh random numbers, the same every time."""
    return torch.Generator("cuda").manual_seed(7)


def draw(stream: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=stream, device="cuda", dtype=torch.float64)


def mask(stream: torch.Generator, drops: bool, *shape: int) -> DropoutMask | None:
    """A mask whose windows lie apart in memory, as a step's do."""
    wide = torch.rand(shape[0], math.prod(shape[1:]) + 64, generator=stream, device="cuda") >= 0.3
    return DropoutMask(wide[:, 64:].unflatten(1, shape[1:]), 1 / 0.7) if drops else None


def error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖; NaN never passes."""
    return float((found.double() - expected).norm() / expected.norm())


@over_types
@over_masks
@pytest.mark.parametrize(("width", "size"), [(32, 128), (64, 768), (32, 384), (128, 1024), (32, 96)])
def test_add_norm(stream: torch.Generator, dtype: torch.dtype, drops: bool, width: int, size: int) -> None:
    slots = N * width
    hidden, residual, above = (draw(stream, K, slots, size).to(dtype) for _ in range(3))
    residual = residual[:1].expand(K, -1, -1) if width == 64 else residual  # the first layer's is shared
    norm = Norm((1 + draw(stream, size) / 9).to(dtype), draw(stream, size).to(dtype), 1e-5)
    dropout_mask = mask(stream, drops, N, width, size)
    exact = Norm(norm.weight.double(), norm.bias.double(), norm.epsilon)
    expected, known = ops.add_norm(hidden.double(), residual.double(), dropout_mask, exact)
    found, saved = ops.add_norm(hidden.clone(), residual, dropout_mask, norm)
    assert error(found, expected) < TOLERANCE[dtype]
    slopes = ops.add_norm_backward(above.double(), known, dropout_mask, exact)
    for one, other in zip(ops.add_norm_backward(above, saved, dropout_mask, norm), slopes, strict=True):
        assert error(one, other) < TOLERANCE[dtype]


@over_types
@pytest.mark.parametrize("scaled", [False, True])
def test_transfer(stream: torch.Generator, dtype: torch.dtype, scaled: bool) -> None:
    source = draw(stream, 5, 24, 7, 33)[:, :, :6, :].unflatten(1, (12, 2)).float()
    scale = draw(stream, 5).float() if scaled else None
    for order in ((1, 0, 2, 3, 4), (1, 2, 0, 3, 4)):
        size = [(5, 12, 2, 9, 40)[axis] for axis in order]
        whole = torch.zeros(size, device="cuda", dtype=dtype)
        target = whole.permute([order.index(axis) for axis in range(5)])[:, :, :, :6, :33]
        ops.transfer(source, target, scale)
        expected = source.double() * (1 if scale is None else scale.double().view(-1, 1, 1, 1, 1))
        assert error(target, expected) < TOLERANCE[dtype]
        assert float(whole.double().norm()) == pytest.approx(float(target.double().norm()))


@over_types
@over_masks
@pytest.mark.parametrize(
    ("width", "heads", "head"), [(32, 12, 32), (64, 12, 64), (128, 12, 64), (128, 2, 16), (32, 4, 128)]
)
@pytest.mark.parametrize("longest", [0, 128, 300], ids=["plain", "biased", "biased-longer"])
def test_attention(
    stream: torch.Generator, dtype: torch.dtype, drops: bool, width: int, heads: int, head: int, longest: int
) -> None:
    slots = N * width
    qkv = draw(stream, K, slots, 3 * heads * head).to(dtype)
    above = draw(stream, K, slots, heads * head).to(dtype)
    segments = (torch.arange(slots, device="cuda") // 11).where(torch.arange(slots, device="cuda") < slots - 40, -1)
    biases = draw(stream, heads, 2 * longest - 1).float() if longest else None
    layout = AttentionLayout(segments, width, heads, head**-0.5, biases)
    dropout_mask = mask(stream, drops, N, heads, width, width)
    same = segments.view(N, width)[:, :, None] == segments.view(N, width)[:, None, :]
    bias = torch.zeros(N, width, width, device="cuda", dtype=torch.float64).masked_fill_(~same, float("-inf"))
    expected, weights = ops.attention(qkv.double(), layout, dropout_mask, bias)
    found, kept = ops.attention(qkv, layout, dropout_mask, bias.to(dtype))
    assert (kept is None) == (dtype == torch.bfloat16)
    assert error(found, expected) < TOLERANCE[dtype]
    slope = ops.attention_backward(above.double(), qkv.double(), weights, layout, dropout_mask)
    assert error(ops.attention_backward(above, qkv, kept, layout, dropout_mask), slope) < TOLERANCE[dtype]

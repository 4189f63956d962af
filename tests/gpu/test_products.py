"""The kernels of frozen products with adapters give what float64 gives, and a cell the same bits in every pack.

They need a Hopper GPU. With `TRITON_INTERPRET=1` Triton's interpreter runs them on the CPU instead, where triton 3.6
and NumPy 2.2 are installed, on small sizes and in float16: it has no products of bfloat16.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lora_bench.engine.encoder.product import Adapter, Product
from lora_bench.engine.kernels import tiles
from lora_bench.engine.kernels.tiles import ProductKind, Tiles, TilesBySize

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == tiles.HOPPER
pytestmark = [
    pytest.mark.skipif(not INTERPRETED and not IS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),  # the interpreter's
]

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPE = torch.float16 if INTERPRETED else torch.bfloat16
LIMIT = 5e-4 if INTERPRETED else 4e-3  # of the relative error: that of rounding a value, with room
K, SIZE, INPUTS = (3, 64, 48) if INTERPRETED else (3, 768, 512)
TILINGS = (
    [Tiles(32, 16, 32, 4, 3, parts=1), Tiles(16, 16, 16, 4, 3, parts=2)]
    if INTERPRETED
    else [Tiles(128, 256, 64, 8, 3, parts=4), Tiles(128, 128, 64, 4, 3, parts=4, programs=2)]
)
SLOTS = [64, 56] if INTERPRETED else [256, 448]  # whole tiles, and a cell that ends within a tile

over_tilings = pytest.mark.parametrize("tiling", TILINGS, ids=["large", "small"])
over_slots = pytest.mark.parametrize("slots", SLOTS, ids=["whole", "cut"])
over_linears = pytest.mark.parametrize(
    ("count", "adapted"), [(1, (0,)), (1, ()), (3, (0, 1, 2)), (3, (0, 2)), (3, (1,))], ids=str
)


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program for several tiles, also where there is no GPU."""
    from lora_bench.engine.kernels import products

    monkeypatch.setattr(products, "multiprocessors", lambda _: 2)
    monkeypatch.setattr(tiles, "multiprocessors", lambda _: 1)  # no product is too small for the kernels


@pytest.fixture
def stream() -> torch.Generator:
    """Fresh random numbers, the same every time."""
    return torch.Generator(DEVICE).manual_seed(7)


def draw(stream: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=stream, device=DEVICE).to(DTYPE)


def error(values: Tensor, expected: Tensor) -> float:
    """‖values - expected‖ / ‖expected‖; NaN never passes."""
    return float((values.double() - expected).norm() / expected.norm())


class Case:
    """A product with adapters of rank R, and what flows through it."""

    def __init__(self, stream: torch.Generator, slots: int, count: int, adapted: tuple[int, ...], rank: int) -> None:
        self.weight = draw(stream, count * SIZE, INPUTS) / INPUTS**0.5
        self.bias = draw(stream, count * SIZE)
        self.inputs, self.grad = draw(stream, K, slots, INPUTS), draw(stream, K, slots, count * SIZE)
        self.before, self.accumulate = draw(stream, K, slots, INPUTS), draw(stream, K, slots, INPUTS)
        self.adapted, self.rank = adapted, rank
        self.down = draw(stream, K, len(adapted) * rank, INPUTS) / INPUTS**0.5 if adapted else None
        self.up = draw(stream, len(adapted), K, SIZE, rank) if adapted else None
        self.low_rank = None if self.down is None else torch.bmm(self.inputs, self.down.mT)
        self.low_rank_grad = draw(stream, K, slots, len(adapted) * rank) if adapted else None

    def outputs(self) -> Tensor:
        """y in float64."""
        out: Tensor = self.inputs.double() @ self.weight.double().T + self.bias.double()
        for index, position in enumerate(self.adapted):
            assert self.low_rank is not None
            assert self.up is not None
            inner = self.low_rank[:, :, index * self.rank : (index + 1) * self.rank]
            out[:, :, position * SIZE : (position + 1) * SIZE] += inner.double() @ self.up[index].double().mT
        return out

    def input_grad(self) -> Tensor:
        """dx in float64."""
        grad: Tensor = self.grad.double() @ self.weight.double()
        if self.low_rank_grad is not None and self.down is not None:
            grad += self.low_rank_grad.double() @ self.down.double()
        return grad


@over_tilings
@over_slots
@over_linears
@pytest.mark.parametrize("rank", [0, 8, 40])
def test_forward(
    stream: torch.Generator, tiling: Tiles, slots: int, count: int, adapted: tuple[int, ...], rank: int
) -> None:
    from lora_bench.engine.kernels import products

    case = Case(stream, slots, count, adapted, rank)
    for with_gelu in (False, True):
        out, activation = products.forward(
            case.inputs, case.weight, case.bias, case.low_rank, case.up, adapted, with_gelu, tiling
        )
        assert error(out, case.outputs()) < LIMIT
        assert (activation is not None) == with_gelu
        assert activation is None or error(activation, gelu(out.double())) < LIMIT


@over_tilings
@over_slots
@over_linears
@pytest.mark.parametrize("rank", [0, 8, 40])
def test_backward(
    stream: torch.Generator, tiling: Tiles, slots: int, count: int, adapted: tuple[int, ...], rank: int
) -> None:
    from lora_bench.engine.kernels import products

    case = Case(stream, slots, count, adapted, rank)
    args = case.grad, case.weight, case.low_rank_grad, case.down
    expected = case.input_grad()
    assert error(products.backward(*args, None, None, False, tiling)[0], expected) < LIMIT
    total, _ = products.backward(*args, case.accumulate.clone(), None, False, tiling)
    assert error(total, expected + case.accumulate.double()) < LIMIT
    before = case.before.double().requires_grad_()
    gelu(before).backward(expected)
    assert before.grad is not None
    for recompute in (False, True):
        grad, activation = products.backward(*args, None, case.before, recompute, tiling)
        assert error(grad, before.grad) < LIMIT
        assert (activation is not None) == recompute
        assert activation is None or error(activation, gelu(before).detach()) < LIMIT


@over_tilings
@over_slots
def test_a_cell_alone_gives_the_bits_that_it_gives_among_others(
    stream: torch.Generator, tiling: Tiles, slots: int
) -> None:
    from lora_bench.engine.kernels import products

    case = Case(stream, slots, 3, (0, 2), 16)
    assert case.low_rank is not None
    assert case.low_rank_grad is not None
    assert case.up is not None
    assert case.down is not None
    out, activation = products.forward(
        case.inputs, case.weight, case.bias, case.low_rank, case.up, (0, 2), True, tiling
    )
    grad, _ = products.backward(case.grad, case.weight, case.low_rank_grad, case.down, None, None, False, tiling)
    assert activation is not None
    for cell in range(K):
        part = slice(cell, cell + 1)
        alone, alone_activation = products.forward(
            case.inputs[part], case.weight, case.bias, case.low_rank[part], case.up[:, part], (0, 2), True, tiling
        )
        assert alone_activation is not None
        assert torch.equal(alone[0], out[cell])
        assert torch.equal(alone_activation[0], activation[cell])
        alone_grad, _ = products.backward(
            case.grad[part], case.weight, case.low_rank_grad[part], case.down[part], None, None, False, tiling
        )
        assert torch.equal(alone_grad[0], grad[cell])


@pytest.mark.skipif(INTERPRETED, reason="the engine uses the kernels on a GPU only")
@pytest.mark.parametrize("fields", ["", "gain", "shift", "stretch", "gain shift stretch"])
def test_a_product_of_the_engine(stream: torch.Generator, monkeypatch: pytest.MonkeyPatch, fields: str) -> None:
    """With entries in the tables it gives what it gives without, within rounding."""
    product = Product([nn.Linear(INPUTS, SIZE, device=DEVICE).to(DTYPE)])
    case = Case(stream, 256, 1, (0,), 16)
    assert case.down is not None
    assert case.up is not None
    vectors = {
        "gain": draw(stream, 1, K, 1, SIZE) / 9,
        "shift": draw(stream, 1, K, 1, SIZE) / 9,
        "stretch": draw(stream, K, 1, INPUTS) / 9,
    }
    adapter = Adapter((0,), case.down, case.up, **{name: vectors[name] for name in fields.split()})

    def run() -> list[Tensor]:
        out, activation, saved = product.forward_with_gelu(case.inputs, adapter)
        assert saved is not None
        grad = product.input_backward(case.grad, case.low_rank_grad, adapter, case.accumulate.clone())
        wide, again = product.gelu_input_backward(case.grad, case.low_rank_grad, adapter, case.before)
        assert again is not None
        return [out, activation, grad, wide, again]

    without = run()
    kind = ProductKind(SIZE, INPUTS, adapted=True)
    monkeypatch.setitem(tiles.FORWARD, kind, TilesBySize(TILINGS[0], TILINGS[0]))
    monkeypatch.setitem(tiles.BACKWARD, kind, TilesBySize(TILINGS[0], TILINGS[0]))
    assert tiles.tiles_for(tiles.FORWARD, case.inputs, product.weight, SIZE, 16) is not None
    for ours, plain in zip(run(), without, strict=True):
        assert error(ours, plain.double()) < 3 * LIMIT

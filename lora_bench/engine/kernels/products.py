"""GPU kernels (Triton) for a frozen product with low-rank adapters: the adapter is part of the product itself.

With cuBLAS the adapter's part is a second product that reads all outputs and writes them again. Here a program holds a
tile of the outputs in registers, adds both parts to it and writes it once. With the adapters of each cell, slots s,
columns n:

    forward     out[c, s, n] = Σₖ x[c, s, k] W[n, k] + Σᵣ u[c, s, r] B[c, n, r] + bias[n]         u = x Aᵀ
    backward    dx[c, s, k] = Σₙ dy[c, s, n] W[n, k] + Σᵣ g[c, s, r] A[c, r, k] (+ dx before)     g = dy B

A tile belongs to one cell, so that it needs one B or A. Tiles are counted within each cell: the last one of a cell may
reach past its slots, and the tensor memory accelerator (TMA) reads zeros there and writes nothing. A value of the
outputs is summed in the same order whatever the number of cells is, so it does not depend on the pack.

The kernels need a Hopper GPU for TMA. Products are in bfloat16 with sums in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lora_bench.engine.kernels.tiles import Tiles, multiprocessors

# Sizes that differ between batches and packs: Triton would compile a kernel again where one is 1 or divisible by 16.
SIZES = ["cells", "slots", "depth", "columns", "rank", "size", "adapters"]
BACKWARD_SIZES = ["cells", "slots", "depth", "columns", "ranks"]


@triton.jit
def _tile(index, cells, row_tiles_of_cell, column_tiles, GROUP: tl.constexpr):
    """The cell, the row tile within it and the column tile of a tile.

    GROUP row tiles are walked column by column, so that the programs that run at the same time share rows of the
    inputs and of the weight, which are then in the L2 cache.
    """
    row_tiles = cells * row_tiles_of_cell
    in_group = index % (GROUP * column_tiles)
    first = index // (GROUP * column_tiles) * GROUP
    size = min(row_tiles - first, GROUP)
    row_tile = first + in_group % size
    return row_tile // row_tiles_of_cell, row_tile % row_tiles_of_cell, in_group // size


@triton.jit
def _adapter_of(linear, LINEARS: tl.constexpr):
    """Whether a linear of the product is adapted (1 or 0), and its index among those that are.

    LINEARS has a bit for each adapted linear, of three at most (queries, keys, values).
    """
    before = (linear > 0) * (LINEARS & 1) + (linear > 1) * ((LINEARS >> 1) & 1)
    return (LINEARS >> linear) & 1, before


# The normal distribution function Φ and e = exp(-x² / 2), for gelu(x) = x Φ(x) and its derivative Φ(x) + x e / √(2π).
# Φ(-|x|) = ½ t (a₁ + t (a₂ + t (a₃ + t (a₄ + t a₅)))) e with t = 1 / (1 + p |x| / √2) (Abramowitz and Stegun 7.1.26) is
# wrong by at most 7.5e-8, about float32's rounding near 1. It takes half the instructions of `erf`, which count: the
# tensor cores have nothing to do while a tile is written. The constants are aᵢ / 2, p / √2 and -½ log₂ e.
@triton.jit
def _normal(value):
    exponential = tl.exp2(value * value * -0.7213475204444817)
    t = 1.0 / (1.0 + 0.2316418882663604 * tl.abs(value))
    tail = 0.5307027145
    tail = tail * t - 0.7265760135
    tail = tail * t + 0.7107068705
    tail = tail * t - 0.142248368
    tail = (tail * t + 0.127414796) * t * exponential
    return tl.where(value > 0, 1.0 - tail, tail), exponential


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _end_forward(
    tile, bias, out, activation, cell, row, column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """Add the bias and write a tile in PARTS; with GELU also the activation, of the outputs as they were rounded."""
    if PARTS > 1:
        one, other = _halves(tile, ROWS, COLUMNS)
        half: tl.constexpr = COLUMNS // 2
        _end_forward(one, bias, out, activation, cell, row, column, ROWS, half, PARTS // 2, GELU)
        _end_forward(other, bias, out, activation, cell, row, column + half, ROWS, half, PARTS // 2, GELU)
    else:
        tile += tl.load(bias + column + tl.arange(0, COLUMNS)).to(tl.float32)[None, :]
        rounded = tile.to(out.dtype)
        out.store([cell, row, column], rounded.reshape(1, ROWS, COLUMNS))
        if GELU:
            value = rounded.to(tl.float32)
            probability, _ = _normal(value)
            activation.store([cell, row, column], (value * probability).to(out.dtype).reshape(1, ROWS, COLUMNS))


# A program walks over tiles of ROWS × COLUMNS outputs. Both sums are one loop over blocks of DEPTH: first those of x
# and W, then those of u and B. The blocks differ only in the descriptors that they are read by, so several of them, and
# those of the next tile too, are on their way while one is in use; with two loops each would begin by waiting.
# To be joined into one by the compiler (`flatten`), the loops over tiles and blocks need a number of blocks that is the
# same for all tiles. So where a linear is not adapted, u and B are read past their ends, where there are zeros. A block
# of u may reach into the columns of the next linear: B is zero there.
@triton.jit(do_not_specialize=SIZES)
def _adapted_product(
    inputs, weight, low_rank, up, bias, out, activation,
    cells, slots, depth, columns, rank, size, adapters,
    LINEARS: tl.constexpr, GELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row_tiles, column_tiles = tl.cdiv(slots, ROWS), columns // COLUMNS
    frozen_blocks = tl.cdiv(depth, DEPTH)
    blocks = frozen_blocks + tl.cdiv(rank, DEPTH)
    for index in tl.range(tl.program_id(0), cells * row_tiles * column_tiles, tl.num_programs(0), flatten=True):
        cell, row_tile, column_tile = _tile(index, cells, row_tiles, column_tiles, GROUP)
        row, column = row_tile * ROWS, column_tile * COLUMNS
        linear = column // size
        is_adapted, adapter = _adapter_of(linear, LINEARS)
        adapter = tl.where(is_adapted != 0, adapter, adapters)
        tile = tl.zeros((ROWS, COLUMNS), tl.float32)
        for block in range(blocks):
            left, right = inputs, weight
            group, right_row, first = 0, column, block * DEPTH
            left_first = first
            if block >= frozen_blocks:
                left, right = low_rank, up
                group, right_row = adapter * cells + cell, column - linear * size
                first -= frozen_blocks * DEPTH
                left_first = adapter * rank + first
            one = left.load([cell, row, left_first]).reshape(ROWS, DEPTH)
            other = right.load([group, right_row, first]).reshape(COLUMNS, DEPTH)
            tile = tl.dot(one, other.T, tile)
        _end_forward(tile, bias, out, activation, cell, row, column, ROWS, COLUMNS, PARTS, GELU)


@triton.jit
def _end_backward(
    tile, out, pre_activation, activation, cell, row, column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
    ACCUMULATE: tl.constexpr, GELU: tl.constexpr, RECOMPUTE: tl.constexpr,
):  # fmt: skip
    """Write a tile of dx in PARTS, or of dx added to what is there, or of the gradient before GELU."""
    if PARTS > 1:
        one, other = _halves(tile, ROWS, COLUMNS)
        half: tl.constexpr = COLUMNS // 2
        _end_backward(
            one, out, pre_activation, activation, cell, row, column,
            ROWS, half, PARTS // 2, ACCUMULATE, GELU, RECOMPUTE,
        )  # fmt: skip
        _end_backward(
            other, out, pre_activation, activation, cell, row, column + half,
            ROWS, half, PARTS // 2, ACCUMULATE, GELU, RECOMPUTE,
        )  # fmt: skip
    else:
        if ACCUMULATE:
            tile += out.load([cell, row, column]).reshape(ROWS, COLUMNS).to(tl.float32)
        if GELU:
            value = pre_activation.load([cell, row, column]).reshape(ROWS, COLUMNS).to(tl.float32)
            probability, exponential = _normal(value)
            tile *= probability + value * exponential * 0.3989422804014327
            if RECOMPUTE:
                activated = (value * probability).to(out.dtype)
                activation.store([cell, row, column], activated.reshape(1, ROWS, COLUMNS))
        out.store([cell, row, column], tile.to(out.dtype).reshape(1, ROWS, COLUMNS))


# As `_adapted_product`, with the weight read the other way round; the ranks of all adapted linears are one sum.
@triton.jit(do_not_specialize=BACKWARD_SIZES)
def _adapted_product_backward(
    grad, weight, low_rank_grad, down, out, pre_activation, activation,
    cells, slots, depth, columns, ranks,
    ACCUMULATE: tl.constexpr, GELU: tl.constexpr, RECOMPUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row_tiles, column_tiles = tl.cdiv(slots, ROWS), columns // COLUMNS
    frozen_blocks = tl.cdiv(depth, DEPTH)
    blocks = frozen_blocks + tl.cdiv(ranks, DEPTH)
    for index in tl.range(tl.program_id(0), cells * row_tiles * column_tiles, tl.num_programs(0), flatten=True):
        cell, row_tile, column_tile = _tile(index, cells, row_tiles, column_tiles, GROUP)
        row, column = row_tile * ROWS, column_tile * COLUMNS
        tile = tl.zeros((ROWS, COLUMNS), tl.float32)
        for block in range(blocks):
            left, right = grad, weight
            group, first = 0, block * DEPTH
            if block >= frozen_blocks:
                left, right = low_rank_grad, down
                group, first = cell, first - frozen_blocks * DEPTH
            one = left.load([cell, row, first]).reshape(ROWS, DEPTH)
            tile = tl.dot(one, right.load([group, first, column]).reshape(DEPTH, COLUMNS), tile)
        _end_backward(
            tile, out, pre_activation, activation, cell, row, column,
            ROWS, COLUMNS, PARTS, ACCUMULATE, GELU, RECOMPUTE,
        )  # fmt: skip


def forward(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    low_rank: Tensor | None,
    up: Tensor | None,
    linears: Sequence[int],
    with_gelu: bool,
    tiles: Tiles,
) -> tuple[Tensor, Tensor | None]:
    """Compute `x Wᵀ + u Bᵀ + bias` of every cell.

    Args:
        inputs: x, `[K, S, in]`.
        weight: W, `[out of all linears, in]`.
        bias: `[out of all linears]`.
        low_rank: u, `[K, S, J · R]`; None without adapters.
        up: B, `[J, K, out, R]`; None without adapters.
        linears: The index of each of the J adapted linears within the product, in rising order.
        with_gelu: Whether gelu of the outputs is wanted too.
        tiles: The tiles.

    Returns:
        The outputs `[K, S, out of all linears]`, and gelu of them or None.
    """
    cells, slots, depth = inputs.shape
    columns = weight.shape[0]
    if low_rank is None or up is None or not up.shape[-1]:  # neither is read
        low_rank, up, linears = inputs, weight[None, None, :, :], ()
        size, rank = columns, 0
    else:
        size, rank = up.shape[2:]
    out = inputs.new_empty(cells, slots, columns)
    activation = torch.empty_like(out) if with_gelu else None
    _adapted_product[_grid(out, tiles)](
        _rows(inputs, tiles, tiles.depth),
        TensorDescriptor.from_tensor(weight[None], [1, tiles.columns, tiles.depth]),
        _rows(low_rank, tiles, tiles.depth),
        TensorDescriptor.from_tensor(up.flatten(0, 1), [1, tiles.columns, tiles.depth]),
        bias, _end(out, tiles), _end(activation, tiles),
        cells, slots, depth, columns, rank, size, len(linears),
        LINEARS=sum(1 << index for index in linears), GELU=with_gelu, **_launch(tiles),
    )  # fmt: skip
    return out, activation


def backward(
    grad: Tensor,
    weight: Tensor,
    low_rank_grad: Tensor | None,
    down: Tensor | None,
    accumulate: Tensor | None,
    pre_activation: Tensor | None,
    recompute: bool,
    tiles: Tiles,
) -> tuple[Tensor, Tensor | None]:
    """Compute `dx = dy W + g A` of every cell; with a `pre_activation` p the gradient of p, where x = gelu(p).

    Args:
        grad: dy, `[K, S, out of all linears]`.
        weight: W, `[out of all linears, in]`.
        low_rank_grad: g, `[K, S, J · R]`; None without adapters.
        down: A, `[K, J · R, in]`; None without adapters.
        accumulate: A gradient `[K, S, in]` that dx is added to in place; not together with a pre-activation.
        pre_activation: p, `[K, S, in]`.
        recompute: Whether gelu(p) is wanted again.
        tiles: The tiles.

    Returns:
        The gradient `[K, S, in]`, and gelu(p) or None.
    """
    cells, slots, depth = grad.shape
    columns, ranks = weight.shape[1], 0
    if low_rank_grad is None or down is None or not down.shape[1]:  # neither is read
        low_rank_grad, down = grad, weight[None]
    else:
        ranks = down.shape[1]
    out = grad.new_empty(cells, slots, columns) if accumulate is None else accumulate
    activation = torch.empty_like(out) if recompute else None
    _adapted_product_backward[_grid(out, tiles)](
        _rows(grad, tiles, tiles.depth),
        TensorDescriptor.from_tensor(weight[None], [1, tiles.depth, tiles.columns]),
        _rows(low_rank_grad, tiles, tiles.depth),
        TensorDescriptor.from_tensor(down, [1, tiles.depth, tiles.columns]),
        _end(out, tiles), _end(pre_activation, tiles), _end(activation, tiles),
        cells, slots, depth, columns, ranks,
        ACCUMULATE=accumulate is not None, GELU=pre_activation is not None, RECOMPUTE=recompute,
        **_launch(tiles),
    )  # fmt: skip
    return out, activation


def _rows(tensor: Tensor, tiles: Tiles, width: int) -> TensorDescriptor:
    """Tiles of a tensor `[K, S, features]`, for TMA: `width` features of rows of one cell."""
    return TensorDescriptor.from_tensor(tensor, [1, tiles.rows, width])


def _end(tensor: Tensor | None, tiles: Tiles) -> TensorDescriptor | None:
    """Tiles for the end of a tile of outputs."""
    return None if tensor is None else _rows(tensor, tiles, tiles.columns // tiles.parts)


def _grid(out: Tensor, tiles: Tiles) -> tuple[int]:
    cells, slots, columns = out.shape
    count = cells * triton.cdiv(slots, tiles.rows) * (columns // tiles.columns)
    return (min(count, multiprocessors(out.device) * tiles.programs),)


def _launch(tiles: Tiles) -> dict[str, Any]:
    """The constants that a kernel is compiled for."""
    return {
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "DEPTH": tiles.depth,
        "GROUP": tiles.group,
        "PARTS": tiles.parts,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }

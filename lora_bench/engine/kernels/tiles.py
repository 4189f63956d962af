"""How the kernels of `products` cut a product into tiles, and for which products they are used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

HOPPER = 9  # the major compute capability: the kernels read and write through its tensor memory accelerator


class Tiles(NamedTuple):
    """How a product is cut into tiles.

    Attributes:
        rows: Slots of a tile.
        columns: Outputs of a tile.
        depth: Inputs that are read at a time.
        warps: Warps that share a tile.
        stages: Blocks of inputs that are in shared memory at a time: in use or on their way.
        parts: In how many parts a tile is written: more need less shared memory and fewer registers.
        programs: Programs on each multiprocessor, which walk over the tiles.
        group: Row tiles that are walked column by column (`products._tile`).
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int = 2
    programs: int = 1
    group: int = 8


class ProductKind(NamedTuple):
    """What decides, with the size of the product (`choose_tiles`), how it is computed.

    Attributes:
        outputs: Rows of the frozen weight.
        inputs: Columns of the frozen weight.
        adapted: Whether a cell of the pack has a low-rank adapter there.
    """

    outputs: int
    inputs: int
    adapted: bool


# Large tiles read the inputs fewer times, small ones keep all multiprocessors busy when there are few tiles. All tiles
# give the same bits, so that a pack's size may choose among them.
LARGE = Tiles(128, 256, 64, warps=8, stages=3, parts=2)
SMALL = Tiles(128, 128, 64, warps=4, stages=3, parts=4, programs=2)
SMALL_WIDE = Tiles(128, 128, 64, warps=8, stages=3, parts=4, programs=2)  # more warps, for what GELU needs
MANY_ROUNDS = 3  # large tiles for each multiprocessor from which on they are faster than small ones


class TilesBySize(NamedTuple):
    """The tiles of a product that has many tiles for each multiprocessor, and of one that has few."""

    many: Tiles
    few: Tiles


# For which products the kernels are used: those where, by measurement on an H200, they are faster than cuBLAS with the
# adapters apart (`tests/tools/fused_products.py` prints all times). Only the sizes of encoders of 768 × 3072 have been
# measured; all others are left to cuBLAS.
FORWARD: dict[ProductKind, TilesBySize] = {
    ProductKind(outputs=2304, inputs=768, adapted=True): TilesBySize(LARGE, SMALL),
    ProductKind(outputs=768, inputs=768, adapted=True): TilesBySize(SMALL, SMALL),
    ProductKind(outputs=3072, inputs=768, adapted=True): TilesBySize(SMALL, SMALL),
    ProductKind(outputs=768, inputs=3072, adapted=True): TilesBySize(LARGE, SMALL),
}
BACKWARD: dict[ProductKind, TilesBySize] = {
    ProductKind(outputs=2304, inputs=768, adapted=True): TilesBySize(LARGE, SMALL),
    ProductKind(outputs=768, inputs=768, adapted=True): TilesBySize(SMALL, SMALL),
    ProductKind(outputs=3072, inputs=768, adapted=True): TilesBySize(LARGE, SMALL),
    ProductKind(outputs=768, inputs=3072, adapted=True): TilesBySize(SMALL_WIDE, SMALL_WIDE),
    ProductKind(outputs=768, inputs=3072, adapted=False): TilesBySize(SMALL_WIDE, SMALL_WIDE),
}


def tiles_for(
    table: Mapping[ProductKind, TilesBySize], inputs: Tensor, weight: Tensor, columns: int, rank: int
) -> Tiles | None:
    """The tiles of a product; None if cuBLAS computes it.

    Args:
        table: `FORWARD` or `BACKWARD`.
        inputs: What is multiplied by the weight, `[K, S, depth]`.
        weight: The frozen weight `[outputs, inputs]`.
        columns: The outputs of one linear in forward; the weight's inputs in backward.
        rank: R, 0 without an adapter.
    """
    # ROCm's cards are called CUDA devices too, with a compute capability of 9.
    if not table or not inputs.is_cuda or torch.version.hip is not None or inputs.dtype != torch.bfloat16:
        return None
    by_size = table.get(ProductKind(weight.shape[0], weight.shape[1], rank > 0))
    if by_size is None or torch.cuda.get_device_capability(inputs.device)[0] != HOPPER:
        return None
    outputs = sum(weight.shape) - inputs.shape[2]  # one of the weight's sizes is summed over
    tiles = choose_tiles(by_size, len(inputs), inputs.shape[1], outputs, multiprocessors(inputs.device))
    return tiles if tiles is not None and supports(tiles, inputs, columns, rank) else None


def choose_tiles(by_size: TilesBySize, cells: int, slots: int, outputs: int, processors: int) -> Tiles | None:
    """The tiles for a product of a size; None where not even every multiprocessor has a tile: cuBLAS is faster there.

    Args:
        by_size: The tiles to choose from.
        cells: K.
        slots: S of each cell.
        outputs: The columns of what is computed.
        processors: The GPU's multiprocessors.
    """
    count = cells * -(-slots // LARGE.rows) * -(-outputs // LARGE.columns)
    if count < processors:
        return None
    return by_size.many if count >= MANY_ROUNDS * processors else by_size.few


def supports(tiles: Tiles, inputs: Tensor, columns: int, rank: int) -> bool:
    """Whether the kernels run on these sizes, and do not waste more than a fifth of the rows; see `tiles_for`."""
    slots, depth = inputs.shape[1:]
    computed = -(-slots // tiles.rows) * tiles.rows
    # The tensor memory accelerator wants rows of whole 16 bytes, which are 8 values. Cells that share their inputs
    # (stride 0) are left to cuBLAS, which computes the frozen product once.
    is_aligned = depth % 8 == 0 and rank % 8 == 0 and inputs.is_contiguous()
    return is_aligned and columns % tiles.columns == 0 and slots * 5 >= computed * 4


@cache
def multiprocessors(device: torch.device) -> int:
    """The number of multiprocessors of a GPU."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)

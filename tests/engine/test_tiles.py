"""Which tiles compute a product is decided by its size, and by what was measured of its kind."""

from __future__ import annotations

import pytest

from lora_bench.engine.kernels.tiles import BACKWARD, FORWARD, LARGE, SMALL, TilesBySize, choose_tiles

PROCESSORS = 132  # of an H100
BY_SIZE = TilesBySize(LARGE, SMALL)


@pytest.mark.parametrize(("cells", "chosen"), [(1, None), (3, None), (4, SMALL), (9, SMALL), (10, LARGE), (32, LARGE)])
def test_tiles_follow_the_number_of_cells(cells: int, chosen: object) -> None:
    """14 rows of three large tiles a cell: fewer than one, up to three and more for each multiprocessor."""
    assert choose_tiles(BY_SIZE, cells, 1792, 768, PROCESSORS) == chosen


def test_the_size_of_a_pack_changes_neither_the_order_of_sums_nor_where_kernels_are_supported() -> None:
    """Tiles of other depths would add in other blocks, and other rows would waste other parts of a cell."""
    for by_size in (*FORWARD.values(), *BACKWARD.values()):
        assert by_size.many.depth == by_size.few.depth
        assert by_size.many.rows == by_size.few.rows

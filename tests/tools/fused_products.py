"""Which tiles make the kernels of `engine.kernels.products` fastest: `python -m tests.tools.fused_products`.

First, product by product: cuBLAS with the adapters apart (what the engine does without the kernels) against each of a
few ways to cut tiles, forward and backward, with the error of both against float64, whether all tilings give the same
bits, and whether a cell alone gives the bits that it gives among others. From these times the tables of
`engine.kernels.tiles` were chosen. Then whole steps without and with these tables (`fused_steps`).

It needs an H100 for two minutes, and no files: rows are random tokens with GLUE's lengths, the encoder has
RoBERTa-base's shape and random weights. A tiling that does not compile or run is reported, and the others go on.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from lora_bench.engine.encoder.product import Adapter, down_backward
from lora_bench.engine.kernels import tiles
from lora_bench.engine.kernels.tiles import ProductKind, Tiles, TilesBySize
from tests.tools.fused_loads import DEVICE, Load, Tensors, backward, draw, exact, forward, loads, results
from tests.tools.fused_steps import compare_steps

PRODUCT_SECONDS, SECONDS = 85.0, 130.0  # after so many no further product, and no further pack, is measured
COMPILE_SECONDS = 60.0  # a tiling that takes longer is left out

TILINGS = (
    Tiles(128, 256, 64, warps=8, stages=3, parts=4),
    Tiles(128, 256, 64, warps=8, stages=3, parts=2),
    Tiles(128, 256, 64, warps=8, stages=4, parts=4),
    Tiles(128, 256, 64, warps=8, stages=3, parts=4, group=16),
    Tiles(256, 128, 64, warps=8, stages=3, parts=4),
    Tiles(128, 128, 64, warps=4, stages=3, parts=4, programs=2),
    Tiles(128, 128, 64, warps=8, stages=3, parts=4, programs=2),
    Tiles(64, 256, 64, warps=4, stages=2, parts=4, programs=2),
    Tiles(64, 128, 64, warps=4, stages=4, parts=2, programs=2),
)


def error_of(values: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error, of these cells; infinite if anything is not finite."""
    if not all(bool(value.isfinite().all()) for value in values):
        return math.inf
    return max(
        float((value.double() - right).norm() / right.norm()) for value, right in zip(values, expected, strict=True)
    )


def use(kind: ProductKind, tiling: Tiles | None) -> None:
    """Let the engine use a tiling for all products of a kind, in both directions, or cuBLAS."""
    for table in (tiles.FORWARD, tiles.BACKWARD):
        table.clear()
        if tiling is not None:
            table[kind] = TilesBySize(tiling, tiling)


def for_every_size() -> AbstractContextManager[object]:
    """Let the engine use the kernels for products too small for them, so that these are measured as well."""
    return patch.object(tiles, "multiprocessors", lambda _: 0)


def milliseconds(call: Callable[[], object]) -> float:
    """The median time of a call within a CUDA graph, which leaves out what the host needs to launch it."""
    from triton.testing import do_bench_cudagraph

    return float(do_bench_cudagraph(call, rep=4, return_mode="median"))


def peak() -> float:
    """The card's own rate for large matrices, in TFLOP/s."""
    square = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    return 2 * 8192**3 / milliseconds(partial(torch.mm, square, square)) / 1e9


def short(tiling: Tiles) -> str:
    """A tiling in a few characters."""
    t = tiling
    return f"{t.rows}x{t.columns}x{t.depth} w{t.warps} s{t.stages} p{t.parts} n{t.programs} g{t.group}"


def one_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


@dataclass
class Timing:
    """One direction of one load: cuBLAS' milliseconds, and those of each tiling."""

    load: Load
    is_forward: bool
    plain: float
    by_tiling: dict[Tiles, float]


def measure(load: Load, is_forward: bool, t: Tensors, tilings: list[Tiles]) -> Timing:
    """Check and time all tilings of one direction, and print a line for each."""
    call = partial(forward if is_forward else backward, load, t)
    direction = "forward" if is_forward else "backward"
    use(load.kind, None)
    known = results(load, t, is_forward)
    ends = [0, load.cells - 1]
    expected = exact(load, t.of_cells(ends), is_forward)
    plain_error = error_of([value[ends] for value in known], expected)
    timing = Timing(load, is_forward, milliseconds(call), {})
    flops = 2 * load.cells * load.slots * load.site.inputs * load.site.size * load.site.linears
    print(
        f"\n{load.name} {load.cells} cells x {load.slots}, {load.site.name} {direction}, r {load.rank}: "
        f"cuBLAS {timing.plain:.3f} ms ({flops / timing.plain / 1e9:.0f} TFLOP/s), error {plain_error:.1e}",
        flush=True,
    )
    first: list[Tensor] | None = None
    for tiling in tilings:
        use(load.kind, tiling)
        source = t.inputs if is_forward else t.grad
        columns = load.site.size if is_forward else load.site.inputs
        if not tiles.supports(tiling, source, columns, load.rank):
            print(f"   {short(tiling)}: not for this size")
            continue
        try:
            ours = results(load, t, is_forward)
            torch.cuda.synchronize()
            wrong = error_of([value[ends] for value in ours], expected)
            far = error_of(ours, [value.double() for value in known]) if wrong < math.inf else math.inf
            first = first or ours
            same = all(torch.equal(one, other) for one, other in zip(first, ours, strict=True))
            alone = results(load, t.of_cells([load.cells - 1]), is_forward)
            law = all(torch.equal(one[0], other[-1]) for one, other in zip(alone, ours, strict=True))
            is_right = wrong < 2 * max(plain_error, 2e-3) and far < 2e-2
            spent = milliseconds(call) if is_right else math.inf
            if is_right:
                timing.by_tiling[tiling] = spent
            print(
                f"   {short(tiling)}: {spent:.3f} ms ({flops / spent / 1e9:.0f}), {spent - timing.plain:+.3f}, "
                f"error {wrong:.1e}{'' if same else ', OTHER BITS than the first'}"
                f"{'' if law else ', A CELL ALONE DIFFERS'}{'' if is_right else f', WRONG (from cuBLAS {far:.1e})'}",
                flush=True,
            )
        except Exception as error:
            print(f"   {short(tiling)}: {one_line(error)}", flush=True)
    use(load.kind, None)
    return timing


def thin_products(t: Tensors) -> None:
    """Print what stays outside of the kernels: x Aᵀ, dy B, dyᵀ u and gᵀ x."""
    if t.adapter is None or t.low_rank_grad is None:
        return
    grads = Adapter(t.adapter.linears, torch.empty_like(t.adapter.A), torch.empty_like(t.adapter.B))
    adapter, low_rank_grad = t.adapter, t.low_rank_grad
    down = milliseconds(lambda: torch.bmm(t.inputs, adapter.A.mT))
    up = milliseconds(lambda: t.product.up_backward(t.grad, low_rank_grad, adapter, grads))
    down_grad = milliseconds(lambda: down_backward(low_rank_grad, t.inputs, adapter, grads))
    print(f"   apart in both: x A^T {down:.3f}, dy B and dy^T u {up:.3f}, g^T x {down_grad:.3f} ms")


def measure_load(load: Load, tilings: list[Tiles]) -> list[Timing]:
    """Measure both directions of one load, whose tensors are free again when this returns."""
    with torch.no_grad(), for_every_size():
        tensors = draw(load)
        timings = [measure(load, is_forward, tensors, tilings) for is_forward in (True, False)]
        thin_products(tensors)
    return timings


def summary(timings: list[Timing]) -> None:
    """Print a line for each direction of each product: cuBLAS and the fastest tiling."""
    print("\nload | direction | r | cuBLAS ms | best ms | saved | best tiling")
    for timing in timings:
        load = timing.load
        best = min(timing.by_tiling, key=timing.by_tiling.__getitem__, default=None)
        fastest = math.nan if best is None else timing.by_tiling[best]
        print(
            f"{load.name} {load.cells} x {load.slots} {load.site.name} | {'fwd' if timing.is_forward else 'bwd'} | "
            f"{load.rank} | {timing.plain:.3f} | {fastest:.3f} | {timing.plain - fastest:+.3f} | "
            f"{'none' if best is None else short(best)}"
        )


def compile_tiling(tiling: Tiles) -> tuple[list[str], bool]:
    """Run all kernels of a tiling once on small products.

    Returns:
        What went wrong, and whether it broke the process's use of the card.
    """
    problems: list[str] = []
    try:
        variants = {(load.site, load.adapted, min(load.rank, 16)) for load in loads()}
        for site, positions, rank in sorted(variants, key=str):
            load = Load("", site, 2, 256, rank, positions)
            with torch.no_grad(), for_every_size():
                tensors = draw(load)
                use(load.kind, tiling)
                for call in (forward, backward):
                    try:
                        call(load, tensors)
                        torch.cuda.synchronize()
                    except Exception as error:
                        problems.append(f"{site.name} {call.__name__}: {one_line(error)}")
        torch.cuda.synchronize()
    except Exception as error:  # an illegal access fails every later call too
        return [*problems[:1], one_line(error)], True
    return problems, False


def compile_all() -> list[Tiles]:
    """Compile all kernels, each tiling in a process of its own, and return the tilings that may be tried here."""
    start = time.perf_counter()
    usable = []
    with multiprocessing.get_context("spawn").Pool(len(TILINGS)) as pool:
        jobs = [(tiling, pool.apply_async(compile_tiling, (tiling,))) for tiling in TILINGS]
        for tiling, job in jobs:
            try:
                problems, is_fatal = job.get(timeout=max(1.0, start + COMPILE_SECONDS - time.perf_counter()))
            except Exception as error:
                problems, is_fatal = [one_line(error)], True
            if not is_fatal:
                usable.append(tiling)
            for problem in problems:
                print(f"   {short(tiling)}: {problem}{', left out' if is_fatal else ''}")
    print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)
    return usable


def main() -> None:
    """Measure everything."""
    start = time.perf_counter()
    tables = dict(tiles.FORWARD), dict(tiles.BACKWARD)
    import triton

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    torch.manual_seed(0)
    print(f"peak {peak():.0f} TFLOP/s", flush=True)
    tilings = compile_all()
    timings: list[Timing] = []
    for load in loads():
        if time.perf_counter() - start > PRODUCT_SECONDS:
            print(f"no time left for {load}")
            continue
        try:
            timings += measure_load(load, tilings)
        except Exception:
            print(traceback.format_exc(limit=-4), flush=True)
        torch.cuda.empty_cache()
    summary(timings)
    print(f"products: {time.perf_counter() - start:.0f} s", flush=True)
    try:
        compare_steps(tables, start + SECONDS)
    except Exception:
        print(traceback.format_exc(limit=-4))
    print(f"all: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

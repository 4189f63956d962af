"""Whole steps of the engine without and with kernels of `engine.kernels.products`; see `fused_products`."""

from __future__ import annotations

import gc
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_bench.engine.kernels import tiles
from lora_bench.engine.kernels.tiles import ProductKind, TilesBySize
from tests.tools.fused_loads import DEVICE

# Every 5% of the lengths of the rows of the training splits, in tokens of RoBERTa's tokenizer.
LENGTHS = {
    "mrpc": [20, 34, 37, 40, 42, 45, 46, 48, 50, 52, 54, 56, 58, 60, 61, 63, 65, 68, 71, 75, 104],
    "sst2": [4, 5, 6, 6, 7, 7, 8, 9, 9, 10, 11, 12, 13, 15, 17, 19, 21, 24, 28, 34, 67],
}
ROWS = 3200  # of a task
STEPS = {True: 30, False: 160}  # timed, of large packs and of small ones


@dataclass(frozen=True)
class StepCase:
    """A pack whose steps are timed."""

    task: str
    targets: str
    mix: str
    cells: int


STEP_CASES = (
    StepCase("mrpc", "attention+dense", "mixed", 32),
    StepCase("sst2", "qv", "mixed", 64),
    StepCase("mrpc", "attention+dense", "lora", 1),
    StepCase("sst2", "qv", "lora", 1),
)


def make_workload(task: str) -> Any:
    """Random tokens with the task's lengths, in the order in which `bench` trains on them."""
    from lora_bench import tasks
    from lora_bench.bench.workload import Workload, batch_order
    from lora_bench.data.tokens import TokenTable

    generator = np.random.default_rng(0)
    sizes = np.interp(generator.random(ROWS), np.linspace(0, 1, 21), LENGTHS[task]).round().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    ids = generator.integers(5, 50000, offsets[-1]).astype(np.int32)
    table = TokenTable(ids, None, offsets, generator.integers(0, 2, ROWS).astype(np.int64))
    return Workload(tasks.get(task), table, 1, batch_order(ROWS, 32), "bf16")


def make_backbone() -> Any:
    """An encoder of RoBERTa-base's shape with random weights."""
    from transformers import RobertaConfig, RobertaModel

    from lora_bench.engine.encoder.backbone import Backbone

    torch.manual_seed(0)
    config = RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, vocab_size=50265)
    return Backbone(RobertaModel(config, add_pooling_layer=False).eval(), DEVICE, "bf16")


@dataclass
class StepResult:
    """The milliseconds of a step, the losses of the first ones, and milliseconds by kind of kernel."""

    step: float
    losses: Tensor
    kernels: dict[str, float]
    memory: float


def time_steps(case: StepCase, backbone: Any) -> StepResult:
    """Train a pack for some steps."""
    from lora_bench.bench.workload import make_cells
    from lora_bench.engine.adapters.pack import Pack
    from lora_bench.engine.evaluation import Split
    from lora_bench.engine.trainer import Trainer

    work = make_workload(case.task)
    table = backbone.table(work.table)
    cells = make_cells(work, case.targets, case.mix, case.cells, backbone.hidden_size)
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(Pack(cells, backbone, work.task.num_outputs), work.task, table, Split(table))
    steps, is_large = STEPS[case.cells > 1], case.cells > 1
    warm_up = 60 if is_large else 120  # graphs are recorded meanwhile
    with trainer.pack:
        trainer.prepare()
        losses = trainer.train(list(work.order[:warm_up]))[:12, 0].float().cpu()
        torch.cuda.synchronize()
        start = time.perf_counter()
        trainer.train(list(work.order[warm_up : warm_up + steps]))
        torch.cuda.synchronize()
        step = (time.perf_counter() - start) / steps * 1e3
        kernels = {}
        if is_large:
            try:
                kernels = profile(lambda: trainer.train(list(work.order[warm_up : warm_up + 3])), 3)
            except Exception as error:
                print(f"   no profile: {type(error).__name__}: {error}")
    return StepResult(step, losses, kernels, torch.cuda.max_memory_allocated() / 2**30)


KINDS = {
    "our products": ("_adapted_product",),
    "add + norm": ("add_norm",),
    "attention": ("attention",),
    "GELU": ("gelu",),
    "optimiser": ("adam", "transfer", "multi_tensor"),
    "cuBLAS": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "splitk"),
    "copies": ("memcpy", "copy", "cat"),
}


def kind_of(name: str) -> str:
    """The kind of a kernel by its name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), "other")


def profile(call: Callable[[], object], steps: int) -> dict[str, float]:
    """The milliseconds of a step by kind of kernel; the slowest kernels are printed."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in recorded.events():
        spent = float(getattr(event, "device_time_total", 0.0) or getattr(event, "cuda_time_total", 0.0))
        if "cuda" not in str(getattr(event, "device_type", "")).lower() or not spent:
            continue
        by_kind[kind_of(event.name)] += spent / steps / 1e3
        by_name[event.name][0] += spent / steps / 1e3
        by_name[event.name][1] += 1 / steps
    for name, (spent, count) in sorted(by_name.items(), key=lambda item: -item[1][0])[:14]:
        print(f"      {spent:7.2f} ms {count:6.1f} x  {name[:110]}")
    return dict(by_kind)


Table = dict[ProductKind, TilesBySize]


def compare_steps(tables: tuple[Table, Table], deadline: float) -> None:
    """Time whole steps without and with the tables."""
    backbone = make_backbone()
    for case in STEP_CASES:
        if time.perf_counter() > deadline:
            print(f"no time left for {case}")
            continue
        both: list[StepResult] = []
        for entries in (({}, {}), tables):
            for table, new in zip((tiles.FORWARD, tiles.BACKWARD), entries, strict=True):
                table.clear()
                table.update(new)
            print(f"\n{case}, {'with' if entries[0] or entries[1] else 'without'} the kernels", flush=True)
            try:
                both.append(time_steps(case, backbone))
                kinds = ", ".join(f"{kind} {spent:.1f}" for kind, spent in sorted(both[-1].kernels.items()))
                print(f"   step {both[-1].step:.2f} ms, {both[-1].memory:.1f} GiB; {kinds}", flush=True)
            except Exception:
                print("   " + traceback.format_exc(limit=-4).replace("\n", "\n   "), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
        if len(both) == 2:
            apart = (both[0].losses - both[1].losses).abs()
            print(
                f"   {both[0].step:.2f} -> {both[1].step:.2f} ms ({both[1].step / both[0].step - 1:+.1%}); losses of "
                f"{len(apart)} steps apart by at most {apart.max():.3g}, in the first step {apart[0].max():.3g}",
                flush=True,
            )

"""Where the time of a pack's training step goes: milliseconds a step of each kernel, or of each operation on a CPU.

    python -m tests.tools.step_profile --model DIR --data-dir DIR --task mrpc --targets attention+dense --cells 32

Packs of LoRA and of several methods (`--mix`) are profiled one after another, and have a column each. Kernels that take
less than a hundredth of the step are summed (`others`). `no kernel` is the time that kernels do not account for: the
GPU waits for the processor, or several kernels overlap (then it is negative).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from lora_bench.bench.clock import synchronise
from lora_bench.bench.packed import WARM_UP_STEPS
from lora_bench.bench.workload import Workload, load_workload, prepare_model
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.run import environment
from tests.tools.packs_at_once import make_trainer, settings_of

SMALL = 0.01  # of a step
LONGEST = 90  # characters of a kernel's name

Profiled = tuple[float, defaultdict[str, float]]  # milliseconds of a step by the clock, and of each kernel


def profiled(work: Workload, location: str, mix: str, options: argparse.Namespace) -> Profiled:
    """Return the milliseconds of a step by the clock, without the profiler, and those of each kernel."""
    device = torch.device(environment.choose_device(options.device))
    pack_options = argparse.Namespace(**{**vars(options), "mix": mix})
    trainer = make_trainer(work, encoders.load(location, device, work.precision), pack_options)
    warm_up, count = WARM_UP_STEPS[device.type], options.steps
    with trainer.pack:
        trainer.prepare()
        trainer.train(list(work.order[:warm_up]))
        synchronise(device)
        start = time.perf_counter()
        trainer.train(list(work.order[warm_up : warm_up + count]))
        synchronise(device)
        seconds = time.perf_counter() - start
        kind = ProfilerActivity.CPU if device.type == "cpu" else ProfilerActivity.CUDA
        with profile(activities=[kind]) as profiler:
            trainer.train(list(work.order[warm_up + count : warm_up + 2 * count]))
            synchronise(device)
    milliseconds: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        on_device = event.device_type.name == "CUDA"
        spent = event.self_device_time_total if on_device else event.self_cpu_time_total
        if on_device or device.type == "cpu":
            milliseconds[event.key] += spent / 1000 / count
    return 1000 * seconds / count, milliseconds


def table(columns: Mapping[str, Profiled]) -> str:
    """Return a Markdown table with a row for each kernel, those that take the longest first."""
    names = sorted(
        {name for _, kernels in columns.values() for name in kernels},
        key=lambda name: -max(kernels[name] for _, kernels in columns.values()),
    )
    large = [name for name in names if any(kernels[name] > SMALL * total for total, kernels in columns.values())]
    rows = [(name[:LONGEST].replace("|", "\\|"), [k[name] for _, k in columns.values()]) for name in large]
    small = [sum(spent for name, spent in kernels.items() if name not in large) for _, kernels in columns.values()]
    rows += [("others", small), ("no kernel", [total - sum(kernels.values()) for total, kernels in columns.values()])]
    rows.append(("a step", [total for total, _ in columns.values()]))
    lines = [f"| ms a step | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |" for name, values in rows]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="sample")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--targets", default="qv")
    parser.add_argument("--mix", nargs="+", default=["lora", "mixed"], help="lora, mixed or full")
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    settings = settings_of(options)
    precision = "bf16" if environment.choose_device(options.device) != "cpu" else "float32"
    columns = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = prepare_model(settings, Path(scratch))
        work = load_workload(options.task, settings, model, precision, settings.max_length)
        for mix in options.mix:
            columns[mix] = profiled(work, model.location, mix, options)
    print(table(columns))


if __name__ == "__main__":
    main()

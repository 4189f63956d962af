"""Whether several small packs train faster at the same time than one after another, on one GPU.

    python -m tests.tools.packs_at_once --model DIR --data-dir DIR --task mrpc --targets attention+dense --cells 2

A step of a small pack is thousands of short kernels, each too small to fill the GPU. Here each pack has a thread, an
encoder and a CUDA stream of its own, so that kernels of different packs may overlap. The steps are recorded as CUDA
graphs, one pack after another, before anything is timed: no other thread may allocate memory while a graph is recorded.
`run` trains one pack at a time; this program measures what it would gain.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from lora_bench.bench.packed import WARM_UP_STEPS
from lora_bench.bench.settings import BenchOptions, BenchSettings, resolve_options
from lora_bench.bench.workload import Workload, load_workload, make_cells, prepare_model
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.evaluation import Split
from lora_bench.engine.trainer import Trainer
from lora_bench.run import environment

BLOCK = 8  # steps that a thread issues before it looks at the clock


class TrainedPack:
    """A pack that takes steps in a thread of its own.

    Args:
        trainer: Its trainer.
        work: The rows and their order.
    """

    def __init__(self, trainer: Trainer, work: Workload) -> None:
        self.trainer, self.order, self.steps = trainer, work.order, 0
        if trainer.device.type == "cuda":
            trainer._stream = torch.cuda.Stream(trainer.device)  # the trainers of a process share one otherwise

    def train(self, steps: int) -> None:
        """Issue so many steps, and wait for them."""
        self.trainer.train(list(self.order[self.steps : self.steps + steps]))
        self.steps += steps
        if self.trainer._stream is not None:
            self.trainer._stream.synchronize()

    def train_until(self, deadline: float) -> None:
        """Take steps until then."""
        while time.perf_counter() < deadline:
            self.train(BLOCK)


def make_trainer(work: Workload, backbone: Backbone, options: argparse.Namespace) -> Trainer:
    """Return a trainer of the pack that is measured, over an encoder."""
    cells = make_cells(work, options.targets, options.mix, options.cells, backbone.hidden_size)
    table = backbone.table(work.table)
    return Trainer(Pack(cells, backbone, work.task.num_outputs), work.task, table, Split(table))


def measure(work: Workload, location: str, count: int, options: argparse.Namespace) -> float:
    """Return the steps · cells a second of so many packs at a time."""
    device = torch.device(environment.choose_device(options.device))
    warm_up, packs = WARM_UP_STEPS[device.type], list[TrainedPack]()
    with ExitStack() as attached:
        for _ in range(count):
            trainer = make_trainer(work, encoders.load(location, device, work.precision), options)
            packs.append(TrainedPack(trainer, work))
            attached.enter_context(trainer.pack)
            trainer.prepare()
            packs[-1].train(warm_up)
        start = time.perf_counter()
        threads = [threading.Thread(target=pack.train_until, args=(start + options.seconds,)) for pack in packs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
    return float(sum(pack.steps - warm_up for pack in packs) * options.cells / seconds)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="sample")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--targets", default="qv")
    parser.add_argument("--mix", default="lora", help="lora, mixed or full")
    parser.add_argument("--cells", type=int, default=2, help="cells of each pack")
    parser.add_argument("--at-once", default="1,2,4,1", help="numbers of packs, measured in this order")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def settings_of(options: argparse.Namespace) -> BenchSettings:
    """Return the settings of `bench` for the same rows."""
    return resolve_options(BenchOptions(model=options.model, data_dir=options.data_dir, task=[options.task]))


def main() -> None:
    """Print a line for each number of packs."""
    options = read_options()
    settings = settings_of(options)
    precision = "bf16" if environment.choose_device(options.device) != "cpu" else "float32"
    with tempfile.TemporaryDirectory() as scratch:
        model = prepare_model(settings, Path(scratch))
        work = load_workload(options.task, settings, model, precision, settings.max_length)
        for count in map(int, options.at_once.split(",")):
            rate = measure(work, model.location, count, options)
            print(f"{count} at a time, {options.cells} cells each: {rate:,.1f} steps · cells a second", flush=True)


if __name__ == "__main__":
    main()

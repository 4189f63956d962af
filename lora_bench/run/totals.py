"""What all packs of a plan take together: time on one device and on several, memory, disk. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lora_bench.forecast import families
from lora_bench.forecast.cost import pack_kind
from lora_bench.forecast.demand import FLOAT32_BYTES
from lora_bench.forecast.geometry import load_geometry
from lora_bench.forecast.pack import CONTEXT_BYTES
from lora_bench.forecast.schedule import WRITE_SECONDS, Simulated, StageTimes, simulate
from lora_bench.run.plan import Plan

_RUNS = {"fused": "fused", "windows": "on windows", "padded": "on padded rows"}


@dataclass(frozen=True)
class Totals:
    """What all packs of a plan take, those of cells that wait for others among them.

    Attributes:
        cells: How many cells will train.
        packs: In how many packs.
        stages: The predicted times of the packs for which they can be predicted, by stages.
        start: The seconds of one process that no pack accounts for.
        cuts: Whether packs may be cut for several devices.
        peak: The bytes of a GPU's memory that the process takes with the largest pack, or while it loads the encoder;
            None if they are unknown.
        disk: The bytes of records and adapters, and of what is kept while other cells continue from it; None if they
            are unknown.
        guesses: What makes these numbers a guess or unknown, in a sentence each.
    """

    cells: int
    packs: int
    stages: tuple[StageTimes, ...]
    start: float
    cuts: bool
    peak: float | None
    disk: float | None
    guesses: tuple[str, ...]

    @property
    def unknown(self) -> int:
        """How many packs take a time that cannot be predicted."""
        return self.packs - sum(len(stage.packs) for stage in self.stages)

    def simulated(self, gpus: int | None = None, write_seconds: float = WRITE_SECONDS) -> Simulated | None:
        """Return how long the whole run takes; None if no pack's time can be predicted.

        Args:
            gpus: The number of GPUs of a run on Ray; None for one process with one device.
            write_seconds: How long the driver of a run on Ray takes to write a cell.
        """
        if self.unknown == self.packs:
            return None
        return simulate(self.stages, self.start, gpus or 1, gpus is not None, self.cuts, write_seconds)


def totals(plan: Plan, saves: bool = True) -> Totals:
    """Return what all packs of a plan take; `saves` says whether the trained adapters are saved."""
    packs = [*plan.packs, *plan.later]
    return Totals(
        cells=sum(map(len, packs)),
        packs=len(packs),
        stages=plan.stage_times,
        start=plan.estimate.start_seconds,
        cuts=plan.limit is None,
        peak=None if plan.device_name.startswith("cpu") else _peak(plan),
        disk=_disk(plan, saves),
        guesses=(*_about_device(plan), *_about_models(plan)),
    )


def _peak(plan: Plan) -> float | None:
    packs = [size for _, size in (*plan.costs, *plan.later_costs) if size is not None]
    models = {plan.model_name(pack) for pack in (*plan.packs, *plan.later)}
    loaded = [geometry.weights * FLOAT32_BYTES for model in models if (geometry := load_geometry(model)) is not None]
    return CONTEXT_BYTES + max([*packs, *loaded]) if packs else None


def _disk(plan: Plan, saves: bool) -> float | None:
    packs = [*plan.packs, *plan.later]
    examples = {pack_kind(pack): pack for pack in packs}
    sizes = {kind: plan.estimate.disk(pack, plan.model_name(pack), saves) for kind, pack in examples.items()}
    known = [
        (size, count) for kind, count in Counter(map(pack_kind, packs)).items() if (size := sizes[kind]) is not None
    ]
    if len(known) < len(sizes):
        return None
    starts = sum(plan.estimate.disk_of_starts(cell, plan.model_name([cell]), saves) for cell in plan.needed_cells)
    return starts + sum(size * count for size, count in known)


def _about_device(plan: Plan) -> Iterator[str]:
    name, device = plan.device_name, plan.device
    if device is None and not name.startswith("cpu"):
        hint = "`lora-bench bench --calibrate` measures the device at hand"
        yield f"No time: '{name}' was not measured and is not a known card ({hint})."
    elif device is not None and device.scaled_from is not None:
        scaled = f"it is scaled from {device.scaled_from} by the cards' rates and bandwidths"
        yield f"The time is a guess: {name} was not measured; {scaled}."
    peak = _peak(plan)
    if device is not None and device.memory is not None and peak is not None and peak > device.memory:
        yield f"Some packs need more memory than the {device.memory / 2**30:.0f} GiB there: they train in parts."


def _about_models(plan: Plan) -> Iterator[str]:
    for model in dict.fromkeys(plan.model_name(pack) for pack in (*plan.packs, *plan.later)):
        geometry = load_geometry(model)
        if geometry is None:
            yield f"No time and no memory: the sizes of {model} are known when it has been downloaded."
            continue
        family = families.of(geometry.model_type)
        if not family.measured:
            kind = f"no model of the type '{geometry.model_type}' was measured"
            yield f"Time and memory are a guess: {kind}; {model} is taken to run {_RUNS[family.way]}."

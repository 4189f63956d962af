"""How encoders run, by the `model_type` of their config.json, and what that costs. Does not need torch.

The counts of `demand.py` and `pack.py` are of the hand-written form (`fused`). An encoder of another way does the same
work with transformers' own code: its device time and its activations are a multiple of those counts, and the processor
launches every kernel of every step, which takes as long for one cell as for several. `families.json` holds these
numbers; those of measured families were fitted to two or three packs each on one NVIDIA H200 (docs/guide.md has the
rates). Which way an encoder really runs is decided when it is loaded, by the numbers that it gives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Way = Literal["fused", "windows", "padded"]
UNKNOWN: Way = "padded"  # how an encoder of an unknown type is assumed to run: the slowest way


@dataclass(frozen=True)
class Family:
    """What running an encoder costs, relative to the fused form of the same sizes.

    Attributes:
        way: `fused`, on `windows` by transformers' code, or on `padded` rows by transformers' code.
        work: The device time of a step with the same slots, as a multiple.
        host: The seconds that the processor takes to launch a training step of one layer; 0 where that is counted in
            the coefficient `layer`.
        memory: The activations that are kept for the backward pass, as a multiple.
        measured: Whether this family was measured, or has the usual numbers of its way.
    """

    way: Way
    work: float = 1.0
    host: float = 0.0
    memory: float = 1.0
    measured: bool = True

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass computes each layer again, so that it keeps what enters the layers only."""
        return self.way == "padded"


def of(model_type: str) -> Family:
    """Return the family of a `model_type`; one that is empty or unknown is assumed to run on padded rows."""
    return _families().get(model_type) or _families()[UNKNOWN]


def when_trained(family: Family) -> Family:
    """Return the family of an encoder whose own weights train: the hand-written form is for frozen weights only."""
    return _families()["windows"] if family.way == "fused" else family


@lru_cache(maxsize=1)
def _families() -> dict[str, Family]:
    """The families by model type, and what is usual for each way by the way's name."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
    usual = {way: Family(way=way, **numbers, measured=False) for way, numbers in content["ways"].items()}
    families = {}
    for way, types in content["types"].items():
        for model_type, numbers in types.items():
            families[model_type] = usual[way] if numbers is None else Family(way=way, **numbers)
    return usual | families

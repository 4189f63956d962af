"""The coefficients of devices: measured ones, and those of other cards, scaled from them. Does not need torch.

`devices.json` holds what was measured, by the name that the device has in records; `lora-bench bench --calibrate` adds
this machine's. The H200's were fitted to 139 packs. The H100's are the H200's, with all that is bound by memory 1.14
times as slow; this factor was fitted to the four packs that were measured on both (off by 5% at most).

`cards.json` holds the makers' data sheets: the dense rate in bf16 and the rate in float32 of the cores without tensor
units (TFLOP/s), the bandwidth (TB/s) and the memory (GB). All but the `unchecked` numbers were compared with pages that
quote the sheets. The T4 and the V100 have no bf16: products take as long as in float32. Each of the two dies of an
MI250 is a device.

A card that was not measured takes the coefficients of the measured card that is most like it. What is bound by
operations is scaled by the rate, what is bound by memory by the bandwidth, and what the processor does is left.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter

from lora_bench.errors import MISSING, BenchError
from lora_bench.forecast.pack import Coefficients
from lora_bench.records.files import read_file

# Coefficients that every calibration must have; the others count as 0 if they are not known.
REQUIRED_TERMS = frozenset({"layer", "flop", "byte", "adapter_byte", "value", "setup"})
# What each coefficient is scaled by; those that are not named are the processor's. Whole weights are multiplied, and
# decomposed, in float32 whatever the precision is.
BY_RATE = frozenset({"flop", "adapter_flop"})
BY_FLOAT32_RATE = frozenset({"remade", "direction"})
BY_BANDWIDTH = frozenset({"byte", "adapter_byte", "dress_byte", "operand", "value", "draw"})
_WORD = re.compile(r"rtx|[a-z]*[0-9]+[a-z]*|[a-z]+")

Tables = Mapping[str, Mapping[str, Coefficients]]  # by device and precision


@dataclass(frozen=True)
class Device:
    """What is known of a device.

    Attributes:
        coefficients: Its coefficients.
        scaled_from: The measured device whose coefficients were scaled to this one; None if it was measured itself.
        memory: The bytes of its memory; None if they are not known.
    """

    coefficients: Coefficients
    scaled_from: str | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Card:
    """The data sheet of a card: rates in TFLOP/s, bandwidth in TB/s, memory in GB, and which were not compared."""

    bf16: float
    float32: float
    bandwidth: float
    memory: float
    unchecked: tuple[str, ...] = ()

    def rate(self, precision: str) -> float:
        """Return the rate of products."""
        return self.bf16 if precision == "bf16" else self.float32


@lru_cache(maxsize=1)
def shipped_coefficients() -> dict[str, dict[str, dict[str, float]]]:
    """Return the coefficients of the package, by device and precision."""
    content: dict[str, dict[str, dict[str, float]]] = json.loads(
        Path(__file__).with_name("devices.json").read_text(encoding="utf-8")
    )
    return content


@lru_cache(maxsize=1)
def cards() -> dict[str, Card]:
    """Return the data sheets by the name of the card."""
    content = json.loads(Path(__file__).with_name("cards.json").read_text(encoding="utf-8"))
    return {name: Card(**sheet | {"unchecked": tuple(sheet.get("unchecked", ()))}) for name, sheet in content.items()}


def find_card(name: str) -> str | None:
    """Return the card that a device's name stands for: all words of the card's name are in it; None if there is none.

    Args:
        name: As in records (`NVIDIA A100-SXM4-80GB`), or shorter (`a100`).
    """
    words = set(_WORD.findall(name.lower()))
    fitting = [card for card in cards() if set(_WORD.findall(card.lower())) <= words]
    return max(fitting, key=len, default=None)


def find_device(name: str, precision: str, measured: Path | None = None) -> Device | None:
    """Return what is known of a device.

    Args:
        name: Its name as in records, or a card's name; all processors count as one device, `cpu`.
        precision: `bf16`, `float32` or `float64`.
        measured: What `bench --calibrate` wrote on this machine. Its values replace the shipped ones.

    Returns:
        The device; None if it was not measured and is not a known card.

    Raises:
        BenchError: `measured` is not such a file.
    """
    tables: list[Tables] = [shipped_coefficients()]
    if measured is not None and os.path.lexists(measured):
        tables.append(_read_measured(measured))
    if name.startswith("cpu"):
        coefficients = _merged(tables, ["cpu"], precision)
        return Device(coefficients) if coefficients else None
    card = find_card(name)
    same = [device for table in tables for device in table if device == name or (card and find_card(device) == card)]
    memory = None if card is None else cards()[card].memory * 1e9
    coefficients = _merged(tables, same, precision)
    if coefficients:
        return Device(coefficients, memory=memory)
    if card is None:
        return None
    known = {
        device: other
        for table in tables
        for device in table
        if precision in table[device] and (other := find_card(device)) is not None
    }
    if not known:
        return None
    nearest = min(known, key=lambda device: _distance(cards()[known[device]], cards()[card], precision))
    measured_there = _merged(tables, [nearest], precision)
    return Device(_scaled(measured_there, cards()[known[nearest]], cards()[card], precision), nearest, memory)


def _merged(tables: list[Tables], devices: list[str], precision: str) -> dict[str, float]:
    """The coefficients that any of the tables has for one of the names; later tables count more."""
    return {
        term: value
        for table in tables
        for device in dict.fromkeys(devices)
        for term, value in table.get(device, {}).get(precision, {}).items()
    }


def _distance(one: Card, other: Card, precision: str) -> float:
    ratios = (one.rate(precision) / other.rate(precision), one.bandwidth / other.bandwidth)
    return math.hypot(*map(math.log, ratios))


def _scaled(coefficients: Coefficients, known: Card, card: Card, precision: str) -> dict[str, float]:
    """Coefficients of a known card, as they may be on another one."""
    factors = {
        **dict.fromkeys(BY_RATE, known.rate(precision) / card.rate(precision)),
        **dict.fromkeys(BY_FLOAT32_RATE, known.float32 / card.float32),
        **dict.fromkeys(BY_BANDWIDTH, known.bandwidth / card.bandwidth),
    }
    return {term: value * factors.get(term, 1.0) for term, value in coefficients.items()}


def _read_measured(path: Path) -> Tables:
    try:
        table = TypeAdapter(dict[str, dict[str, dict[str, FiniteFloat]]]).validate_json(read_file(path))
    except (ValueError, OSError):
        table = {"": {"": {}}}  # lacks every required term
    if not all(terms.keys() >= REQUIRED_TERMS for device in table.values() for terms in device.values()):
        hint = "Delete it, then measure again: lora-bench bench --calibrate."
        raise BenchError(f"'{path}' is not what `bench --calibrate` wrote.", hint, MISSING)
    return table

"""What a report compares: the `compare` part of a config, or `compare.yaml` in a results folder.

It is declared before the final cells run: which tasks are averaged, how far apart two methods may be to count as
equivalent, which method is the question and which the reference, and single comparisons beside the default ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME = "compare.yaml"
_ARM_FIELDS = ("method", "targets", "rank", "a", "b", "init")
Arm = Mapping[str, str | int | None]
Over = Literal["seeds", "seeds+examples"]  # what intervals and tests are over


def _known_fields(arm: Arm) -> Arm:
    unknown = sorted(set(arm) - set(_ARM_FIELDS))
    if unknown or "method" not in arm:
        raise ValueError(f"an arm has a method and may have {', '.join(_ARM_FIELDS[1:])}")
    return arm


def _ascending(looks: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(set(looks)) != list(looks):
        raise ValueError("the numbers of seeds at the looks ascend")
    return looks


Look = Annotated[int, Field(ge=3, lt=2**31)]  # the report tests nothing with fewer than three seeds


class Pair(BaseModel):
    """A declared comparison of two arms. Fields that are left out are open: the arm best on held-out rows is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: Annotated[Arm, AfterValidator(_known_fields)]
    against: Annotated[Arm, AfterValidator(_known_fields)]


class Comparisons(BaseModel):
    """What is compared, in points of the score ×100 where that is a number.

    Attributes:
        average: The tasks of the average; all but WNLI by default.
        margin: Two methods are equivalent if the difference is certainly smaller.
        subject: The method that the report is about.
        reference: The method that all others are compared with.
        pairs: Comparisons beside the default ones, a family of their own.
        over: What intervals and tests are over: seeds and examples, or seeds alone, which says nothing of other
            examples of the same tasks.
        looks: For a verdict, the number of seeds of each setting at each look so far; intervals and tests then hold for
            these and all later looks together. Empty: one looks once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    average: tuple[str, ...] = ()
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    subject: str = "mini"
    reference: str = "lora"
    pairs: tuple[Pair, ...] = ()
    over: Over = "seeds+examples"
    looks: Annotated[tuple[Look, ...], AfterValidator(_ascending)] = ()

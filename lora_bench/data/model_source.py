"""Where the encoder of a cell comes from. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_bench import models
from lora_bench.data import hub
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import is_folder


@dataclass(frozen=True)
class ModelSource:
    """An encoder that cells are trained on.

    Attributes:
        name: The name that the user gave: `sample`, a directory or a Hub id.
        location: What transformers loads: a directory or a Hub id.
        identity: What enters the cells (`models.identity`).
        is_local: Whether it is a directory, for which the Hub is never asked.
    """

    name: str
    location: str
    identity: str
    is_local: bool

    @classmethod
    def find(cls, name: str) -> ModelSource:
        """Return the model of a name.

        Raises:
            BenchError: Exit code 3 if it is a path but not a directory, or a directory without a valid model.
        """
        location = models.location(name)
        return cls(name, location, models.identity(name), is_folder(Path(location)))

    def local_only(self, offline: bool) -> bool:
        """Return whether transformers must not ask the Hub, since that takes half a minute to fail without a network.

        Args:
            offline: Whether the user has asked for offline mode.
        """
        return offline or self.is_local or not self._hub_answers

    @cached_property
    def _hub_answers(self) -> bool:
        return hub.reachable()

    def require_unchanged(self) -> None:
        """Check that the files of a directory are still those of the plan. To be called after they were read.

        Raises:
            BenchError: Exit code 3 if they have changed.
        """
        present = models.identity(self.name)
        if present != self.identity:
            what = f"The model '{self.name}' has changed since the plan was made"
            raise BenchError(
                f"{what}: it was {self.identity}, it is {present}.",
                "Give the same command again, to train over what is there now.",
                MISSING,
            )

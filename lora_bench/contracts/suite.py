"""The list of all contracts, and the check of one method against them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_bench.contracts import own_loop, packs, start, training
from lora_bench.contracts.kit import Workbench

Contract = Callable[[str, Workbench], None]

CONTRACTS: tuple[Contract, ...] = (
    start.its_settings_are_complete,
    start.its_count_is_that_of_its_factors,
    start.its_pack_trains_as_many,
    start.its_draws_hang_on_seed_and_module,
    start.it_starts_as_the_base_model,
    training.what_is_frozen_stays,
    training.what_trains_moves,
    training.its_file_holds_what_trains_alone,
    training.it_comes_back_as_it_was_saved,
    training.merged_it_is_the_same_model,
    training.its_change_has_the_rank_it_states,
    training.the_same_seed_gives_the_same,
    packs.padding_is_trimmed_and_stays_zero,
    packs.it_loads_among_larger_cells,
    packs.it_does_not_depend_on_its_pack,
    own_loop.your_own_loop_trains_the_same,
)


@dataclass(frozen=True)
class Verdict:
    """The result of one contract.

    Attributes:
        contract: The contract in words.
        fault: How it is broken; None if it is kept.
    """

    contract: str
    fault: str | None


def check(method: str) -> Iterator[Verdict]:
    """Check a method against every contract, one after another; whatever the method raises counts as broken."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        bench = Workbench(Path(folder))
        for contract in CONTRACTS:
            yield Verdict((contract.__doc__ or contract.__name__).strip(), _fault(contract, method, bench))


def _fault(contract: Contract, method: str, bench: Workbench) -> str | None:
    try:
        contract(method, bench)
    except AssertionError as error:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # someone else's method may raise anything, SystemExit too
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return None

"""The lists of all contracts, and the checks of one method or one task against them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lora_bench.contracts import own_loop, packs, pauses, posteriors, start, task_contracts, training, weight_rules
from lora_bench.contracts.kit import Workbench
from lora_bench.contracts.task_contracts import TaskBench
from lora_bench.errors import described

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
    training.another_task_continues_from_it,
    training.merged_it_is_the_same_model,
    training.its_change_has_the_rank_it_states,
    training.its_schedule_ends_with_its_budget,
    training.the_same_seed_gives_the_same,
    pauses.it_goes_on_after_a_pause,
    packs.padding_is_trimmed_and_stays_zero,
    packs.it_loads_among_larger_cells,
    packs.it_does_not_depend_on_its_pack,
    own_loop.your_own_loop_trains_the_same,
    weight_rules.it_trains_by_its_rule,
    posteriors.its_posterior_averages_probabilities,
    posteriors.its_posterior_does_not_depend_on_its_pack,
)

TaskContract = Callable[[TaskBench], None]

TASK_CONTRACTS: tuple[TaskContract, ...] = (
    task_contracts.its_source_has_every_split,
    task_contracts.its_labels_occur,
    task_contracts.its_metrics_prefer_what_is_right,
    task_contracts.its_metrics_do_not_depend_on_the_order,
    task_contracts.a_cell_of_it_trains,
)


@dataclass(frozen=True)
class ContractResult:
    """The result of one contract.

    Attributes:
        contract: The contract in words.
        fault: How it is broken; None if it is kept.
    """

    contract: str
    fault: str | None


def check(method: str) -> Iterator[ContractResult]:
    """Check a method against every contract, one after another; whatever the method raises counts as broken."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        bench = Workbench(Path(folder))
        for contract in CONTRACTS:
            yield _result(contract, partial(contract, method, bench))


def check_task(task: str) -> Iterator[ContractResult]:
    """Check a task against every contract, one after another; whatever its metrics raise counts as broken."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        bench = TaskBench(task, Workbench(Path(folder)))
        for contract in TASK_CONTRACTS:
            yield _result(contract, partial(contract, bench))


def _result(contract: Contract | TaskContract, call: Callable[[], None]) -> ContractResult:
    return ContractResult((contract.__doc__ or contract.__name__).strip(), _fault(call))


def _fault(call: Callable[[], None]) -> str | None:
    try:
        call()
    except AssertionError as error:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # someone else's code may raise anything, SystemExit too
        return described(error)[:300]
    return None

"""How packs are cut and given to devices, and how long a run is predicted to take on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_bench.forecast.schedule import (
    FEWEST,
    RAY_SECONDS,
    WRITE_SECONDS,
    PackTime,
    StageTimes,
    part_seconds,
    part_sizes,
    simulate,
)
from lora_bench.grid.cells import expand
from lora_bench.grid.config import Config
from lora_bench.run import plan as plans
from lora_bench.run.plan import Plan
from lora_bench.run.queue import Queue
from lora_bench.run.totals import totals

# Predicted for the grid of results/bench/README.md, "Two GPUs".
MEASURED = [PackTime(40, 40.7, 5.3), PackTime(13, 24.6, 3.1), PackTime(14, 26.1, 3.1), PackTime(13, 24.3, 3.1)]


def seconds_beside_start(devices: int, *stages: StageTimes, cuts: bool = True) -> float:
    """The seconds of a run without its start; writing records is in it for several devices."""
    return simulate(stages, 0.0, devices, cuts=cuts).seconds - (RAY_SECONDS if devices > 1 else 0.0)


def make_plan(folder: Path, *blocks: dict[str, Any], limit: int | None = None, **defaults: Any) -> Plan:
    settings: dict[str, Any] = {
        "model": "roberta-base",
        "task": "mrpc",
        "targets": "qv",
        "lr": 1e-3,
        "precision": "bf16",
    } | defaults
    grid = expand(Config(name="scheduled", defaults=settings, blocks=blocks), {}, plans.sources())
    return plans.make(grid, folder, limit, device="NVIDIA H200")


def test_devices_are_never_faster_than_their_share() -> None:
    packs = [PackTime(40, 100.0), PackTime(30, 80.0), PackTime(4, 7.0), PackTime(4, 3.0)]
    alone = seconds_beside_start(1, StageTimes("all", packs))
    assert alone == pytest.approx(190)
    for devices in (2, 4, 8):
        seconds = seconds_beside_start(devices, StageTimes("all", packs))
        assert alone / devices <= seconds <= 1.1 * alone / devices + 78 * WRITE_SECONDS
    assert simulate([], 9.0).seconds == 9


def test_as_few_packs_as_possible_are_cut() -> None:
    assert part_sizes(3, [PackTime(12, 100)]) == [(4, 4, 4)]
    assert part_sizes(2, [PackTime(8, 30)] * 20) == [(8,)] * 20
    assert part_sizes(2, []) == []
    assert part_sizes(2, [PackTime(7, 100)]) == [(7,)]  # a part would be too small
    assert part_sizes(2, [PackTime(20, 100, 96)]) == [(20,)]  # both parts would take as long as the pack


def test_packs_are_cut_by_what_their_parts_take() -> None:
    """Measured on H100s: packs of 13 cells in parts of 6 and 7 took 14% longer than whole."""
    sizes = part_sizes(2, MEASURED)
    assert sum(map(len, sizes)) == len(MEASURED) + 1
    assert [sum(parts) for parts in sizes] == [pack.cells for pack in MEASURED]
    assert min(min(parts) for parts in sizes) >= FEWEST
    seconds = part_seconds(MEASURED, sizes)
    assert sum(seconds) > 115.7
    most = 60.5 + 14 * WRITE_SECONDS  # 64.9 uncut, 63.5 with a pack cut in the middle
    assert sum(seconds) / 2 <= seconds_beside_start(2, StageTimes("all", MEASURED)) < most
    uncut = seconds_beside_start(2, StageTimes("all", MEASURED), cuts=False)
    assert uncut == pytest.approx(64.9, abs=40 * WRITE_SECONDS)


def test_two_gpus_take_what_is_predicted() -> None:
    """131.2 and 78.8 s, measured on H100s."""
    stage = StageTimes("all", MEASURED)
    assert simulate([stage], 11.0).seconds == pytest.approx(131.2, rel=0.04)
    assert simulate([stage], 11.0, 2).seconds == pytest.approx(78.8, rel=0.04)


def test_a_stage_begins_when_what_it_needs_has_ended() -> None:
    search = StageTimes("search A", [PackTime(FEWEST, 30.0)], is_search=True)
    others = StageTimes("B", [PackTime(FEWEST, 20.0)] * 3)
    final = StageTimes("A", [PackTime(FEWEST, 50.0)], needs=("search A",))
    # The device that has searched has a pack of B before the search's records are written; the other one takes A's.
    assert seconds_beside_start(2, final, others, search) == pytest.approx(20 + 20 + 50, abs=1)
    assert seconds_beside_start(4, final, others, search) == pytest.approx(80, abs=1)
    assert seconds_beside_start(1, final, others, search) == 140
    recorded = search._replace(packs=())
    assert seconds_beside_start(4, final, others, recorded) == pytest.approx(50, abs=1)
    last = StageTimes("C", [PackTime(FEWEST, 5.0)], needs=("nothing left",))
    nothing = StageTimes("nothing left", [], needs=("A",))
    assert seconds_beside_start(4, last, nothing, final, others, search) == pytest.approx(85, abs=1)


def test_stages_that_need_each_other_are_not_waited_for() -> None:
    """MNLI from RTE in one block and RTE from MNLI in another: their cells do not need each other."""
    one, other = (StageTimes(name, [PackTime(FEWEST, 10.0)], (need,)) for name, need in (("A", "B"), ("B", "A")))
    assert seconds_beside_start(1, one, other) == 20


def test_each_device_computes_the_bases_of_an_encoder_once() -> None:
    packs = [PackTime(FEWEST, 10.0, 0.0, "encoder", (("q", 2.0), ("v", 3.0)))] * 4
    stage = StageTimes("all", packs)
    assert simulate([stage], 0.0).training == 45
    assert simulate([stage], 0.0, 2).training == 50
    assert simulate([stage], 0.0, 8).training == 60  # four of eight have nothing to do
    other = [pack._replace(encoder="other") for pack in packs]
    assert simulate([StageTimes("all", [*packs, *other])], 0.0).training == 90


def test_the_driver_writes_one_record_after_another() -> None:
    packs = [PackTime(FEWEST, 0.1)] * 1000
    assert seconds_beside_start(64, StageTimes("all", packs)) > 1000 * FEWEST * WRITE_SECONDS
    assert simulate([StageTimes("all", packs)], 0.0, on_ray=True).seconds > 100 + RAY_SECONDS


def test_a_size_that_the_user_sets_is_never_cut(tmp_path: Path) -> None:
    block = {"method": "lora", "rank": list(range(1, 17))}
    whole, cut = (totals(make_plan(tmp_path, block, limit=limit)) for limit in (16, None))
    on_four, alone, cut_in_four = whole.simulated(4), whole.simulated(), cut.simulated(4)
    assert on_four
    assert alone
    assert cut_in_four
    assert on_four.training == pytest.approx(alone.training)
    assert cut_in_four.seconds < on_four.seconds
    assert cut_in_four.training > on_four.training


@pytest.mark.parametrize("devices", [3, 4, 5])
def test_a_run_cuts_packs_as_the_simulation_does(devices: int, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, {"method": ["lora", "xs"], "rank": list(range(4, 24))})
    queue, works = Queue(plan, devices), []
    while work := queue.take():
        works.append(work)
    simulated = totals(plan).simulated(devices)
    assert simulated is not None
    bases = {basis: cost for time in plan.times(plan.packs) if time for basis, cost in time.bases}
    beside = simulated.training - sum(work.cost for work in works)
    assert beside == pytest.approx(devices * sum(bases.values()), rel=1e-6)
    assert len(works) > len(plan.packs)


def test_one_process_takes_the_sum_of_its_packs(tmp_path: Path) -> None:
    """Of a grid with searches, bases that packs share, and cells that continue from others."""
    block = {"method": ["lora", "xs"], "rank": [8, 16], "seed": [0, 1]}
    search = {"search": [5e-4, 1e-3], "seeds": [100, 101]}
    plan = make_plan(tmp_path, block, task=["mnli", "rte"], lr=search, start={"rte": "mnli"})
    simulated = totals(plan).simulated()
    costs = [seconds for seconds, _ in (*plan.costs, *plan.later_costs) if seconds is not None]
    assert simulated is not None
    assert simulated.training == pytest.approx(sum(costs), rel=0.01)
    assert simulated.seconds == pytest.approx(plan.estimate.start_seconds + simulated.training)
    of_many = totals(plan).simulated(64)
    assert of_many is not None
    longest = {
        stage.title: max(time.of_part(min(time.cells, FEWEST)) for time in stage.packs) for stage in plan.stage_times
    }
    assert of_many.seconds > plan.estimate.start_seconds + RAY_SECONDS + sum(longest.values()) / 2


def test_the_time_of_parts_is_what_they_are_predicted_to_take(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, {"method": "lora", "rank": list(range(1, 15))})
    (pack,), (time,) = plan.packs, plan.times(plan.packs)
    assert time is not None
    for part in (pack[:7], pack[:4], pack[4:]):
        assert time.of_part(len(part)) == pytest.approx(plan.estimate.seconds(part, "roberta-base"), rel=0.05)
    assert time.of_part(7) > 1.05 * time.seconds / 2

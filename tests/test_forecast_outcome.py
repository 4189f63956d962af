"""The forecast beside what was measured: the packs of results/base, and grids run on an H200."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_bench.forecast.cost import Estimate
from lora_bench.grid.cells import expand
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records
from lora_bench.run import plan as plans
from lora_bench.run.totals import totals
from tests.fake_sources import fake_sources
from tests.tools.forecast_outcome import GRIDS, configs

RESULTS = Path(__file__).parents[1] / "results"


def test_the_memory_of_the_packs_of_results_base_is_predicted() -> None:
    """444 packs on H100s; a process may still hold decompositions that packs before have left."""
    packs: dict[tuple[float, int, str], list[Record]] = {}
    for record in read_records(RESULTS / "base").records:
        if record.timing is not None and record.timing.peak_bytes:
            key = record.timing.pack_seconds, record.timing.pack_size, record.cell.task
            packs.setdefault(key, []).append(record)
    estimate, encoder = Estimate(), "microsoft/mpnet-base"
    whole = [members for (_, size, _), members in packs.items() if len(members) == size]
    of_cells = [[record.cell for record in members] for members in whole]
    kept = frozenset().union(*(estimate.bases(pack, encoder) for pack in of_cells))
    ratios = []
    for members, pack in zip(whole, of_cells, strict=True):
        sizes = estimate.bytes(pack, encoder), estimate.bytes(pack, encoder, kept)
        peak = members[0].timing and members[0].timing.peak_bytes
        assert peak and sizes[0] and sizes[1]
        ratios.append(min((size / peak for size in sizes if size), key=lambda ratio: abs(ratio - 1)))
    assert len(ratios) > 400
    assert min(ratios) > 0.88
    assert max(ratios) < 1.12
    assert sum(abs(ratio - 1) < 0.06 for ratio in ratios) > 0.9 * len(ratios)


@pytest.mark.parametrize(
    ("outcome", "grids", "tolerance"),
    [("forecast-h200.json", GRIDS, 0.16), ("forecast-h200-2.json", GRIDS.with_name("forecast_grids2.yaml"), 0.21)],
)
def test_grids_take_what_is_predicted(outcome: str, grids: Path, tolerance: float, tmp_path: Path) -> None:
    """`tests/tools/forecast_outcome.py` on H200s: the first file went into the forecast, the second did not."""
    rows = json.loads((RESULTS / "bench" / outcome).read_text(encoding="utf-8"))
    measured = {row["grid"]: row for row in rows}
    model = "FacebookAI/roberta-base"
    for config, path in configs([grids], [*measured], tmp_path):
        grid = expand(config, {"model": [model]}, fake_sources(str, lambda location, task: f"{location}:{task}"))
        planned = plans.make(grid, path.with_suffix(""), None, (), "NVIDIA H200")
        row = measured.pop(config.name)
        simulated = totals(planned).simulated()
        assert simulated is not None
        assert simulated.seconds == pytest.approx(row["seconds"][1], rel=tolerance)
        for (_, size), (_, _, (_, peak)) in zip(planned.costs, row["packs"], strict=True):
            assert size == pytest.approx(peak * 2**30, rel=0.05)
    assert not measured

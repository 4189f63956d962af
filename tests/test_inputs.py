"""What packs have in common is loaded once, the inputs of the next pack while another trains."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_bench.errors import BenchError
from lora_bench.run import inputs
from lora_bench.run.inputs import Loader
from lora_bench.run.interfaces import Options
from lora_bench.testing import QuietView, TinyBench


def test_inputs_of_the_next_pack_are_prepared_in_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = TinyBench.create(tmp_path, "sst2", "cola")
    plan = bench.plan([{"method": "lora", "rank": 2, "task": ["sst2", "cola"], "select": "held-out"}])
    options = Options(bench.results, offline=True)
    loaders = [Loader(plan.grid.models, plan.grid.data, options, QuietView(), torch.device("cpu")) for _ in range(2)]
    first, second = (pack[0] for pack in plan.packs)
    expected = loaders[0].tables(second, loaders[0].backbone(second))

    loader = loaders[1]
    backbone = loader.backbone(first)
    loader.tables(first, backbone)
    thread = threading.Thread(target=loader.prefetch, args=(second,))
    thread.start()
    thread.join()
    monkeypatch.delattr(inputs, "tokenize")  # nothing is left to tokenize
    prepared = loader.tables(second, backbone)
    assert prepared.info == expected.info
    assert prepared.held_out is not None and expected.held_out is not None
    for table, same in (
        (prepared.train, expected.train),
        (prepared.held_out, expected.held_out),
        (prepared.evaluation.table, expected.evaluation.table),
    ):
        assert np.array_equal(table.lengths, same.lengths)


def test_what_goes_wrong_before_goes_wrong_when_the_pack_comes(tmp_path: Path) -> None:
    bench = TinyBench.create(tmp_path, "sst2", "cola")
    plan = bench.plan([{"method": "lora", "rank": 2, "task": ["sst2", "cola"]}])
    loader = Loader(
        plan.grid.models, plan.grid.data, Options(bench.results, offline=True), QuietView(), torch.device("cpu")
    )
    first, second = (pack[0] for pack in plan.packs)
    backbone = loader.backbone(first)
    shutil.rmtree(bench.rows / second.task)
    loader.prefetch(second)
    with pytest.raises(BenchError):
        loader.tables(second, backbone)

"""The peers train what ours trains: the same weights, the same head, the same rows, and they do learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_bench.bench import peers, processes, workload
from lora_bench.bench.clock import ROUNDS, run_alone
from lora_bench.bench.peers import Peer
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as encoders
from tests.bench.bench_factory import SAMPLE, work

CPU = torch.device("cpu")


def peer(folder: Path, targets: str = "qv", seconds: float = 0.05) -> Peer:
    return Peer(SAMPLE, work(), targets, CPU, seconds, folder)


@pytest.mark.parametrize("targets", ["qv", "attention", "attention+dense"])
def test_a_peer_trains_as_many_values_as_a_cell_of_ours(tmp_path: Path, targets: str) -> None:
    """LoRA of rank 16 on the same weights, and a head of the same size."""
    with peers.quiet():
        model = peers.build_model(peer(tmp_path, targets))
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    pack = Pack(workload.make_cells(work(), targets, "lora", 1, 64), encoders.load(SAMPLE.location, CPU, "float32"), 2)
    adapters = sum(part.numel() for name, part in trained.items() if "lora_" in name)
    assert adapters == pack.adapter_params(0)
    assert sum(part.numel() for part in trained.values()) - adapters == pack.head_params()
    assert {part.dtype for part in trained.values()} == {torch.float32}


def test_both_peers_are_timed_in_each_round(tmp_path: Path) -> None:
    for turns in (peers.run_loop(peer(tmp_path)), processes.run(peer(tmp_path, seconds=0.5), 1)):
        measured = run_alone(turns)
        assert len(measured.repeats) == ROUNDS
        assert min(repeat.steps for repeat in measured.repeats) > 0
        assert all(repeat.tokens > repeat.steps * 32 * 2 for repeat in measured.repeats)
        assert measured.peak_memory_bytes is None
        assert measured.build_seconds > 0


def test_trainer_reads_the_rows_in_order_and_updates_after_each_batch(tmp_path: Path) -> None:
    """Its labels, batch by batch, are those of the order; its adapters move."""
    own = peer(tmp_path)
    seen: list[list[int]] = []
    with peers.quiet():
        model = peers.build_model(own)
        before = {name: part.detach().clone() for name, part in model.named_parameters() if part.requires_grad}
        model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["labels"].tolist()), with_kwargs=True)
        peers.make_trainer(own, model, 0, lambda: len(seen) >= 14).train()
    assert seen == own.work.table.labels[own.work.order[:14]].tolist()
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[name], part) for name, part in before.items())


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peers.missing_libraries() == []
    monkeypatch.setattr(peers, "LIBRARIES", ("torch", "no_such_library_here"))
    assert peers.missing_libraries() == ["no_such_library_here"]

"""Full fine-tuning beside its peers: they train the same, once per task, and no other ratio changes."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from lora_bench.bench import packed, peak, peers, processes, suite, workload
from lora_bench.bench.clock import ROUNDS, Turns, run_alone
from lora_bench.bench.peers import Peer
from lora_bench.bench.suite import BenchReport
from lora_bench.cli.app import app
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.forecast import cost, devices
from lora_bench.forecast.geometry import load_geometry
from tests.bench.bench_factory import SAMPLE, bench_settings, in_turns, measured, work

CPU = torch.device("cpu")
CALL = ["bench", "--quick", "--device", "cpu", "--seconds", "0.2", "--peers", "trainer,loop", "--pack", "2"]


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """`--mix lora --mix full --calibrate` on the sample, with a cache of its own."""
    out = tmp_path_factory.mktemp("full")
    environment = {"COLUMNS": "80", "XDG_CACHE_HOME": str(out / "cache")}
    mixes = ["--mix", "lora", "--mix", "full", "--calibrate"]
    return out, CliRunner().invoke(app, [*CALL, *mixes, "--out", str(out)], env=environment)


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "quick.json").read_text())["rows"]
    return rows


def test_full_rows_come_once_a_task_with_peers_of_their_own(called: tuple[Path, Result]) -> None:
    out, ended = called
    assert ended.exit_code == 0, ended.output
    found = [(row["targets"], row["variant"], row["mix"], row["k"]) for row in rows_of(out)]
    lora = [("qv", "trainer", "lora", 1), ("qv", "loop", "lora", 1), ("qv", "packed", "lora", 2)]
    assert found == [*lora, *(("all", variant, "full", 1) for variant in ("trainer", "loop", "packed"))]
    assert max(len(line) for line in ended.stdout.splitlines() if str(out) not in line) <= 80


def test_full_rows_count_six_flop_a_weight_and_their_own_ratios(called: tuple[Path, Result]) -> None:
    content = json.loads((called[0] / "quick.json").read_text())
    about, (trainer, loop, ours) = content["environment"], content["rows"][3:]
    assert about["operations_a_token_full"] == 1.5 * about["operations_a_token"]
    for row in (trainer, loop, ours):
        assert row["tflops"] == pytest.approx(row["tokens_per_second"] * about["operations_a_token_full"] / 1e12)
    for name, peer in (("trainer", trainer), ("loop", loop)):
        ratios = [rate / peer_rate for rate, peer_rate in zip(ours["repeats"], peer["repeats"], strict=True)]
        assert ours[f"ratio_to_{name}"] == pytest.approx(median(ratios))
    assert ours["ratio_to_processes"] is None


def test_packed_rows_carry_what_the_cost_model_counts(called: tuple[Path, Result]) -> None:
    """The terms of a step on the work's own tokens; the peers have none."""
    sizes = load_geometry(SAMPLE.location)
    assert sizes is not None
    tokens = {("bench", "sst2", 128): work().mean_tokens}
    for row in rows_of(called[0]):
        assert ("terms" in row) == (row["variant"] == "packed")
        if row["variant"] == "packed":
            cells = workload.make_cells(work(), row["targets"], row["mix"], row["k"], 64)
            demand = cost.Estimate(tokens=tokens).demand(cells, sizes)
            assert row["terms"] == pytest.approx(demand.terms(demand.slots))


def test_calibrate_keeps_what_the_plan_reads(called: tuple[Path, Result]) -> None:
    out, ended = called
    assert "Cost model, 2 rows: off by" in ended.stdout
    known = devices.find_device("cpu, any, 1 threads", "float32", out / "cache/lora-bench/devices.json")
    assert known is not None
    assert known.coefficients.keys() == devices.REQUIRED_TERMS | {"adapter_flop", "operand"}
    assert min(known.coefficients.values()) >= 0
    assert known.coefficients["setup"] > 0


def test_both_sides_train_every_value_of_the_model(tmp_path: Path) -> None:
    """Float32 weights, none frozen; ours and theirs are as many."""
    with peers.quiet():
        model = peers.build_model(Peer(SAMPLE, work(), "all", CPU, 0.05, tmp_path, full=True))
    assert all(part.requires_grad and part.dtype == torch.float32 for part in model.parameters())
    backbone = encoders.load(SAMPLE.location, CPU, "float32", trains=True)
    pack = Pack(workload.make_cells(work(), "all", "full", 1, 64), backbone, 2)
    assert sum(part.numel() for part in model.parameters()) == pack.adapter_params(0) + pack.head_params()


def test_with_bf16_the_trained_weights_stay_float32(tmp_path: Path) -> None:
    made = workload.load_workload("sst2", bench_settings(), SAMPLE, "bf16", 128)
    peer = Peer(SAMPLE, made, "all", CPU, 0.02, tmp_path, full=True)
    with peers.quiet():
        assert {part.dtype for part in peers.build_model(peer).parameters()} == {torch.float32}
    (cell,) = workload.make_cells(made, "all", "full", 1, 64)
    encoder = encoders.load(SAMPLE.location, CPU, "bf16", trains=True)
    for turns in (peers.run_loop(peer), packed.run([cell], made, lambda: encoder, CPU, 0.02)):
        assert len(run_alone(turns).repeats) == ROUNDS


def test_the_peers_move_every_value_at_the_rate_of_the_method(tmp_path: Path) -> None:
    own = Peer(SAMPLE, work(), "all", CPU, 0.05, tmp_path, full=True)
    steps = iter(range(3))
    with peers.quiet():
        model = peers.build_model(own)
        before = {name: part.detach().clone() for name, part in model.named_parameters()}
        made = peers.make_trainer(own, model, 0, lambda: next(steps) == 2)
        made.train()
    assert made.args.learning_rate == 2e-5
    still = [name for name, part in model.named_parameters() if torch.equal(part, before[name])]
    assert still == []


class Counted:
    """A suite with stand-ins that note who was called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.calls: list[tuple[str, str, bool]] = []
        monkeypatch.setattr(peak, "measure", lambda *_: {"tflops": 1.0, "dtype": "float32"})
        monkeypatch.setattr(packed, "run", lambda *_: in_turns(measured(5.0)))
        monkeypatch.setattr(peers, "run_loop", lambda peer: self.note("loop", peer))
        monkeypatch.setattr(
            processes, "run", lambda peer, count, _: self.note("trainer" if count == 1 else "processes", peer)
        )

    def note(self, name: str, peer: Peer) -> Turns:
        self.calls.append((name, peer.targets, peer.full))
        return in_turns(measured(2.0))

    def run(self, **options: Any) -> BenchReport:
        return suite.Suite(bench_settings(**options), self.folder, lambda _: None, lambda _: None).run()


def test_no_peer_runs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the adapters once a target set, those of full once a task and without processes."""
    under = Counted(tmp_path, monkeypatch)
    under.run(mix=["full", "lora", "mixed"], targets=["qv", "attention"], pack=["1"])
    lora = [(name, targets, False) for targets in ("qv", "attention") for name in ("trainer", "loop", "processes")]
    assert under.calls == [*lora, ("trainer", "all", True), ("loop", "all", True)]


def test_full_alone_needs_no_other_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under = Counted(tmp_path, monkeypatch)
    made = under.run(mix=["full"], pack=["1", "8", "auto"])
    assert under.calls == [("trainer", "all", True), ("loop", "all", True)]
    assert [(row.variant, row.mix, row.k) for row in made.rows][2:] == [("packed", "full", 1)]
    assert made.rows[2].ratio_to_trainer == 2.5

"""What travels between processes arrives as it was, through JSON and bytes alone."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_bench.callbacks import Callback, EpochMetrics, PackEnd, PackStart, StepBlock
from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError
from lora_bench.records import files
from lora_bench.records.schema import Record
from lora_bench.records.seal import describe
from lora_bench.records.store import record_text
from lora_bench.run import checkpoints, remote
from lora_bench.run.checkpoints import Checkpoint
from lora_bench.run.interfaces import Job, Options, View
from lora_bench.run.outcome import Outcome
from lora_bench.testing import TinyBench, make_cell, make_record
from tests.robust.stub_worker import save_checkpoint

CELLS = (make_cell("lora", rank=2, lr=1e-3 / 3), make_cell("mini", head_lr=0.1))


class Noting(View):
    """Notes every call of a callback's methods."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") or name in ("stage", "warn"):
            return lambda *values: self.calls.append((name, *values))
        return super().__getattribute__(name)


def test_a_view_elsewhere_shows_what_it_would_have_shown_here() -> None:
    block = StepBlock(1, 4, *(np.array([[0.1, math.nan], [math.inf, 1e-300]]) for _ in range(3)))
    metrics = EpochMetrics(2, "accuracy", ({"accuracy": 1 / 3}, None), (None, None))
    calls: list[tuple[Any, ...]] = [
        ("stage", "loading"),
        ("on_pack_start", PackStart(CELLS, 7, 3, 2)),
        ("on_step_issued", 1, 5),
        ("on_steps_recorded", block),
        ("on_epoch_evaluated", metrics),
        ("on_pack_end", PackEnd(True, (None, "step 3"))),
        ("warn", "careful"),
    ]
    sent: list[remote.Event] = []
    view, shown = remote.RemoteView(sent.append), Noting()
    for name, *values in calls:
        getattr(view, name)(*values)
    for _, name, *values in json.loads(json.dumps(sent)):
        remote.show(shown, name, values)
    assert repr(shown.calls) == repr(calls)
    overridden = {name for name in vars(Callback) if name.startswith("on_")} - {"on_safe_point"}
    assert overridden <= vars(remote.RemoteView).keys()  # what callbacks see here, they see elsewhere


def entry(cell: Cell, position: int) -> checkpoints.CellEntry:
    """A cell in a checkpoint."""
    return checkpoints.CellEntry(
        id=cell.id, position=position, code="c", record_time=0, steps=3, steps_taken=3, epoch_losses=[math.nan, 0.1]
    )


def test_a_job_arrives_as_it_was_with_the_newest_sound_checkpoint_of_each_cell(tmp_path: Path) -> None:
    both = [entry(cell, position) for position, cell in enumerate(CELLS)]
    for steps, entries in ((9, both[:1]), (8, both), (7, both)):
        save_checkpoint(tmp_path, "pack", entries, f"of {steps}".encode(), steps)
    stored = checkpoints.read_all(tmp_path)
    job = Job(5, CELLS, 2, ("a note",), {CELLS[0].id: 0}, stored, 1e9 / 3, trained_with={"an id": "a hash"})
    decoded = remote.decode_job(remote.encode_job(job))
    assert [checkpoint.read_tensors() for checkpoint in decoded.checkpoints] == [b"of 9", b"of 8"]
    assert repr([c.manifest for c in decoded.checkpoints]) == repr([c.manifest for c in stored[:2]])
    plain = {"checkpoints": ()}
    assert {**vars(decoded), **plain} == {**vars(job), **plain}
    assert isinstance(stored[0], Checkpoint)
    (stored[0].path / checkpoints.TENSORS).write_bytes(b"damaged")
    sent = remote.decode_job(remote.encode_job(job)).checkpoints
    assert [checkpoint.read_tensors() for checkpoint in sent] == [b"of 8"]
    assert describe({checkpoints.TENSORS: b"of 8"}) == sent[0].manifest.files


def test_a_setup_arrives_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = TinyBench.create(tmp_path, "sst2")
    monkeypatch.chdir(tmp_path)
    relative = TinyBench(Path("tiny"), Path("rows"), Path("results"))
    blocks = ({"method": "lora", "rank": 2, "model": ["tiny", "sample"]}, {"method": "xs", "rank": 2})
    setup = relative.plan(blocks).setup(Options(Path("results"), offline=True, save=False, cache=Path("cache")))
    text = remote.encode_setup(setup, "cuda")
    monkeypatch.chdir("/")
    decoded, included = remote.decode_setup(text)
    assert included == []
    assert decoded.methods == ("lora", "xs")
    assert (decoded.targets, decoded.heads) == (setup.targets, setup.heads)
    assert {identity: source.identity for identity, source in decoded.models.items()} == {
        identity: identity for identity in setup.models
    }
    for source in decoded.models.values():
        source.require_unchanged()
    assert {source.root for source in decoded.data.values()} == {bench.rows}
    assert (decoded.options.device, decoded.options.offline, decoded.options.save) == ("cuda", True, False)
    assert decoded.options.cache == tmp_path / "cache"


def test_a_record_arrives_byte_by_byte() -> None:
    record: Record = make_record(1 / 3, cell=CELLS[0])
    (outcome,) = remote.decode_outcomes([(record_text(record), {"head.safetensors": b"x"})])
    assert outcome == Outcome(record, {"head.safetensors": b"x"})
    assert record_text(outcome.record) == record_text(record)


def test_an_error_is_sent_in_the_users_terms_or_with_its_traceback() -> None:
    assert remote._error_event(BenchError("What.", "How.", MISSING)) == (
        ("error", platform.node(), "What.", "How.", MISSING)
    )
    full = OSError(28, "No space left on device")
    full.filename = "values"
    assert remote._error_event(full)[2] == "No space left on device: 'values'."
    with pytest.raises(ZeroDivisionError) as caught:
        files.read_file(Path(str(1 // 0)))
    kind, _, text = remote._error_event(caught.value)
    assert kind == "fault"
    assert "test_remote.py" in text

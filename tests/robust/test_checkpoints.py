"""Checkpoints on disk: what is written where, what is read, which cells count as unfinished, and what is removed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest

from lora_bench.records import files
from lora_bench.records.seal import describe, seal, unseal
from lora_bench.run import checkpoints
from lora_bench.run.checkpoints import CellEntry, Checkpoint, CheckpointManifest
from lora_bench.run.publish import RecordStore
from tests.robust.robust_kit import tree
from tests.robust.stub_worker import save_checkpoint

NAME = "0123456789ab"
# The manifest of an older version, which ended with a SHA-256 of its own.
OLDER = (
    b'{"schema_version":1,"steps":3,"seconds":1.0,"fingerprint":{"torch":"2"},"cells":[{"id":"793034f20ed9",'
    b'"position":0,"code":"x","since":0,"steps":3,"lived":3,"diverged":null,"selected":null,"epoch_losses":[],'
    b'"metrics":[],"held_out":[]}],"size":6,"sha256":"89445ea08b55421faa49919a5fd272e9a520f701b479d6084847e161ca5b7711",'
    b'"check":"c8930c737cdd74d583b996f372b249fa3ae345575e48f1c61b3fcda866c5fecd"}\n'
)


def entry(cell_id: str, position: int = 0, record_time: int = 0, steps: int = 3) -> CellEntry:
    """A cell in a checkpoint."""
    return CellEntry(
        id=cell_id, position=position, code="c", record_time=record_time, steps=steps, steps_taken=steps - 1
    )


def names(results: Path) -> list[str]:
    """The checkpoints' folders."""
    return sorted(path.name for path in (results / "states").iterdir()) if (results / "states").exists() else []


def test_a_checkpoint_is_a_folder_of_two_files_named_by_its_pack_and_steps(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, NAME, [entry("a")], b"tensors", steps=42)
    assert path == tmp_path / "states" / f"{NAME}-000000042"
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "state.safetensors"]
    assert (path / "state.safetensors").read_bytes() == b"tensors"
    content = json.loads((path / "manifest.json").read_bytes())
    assert list(content)[-1] == "crc32"
    assert content["schema_version"] == 2
    assert content["files"] == {"state.safetensors": {"bytes": 7, "sha256": hashlib.sha256(b"tensors").hexdigest()}}
    assert names(tmp_path) == [f"{NAME}-000000042"]  # nothing temporary is left


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path: Path) -> None:
    cell = CellEntry(
        id="a",
        position=4,
        code="code of a",
        record_time=9,
        steps=7,
        steps_taken=6,
        diverged="epoch 1, step 7",
        selected=2,
        epoch_losses=[0.5, math.inf],
        metrics=[{"accuracy": 0.25}, {"accuracy": math.nan}],
        held_out=[{"accuracy": -math.inf}],
    )
    path = save_checkpoint(tmp_path, NAME, [cell, entry("b", 5)], b"tensors", steps=7, fingerprint={"torch": "2"})
    (checkpoint,) = checkpoints.read_all(tmp_path)
    assert checkpoint.path == path
    assert repr(checkpoint.cells) == repr({"a": cell, "b": entry("b", 5)})  # NaN is not equal to itself
    assert (checkpoint.manifest.steps, checkpoint.manifest.seconds) == (7, 1.0)
    assert checkpoint.read_tensors() == b"tensors"
    assert checkpoint.fingerprint("a") == {"torch": "2", "code": "code of a"}
    assert checkpoint.fingerprint("b") == {"torch": "2", "code": "c"}


def test_a_checkpoint_of_the_same_steps_is_replaced(tmp_path: Path) -> None:
    for tensors in (b"one", b"another"):
        save_checkpoint(tmp_path, NAME, tensors=tensors)
    (checkpoint,) = checkpoints.read_all(tmp_path)
    assert checkpoint.read_tensors() == b"another"


def test_a_pack_is_named_by_its_process_and_its_cells_in_any_order() -> None:
    name = checkpoints.pack_name("token", ["b", "a"])
    assert name == checkpoints.pack_name("token", ["a", "b"]) == hashlib.sha256(b"token\na\nb").hexdigest()[:12]
    others = [checkpoints.pack_name("token", ["a"]), checkpoints.pack_name("other", ["a", "b"])]
    assert len({name, *others}) == 3


def test_the_newest_checkpoint_comes_first(tmp_path: Path) -> None:
    for name, steps in (("b", 5), ("a", 5), ("c", 1_000_000_000), ("d", 40)):
        save_checkpoint(tmp_path, name, steps=steps)
    order = [checkpoint.path.name for checkpoint in checkpoints.read_all(tmp_path)]
    assert order == ["c-1000000000", "d-000000040", "a-000000005", "b-000000005"]


@pytest.mark.parametrize("name", ["pack", ".pack-000000003", "pack-00000003", "pack-000000003x", "-000000003"])
def test_a_folder_of_another_name_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, NAME)
    path.rename(path.with_name(name))
    assert checkpoints.read_all(tmp_path) == []
    assert checkpoints.damaged_folders(tmp_path) == []


def test_files_and_links_are_no_checkpoints(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, NAME)
    moved = path.rename(tmp_path / "elsewhere")
    path.symlink_to(moved)
    path.with_name("fedcba987654-000000003").write_text("a file")
    assert checkpoints.read_all(tmp_path) == []
    assert checkpoints.damaged_folders(tmp_path) == []
    path.unlink()
    path.mkdir()
    for name in ("manifest.json", "state.safetensors"):
        (path / name).symlink_to(moved / name)
    assert checkpoints.read_all(tmp_path) == []
    (path / "manifest.json").unlink()
    (moved / "manifest.json").rename(path / "manifest.json")
    (checkpoint,) = checkpoints.read_all(tmp_path)
    with pytest.raises(ValueError, match="link"):
        checkpoint.read_tensors()


def test_tensors_that_are_missing_or_changed_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, NAME, tensors=b"tensors")
    (checkpoint,) = checkpoints.read_all(tmp_path)
    for content in (b"tensorz", b"tensor", b"tensors!"):
        (path / "state.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"^state\.safetensors has changed since it was written$"):
            checkpoint.read_tensors()
    (path / "state.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^No such file or directory$"):
        checkpoint.read_tensors()
    bare = Checkpoint(checkpoint.manifest.model_copy(update={"files": {}}), path)
    with pytest.raises(ValueError, match="lists no tensors"):
        bare.read_tensors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, "Input should be 2"),
        ({"schema_version": 3}, "Input should be 2"),
        ({"steps": "many"}, "valid integer"),
        ({"more": 1}, "not permitted"),
        ({"cells": [{"id": "a"}]}, "required"),
        ({"files": {"../other": {"bytes": 0, "sha256": "0" * 64}}}, r"state\.safetensors"),
    ],
)
def test_a_manifest_of_another_kind_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = save_checkpoint(tmp_path, NAME, [entry("a")]) / "manifest.json"
    content = seal(json.dumps(json.loads(unseal(path.read_bytes())) | changes))
    with pytest.raises(ValueError, match=message) as caught:
        checkpoints.parse_manifest(content)
    assert "\n" not in str(caught.value)
    path.write_bytes(content)
    assert checkpoints.read_all(tmp_path) == []
    assert checkpoints.damaged_folders(tmp_path) == [path.parent]


def test_a_checkpoint_of_an_older_version_is_ignored_and_cleaned_up(tmp_path: Path) -> None:
    older = tmp_path / "states" / f"{NAME}-000000003"
    older.mkdir(parents=True)
    (older / "manifest.json").write_bytes(OLDER)
    (older / "state.safetensors").write_bytes(b"values")
    with pytest.raises(ValueError, match="checksum"):
        checkpoints.parse_manifest(OLDER)
    assert checkpoints.read_all(tmp_path) == []
    RecordStore(tmp_path).sweep()
    assert not (tmp_path / "states").exists()


def test_damaged_checkpoints_are_those_that_were_named_here(tmp_path: Path) -> None:
    for name in (NAME, "by-hand", "0123456789AB"):
        (save_checkpoint(tmp_path, name) / "manifest.json").write_text("{")
    without = save_checkpoint(tmp_path, "aaaaaaaaaaaa")
    (without / "manifest.json").unlink()
    folder = save_checkpoint(tmp_path, "bbbbbbbbbbbb")
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    save_checkpoint(tmp_path, "cccccccccccc")
    damaged = [path.name for path in checkpoints.damaged_folders(tmp_path)]
    assert damaged == [f"{name}-000000003" for name in (NAME, "aaaaaaaaaaaa", "bbbbbbbbbbbb")]


def test_a_checkpoint_that_cannot_be_read_now_is_neither_used_nor_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, NAME)

    def failing(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "read_file", failing)
    assert checkpoints.read_all(tmp_path) == []
    assert checkpoints.damaged_folders(tmp_path) == []


def test_no_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints.read_all(tmp_path) == []
    assert checkpoints.damaged_folders(tmp_path) == []
    checkpoints.prune(tmp_path, ["a"], {})
    assert tree(tmp_path).keys() <= {"model", "rows"}


def test_a_cell_with_a_newer_record_is_finished(tmp_path: Path) -> None:
    """The record that the cell had when it was saved does not count: it is trained again, as `--retry` asks."""
    save_checkpoint(tmp_path, NAME, [entry("a", 0), entry("b", 1, record_time=5), entry("c", 2, record_time=5)])
    (checkpoint,) = checkpoints.read_all(tmp_path)
    assert checkpoint.unfinished({}) == ["a"]
    assert checkpoint.unfinished({"b": 5, "c": 6}) == ["a", "b"]
    assert checkpoint.unfinished({"a": 1, "b": 5, "c": 5}) == ["b", "c"]


def test_each_cell_is_resumed_from_its_newest_checkpoint(tmp_path: Path) -> None:
    new = save_checkpoint(tmp_path, "new", [entry("a"), entry("done")], steps=9)
    old = save_checkpoint(tmp_path, "old", [entry("a"), entry("b"), entry("done")], steps=8)
    newest = checkpoints.newest_by_cell(checkpoints.read_all(tmp_path), {"done": 1})
    assert {cell_id: checkpoint.path for cell_id, checkpoint in newest.items()} == {"a": new, "b": old}


def test_prune_keeps_two_of_a_pack_and_those_of_others(tmp_path: Path) -> None:
    for steps in (1, 2, 3, 4):
        save_checkpoint(tmp_path, "mine", [entry("a"), entry("b")], steps=steps)
    for steps in (1, 2, 3):
        save_checkpoint(tmp_path, "both", [entry("a"), entry("other")], steps=steps)
        save_checkpoint(tmp_path, "others", [entry("other")], steps=steps)
    checkpoints.prune(tmp_path, ["a", "b"], {})
    assert names(tmp_path) == [
        *(f"both-00000000{steps}" for steps in (1, 2, 3)),
        *(f"mine-00000000{steps}" for steps in (3, 4)),
        *(f"others-00000000{steps}" for steps in (1, 2, 3)),
    ]


def test_prune_removes_what_is_finished_whoever_trained_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "finished", [entry("other"), entry("another")], steps=9)
    save_checkpoint(tmp_path, "empty", [], steps=8)
    for steps in (1, 2, 3):
        save_checkpoint(tmp_path, "mine", [entry("a"), entry("other")], steps=steps)
    checkpoints.prune(tmp_path, ["a"], {"other": 1, "another": 1})
    assert names(tmp_path) == ["mine-000000002", "mine-000000003"]  # what was finished is not counted
    checkpoints.prune(tmp_path, [], {"other": 1})
    assert names(tmp_path) == ["mine-000000002", "mine-000000003"]  # `a` may be another's
    checkpoints.prune(tmp_path, [], {"a": 1, "other": 1})
    assert names(tmp_path) == []


def test_files_of_others_in_a_checkpoint_stay(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, NAME)
    (path / "notes").write_text("mine")
    checkpoints.remove(path)
    assert [file.name for file in path.iterdir()] == ["notes"]
    empty = save_checkpoint(tmp_path, NAME, steps=4)
    checkpoints.remove(empty)
    checkpoints.remove(empty)
    assert not empty.exists()


def test_the_manifest_goes_before_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it removes a checkpoint leaves nothing that would be read."""
    path, removed = save_checkpoint(tmp_path, NAME), list[str]()
    remove = files.remove

    def noted(file: Path) -> None:
        removed.append(file.name)
        remove(file)

    monkeypatch.setattr(files, "remove", noted)
    checkpoints.remove(path)
    assert removed == ["manifest.json", "state.safetensors"]


def test_a_checkpoint_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, NAME, tensors=b"before")
    before = tree(tmp_path / "states")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, NAME, tensors=b"after")
    assert tree(tmp_path / "states") == before


def test_a_manifest_does_not_change() -> None:
    """Nor do its cells: they are read once and used by several."""
    manifest = CheckpointManifest(
        steps=1, seconds=1.0, fingerprint={}, cells=(entry("a"),), files=describe({checkpoints.TENSORS: b""})
    )
    for model in (manifest, manifest.cells[0]):
        with pytest.raises(ValueError, match="frozen"):
            model.steps = 2

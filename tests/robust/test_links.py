"""What is in a results folder and is not a plain file or folder: links are not followed, pipes not waited for."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_bench.errors import DONE, MISSING, SOME_FAILED, USAGE, BenchError
from lora_bench.records import files, store
from lora_bench.records.store import read_records, record_path
from lora_bench.run import checkpoints, owner
from tests.robust.robust_kit import assert_clear_error, lora_bench, run, tree
from tests.robust.stub_worker import grid, runner, save_checkpoint, worker_of


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of another project, with a sound record, a saved pack and a temporary file."""
    folder = tmp_path / "elsewhere"
    runner(folder, grid(1)).run()
    (folder / "adapters" / ".mine.tmp").touch()
    save_checkpoint(folder, "pack")
    return folder


@pytest.mark.parametrize("where", ["pending/x", "pending/x/cells", "pending/x/adapters", "pending/x/cells/a.json"])
def test_a_link_among_what_is_published_is_not_followed(results: Path, elsewhere: Path, where: str) -> None:
    record = next((elsewhere / "cells").iterdir())
    target = {"x": elsewhere, "cells": elsewhere / "cells", "adapters": elsewhere / "adapters", "a.json": record}
    before = tree(elsewhere)
    link = results / where.replace("a.json", record.name)
    link.parent.mkdir(parents=True)
    link.symlink_to(target[where.rpartition("/")[2]])
    assert len(runner(results, grid(1, (8,))).run()) == 1
    assert tree(elsewhere) == before
    assert [record.cell.rank for record in read_records(results).records] == [8]
    assert link.is_symlink() or where.endswith("a.json")


def test_a_link_in_the_place_of_a_record_is_not_read_as_one(results: Path, elsewhere: Path) -> None:
    made = grid(1)
    path = record_path(results, made.cells[0].id)
    path.parent.mkdir(parents=True)
    path.symlink_to(record_path(elsewhere, path.stem))
    before = tree(elsewhere)
    ((where, why),) = read_records(results).broken
    assert (where, why) == (path, "this is a link, and links are not followed here")
    running = runner(results, made)
    assert len(running.run()) == 2
    assert not path.is_symlink()
    assert tree(elsewhere) == before


@pytest.mark.parametrize("name", ["cells", "adapters", "pending", "states"])
def test_a_folder_of_ours_that_is_a_link_is_refused(workplace: Path, name: str) -> None:
    """Before anything is moved or removed there; by `archive` too, which removes files."""
    theirs = workplace / "theirs"
    theirs.mkdir()
    for each in ("thesis.json", ".y.0123456789ab.tmp", "0123456789ab-000000001", "0123.lock"):
        (theirs / each).write_text("mine")
    assert run().code == DONE
    if (workplace / "results" / name).exists():
        shutil.move(workplace / "results" / name, workplace / "moved")
    (workplace / "results" / name).symlink_to(theirs)
    before = tree(theirs)
    ended = run("--seed", "1")
    assert (ended.code, f"Error: 'results/{name}' is a link" in ended.errors) == (MISSING, True), ended
    if name != "cells":  # the records are there
        assert_clear_error(lora_bench("archive", "--results", "results"), MISSING, f"'results/{name}' is a link")
    assert tree(theirs) == before


def test_what_is_not_ours_stays_where_it_is(results: Path) -> None:
    """Whatever is in the folders in which we move and remove, under names that we do not give."""
    theirs = {
        "pending": ("notes.txt", "0123-0", ".y.tmp", "my-pack/cells/thesis.json", "0a-1/cells/thesis.json", "0a-2/x"),
        "states": ("notes.txt", "0123456789ab-000000001", "backup-202401010101/x", "0123456789ab-000000002/x"),
        "cells": (".y.tmp",),
        "adapters": (".y.tmp", "mine/.y.tmp"),
    }
    paths = [results / folder / name for folder, names in theirs.items() for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert len(runner(results, grid(1)).run()) == 2
    assert [path for path in paths if not path.is_file()] == []


def test_links_to_saved_packs_and_adapters_stay_and_their_targets_too(results: Path, elsewhere: Path) -> None:
    (elsewhere_state,) = (elsewhere / "states").iterdir()
    links = {"states": elsewhere_state, "adapters": elsewhere / "adapters"}
    for name, target in links.items():
        (results / name).mkdir(parents=True)
        (results / name / target.name).symlink_to(target)
    (results / "states" / "notes").mkdir()
    before = tree(elsewhere)
    assert checkpoints.read_all(results) == []
    assert len(runner(results, grid(1, (8,))).run()) == 1
    assert tree(elsewhere) == before
    assert (results / "states" / elsewhere_state.name).is_symlink()
    assert (results / "states" / "notes").is_dir()
    assert (results / "adapters" / "adapters" / ".mine.tmp").exists()


def test_a_saved_pack_that_cannot_be_read_now_is_not_removed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(results, "pack")
    save_checkpoint(results, "0123456789ab")
    (results / "states" / "0123456789ab-000000003" / "manifest.json").write_text("{")
    proper = files.read_file

    def failing(path: Path, *rest: Any, **more: Any) -> bytes:
        if "pack-" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return proper(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_file", failing)
        runner(results, grid(1)).run()
    assert [path.name for path in (results / "states").iterdir()] == ["pack-000000003"]


def fifo(path: Path) -> Path:
    """A pipe that nobody writes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("plan", "--config", "pipe"), USAGE, "pipe: this is not a regular file"),
        (("list", "methods", "--include", "pipe"), USAGE, "'pipe' cannot be read (this is not a regular file)"),
        (("check", "pipe.py"), USAGE, "'pipe.py' cannot be read (this is not a regular file)"),
    ],
)
def test_a_pipe_is_not_waited_for(workplace: Path, words: tuple[str, ...], code: int, said: str) -> None:
    fifo(workplace / "pipe")
    fifo(workplace / "pipe.py")
    assert_clear_error(lora_bench(*words), code, said)


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_calibration_is_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    fifo(workplace / "cache" / "lora-bench" / "devices.json")
    assert_clear_error(run(command="plan"), MISSING, "is not what `bench --calibrate` wrote")


@pytest.mark.timeout(60)
def test_pipes_in_a_results_folder_are_not_waited_for(results: Path) -> None:
    for name in ("states/pack-000000001/manifest.json", "cells/x.json", "cells/.x.tmp"):
        fifo(results / name)
    assert owner.current(results) is None
    assert len(runner(results, grid(1)).run()) == 2


def refusing(patch: pytest.MonkeyPatch, number: int, *names: str) -> None:
    """Let operations of the system fail."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in names:
        patch.setattr(name, fail)


@pytest.mark.parametrize(
    ("operation", "number", "said", "hint"),
    [
        ("os.fsync", errno.EIO, "'results/", "The disk or its server failed"),
        ("os.fsync", errno.ENOSPC, "'results/", "Make room on that disk"),
    ],
)
def test_an_error_of_the_system_names_its_file_and_what_helps(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int, said: str, hint: str
) -> None:
    refusing(monkeypatch, number, operation)
    ended = run()
    assert_clear_error(ended, MISSING, said)
    assert os.strerror(number) in ended.errors
    assert hint in ended.errors
    assert ".tmp" not in ended.errors


def test_a_file_system_without_locks_will_do(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, errno.ENOSYS, "fcntl.flock")
    assert run().code == DONE
    assert lora_bench("archive", "--results", "results").code == DONE


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["link", "pipe", "file"])
def test_a_lock_that_is_something_else_is_not_followed_and_no_hindrance(workplace: Path, kind: str) -> None:
    path = workplace / "results" / owner.LOCK
    path.parent.mkdir()
    (workplace / "theirs").write_text("mine")
    if kind == "link":
        path.symlink_to(workplace / "theirs")
    elif kind == "pipe":
        fifo(path)
    else:
        path.write_text("nonsense\n")
    assert run().code == DONE
    assert (workplace / "theirs").read_text() == "mine"


def test_an_error_of_close_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proper: Callable[[int], None] = os.close

    def failing(descriptor: int) -> None:
        proper(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        with pytest.raises(OSError, match="Input/output error") as caught:
            files.write_atomically(tmp_path / "in" / "file", b"content")
    assert caught.value.filename == str(tmp_path / "in" / "file")
    assert list((tmp_path / "in").iterdir()) == []


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes the system fail to read one record."""
    proper = files.read_file

    def make(path: Path) -> None:
        def failing(which: Path, *rest: Any, **more: Any) -> bytes:
            if which.name == path.name:
                raise OSError(errno.EIO, "Input/output error", str(which))
            return proper(which, *rest, **more)

        monkeypatch.setattr(store, "read_file", failing)

    return make


def test_a_record_that_cannot_be_read_is_left_alone(
    results: Path, unreadable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a whole run: said, not set aside, not trained again; when it can be read, all is well."""
    assert run().code == DONE
    (path,) = (results / "cells").iterdir()
    before = tree(results / "cells")
    with monkeypatch.context():
        unreadable(path)
        ended = run()
        assert ended.code == SOME_FAILED
        assert f"Left out: results/cells/{path.name} (it cannot be read: Input/output error)" in ended.errors
        assert "0 to train" in ended.out
        assert "unreadable" in run(command="plan").out
        assert tree(results / "cells") == before
    monkeypatch.undo()
    monkeypatch.chdir(results.parent)
    assert run().code == DONE
    assert tree(results / "cells") == before


@pytest.mark.parametrize("command", ["show", "export", "archive", "choose"])
def test_who_needs_a_record_that_cannot_be_read_is_told_to_make_it_readable(
    results: Path, unreadable: Callable[[Path], None], command: str
) -> None:
    """Not to train the cell again, which `run` refuses: the record may be sound."""
    assert run().code == DONE
    (path,) = (results / "cells").iterdir()
    unreadable(path)
    words = {"show": (path.stem,), "export": (path.stem, "--to", "peft", "--out", "out")}.get(command, ())
    ended = lora_bench(command, *words, "--results", "results")
    assert_clear_error(ended, SOME_FAILED, f"{path.name}' may be sound, but it cannot be read: Input/output error.")
    assert "Make the file readable" in ended.errors
    assert "Train" not in ended.errors


def test_a_record_that_cannot_be_read_any_more_is_not_trained_again(
    results: Path, unreadable: Callable[[Path], None]
) -> None:
    """It was written by this run, then the disk failed; another cell of the pack is yet to come."""
    made = grid(2)

    def work(cells: object) -> None:
        for path in (results / "cells").glob("*.json"):
            unreadable(path)

    running = runner(results, made, on_cells=work)
    running.run()
    trained = worker_of(running).trained
    assert len(trained) == len(set(trained)) == 4
    assert list((results / "cells").glob("*.broken*")) == []


def test_nothing_replaces_a_record_that_cannot_be_read(results: Path, unreadable: Callable[[Path], None]) -> None:
    """Not even a newer one that another process has published: it waits."""
    runner(results, grid(1, (1,))).run()
    (path,) = (results / "cells").iterdir()
    content = path.read_bytes()
    waiting = results / "pending" / "0123-0" / "cells" / path.name
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(content)
    running = runner(results, grid(1, (2,)))
    unreadable(path)
    with pytest.raises(BenchError, match="Input/output error"):
        running.run()
    assert path.read_bytes() == waiting.read_bytes() == content

"""A results folder with something wrong in it, at the store: what is refused, set aside, or told of."""

from __future__ import annotations

import errno
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_bench.errors import MISSING, BenchError
from lora_bench.records import archive, files, store
from lora_bench.records.schema import NEWER
from lora_bench.records.seal import seal
from lora_bench.records.store import (
    count_records,
    move_to_archive,
    prepare,
    read_record,
    read_records,
    record_path,
    record_text,
    set_aside,
    write_record,
)
from tests.test_store import failed, record


def rewritten(folder: Path, **changes: Any) -> Path:
    """A record's file with other content, sealed as it should be."""
    one = record()
    write_record(folder, one)
    path = record_path(folder, one.id)
    content = {key: value for key, value in json.loads(path.read_text()).items() if key != "crc32"}
    path.write_bytes(seal(json.dumps(content | changes)))
    return path


def test_a_record_says_what_is_set_and_what_is_not(tmp_path: Path) -> None:
    """Defaults are written out, and the text is one line that ends with the checksum."""
    text = record_text(failed())
    content = json.loads(text)
    assert content["schema_version"] == 1
    assert content["epochs"] == content["predictions"] == []
    assert content["protocol"]["start"] == "pretrained"
    assert list(content)[-1] == "crc32"
    assert text.count(b"\n") == 1
    assert text.endswith(b"}\n")


def test_what_is_refused_says_so_in_one_line(tmp_path: Path) -> None:
    for changes, words in (
        ({"status": "splendid"}, "its 'status' is not valid: Input should be 'done'"),
        ({"counts": {"adapter_params": "x"}}, "its 'counts.adapter_params' is not valid: "),
        ({"schema_version": 0}, "its 'schema_version' is not valid: Input should be 1"),
        ({"schema_version": "2"}, "its 'schema_version' is not valid: Input should be 1"),
        ({"schema_version": 2.5}, "its 'schema_version' is not valid: Input should be 1"),
        ({"x" * 300: 1}, "it has '" + "x" * 192),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
            read_record(rewritten(tmp_path, **changes))
        assert str(caught.value).startswith(words)
        assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("value", [0, 2**63 - 1])
def test_any_number_of_a_machine_is_kept(tmp_path: Path, value: int) -> None:
    assert read_record(rewritten(tmp_path, best_epoch=value, best=-value)).best_epoch == value


@pytest.mark.parametrize(
    ("field", "value"), [("best_epoch", -1), ("best_epoch", 2**63), ("best", float("nan")), ("last", float("inf"))]
)
def test_a_number_out_of_all_bounds_is_refused(tmp_path: Path, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^its '{field}' is not valid: "):
        read_record(rewritten(tmp_path, **{field: value}))


def test_settings_that_are_not_those_of_the_id_are_refused(tmp_path: Path) -> None:
    """Even with a checksum that is right."""
    settings = record().cell.model_dump(mode="json") | {"lr": 0.5}
    with pytest.raises(ValueError, match="its id is not the hash of its settings"):
        read_record(rewritten(tmp_path, cell=settings))


@pytest.mark.parametrize("end", [b"\r\n", b"\n\n", b" \n", b"\n\r\n\t"])
def test_what_ends_the_line_of_a_record_does_not_matter(tmp_path: Path, end: bytes) -> None:
    """As git on Windows, or an editor, changes it."""
    one = record()
    write_record(tmp_path, one)
    path = record_path(tmp_path, one.id)
    path.write_bytes(path.read_bytes().removesuffix(b"\n") + end)
    assert read_record(path) == one


@pytest.mark.parametrize("end", [b"", b"x\n", b"\x0b", b",\n"])
def test_a_line_that_does_not_end_or_ends_otherwise_is_reported_in_words(tmp_path: Path, end: bytes) -> None:
    one = record()
    write_record(tmp_path, one)
    path = record_path(tmp_path, one.id)
    path.write_bytes(path.read_bytes().removesuffix(b"\n") + end)
    with pytest.raises(ValueError, match=r"^(it does not end with a checksum|its checksum is wrong): "):
        read_record(path)


def test_what_a_record_lacks_is_reported_in_words(tmp_path: Path) -> None:
    path = rewritten(tmp_path)
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("crc32", "metric")}
    path.write_bytes(seal(json.dumps(content)))
    with pytest.raises(ValueError, match=r"^it has no 'metric'$"):
        read_record(path)


def test_what_is_no_json_says_so_first(tmp_path: Path) -> None:
    path = rewritten(tmp_path)
    path.write_bytes(seal('{"id": '))
    with pytest.raises(ValueError, match=r"^it is not whole JSON \("):
        read_record(path)


def test_a_newer_record_is_known_as_such_whatever_else_is_new(tmp_path: Path) -> None:
    path = rewritten(tmp_path, schema_version=2, aaa=1, counts=None, status="splendid")
    with pytest.raises(ValueError, match=rf"^{NEWER} \(schema 2\)$"):
        read_record(path)


def test_a_newer_record_is_refused_for_its_own_cell_alone(tmp_path: Path) -> None:
    path = rewritten(tmp_path, schema_version=3)
    (tmp_path / "cells" / "spoiled.json").write_text("{")
    loaded = read_records(tmp_path)
    assert len(loaded.broken) == 2
    loaded.refuse_newer({"another", "spoiled"})
    with pytest.raises(BenchError, match=r"was written by a newer lora-bench \(schema 3\)\.") as caught:
        loaded.refuse_newer({"another", path.stem})
    assert caught.value.code == MISSING
    assert "Upgrade" in caught.value.hint


def test_the_folders_are_made_and_made_again(tmp_path: Path) -> None:
    for _ in range(2):
        prepare(tmp_path / "some" / "results")
    assert sorted(path.name for path in (tmp_path / "some" / "results").rglob("*")) == ["adapters", "cells"]


@pytest.mark.parametrize(("name", "folder"), [("metrics.csv", True), ("cells", False), ("adapters", False)])
def test_a_place_that_is_taken_is_reported_before_anything_is_written(tmp_path: Path, name: str, folder: bool) -> None:
    (tmp_path / name).mkdir() if folder else (tmp_path / name).touch()
    with pytest.raises(BenchError, match=rf"The results folder '{tmp_path}' cannot be used: ") as caught:
        prepare(tmp_path)
    assert caught.value.code == MISSING


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders are there, the disk is not."""
    prepare(tmp_path)

    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(BenchError, match="cannot be used: Read-only file system"):
        prepare(tmp_path)


def test_metrics_that_are_a_file_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("old")
    prepare(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "file", "file/under"])
def test_results_that_cannot_be_a_folder_are_told_of(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for read in (read_records, count_records):
        with pytest.raises(BenchError, match="cannot be used: ") as caught:
            read(tmp_path / name)
        assert caught.value.code == MISSING


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes the system fail to read a file of that name."""
    proper = files.read_file

    def make(name: str, number: int) -> None:
        def read_file(path: Path, *rest: Any, **more: Any) -> bytes:
            if path.name == name:
                raise OSError(number, os.strerror(number), str(path))
            return proper(path, *rest, **more)

        def opened(path: Path, *rest: Any, **more: Any) -> Any:
            if path.name == name:
                raise OSError(number, os.strerror(number), str(path))
            return files.opened(path, *rest, **more)

        monkeypatch.setattr(store, "read_file", read_file)
        monkeypatch.setattr(archive, "opened", opened)

    return make


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_record_that_cannot_be_read_may_be_sound(
    tmp_path: Path, failing: Callable[[str, int], None], number: int
) -> None:
    """It is told of as such, makes no room, and is not archived away."""
    one, other = record(), record(cell={"seed": 4})
    for each in (one, other):
        write_record(tmp_path, each)
    path = record_path(tmp_path, one.id)
    failing(path.name, number)
    loaded = read_records(tmp_path)
    assert loaded.records == (other,)
    assert loaded.broken == ((path, f"it cannot be read: {os.strerror(number)}"),)
    assert loaded.unreadable == {path}
    with pytest.raises(OSError, match=os.strerror(number)):
        set_aside(path)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_record(tmp_path, one)
    move_to_archive(tmp_path, [one, other])
    assert list((tmp_path / "cells").iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.ENXIO])
def test_what_is_certainly_no_record_makes_room(
    tmp_path: Path, failing: Callable[[str, int], None], number: int
) -> None:
    one = record()
    write_record(tmp_path, one)
    path = record_path(tmp_path, one.id)
    failing(path.name, number)
    assert read_records(tmp_path).unreadable == frozenset()
    set_aside(path)
    assert path.with_name(f"{path.name}.broken").exists()


def test_an_archive_that_cannot_be_read_is_an_error(tmp_path: Path, failing: Callable[[str, int], None]) -> None:
    """Nobody knows which cells it has, so nothing may train."""
    move_to_archive(tmp_path, [record()])
    assert read_records(tmp_path).records == (record(),)
    failing("records.jsonl.gz", errno.EIO)
    with pytest.raises(BenchError, match=r"records\.jsonl\.gz") as caught:
        read_records(tmp_path)
    assert caught.value.code == MISSING


def test_a_damaged_archive_says_how_much_of_it_was_sound(tmp_path: Path) -> None:
    records = [record(cell={"seed": seed}) for seed in range(3)]
    path = move_to_archive(tmp_path, records)
    content = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([content[0], seal("{}"), *content[1:]])))
    loaded = read_records(tmp_path)
    assert loaded.records == (records[0],)
    assert loaded.broken == ((path, "after 1 record: it has no 'id'"),)


def test_records_that_move_while_they_are_read_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is read, then the files are listed; in between they have moved."""
    records = [record(cell={"seed": seed}) for seed in range(3)]
    for each in records[:2]:
        write_record(tmp_path, each)
    proper, moved = store.read_archive, list[Path]()

    def moving(results: Path) -> store.Loaded:
        loaded = proper(results)
        if not moved:
            moved.append(move_to_archive(results, records[:2]))
        return loaded

    monkeypatch.setattr(store, "read_archive", moving)
    assert {each.id for each in read_records(tmp_path).records} == {each.id for each in records[:2]}


def test_a_record_that_has_just_gone_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = record(), record(cell={"seed": 4})
    for each in (one, other):
        write_record(tmp_path, each)
    names = sorted(path.name for path in (tmp_path / "cells").iterdir())
    record_path(tmp_path, one.id).unlink()
    monkeypatch.setattr(store, "_record_files", lambda _: names)
    assert read_records(tmp_path) == store.Loaded((other,), ())


def test_what_is_no_record_makes_room_and_is_kept(tmp_path: Path) -> None:
    one = record()
    path = record_path(tmp_path, one.id)
    for content in (b"first", b"second", b"third"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        write_record(tmp_path, one)
        assert read_record(path) == one
    kept = {each.name.removeprefix(path.name): each.read_bytes() for each in path.parent.glob("*.broken*")}
    assert kept == {".broken": b"first", ".broken-2": b"second", ".broken-3": b"third"}
    assert len(read_records(tmp_path).broken) == 0, "what is set aside is not counted again"


def test_a_record_stays_where_it_is(tmp_path: Path) -> None:
    """It is replaced by the next one, as a retry replaces a failure."""
    one = record()
    write_record(tmp_path, one)
    set_aside(record_path(tmp_path, one.id))
    set_aside(record_path(tmp_path, "none"))
    assert read_records(tmp_path).records == (one,)
    again = one.model_copy(update={"score": 0.25})
    write_record(tmp_path, again)
    assert read_records(tmp_path).records == (again,)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{one.id}.json"]


def test_a_link_that_leads_nowhere_makes_room(tmp_path: Path) -> None:
    one = record()
    path = record_path(tmp_path, one.id)
    path.parent.mkdir()
    path.symlink_to(tmp_path / "outside.json")
    write_record(tmp_path, one)
    assert read_record(path) == one
    assert not (tmp_path / "outside.json").exists()
    assert not path.is_symlink()


def test_a_record_larger_than_any_is_reported_and_not_read(tmp_path: Path) -> None:
    """Of 64 MiB and a byte, or 1 TB: a sparse file takes no room on the disk, but its bytes would in memory."""
    sound = record()
    write_record(tmp_path, sound)
    path = record_path(tmp_path, sound.id)
    for size in (2**26 + 1, 2**40):
        os.truncate(path, size)
        with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
            read_record(path)
    write_record(tmp_path, sound)
    assert read_record(path) == sound
    assert path.with_name(f"{path.name}.broken").exists()


@pytest.mark.parametrize("filling", [b"\0", b"\n", b"{}\n"])
def test_an_archive_that_unpacks_to_more_than_memory_is_reported(tmp_path: Path, filling: bytes) -> None:
    """What comes before is kept, and what follows is not unpacked."""
    sound = record()
    packed = gzip.compress(record_text(sound)) + gzip.compress(filling * (2**28 // len(filling)), 1)
    archive.path_of(tmp_path).write_bytes(packed)
    tracemalloc.start()
    loaded = read_records(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded.records == (sound,)
    assert [path for path, _ in loaded.broken] == [archive.path_of(tmp_path)]
    assert peak < 2**28

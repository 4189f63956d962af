"""The one place that writes: whole or not at all, flushed before it has its name; and what is read without trust."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_bench.records import files

PARTS = {"b": b"first", "a": b"then"}


class Watched:
    """`os` as `files` sees it: remembers what is done to which path, and fails at one operation if told to."""

    def __init__(self, fails: str = "") -> None:
        self.name = os.name
        self.fails, self.done, self.paths = fails, list[tuple[str, str]](), dict[int, Path]()

    def __getattr__(self, name: str) -> Any:
        own = getattr(os, name)
        if name not in ("open", "write", "fsync", "replace", "close"):
            return own

        def operation(path: Any, *rest: Any) -> Any:
            self.done.append((name, self.paths.get(path, path) if isinstance(path, int) else path))  # type: ignore[arg-type]
            if name == self.fails:
                raise OSError("no space left")
            made = own(path, *rest)
            if name == "open":
                self.paths[made] = Path(path)
            return made

        return operation

    def steps(self) -> list[tuple[str, str]]:
        """What was written, flushed and renamed: a temporary name as `~` and what is in it."""
        done = [(name, Path(path)) for name, path in self.done if name not in ("open", "close")]
        return [
            (name, "/".join("~" if part.startswith(".") else part for part in path.parts[-2:])) for name, path in done
        ]


def tree(root: Path) -> dict[str, bytes]:
    """Every file, and every folder as one that is empty, under a folder."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")}


def test_a_file_is_flushed_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(files, "os", watched)
    files.write_atomically(tmp_path / "in" / "file", b"content")
    assert watched.steps() == [("write", "in/~"), ("fsync", "in/~"), ("replace", "in/~")]
    assert tree(tmp_path) == {"in": b"", "in/file": b"content"}
    opened = [path for name, path in watched.done if name == "open"]
    assert len(opened) == len([path for name, path in watched.done if name == "close"])


def test_a_folder_is_flushed_before_it_has_its_name_and_its_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched()
    monkeypatch.setattr(files, "os", watched)
    files.write_folder(tmp_path / "in" / "folder", PARTS)
    assert watched.steps() == [
        ("write", "~/b"), ("fsync", "~/b"), ("write", "~/a"), ("fsync", "~/a"),
        ("fsync", "in/~"), ("replace", "in/~"), ("fsync", f"{tmp_path.name}/in"),
    ]  # fmt: skip
    assert [name for name, _ in watched.done].count("open") == [name for name, _ in watched.done].count("close")


def test_where_folders_cannot_be_flushed_none_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    watched.name = "nt"
    monkeypatch.setattr(files, "os", watched)
    files.write_folder(tmp_path / "in" / "folder", PARTS)
    assert [what for what in watched.steps() if what[0] == "fsync"] == [("fsync", "~/b"), ("fsync", "~/a")]


def test_a_place_is_made_where_there_is_none(tmp_path: Path) -> None:
    """Staged elsewhere, moved into folders that are there or not."""
    for name in ("one", "two"):
        files.write(tmp_path / "made" / "file", name.encode())
        files.move(tmp_path / "made", tmp_path / "deep" / "in" / name)
    assert (tmp_path / "deep" / "in" / "one" / "file").read_bytes() == b"one"
    assert (tmp_path / "deep" / "in" / "two" / "file").read_bytes() == b"two"


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for contents in ({"old": b"1", "b": b"2"}, PARTS):
        files.write_folder(tmp_path / "folder", contents)
    assert tree(tmp_path) == {"folder": b"", "folder/b": b"first", "folder/a": b"then"}


def test_a_file_in_the_place_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"not ours")
    with pytest.raises(NotADirectoryError):
        files.write_folder(tmp_path / "folder", PARTS)
    assert tree(tmp_path) == {"folder": b"not ours"}


@pytest.mark.parametrize("operation", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_fails_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, operation: str
) -> None:
    writes: dict[str, Callable[[], None]] = {
        "file": lambda: files.write_atomically(tmp_path / "file", b"new"),
        "folder": lambda: files.write_folder(tmp_path / "folder", PARTS),
    }
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b").write_bytes(b"old")
    before = tree(tmp_path)
    monkeypatch.setattr(files, "os", Watched(fails=operation))
    with pytest.raises(OSError, match="no space left"):
        writes[kind]()
    assert tree(tmp_path) == before


def test_a_write_that_takes_only_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, view: write(descriptor, view[:3]))
    files.write(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_huge_file_is_written_in_pieces_that_every_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some take less than 2 GiB. The content takes no memory, as none of it is touched."""
    content, pieces = mmap.mmap(-1, 2**31 + 5), list[int]()

    def write(_: int, view: memoryview) -> int:
        pieces.append(len(view))
        assert len(pieces) < 10
        return len(view)

    monkeypatch.setattr(os, "write", write)
    files.write(tmp_path / "file", content)  # type: ignore[arg-type]
    assert sum(pieces) == len(content)
    assert max(pieces) < 2**31


def test_a_new_file_replaces_none_and_others_may_read_it(tmp_path: Path) -> None:
    files.write(tmp_path / "file", b"one")
    with pytest.raises(FileExistsError):
        files.write(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode  # as the user's mask has it


def test_a_long_name_has_a_temporary_one_too(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    files.write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert files.temporary(path) != files.temporary(path)


def test_what_is_read_is_a_file(tmp_path: Path) -> None:
    """A pipe that nobody writes to is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(ValueError, match="not a regular file"):
        files.read_file(tmp_path / "pipe")
    for name in ("none", ""):
        with pytest.raises(OSError, match=r"."):
            files.read_file(tmp_path / name)
    assert files.read_file(tmp_path / "file") == files.read_file(tmp_path / "link") == b"content"


def test_a_link_is_read_only_where_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that comes between the look and the opening."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.read_file(tmp_path / "file", follow=False) == b"content"
    with files.opened(tmp_path / "link") as file:
        assert file.read() == b"content"
    with pytest.raises(ValueError, match=r"^this is a link, and links are not followed here$"):
        files.read_file(tmp_path / "link", follow=False)
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
    with pytest.raises(OSError, match="link") as caught:
        files.read_file(tmp_path / "link", follow=False)
    assert caught.value.errno == errno.ELOOP


def test_a_file_is_read_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert files.read_file(tmp_path / "file", limit=3) == b"con"
    assert files.read_file(tmp_path / "file", limit=99) == b"content"


def test_an_error_that_has_no_number_stays_as_it_is(tmp_path: Path) -> None:
    for error, name in ((OSError("of its own words"), None), (OSError(errno.EIO, "failed"), str(tmp_path))):
        with pytest.raises(OSError, match=r"of its own words|failed") as caught, files.naming(tmp_path):
            raise error
        assert caught.value.filename == name
        assert ("of its own words" in str(caught.value)) == (name is None)


def test_links_in_a_folder_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / ".link.tmp").symlink_to(tmp_path / "a")
    assert files.without_links(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert list(files.leftovers(tmp_path)) == []


def test_what_is_in_a_folder_comes_in_order(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        (tmp_path / name).touch()
    assert files.listing(tmp_path) == [tmp_path / name for name in "abc"]
    assert files.listing(tmp_path / "none") == files.listing(tmp_path / "a") == []


@pytest.mark.parametrize("name", ["none", "file", "x" * 300, "\0"])
def test_what_is_no_folder_is_none(tmp_path: Path, name: str) -> None:
    """Nor is a name that no system can have."""
    (tmp_path / "file").touch()
    assert files.is_folder(tmp_path / name) is False
    assert files.is_folder(tmp_path) is True


def test_what_is_removed_is_gone_and_nothing_beyond_a_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    files.write(kept / "file", b"content")
    folder = tmp_path / "folder"
    files.write(folder / "deep" / "file", b"content")
    (folder / "link").symlink_to(kept)
    (tmp_path / "link").symlink_to(kept)
    for name in ("folder", "link", "none"):
        files.remove(tmp_path / name)
    assert tree(tmp_path) == {"kept": b"", "kept/file": b"content"}
    files.remove(kept / "file")
    assert tree(tmp_path) == {"kept": b""}


def test_leftovers_are_what_a_killed_write_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".hidden", "named.tmp", "file"):
        (tmp_path / name).touch()
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", lambda path: None)  # killed before it could
        patch.setattr(files, "os", Watched(fails="replace"))
        with pytest.raises(OSError, match="no space left"):
            files.write_atomically(tmp_path / "file", b"new")
    (left,) = files.leftovers(tmp_path)
    assert left.read_bytes() == b"new"
    assert left.name not in (".hidden", "named.tmp", "file")
    assert list(files.leftovers(tmp_path / "none")) == []


def test_a_discarded_folder_loses_its_name_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing is moved out of it while its content is removed."""
    (tmp_path / "folder" / "in").mkdir(parents=True)
    seen: list[bool] = []
    monkeypatch.setattr(files, "remove", lambda path: seen.append((tmp_path / "folder").exists()))
    files.discard(tmp_path / "folder")
    assert seen == [False]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    """Its successor has gone meanwhile."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    with pytest.raises(FileNotFoundError):
        files.move(tmp_path / "gone", tmp_path / "folder")
    assert (tmp_path / "folder" / "file").read_text() == "old"

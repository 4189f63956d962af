"""Exports onto full disks, under killed processes and failing flushes: whole or not at all, and said in two lines."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_bench.errors import BenchError
from lora_bench.export.writing import complete_folder
from tests.robust.robust_kit import assert_clear_error, lora_bench, make_rows, only_record, run, tree

FULL = """
import json, resource, sys
from tests.robust.robust_kit import lora_bench
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
asked, ends = json.load(sys.stdin), []
for number, (form, size) in enumerate(asked["tries"]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    ended = lora_bench("export", *asked["words"], "--to", form, "--out", f"{asked['out']}/{number}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    ends.append([ended.code, ended.errors])
print(json.dumps(ends))
"""
KILLED = """
import os, signal, sys
from lora_bench.cli import app as cli
from lora_bench.export import folders
save = folders._save
def dying(model, folder):
    save(model, folder)
    os.kill(os.getpid(), signal.SIGKILL)
folders._save = dying
sys.argv = ["lora-bench", "export", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What follows `export` for one small cell over the bundled encoder."""
    results = tmp_path_factory.mktemp("exporting") / "results"
    rows = make_rows(results.parent / "rows")
    ended = run("--model", "sample", "--data-dir", str(rows), "--results", str(results))
    assert ended.code == 0, ended
    return [only_record(results).stem, "--results", str(results), "--device", "cpu", "--offline"]


def test_a_file_that_cannot_be_written_ends_in_two_lines(words: list[str], place: Path) -> None:
    """Each file of each form in turn, whichever library writes it: safetensors, tokenizers, transformers, Python."""
    tries: list[tuple[str, int]] = []
    for form in ("peft", "merged"):
        assert lora_bench("export", *words, "--to", form, "--out", str(place / form)).code == 0
        sizes = {len(content) for content in tree(place / form).values()}
        tries += [(form, size - 1) for size in sorted(sizes)] + [(form, 0)]
    (place / "out").mkdir()
    asked = {"words": words, "tries": tries, "out": str(place / "out")}
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", FULL], input=json.dumps(asked), capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    for number, ((form, _), (code, errors)) in enumerate(
        zip(tries, json.loads(ran.stdout.splitlines()[-1]), strict=True)
    ):
        lines = errors.strip().splitlines()
        assert (code, len(lines)) == (3, 2), (form, errors)
        assert lines[0].startswith(f"Error: '{place / 'out' / str(number)}' cannot be written: ")
        assert "File too large" in lines[0]
    assert list((place / "out").iterdir()) == []


def test_a_killed_export_is_not_there_and_the_next_one_clears_up(words: list[str], place: Path) -> None:
    out = place / "out"
    given = [*words, "--to", "merged", "--out", str(out)]
    ran = subprocess.run([sys.executable, "-c", KILLED, *given], capture_output=True)
    assert ran.returncode == -signal.SIGKILL
    assert not out.exists()
    assert "model.safetensors" in {path.name for path in place.rglob("*")}
    assert lora_bench("export", *given).code == 0
    assert [path.name for path in place.iterdir()] == ["out"]
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= tree(out).keys()


def test_an_export_that_is_still_being_written_is_let_be(place: Path) -> None:
    out = place / "out"

    def fill(name: str, then: Callable[[], None]) -> None:
        with complete_folder(out) as folder:
            (folder / name).write_text(name)
            then()
            assert (folder / name).read_text() == name

    with pytest.raises(BenchError, match="cannot be written: Directory not empty"):
        fill("slow", lambda: fill("quick", lambda: None))
    assert tree(place) == {"out/quick": b"quick"}


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_flush_that_fails_names_the_folder(
    form: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    assert_clear_error(
        lora_bench("export", *words, "--to", form, "--out", str(place / "out")), 3,
        f"'{place / 'out'}' cannot be written: Input/output error.",
    )  # fmt: skip
    assert list(place.iterdir()) == []


def test_where_there_are_no_locks_it_is_written_all_the_same(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def failing(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", failing)
    monkeypatch.setattr(fcntl, "lockf", failing)
    with complete_folder(place / "out") as folder:
        (folder / "file").write_text("whole")
    assert tree(place) == {"out/file": b"whole"}


def test_a_link_to_an_empty_folder_is_filled(place: Path) -> None:
    (place / "there").mkdir()
    (place / "link").symlink_to(place / "there")
    with complete_folder(place / "link") as folder:
        (folder / "file").write_text("whole")
    assert (place / "there/file").read_text() == "whole"
    assert (place / "link").is_symlink()


def test_a_folder_where_none_can_be_made_is_named(words: list[str], place: Path) -> None:
    (place / "file").write_text("")
    out = place / "file" / "out"
    assert_clear_error(
        lora_bench("export", *words, "--to", "peft", "--out", str(out)), 3, f"'{out}' cannot be written: "
    )

"""A results folder that something has happened to: told in a line, nothing is lost, what is sound counts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_bench.cell import Cell
from lora_bench.errors import DONE, MISSING, NOTHING, SOME_FAILED
from lora_bench.records.store import read_record
from tests.robust.robust_kit import assert_clear_error, lora_bench, only_record, put_record, run, tree


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one finished cell, of the sound model and rows."""
    return tmp_path_factory.mktemp("trained") / "results"


@pytest.fixture
def results(trained: Path, workplace: Path) -> Path:
    """A copy of it in the working directory."""
    if not trained.exists():
        assert run(results=str(trained)).code == DONE
    return Path(shutil.copytree(trained, workplace / "results"))


def record_of(results: Path) -> dict[str, Any]:
    """The content of the one record, without its checksum."""
    content: dict[str, Any] = json.loads(only_record(results).read_text())
    del content["crc32"]
    return content


def test_a_damaged_record_is_set_aside_and_its_cell_trained_again(results: Path) -> None:
    """`run` says so and ends with 1; then all is well."""
    path, before = only_record(results), tree(results)
    path.write_bytes(path.read_bytes()[:300])
    ended = run()
    assert ended.code == SOME_FAILED
    assert f"Left out: results/cells/{path.name}" in ended.errors
    assert path.with_name(f"{path.name}.broken").read_bytes() == before[f"cells/{path.name}"][:300]
    assert read_record(path).status == "done"
    assert run().code == DONE
    assert (results / "metrics.csv").read_text().count("\n") == 2


def test_every_damaged_record_is_kept(results: Path) -> None:
    path = only_record(results)
    for round_ in (b"one", b"two", b"three"):
        path.write_bytes(round_)
        assert run().code == SOME_FAILED
    kept = sorted(path.parent.glob("*.broken*"))
    assert [each.name for each in kept] == [f"{path.name}.broken{suffix}" for suffix in ("", "-2", "-3")]
    assert [each.read_bytes() for each in kept] == [b"one", b"two", b"three"]


def test_a_record_of_a_newer_version_stops_the_run_and_stays(results: Path) -> None:
    path = put_record(results, record_of(results) | {"schema_version": 2, "something_new": [1]})
    before = tree(results)
    for command in ("run", "plan"):
        assert_clear_error(run(command=command), MISSING, "was written by a newer lora-bench (schema 2)")
    assert tree(results) == before
    assert run("--seed", "5").code == SOME_FAILED, "another cell trains; the record is told of"
    assert path.read_bytes() == before[f"cells/{path.name}"]


def test_a_record_without_a_checksum_is_set_aside(results: Path) -> None:
    path = only_record(results)
    content = json.dumps(record_of(results))
    path.write_text(content)
    with pytest.raises(ValueError, match="does not end with a checksum"):
        read_record(path)
    assert run().code == SOME_FAILED
    assert path.with_name(f"{path.name}.broken").read_text() == content
    assert read_record(path).status == "done"


@pytest.mark.parametrize("change", ["score", "predictions", "reason", "extra", "spaces", "order"])
def test_an_edited_record_is_found_out(results: Path, change: str) -> None:
    path = only_record(results)
    content = json.loads(path.read_text())
    edited = {
        "score": content | {"score": 0.99}, "predictions": content | {"predictions": content["predictions"][::-1]},
        "reason": content | {"reason": "x"}, "extra": content | {"note": "x"}, "spaces": content,
        "order": dict(sorted(content.items())),
    }[change]  # fmt: skip
    path.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match=r"checksum|crc32|note"):
        read_record(path)


@pytest.mark.parametrize("what", ["folder", "link to nowhere", "link to another file", "pipe", "empty", "foreign"])
def test_something_else_in_the_place_of_a_record(results: Path, what: str, workplace: Path) -> None:
    """It is told of and set aside; a pipe is not waited for, a link not followed when the record is written."""
    path, other = only_record(results), workplace / "other.json"
    other.write_text("{}")
    path.unlink()
    replacements: dict[str, Callable[[], object]] = {
        "folder": path.mkdir, "link to nowhere": lambda: path.symlink_to(workplace / "none.json"),
        "link to another file": lambda: path.symlink_to(other), "pipe": lambda: os.mkfifo(path), "empty": path.touch,
        "foreign": lambda: path.write_text('{"hello": "world"}'),
    }  # fmt: skip
    replacements[what]()
    listed = lora_bench("list", "runs", "--results", "results")
    assert listed.code == NOTHING
    assert f"Left out: results/cells/{path.name}" in listed.errors
    ended = run()
    assert ended.code == SOME_FAILED
    assert read_record(path).status == "done"
    assert not path.is_symlink()
    assert other.read_text() == "{}"
    assert not (workplace / "none.json").exists()
    assert os.path.lexists(path.with_name(f"{path.name}.broken"))


def test_files_of_others_stay(results: Path) -> None:
    """Whatever lies in the folder and is no record of a cell that is asked for is neither changed nor removed."""
    foreign = {"cells/notes.txt": b"mine", "cells/notes.json": b"mine", "cells/.hidden": b"x", "readme": b"x"}
    for name, content in foreign.items():
        (results / name).write_bytes(content)
    (results / "cells" / "folder").mkdir()
    assert run("--seed", "1").code == SOME_FAILED, "notes.json is no record"
    after = tree(results)
    assert foreign.items() <= after.items()
    assert (results / "cells" / "folder").is_dir()


@pytest.mark.parametrize(
    ("name", "make"), [("metrics.csv", "folder"), ("cells", "file"), ("adapters", "file"), ("cells", "link to itself")]
)
def test_a_place_that_is_taken_stops_the_run_before_it_trains(name: str, make: str, workplace: Path) -> None:
    place = workplace / "results" / name
    place.parent.mkdir()
    obstacles: dict[str, Callable[[], object]] = {
        "folder": place.mkdir,
        "file": place.touch,
        "link to itself": lambda: place.symlink_to(place),
    }
    obstacles[make]()
    assert_clear_error(run(), MISSING, "The results folder 'results' cannot be used")
    assert not list((workplace / "results").rglob("*.json"))


def test_a_place_that_is_taken_ends_the_report_in_a_line(results: Path) -> None:
    path = put_record(results, record_of(results) | {"status": "failed", "reason": "x", "score": None})
    (results / "report.html").mkdir()
    ended = lora_bench("report", "--results", "results")
    assert ended.code == MISSING
    assert len(ended.errors.strip().splitlines()) == 2
    assert "Is a directory: " in ended.errors
    assert read_record(path).status == "failed"


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("timing", "seconds", float("nan")), ("timing", "tokens_per_second", float("inf")), ("timing", "pack_size", -1),
        ("counts", "adapter_bytes", 10**400), ("data", "train_rows", -1), (None, "best_epoch", -1),
        (None, "score", "1e999"),
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_found_out(results: Path, part: str | None, name: str, value: object) -> None:
    """Even with a checksum that is right: a report could not be drawn of it."""
    content = record_of(results)
    (content[part] if part else content)[name] = value
    path = put_record(results, content)
    with pytest.raises(ValueError, match=name):
        read_record(path)


def test_text_in_records_does_nothing_to_the_terminal(results: Path) -> None:
    """A record from elsewhere, of a task and a method that this version does not know, with escape codes and markup."""
    evil = "\x1b[31m\x1b]0;title\x07[/red][bold]\r\nx\u202ey"
    content = record_of(results)
    cell = Cell(**content["cell"] | dict.fromkeys(("task", "method", "model", "data", "targets"), evil))
    texts = {"status": "failed", "reason": evil, "metric": evil, "score": None, "environment": {"device": evil}}
    put_record(results, content | texts | {"id": cell.id, "cell": cell.model_dump(mode="json")})
    own = put_record(results, content | {"status": "failed", "reason": evil, "score": None})
    for arguments in (["list", "runs"], ["show", own.stem], ["report"]):
        ended = lora_bench(*arguments, "--results", "results")
        assert ended.code == DONE, ended
        assert all(line.isprintable() for line in (ended.out + ended.errors).splitlines())
    ended = run()
    assert ended.code == SOME_FAILED
    assert "[/red][bold] xy" in ended.out, "of its own record; a foreign one does not matter"
    assert all(line.isprintable() for line in (ended.out + ended.errors).splitlines())


def test_a_broken_calibration_is_two_lines(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    path = workplace / "cache" / "lora-bench" / "devices.json"
    path.parent.mkdir(parents=True)
    for content in (b"", b"[]", b'{"cpu": {"float32": {}}}', b"\xff", b'{"cpu": {"float32": {"layer": 1e999}}}'):
        path.write_bytes(content)
        assert_clear_error(run(command="plan"), MISSING, "is not what `bench --calibrate` wrote")

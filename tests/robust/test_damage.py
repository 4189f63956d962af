"""Every truncation and turned bits: a damaged record or adapter is found out, a damaged metrics.csv never read."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_bench.cell import Cell
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.errors import DONE, MISSING, SOME_FAILED, BenchError
from lora_bench.records.seal import describe, read_companion, seal, unseal
from lora_bench.records.store import read_record, read_records
from tests.robust.robust_kit import flipped, lora_bench, only_record, put_record, run, truncated

OPENED: list[str] = []
WATCHING: list[bool] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Remember which files are opened for reading, while that is asked for."""
    if WATCHING and event == "open" and isinstance(arguments[2], int) and not arguments[2] & 3:
        OPENED.append(str(arguments[0]))


sys.addaudithook(watch)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A finished cell."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(model=str(shared / "model"), data_dir=str(shared / "rows"), results=str(folder)).code == DONE
    return folder


def test_a_record_cut_off_anywhere_is_found_out(results: Path, tmp_path: Path) -> None:
    whole = only_record(results)
    path = tmp_path / whole.name
    found = 0
    for content in truncated(whole.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            read_record(path)
        found += 1
    assert found == whole.stat().st_size > 1000


def test_a_record_with_a_bit_turned_is_found_out(results: Path, tmp_path: Path) -> None:
    whole = only_record(results)
    path = tmp_path / whole.name
    accepted, tried = [], 0
    for content in flipped(whole.read_bytes()):
        path.write_bytes(content)
        tried += 1
        try:
            accepted.append(read_record(path))
        except ValueError as error:
            assert "\n" not in str(error)
    assert accepted == []
    assert tried >= 1000


def test_a_thousand_damaged_records_stop_neither_report_nor_run(results: Path, workplace: Path) -> None:
    """All are named, the sound one counts. It is one of a failed cell, of which there is nothing to draw."""
    sound = json.loads(only_record(results).read_text()) | {"status": "failed", "score": None}
    del sound["crc32"]
    path = put_record(workplace / "results", sound)
    cells, content = path.parent, path.read_bytes()
    damaged = [*flipped(content, 700), *list(truncated(content))[:: len(content) // 300]]
    for number, each in enumerate(damaged):
        (cells / f"{number:04}.json").write_bytes(each)
    assert len(damaged) >= 1000
    assert len(read_records(workplace / "results").broken) == len(damaged)
    reported = lora_bench("report", "--results", "results")
    assert reported.code == SOME_FAILED
    assert reported.errors.count("Cannot read ") == len(damaged)
    assert "1 cell: 0 done, 1 failed" in reported.out
    ended = run()
    assert ended.code == SOME_FAILED
    assert "1 there already; 0 to train" in ended.out
    assert ended.errors.count("Left out: ") == len(damaged)
    assert path.read_bytes() == content


def test_metrics_csv_is_made_anew_and_never_read(results: Path, workplace: Path) -> None:
    place = ("--results", str(results))
    whole = (results / "metrics.csv").read_bytes()
    for content in [*flipped(whole, 10), *list(truncated(whole))[:: len(whole) // 10], b"\xff\0" * 100]:
        (results / "metrics.csv").write_bytes(content)
        WATCHING.append(True)
        ended = run(*place)
        WATCHING.clear()
        assert ended.code == DONE
        assert (results / "metrics.csv").read_bytes() == whole
    WATCHING.append(True)
    listed, plan = lora_bench("list", "runs", *place), run(*place, command="plan")
    WATCHING.clear()
    assert (listed.code, plan.code) == (DONE, DONE)
    assert any(path.endswith(".json") for path in OPENED), "the watch sees what is read"
    assert [path for path in OPENED if path.endswith("metrics.csv")] == []


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A saved adapter, as small as it can be."""
    cell = Cell(model="tiny", data="made", task="sst2", method="lora", rank=1, targets="qv")
    state = State({"x.A": torch.ones(1, 2)}, {"w": torch.zeros(2)})
    saved.save(tmp_path / "adapter", cell, 2, state)
    assert saved.read(tmp_path / "adapter")[0] == cell
    assert saved.stored_bytes(state.adapter) == (tmp_path / "adapter" / "adapter.safetensors").stat().st_size
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors", "head.safetensors"])
def test_an_adapter_damaged_anywhere_is_found_out(adapter: Path, name: str) -> None:
    """Each file cut off at every byte, and with bits turned."""
    path = adapter / name
    whole = path.read_bytes()
    damaged = [*truncated(whole), *flipped(whole)]
    assert len(damaged) >= len(whole) + min(1000, 8 * len(whole))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(BenchError, match="holds no whole adapter") as caught:
            saved.read(adapter)
        assert caught.value.code == MISSING
        assert "\n" not in caught.value.what


@pytest.mark.parametrize("how", ["gone", "swapped", "longer", "folder"])
@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors", "head.safetensors"])
def test_an_adapter_of_other_files_is_found_out(adapter: Path, name: str, how: str) -> None:
    path = adapter / name
    other = adapter / ("head.safetensors" if name.startswith("adapter") else "adapter.safetensors")
    content = {"gone": b"", "swapped": other.read_bytes(), "longer": path.read_bytes() + b"x", "folder": b""}[how]
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes(content)
    with pytest.raises(BenchError, match="holds no whole adapter"):
        saved.read(adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2}, {"outputs": 0}, {"outputs": 2**16 + 1}, {"outputs": "x"}, {"cell": None}, {"files": {}},
        {"more": 1}, {"files": {"../../secret": {"bytes": 1, "sha256": "0" * 64}}},
    ],
)  # fmt: skip
def test_a_manifest_that_says_something_else_is_refused(adapter: Path, changes: dict[str, object]) -> None:
    """Even with a checksum that is right; no file outside of the folder is named."""
    path = adapter / "adapter.json"
    content = json.loads(path.read_text())
    del content["crc32"]
    path.write_bytes(seal(json.dumps(content | changes)))
    with pytest.raises(BenchError, match="holds no whole adapter"):
        saved.read(adapter)


@pytest.mark.parametrize("outputs", [1, 2**16])
def test_an_adapter_of_one_score_or_many_classes_is_read(tmp_path: Path, outputs: int) -> None:
    cell = Cell(model="tiny", data="made", task="stsb", method="head")
    saved.save(tmp_path, cell, outputs, State({}, {"w": torch.ones(2)}))
    assert saved.read(tmp_path)[1] == outputs


def test_a_head_alone_is_an_adapter(tmp_path: Path) -> None:
    """Files of another cell that were there before do not count."""
    cell = Cell(model="tiny", data="made", task="sst2", method="head")
    saved.save(tmp_path, cell, 2, State({"x.A": torch.ones(1, 2)}, {"w": torch.zeros(2)}))
    alone = State({}, {"w": torch.ones(2)})
    saved.save(tmp_path, cell, 3, alone)
    saved.save(tmp_path / "new", cell, 3, alone)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["adapter.json", "head.safetensors"]
    read, outputs, state = saved.read(tmp_path)
    assert (read, outputs, state.adapter) == (cell, 3, {})
    assert state.head["w"].tolist() == [1.0, 1.0]


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, shared: Path) -> None:
    """Its values would be spread over other shapes in silence."""
    on = backbones.load(str(shared / "model"), torch.device("cpu"), "float32")
    cell = Cell(model="tiny", data="made", task="sst2", method="lora", rank=1, alpha=1.0, targets="qv")
    own = Pack([cell], on, 2).state(0)
    saved.save(tmp_path, cell, 2, own)
    again = saved.load(tmp_path, on).state(0)
    for name, part in own.adapter.items():
        assert torch.equal(again.adapter[name], part)
    name = next(iter(own.adapter))
    others = (
        State({**own.adapter, name: own.adapter[name][..., :1].clone()}, own.head),
        State({f"{key}x": part for key, part in own.adapter.items()}, own.head),
        State(own.adapter, {key: part[..., :1].clone() for key, part in own.head.items()}),
    )
    for other in others:
        saved.save(tmp_path, cell, 2, other)
        with pytest.raises(BenchError, match="is not of this model") as caught:
            saved.load(tmp_path, on)
        assert caught.value.code == MISSING


def test_the_size_of_a_large_adapter_is_reported_without_writing_it() -> None:
    """As safetensors lays it out: a header, whose numbers are longer, and the values."""
    values, parts = 2**27 + 4, 8
    state = State({f"x{at}.A": torch.empty(1).expand(values // 4 // parts + 1) for at in range(parts)}, {})
    exact = sum(part.numel() * part.element_size() for part in state.adapter.values())
    assert exact < saved.stored_bytes(state.adapter) < exact + 100 * parts


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, None])
def test_the_size_of_a_file_is_reported_for_any_type(kind: torch.dtype | None) -> None:
    values = {"x.A": torch.ones(3, 50), "x.B": torch.ones(70)}
    written = {name: value.to(kind or torch.float32) for name, value in values.items()}
    assert saved.stored_bytes(values, kind) == len(safetensors.torch.save(written))
    assert saved.stored_bytes({}, kind) == 0


def test_a_manifest_can_be_read_by_people(adapter: Path) -> None:
    content = json.loads((adapter / "adapter.json").read_text())
    assert (adapter / "adapter.json").read_text().count("\n") > 10
    assert (content["schema_version"], content["outputs"], content["cell"]["rank"]) == (1, 2, 1)
    assert set(content["files"]) == {"adapter.safetensors", "head.safetensors"}
    assert content["files"]["head.safetensors"]["bytes"] == (adapter / "head.safetensors").stat().st_size


def test_the_seal_is_the_last_field_and_the_object_comes_back() -> None:
    sealed = seal('{"a": [1, {"b": "}"}]}\n')
    assert sealed == b'{"a": [1, {"b": "}"}],"crc32":"%s"}\n' % sealed[-11:-3]
    assert json.loads(unseal(sealed)) == {"a": [1, {"b": "}"}]}
    for unsealed in (b'{"a":1}\n', b"{}", b"\n", b""):
        with pytest.raises(ValueError, match=r"^it does not end with a checksum: "):
            unseal(unsealed)
    with pytest.raises(ValueError, match="checksum"):
        unseal(sealed.replace(b"1", b"2", 1))


def test_an_adapter_that_an_older_version_wrote_is_read() -> None:
    """The bytes in `tests/data/saved_adapter` were written by commit ecfeca9."""
    cell, outputs, state = saved.read(Path(__file__).parents[1] / "data" / "saved_adapter")
    assert (cell.id, outputs) == ("793034f20ed9", 2)
    assert {name: value.tolist() for name, value in state.adapter.items()} == {
        "query.A": [[1.0, 2.0]],
        "query.B": [[3.0]],
    }
    assert {name: value.tolist() for name, value in state.head.items()} == {"weight": [0.5, -0.5]}


def test_a_companion_file_is_described_and_verified(tmp_path: Path) -> None:
    infos = describe({"some": b"content", "none": b""})
    assert {name: info.bytes for name, info in infos.items()} == {"some": 7, "none": 0}
    assert infos["some"].sha256 == hashlib.sha256(b"content").hexdigest()
    (tmp_path / "some").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "some")
    for name, follow in (("some", False), ("some", True), ("link", True)):
        assert read_companion(tmp_path / name, infos["some"], follow) == b"content"
    with pytest.raises(ValueError, match="link"):
        read_companion(tmp_path / "link", infos["some"], follow=False)
    assert read_companion(tmp_path / "link", infos["some"]) == b"content"
    with pytest.raises(ValueError, match=r"^some has changed since it was written$"):
        read_companion(tmp_path / "some", infos["none"])
    with pytest.raises(ValueError, match="frozen"):
        infos["some"].bytes = 0

"""`export --push` and `archive --push`: the Hub's own client against a stub of the Hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from lora_bench.errors import DONE, MISSING, USAGE, BenchError
from lora_bench.export import card
from lora_bench.export import trained as trains
from lora_bench.push import check_name, files_of, push
from lora_bench.records import archive
from lora_bench.records.store import read_records, write_record
from lora_bench.tasks.glue import HUB_REVISION
from lora_bench.testing import TinyBench, make_cell, make_record
from tests.cli_kit import invoke
from tests.fake_hub import FakeHub, serving

REPO = "me/adapter"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The stub, with a token that it accepts."""
    with serving() as fake:
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", fake.address)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", fake.address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdefghij")
        yield fake


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> TinyBench:
    bench = TinyBench.create(tmp_path_factory.mktemp("bench"), "sst2")
    bench.run([{"method": "lora", "rank": 2, "targets": "qv"}], epochs=1, precision="float32")
    return bench


def export(bench: TinyBench, out: Path, *words: str) -> tuple[int, str]:
    (record,) = read_records(bench.results).records
    given = ("--results", bench.results, "--model", bench.model, "--device", "cpu", "--out", out, *words)
    return invoke("export", record.id, *given)


def front_matter(readme: bytes) -> dict[str, Any]:
    """What stands above a card, for the Hub."""
    opening, front, _ = readme.decode().split("---", 2)
    assert not opening
    content = yaml.safe_load(front)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_an_export_is_pushed_whole(form: str, bench: TinyBench, hub: FakeHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = export(bench, out, "--to", form, "--push", REPO)
    assert code == DONE, output
    assert f"{hub.address}/{REPO}" in output
    files = hub.repos[f"models/{REPO}"]
    assert files.pop(".gitattributes") == b""
    assert files == {name: path.read_bytes() for name, path in files_of(out).items()}
    assert front_matter(files["README.md"])["license"] == "other"
    assert hub.private == {f"models/{REPO}": True} and len(hub.messages) == 1
    code, output = export(bench, tmp_path / "again", "--to", form, "--push", REPO, "--public")
    assert code == DONE and hub.private == {f"models/{REPO}": True}, output


def test_a_new_repository_is_public_where_that_is_asked_for(hub: FakeHub) -> None:
    push(REPO, {"a": b"1"}, "dataset", "one", public=True)
    assert hub.private == {f"datasets/{REPO}": False}


def test_other_files_in_a_models_repository_are_refused(hub: FakeHub) -> None:
    push(REPO, {"config.json": b"{}"}, "model", "one")
    with pytest.raises(BenchError, match=r"holds other files already: config\.json"):
        push(REPO, {"adapter_config.json": b"{}"}, "model", "two")
    assert set(hub.repos[f"models/{REPO}"]) == {".gitattributes", "config.json"}
    push(REPO, {"adapter_config.json": b"{}"}, "model", "three", allow_other_files=True)
    assert set(hub.repos[f"models/{REPO}"]) == {".gitattributes", "config.json", "adapter_config.json"}


@pytest.mark.parametrize(("status", "what"), [(401, "accepts no token"), (403, "may not write"), (409, "meanwhile")])
def test_what_the_hub_refuses(status: int, what: str, hub: FakeHub) -> None:
    hub.refuse = ("/commit/", status)
    with pytest.raises(BenchError, match=what) as caught:
        push(REPO, {"a": b"1"}, "model", "one")
    assert caught.value.code == MISSING and "hf_0123" not in str(caught.value)
    assert hub.repos == {f"models/{REPO}": {".gitattributes": b""}}


def test_the_hubs_own_words_are_shown(hub: FakeHub) -> None:
    hub.refuse = ("/commit/", 400)
    with pytest.raises(BenchError, match=r"The push broke off: refused\."):
        push(REPO, {"a": b"1"}, "model", "one")


def test_a_token_that_is_refused_at_once(hub: FakeHub) -> None:
    hub.refuse = ("", 401)
    with pytest.raises(BenchError, match="accepts no token") as caught:
        push(REPO, {"a": b"1"}, "model", "one")
    assert "hf auth login" in caught.value.hint and hub.repos == {}


def test_a_commit_of_somebody_else_is_not_undone(hub: FakeHub) -> None:
    hub.moves = True
    with pytest.raises(BenchError, match="changed by somebody else meanwhile; nothing was pushed"):
        push(REPO, {"a": b"1"}, "model", "one")
    hub.moves = False
    push(REPO, {"a": b"1"}, "model", "one")
    assert hub.repos[f"models/{REPO}"]["a"] == b"1"


def test_a_push_that_breaks_off_leaves_the_export_and_says_how_to_go_on(
    bench: TinyBench, hub: FakeHub, tmp_path: Path
) -> None:
    hub.breaks = True
    out = tmp_path / "out"
    code, output = export(bench, out, "--to", "peft", "--push", REPO)
    assert code == MISSING and "The push broke off" in output, output
    # Where the repository is not there, `hf upload` alone would make a public one.
    assert f"hf upload --private -- {REPO} {out} ." in output and (out / "adapter_config.json").is_file()
    assert hub.repos == {f"models/{REPO}": {".gitattributes": b""}}
    code, output = export(bench, tmp_path / "a name", "--to", "peft", "--push", REPO, "--public")
    assert code == MISSING and f"hf upload -- {REPO} '{tmp_path / 'a name'}' ." in output, output


def test_what_is_refused_since_other_files_are_there_is_not_advised(
    bench: TinyBench, hub: FakeHub, tmp_path: Path
) -> None:
    push(REPO, {"model.safetensors": b""}, "model", "one")
    code, output = export(bench, tmp_path / "out", "--to", "peft", "--push", REPO)
    assert code == MISSING and "holds other files already" in output and "hf upload" not in output, output


def test_no_hub_at_all(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BenchError, match="The push broke off") as caught:
        push(REPO, {"a": b"1"}, "model", "one")
    assert caught.value.code == MISSING


@pytest.mark.parametrize("name", ["", "adapter", "a/b/c", "me/../x", "me/a b", "https://hub.invalid/me/x"])
def test_a_name_that_is_none_is_refused_before_anything_is_done(name: str, hub: FakeHub) -> None:
    with pytest.raises(BenchError) as caught:
        check_name(name)
    assert caught.value.code == USAGE and hub.repos == {}


def test_what_cannot_be_pushed_is_refused_at_once(bench: TinyBench, hub: FakeHub, tmp_path: Path) -> None:
    for words, what in ((("peft", "--offline"), "needs the network"), (("glue",), "takes no export")):
        code, output = export(bench, tmp_path / "out", "--to", *words, "--push", REPO)
        assert code == USAGE and what in output, output
    assert not (tmp_path / "out").exists() and hub.repos == {}


def test_public_without_push_is_refused(bench: TinyBench, tmp_path: Path) -> None:
    code, output = export(bench, tmp_path / "out", "--to", "peft", "--public")
    assert code == USAGE and "Give --push" in output and not (tmp_path / "out").exists(), output
    code, output = invoke("archive", "--results", bench.results, "--public")
    assert code == USAGE and "Give --push" in output and not archive.path_of(bench.results).exists(), output


def test_an_archive_is_pushed_with_its_table_and_card(hub: FakeHub, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for seed in range(3):
        write_record(results, make_record(0.9, cell=make_cell(seed=seed)))
    (results / "compare.yaml").write_text("margin: 2.0\n")
    for _ in range(2):  # the second time there is nothing new
        code, output = invoke("archive", "--results", results, "--push", "me/results")
        assert code == DONE and f"{hub.address}/datasets/me/results" in output, output
    files = hub.repos["datasets/me/results"]
    assert set(files) == {".gitattributes", "README.md", "metrics.csv", "records.jsonl.gz", "compare.yaml"}
    assert files["records.jsonl.gz"] == archive.path_of(results).read_bytes()
    text = files["README.md"].decode()
    data = front_matter(files["README.md"])
    assert data["license"] == "other"
    assert data["configs"] == [{"config_name": "default", "data_files": "metrics.csv"}]
    assert "3 cells (3 done)" in text and str(tmp_path) not in text
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "records.jsonl.gz").write_bytes(files["records.jsonl.gz"])
    assert read_records(tmp_path / "copy").records == read_records(results).records


def test_a_card_that_was_edited_on_the_hub_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    """The card itself asks for it: a licence is set there."""
    write_record(tmp_path, make_record(0.9, cell=make_cell(seed=0)))
    words = ("archive", "--results", tmp_path, "--push", "me/results")
    assert invoke(*words)[0] == DONE
    files = hub.repos["datasets/me/results"]
    first = files["README.md"]
    write_record(tmp_path, make_record(0.9, cell=make_cell(seed=1)))
    code, output = invoke(*words)
    assert code == DONE and "is kept" not in output and b"2 cells" in files["README.md"] != first
    files["README.md"] = edited = files["README.md"].replace(b"license: other", b"license: mit").replace(b"\n", b"\r\n")
    write_record(tmp_path, make_record(0.9, cell=make_cell(seed=2)))
    code, output = invoke(*words)
    assert code == DONE and "its README.md was edited there, and is kept" in output, output
    assert files["README.md"] == edited and files["records.jsonl.gz"] == archive.path_of(tmp_path).read_bytes()


def test_an_archive_that_cannot_be_pushed_is_there_all_the_same(hub: FakeHub, tmp_path: Path) -> None:
    write_record(tmp_path, make_record())
    hub.refuse = ("", 401)
    code, output = invoke("archive", "--results", tmp_path, "--push", "me/results")
    assert code == MISSING and "accepts no token" in output
    assert len(list(archive.lines(tmp_path))) == 1


def test_the_score_is_written_as_the_hub_reads_it(bench: TinyBench) -> None:
    (record,) = read_records(bench.results).records
    trained = trains.load(record.id, bench.results, bench.model, offline=True)
    assert card.eval_result_files(trained) == {}  # files of one's own are no benchmark
    data = f"nyu-mll/glue@{HUB_REVISION}"
    cell = record.cell.model_copy(update={"data": data})
    moved = record.model_copy(update={"cell": cell})
    files = card.eval_result_files(trains.Trained(moved, (moved,), trained.pack, trained.model, True))
    assert set(files) == {".eval_results/glue-sst2.yaml"}
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/glue-sst2.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("nyu-mll/glue", "sst2", HUB_REVISION)
    assert record.score is not None and entry.value == pytest.approx(record.score, abs=1e-6)
    assert entry.notes is not None and "accuracy, validation split" in entry.notes

"""The Hub as this package uses it, without the Hub: a stub, a closed port, and a copy as `datasets` keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
from datasets.arrow_writer import ArrowWriter
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from lora_bench.data import DataSource, hub, load
from lora_bench.errors import MISSING, BenchError
from lora_bench.sample import DATA
from lora_bench.tasks import Hub, Task, get
from lora_bench.tasks.glue import HUB_ID, HUB_REVISION

RTE = get("rte")
FEATURES = datasets.Features(
    sentence1=datasets.Value("string"),
    sentence2=datasets.Value("string"),
    label=datasets.ClassLabel(names=list(RTE.labels)),
    idx=datasets.Value("int32"),
)
ROWS = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", ""], "label": [0, 1, 1], "idx": [0, 1, 2]}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A closed port for the Hub and an empty cache; afterwards the offline switches are as they were."""
    for module, name in ((huggingface_hub.constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
        monkeypatch.setattr(module, name, "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    yield
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def keep_copy(cache: Path, revision: str) -> None:
    """RTE under `cache` as `datasets` leaves it there after a download."""
    folder = cache / "nyu-mll___glue" / "rte" / "0.0.0" / revision
    folder.mkdir(parents=True)
    splits = datasets.splits.SplitDict(dataset_name="glue")
    for split in RTE.splits:
        with ArrowWriter(path=str(folder / f"glue-{split}.arrow"), features=FEATURES) as writer:
            writer.write_batch(ROWS)
            count, size = writer.finalize()
        splits.add(datasets.SplitInfo(split, size, count, dataset_name="glue"))
    info = datasets.DatasetInfo(features=FEATURES, splits=splits, dataset_name="glue", config_name="rte")
    info.builder_name, info.version = "parquet", datasets.Version("0.0.0")
    info.write_to_directory(str(folder))


def refused(offline: bool = False) -> BenchError:
    with pytest.raises(BenchError) as caught:
        hub.read_hub(RTE, offline)
    error = caught.value
    assert error.code == MISSING and "\n" not in error.what + error.hint
    assert all(way in error.hint for way in ("--preset smoke", "--model DIR", "--data-dir DIR"))
    assert HUB_ID in error.what and "rte" in error.what
    return error


def test_the_pinned_revision_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: str, **more: str) -> datasets.DatasetDict:
        asked.append((names, more))
        split = datasets.Dataset.from_dict(ROWS, features=FEATURES)
        return datasets.DatasetDict(train=split.select([2, 0]), validation=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_request", lambda: None)
    splits = hub.read_hub(RTE, offline=False)
    assert asked == [((HUB_ID, "rte"), {"revision": HUB_REVISION})]
    assert list(splits) == ["train", "validation"]
    assert splits["train"].texts == (["c", "a"], ["", "d"])
    assert splits["validation"].labels.dtype == np.int64 and splits["validation"].labels.tolist() == [0, 1, 1]


def test_another_dataset_is_read_by_the_names_that_its_task_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: str, **more: str) -> datasets.DatasetDict:
        asked.append((names, more))
        columns = {"body": ["a", "b"], "stars": [1, 0]}
        features = datasets.Features(
            {"body": datasets.Value("string"), "stars": datasets.ClassLabel(names=["up", "down"])}
        )
        split = datasets.Dataset.from_dict(columns, features=features)
        return datasets.DatasetDict(train=split, test=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_request", lambda: None)
    source = Hub("me/reviews", "0" * 40, splits={"validation": "test"}, columns={"text": "body"}, label="stars")
    task = Task("reviews", "Reviews", ("text",), ("down", "up"), ("accuracy",), source)
    loaded = load(task, DataSource.parse())
    assert asked == [(("me/reviews",), {"revision": "0" * 40})]
    assert loaded.train.texts == (["a", "b"],)
    assert loaded.train.labels.tolist() == [0, 1], "names decide, in whatever order the dataset has them"
    assert list(loaded.evals) == ["validation"] and DataSource.parse().identity(task) == "me/reviews@00000000"
    with pytest.raises(BenchError, match="me/reviews has no split 'validation'"):
        load(replace(task, source=replace(source, splits={})), DataSource.parse())


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError(f"Couldn't reach '{HUB_ID}' on the Hub\n(LocalEntryNotFoundError)"),
        DatasetNotFoundError("Dataset doesn't exist on the Hub or cannot be accessed."),
        DatasetGenerationError("An error occurred while generating the dataset"),
        LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub"),
        OfflineModeIsEnabled("offline mode is enabled"),
        ValueError("Couldn't find cache for nyu-mll/glue\nAvailable configs in the cache: ['sst2']"),
        FileNotFoundError(),
        TimeoutError("The read operation timed out"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_client_raises_becomes_one_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(hub, "_request", lambda: None)
    assert type(error).__name__ in refused().what


def test_an_interrupt_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(KeyboardInterrupt):
        hub.read_hub(RTE, offline=True)


def test_no_network_ends_quickly() -> None:
    """The real client against a closed port: without the request before it would try for 23 seconds."""
    start = time.monotonic()
    assert "the Hub does not answer" in refused().what
    assert time.monotonic() - start < 8


def test_a_network_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", -0.9)
    release = threading.Event()
    monkeypatch.setattr(hub, "_request", lambda: release.wait(20))
    start = time.monotonic()
    refused()
    release.set()
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("module", [huggingface_hub.constants, datasets.config], ids=["hub", "datasets"])
def test_the_environments_offline_switch_needs_no_request(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_request", lambda: pytest.fail("knocked"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "HF_HUB_OFFLINE", True)
        assert "(offline, and no copy" in refused().what


Answer = tuple[int, dict[str, str], bytes]
HTML = {"Content-Type": "text/html"}


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server that answers every GET so, and refuses HEAD as plain ones do: its address, and what it was asked."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = answer
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            requests.append(self.requestline)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


@contextmanager
def hub_at(answer: Answer) -> Iterator[None]:
    """Such a server for the Hub."""
    with answering(answer) as (address, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        patch.setattr(datasets.config, "HF_ENDPOINT", address)
        yield


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, HTML, b"<html>Log in</html>"), "answers with something else"),
        ((200, {"Content-Type": "application/json"}, b"[1]"), "answers with something else"),
        ((403, HTML, b"<html>Blocked</html>"), "answers 403 Forbidden"),
        ((407, HTML, b""), "answers 407 Proxy Authentication Required"),
        ((503, HTML, b"later"), "answers 503 Service Unavailable"),
    ],
    ids=["a login's page", "other JSON", "403", "407", "503"],
)
def test_an_answer_that_is_not_the_hubs_ends_quickly(answer: Answer, words: str, tmp_path: Path) -> None:
    with hub_at(answer):
        start = time.monotonic()
        assert not hub.reachable()
        assert words in refused().what
        assert time.monotonic() - start < 8
        keep_copy(tmp_path / "cache", HUB_REVISION)
        assert hub.read_hub(RTE, offline=False)["validation"].labels.tolist() == ROWS["label"]


@pytest.mark.parametrize(
    ("status", "headers"), [(429, {}), (404, {"X-Error-Code": "RepoNotFound"}), (403, {"X-Error-Code": "GatedRepo"})]
)
def test_what_the_hub_itself_refuses_is_left_to_its_clients(status: int, headers: dict[str, str]) -> None:
    with hub_at((status, headers, b"")):
        assert hub.reachable()


def test_a_model_behind_a_login_ends_quickly(tmp_path: Path) -> None:
    """The whole command: the clients alone would ask again and again, for half a minute a file."""
    command = [sys.executable, "-m", "lora_bench", "run", "--model", "org/model", "--task", "rte", "--method", "lora"]
    words = ["--results", str(tmp_path / "results"), "--data-dir", str(DATA)]
    with answering((200, HTML, b"<html>Log in</html>")) as (address, requests):
        there = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        ended = subprocess.run([*command, *words], env=there, capture_output=True, text=True, check=False)
    assert requests and not [line for line in requests if "org/model" in line]
    assert ended.returncode == MISSING and "'org/model' cannot be loaded" in ended.stderr, ended


@pytest.mark.parametrize("backwards", [False, True])
def test_classes_go_by_the_names_of_the_hubs_copy(backwards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*RTE.labels][::-1] if backwards else [*RTE.labels]
    features = datasets.Features(FEATURES | {"label": datasets.ClassLabel(names=names)})
    split = datasets.Dataset.from_dict(ROWS, features=features)
    splits = datasets.DatasetDict(train=split, validation=split)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    labels = hub.read_hub(RTE, offline=True)["train"].labels.tolist()
    assert labels == ([1, 0, 0] if backwards else ROWS["label"])


def test_offline_without_a_copy() -> None:
    assert "(offline, and no copy" in refused(offline=True).what


@pytest.mark.parametrize("offline", [True, False])
def test_the_kept_copy_is_used_without_the_hub(offline: bool, tmp_path: Path) -> None:
    keep_copy(tmp_path / "cache", HUB_REVISION)
    splits = hub.read_hub(RTE, offline)
    assert splits["train"].texts == (ROWS["sentence1"], ROWS["sentence2"])
    assert splits["validation"].labels.tolist() == ROWS["label"]


def test_a_copy_of_another_revision_is_refused(tmp_path: Path) -> None:
    keep_copy(tmp_path / "cache", "a" * 40)
    assert "of revision aaaaaaaa" in refused(offline=True).what

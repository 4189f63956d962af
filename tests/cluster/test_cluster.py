"""Grids on Ray: two machines that are processes of this one, whatever dies in the middle.

Every cell is recorded once, and its record and its adapter are those of a run in one process, byte by byte.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_bench import methods, plugins
from lora_bench.errors import DONE, INTERRUPTED, MISSING, USAGE, BenchError
from lora_bench.run import cluster as clusters
from lora_bench.run import connection, remote
from lora_bench.run.interfaces import View
from lora_bench.testing import QuietView, make_data, make_model

pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

ROOT = Path(__file__).parents[2]
CONFIG = """
name: cluster
defaults: {model: MODEL, task: [sst2, cola], seed: [0, 1], epochs: 8, batch_size: 8, max_length: 16, lr: 4.0e-3}
blocks:
  - {method: lora, rank: [1, 2, 3, 4]}
  - {method: mini, rank: [2, 4], a: 8, b: [4, 6]}
  - {method: xs, rank: [2, 3]}
"""
CELLS = 2 * 2 * (4 + 4 + 2)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a config, an encoder and rows."""
    path = tmp_path_factory.mktemp("cluster")
    model = make_model(path / "tiny")
    make_data(path / "rows", "sst2", "cola")
    (path / "grid.yaml").write_text(CONFIG.replace("MODEL", str(model)))
    return path


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Two machines with one core each."""
    os.environ.update(connection.SETTINGS)
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def start(folder: Path, results: str, *options: str) -> subprocess.Popen[str]:
    """The command, in packs of five."""
    words = ["run", "--config", "grid.yaml", "--data-dir", "rows", "--pack", "5", "--results", results, *options]
    command = [sys.executable, "-m", "lora_bench", *words]
    with (folder / "out").open("w") as out:
        return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=subprocess.PIPE, text=True)


def ended(running: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; its exit code and what it printed as errors."""
    _, errors = running.communicate(timeout=240)
    return running.returncode, errors


def content(results: Path) -> dict[str, Any]:
    """All that must be equal: records without times, adapters, and the names of what lies there."""
    records = {
        path.name: json.loads(path.read_bytes()) | {"timing": None, "crc32": None}
        for path in (results / "cells").iterdir()
    }
    adapters = {
        str(path.relative_to(results)): path.read_bytes()
        for path in (results / "adapters").rglob("*")
        if path.is_file()
    }
    return {"records": records, "adapters": adapters, "names": sorted(path.name for path in results.iterdir())}


def recorded(results: Path) -> int:
    """How many records there are."""
    return len(list((results / "cells").glob("*.json")))


def wait_for(condition: Callable[[], object], running: subprocess.Popen[str], seconds: float = 90) -> None:
    """Wait until something is true while a command runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, ended(running)
        assert time.monotonic() < end
        time.sleep(0.05)


def workers() -> list[Any]:
    """The processes of workers, which Ray has named."""
    return [process for process in psutil.process_iter(["cmdline"]) if "ray::RemoteWorker" in _title(process)]


def _title(process: Any) -> str:
    return " ".join(process.info["cmdline"] or ())


@pytest.mark.timeout(600)
def test_whatever_dies_each_cell_is_recorded_once_as_alone(folder: Path, ray_cluster: Any) -> None:
    assert ended(start(folder, "alone")) == (DONE, "")
    expected = content(folder / "alone")
    assert len(expected["records"]) == CELLS

    results, other = folder / "shared", ray_cluster.add_node(num_cpus=1)
    on_ray = ("--engine", "ray", "--address", ray_cluster.address)

    driver = start(folder, "shared", *on_ray)
    wait_for(lambda: recorded(results) and workers(), driver)
    workers()[0].kill()
    before = recorded(results)
    wait_for(lambda: recorded(results) > before + 5, driver)
    (server,) = other.all_processes["raylet"]
    lost = psutil.Process(server.process.pid).children(recursive=True)
    ray_cluster.remove_node(other, allow_graceful=False)
    for process in lost:  # a machine takes its workers with it; without their server they would train on for a while
        with suppress(psutil.NoSuchProcess):
            process.kill()
    before = recorded(results)
    wait_for(lambda: recorded(results) > before, driver)
    wait_for(lambda: "epoch 3/8" in (folder / "out").read_text().splitlines()[-1], driver)
    driver.send_signal(signal.SIGTERM)
    code, errors = ended(driver)
    assert (code, errors.splitlines()[-1].split(".")[0]) == (INTERRUPTED, "Interrupted"), errors
    assert "has died; its pack continues" in (folder / "out").read_text()
    assert "raylet" not in (folder / "out").read_text()
    assert list((results / "states").iterdir())

    driver = start(folder, "shared", *on_ray)
    before = recorded(results)
    wait_for(lambda: recorded(results) > before and workers(), driver)
    driver.kill()
    ended(driver)
    assert recorded(results) < CELLS

    code, errors = ended(start(folder, "shared", *on_ray))
    # Ray notices half a minute later that the machine is gone, and says so to whoever is connected then.
    assert code == DONE
    assert not errors or "has been marked dead" in errors
    assert content(results) == expected


def test_a_machine_of_its_own(folder: Path) -> None:
    """Without an address Ray is started and ended by the command; its output is the command's own."""
    options = ("--engine", "ray", "--task", "sst2", "--method", "xs")
    assert ended(start(folder, "one", *options)) == (DONE, "")
    assert "ray" not in (folder / "out").read_text().lower()
    assert recorded(folder / "one") == 4


def test_where_rays_head_dies_all_is_saved_and_said(folder: Path) -> None:
    """Ray itself would end the command a minute later, with exit code 1 and a line about its own parts."""
    driver = start(folder, "headless", "--engine", "ray", "--task", "sst2", "--method", "xs", "--epochs", "2000")
    wait_for(lambda: "epoch 2/2000" in (folder / "out").read_text(), driver)
    (head,) = [process for process in psutil.Process(driver.pid).children() if process.name() == "gcs_server"]
    head.kill()
    code, errors = ended(driver)
    assert (code, len(errors.splitlines())) == (MISSING, 2), errors
    assert "Ray's head process, which listened at " in errors
    assert list((folder / "headless" / "states").iterdir())
    assert not (folder / "headless" / "owner.lock").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--gpus", "2"), MISSING, "--gpus 2 can never be met: the Ray cluster has no GPU."),
        (("--device", "cuda"), MISSING, "--device cuda can never be met"),
        (("--device", "cuda:1"), USAGE, "--engine ray does not take --device cuda:1"),
        (("--device", "cpu", "--gpus", "1"), USAGE, "exclude each other"),
        (("--address", "127.0.0.1:1"), MISSING, "No Ray cluster can be joined at '127.0.0.1:1': Connection refused."),
        (("--address", "nonsense"), USAGE, "'nonsense' is not the address of a Ray cluster."),
        (("--engine", "local", "--gpus", "1"), USAGE, "--address and --gpus are for --engine ray."),
        (("--engine", "dask"), USAGE, "There is no engine 'dask'."),
        (("--retry", "nonsense"), USAGE, "--retry takes failed, diverged, oom, stale."),
    ],
)
def test_what_cannot_be_is_refused_in_two_lines(
    folder: Path, ray_cluster: Any, options: tuple[str, ...], code: int, words: str
) -> None:
    address = () if "--address" in options or "local" in options else ("--address", ray_cluster.address)
    ended_with, errors = ended(start(folder, "none", "--engine", "ray", *address, *options))
    assert (ended_with, len(errors.splitlines())) == (code, 2), errors
    assert words in errors


JOINING = """
import sys
from lora_bench.__main__ import main
from lora_bench.run import cluster
cluster.JOIN_SECONDS = float(sys.argv.pop(1))
main()
"""


@pytest.mark.parametrize("signals", [0, 1])
def test_what_listens_at_an_address_but_is_no_cluster_ends_the_command(folder: Path, signals: int) -> None:
    """After a while, or when the user asks for it: Ray itself tries for a quarter of an hour."""
    with socket.create_server(("", 0)) as silent:  # Ray takes 127.0.0.1 for the machine's own address
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        words = ["run", "--config", "grid.yaml", "--data-dir", "rows", "--engine", "ray", "--address", address]
        command = [sys.executable, "-c", JOINING, "900" if signals else "3", *words]
        running = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        if signals:
            silent.accept()[0].close()  # from the look whether anybody listens
            time.sleep(2)  # until Ray tries
            running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == (INTERRUPTED if signals else MISSING), errors
    assert ("Interrupted." if signals else f"No Ray cluster can be joined at '{address}': ") in errors


def test_a_worker_of_another_version_is_refused() -> None:
    executor = clusters.RayExecutor(device="cpu")
    executor._facts = {"torch": "1.0", "lora_bench": "2", "the file of mine": "mine.py@0123456789ab"}
    words = r"on there has other versions: torch 2 there, 1\.0 here; the file of mine missing there, mine\.py@0"
    with pytest.raises(BenchError, match=words) as caught:
        executor._refuse_other_versions("there", {"torch": "2", "lora_bench": "2"})
    assert caught.value.code == MISSING


def test_an_error_of_another_machine_names_it() -> None:
    executor = clusters.RayExecutor(device="cpu")
    device = clusters._Device(None, None, View())
    for name, what in ((platform.node(), "What."), ("elsewhere", "On elsewhere: What.")):
        with pytest.raises(BenchError) as caught:
            executor._handle(device, None, ("error", name, "What.", "How.", MISSING))
        assert (caught.value.what, caught.value.code) == (what, MISSING)


def test_what_several_workers_warn_of_is_said_once() -> None:
    executor, view = clusters.RayExecutor(device="cpu"), QuietView()
    for text in ("the same", "the same", "another"):
        executor._handle(clusters._Device(None, None, view), None, ("view", "warn", text))
    assert view.warnings == ["the same", "another"]


def test_without_ray_the_engine_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BenchError, match=r"pip install 'lora-bench\[ray\]'") as caught:
        clusters.RayExecutor()
    assert caught.value.code == MISSING


@pytest.mark.parametrize(
    ("threads", "cores", "shares"),
    [("", (8, 6), (3, 4)), ("2", (8, 6), (7, 2)), ("100", (2, 1), (1, 2)), ("4,2", (3,), (1, 3)), ("0", (1,), (1, 1))],
)
def test_cores_are_shared_by_workers_of_even_size(
    monkeypatch: pytest.MonkeyPatch, threads: str, cores: tuple[int, ...], shares: tuple[int, int]
) -> None:
    """OMP_NUM_THREADS says how many threads each has, as far as there are so many."""
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    nodes = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cores]
    divided = connection.divide(SimpleNamespace(nodes=lambda: nodes), "the Ray cluster", None, "auto")
    assert (divided.count, divided.threads) == shares
    nodes.clear()
    with pytest.raises(BenchError, match="can never place a worker"):
        connection.divide(SimpleNamespace(nodes=lambda: nodes), "the Ray cluster", None, "auto")


@pytest.mark.parametrize(
    ("threads", "cores", "gpus", "share"),
    [("", 64, 1, 4), ("", 64, 4, 4), ("", 8, 4, 2), ("8", 64, 4, 8), ("", 1, 2, 1)],
)
def test_a_worker_with_a_gpu_has_few_threads(
    monkeypatch: pytest.MonkeyPatch, threads: str, cores: int, gpus: int, share: int
) -> None:
    """More threads than free cores delay its small operations, and other processes may need the rest."""
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    nodes = [{"Alive": True, "Resources": {"CPU": float(cores), "GPU": float(gpus)}}]
    divided = connection.divide(SimpleNamespace(nodes=lambda: nodes), "this machine", None, "auto")
    assert (divided.count, divided.threads) == (gpus, share)


def test_workers_that_cannot_start_say_why() -> None:
    error = connection.cannot_start("ModuleNotFoundError: No module named 'lora_bench'")
    assert (error.what, error.code) == ("A worker on Ray cannot import lora_bench.", MISSING)
    assert connection.cannot_start("a\n  reason").what == "Workers on Ray die while they start: a reason"
    low = connection.cannot_start("1 worker(s) were killed due to the node running low on memory. Memory on")
    assert "a machine has too little memory" in low.what


def test_facts_name_each_method_and_the_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = remote.facts_of(["lora", "xs"], ["sst2"])
    assert {"lora_bench", "python", "torch", "the code of lora", "the code of xs"} <= facts.keys()
    mine = tmp_path / "mine.py"
    mine.write_text("from lora_bench.methods.lora import Lora\nRECIPE = type('M', (Lora,), {'name': 'mine'})()\n")
    monkeypatch.setattr(plugins, "_plugins", {})
    with methods.registered():
        methods.include(mine)
        with_file = remote.facts_of(["lora", "mine", "xs"], ["sst2"])
    assert with_file.keys() - facts.keys() == {"the code of mine", "the file of mine"}
    assert with_file["the file of mine"].startswith("mine.py@")
    assert remote.facts_of(["lora", "mine", "xs"], ["sst2"]) == facts  # where it is not installed

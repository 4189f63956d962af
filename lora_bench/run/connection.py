"""Connects to a Ray cluster, and divides its machines among workers: one a GPU, or one a share of the cores."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_bench.errors import MISSING, BenchError
from lora_bench.run import environment

# Before Ray is imported: it sends no statistics and uploads no folder (which it does under `uv run`), and leaves
# CUDA_VISIBLE_DEVICES alone for workers without a GPU.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Set while Ray is imported, for this process alone: Ray's handler of fatal signals, SIGTERM among them, is then not
# installed over ours. It prints a stack trace, and aborts the process three seconds later, saved or not.
NO_HANDLER = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"
CONNECT_SECONDS = 5.0  # how long to wait for an answer at a cluster's address (chosen)


def import_ray() -> Any:
    """Return Ray, whose decorators and handles are not typed.

    Raises:
        BenchError: Exit code 3 if it is not installed.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    before = os.environ.get(NO_HANDLER)
    os.environ[NO_HANDLER] = "1"
    try:
        import ray
    except ImportError as error:
        hint = "Install it: pip install 'lora-bench[ray]'."
        raise BenchError(f"--engine ray needs Ray, which cannot be imported ({error}).", hint, MISSING) from None
    finally:
        if before is None:
            del os.environ[NO_HANDLER]
        else:
            os.environ[NO_HANDLER] = before
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Join the cluster at an address, or start Ray on this machine. Not to be called by the main thread.

    There, Ray would install a Python handler of SIGTERM that ends the process without saving.

    Raises:
        BenchError: Exit code 2 or 3 if there is no such cluster.
    """
    if address is not None:
        _require_answer(address)
    logging.getLogger("ray").setLevel(logging.ERROR)  # else it says that it handles no SIGTERM
    _keep_signals_from_servers(ray)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        line = " ".join(str(error).split())[:200]
        if address is None:
            raise BenchError(f"Ray does not start: {line}", "See its logs under /tmp/ray.", MISSING) from None
        raise no_cluster(address, line) from None
    _print_errors_as_errors(ray)


@dataclass(frozen=True)
class Shares:
    """How a cluster is divided among workers.

    Attributes:
        count: How many workers there are.
        options: What each asks Ray for.
        threads: The threads of each.
    """

    count: int
    options: Mapping[str, float]
    threads: int

    @property
    def device(self) -> str:
        """What torch calls a worker's device."""
        return "cuda" if "num_gpus" in self.options else "cpu"

    def fit(self, ray: Any) -> bool:
        """Return whether the cluster still has a machine that a worker fits on, busy or not."""
        needed = {"GPU": self.options.get("num_gpus", 0), "CPU": self.options.get("num_cpus", 0)}
        return any(all(node.get(kind, 0) >= count for kind, count in needed.items()) for node in _machines(ray))


def divide(ray: Any, where: str, gpus: int | None, device: str) -> Shares:
    """Return the shares of workers.

    Args:
        ray: Ray, connected.
        where: What the cluster is called in errors.
        gpus: How many GPUs to use; None for all.
        device: `auto`, `cuda`, or `cpu` to use no GPU.

    Raises:
        BenchError: Exit code 3 for what the cluster can never give.
    """
    machines, wanted = _machines(ray), environment.wanted_threads() or environment.THREADS
    present = sum(int(node.get("GPU", 0)) for node in machines)
    if (gpus is not None and gpus > present) or (device == "cuda" and not present):
        what = f"--gpus {gpus} can never be met" if gpus else "--device cuda can never be met"
        hint = "Ask for fewer, or leave it out for all there are; `lora-bench doctor` shows those of a machine."
        raise BenchError(f"{what}: {where} has {present or 'no'} GPU{'s' if present > 1 else ''}.", hint, MISSING)
    if present and device != "cpu":
        most = max(int(node.get("GPU", 0)) for node in machines)
        cores = min(node.get("CPU", 1) for node in machines if node.get("GPU"))
        return Shares(gpus or present, {"num_gpus": 1, "num_cpus": 0}, max(1, min(wanted, int(cores) // most)))
    cores_of = [int(node.get("CPU", 0)) for node in machines]
    threads = min(wanted, max(cores_of, default=0))
    if not threads:
        hint = "Start its nodes with more cores (ray start --num-cpus)."
        raise BenchError("The Ray cluster can never place a worker: it has no cores.", hint, MISSING)
    count = sum(cores // threads for cores in cores_of)
    return Shares(count, {"num_cpus": threads}, threads)


def require_head(ray: Any) -> None:
    """Notice that Ray's head process has ended: Ray itself would end this process a minute later, with exit code 1.

    Raises:
        BenchError: Exit code 3 if nobody listens at its address.
    """
    address = ray.get_runtime_context().gcs_address
    try:
        _reach(address)
    except ConnectionRefusedError:
        what = f"Ray's head process, which listened at {address}, has ended."
        hint = "Start the cluster again if it is your own, then give this command again."
        raise BenchError(what, hint, MISSING) from None
    except OSError:
        pass  # a busy network is for Ray to judge


def _machines(ray: Any) -> Sequence[Mapping[str, float]]:
    """The resources of the machines that are alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _keep_signals_from_servers(ray: Any) -> None:
    """Have Ray start its servers in sessions of their own: they must live until what trains is saved.

    A closed terminal, `timeout` and schedulers send signals to the whole process group. On Linux alone: there the
    kernel ends the servers with this process. Elsewhere Ray does, and finds them by their group.
    """
    services: Any = getattr(ray._private, "services", None)
    popen = getattr(services, "ConsolePopen", None)
    if sys.platform == "linux" and isinstance(popen, type):  # not replaced before
        services.ConsolePopen = functools.partial(popen, start_new_session=True)


def _print_errors_as_errors(ray: Any) -> None:
    """Have Ray print on standard error what its servers report, such as workers that died; it takes standard output."""
    module = getattr(ray._private, "worker", None)
    proper = getattr(module, "print_to_stdstream", None)
    if module is not None and proper is not None:
        module.print_to_stdstream = lambda data, ignore_prefix: proper({**data, "is_err": True}, ignore_prefix)


def _require_answer(address: str) -> None:
    """Refuse an address at which nothing listens, since Ray would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")  # which Ray reads then; without it, what was started here
        if ":" not in address or "/" in address:
            return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise BenchError(f"'{address}' is not the address of a Ray cluster.", "Write it as HOST:PORT, or auto.")
    try:
        _reach(address)
    except (OSError, OverflowError) as error:
        raise no_cluster(address, getattr(error, "strerror", None) or str(error)) from None


def _reach(address: str) -> None:
    """Raise an OSError if nobody answers at an address."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def no_cluster(address: str, reason: str) -> BenchError:
    """Return the error for an address at which no cluster can be joined."""
    hint = "Start one with `ray start --head`, or leave --address out to use this machine alone."
    return BenchError(f"No Ray cluster can be joined at '{address}': {reason.rstrip('.')}.", hint, MISSING)


def cannot_start(reason: str) -> BenchError:
    """Return the error for workers that die while they start."""
    if "No module named" in reason:
        hint = "Install lora-bench in the environment of every machine of the cluster."
        return BenchError("A worker on Ray cannot import lora_bench.", hint, MISSING)
    line = " ".join(reason.split())[:300]
    if is_low_memory(reason):
        hint = "Free some there, or start fewer workers: with --gpus, or with OMP_NUM_THREADS higher on CPUs."
        return BenchError(f"Ray ends the workers, since a machine has too little memory: {line}", hint, MISSING)
    hint = "See Ray's logs under /tmp/ray/session_latest/logs."
    return BenchError(f"Workers on Ray die while they start: {line}", hint, MISSING)


def is_low_memory(reason: str) -> bool:
    """Whether Ray has ended a worker since its machine had too little memory, by what Ray says of its death."""
    return "low on memory" in reason

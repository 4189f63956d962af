"""Trains packs on Ray: a worker for each GPU of this machine or of a cluster, or for each share of its cores.

Ray and the workers start in a thread while the driver plans, and the workers import torch at once. While they train,
one more job waits, whose inputs they prepare: the first of them that is free begins it, before the records of what it
has trained are written.

A worker that dies, with its machine or alone, is replaced, and its job continues from the last checkpoint, which the
driver has. A job whose workers keep dying has failed, like any other job that cannot be trained.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from lora_bench.errors import MISSING, BenchError
from lora_bench.run import connection, environment, remote
from lora_bench.run.checkpoints import CheckpointManifest
from lora_bench.run.connection import Shares, cannot_start
from lora_bench.run.interfaces import Driver, Failure, Job, Setup, View

# All were chosen.
POLL = 0.5  # seconds after which a worker says how far it is, even if nothing has happened
PATIENCE = 2.0  # seconds after which the driver looks at signals, even if no worker says anything
JOIN_SECONDS = 60.0  # to join a cluster; what answers at its address later than that is not taken for one
LOOK_SECONDS = 30.0  # for a GPU of the cluster to be free, so that its name can be asked for
HEAD_SECONDS = 10.0  # between two checks that Ray's head process is still there
STOP_SECONDS = 60.0  # for workers to save what they train
MOST_DEATHS = 3  # of workers while they start, or in one job without a checkpoint between, until that is an error


@dataclass(eq=False)
class _Device:
    """A worker, and the call that is waited for: that of `start`, or of `poll` while it has a job."""

    worker: Any
    call: Any
    view: View
    name: str = ""
    is_ready: bool = False
    job: Job | None = None
    environment: dict[str, str] = field(default_factory=dict)


class RayExecutor:
    """An executor on Ray.

    Args:
        address: The cluster's address, as `ray start` prints it, or `auto`; None to start Ray on this machine alone.
        gpus: How many GPUs to use; None for all.
        device: `auto`, `cuda`, or `cpu` to use no GPU.

    Raises:
        BenchError: Exit code 2 for another device, 3 if Ray is not installed.
    """

    def __init__(self, address: str | None = None, gpus: int | None = None, device: str = "auto") -> None:
        if device not in ("auto", "cuda", "cpu"):
            hint = "Use --device auto or cpu, and --gpus N for a number of GPUs."
            raise BenchError(f"--engine ray does not take --device {device}.", hint)
        self._ray = connection.import_ray()
        self.address, self.gpus, self.device = address, gpus, device
        self._opening: Future[Shares] | None = None
        self._closed = threading.Event()
        self._started: list[Any] = []  # workers that import torch
        self._devices: list[_Device] = []
        self._waiting: list[Job] = []
        self._warnings: set[str] = set()
        self._deaths: dict[int, int] = {}
        self._start_deaths = 0
        self._next_look = 0.0

    def launch(self, most: int) -> None:
        """Begin to start Ray and its workers, in a thread. `start` waits for them, and raises what went wrong.

        Args:
            most: The most workers that there will be work for.
        """
        self._opening = opening = Future[Shares]()
        # A daemon: the process may end while Ray starts, or waits for a cluster that never answers.
        self._thread = threading.Thread(target=self._open, args=(most, opening), name="starting Ray", daemon=True)
        self._thread.start()

    def _open(self, most: int, opening: Future[Shares]) -> None:
        """Connect to Ray, and start workers."""
        try:
            connection.connect(self._ray, self.address)
            where = "this machine" if self.address is None else "the Ray cluster"
            shares = connection.divide(self._ray, where, self.gpus, self.device)
            shares = replace(shares, count=min(most, shares.count))
            self._started = [self._new_worker(shares) for _ in range(shares.count)]
            opening.set_result(shares)
        except BaseException as error:
            opening.set_exception(error)
        self._closed.wait()  # Ray's processes end with the thread that has started them
        self._leave()  # where `close` has not waited

    @property
    def _shares(self) -> Shares:
        if self._opening is None:
            self.launch(sys.maxsize)
        assert self._opening is not None
        try:
            return self._opening.result(None if self.address is None else JOIN_SECONDS)
        except TimeoutError:
            reason = f"what answers there is no cluster, or does not let this machine join within {JOIN_SECONDS:.0f} s"
            raise connection.no_cluster(self.address or "", reason) from None

    def find_device(self) -> tuple[str, str]:
        """Return what torch calls the workers' devices, and their name as records have it; wait for a cluster."""
        name = self._device_name()
        return "cpu" if name.startswith("cpu") else "cuda", name

    def _device_name(self) -> str:
        if self.address is None:
            return environment.named_device(self.device)
        if self._shares.device == "cpu":
            return "cpu"
        looks = [worker.device_name.options(concurrency_group="io").remote() for worker in self._started]
        answers, _ = self._ray.wait(looks, timeout=LOOK_SECONDS)
        if not answers:  # others use all GPUs
            return environment.named_device(self.device)
        try:
            name: str = self._ray.get(answers[0])
        except self._ray.exceptions.RayError as error:
            raise cannot_start(str(error)) from None
        return name

    def start(self, setup: Setup, driver: Driver) -> None:
        """Begin a run."""
        self._driver = driver
        driver.view.stage("starting Ray")
        self._setup = remote.encode_setup(setup, self._shares.device)
        self._devices = [
            self._new_device(worker, driver.view.on_device(f"worker {number}"))
            for number, worker in enumerate(self._started, start=1)
        ]
        self._started = []
        driver.view.stage("waiting for the workers to import torch and transformers")
        self._facts = remote.facts_of(setup.methods, [task for task, _ in setup.data])
        import_module("pandas")  # writes metrics.csv at the end: imported now, while there is nothing else to do

    def _new_worker(self, shares: Shares) -> Any:
        kind = self._ray.remote(**shares.options, concurrency_groups={"io": 2, "inputs": 1}, max_restarts=0)(
            remote.RemoteWorker
        )
        worker = kind.remote(shares.threads)
        worker.warm_up.remote(shares.device)
        return worker

    def _new_device(self, worker: Any, view: View) -> _Device:
        return _Device(worker, worker.start.remote(self._setup), view)

    @property
    def devices(self) -> int:
        """How many packs train at once."""
        return self._shares.count

    @property
    def slots(self) -> int:
        """How many jobs it takes: one for each worker, and one that waits for the first of them that is free."""
        return self.devices + 1

    def submit(self, job: Job) -> None:
        """Take a job. If no worker is free, those that train prepare its inputs."""
        self._waiting.append(job)
        if len(self._waiting) > sum(device.job is None for device in self._devices):
            for device in self._devices:
                if device.job is not None:
                    device.worker.prefetch.options(concurrency_group="inputs").remote(job.cells[0].model_dump_json())

    def advance(self) -> None:
        """Give jobs to workers that are free, wait for a message, and report it."""
        self._driver.stopper.hold()
        try:
            self._look_for_head()
            for device in self._devices:
                self._give_next(device)
            self._receive(PATIENCE)
            if self._driver.stopper.asked:
                self._stop()
        finally:
            self._driver.stopper.release()

    def _look_for_head(self) -> None:
        """Save what trains, and end the run, if Ray's head process has ended: workers answer without it."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + HEAD_SECONDS
        try:
            connection.require_head(self._ray)
        except BenchError:
            self._stop()
            raise

    def _give_next(self, device: _Device) -> None:
        """Give a worker the next job, if it is free and there is one."""
        if device.is_ready and device.job is None and self._waiting and not self._driver.stopper.asked:
            device.job = job = self._waiting.pop(0)
            device.worker.train.remote(remote.encode_job(job))
            self._poll(device)

    def _poll(self, device: _Device) -> None:
        device.call = device.worker.poll.options(concurrency_group="io").remote(POLL)

    def _receive(self, seconds: float) -> None:
        """Wait for an answer of any worker, and see to it and all others that have come."""
        calls = {device.call: device for device in self._devices if device.call is not None}
        if not calls:
            return
        answers, _ = self._ray.wait(list(calls), num_returns=1, timeout=seconds)
        if not answers and not any(device.is_ready for device in self._devices) and not self._shares.fit(self._ray):
            if self.address is None:
                what, hint = "Ray has ended on this machine (a lack of memory?).", "Give the same command again."
            else:
                what = "The Ray cluster has lost all machines that could train."
                hint = "Start it again, then give the same command again."
            raise BenchError(what, hint, MISSING)
        more, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in dict.fromkeys([*answers, *more]):
            self._answer(calls[call])

    def _answer(self, device: _Device) -> None:
        try:
            events: list[remote.Event] = self._ray.get(device.call)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:  # the worker, its machine, or what it said has been lost
            self._replace(device, str(error))
            return
        device.call, job = None, device.job
        if any(event[0] in ("ended", "stopped") for event in events):
            device.job = None
            self._give_next(device)  # before its records are written, which takes a while
        for event in events:
            self._handle(device, job, event)
        if device.job is not None and device.call is None:
            self._poll(device)

    def _handle(self, device: _Device, job: Job | None, event: remote.Event) -> None:
        """See to what a worker says of its job, which may have ended with it."""
        match event:
            case "ready", name, kind, facts:
                self._refuse_other_versions(name, facts)
                device.is_ready, device.name = True, name
                device.environment = {**environment.versions(), "device": kind}
                self._start_deaths = 0
                device.view.stage(f"ready on {name}")
            case "view", name, *values:
                self._show(device.view, name, values)
            case "save", manifest, tensors:
                if job is not None:
                    self._deaths.pop(job.number, None)
                self._driver.save(CheckpointManifest.model_validate_json(manifest), tensors)
            case "publish", outcomes:
                self._driver.publish(remote.decode_outcomes(outcomes))
            case "ended", failure:
                assert job is not None
                self._driver.finish(job, None if failure is None else Failure(*failure))
            case "error", name, what, hint, code:
                raise BenchError(what if name == platform.node() else f"On {name}: {what}", hint, code)
            case "fault", name, text:
                raise RuntimeError(f"A worker on {name} failed:\n{text}")

    def _show(self, view: View, name: str, values: list[Any]) -> None:
        """Show what a worker has to show, but a warning once: every worker says the same of data or of an encoder."""
        if name == "warn":
            if values[0] in self._warnings:
                return
            self._warnings.add(values[0])
        remote.show(view, name, values)

    def _refuse_other_versions(self, name: str, facts: dict[str, str]) -> None:
        keys = [key for key, value in self._facts.items() if facts.get(key) != value]
        differences = [f"{key} {facts.get(key, 'missing')} there, {self._facts[key]} here" for key in keys]
        if differences:
            what = f"The worker on {name} has other versions: {'; '.join(differences)}."
            hint = "Have the same versions, and the same files for --include, on every machine of the cluster."
            raise BenchError(what, hint, MISSING)

    def _replace(self, device: _Device, reason: str) -> None:
        """Start another worker for one that has died, and have its job continued."""
        job, view = device.job, self._driver.view
        with contextlib.suppress(Exception):
            self._ray.kill(device.worker)
        worker = self._new_worker(self._shares)
        self._devices[self._devices.index(device)] = self._new_device(worker, device.view)
        if job is None:
            self._start_deaths += not device.is_ready
            if self._start_deaths >= MOST_DEATHS or "No module named" in reason:
                raise cannot_start(reason)
            return
        self._deaths[job.number] = self._deaths.get(job.number, 0) + 1
        if self._deaths[job.number] >= MOST_DEATHS:
            is_oom = connection.is_low_memory(reason)
            cause = "its machine has too little memory" if is_oom else "a lack of memory?"
            reason = f"the process that trained it died {MOST_DEATHS} times ({cause})"
            self._driver.finish(job, Failure("oom" if is_oom else "failed", reason, device.environment))
            return
        view.warn(f"A worker on {device.name} has died; its pack continues from the last checkpoint.")
        renewed = self._driver.renewed(job)
        if renewed is None:
            self._driver.finish(job, None)
        else:
            self._waiting.insert(0, renewed)

    def _stop(self) -> None:
        """Have all jobs saved and ended."""
        self._waiting.clear()
        for device in self._devices:
            if device.job is not None:
                device.worker.stop.options(concurrency_group="io").remote()
        end = time.monotonic() + STOP_SECONDS
        while time.monotonic() < end and any(device.job is not None for device in self._devices):
            self._receive(POLL)
            self._waiting.clear()

    def close(self) -> None:
        """End all workers; without an address, Ray too. Ray that is still starting ends when it has, or with us."""
        has_started = self._opening is not None and self._opening.done()
        if has_started:
            self._leave()
        self._closed.set()
        if has_started:
            self._thread.join()

    def _leave(self) -> None:
        for worker in [*self._started, *(device.worker for device in self._devices)]:
            with contextlib.suppress(Exception):
                self._ray.kill(worker)
        self._started, self._devices = [], []
        with contextlib.redirect_stdout(sys.stderr):
            self._ray.shutdown()

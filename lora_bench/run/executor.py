"""Trains jobs one after another in this process, and the part of it that workers elsewhere share. No torch."""

from __future__ import annotations

import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench import plugins
from lora_bench.errors import MISSING, BenchError, described
from lora_bench.run import environment
from lora_bench.run.interfaces import Driver, Failure, Job, RunContext, Setup, Worker

if TYPE_CHECKING:
    from lora_bench.run.worker import Training

PACKAGE = Path(__file__).resolve().parents[1]
LONGEST_REASON = 500  # characters of an error that a record keeps


def import_training(device: str) -> type[Training]:
    """Import what trains on a device; while transformers is imported, CUDA starts."""
    with environment.quick_imports():
        import torch

        if (threads := environment.default_threads(device)) is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))
        if device != "cpu":
            threading.Thread(target=_start_cuda, args=(device,), name="starting CUDA").start()
        from lora_bench.run.worker import Training
    return Training


def _start_cuda(device: str) -> None:
    """Make the context of a GPU, which takes a second or more."""
    import torch

    with suppress(Exception):  # what is wrong will be wrong again where it can be reported
        torch.empty(1, device=device)


def train_job(worker: Worker, job: Job, context: RunContext, debug: bool) -> Failure | None:
    """Train a job, and publish the outcomes of its cells as they end.

    Returns:
        Why it could not be trained to its end; None if it was.

    Raises:
        BaseException: An error that no cell is to blame for; any error with `debug`.
    """
    worker.prepare(job.cells)
    context.stopper.check()
    try:
        for outcomes in worker.train(job, context):
            context.publish(outcomes)
            context.stopper.release()
        return None
    except BaseException as error:  # a method of the user's may raise anything, SystemExit too
        if debug or isinstance(error, OSError | KeyboardInterrupt | GeneratorExit):
            raise
        if isinstance(error, BenchError) and error.code == MISSING:
            raise
        is_memory = worker.is_memory(error)
        failure = Failure("oom" if is_memory else "failed", _reason(error, is_memory), worker.environment())
    finally:
        context.stopper.release()
    worker.forget()  # outside of the except block, whose traceback keeps the failed pack alive
    return failure


def _reason(error: BaseException, is_memory: bool) -> str:
    """Describe an error for a record: its type, its message, and the innermost line of a user's file, else of ours."""
    in_users_file = plugins.blamed(error)
    if in_users_file is not None:
        return in_users_file.what[:LONGEST_REASON]
    message = described(error)
    if is_memory or isinstance(error, BenchError):  # which needs no line, or says itself where to look
        return message[:LONGEST_REASON]
    lines = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [(path, line) for path, line in lines if PACKAGE in path.parents and path != Path(__file__)]
    where = f" ({ours[-1][0].relative_to(PACKAGE.parent)}:{ours[-1][1]})" if ours else ""
    return message[: LONGEST_REASON - len(where)] + where


class LocalExecutor:
    """This process, with one device.

    Args:
        worker: What trains packs; by default `worker.Training`, and torch is imported with the first job.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for the GPU if there is one.
    """

    devices = slots = 1

    def __init__(self, worker: Worker | None = None, device: str = "auto") -> None:
        self._worker, self._device = worker, device
        self._job: Job | None = None

    def find_device(self) -> tuple[str, str]:
        """Return what torch calls the device, and its name as records have it.

        Raises:
            BenchError: Exit code 2 for a wrong name, 3 if there is no such device.
        """
        device = environment.choose_device(self._device)
        return device, environment.device_name(device)

    def start(self, setup: Setup, driver: Driver) -> None:
        self._setup, self._driver = setup, driver

    @property
    def worker(self) -> Worker:
        """What trains packs."""
        if self._worker is None:
            self._driver.view.stage("importing torch and transformers")
            self._worker = import_training(self._setup.options.device)(self._setup, self._driver.view)
        return self._worker

    def submit(self, job: Job) -> None:
        self._job = job

    def advance(self) -> None:
        """Train the job to its end."""
        job, self._job = self._job, None
        assert job is not None
        self._driver.finish(job, train_job(self.worker, job, self._driver, self._setup.options.debug))

    def close(self) -> None:
        """There is nothing to end."""

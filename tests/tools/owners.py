"""Several processes on one results folder, each a fork of this one; what they did, as JSON.

python -m tests.tools.owners crowd|paused|dead|signalled FOLDER
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_bench.cell import Cell
from lora_bench.errors import INTERRUPTED, BenchError
from lora_bench.records.store import read_records
from lora_bench.run import owner
from lora_bench.run.signals import ONE_REQUEST, Stopper
from tests.robust.stub_worker import child, grid, runner, wait_for_file, worker_of

PROCESSES, SEEDS, RANKS = 16, 25, (1, 2, 3, 4)


def code_of(process: int) -> int:
    """Wait for a child; its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def rows(results: Path) -> list[str]:
    """The ids in metrics.csv."""
    with (results / "metrics.csv").open(newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]


def makers(results: Path) -> dict[str, str]:
    """Who made the record of each cell that is done."""
    records = [record for record in read_records(results).records if record.status == "done"]
    return {record.id: record.environment["device"] for record in records}


def left(results: Path) -> list[str]:
    """What lies in the folder besides records and adapters."""
    paths = (path for path in results.rglob("*") if path.is_file() and path.parent.name != "cells")
    return sorted(str(path.relative_to(results)) for path in paths if "adapters" not in path.parts)


def crowd(results: Path) -> dict[str, Any]:
    """Sixteen processes that start at once, with 100 cells in 25 packs; each notes every cell it trains."""
    made, logs = grid(SEEDS, RANKS), results.with_name("logs")
    logs.mkdir()

    def work(name: str) -> None:
        wait_for_file(results.with_name("go"))
        running = runner(results, made, name, lambda cells: time.sleep(0.1))
        try:
            running.run()
        except BenchError as error:
            os._exit(error.code)
        (logs / name).write_text("\n".join(worker_of(running).trained))

    processes = [child(lambda name=f"p{n}": work(name)) for n in range(PROCESSES)]  # type: ignore[misc]
    results.with_name("go").touch()
    codes = [code_of(process) for process in processes]
    trained = [line for path in logs.iterdir() for line in path.read_text().split()]
    return {
        "codes": codes,
        "trained": trained,
        "rows": rows(results),
        "makers": makers(results),
        "left": left(results),
    }


def paused(results: Path) -> dict[str, Any]:
    """An owner that is stopped in its work past its lease, another that succeeds it, and the first one woken."""
    owner.TERM = 0.8
    made, started, go_on = grid(1), results.with_name("started"), results.with_name("go-on")

    def pausing(cells: Sequence[Cell]) -> None:
        started.touch()
        wait_for_file(go_on)

    def work() -> None:
        try:
            runner(results, made, "first", pausing).run()
        except BenchError as error:
            results.with_name("error").write_text(error.what)
            os._exit(error.code)

    def refusal() -> str:
        try:
            runner(results, made, "early").run()
        except BenchError as error:
            return error.what
        return ""

    first = child(work)
    wait_for_file(started)
    early = refusal()
    os.kill(first, signal.SIGSTOP)
    os.waitpid(first, os.WUNTRACED)
    owner._boot = lambda: "another kernel"  # type: ignore[assignment]  # where nobody can see that it is stopped
    runner(results, made, "second").run()
    before = {path.name: path.read_bytes() for path in (results / "cells").iterdir()}
    go_on.touch()
    os.kill(first, signal.SIGCONT)
    code = code_of(first)
    after = {path.name: path.read_bytes() for path in (results / "cells").iterdir()}
    return {
        "early": early,
        "makers": makers(results),
        "unchanged": before == after,
        "code": code,
        "error": results.with_name("error").read_text(),
        "left": left(results),
        "rows": rows(results),
    }


def dead(results: Path) -> dict[str, Any]:
    """An owner that is killed: its folder is free at once, though its lease would last a minute more."""
    made, started = grid(1), results.with_name("started")

    def hanging(cells: Sequence[Cell]) -> None:
        started.touch()
        time.sleep(60)

    first = child(runner(results, made, "first", hanging).run)
    wait_for_file(started)
    os.kill(first, signal.SIGKILL)
    code = code_of(first)
    began = time.monotonic()
    runner(results, made, "second").run()
    return {"code": code, "makers": makers(results), "seconds": time.monotonic() - began, "left": left(results)}


def signalled(results: Path) -> dict[str, Any]:
    """A signal while nothing is held, one while a pack trains, and two."""
    codes = {}
    for name, held, count in (("free", False, 1), ("held", True, 1), ("twice", True, 2)):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            own = results / name / str(number)
            process = child(lambda own=own, held=held, count=count: _answering(own, held, count))  # type: ignore[misc]
            wait_for_file(own / "started")
            os.kill(process, number)
            if count == 2:
                time.sleep(ONE_REQUEST + 0.2)  # sooner it would be the same request
                os.kill(process, number)
            codes[f"{name} {signal.Signals(number).name}"] = [code_of(process), len(makers(own))]
    return codes


def _answering(results: Path, held: bool, count: int) -> None:
    """A run that waits in its work until it is asked to stop, or in vain."""
    stopper = Stopper()

    def training(cells: Sequence[Cell]) -> None:
        if held:
            stopper.hold()
        (results / "started").touch()
        end = time.monotonic() + 20
        while time.monotonic() < end and not (stopper.asked and count == 1):
            time.sleep(0.01)

    try:
        with stopper:
            runner(results, grid(1), "signalled", training, stopper=stopper).run()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps({"crowd": crowd, "paused": paused, "dead": dead, "signalled": signalled}[kind](folder)))

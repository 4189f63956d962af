"""Measure one grid on 1, 2, 4, … GPUs of this machine by `--engine ray`: seconds, efficiency, idle cards, CPU time.

    python -m tests.tools.scaling --gpus 1,2,4 --json scaling.json -- --config FILE --model DIR --data-dir DIR

Everything after `--` are options of `lora-bench run`. Each number of GPUs is a command of its own in a fresh results
folder, whose records are compared with those of the first. What `plan` predicts stands beside it. `--keep` keeps the
results folders and the commands' output. For Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 1.0  # between two looks at the processes and the cards
IDLE_PERCENT = 5  # a card that is busy for less of a second counts as idle (chosen)
VARIES = ("timing", "environment", "crc32")  # what the records of two runs of one cell may differ in


@dataclass(frozen=True)
class Row:
    """What one number of GPUs took.

    Attributes:
        gpus: the number of GPUs.
        cells: the records written.
        failed: those of them that are not `done`.
        seconds: of the whole command, by the wall clock.
        cells_per_second: over the whole command.
        efficiency: its rate over that of the first row, for each GPU.
        training_share: the seconds of all packs over seconds × GPUs; the rest is start-up, gaps and the end.
        idle: of each card, the share of the looks in which it was idle.
        driver_cpu: CPU seconds of the process that writes records.
        worker_cpu: CPU seconds of Ray's processes, the workers among them.
        differing: records that differ from the first row's in more than times and environment.
        predicted: the first line of `plan`.
    """

    gpus: int
    cells: int
    failed: int
    seconds: float
    cells_per_second: float
    efficiency: float
    training_share: float
    idle: tuple[float, ...]
    driver_cpu: float
    worker_cpu: float
    differing: int
    predicted: str


class Usage:
    """CPU time of a process and of its descendants, and how often each card was idle, by looking every second."""

    def __init__(self, pid: int, cards: Sequence[int]) -> None:
        self._pid, self._cards = pid, cards
        self._cpu: dict[int, float] = {}
        self._idle: list[tuple[bool, ...]] = []

    def look(self) -> None:
        """Take one look."""
        table = process_table()
        tree = {self._pid} & table.keys()
        while more := {pid for pid, (parent, _) in table.items() if parent in tree} - tree:
            tree |= more
        self._cpu |= {pid: table[pid][1] for pid in tree}
        if (busy := busy_percents()) is not None:
            self._idle.append(tuple(busy[card] < IDLE_PERCENT for card in self._cards))

    @property
    def driver(self) -> float:
        """CPU seconds of the process itself."""
        return self._cpu.get(self._pid, 0.0)

    @property
    def workers(self) -> float:
        """CPU seconds of its descendants."""
        return sum(self._cpu.values()) - self.driver

    @property
    def idle(self) -> tuple[float, ...]:
        """Of each card, the share of looks in which it was idle."""
        return tuple(round(sum(card) / len(card), 3) for card in zip(*self._idle, strict=True))


def process_table() -> dict[int, tuple[int, float]]:
    """Return the parent and the CPU seconds of every process, by its number."""
    tick = os.sysconf("SC_CLK_TCK")
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name in parentheses come the state, the parent, nine more numbers and the times.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        table[int(path.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / tick
    return table


def busy_percents() -> list[int] | None:
    """Return how busy each card was; None without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return [int(line) for line in text.split()]


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a results folder by id."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("cells/*.json"))}


def count_differing(records: Mapping[str, Mapping[str, Any]], first: Mapping[str, Mapping[str, Any]]) -> int:
    """Count the cells that are missing on one side, or differ in more than `VARIES`."""

    def compared(record: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key not in VARIES}

    common = records.keys() & first.keys()
    differing = sum(compared(records[cell_id]) != compared(first[cell_id]) for cell_id in common)
    return differing + len(records.keys() ^ first.keys())


def measure(gpus: int, options: Sequence[str], scratch: Path) -> tuple[float, Usage, str]:
    """Run the command on some GPUs; return its seconds, what it used, and what `plan` says."""
    results = scratch / f"gpus-{gpus}"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    command = [sys.executable, "-m", "lora_bench"]
    plan = [*command, "plan", *options, "--engine", "ray", "--gpus", str(gpus), "--results", str(results)]
    said = subprocess.run(plan, env=environment, capture_output=True, text=True, check=False).stdout
    begin = time.monotonic()
    with (scratch / f"gpus-{gpus}.log").open("wb") as log:
        run = [*command, "run", *options, "--engine", "ray", "--results", str(results)]
        process = subprocess.Popen(run, env=environment, stdout=log, stderr=log)
        usage = Usage(process.pid, range(gpus))
        while process.poll() is None:
            usage.look()
            time.sleep(SAMPLE_SECONDS)
    return time.monotonic() - begin, usage, re.sub(r"\s+", " ", said.partition("\n")[0])


def rows(counts: Iterable[int], options: Sequence[str], scratch: Path) -> Iterable[Row]:
    """Measure each number of GPUs in turn."""
    first: dict[str, dict[str, Any]] = {}
    base = 0.0
    for gpus in counts:
        seconds, usage, predicted = measure(gpus, options, scratch)
        records = records_of(scratch / f"gpus-{gpus}")
        first = first or records
        rate = len(records) / seconds
        base = base or rate / gpus
        training = sum(record["timing"]["seconds"] for record in records.values() if record.get("timing"))
        yield Row(
            gpus=gpus,
            cells=len(records),
            failed=sum(record["status"] != "done" for record in records.values()),
            seconds=round(seconds, 1),
            cells_per_second=round(rate, 3),
            efficiency=round(rate / gpus / base, 3) if base else 0.0,
            training_share=round(training / (seconds * gpus), 3),
            idle=usage.idle,
            driver_cpu=round(usage.driver, 1),
            worker_cpu=round(usage.workers, 1),
            differing=count_differing(records, first),
            predicted=predicted,
        )


def main() -> None:
    """Measure, print a line for each number of GPUs, and write all of them after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="1,2,4", help="numbers of GPUs, joined by commas")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--keep", type=Path, help="an empty folder for the results of all commands")
    parser.add_argument("options", nargs="+", help="options of `lora-bench run`, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        done: list[dict[str, Any]] = []
        for row in rows(map(int, arguments.gpus.split(",")), arguments.options, arguments.keep or Path(scratch)):
            done.append(asdict(row))
            print(json.dumps(done[-1]), flush=True)
            if arguments.json is not None:
                content = {"options": arguments.options, "cores": os.cpu_count(), "rows": done}
                arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

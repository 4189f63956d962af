"""Measure one grid on 1, 2, 4, … GPUs of this machine by `--engine ray`: seconds, efficiency, idle cards, CPU time.

    python -m tests.tools.scaling --gpus 1,2,4 --json scaling.json -- --config FILE --model DIR --data-dir DIR
    python -m tests.tools.scaling --simulate 1,2,16,64 --json scaling.json -- --config FILE … --device H100
    python -m tests.tools.scaling --json scaling.json       # print the table of what is there

Everything after `--` are options of `lora-bench run`. Each number of GPUs is a command of its own in a fresh results
folder, whose records are compared with those of the first. What `plan` predicts stands beside it. `--simulate` adds
rows of what is predicted alone, on any number of GPUs. Rows of other numbers that the file holds stay. `--keep` keeps
the results folders and the commands' output. For Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import typer

from lora_bench.cli import caches
from lora_bench.cli.options import ExecutionOptions, Selection, selection_options
from lora_bench.forecast.schedule import WRITE_SECONDS
from lora_bench.records import adapters
from lora_bench.records.store import read_records
from lora_bench.run import environment
from lora_bench.run import plan as plans
from lora_bench.run.outcome import Outcome
from lora_bench.run.publish import RecordStore
from lora_bench.run.totals import Totals, totals

SAMPLE_SECONDS = 1.0  # between two looks at the processes and the cards
WRITTEN = 200  # records that are written once more, to see how long it takes
PACK = 20  # of them at once
IDLE_PERCENT = 5  # a card that is busy for less of a second counts as idle (chosen)
VARIES = ("timing", "environment", "crc32")  # what the records of two runs of one cell may differ in


COLUMNS = (
    "GPUs",
    "cells",
    "seconds",
    "cells a second",
    "ratio to one",
    "efficiency",
    "idle share of the cards",
    "CPU seconds of the driver",
    "of the workers",
    "records that differ",
    "`plan`'s seconds",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one number of GPUs took, or is predicted to take.

    Attributes:
        gpus: the number of GPUs.
        simulated: whether nothing was measured: the other numbers are then predicted, or None.
        cells: the records written.
        failed: those of them that are not `done`.
        seconds: of the whole command, by the wall clock.
        cells_per_second: over the whole command.
        efficiency: its rate over that of the first row, for each GPU; of a simulated row, over that of one GPU.
        training_share: the seconds of all packs over seconds × GPUs; the rest is start-up, gaps and the end.
        idle: of each card, the share of the looks in which it was idle; of a simulated row, that of all cards.
        driver_cpu: CPU seconds of the process that writes records.
        worker_cpu: CPU seconds of Ray's processes, the workers among them.
        write_seconds: what writing the record and the adapter of a cell took afterwards, in packs; of a simulated row,
            the median of the measured rows of the file, or what `plan` takes it to be.
        differing: records that differ from the first row's in more than times and environment.
        predicted: the seconds that `plan` predicts.
    """

    gpus: int
    simulated: bool = False
    cells: int
    failed: int | None = None
    seconds: float
    cells_per_second: float
    efficiency: float
    training_share: float
    idle: tuple[float, ...]
    driver_cpu: float | None = None
    worker_cpu: float | None = None
    write_seconds: float | None = None
    differing: int | None = None
    predicted: float | None


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


def write_seconds(results: Path, scratch: Path) -> float:
    """Return the seconds that writing a cell takes where a results folder is: its own records, once more."""
    records = read_records(results).records[:WRITTEN]
    outcomes = []
    for record in records:
        parts = adapters.read_of_cell(results, record.id) or {}
        outcomes.append(Outcome(record, {str(part): content for part, content in parts.items()}))
    store = RecordStore(scratch)
    store.begin()
    begin = time.monotonic()
    for first in range(0, len(outcomes), PACK):
        store.publish(store.stage(outcomes[first : first + PACK]), f"0-{first}")
    seconds = time.monotonic() - begin
    shutil.rmtree(scratch)
    return seconds / max(1, len(outcomes))


def forecast(options: Sequence[str], results: Path) -> Totals:
    """Return what `lora-bench plan` predicts with these options and an empty results folder."""
    command, predicted = typer.Typer(), list[Totals]()

    @command.command()
    @selection_options
    def planned(selection: Selection, execution: ExecutionOptions) -> None:
        execution.check_engine(planning=True)
        device, limit = environment.named_device(execution.device), selection.pack_size()
        plan = plans.make(selection.grid(), results, limit, (), device, caches.calibration_file())
        predicted.append(totals(plan, execution.save))

    command([*options, "--engine", "ray"], standalone_mode=False)
    return predicted[0]


def simulate(counts: Iterable[int], predicted: Totals, writing: float = WRITE_SECONDS) -> Iterable[Row]:
    """Predict each number of GPUs in turn, given the seconds in which a cell's record is written."""
    one = predicted.simulated(1, writing)
    for gpus in counts:
        run = predicted.simulated(gpus, writing)
        if one is None or run is None:
            raise SystemExit("No time is known for these cells on this device (give --device H100 after --).")
        training = run.training / (run.seconds * gpus)
        yield Row(
            gpus=gpus,
            simulated=True,
            cells=predicted.cells,
            seconds=round(run.seconds, 1),
            cells_per_second=round(predicted.cells / run.seconds, 3),
            efficiency=round(one.seconds / run.seconds / gpus, 3),
            training_share=round(training, 3),
            idle=(round(1 - training, 3),),
            write_seconds=writing,
            predicted=round(run.seconds, 1),
        )


def measure(gpus: int, options: Sequence[str], scratch: Path) -> tuple[float, Usage]:
    """Run the command on some GPUs; return its seconds, and what it used."""
    scratch.mkdir(parents=True, exist_ok=True)
    results = scratch / f"gpus-{gpus}"
    visible = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    begin = time.monotonic()
    with (scratch / f"gpus-{gpus}.log").open("wb") as log:
        run = [sys.executable, "-m", "lora_bench", "run", *options, "--engine", "ray", "--results", str(results)]
        process = subprocess.Popen(run, env=visible, stdout=log, stderr=log)
        usage = Usage(process.pid, range(gpus))
        while process.poll() is None:
            usage.look()
            time.sleep(SAMPLE_SECONDS)
    return time.monotonic() - begin, usage


def measured(counts: Iterable[int], options: Sequence[str], scratch: Path, predicted: Totals) -> Iterable[Row]:
    """Measure each number of GPUs in turn."""
    first: dict[str, dict[str, Any]] = {}
    base = 0.0
    for gpus in counts:
        seconds, usage = measure(gpus, options, scratch)
        results = scratch / f"gpus-{gpus}"
        records = records_of(results)
        first = first or records
        rate = len(records) / seconds
        base = base or rate / gpus
        training = sum(record["timing"]["seconds"] for record in records.values() if record.get("timing"))
        run = predicted.simulated(gpus)
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
            write_seconds=round(write_seconds(results, scratch / "written"), 4),
            differing=count_differing(records, first),
            predicted=None if run is None else round(run.seconds, 1),
        )


def read(path: Path) -> dict[str, Any]:
    """Return what a file holds; no rows if it is not there."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return content


def note(path: Path, row: Row, options: Sequence[str]) -> None:
    """Print a row, and write it beside those that a file holds."""
    print(json.dumps(asdict(row)), flush=True)
    path.write_text(json.dumps(merged(read(path), row, options), indent=1) + "\n")


def merged(content: Mapping[str, Any], row: Row, options: Sequence[str]) -> dict[str, Any]:
    """Return the content of the file with a row more, in place of one of the same kind and number of GPUs."""
    kept = [other for other in content["rows"] if (other["gpus"], other["simulated"]) != (row.gpus, row.simulated)]
    everything = sorted([*kept, asdict(row)], key=lambda other: (other["simulated"], other["gpus"]))
    if row.simulated:
        return {**content, "simulated_options": list(options), "rows": everything}
    return {**content, "options": list(options), "cores": os.cpu_count(), "rows": everything}


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as the Markdown table of results/bench/README.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        idle = sum(row["idle"]) / len(row["idle"]) if row["idle"] else None
        values = (
            f"{row['gpus']}, simulated" if row["simulated"] else row["gpus"],
            f"{row['cells']:,}",
            f"{row['seconds']:.1f}",
            f"{row['cells_per_second']:.2f}",
            f"{row['efficiency'] * row['gpus']:.2f}",
            f"{row['efficiency']:.0%}",
            "" if idle is None else f"{idle:.0%}",
            *("" if row[name] is None else f"{row[name]:,.0f}" for name in ("driver_cpu", "worker_cpu", "differing")),
            "" if row["simulated"] or row["predicted"] is None else f"{row['predicted']:.1f}",
        )
        lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure or simulate, print a line for each number of GPUs, and write all of them after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="", help="numbers of GPUs to measure, joined by commas")
    parser.add_argument("--simulate", default="", help="numbers of GPUs to simulate")
    parser.add_argument("--json", type=Path, required=True, help="where to write the rows")
    parser.add_argument("--keep", type=Path, help="an empty folder for the results of all commands")
    parser.add_argument("options", nargs="*", help="options of `lora-bench run`, after --")
    arguments = parser.parse_args()
    counts, imagined = (
        [int(text) for text in part.split(",") if text] for part in (arguments.gpus, arguments.simulate)
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch, options = arguments.keep or Path(folder), arguments.options
        if counts or imagined:
            predicted = forecast(options, scratch / "nothing")
            for row in measured(counts, options, scratch, predicted):
                note(arguments.json, row, options)
            writing = [row["write_seconds"] for row in read(arguments.json)["rows"] if not row["simulated"]]
            for row in simulate(imagined, predicted, median(writing) if writing else WRITE_SECONDS):
                note(arguments.json, row, options)
    print(table(read(arguments.json)["rows"]))


if __name__ == "__main__":
    main()

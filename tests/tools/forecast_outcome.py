"""Compare what `plan` predicts with what `run` takes, grid by grid: seconds and GiB of GPU memory.

    python -m tests.tools.forecast_outcome --model DIR --data-dir DIR --out FOLDER

The grids are those of `forecast_grids.yaml` beside this file, or of other files of its form; `--only` names some. A
directory with a config and a tokenizer alone gets random weights. No network is used.

The table has a row for each grid: seconds of the whole command by the wall clock; those of them outside of packs; GiB
of the tensors of the largest pack, as records have them; GiB of the process on the card by nvidia-smi, where that
tells processes apart. Kernels that are not in the cache take longer. FOLDER/outcome.json has the same for every pack.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_bench.bench.workload import make_random_model
from lora_bench.cli.caches import calibration_file
from lora_bench.grid.cells import expand
from lora_bench.grid.config import Config, parse_config
from lora_bench.grid.yaml import read_yaml
from lora_bench.records.store import read_records
from lora_bench.run import environment, plan
from lora_bench.run.totals import totals

GRIDS = Path(__file__).with_name("forecast_grids.yaml")
LOOK_SECONDS = 0.25  # between two looks at the card's memory
OUTCOMES = ("seconds", "tensors, GiB", "process, GiB")
HEADER = ("grid", "cells", "packs", *(part for name in OUTCOMES for part in (name, "measured", "ratio")), "outside, s")


Outcome = tuple[float | None, float | None]  # predicted and measured; None where it is not known


class Row(NamedTuple):
    """What was predicted for a grid and what came of it; the docstring above says what is counted."""

    grid: str
    cells: int  # that ended as they should
    seconds: Outcome
    tensors: Outcome
    process: Outcome
    outside: float
    packs: Sequence[tuple[str, Outcome, Outcome]]  # what trained in each, its seconds and the GiB of its tensors

    def columns(self) -> Iterator[str]:
        """Yield the columns of the table."""
        yield from (self.grid, str(self.cells), str(len(self.packs)))
        for predicted, measured in (self.seconds, self.tensors, self.process):
            yield from ("–" if number is None else f"{number:.1f}" for number in (predicted, measured))
            yield f"{predicted / measured:.2f}" if predicted and measured else "–"
        yield f"{self.outside:.1f}"


def gib(size: float | None) -> float | None:
    """Return bytes in GiB."""
    return None if size is None else size / 2**30


def used_memory(pid: int) -> float | None:
    """Return the GiB that a process takes on its card; None where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    by_process = dict(line.split(", ") for line in lines)
    return int(by_process[str(pid)]) / 2**10 if by_process.get(str(pid), "").isdecimal() else None


def run(config: Path, options: Sequence[str], results: Path) -> tuple[float, float | None]:
    """Run a grid; return its seconds, and the most GiB that its process took on the card."""
    command = [sys.executable, "-m", "lora_bench", "run", "--config", str(config), "--results", str(results), *options]
    looks, begin = [0.0], time.monotonic()
    with results.with_suffix(".log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None:
            looks.append(used_memory(process.pid) or 0.0)
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - begin, max(looks) or None


def compare(config: Config, path: Path, model: str, data: Path | None) -> Row:
    """Plan and run a grid; its file and its results stand side by side."""
    results = path.with_suffix("")
    grid = expand(config, {"model": [model]}, plan.sources(), data)
    planned = plan.make(grid, results, None, (), environment.named_device("auto"), calibration_file())
    total = totals(planned, saves=False)
    simulated = total.simulated()
    options = ["--offline", "--no-save", "--model", model, *(("--data-dir", str(data)) if data else ())]
    seconds, process = run(path, options, results)
    records = {record.id: record for record in read_records(results).records} if results.exists() else {}
    packs: list[tuple[str, Outcome, Outcome]] = []
    for pack, (pack_seconds, size) in zip(planned.packs, planned.costs, strict=True):
        timings = [record.timing for cell in pack if (record := records.get(cell.id)) and record.timing]
        measured = sum({timing.pack_seconds for timing in timings})  # of its parts, if it did not fit
        peak = max((timing.peak_bytes or 0 for timing in timings), default=0)
        title = f"{len(pack)} × {pack[0].task}: {', '.join(sorted({cell.method for cell in pack}))}"
        packs.append((title, (pack_seconds, measured), (gib(size), gib(peak or None))))
    return Row(
        grid=config.name,
        cells=sum(record.status == "done" for record in records.values()),
        seconds=(None if simulated is None else simulated.seconds, seconds),
        tensors=max((tensors for *_, tensors in packs), key=lambda tensors: tensors[1] or 0.0),
        process=(gib(total.peak), process),
        outside=seconds - sum(measured or 0.0 for _, (_, measured), _ in packs),
        packs=packs,
    )


def configs(paths: Iterable[Path], names: Sequence[str], folder: Path) -> Iterator[tuple[Config, Path]]:
    """Yield the grids of some files, each with a file of its own in a folder."""
    for path in paths:
        content: dict[str, Any] = read_yaml(path.read_text(encoding="utf-8"), str(path))[0]
        for name, grid in content["grids"].items():
            if not names or name in names:
                text = json.dumps({"name": name, "defaults": content["defaults"], **grid})
                (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
                yield parse_config(text, f"{path}: {name}"), folder / f"{name}.yaml"


def main() -> None:
    """Compare, print a row after each grid, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="*", type=Path, default=[GRIDS], help="files of grids")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="grids to take")
    parser.add_argument("--model", required=True, help="a model's directory, or `sample`")
    parser.add_argument("--data-dir", type=Path, help="folder of data, as for `run`")
    parser.add_argument("--out", required=True, type=Path, help="an empty folder for results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = Path(arguments.model)
    if model.is_dir() and not any(model.glob("*.safetensors")):
        model = make_random_model(model, arguments.out / "model")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    rows = []
    for config, path in configs(arguments.grids, arguments.only, arguments.out):
        rows.append(compare(config, path, str(model), arguments.data_dir))
        print(f"| {' | '.join(rows[-1].columns())} |", flush=True)
        content = json.dumps([row._asdict() for row in rows], indent=1)
        (arguments.out / "outcome.json").write_text(f"{content}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

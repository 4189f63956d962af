"""The cost model's coefficients (`forecast/cost.py`), fitted to measured rows. No torch.

    python -m lora_bench.bench.calibrate results/bench/a.json --out lora_bench/forecast/devices.json

fits anew from stored benchmarks, each device and precision by itself, and prints what it found. A row has all that
this needs: the terms that the model counts for one of its steps, and what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.optimize import nnls

from lora_bench.cell import Cell
from lora_bench.errors import NOTHING, BenchError
from lora_bench.files import write_atomically
from lora_bench.forecast import cost
from lora_bench.forecast.cost import STEP_TERMS
from lora_bench.forecast.geometry import load_geometry

RIDGE = 0.01  # small beside the errors of measurements

Tables = dict[str, dict[str, dict[str, float]]]  # device, precision, coefficient


@dataclass(frozen=True)
class Point:
    """One measured pack: the counts of each term in a step of all its cells, and what they took.

    `seconds`: of that step. `setup`: seconds before the first one.
    """

    terms: Mapping[str, float]
    seconds: float
    setup: float = 0.0


def counted(cells: Sequence[Cell], mean_tokens: float, model: str) -> dict[str, float]:
    """The terms of a pack's step; empty where the model's sizes are not known.

    `mean_tokens`: real tokens of a training sequence.
    """
    sizes = load_geometry(model)
    if sizes is None:
        return {}
    first = cells[0]
    demand = cost.Estimate(tokens={(first.data, first.task, first.max_length): mean_tokens}).demand(cells, sizes)
    return demand.terms(demand.slots)


def points(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The packs among a report's rows (as in its JSON) that were measured and counted."""
    packs = [row for row in rows if row["variant"] == "packed" and row["cell_steps_per_second"] and row.get("terms")]
    return [
        Point(row["terms"], row["k"] / row["cell_steps_per_second"], row["build_seconds"] + row["setup_seconds"])
        for row in packs
    ]


def fit(points: Sequence[Point]) -> dict[str, float]:
    """Seconds of each term, none below zero, with the least squares of the relative errors.

    Terms that the rows cannot tell apart, as in all packs of one task and one target set, share their time: a ridge on
    each term's part of a step keeps it from falling to one of them by chance.

    What no row has (gains, matrices made of whole weights) is left out: what is shipped of it holds. `setup` is the
    median.

    Raises:
        BenchError: there are no points.
    """
    if not points:
        raise BenchError("No row has what a fit needs.", "Measure packs of a model that has a config.json.", NOTHING)
    shares = np.array([[point.terms.get(term, 0.0) / point.seconds for term in STEP_TERMS] for point in points])
    widest = shares.max(axis=0)
    scale = np.where(widest > 0, widest, 1.0)
    rows = np.vstack([shares / scale, RIDGE * np.eye(len(STEP_TERMS))])
    solution, _ = nnls(rows, np.append(np.ones(len(points)), np.zeros(len(STEP_TERMS))))
    known = cost.REQUIRED_TERMS | {term for term, most in zip(STEP_TERMS, widest, strict=True) if most}
    found = {term: value for term, value in zip(STEP_TERMS, (solution / scale).tolist(), strict=True) if term in known}
    found["setup"] = median(point.setup for point in points)
    return found


def errors(points: Sequence[Point], known: cost.Coefficients) -> list[float]:
    """How far each step's estimate is from its measured seconds, as a part of them."""
    return [
        abs(sum(known.get(t, 0.0) * point.terms.get(t, 0.0) for t in STEP_TERMS) / point.seconds - 1)
        for point in points
    ]


def verdict(points: Sequence[Point], known: cost.Coefficients) -> str:
    """The fit in a line."""
    off = errors(points, known)
    return f"Cost model, {len(points)} rows: off by {fmean(off):.0%} on average, {max(off):.0%} at worst."


def store(path: Path, device: str, precision: str, coefficients: Mapping[str, float]) -> None:
    """Put the coefficients in a JSON file, beside those of other devices and precisions and what they do not have.

    Raises:
        BenchError: what is there is no such file; it stays as it is.
    """
    tables = _read(path) if path.is_file() else {}
    if not isinstance(tables, dict) or not all(isinstance(own, dict) for own in tables.values()):
        raise BenchError(f"'{path}' has no coefficients of devices.", "Delete it, then measure anew.")
    kept = tables.get(device, {})
    tables[device] = {**kept, precision: {**kept.get(precision, {}), **_rounded(coefficients)}}
    write_atomically(path, _text(tables).encode())


def keep(content: Mapping[str, Any], path: Path) -> str:
    """Fit a report (as in its JSON), store the coefficients, and say how well they fit."""
    own = points(content["rows"])
    known = fit(own)
    store(path, *_place(content), known)
    return verdict(own, known)


def _place(content: Mapping[str, Any]) -> tuple[str, str]:
    """The device, `cpu` for every processor, and the precision of a report."""
    about = content["environment"]
    return "cpu" if about["device"].startswith("cpu") else about["device"], about["precision"]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"'{path}' cannot be read as JSON.", "Delete it, or give another file.") from error


def _rounded(coefficients: Mapping[str, float]) -> dict[str, float]:
    """Four digits of each: more than any of them is known to."""
    return {
        name: value if value == 0 else round(value, 3 - math.floor(math.log10(abs(value))))
        for name, value in coefficients.items()
    }


def _text(tables: Tables) -> str:
    return json.dumps(tables, indent=2, sort_keys=True) + "\n"


def _together(paths: Sequence[Path]) -> dict[tuple[str, str], list[Point]]:
    """The points of all reports, by device and precision.

    Raises:
        BenchError: a file is no report.
    """
    found: dict[tuple[str, str], list[Point]] = {}
    for path in paths:
        content = _read(path)
        try:
            found.setdefault(_place(content), []).extend(points(content["rows"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise BenchError(f"'{path}' is no report of `lora-bench bench`.", "Give its <name>.json.") from error
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit stored reports; the coefficients to the standard output and, with `--out`, into a file."""
    parser = argparse.ArgumentParser(prog="python -m lora_bench.bench.calibrate", description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path, help="<name>.json files of `lora-bench bench`")
    parser.add_argument("--out", type=Path, help="a JSON file to put the coefficients in")
    given = parser.parse_args(arguments)
    tables: Tables = {}
    try:
        for (device, precision), own in _together(given.reports).items():
            known = fit(own)
            tables.setdefault(device, {})[precision] = _rounded(known)
            sys.stderr.write(f"{device}, {precision}. {verdict(own, known)}\n")
            if given.out is not None:
                store(given.out, device, precision, known)
    except BenchError as error:
        sys.stderr.write(f"Error: {error.what}\n{error.hint}\n")
        return error.code
    sys.stdout.write(_text(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The cost model's coefficients (`forecast/devices.py`), fitted to measured rows. Does not need torch.

    python -m lora_bench.bench.calibrate results/bench/a.json --out lora_bench/forecast/devices.json

fits them again from stored benchmarks, separately for each device and precision, and prints them. A row contains
everything that a fit needs: the terms that the model counts for one of its steps, and the measured time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.optimize import nnls

from lora_bench.cell import Cell
from lora_bench.errors import NOTHING, BenchError
from lora_bench.forecast import cost
from lora_bench.forecast.devices import REQUIRED_TERMS
from lora_bench.forecast.geometry import load_geometry
from lora_bench.forecast.pack import STEP_TERMS, Coefficients
from lora_bench.records.files import read_file, write_atomically

RIDGE = 0.01  # chosen, small compared with the errors of measurements

CoefficientTables = dict[str, dict[str, dict[str, float]]]  # by device, precision and term


@dataclass(frozen=True)
class MeasuredPack:
    """One measured pack.

    Attributes:
        terms: The count of each term in one step of all cells.
        seconds: The seconds of that step.
        setup: The seconds before the first step.
    """

    terms: Mapping[str, float]
    seconds: float
    setup: float = 0.0


def count_terms(cells: Sequence[Cell], mean_tokens: float, model: str) -> dict[str, float]:
    """Count the terms of a pack's step.

    Args:
        cells: The pack.
        mean_tokens: The mean tokens of a training sequence.
        model: The model's location.

    Returns:
        The counts; empty if the model's sizes are not known.
    """
    geometry = load_geometry(model)
    if geometry is None:
        return {}
    first = cells[0]
    estimate = cost.Estimate(tokens={(first.data, first.task, first.max_length): mean_tokens})
    demand = estimate.demand(cells, geometry)
    return demand.terms(demand.slots)


def measured_packs(content: Mapping[str, Any]) -> list[MeasuredPack]:
    """Return the packs of a report (as in its JSON) that have a measurement and terms.

    Raises:
        BenchError: The encoder did not run in the fused form, which the coefficients describe.
    """
    way = content["environment"].get("way", "fused")  # reports from before it was noted are all of that form
    if way != "fused":
        what = f"The model runs on {way}; coefficients are fitted to the fused form, which it does not have."
        raise BenchError(what, "Measure a model of BERT's form, such as FacebookAI/roberta-base.", NOTHING)
    packs = [
        row
        for row in content["rows"]
        if row["variant"] == "packed" and row["cell_steps_per_second"] and row.get("terms")
    ]
    return [
        MeasuredPack(row["terms"], row["k"] / row["cell_steps_per_second"], row["build_seconds"] + row["setup_seconds"])
        for row in packs
    ]


def fit(packs: Sequence[MeasuredPack]) -> dict[str, float]:
    """Fit the seconds of each term, by least squares of the relative errors; none is negative.

    Terms that the packs cannot tell apart, as when all packs are of one task and one target set, share their time.
    Without the ridge on each term's part of a step, one of them might get all of it by chance.

    Optional terms that no pack has (such as gains) are left out, so that the shipped coefficients stay valid for them.
    `setup` is the median over the packs.

    Raises:
        BenchError: There are no packs.
    """
    if not packs:
        raise BenchError("No row has what a fit needs.", "Measure packs of a model that has a config.json.", NOTHING)
    # Minimise Σ_i (Σ_t x_t r_it / m_t - 1)² + RIDGE² Σ_t x_t² over x_t ≥ 0, where r_it is the count of term t in pack i
    # over the measured seconds and m_t = max_i r_it. The coefficient of the term is x_t / m_t, so that x_t is its
    # largest part of a step.
    relative = np.array([[pack.terms.get(term, 0.0) / pack.seconds for term in STEP_TERMS] for pack in packs])
    largest = relative.max(axis=0)
    scale = np.where(largest > 0, largest, 1.0)
    equations = np.vstack([relative / scale, RIDGE * np.eye(len(STEP_TERMS))])
    solution, _ = nnls(equations, np.append(np.ones(len(packs)), np.zeros(len(STEP_TERMS))))
    fitted = REQUIRED_TERMS | {term for term, share in zip(STEP_TERMS, largest, strict=True) if share}
    values = zip(STEP_TERMS, (solution / scale).tolist(), strict=True)
    coefficients = {term: value for term, value in values if term in fitted}
    coefficients["setup"] = median(pack.setup for pack in packs)
    return coefficients


def relative_errors(packs: Sequence[MeasuredPack], coefficients: Coefficients) -> list[float]:
    """Return how far the computed seconds of each step are from the measured ones, as a fraction of these."""
    return [
        abs(sum(coefficients.get(term, 0.0) * pack.terms.get(term, 0.0) for term in STEP_TERMS) / pack.seconds - 1)
        for pack in packs
    ]


def describe_fit(packs: Sequence[MeasuredPack], coefficients: Coefficients) -> str:
    """Describe the quality of a fit in one line."""
    errors = relative_errors(packs, coefficients)
    return f"Cost model, {len(packs)} rows: off by {fmean(errors):.0%} on average, {max(errors):.0%} at worst."


def store_coefficients(path: Path, device: str, precision: str, coefficients: Mapping[str, float]) -> None:
    """Write coefficients to a JSON file.

    Those of other devices and precisions, and terms that the new ones lack, stay in the file.

    Raises:
        BenchError: The existing file is of another kind; it is not changed.
    """
    tables = _read_json(path) if path.is_file() else {}
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise BenchError(f"'{path}' has no coefficients of devices.", "Delete it, then measure anew.")
    by_precision = tables.get(device, {})
    updated = {**by_precision.get(precision, {}), **_rounded(coefficients)}
    tables[device] = {**by_precision, precision: updated}
    write_atomically(path, _as_json(tables).encode())


def fit_and_store(content: Mapping[str, Any], path: Path) -> str:
    """Fit the rows of a report (as in its JSON), store the coefficients, and describe the fit in one line."""
    packs = measured_packs(content)
    coefficients = fit(packs)
    store_coefficients(path, *_device_and_precision(content), coefficients)
    return describe_fit(packs, coefficients)


def _device_and_precision(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return the device and the precision of a report; every processor is called `cpu`."""
    environment = content["environment"]
    device = "cpu" if environment["device"].startswith("cpu") else environment["device"]
    return device, environment["precision"]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_file(path))
    except (OSError, ValueError) as error:
        raise BenchError(f"'{path}' cannot be read as JSON.", "Delete it, or give another file.") from error


def _rounded(coefficients: Mapping[str, float]) -> dict[str, float]:
    """Round to four significant digits, more than any coefficient is known to."""
    return {
        term: value if value == 0 else round(value, 3 - math.floor(math.log10(abs(value))))
        for term, value in coefficients.items()
    }


def _as_json(tables: CoefficientTables) -> str:
    return json.dumps(tables, indent=2, sort_keys=True) + "\n"


def _read_packs(paths: Sequence[Path]) -> dict[tuple[str, str], list[MeasuredPack]]:
    """Return the packs of several reports by device and precision.

    Raises:
        BenchError: A file is not a report.
    """
    packs: dict[tuple[str, str], list[MeasuredPack]] = {}
    for path in paths:
        content = _read_json(path)
        try:
            packs.setdefault(_device_and_precision(content), []).extend(measured_packs(content))
        except (KeyError, TypeError, AttributeError) as error:
            raise BenchError(f"'{path}' is not a report of `lora-bench bench`.", "Give its <name>.json.") from error
    return packs


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit stored reports; print the coefficients and, with `--out`, also write them to a file."""
    parser = argparse.ArgumentParser(prog="python -m lora_bench.bench.calibrate", description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path, help="<name>.json files of `lora-bench bench`")
    parser.add_argument("--out", type=Path, help="a JSON file to put the coefficients in")
    options = parser.parse_args(arguments)
    tables: CoefficientTables = {}
    try:
        for (device, precision), packs in _read_packs(options.reports).items():
            coefficients = fit(packs)
            tables.setdefault(device, {})[precision] = _rounded(coefficients)
            sys.stderr.write(f"{device}, {precision}. {describe_fit(packs, coefficients)}\n")
            if options.out is not None:
                store_coefficients(options.out, device, precision, coefficients)
    except BenchError as error:
        sys.stderr.write(f"Error: {error.what}\n{error.hint}\n")
        return error.code
    sys.stdout.write(_as_json(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())

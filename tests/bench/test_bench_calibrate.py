"""The cost model's coefficients: recovered from synthetic rows, stored beside others, fitted to stored reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_bench.bench import calibrate, workload
from lora_bench.bench.calibrate import MeasuredPack, fit
from lora_bench.bench.rows import BenchRow
from lora_bench.errors import NOTHING, BenchError
from lora_bench.forecast.pack import STEP_TERMS
from tests.bench.bench_factory import report, row, work

LIKELY = {
    "layer": 2e-4,
    "flop": 1e-14,
    "byte": 4e-13,
    "adapter_byte": 6e-13,
    "value": 3e-11,
    "dress_byte": 5e-13,
    "adapter_flop": 6e-16,
    "operand": 1e-11,
    "remade": 5e-11,
}  # seconds
FRACTIONS = {
    "layer": 1.0,
    "flop": 2e10,
    "byte": 5e8,
    "adapter_byte": 3e8,
    "value": 7e6,
    "dress_byte": 4e8,
    "adapter_flop": 3e11,
    "operand": 2e7,
    "remade": 4e6,
}  # counts


def made(coefficients: dict[str, float], seed: int, count: int = 60, noise: float = 0.0) -> list[MeasuredPack]:
    """Packs whose terms vary independently over a factor of 30, with the seconds that the coefficients give."""
    generator = np.random.default_rng(seed)
    points = []
    for _ in range(count):
        terms = {term: FRACTIONS[term] * float(10 ** generator.uniform(0, 1.5)) for term in STEP_TERMS}
        seconds = sum(coefficients[term] * terms[term] for term in STEP_TERMS)
        points.append(MeasuredPack(terms, seconds * float(1 + noise * generator.uniform(-1, 1)), setup=2.0))
    return points


@given(st.lists(st.floats(0.2, 5.0), min_size=len(STEP_TERMS), max_size=len(STEP_TERMS)), st.integers(0, 2**32 - 1))
def test_known_coefficients_are_recovered(factors: list[float], seed: int) -> None:
    truth = {term: LIKELY[term] * factor for term, factor in zip(STEP_TERMS, factors, strict=True)}
    points = made(truth, seed)
    known = fit(points)
    assert max(calibrate.relative_errors(points, known)) < 0.01
    for term in STEP_TERMS:
        part = max(truth[term] * point.terms[term] / point.seconds for point in points)
        assert known[term] == pytest.approx(truth[term], abs=0.02 * truth[term] / part)


@given(st.sets(st.sampled_from(STEP_TERMS), min_size=1), st.integers(0, 2**32 - 1))
def test_no_coefficient_is_negative(present: set[str], seed: int) -> None:
    """Neither with noise, nor of a term that costs nothing, nor of one that no row has."""
    points = made({term: LIKELY[term] * (term in present) for term in STEP_TERMS}, seed, noise=0.1)
    without = [MeasuredPack({**point.terms, "flop": 0.0}, point.seconds, point.setup) for point in points]
    for known in (fit(points), fit(without)):
        assert min(known.values()) >= 0
        assert known.keys() == {*STEP_TERMS, "setup"}
    assert fit(without)["flop"] == 0


def test_noise_of_five_percent_leaves_an_error_like_it() -> None:
    points = made(LIKELY, 1, noise=0.05)
    off = calibrate.relative_errors(points, fit(points))
    assert sum(off) / len(off) < 0.05
    assert calibrate.describe_fit(points, fit(points)).startswith("Cost model, 60 rows: off by ")


def test_terms_that_rows_cannot_distinguish_share_their_time() -> None:
    """All are multiples of one: none gets everything."""
    points = [
        MeasuredPack(
            {"layer": 12.0, "flop": k * 1e10, "byte": k * 1e8, "adapter_byte": k * 1e7, "value": 0.0}, 0.01 + k / 500
        )
        for k in (1, 4, 16, 64)
    ]
    known = fit(points)
    parts = [known["flop"] * 1e10, known["byte"] * 1e8, known["adapter_byte"] * 1e7]
    assert parts == pytest.approx([0.002 / 3] * 3, rel=0.02)
    assert max(calibrate.relative_errors(points, known)) < 0.01


def test_setup_is_the_median() -> None:
    points = [MeasuredPack(dict.fromkeys(STEP_TERMS, 1.0), 1.0, setup) for setup in (1.0, 9.0, 3.0, 4.0)]
    assert fit(points)["setup"] == 3.5


def test_only_packs_with_a_measurement_and_terms_are_fitted() -> None:
    terms = dict.fromkeys(STEP_TERMS, 2.0)
    good = row("packed", 20.0, k=8, terms=terms)
    bare = [
        row("trainer", 9.0),
        row("packed", 5.0),
        BenchRow("packed", "rte", "qv", "lora", 9, terms=terms, error="no"),
    ]
    found = calibrate.measured_packs(report(*bare, good).as_json())
    assert found == [MeasuredPack(terms, 8 / 20.0, pytest.approx(0.3))]  # type: ignore[arg-type]
    with pytest.raises(BenchError, match="config"):
        fit([])


def test_only_the_fused_form_is_fitted() -> None:
    content = report(row("packed", 20.0, k=8, terms=dict.fromkeys(STEP_TERMS, 2.0))).as_json()
    content["environment"]["way"] = "windows"
    with pytest.raises(BenchError, match="fused form") as raised:
        calibrate.measured_packs(content)
    assert raised.value.code == NOTHING


def test_a_model_without_sizes_has_no_terms(tmp_path: Path) -> None:
    cells = workload.make_cells(work(), "qv", "lora", 2, 64)
    assert calibrate.count_terms(cells, 10.0, str(tmp_path)) == {}


def test_storing_merges_and_rounds(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "devices.json"
    calibrate.store_coefficients(path, "cpu", "float32", {"layer": 1.23456e-5, "flop": 0.0})
    calibrate.store_coefficients(path, "a GPU", "bf16", {"layer": 2.0})
    calibrate.store_coefficients(path, "a GPU", "float32", {"layer": 3.0})
    calibrate.store_coefficients(path, "a GPU", "bf16", {"layer": 4.0, "start": 1.25})
    calibrate.store_coefficients(path, "a GPU", "bf16", {"layer": 5.0})
    assert json.loads(path.read_text()) == {
        "cpu": {"float32": {"layer": 1.235e-5, "flop": 0.0}},
        "a GPU": {"bf16": {"layer": 5.0, "start": 1.25}, "float32": {"layer": 3.0}},
    }


def test_coefficients_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "devices.json"
    calibrate.store_coefficients(path, "cpu", "float32", {"layer": 1.0})
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        calibrate.store_coefficients(path, "cpu", "bf16", {"layer": 2.0})
    assert [each.name for each in tmp_path.iterdir()] == ["devices.json"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[1]", '{"cpu": 3}', "\xff"])
def test_a_file_of_another_kind_is_not_changed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "devices.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BenchError):
        calibrate.store_coefficients(path, "cpu", "float32", {"layer": 1.0})
    assert path.read_bytes() == text.encode("latin-1")


def stored(path: Path, device: str, precision: str, seed: int) -> list[MeasuredPack]:
    """Write a report to disk and return its packs."""
    points = made(LIKELY, seed, count=8)
    rows = [row("packed", 4 / point.seconds, k=4, terms=dict(point.terms)).as_json() for point in points]
    for each in rows:
        each["peak_memory_bytes"] = None
    content: dict[str, Any] = {"environment": {"device": device, "precision": precision}, "rows": rows}
    path.write_text(json.dumps(content))
    return points


def test_the_shipped_file_is_rebuilt_from_stored_reports(tmp_path: Path) -> None:
    """Reports of one device and precision are fitted together; every processor is `cpu`. Torch is not needed."""
    one, two, other = (tmp_path / f"{name}.json" for name in "abc")
    together = stored(one, "a GPU", "bf16", 1) + stored(two, "a GPU", "bf16", 2)
    stored(other, "cpu, x86_64, 4 threads", "float32", 3)
    out = tmp_path / "devices.json"
    command = [sys.executable, "-m", "lora_bench.bench.calibrate", str(one), str(two), str(other), "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    tables = json.loads(ended.stdout)
    assert json.loads(out.read_text()) == tables
    assert {device: list(own) for device, own in tables.items()} == {"a GPU": ["bf16"], "cpu": ["float32"]}
    expected = {term: value for term, value in fit(together).items() if term in STEP_TERMS}
    assert {term: tables["a GPU"]["bf16"][term] for term in STEP_TERMS} == pytest.approx(expected, rel=1e-3)
    assert "a GPU, bf16. Cost model, 16 rows" in ended.stderr


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"environment": {}, "rows": []}'])
def test_a_file_that_is_not_a_report_gives_two_lines(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "no.json"
    path.write_text(text)
    assert calibrate.main([str(path)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 2


def test_fitting_needs_no_torch() -> None:
    probe = "import sys; from lora_bench.bench import calibrate; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"

"""The configs that come with the package: they load, have the published settings, and count as they should."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from lora_bench import methods
from lora_bench.errors import BenchError
from lora_bench.forecast.demand import adapter_values
from lora_bench.forecast.geometry import load_geometry
from lora_bench.grid import presets as preset_files
from lora_bench.grid.cells import Grid, expand
from lora_bench.grid.config import load_config
from lora_bench.grid.presets import find_preset, presets
from tests.fake_sources import fake_sources

SOURCES = fake_sources(lambda location: location, lambda location, task: location)
NAMES = ["lora", "paper", "quick", "smoke", "xs"]
OURS = ["base", "base-x3", "methods", "minilm", "minilm-rates", "minilm-sweep"]  # no setting of theirs is a paper's


def shipped(name: str) -> Grid:
    return expand(load_config(find_preset(name)), {}, SOURCES)


# ---- the shipped configs


def test_the_shipped_configs_are_the_known_ones() -> None:
    assert sorted(presets()) == sorted(NAMES + OURS)


@pytest.mark.parametrize("name", NAMES + OURS)
def test_every_shipped_config_loads_and_expands(name: str) -> None:
    config = load_config(find_preset(name))
    grid = shipped(name)
    assert config.name == grid.name == name
    assert config.description
    assert len({cell.id for cell in grid.cells}) == len(grid.cells) > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_says_whether_it_is_the_papers_or_ours(name: str) -> None:
    lines = find_preset(name).read_text().splitlines()
    body = lines[lines.index("defaults:") + 1 : lines.index("notes:")]
    for above, line in zip(["", *body], body, strict=False):
        if re.match(r"\s+(- )?\w+: ", line):
            assert re.search(r"# (paper|ours)\b", line) or re.match(r"\s+# (paper|ours)\b", above), line


def test_the_count_of_smoke() -> None:
    head, lora, xs, mini = 1, 3, 1, 3
    assert len(shipped("smoke").cells) == 4 * (head + lora + xs + mini)


def test_the_count_of_quick() -> None:
    head, lora, mini, xs = 1, 2, 2, 2
    assert len(shipped("quick").cells) == 4 * (head + lora + mini + xs)


def test_the_count_of_lora() -> None:
    assert len(shipped("lora").cells) == 8 * 5 * 2


def test_the_count_of_xs() -> None:
    long, short = 3 * 6 * (3 * 3) * 5, 3 * 6 * (2 * 2) * 5
    head = 3 * 3 * 5 + 3 * 2 * 5
    mnli = (6 + 1) * 5
    assert len(shipped("xs").cells) == long + short + head + mnli


def test_the_count_of_paper_follows_from_its_definition() -> None:
    raw = yaml.safe_load(find_preset("paper").read_text())
    common, count = raw["defaults"], 0
    for block in raw["blocks"]:
        given_here = common | block
        many = {key: len(value) if isinstance(value, list) else 1 for key, value in given_here.items()}
        for method in np.atleast_1d(given_here["method"]):
            count += math.prod(many.get(key, 1) for key in methods.get(method).parameters | {"task", "seed"})
    entries = [entry for entry in shipped("paper").entries if entry.role == "grid"]
    assert len(entries) == count == 8 * 5 * (1 + 1 + 2 * 5 * 16 + 2 * 5 + 2 * 5 + 5 + 5)


def test_smoke_needs_no_network() -> None:
    grid = shipped("smoke")
    assert {(cell.model, cell.data) for cell in grid.cells} == {("sample", "sample")}


def test_paper_searches_rates_around_each_methods_own() -> None:
    """At two ranks and one (a, b), two seeds, three or four rates, for each task."""
    trials = shipped("paper").cells
    assert {cell.seed for cell in trials} == {100, 101}
    assert len(trials) == 8 * 2 * (3 + 3 + 2 * 2 * 3 * 3 + 2 * 2 * 4)
    for method in ("full", "head", "lora", "mini", "xs", "cora", "cora-init"):
        tried = sorted({cell.lr for cell in trials if cell.method == method})
        assert tried[0] < methods.get(method).default_lr < tried[-1]
        assert methods.get(method).default_lr in tried


@pytest.mark.parametrize("name", ["lora", "xs"])
def test_tasks_that_the_paper_starts_from_mnli_start_there(name: str) -> None:
    cells = {cell.id: cell for cell in shipped(name).cells}
    starts = {cell.task: cells[cell.start].task for cell in cells.values() if cell.start is not None}
    assert starts == dict.fromkeys(("mrpc", "rte", "stsb"), "mnli")


LORA_TABLE_9 = {
    "mnli": (16, 30, 5e-4), "sst2": (16, 60, 5e-4), "mrpc": (16, 30, 4e-4), "cola": (32, 80, 4e-4),
    "qnli": (32, 25, 4e-4), "qqp": (16, 25, 5e-4), "rte": (32, 80, 5e-4), "stsb": (16, 40, 4e-4),
}  # fmt: skip


def test_lora_has_the_published_settings() -> None:
    cells = [cell for cell in shipped("lora").cells if cell.method == "lora"]
    assert {cell.task: (cell.batch_size, cell.epochs, cell.lr) for cell in cells} == LORA_TABLE_9
    assert {(cell.rank, cell.alpha, cell.targets, cell.max_length, cell.head_lr) for cell in cells} == {
        (8, 8.0, "qv", 512, None)
    }


@pytest.mark.parametrize("name", ["lora", "xs"])
def test_tasks_that_the_paper_starts_from_mnli_say_so(name: str) -> None:
    grid = shipped(name)
    for cell in grid.cells:
        said = any("MNLI-tuned" in note for note in grid.notes_for(cell))
        assert said == (cell.task in {"mrpc", "rte", "stsb"})


GIVEN_SIZES = {"tinylora", "vera", "svft", "bitfit", "ia3", "red"}


def test_methods_has_every_method_at_the_size_that_it_declares() -> None:
    """On 6 layers of 384: LoRA's 165,888 values at rank 4, or near; rank schedules begin with half as many more."""
    geometry = load_geometry("sentence-transformers/all-MiniLM-L6-v2")
    assert geometry is not None
    trials = shipped("methods").cells
    assert {cell.method for cell in trials} == set(methods.RECIPES)
    assert len(shipped("methods").entries) == 3 * (len(methods.RECIPES) + 1) * (3 * 2 + 5)  # Uni-LoRA has two sizes
    for cell in trials:
        if not methods.of(cell).adapts or cell.method in GIVEN_SIZES or cell.a == 23040:
            continue
        declared = 165_888 * (1.5 if methods.of(cell).memory else 1)
        assert adapter_values(cell, geometry) == pytest.approx(declared, rel=0.13), cell.method


# ---- presets and files


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(BenchError, match="Did you mean 'smoke'"):
        find_preset("smok")


def test_presets_are_found_in_a_wheel_and_only_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "lora_bench"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "tiny.yaml").write_text("name: tiny\n")
    stranger = tmp_path / "site-packages" / "configs"
    stranger.mkdir()
    (stranger / "other.yaml").write_text("name: other\n")
    monkeypatch.setattr(preset_files, "__file__", str(package / "grid" / "presets.py"))
    assert presets() == {"tiny": package / "configs" / "tiny.yaml"}

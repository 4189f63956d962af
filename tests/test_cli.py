"""The command line as a user meets it: exit codes, messages, what is written."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import lora_bench
from lora_bench.cli import caches, doctor, paths
from lora_bench.errors import NOTHING, BenchError
from lora_bench.sample import DATA
from lora_bench.text import discreet

TINY = ["--preset", "smoke", "--task", "sst2", "--method", "mini", "--rank", "16", "--epochs", "1"]


def bench(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `lora-bench` in a process of its own, without a network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    env |= {"XDG_CACHE_HOME": str(cwd / "cache"), **environment}
    command = [sys.executable, "-m", "lora_bench", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run of the smoke preset, narrowed to LoRA-Mini on SST-2."""
    folder = tmp_path_factory.mktemp("cli")
    return folder, bench("run", *TINY, cwd=folder)


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the smoke results."""
    with (folder / "results/smoke/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_writes_a_row_with_the_formulas_count(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Adapter parameters are r (a + b) × modules."""
    folder, ran = trained
    assert ran.returncode == 0, ran.stderr
    found = rows(folder)
    (row,) = found
    assert row["status"] == "done"
    assert int(row["adapter_params"]) == 16 * (int(row["a"]) + int(row["b"])) * int(row["modules"])
    stored = folder / "results/smoke/adapters" / row["id"] / "adapter.safetensors"
    assert stored.stat().st_size == int(row["adapter_bytes"])
    assert "Traceback" not in ran.stderr


def test_second_run_trains_nothing(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The same command again says that all is there, and changes no byte."""
    folder, _ = trained
    before = (folder / "results/smoke/metrics.csv").read_bytes()
    again = bench("run", *TINY, cwd=folder)
    assert again.returncode == 0
    assert "there already; 0 to train" in again.stdout
    assert (folder / "results/smoke/metrics.csv").read_bytes() == before


def test_show_list_and_report(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """A record as JSON, the runs as a table, the report with its figure."""
    folder, _ = trained
    cell_id = rows(folder)[0]["id"]
    shown = bench("show", cell_id, cwd=folder)
    assert json.loads(shown.stdout)["id"] == cell_id
    assert cell_id in bench("list", "runs", cwd=folder).stdout
    reported = bench("report", cwd=folder)
    assert reported.returncode == 0, reported.stderr
    assert list((folder / "results/smoke/figures").glob("*.png"))


def test_without_a_network_it_ends_soon_and_says_the_ways_out(tmp_path: Path) -> None:
    """Exit 3 in under 10 s of its own, naming the three ways out."""
    began = time.perf_counter()
    ran = bench("run", "--task", "sst2", "--method", "mini", "--rank", "16", cwd=tmp_path, HF_HUB_OFFLINE="0",
                HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hf"))  # fmt: skip
    assert ran.returncode == 3, ran.stderr
    for way in ("--preset smoke", "--model DIR", "--data-dir DIR"):
        assert way in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 2
    assert time.perf_counter() - began < 60


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("run", "--task", "sst3", "--method", "mini"), 2, "sst2"),
        (("run", "--task", "sst2", "--method", "minni"), 2, "mini"),
        (("run",), 2, "--task"),
        (("run", "--preset", "smok"), 2, "smoke"),
        (("run", "--preset", "smoke", "--rank", "0"), 2, "rank"),
        (("run", "--preset", "smoke", "--set", "ranks=3"), 2, "rank"),
        (("run", "--preset", "smoke", "--pack", "many"), 2, "--pack"),
        (("run", "--task", "sst2", "--method", "lora", "--model", "./nowhere"), 3, "./nowhere"),
        (("run", "--preset", "smoke", "--data-dir", "nowhere"), 3, "nowhere"),
        (("run", "--preset", "smoke", "--device", "cuda:9"), 3, "CUDA"),
        (("list", "method"), 2, "methods"),
        (("show", "abc"), 4, "no results under 'results'"),
        (("show", "abc", "--results", "nothing"), 4, "list runs"),
        (("report", "--results", "nothing"), 4, "lora-bench run"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_errors_are_short_and_have_the_right_code(tmp_path: Path, args: tuple[str, ...], code: int, words: str) -> None:
    """What went wrong and how to fix it, no traceback."""
    ran = bench(*args, cwd=tmp_path)
    assert ran.returncode == code, ran.stderr + ran.stdout
    assert words in ran.stderr + ran.stdout
    assert "Traceback" not in ran.stderr


def test_torch_stays_out_of_what_needs_it_not(tmp_path: Path) -> None:
    """`--help`, `plan`, `list` and an empty `report` never import torch."""
    probe = (
        "import sys, lora_bench.cli.app as c\ntry: c.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    for args in (["--help"], ["plan", "--preset", "smoke"], ["list", "methods"], ["list", "tasks"], ["report"]):
        done = subprocess.run([sys.executable, "-c", probe, *args], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


LOADED = """
import sys
before = set(sys.modules)  # what the installation imports when Python starts
from lora_bench.cli.app import main
try:
    main()
except SystemExit:
    pass
names = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print("loaded", *sorted(name for name in names if not name.startswith("_")), file=sys.stderr)
"""
# What typer and rich import themselves, the second with more than `--help` on the command line.
LIGHT = {"annotated_doc", "attr", "attrs", "click", "lora_bench", "markdown_it", "mdurl", "pygments", "rich"}
LIGHT |= {"shellingham", "typer", "typing_extensions"}
TYPER_PARSES_WITH = {"annotated_types", "pydantic", "pydantic_core", "typing_inspection"}


def loaded(cwd: Path, *args: str, **environment: str) -> set[str]:
    """The libraries that a command has imported when it ends."""
    command = [sys.executable, "-c", LOADED, *args]
    ended = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    word, *names = ended.stderr.splitlines()[-1].split()
    assert word == "loaded"
    return set(names)


def test_help_imports_typer_and_rich_alone(tmp_path: Path) -> None:
    """Libraries are counted, not seconds: one that is imported by accident shows on every machine."""
    assert loaded(tmp_path, "--help") - LIGHT == set()
    for command in ("run", "plan", "report", "list", "show", "export", "bench"):
        assert loaded(tmp_path, command, "--help") - LIGHT - TYPER_PARSES_WITH == set(), command


def complete(cwd: Path, words: str) -> tuple[list[str], set[str]]:
    """The candidates of bash for the last word, and the libraries that it took."""
    environment = {"_LORA_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ended = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    return ended.stdout.split(), set(ended.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ("lora-bench che", ["check"]),
        ("lora-bench run --task s", ["sst2", "stsb"]),
        ("lora-bench plan --task sst2 --method mini-s", ["mini-shared", "mini-svd"]),
        ("lora-bench run --preset sm", ["smoke"]),
        ("lora-bench list ", ["methods", "tasks", "runs"]),
        ("lora-bench export abc --to ", ["peft", "merged", "glue", "eee"]),
        ("lora-bench run --track t", ["tensorboard", "trackio"]),
    ],
)
def test_names_are_completed(words: str, candidates: list[str], tmp_path: Path) -> None:
    found, libraries = complete(tmp_path, words)
    assert found == candidates
    assert libraries - LIGHT - TYPER_PARSES_WITH == set()


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert bench("--version", cwd=tmp_path).stdout == f"lora-bench {lora_bench.__version__}\n"


@pytest.mark.parametrize("width", [80, 120])
def test_no_paragraph_of_a_help_text_is_broken_twice(width: int, tmp_path: Path) -> None:
    """Where the docstring's own line ends survive, a line ends early and the next is a few words long."""
    for command in ("run", "plan", "export", "bench", "check"):
        text = bench(command, "--help", cwd=tmp_path, COLUMNS=str(width)).stdout.partition("╭")[0]
        for paragraph in text.strip().split("\n" + " " * width + "\n"):
            first_words = [line.split()[0] for line in paragraph.splitlines()[1:]]
            for line, word in zip(paragraph.splitlines(), first_words, strict=False):
                assert len(line.strip()) + len(word) + 1 > width - 2, line


def test_a_home_folder_is_understood_in_every_path(tmp_path: Path) -> None:
    """No shell expands `~` behind an equals sign."""
    home = tmp_path / "home"
    shutil.copytree(DATA, home / "glue")
    (home / "grid.yaml").write_text(
        "name: grid\ndefaults: {task: sst2, model: sample, method: [mine, head], epochs: 1}\n"
    )
    (home / "mine.py").write_text(
        "from lora_bench.methods.lora import Lora\n\n\nclass Mine(Lora):\n    name = title = source = 'mine'\n\n\n"
        "RECIPE = Mine()\n"
    )
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    grid = ("--config=~/grid.yaml", "--include=~/mine.py", "--data-dir=~/glue", "--results=~/runs")
    ran = bench("run", *grid, "--method", "head", cwd=cwd, HOME=str(home))
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["adapters", "cells", "metrics.csv"]
    reported = bench("report", "--results=~/runs", "--out=~/out", cwd=cwd, HOME=str(home))
    assert reported.returncode == 0, reported.stderr
    assert (home / "out" / "report.html").is_file()
    assert bench("list", "runs", "--results=~/runs", cwd=cwd, HOME=str(home)).returncode == 0
    assert not list(cwd.glob("~*"))
    nobody = bench("list", "runs", "--results=~nobody-of-this-name/runs", cwd=cwd, HOME=str(home))
    assert nobody.returncode == 2
    assert "'~nobody-of-this-name' of '~nobody-of-this-name/runs' is not a home folder" in nobody.stderr


def test_plan_takes_every_option_of_run(tmp_path: Path) -> None:
    """One word of the command changes."""
    options = ("--no-save", "--offline", "--debug", "--device", "cpu", "--pack", "2", "--retry", "failed")
    planned = bench("plan", *TINY, *options, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "smoke: 1 cell; 1 to train in 1 pack on cpu" in planned.stdout


NOBODY = """
import os, pwd
def none(*_): raise KeyError("no such user")
pwd.getpwuid = none
os.environ.pop("HOME", None)
os.environ.pop("XDG_CACHE_HOME", None)
from lora_bench.cli.app import main
main()
"""


def test_a_user_without_a_home_is_served(tmp_path: Path) -> None:
    """As in a container that runs under a number: caches are in a temporary folder, which is said."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", NOBODY, "run", *TINY]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    (folder,) = tmp_path.glob("lora-bench-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ran.stderr.strip() == (
        f"Note: there is no home folder, so caches are in {folder}. Set HOME or XDG_CACHE_HOME to keep them."
    )
    assert any((folder / "lora-bench").iterdir())
    assert not list(tmp_path.glob("~*"))
    assert rows(tmp_path)[0]["status"] == "done"


def test_a_temporary_folder_that_others_may_write_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / f"lora-bench-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"lora-bench-{os.getuid()}").chmod(0o777)
    assert "there is no home folder" in caches.ensure_cache_home()
    assert caches.cache_folder().parent.parent == tmp_path
    assert caches.cache_folder().parent.stat().st_mode & 0o777 == 0o700
    assert caches.ensure_cache_home() == ""
    assert discreet("under /some/folder/file") == "under …/file"


def test_doctor_says_whether_libraries_stay_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    assert "compiled at every start" in doctor._bytecode().finding
    for name in ("torch", "transformers"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        compiled = Path(importlib.util.cache_from_source(str(spec.origin)))
        compiled.parent.mkdir(parents=True)
        compiled.touch()
    assert doctor._bytecode() == doctor.Check("start-up", True, "libraries are compiled once")


def test_the_newest_results_are_read_where_none_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match="There are no results under 'results'") as caught:
        paths.results_folder(None)
    assert caught.value.code == NOTHING
    for number, name in enumerate(("smoke", "adhoc", "paper")):
        (tmp_path / "results" / name / "cells").mkdir(parents=True)
        os.utime(tmp_path / "results" / name / "cells", (number, number))
    (tmp_path / "results" / "notes").mkdir()
    (tmp_path / "results" / "adhoc" / "metrics.csv").touch()
    assert paths.results_folder(None) == Path("results/adhoc")
    assert "Reading results/adhoc (the newest" in capsys.readouterr().err
    assert paths.results_folder(Path("other")) == Path("other")
    assert capsys.readouterr().err == ""

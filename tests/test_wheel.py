"""The package as users install it: a wheel, built from the source distribution, outside of the repository.

Its requirements are those of the environment that runs the tests, which the new one sees by their folder alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("lora_bench", "configs", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
FIRST = "--model sample --task wnli --method head --method mini --rank 4 --epochs 1 --lr 4e-3 --results results/first"
COMMANDS = (
    "plan --preset smoke",
    f"run {FIRST}",
    "list runs --results results/first",
    "report --results results/first",
    "export ID --to peft --results results/first --out peft",
    "export --to eee --results results/first --out scores",
    "check lora",
)


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a distribution with the backend that pyproject.toml names."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    ended = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return out / ended.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel: its folder of programs."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    with tarfile.open(build("sdist", source, folder)) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = build("wheel", unpacked, folder)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--no-compile", str(wheel)], check=True)
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


@pytest.mark.timeout(900)  # half a minute of work, on machines that have much else to do
def test_an_installed_wheel_runs_outside_of_the_repository(environment: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*command: str, text: str = "") -> str:
        ended = subprocess.run(
            command, input=text, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    python = str(environment / "python")
    location = run(python, "-c", "import lora_bench; print(lora_bench.__file__)").strip()
    assert Path(location).is_relative_to(environment.parent)
    assert run(str(environment / "lora-bench"), "--version").startswith("lora-bench ")
    runner = str(ROOT / "tests" / "tools" / "run_commands.py")
    outputs = run(python, runner, text=json.dumps([command.split() for command in COMMANDS])).splitlines()
    for command, line in zip(COMMANDS, outputs, strict=True):
        code, output = json.loads(line)
        assert code == 0, f"{command}\n{output}"
    assert (tmp_path / "results" / "first" / "report.html").is_file() and list((tmp_path / "scores").rglob("*.json"))

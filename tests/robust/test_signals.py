"""The command under signals: it saves, says so, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RUN = ["--preset", "smoke", "--task", "sst2", "--method", "head", "--seed", "0", "--epochs", "400", "--results", "out"]


def start(cwd: Path, *args: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, without a network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
    env |= {"XDG_CACHE_HOME": str(cwd / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, *args], cwd=cwd, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def once(running: subprocess.Popen[str]) -> None:
    """As `kill` does."""
    running.send_signal(signal.SIGTERM)


def hang_up(running: subprocess.Popen[str]) -> None:
    """As a terminal does that is closed."""
    running.send_signal(signal.SIGHUP)


def twice(running: subprocess.Popen[str]) -> None:
    """As a scheduler does that ends the group, and a launcher that forwards what it gets."""
    os.killpg(running.pid, signal.SIGTERM)
    time.sleep(0.003)
    running.send_signal(signal.SIGTERM)


def many(running: subprocess.Popen[str]) -> None:
    """Signals of all kinds at once."""
    for _ in range(30):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            running.send_signal(number)


@pytest.mark.parametrize("signals", [once, hang_up, twice, many])
def test_a_run_that_is_ended_saves_and_says_how_to_go_on(
    tmp_path: Path, signals: Callable[[subprocess.Popen[str]], None]
) -> None:
    running = start(tmp_path, "-m", "lora_bench", "run", *RUN)
    assert running.stdout is not None
    for line in running.stdout:
        if "epoch 2/400" in line:
            break
    began = time.monotonic()
    signals(running)
    _, errors = running.communicate(timeout=60)
    assert time.monotonic() - began < 15  # 5 s and a step, on a machine that does other things too
    assert running.returncode == 130, errors
    assert errors.startswith("Interrupted.")
    assert len(errors.splitlines()) == 1
    (folder,) = (tmp_path / "out" / "states").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "state.safetensors"]
    planned, _ = start(tmp_path, "-m", "lora_bench", "plan", *RUN).communicate(timeout=60)
    assert "interrupted" in planned
    assert "saved after" in planned


def test_a_command_that_saves_no_cells_does_not_say_that_it_does(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    running = start(tmp_path, "-m", "lora_bench", "check", "slow.py")
    _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (130, "Interrupted.\n")


@pytest.mark.parametrize("signals", [once, hang_up, twice, many])
def test_a_signal_before_anything_trains_ends_the_run_as_well(
    tmp_path: Path, signals: Callable[[subprocess.Popen[str]], None]
) -> None:
    running = start(tmp_path, "-m", "lora_bench", "run", *RUN)
    assert running.stdout is not None
    running.stdout.readline()
    signals(running)
    _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors.count("Interrupted.")) == (130, 1), errors
    assert len(errors.splitlines()) == 1
    assert list((tmp_path / "out").glob("owner*")) == []


SWALLOWING = """
import gc, os, signal, sys, time, weakref
from lora_bench.run.signals import Stopper

destructor = sys.argv[1] == "destructor"

class Thing:
    def __del__(self):
        if destructor:
            come()

def come(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)

with Stopper() as stopper:
    try:
        thing = Thing()
        watch = weakref.ref(thing, come) if sys.argv[1] == "callback" else None
        if sys.argv[1] == "library":
            try:
                come()
            except:
                pass
            stopper.check()
        del thing
        time.sleep(5)
        print("goes on")
    except KeyboardInterrupt:
        print("stops")
"""


@pytest.mark.parametrize("where", ["destructor", "callback", "library"])
def test_a_stop_that_python_or_a_library_swallows_comes_all_the_same(tmp_path: Path, where: str) -> None:
    """And without the traceback that Python prints for what it ignores."""
    assert start(tmp_path, "-c", SWALLOWING, where).communicate(timeout=60) == ("stops\n", "")


HOLDING = """
import time
from lora_bench.run.signals import Stopper
with Stopper() as stopper:
    stopper.hold()
    print("holds", flush=True)
    while True:
        time.sleep(0.1)
"""


def test_a_later_signal_ends_what_does_not_end(tmp_path: Path) -> None:
    """Not one within a second, which may be the same request; also where nothing is ever saved."""
    running = start(tmp_path, "-c", HOLDING)
    assert running.stdout is not None
    running.stdout.readline()
    twice(running)
    time.sleep(1.3)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=5)
    assert running.returncode == 130


LEAVING = """
import sys, time
from lora_bench.cli.app import main

class Slow:
    def __del__(self):  # when the interpreter takes its modules down
        print("leaves", flush=True)
        time.sleep(2)

keep = Slow()
sys.argv = ["lora-bench", "list", sys.argv[1]]
main()
"""


@pytest.mark.parametrize(("what", "code"), [("tasks", 0), ("nonsense", 2)])
def test_signals_while_the_interpreter_is_taken_down_change_nothing(tmp_path: Path, what: str, code: int) -> None:
    """It takes seconds after a run; all is said and saved by then, and the exit code tells how it ended."""
    running = start(tmp_path, "-c", LEAVING, what)
    assert running.stdout is not None
    assert "leaves\n" in iter(running.stdout.readline, "")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        running.send_signal(number)
    running.communicate(timeout=60)
    assert running.returncode == code


def test_a_second_signal_while_an_interrupted_run_leaves_changes_nothing(tmp_path: Path) -> None:
    running = start(tmp_path, "-m", "lora_bench", "run", *RUN)
    assert running.stdout is not None
    assert any("epoch 2/400" in line for line in running.stdout)
    deadline = time.monotonic() + 60
    once(running)
    time.sleep(1.3)
    while running.poll() is None and time.monotonic() < deadline:
        once(running)
        time.sleep(0.02)
    running.communicate(timeout=5)
    assert running.returncode == 130


def test_what_was_started_with_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    code = HOLDING.replace("while True:", "for _ in range(10):").replace("stopper.hold()", "")
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{code}\nprint('ends')"
    running = start(tmp_path, "-c", ignoring)
    assert running.stdout is not None
    running.stdout.readline()
    hang_up(running)
    said, errors = running.communicate(timeout=60)
    assert (running.returncode, said, errors) == (0, "ends\n", "")

"""Methods that are not of this package: included files and installed packages."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_bench import methods, plugins
from lora_bench.cli.app import app
from lora_bench.contracts.start import its_settings_are_complete
from lora_bench.errors import BenchError, StopRequested
from lora_bench.records.store import read_records
from lora_bench.run.signals import Stopper

MINE = '''
"""LoRA whose factors share a size: A trains, B is random."""

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Factor, Normal, Zeros, rank_of


class Half(Lora):
    name = "half"
    title = "Half of LoRA"
    source = "a test"

    def factors(self, cell, shape):
        rank = rank_of(cell)
        return (
            Factor("A", rank, shape.inputs, Zeros()),
            Factor("B", shape.outputs, rank, Normal(rank**-0.5), trainable=False),
        )

    def trainable(self, cell, shape):
        return rank_of(cell) * shape.inputs


RECIPE = Half()
'''


@pytest.fixture(autouse=True)
def restored_registry() -> Iterator[None]:
    """The registry as it was, after every test."""
    with methods.registered():
        yield


def here(*words: str) -> tuple[int, str]:
    """A command in this process, which leaves the registry as it was: exit code and output."""
    with methods.registered():
        ended = CliRunner().invoke(app, words)
    return ended.exit_code, ended.output


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A method in a file."""
    path = tmp_path / "my_method.py"
    path.write_text(MINE)
    return path


def lora_bench(*words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as the registry lasts as long as the process."""
    paths = os.pathsep.join(filter(None, (str(cwd), str(Path(methods.__file__).parents[2]))))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "COLUMNS": "140", **more}
    command = [sys.executable, "-m", "lora_bench", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def test_an_included_method_runs_in_a_pack_beside_lora_and_is_exported(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", "sample", "--task", "wnli", "--epochs", "1", "--rank", "4", "--results", "out"]
    code, said = here("run", *words, "--method", "half", "--method", "lora", "--include", mine.name)
    assert code == 0, said
    assert "in 1 pack on" in said
    records = {record.cell.method: record for record in read_records(tmp_path / "out").records}
    assert records["half"].cell.origin == plugins.origin_of(mine, MINE.encode())
    assert records["lora"].cell.origin is None
    with (tmp_path / "out/metrics.csv").open(newline="") as file:
        assert {row["method"]: row["origin"] for row in csv.DictReader(file)}["half"].startswith("my_method.py@")
    export = ["export", records["half"].id, "--to", "peft", "--results", "out", "--device", "cpu"]
    code, said = here(*export, "--out", "bare")
    assert (code, "--include FILE" in said) == (2, True), said
    code, said = here(*export, "--out", "half-peft", "--include", mine.name)
    assert code == 0, said
    assert (tmp_path / "half-peft/adapter_model.safetensors").is_file()
    mine.write_text(MINE.replace("Normal(rank**-0.5)", "Normal(1.0)"))
    code, said = here(*export, "--out", "other", "--include", mine.name)
    assert (code, "as it was" in said) == (3, True), said


def test_another_text_is_another_cell(mine: Path, tmp_path: Path) -> None:
    from lora_bench.cli.options import Selection
    from lora_bench.run import plan as plans

    def ids() -> list[str]:
        selection = Selection(preset="smoke", task=["sst2"], seed=[0], method=["half"], rank=[4], include=[mine])
        return [cell.id for cell in plans.make(selection.grid(), tmp_path / "none", None).todo]

    with methods.registered():
        first = ids()
        assert ids() == first and len(first) == 1
    mine.write_text(MINE + "\n# another text\n")
    assert ids() != first


def test_list_names_it(mine: Path) -> None:
    code, said = here("list", "methods", "--include", str(mine))
    assert (code, "half" in said) == (0, True), said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RECIPE = 1\n", "is not a Recipe"),
        ("x = 1\n", "defines no RECIPE"),
        ("x = 1\n\nprint(y)\n", "line 3: NameError"),
        ("def f(:\n", "line 1: SyntaxError"),
        (MINE.replace('name = "half"', 'name = "lora"'), "'lora', which exists already"),
        (MINE.replace('    title = "Half of LoRA"\n', "").replace("(Lora)", "(Recipe)").replace(
            "import Factor", "import Factor, Recipe") + "", "abstract"),
    ],
)  # fmt: skip
def test_a_bad_file_is_reported_in_a_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(BenchError, match=said) as error:
        methods.include(path)
    assert len(str(error.value).splitlines()) == 2
    assert "half" not in methods.RECIPES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\n\nsys.exit(0)\n", "line 3: SystemExit: 0"),
        ("class Own(BaseException):\n    pass\n\nraise Own('so it is')\n", "line 4: Own: so it is"),
        (MINE.replace('name = "half"', "name = 5"), "line 9: name is 5, not a word"),
        (MINE.replace('name = "half"', 'name = "ha\\nlf"'), "line 9: name is 'ha\\nlf', not a word"),
        (MINE.replace('title = "Half of LoRA"', "title = None"), "line 10: title is None, not a text"),
        (MINE + "Half.default_lr = 'fast'\n", "line 8: default_lr is 'fast', not a positive number"),
        (MINE + "Half.default_lr = -1\n", "default_lr is -1, not a positive number"),
        (MINE + "Half.default_lr = True\n", "default_lr is True, not a positive number"),
        (MINE + "Half.parameters = {'rang'}\n", "parameters is {'rang'}, not a frozenset of a, alpha, b, init"),
        (MINE + "Half.parameters = 7\n", "parameters is 7"),
        (MINE + "Half.defaults = {'rank': 'large'}\n", "defaults: rank: Input should be a valid integer"),
        (MINE + "Half.defaults = None\n", "defaults is None"),
        (MINE + "Half.full_width = 'yes'\n", "full_width is 'yes', not True or False"),
        (MINE.replace('    name = "half"\n', "    @property\n    def name(self):\n        return 1 / 0\n"),
         "line 11: ZeroDivisionError: division by zero"),
        (MINE.replace('    name = "half"\n', "    @property\n    def name(self):\n        exit()\n"),
         "line 11: SystemExit"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("words", [("list", "methods", "--include"), ("check",)])
def test_a_file_that_exits_or_says_nonsense_is_reported_with_its_line(
    words: tuple[str, ...], text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a name relative to the working directory, as users give it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(text)
    ended = CliRunner().invoke(app, [*words, "bad.py"], env={"COLUMNS": "300"})
    lines = ended.stderr.strip().splitlines()
    assert (ended.exit_code, len(lines)) == (2, 2), ended.output
    assert said in lines[0]
    assert "bad.py" in lines[0]
    assert "half" not in methods.RECIPES


@pytest.mark.parametrize("fault", ["1 / 0", "exit()", "[].pop()"])
def test_a_method_that_fails_while_a_grid_is_planned_is_reported_with_its_line(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(MINE + f"\nHalf.factors = lambda self, cell, shape: {fault}\n")
    words = ["plan", "--preset", "smoke", "--task", "sst2", "--method", "half", "--include", "bad.py"]
    ended = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert ended.exit_code == 2, ended.output
    (first, _) = ended.stderr.strip().splitlines()
    assert "bad.py', line 26: " in first


NONSENSE = [
    ("factors", "None", "None, not a tuple of Factors"),
    ("factors", "[1]", "[1], not a tuple of Factors"),
    ("factors", "(Factor('A', 'x', 3, Zeros()),)", "not a tuple of Factors"),
    ("touches", "5", "5, not a tuple of some of gain, shift, stretch"),
    ("touches", "('gian',)", "('gian',), not a tuple of some of gain"),
    ("trainable", "'many'", "'many', not a number of values"),
    ("trainable", "True", "True, not a number of values"),
    ("width", "'wide'", "'wide', not a number of rows"),
    ("width", "-1", "-1, not a number of rows"),
    ("layout", "[1]", "[1], not something that can be hashed"),
]


def answering(path: Path, function: str, answer: str) -> None:
    """A file whose method answers so when it is asked."""
    path.write_text(MINE.replace("RECIPE", f"    def {function}(self, *words):\n        return {answer}\n\n\nRECIPE"))


@pytest.mark.parametrize(("function", "answer", "said"), NONSENSE)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_method_that_answers_nonsense_is_named_with_what_it_returned(
    command: str, function: str, answer: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answering(tmp_path / "bad.py", function, answer)
    words = [command, "--model", "sample", "--task", "wnli", "--epochs", "1", "--rank", "4", "--method", "half"]
    ended = CliRunner().invoke(app, [*words, "--include", "bad.py"], env={"COLUMNS": "300"})
    lines = ended.stderr.strip().splitlines()
    assert (ended.exit_code, len(lines)) == (2, 2), ended.output
    assert "'bad.py', line " in lines[0] and f"{function} returned " in lines[0] and said in lines[0]


@pytest.mark.parametrize("answer", ["exit()", "1 / 0"])
def test_a_formula_that_fails_is_reported_before_anything_trains(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answering(tmp_path / "bad.py", "trainable", answer)
    words = ["--model", "sample", "--task", "wnli", "--epochs", "1", "--rank", "4", "--method", "half"]
    code, said = here("run", *words, "--include", "bad.py")
    assert (code, "bad.py', line " in said) == (2, True), said


@pytest.mark.parametrize(
    ("function", "answer"),
    [("touches", "5"), ("width", "None"), ("layout", "[1]"), ("update_rank", "'all'"), ("scale", "'half'")],
)
def test_a_contract_notices_what_a_method_states(function: str, answer: str, tmp_path: Path) -> None:
    answering(tmp_path / "bad.py", function, answer)
    method = methods.include(tmp_path / "bad.py").name
    with pytest.raises(BenchError, match=f"{function} returned"):
        its_settings_are_complete(method, None)  # type: ignore[arg-type]
    checked = CliRunner().invoke(app, ["check", str(tmp_path / "bad.py")], env={"COLUMNS": "300"})
    assert checked.exit_code == 1, checked.output


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])  # ignored: in a background job
@pytest.mark.parametrize("words", [("plan", "--task", "sst2", "--method", "half", "--include"), ("check",)])
def test_an_interrupt_that_a_file_raises_itself_is_its_fault(
    words: tuple[str, ...], handler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("x = 1\nraise KeyboardInterrupt\n")
    before = signal.signal(signal.SIGINT, handler)
    try:
        code, said = here(*words, "bad.py")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, "'bad.py' cannot be loaded: line 2: KeyboardInterrupt." in said) == (2, True), said


def test_an_interrupt_by_a_signal_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        methods.include(path)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("ending", ["", "except BaseException as error:\n    raise ImportError('broken') from error\n"])
def test_no_file_is_to_blame_for_a_signal_that_comes_while_it_is_loaded(
    number: signal.Signals, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / "slow.py"
    stop = f"os.kill(os.getpid(), {int(number)})"
    path.write_text(f"import os\n{f'try:{chr(10)}    {stop}{chr(10)}{ending}' if ending else stop}\n")
    with pytest.raises(StopRequested), Stopper():
        methods.include(path)


def test_a_method_that_exits_while_it_is_checked_or_trains_fails_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(MINE + "\nHalf.update = lambda self, factors: exit()\n")
    checked = CliRunner().invoke(app, ["check", "bad.py"])
    assert checked.exit_code == 1
    assert checked.output.count("- SystemExit") == 1  # one fault that breaks many contracts
    assert "- the same" in checked.output
    assert "FAIL" in checked.output and "SystemExit" in checked.output
    assert "of 22 contracts are kept" in checked.output
    words = ["--model", "sample", "--task", "wnli", "--epochs", "1", "--rank", "4", "--results", "out"]
    code, said = here("run", *words, "--method", "half", "--method", "head", "--include", "bad.py")
    assert code == 1, said
    records = {record.cell.method: record for record in read_records(tmp_path / "out").records}
    assert {name: record.status for name, record in records.items()} == {"half": "failed", "head": "done"}
    assert "bad.py', line " in str(records["half"].reason)
    assert "SystemExit" in str(records["half"].reason)


def test_what_runs_is_the_text_that_was_hashed(mine: Path, tmp_path: Path) -> None:
    """Another text of the same size and time: bytecode that was kept of the first is not taken for it."""
    with methods.registered():
        methods.include(mine)
    about = mine.stat()
    mine.write_text(MINE.replace("Half of LoRA", "HALF OF LORA"))
    os.utime(mine, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert methods.include(mine).title == "HALF OF LORA"
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("none.py", "Give the path of a Python file."),
        ("lorra", "Did you mean 'lora'? A file of your own ends with .py."),
        ("cole", "Did you mean 'cola'? A file of your own ends with .py."),
    ],
)
def test_a_hint_of_check_names_no_option_that_it_lacks(
    what: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = here("check", what)
    assert (code, said.splitlines()[-1]) == (2, hint)


def test_what_is_no_file_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path / "none.py", tmp_path, tmp_path / "notes.txt"):
        if path.suffix == ".txt":
            path.write_text("notes")
        with pytest.raises(BenchError):
            methods.include(path)


def test_a_packages_methods_are_there_by_themselves(mine: Path, tmp_path: Path) -> None:
    """As pip lays a distribution down: a module and its metadata."""
    mine.rename(tmp_path / "half_method.py")
    info = tmp_path / "half-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lora_bench.methods]\nhalf = half_method\nlost = no_such_module\nexits = half_exit\n"
    )
    (tmp_path / "half_exit.py").write_text("import sys\nsys.exit(0)\n")
    listed = lora_bench("list", "methods", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "Half of LoRA" in listed.stdout
    assert "cannot be loaded: SystemExit: 0" in listed.stdout
    assert "cannot be loaded: ModuleNotFoundError" in listed.stdout
    planned = lora_bench("plan", "--preset", "smoke", "--task", "sst2", "--method", "half", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    lost = lora_bench("plan", "--preset", "smoke", "--task", "sst2", "--method", "lost", cwd=tmp_path)
    assert (lost.returncode, "no_such_module" in lost.stderr) == (3, True), lost.stderr


def test_an_entry_point_that_is_no_recipe_stops_nothing() -> None:
    methods.add_installed([EntryPoint("odd", "json:dumps", methods.GROUP)])
    assert "is not a Recipe" in methods.BROKEN["odd"]
    assert "odd" not in methods.RECIPES

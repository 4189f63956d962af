"""No file is ever run, no shell is asked, and what is kept says nothing of the person or the machine."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lora_bench as package
from lora_bench.errors import DONE, SOME_FAILED
from lora_bench.text import discreet
from tests.robust.robust_kit import lora_bench, make_model, make_rows, run, tree

ROOT = Path(package.__file__).parent
BANNED = (
    "import pickle",
    "from pickle import loads",
    "import marshal",
    "import shelve",
    "import dill",
    "import joblib",
    "import torch\ntorch.load('x')",
    "import torch\ntorch.save({}, 'x')",
    "import torch\ntorch.hub.load('x', 'y')",
    "import yaml\nyaml.load('x', yaml.Loader)",
    "import yaml\nyaml.unsafe_load('x')",
    "import os\nos.system('x')",
    "import os\nos.popen('x')",
    "import subprocess\nsubprocess.run('x', shell=True)",
    "eval('1')",
    "exec('1')",
    "import xml.etree.ElementTree as tree\ntree.parse('x')",
    "import hashlib\nhashlib.md5(b'x')",
)


@pytest.mark.parametrize("text", BANNED)
def test_the_linter_refuses(text: str) -> None:
    """In the package; so the names that are banned are spelled as they should be."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "S,TID251",
        "--stdin-filename",
        str(ROOT / "engine" / "x.py"),
    ]
    ended = subprocess.run([*command, "-"], input=text + "\n", capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "TID251" in ended.stdout or " S" in f" {ended.stdout}"


def calls() -> list[tuple[Path, ast.Call]]:
    """Every call in the package."""
    return [
        (path, node)
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_no_code_from_a_model_or_a_file_is_asked_for() -> None:
    """What no linter has a rule for: trust_remote_code, numpy's pickles, weights that are not safetensors."""
    found = calls()
    keywords = {(path.name, word.arg, ast.unparse(word.value)) for path, node in found for word in node.keywords}
    names = [name for _, name, _ in keywords]
    assert "trust_remote_code" not in names
    assert {value for _, name, value in keywords if name == "allow_pickle"} == {"False"}
    assert {value for _, name, value in keywords if name == "use_safetensors"} == {"True"}
    loads = [node for _, node in found if ast.unparse(node.func) in ("np.load", "numpy.load")]
    assert loads
    assert all("allow_pickle" in [word.arg for word in node.keywords] for node in loads)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("OSError: [Errno 28] No space left: '/home/ann/run/.x.tmp'", "OSError: [Errno 28] No space left: '…/.x.tmp'"),
        (r"in C:\Users\Ann\models\x.bin", "in …/x.bin"),
        ("in file:///home/ann/x", "in …/x"),
        ('File "/usr/lib/python3/foo.py", line 3', 'File "…/foo.py", line 3'),
        ("https://ann:secret@host.org/a/b", "https://…@host.org/a/b"),
        ("token hf_abcdefghijklmnopqrst here", "token hf_… here"),
        ("ghp_abcdefghijklmnopqrst", "ghp_…"),
        ("~/models/x and ~ann/x", "…/x and …/x"),
        ("and/or 3/4 a / b, FacebookAI/roberta-base", "and/or 3/4 a / b, FacebookAI/roberta-base"),
        ("[rows/cols] attention.self.query ./x", "[rows/cols] attention.self.query ./x"),
    ],
)
def test_what_a_reason_keeps_to_itself(text: str, wanted: str) -> None:
    assert discreet(text) == wanted
    assert discreet(wanted) == wanted


def test_a_home_with_a_space_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann smith")
    assert discreet("in '/home/ann smith/data/x.json'") == "in '…/x.json'"


def test_nothing_that_is_kept_names_the_person(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and data from a home folder by their whole paths; one cell is done, one fails with a path and a token."""
    home, token = workplace / "ann-secret", "hf_abcdefghijklmnopqrstuvwxyz"
    model, rows = make_model(home / "models" / "mine"), make_rows(home / "data")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", token)

    def fail(*_: object) -> None:
        raise ValueError(f"cannot use {model}/x.bin with {token}")

    with monkeypatch.context() as patch:
        patch.setattr("lora_bench.engine.adapters.bank.Bank.__init__", fail)
        assert run("--seed", "1", model=str(model), data_dir=str(rows)).code == SOME_FAILED
    assert lora_bench("report", "--results", "results").code == DONE
    assert run(model=str(model), data_dir=str(rows)).code == DONE
    kept = tree(workplace / "results")
    assert len(kept) > 10
    for name, content in kept.items():
        for secret in (b"ann-secret", token.encode(), str(workplace).encode()):
            assert secret not in content, name
    records = [json.loads(content) for name, content in kept.items() if name.startswith("cells/")]
    assert {record["cell"]["model"].partition("@")[0] for record in records} == {"mine"}
    reasons = {(record["reason"] or "").partition(" (lora_bench/")[0] for record in records}
    assert reasons == {"", "ValueError: cannot use …/x.bin with hf_…"}

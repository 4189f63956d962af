"""Commands run in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from lora_bench.cli.app import app
from lora_bench.testing import TinyBench


def invoke(*words: object) -> tuple[int, str]:
    """Run `lora-bench` with these words: its exit code and what it prints."""
    ended = CliRunner().invoke(app, [str(word) for word in words])
    return ended.exit_code, ended.output


def export(bench: TinyBench, out: Path, *words: object) -> tuple[int, str]:
    """Run `lora-bench export` with these words over a bench's results, into the folder `out`; see `invoke`."""
    given = ("--out", out, "--results", bench.results, "--model", bench.model, "--device", "cpu", "--offline")
    return invoke("export", *words, *given)

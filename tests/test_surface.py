"""What others rely on: commands, options and CSV columns. A change here belongs in CHANGELOG.md."""

from __future__ import annotations

import typer.main

from lora_bench.cli.app import app
from lora_bench.records import store

SELECTION = {
    "--preset", "--config", "--task", "--method", "--rank", "-r", "--a", "-a", "--b", "-b", "--targets", "--seed",
    "--lr", "--head-lr", "--search-lr", "--search-seeds", "--start",
    "--epochs", "--batch-size", "--max-length", "--alpha", "--precision", "--model", "--set",
    "--data-dir", "--results", "--pack", "--retry", "--include", "--device", "--offline", "--save", "--debug",
    "--engine", "--address", "--gpus", "--track",
}  # fmt: skip
COMMANDS = {
    "run": SELECTION,
    "plan": SELECTION,
    "report": {"--results", "--out", "--vs-paper", "--config", "--against", "--include"},
    "list": {"--results", "--include"},
    "show": {"--results", "--command", "--include"},
    "export": {
        "--to", "--out", "--results", "--model", "--data-dir", "--dtype", "--device", "--offline", "--include",
        "--push", "--public",
    },
    "check": set(),
    "choose": {"--results", "--rank", "--method"},
    "archive": {"--results", "--push", "--public"},
    "verdict": {
        "--against", "--model", "--data-dir", "--task", "--targets", "--sizes", "--seeds", "--minutes", "--margin",
        "--over", "--more", "--dry-run", "--search-lr", "--search-seeds", "--head-lr", "--epochs", "--precision",
        "--include", "--set", "--results", "--pack", "--retry", "--device", "--engine", "--address", "--gpus",
        "--offline", "--save", "--debug", "--track",
    },
    "doctor": {"--results"},
    "bench": {
        "--quick", "--model", "--data-dir", "--task", "--targets", "--mix", "--pack", "--peers", "--precision",
        "--batch-size", "--seconds", "--device", "--out", "--name", "--calibrate",
    },
}  # fmt: skip
COLUMNS = (
    "id,model,task,method,rank,a,b,targets,seed,lr,alpha,epochs,batch_size,max_length,status,adapter_params,"
    "head_params,adapter_bytes,metric,best,best_epoch,last,seconds,tokens_per_second"
)


def test_commands_and_options() -> None:
    """No command or option comes or goes unnoticed."""
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    found = {
        name: {text for option in command.params for text in option.opts if text.startswith("-")}
        for name, command in commands.items()
    }
    assert found == COMMANDS


def test_completion_offers_every_setting_and_the_words_that_it_takes() -> None:
    """What `--set` completes can be given as it is, or begins a setting."""
    from lora_bench.cli.completion import settings
    from lora_bench.grid.config import SETTINGS, parse_set

    candidates = settings()
    assert {candidate.partition("=")[0] for candidate in candidates} == set(SETTINGS)
    complete = [candidate for candidate in candidates if not candidate.endswith("=")]
    assert {"head=model", "select=held-out", "init=published"} <= set(complete)
    assert [parse_set(candidate)[1] for candidate in complete] == [(text.partition("=")[2],) for text in complete]


def test_completion_offers_what_options_take() -> None:
    """Every word that is offered is taken."""
    from lora_bench.cell import Cell
    from lora_bench.cli import completion
    from lora_bench.engine.encoder.targets import resolve
    from lora_bench.run.status import RETRY

    layer = ("attention.self.query", "attention.self.key", "attention.self.value", "output.dense")
    linears = [f"encoder.layer.0.{name}" for name in layer]
    assert all(resolve(linears, name) for name in completion.target_sets())
    assert tuple(completion.retried_states()) == RETRY
    for precision in completion.precisions():
        Cell.model_validate({"model": "m", "data": "d", "task": "rte", "method": "head", "precision": precision})


def test_columns_begin_as_documented() -> None:
    """The columns that others may rely on come first, in this order."""
    assert ",".join(store.COLUMNS).startswith(COLUMNS + ",")
    assert len(set(store.COLUMNS)) == len(store.COLUMNS)

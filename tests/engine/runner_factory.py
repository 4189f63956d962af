"""A results folder over a tiny encoder and a small data folder, both made on the spot."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lora_bench import tasks
from lora_bench.callbacks import PackStart
from lora_bench.cell import Cell
from lora_bench.grid.cells import Grid, expand
from lora_bench.grid.config import Config
from lora_bench.records.schema import Record
from lora_bench.run import plan as plans
from lora_bench.run.interfaces import Options, View
from lora_bench.run.plan import Plan
from lora_bench.run.runner import Runner

Blocks = Sequence[dict[str, Any]]
WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(56))]
TRAIN, VALIDATION = 40, 24


class QuietView(View):
    """A view that remembers."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.packs = 0
        self.ended: list[str] = []

    def on_pack_start(self, start: PackStart) -> None:
        """A pack begins to train."""
        self.packs += 1

    def done(self, records: Sequence[Record]) -> None:
        """Cells have ended."""
        self.ended += [record.id for record in records]

    def warn(self, text: str) -> None:
        """Something the user should know."""
        self.warnings.append(text)


def make_model(folder: Path, vocabulary: int = len(WORDS)) -> Path:
    """A random RoBERTa and a tokenizer of one token a word."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 40, "type_vocab_size": 1, "initializer_range": 0.2,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        hf.RobertaModel(hf.RobertaConfig(**sizes)).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    kind: Any = hf.PreTrainedTokenizerFast
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    kind(tokenizer_object=core, **names).save_pretrained(folder)
    return folder


def make_data(root: Path, *names: str) -> Path:
    """The tasks' splits as jsonl; the words tell the label, most of the time."""
    for name in names or ("sst2",):
        task = tasks.get(name)
        (root / name).mkdir(parents=True)
        for number, split in enumerate(task.splits):
            draw = np.random.default_rng(number)
            count = TRAIN if split == "train" else VALIDATION
            lines = [json.dumps(_row(task, draw)) for _ in range(count)]
            (root / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


def _row(task: tasks.Task, draw: np.random.Generator) -> dict[str, Any]:
    label = int(draw.integers(0, len(task.labels) or 6))
    texts = [" ".join(f"w{9 * label + word}" for word in draw.integers(0, 11, 6)) for _ in task.columns]
    return {**dict(zip(task.columns, texts, strict=True)), "label": label if task.labels else float(min(label, 5))}


class Bench:
    """Grids over one encoder and data folder, into one results folder."""

    def __init__(self, model: Path, rows: Path, results: Path) -> None:
        self.model, self.rows, self.results = model, rows, results

    def grid(self, blocks: Blocks, **defaults: Any) -> Grid:
        """The blocks as a grid."""
        base = {
            "model": str(self.model), "task": "sst2", "epochs": 2, "batch_size": 8, "max_length": 16, "lr": 1e-2,
            "precision": "float64",
        }  # fmt: skip
        config = Config(name="test", defaults=base | defaults, blocks=tuple(blocks))
        return expand(config, {}, plans.sources(), str(self.rows))

    def plan(self, blocks: Blocks, limit: int = 16, retry: Sequence[str] = (), **defaults: Any) -> Plan:
        """What would run."""
        return plans.make(self.grid(blocks, **defaults), self.results, limit, retry)

    def run(self, blocks: Blocks, limit: int = 16, retry: Sequence[str] = (), **defaults: Any) -> list[Record]:
        """Run it."""
        return self.follow(self.plan(blocks, limit, retry, **defaults), QuietView())

    def follow(self, plan: Plan, view: QuietView) -> list[Record]:
        """Run a plan under a view."""
        return Runner(plan, Options(self.results, offline=True), view).run()

    def csv(self) -> list[dict[str, str]]:
        """The rows of metrics.csv."""
        with (self.results / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def files(self) -> dict[str, bytes]:
        """The content of every file in the results folder."""
        paths = sorted(path for path in self.results.rglob("*") if path.is_file())
        return {str(path.relative_to(self.results)): path.read_bytes() for path in paths}


def by_cell(records: Sequence[Record]) -> dict[Cell, Record]:
    """The records by their cell."""
    return {record.cell: record for record in records}


def same_numbers(one: Record, other: Record) -> None:
    """Everything but times is the same; losses to rounding."""
    assert [epoch.metrics for epoch in one.epochs] == [epoch.metrics for epoch in other.epochs]
    assert one.predictions == other.predictions
    losses = [np.array([epoch.loss for epoch in record.epochs], dtype=float) for record in (one, other)]
    np.testing.assert_allclose(*losses, rtol=1e-10)
    assert (one.score, one.score_epoch) == (other.score, other.score_epoch)
    assert (one.counts, one.data) == (other.counts, other.data)

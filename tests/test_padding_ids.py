"""Texts that hold the tokenizer's own padding token: the model's own rule for positions, checked by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from lora_bench.cli.app import app
from lora_bench.records.store import read_records
from lora_bench.sample import DATA

TRAIN, EVALUATION = 320, 160


def lora_bench(*words: str) -> None:
    """Run a command that must end well."""
    ended = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert ended.exit_code == 0, ended.output


def with_padding(line: str) -> dict[str, object]:
    """A row whose first sentence begins with padding tokens and whose second has one in its middle."""
    row = json.loads(line)
    words = row["sentence2"].split()
    middle = len(words) // 2
    row["sentence1"] = f"<pad> <pad> {row['sentence1']}"
    row["sentence2"] = " ".join([*words[:middle], "<pad>", *words[middle:]])
    return dict(row)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STS-B of the bundled sample with padding tokens in its texts."""
    root = tmp_path_factory.mktemp("rows")
    (root / "stsb").mkdir()
    for split, count in (("train", TRAIN), ("validation", EVALUATION)):
        lines = (DATA / "stsb" / f"{split}.jsonl").read_text().splitlines()[:count]
        made = [json.dumps(with_padding(line) if number % 3 else json.loads(line)) for number, line in enumerate(lines)]
        (root / "stsb" / f"{split}.jsonl").write_text("\n".join(made) + "\n")
    return root


@torch.no_grad()
def by_transformers(folder: Path, lines: list[dict[str, str]]) -> np.ndarray:
    """The scores that transformers' own classifier gives the pairs, with the tokenizer's own attention mask."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [[line[column] for line in lines] for column in ("sentence1", "sentence2")]
    inputs = tokenizer(*texts, padding=True, truncation="longest_first", max_length=64, return_tensors="pt")
    inside = (inputs["input_ids"] == tokenizer.pad_token_id) & inputs["attention_mask"].bool()
    assert inside.any(1).float().mean() > 0.6  # a text's own padding tokens are attended to
    scores: np.ndarray = model(**inputs).logits[:, 0].double().numpy()
    return scores


def test_the_score_is_the_one_that_transformers_gives(rows: Path, tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "merged"
    lora_bench(
        "run", "--model", "sample", "--data-dir", str(rows), "--task", "stsb", "--method", "lora", "--rank", "4",
        "--epochs", "3", "--batch-size", "16", "--max-length", "64", "--precision", "float32", "--lr", "2e-3",
        "--set", "select=last", "--results", str(results), "--device", "cpu", "--offline",
    )  # fmt: skip
    (record,) = read_records(results).records
    lora_bench(
        "export", record.id, "--to", "merged", "--results", str(results), "--out", str(out), "--device", "cpu",
        "--offline",
    )  # fmt: skip
    lines = [json.loads(line) for line in (rows / "stsb" / "validation.jsonl").read_text().splitlines()]
    scores = by_transformers(out, lines)
    expected = pearsonr(scores, [line["label"] for line in lines]).statistic
    assert expected > 0.2
    assert record.epochs[-1].metrics["pearson"] == pytest.approx(expected, abs=2e-6)
    assert record.predictions == pytest.approx(scores.tolist(), abs=1e-4)

"""LoRA (r = 8 on queries and values) by transformers and peft alone, in a bare loop, by configs/base.yaml's protocol.

    python -m tests.tools.plain_peft --model DIR --data-dir DIR --seeds 0,1,2,3 --out plain-peft.jsonl

It shares no code with lora_bench, so that what it scores is an independent check of results/base. Its order of rows and
its held-out tenth are its own draws: scores agree in distribution, not seed by seed. STS-B is scored, and its epoch
chosen, by the mean of Pearson's and Spearman's correlation. A line of `--out` is one seed of one task. For an H100:
about 25 ms a step, 3,800 steps a seed; several processes share a card.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import matthews_corrcoef
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

LR = 1e-3  # the rate that base's search chose for each of these tasks, and its rate of the head
BATCH, EVAL_BATCH, MAX_LENGTH, WARMUP, HELD_OUT = 32, 128, 128, 0.06, 0.1


@dataclass(frozen=True)
class Task:
    """A task as configs/base.yaml trains it."""

    name: str
    epochs: int
    outputs: int
    texts: tuple[str, ...]


PAIR = ("sentence1", "sentence2")
TASKS = (
    Task("rte", 10, 2, PAIR),
    Task("mrpc", 8, 2, PAIR),
    Task("stsb", 5, 1, PAIR),
    Task("cola", 6, 2, ("sentence",)),
)


@dataclass(frozen=True)
class Rows:
    """Tokenized rows of a split."""

    tokens: list[list[int]]
    labels: np.ndarray

    def at(self, indices: Sequence[int] | np.ndarray) -> Rows:
        return Rows([self.tokens[index] for index in indices], self.labels[np.asarray(indices)])


def load(tokenizer: Any, data_dir: Path, task: Task, split: str) -> Rows:
    frame = pd.read_parquet(data_dir / task.name / f"{split}.parquet")
    texts = [frame[column].tolist() for column in task.texts]
    return Rows(tokenizer(*texts, truncation=True, max_length=MAX_LENGTH)["input_ids"], frame["label"].to_numpy())


def pad(rows: list[list[int]], pad_id: int, device: str) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def score(task: Task, outputs: np.ndarray, labels: np.ndarray) -> float:
    if task.name == "cola":
        return float(matthews_corrcoef(labels, outputs.argmax(1)))
    if task.outputs == 1:
        return float((pearsonr(outputs[:, 0], labels)[0] + spearmanr(outputs[:, 0], labels)[0]) / 2)
    return float((outputs.argmax(1) == labels).mean())


def evaluate(model: nn.Module, task: Task, rows: Rows, pad_id: int, device: str) -> float:
    model.eval()
    order = sorted(range(len(rows.tokens)), key=lambda index: len(rows.tokens[index]))
    outputs = np.empty((len(order), task.outputs), np.float32)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        for start in range(0, len(order), EVAL_BATCH):
            indices = order[start : start + EVAL_BATCH]
            batch = pad(rows.at(indices).tokens, pad_id, device)
            outputs[indices] = model(**batch).logits.float().cpu().numpy()
    return score(task, outputs, rows.labels)


def train(model_dir: str, data_dir: Path, task: Task, seed: int, device: str) -> dict[str, Any]:
    """Train one seed of one task.

    Returns:
        The score on the validation split of the epoch that is best on the held-out rows, and the scores of all epochs.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    rows, validation = load(tokenizer, data_dir, task, "train"), load(tokenizer, data_dir, task, "validation")
    order = generator.permutation(len(rows.tokens))
    held = round(len(order) * HELD_OUT)
    held_out, rows = rows.at(order[:held]), rows.at(order[held:])
    plain = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=task.outputs, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q", "v"], modules_to_save=["classifier"], lora_dropout=0.0)
    model: Any = get_peft_model(plain, config).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    batches = -(-len(rows.tokens) // BATCH)
    steps = batches * task.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(np.ceil(WARMUP * steps)), steps)
    history = []
    for _ in range(task.epochs):
        model.train()
        order = generator.permutation(len(rows.tokens))
        for first in range(0, len(order), BATCH):
            batch = rows.at(order[first : first + BATCH])
            labels = torch.tensor(batch.labels).to(device)
            with torch.autocast(device, torch.bfloat16):
                outputs = model(**pad(batch.tokens, tokenizer.pad_token_id, device)).logits.float()
            if task.outputs == 1:
                loss = nn.functional.mse_loss(outputs[:, 0], labels.float())
            else:
                loss = nn.functional.cross_entropy(outputs, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        splits = (held_out, validation)
        history.append([evaluate(model, task, split, tokenizer.pad_token_id, device) for split in splits])
    best = max(range(task.epochs), key=lambda epoch: history[epoch][0])
    return {
        "task": task.name,
        "seed": seed,
        "score": history[best][1],
        "epoch": best + 1,
        "epochs": history,
        "steps": steps,
        "trained": sum(parameter.numel() for parameter in trained),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Train the seeds, and append a line for each task to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", required=True, help="such as 0,1,2")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for seed in map(int, arguments.seeds.split(",")):
        for task in TASKS:
            line = train(arguments.model, arguments.data_dir, task, seed, device)
            with arguments.out.open("a") as out:
                out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

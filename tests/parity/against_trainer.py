"""Ours against transformers' Trainer + peft: the LoRA cells of a config, trained by both, in one call.

    python -m tests.parity.against_trainer --model DIR --data-dir DIR --results DIR [--device cuda] [--jobs 10]

The peer trains one cell a process, `--jobs` at once, while `lora-bench run` trains the whole config. Both evaluate each
epoch with the same metric and keep the best one. Prints a table: mean, standard deviation and n of both, and whether
the means lie within one pooled standard error. Not collected by pytest: it takes a GPU and a real encoder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lora_bench import data, tasks
from lora_bench.cell import Cell
from lora_bench.grid import cells as grid
from lora_bench.grid import config
from lora_bench.records import store
from lora_bench.run import plan
from lora_bench.tasks.metrics import score


def train_with_peft(cell: Cell, model_dir: str, data_dir: str, out: Path) -> None:
    """Train one LoRA cell with Trainer + peft; write its metric by epoch to `out`."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(cell.seed)
    task = tasks.of(cell)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=task.num_outputs)
    model.float()
    peft_config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=cell.rank or 8, lora_alpha=int(cell.alpha or 8), lora_dropout=0.0,
        target_modules=["query", "value"],
    )  # fmt: skip
    rows = data.load(task, data.DataSource.parse(Path(data_dir)))
    arguments = TrainingArguments(
        output_dir=str(out.with_suffix(".trainer")), learning_rate=cell.lr, num_train_epochs=cell.epochs,
        per_device_train_batch_size=cell.batch_size, per_device_eval_batch_size=128, weight_decay=cell.weight_decay,
        warmup_steps=math.ceil(cell.warmup * cell.epochs * math.ceil(len(rows.train) / cell.batch_size)),
        max_grad_norm=cell.clip, lr_scheduler_type="linear", seed=cell.seed, eval_strategy="epoch",
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    trainer = Trainer(
        model=get_peft_model(model, peft_config), args=arguments, data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=_encoded(rows.train, tokenizer, cell.max_length),
        eval_dataset=_encoded(rows.evals["validation"], tokenizer, cell.max_length),
        compute_metrics=lambda got: score(task, _decided(task, got.predictions), got.label_ids),
    )  # fmt: skip
    began = time.perf_counter()
    trainer.train()
    values = [entry[f"eval_{task.main_metric}"] for entry in trainer.state.log_history if "eval_loss" in entry]
    out.write_text(json.dumps({"values": values, "seconds": time.perf_counter() - began}))


def _decided(task: tasks.Task, logits: Any) -> Any:
    return logits[..., 0] if task.is_regression else logits.argmax(-1)


def _encoded(rows: Any, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    encoded = tokenizer(*rows.texts, truncation=True, padding=False, max_length=max_length)
    return [
        {**{key: values[i] for key, values in encoded.items()}, "labels": label.item()}
        for i, label in enumerate(rows.labels)
    ]


def _worker(cell: Cell, args: argparse.Namespace, folder: Path) -> None:
    out = folder / f"{cell.id}.json"
    if not out.exists():
        job = json.dumps({"cell": cell.model_dump(mode="json"), "out": str(out)})
        command = [sys.executable, "-m", "tests.parity.against_trainer", "--job", job]
        threads = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        log = (folder / f"{cell.id}.log").open("w")
        subprocess.run(
            [*command, "--model", args.model, "--data-dir", args.data_dir],
            check=True,
            env=threads,
            stderr=log,
            stdout=log,
        )


def _table(cells: list[Cell], results: Path, folder: Path) -> None:
    ours = {record.id: record for record in store.read_records(results).records}
    for task in dict.fromkeys(cell.task for cell in cells):
        own = [cell for cell in cells if cell.task == task]
        mine = [100 * (ours[cell.id].best or 0) for cell in own]
        entries = [json.loads((folder / f"{cell.id}.json").read_text()) for cell in own]
        peer = [100 * max(entry["values"]) for entry in entries]
        error = math.sqrt(stdev(mine) ** 2 / len(mine) + stdev(peer) ** 2 / len(peer))
        gap = fmean(mine) - fmean(peer)
        print(
            f"{task}: ours {fmean(mine):.2f} ± {stdev(mine):.2f} (n={len(mine)}), "
            f"Trainer + peft {fmean(peer):.2f} ± {stdev(peer):.2f} (n={len(peer)}), difference {gap:+.2f}, "
            f"pooled standard error {error:.2f}: {'within' if abs(gap) <= error else 'OUTSIDE'} one"
        )
        print(f"  ours {[round(v, 1) for v in mine]}  peer {[round(v, 1) for v in peer]}")


def _own_command(args: argparse.Namespace, seeds: list[int]) -> list[str]:
    given = {"--config": [args.config], "--model": [args.model], "--data-dir": [args.data_dir], "--seed": seeds}
    given |= {"--results": [args.results], "--device": [args.device], "--method": args.method or []}
    given |= {"--task": args.task or []}
    options = [text for option, values in given.items() for value in values for text in (option, str(value))]
    return [sys.executable, "-m", "lora_bench", "run", *options]


def main() -> None:
    """Both trainers, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--config", default=str(Path(__file__).with_name("parity.yaml")))
    parser.add_argument("--results", default="results/parity")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=10, help="Peer processes at once.")
    parser.add_argument("--own-jobs", type=int, default=1, help="Processes of ours at once, by seed.")
    parser.add_argument("--seed", type=int, nargs="+", help="Other seeds than the config's.")
    parser.add_argument("--task", nargs="+", help="Only these of the config's tasks.")
    parser.add_argument("--method", nargs="+", help="Other methods of ours than the config's; lora must be among them.")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        train_with_peft(Cell.model_validate(job["cell"]), args.model, args.data_dir, Path(job["out"]))
        return
    chosen = config.load_config(Path(args.config))
    wanted = {"model": [args.model], "method": ["lora"], "seed": args.seed, "task": args.task}
    cells = grid.expand(chosen, wanted, plan.sources(), args.data_dir).cells
    folder = Path(args.results) / "trainer"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = sorted({cell.seed for cell in cells})
    shares = [seeds[start :: args.own_jobs] for start in range(args.own_jobs)]
    with ThreadPoolExecutor(args.jobs) as pool, ThreadPoolExecutor(args.own_jobs) as own:
        jobs: list[Future[object]] = [pool.submit(_worker, cell, args, folder) for cell in cells]
        jobs += [own.submit(lambda share: subprocess.check_call(_own_command(args, share)), share) for share in shares]
        for job in jobs:
            job.result()
    _table(list(cells), Path(args.results), folder)


if __name__ == "__main__":
    main()

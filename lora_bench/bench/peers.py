"""The peers: transformers' Trainer + peft, and a bare peft loop, each at the settings that are fastest for it.

Both train LoRA of rank 16 on the weights that ours adapts, or the whole model (`full`, without peft), with the same
rows in the same order, the model's dropout, our clipping and schedule. With bf16 the frozen weights are bfloat16 and
what trains is float32, under autocast, as in ours: frozen float32 weights would be cast anew in every step. peft and
accelerate are imported here and in no other module.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
    get_linear_schedule_with_warmup,
)

from lora_bench import methods
from lora_bench.bench.choice import FULL
from lora_bench.bench.clock import Measured, Memory, Stopwatch
from lora_bench.bench.workload import ALPHA, RANK, RATE, SEED, STEPS, Collate, Model, Work, has_types, rows_of
from lora_bench.data import hub
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder import targets as names
from lora_bench.engine.encoder.windows import Ints

NEEDED = ("peft", "accelerate")
WARMUP, CLIP = 0.06, 1.0
READY_BATCHES = 512  # that `loop` collates before it starts; it goes round


@dataclass(frozen=True, eq=False)
class Peer:
    """What a peer trains, where, and for how many timed seconds; the whole model if `full`, else LoRA."""

    model: Model
    work: Work
    targets: str
    device: torch.device
    seconds: float
    scratch: Path
    full: bool = False

    @property
    def rate(self) -> float:
        """The learning rate."""
        return methods.get(FULL).default_lr if self.full else RATE


def missing() -> list[str]:
    """The libraries that peers need and that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers, peft and accelerate say of each other's interfaces."""
    with warnings.catch_warnings(), encoders.quiet_transformers():
        warnings.simplefilter("ignore")
        yield


def build(peer: Peer) -> Any:
    """The classifier on the device, in training mode: whole, or with peft's LoRA on frozen weights."""
    torch.manual_seed(SEED)
    mixed = peer.work.precision == "bf16" and not peer.full
    with hub.hub_mode(peer.model.offline):
        model = AutoModelForSequenceClassification.from_pretrained(
            peer.model.location, num_labels=peer.work.task.num_outputs, local_files_only=peer.model.offline,
            dtype=torch.bfloat16 if mixed else torch.float32, use_safetensors=True,
        )  # fmt: skip
    if not peer.full:
        model = _with_lora(peer, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.to(peer.device).train()


def _with_lora(peer: Peer, model: Any) -> Any:
    """The model frozen, with LoRA on the targets."""
    from peft import LoraConfig, TaskType, get_peft_model

    linears = [name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=min(RANK, int(model.config.hidden_size)), lora_alpha=int(ALPHA), lora_dropout=0.0,
        target_modules=list(names.resolve(linears, peer.targets)),
    )  # fmt: skip
    return get_peft_model(model, config)


def autocast(peer: Peer) -> Any:
    """bf16 autocast, or nothing for float32."""
    mixed = peer.work.precision == "bf16"
    return torch.autocast(peer.device.type, torch.bfloat16) if mixed else nullcontext()


def loop(peer: Peer) -> Measured:
    """A bare loop: batches padded and on the device beforehand, fused AdamW, nothing read back."""
    memory, start = Memory(peer.device), time.perf_counter()
    memory.begin()
    with quiet():
        model = build(peer)
    built = time.perf_counter() - start
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=peer.rate, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimiser, round(WARMUP * STEPS), STEPS)
    tokens = np.resize(peer.work.tokens[:READY_BATCHES], STEPS)
    watch = Stopwatch(peer.seconds, peer.device, tokens)
    batches = itertools.cycle(_ready(peer, model.config))
    watch.start()
    while not watch.done:
        for batch in itertools.islice(batches, watch.wanted):
            with autocast(peer):
                loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
        watch.lap()
    return Measured(tuple(watch.windows), built, watch.once, memory.peak())


def _ready(peer: Peer, config: Any) -> list[dict[str, Tensor]]:
    """The first batches of the order, on the device."""
    rows, collate = rows_of(peer.work.table, has_types(config)), Collate(peer.work.pad_id)
    made = [collate([rows[row] for row in group]) for group in peer.work.order[:READY_BATCHES]]
    return [{name: part.to(peer.device) for name, part in batch.items()} for batch in made]


def trainer(peer: Peer, workers: int = 0) -> Measured:
    """transformers' Trainer, timed by a callback."""
    memory, start = Memory(peer.device), time.perf_counter()
    memory.begin()
    watch = Stopwatch(peer.seconds, peer.device, peer.work.tokens)
    left = watch.wanted

    def after_step() -> bool:
        nonlocal left
        left -= 1
        if not left:
            watch.lap()
            left = watch.wanted
        return watch.done

    with quiet():
        made = make_trainer(peer, build(peer), workers, after_step)
        built = time.perf_counter() - start
        watch.start()
        made.train()
    settings: dict[str, int | str] = {"dataloader_num_workers": workers}
    return Measured(tuple(watch.windows), built, watch.once, memory.peak(), settings)


def make_trainer(peer: Peer, model: Any, workers: int, after_step: Callable[[], bool]) -> Any:
    """A Trainer that only trains: no evaluation, no saving, no logging; rows tokenised, data in the order of `work`.

    `logging_nan_inf_filter` is off, as it reads the loss in every step.
    """
    from transformers import Trainer, TrainingArguments

    work, cuda = peer.work, peer.device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(peer.scratch / "trainer"), max_steps=STEPS, per_device_train_batch_size=work.batch_size,
        learning_rate=peer.rate, weight_decay=0.0, warmup_steps=round(WARMUP * STEPS), lr_scheduler_type="linear",
        max_grad_norm=CLIP, optim="adamw_torch_fused", bf16=work.precision == "bf16", use_cpu=not cuda, seed=SEED,
        eval_strategy="no", save_strategy="no", logging_strategy="no", logging_nan_inf_filter=False, report_to=[],
        disable_tqdm=True, train_sampling_strategy="sequential", dataloader_num_workers=workers,
        dataloader_pin_memory=cuda, remove_unused_columns=False, accelerator_config={"non_blocking": cuda},
    )  # fmt: skip
    if cuda and arguments.device is not None:  # asking for the device counts the GPUs: more than one is DataParallel
        arguments._n_gpu = 1
    stream = Stream(rows_of(work.table, has_types(model.config)), work.order)
    made = Trainer(
        model=model, args=arguments, data_collator=Collate(work.pad_id), train_dataset=stream,
        callbacks=[AfterStep(after_step)],
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    return made


class Stream(Dataset[dict[str, Any]]):
    """The rows in the order of training, as a dataset to be read from first to last."""

    def __init__(self, rows: list[dict[str, Any]], order: Ints) -> None:
        self.rows, self.order = rows, order.ravel()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[int(self.order[index])]


class AfterStep(TrainerCallback):
    """Calls a function after every step; training stops when it returns True."""

    def __init__(self, call: Callable[[], bool]) -> None:
        self.call = call

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """A step has been issued."""
        control.should_training_stop = self.call()

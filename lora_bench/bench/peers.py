"""The peers: transformers' Trainer with peft, and a bare peft loop, each with the settings that are fastest for it.

Both train LoRA of rank 16 on the weights that lora-bench adapts, or the whole model (`full`, without peft), with the
same rows in the same order, the model's dropout, and lora-bench's clipping and schedule. With bf16 the frozen weights
are bfloat16 and the trained ones float32, under autocast, as in lora-bench: frozen float32 weights would be cast again
in every step. No other module imports peft, and only `run/trackers.py` imports accelerate as well.
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
from lora_bench.bench.clock import ROUNDS, Measurement, MemoryMeter, Stopwatch, Turns
from lora_bench.bench.settings import FULL
from lora_bench.bench.workload import (
    ALPHA,
    LEARNING_RATE,
    MAX_STEPS,
    RANK,
    SEED,
    BenchModel,
    Collate,
    Workload,
    has_token_types,
    table_rows,
)
from lora_bench.cell import Cell
from lora_bench.data import hub
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder import targets as names
from lora_bench.engine.encoder.windows import Ints

LIBRARIES = ("peft", "accelerate")
WARMUP: float = Cell.model_fields["warmup"].default  # as the cells of `packed` have them
CLIP: float = Cell.model_fields["clip"].default
PREPARED_BATCHES = 512  # that the loop collates before it starts, and then repeats


@dataclass(frozen=True, eq=False)
class Peer:
    """What a peer trains.

    Attributes:
        model: The model to load.
        work: The task's rows and their order.
        targets: The target set of LoRA.
        device: The device.
        seconds: The timed seconds, all repeats together.
        scratch: A folder for temporary files.
        full: Whether to train the whole model instead of LoRA.
    """

    model: BenchModel
    work: Workload
    targets: str
    device: torch.device
    seconds: float
    scratch: Path
    full: bool = False

    @property
    def learning_rate(self) -> float:
        """The learning rate."""
        return methods.get(FULL).default_lr if self.full else LEARNING_RATE


def missing_libraries() -> list[str]:
    """Return the libraries that the peers need and that are not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of transformers, peft and accelerate about each other's interfaces."""
    with warnings.catch_warnings(), encoders.quiet_transformers():
        warnings.simplefilter("ignore")
        yield


def build_model(peer: Peer) -> Any:
    """Return the classifier on the device in training mode: the whole model, or peft's LoRA on frozen weights."""
    torch.manual_seed(SEED)
    has_bf16_weights = peer.work.precision == "bf16" and not peer.full
    with hub.hub_mode(peer.model.offline):
        model = AutoModelForSequenceClassification.from_pretrained(
            peer.model.location,
            num_labels=peer.work.task.num_outputs,
            local_files_only=peer.model.offline,
            dtype=torch.bfloat16 if has_bf16_weights else torch.float32,
            use_safetensors=True,
        )
    if not peer.full:
        model = _add_lora(peer, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.to(peer.device).train()


def _add_lora(peer: Peer, model: Any) -> Any:
    """Freeze the model and add LoRA to the targets."""
    from peft import LoraConfig, TaskType, get_peft_model

    linears = [name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=min(RANK, int(model.config.hidden_size)),
        lora_alpha=int(ALPHA),
        lora_dropout=0.0,
        target_modules=list(names.resolve(linears, peer.targets)),
    )
    return get_peft_model(model, config)


def autocast(peer: Peer) -> Any:
    """Return a context with bf16 autocast, or an empty one for float32."""
    is_bf16 = peer.work.precision == "bf16"
    return torch.autocast(peer.device.type, torch.bfloat16) if is_bf16 else nullcontext()


def run_loop(peer: Peer) -> Turns:
    """Measure a bare loop: batches padded and on the device beforehand, fused AdamW, no value read back."""
    memory, start = MemoryMeter(peer.device), time.perf_counter()
    with memory.turn():
        with quiet():
            model = build_model(peer)
        build_seconds = time.perf_counter() - start
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=peer.learning_rate, weight_decay=0.0, fused=True)
        schedule = get_linear_schedule_with_warmup(optimiser, round(WARMUP * MAX_STEPS), MAX_STEPS)
        batches = itertools.cycle(_prepared_batches(peer, model.config))

        def train(steps: int) -> None:
            for batch in itertools.islice(batches, steps):
                with autocast(peer):
                    loss = model(**batch).loss
                loss.backward()
                nn.utils.clip_grad_norm_(trained, CLIP)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad(set_to_none=True)

        watch = Stopwatch(train, peer.seconds, peer.device, np.resize(peer.work.tokens[:PREPARED_BATCHES], MAX_STEPS))
        watch.warm_up()
    for _ in range(ROUNDS):
        yield
        with memory.turn():
            watch.repeat()
    return Measurement(tuple(watch.repeats), build_seconds, watch.setup_seconds, memory.peak)


def _prepared_batches(peer: Peer, config: Any) -> list[dict[str, Tensor]]:
    """Return the first batches of the order, on the device."""
    rows, collate = table_rows(peer.work.table, has_token_types(config)), Collate(peer.work.pad_id)
    batches = [collate([rows[row] for row in batch_rows]) for batch_rows in peer.work.order[:PREPARED_BATCHES]]
    return [{name: tensor.to(peer.device) for name, tensor in batch.items()} for batch in batches]


def make_trainer(peer: Peer, model: Any, workers: int, after_step: Callable[[], bool]) -> Any:
    """Create a Trainer that only trains: no evaluation, no saving, no logging.

    Args:
        peer: What it trains; the rows are tokenised, in the order of the workload.
        model: The model.
        workers: The number of data-loader workers.
        after_step: Called after every step; training stops when it returns True.
    """
    from transformers import Trainer, TrainingArguments

    work, on_cuda = peer.work, peer.device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(peer.scratch / "trainer"),
        max_steps=MAX_STEPS,
        per_device_train_batch_size=work.batch_size,
        learning_rate=peer.learning_rate,
        weight_decay=0.0,
        warmup_steps=round(WARMUP * MAX_STEPS),
        lr_scheduler_type="linear",
        max_grad_norm=CLIP,
        optim="adamw_torch_fused",
        bf16=work.precision == "bf16",
        use_cpu=not on_cuda,
        seed=SEED,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would read the loss in every step
        report_to=[],
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        dataloader_num_workers=workers,
        dataloader_pin_memory=on_cuda,
        remove_unused_columns=False,
        accelerator_config={"non_blocking": on_cuda},
    )
    # Asking for the device counts the GPUs; with more than one, Trainer would use DataParallel.
    if on_cuda and arguments.device is not None:
        arguments._n_gpu = 1
    stream = Stream(table_rows(work.table, has_token_types(model.config)), work.order)
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=Collate(work.pad_id),
        train_dataset=stream,
        callbacks=[AfterStep(after_step)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


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
        """Call the function; the step has been issued, but need not have finished on the device."""
        control.should_training_stop = self.call()

"""A trained cell as transformers' own classifier: the updates are added to its weights, and it takes the cell's head.

A cell with `head: model` has trained the head of the model's type. The benchmark's own head is RoBERTa's: a model type
whose head computes something else (ELECTRA's has the same names and another activation) cannot hold it, and is refused.
`check` compares what was put together with the cell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lora_bench.data import hub
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder import head_forms, probe
from lora_bench.engine.encoder.head_forms import HeadForm
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.export.trained import Trained
from lora_bench.tasks import Task

# How far logits of the export may differ, relative to the largest one (chosen). The export computes in float32, the
# cell in its own precision.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "bf16": 0.1}


def label_settings(task: Task) -> dict[str, Any]:
    """Return the entries about labels in the config of a classifier for the task."""
    if task.is_regression:
        return {"num_labels": 1, "problem_type": "regression"}
    names = dict(enumerate(task.labels))
    return {
        "num_labels": len(names),
        "problem_type": "single_label_classification",
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
    }


def untrained(trained: Trained) -> PreTrainedModel:
    """Return the base model in float32 with an untrained head that the cell's head fits.

    Raises:
        BenchError: Exit code 2 if transformers' head for this model type computes something else, 3 if the model's
            config gives it other shapes.
    """
    form_of(trained.pack)  # before the model is loaded
    with torch.random.fork_rng(), encoders.quiet_transformers(), hub.hub_mode(trained.offline):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            trained.model.location,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=trained.offline,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            **label_settings(trained.task),
        )
    shapes = {name: value.shape for name, value in model.named_parameters()}
    if any(shapes.get(name) != value.shape for name, value in head_values(model, trained.pack).items()):
        what = (
            f"transformers' head for this '{model.config.model_type}' has other shapes than the one that was trained."
        )
        raise BenchError(what, "Use the config.json that belongs to the weights.", MISSING)
    model.eval()
    return model


def form_of(pack: Pack) -> HeadForm:
    """Return the head of transformers' classifier that a cell's head is put into; the cell is a pack of one.

    Raises:
        BenchError: Exit code 2 if it computes something else.
    """
    return head_forms.in_classifier(pack.cells[0].head, pack.backbone.config)


def head_values(model: PreTrainedModel, pack: Pack) -> dict[str, Tensor]:
    """Return the values of a cell's head by their names in the classifier."""
    names = form_of(pack).parameters(model.base_model_prefix)
    return {names[name]: value for name, value in pack.state(0).head.items()}


@torch.no_grad()
def insert(model: PreTrainedModel, pack: Pack, deltas: dict[str, Tensor]) -> None:
    """Put a trained cell into the model, in place.

    Args:
        model: What `untrained` returned.
        pack: The cell as a pack of one.
        deltas: What is added to the weight of each module, `[out, in]` by the module's name in the encoder. Biases, a
            fully trained encoder and the head are taken from the pack.
    """
    base = model.base_model
    for name, delta in deltas.items():
        _add(base.get_submodule(name).weight, delta)
    for name, delta in pack.bias_deltas(0).items():
        _add(base.get_submodule(name).bias, delta)
    state = pack.state(0)
    if pack.whole is not None:
        base.load_state_dict(state.adapter, strict=False)
    for name, value in head_values(model, pack).items():
        model.get_parameter(name).copy_(value)


def _add(value: Any, delta: Tensor) -> None:
    value.copy_(value.double() + delta.double().cpu())


@torch.no_grad()
def check(model: PreTrainedModel, pack: Pack) -> float:
    """Compare the model with the cell on the probe sequences.

    Returns:
        The largest difference of a logit.

    Raises:
        BenchError: Exit code 2 if they differ by more than rounding.
    """
    backbone = pack.backbone
    with pack:
        pack.compose()
        ours = pack.logits(backbone.probe_batch())[0].cpu().double()
    tokens = probe.tokens(backbone.config, backbone.longest, backbone.takes_types)
    theirs = model(**probe.inputs(tokens, probe.padding(backbone.config)), return_dict=True).logits.double()
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE[pack.backbone.precision] * max(1.0, float(ours.abs().max())):
        raise BenchError(
            f"What was exported differs from what was trained: a logit by {difference:.2g}.",
            "This is a fault of lora-bench: please report the method and the model.",
            USAGE,
        )
    return difference

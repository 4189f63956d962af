"""The classification heads of model types: one record each.

All of them compute `output(dropout(activation(dense(dropout(first token)))))` with a square dense layer. They differ in
the activation, in where dropout is applied and at which rate, in the names of their parts in transformers'
`...ForSequenceClassification`, and in whether the dense layer is the encoder's pooler, which was pretrained. To
support another type whose head has this form, add it to a record or add a record; `tests/engine/test_heads.py` compares
each with transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from lora_bench.cell import Head
from lora_bench.engine.masks import Site
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.text import clean

DENSE, OUTPUT = "dense", "out_proj"  # the parts of every head, as a pack and its files name them
SETTING = "--set head=model"
UNSET = "Leave `head` unset, to train RoBERTa's head over this encoder."


@dataclass(frozen=True)
class HeadForm:
    """The classification head of some model types.

    Attributes:
        model_types: Their `model_type` in config.json.
        dense: The dense layer in transformers' classifier. If it is the pooler, its name within the encoder.
        output: The output layer in transformers' classifier.
        output_dropout: The names of the config's settings for the rate of the dropout before the output layer; the
            first that is set counts.
        input_dropout: The same for the dropout before the dense layer; empty if the head has none there.
        activation: The name of the activation in transformers.
        activation_setting: The config's setting that names another activation; None where there is none.
        pooler: Whether the dense layer is the encoder's pooler. It starts from the pretrained one, as in transformers.
    """

    model_types: frozenset[str]
    dense: str
    output: str
    output_dropout: tuple[str, ...]
    input_dropout: tuple[str, ...] = ()
    activation: str = "tanh"
    activation_setting: str | None = None
    pooler: bool = False

    def activation_name(self, config: Any) -> str:
        """The name of the activation for a model."""
        if self.activation_setting is None:
            return self.activation
        return str(getattr(config, self.activation_setting, self.activation))

    def activation_of(self, config: Any) -> Callable[[Tensor], Tensor]:
        """The activation for a model.

        Raises:
            BenchError: Exit code 3 for one that transformers does not have, or that has weights.
        """
        name = self.activation_name(config)
        if name in ACT2FN:
            function: nn.Module = ACT2FN[name]
            if next(function.parameters(), None) is None:
                return function
        what = f"The head's activation '{clean(name)}' ({self.activation_setting}) cannot be trained here."
        raise BenchError(what, UNSET, MISSING)

    def dropouts(self, config: Any, size: int) -> tuple[Site, Site]:
        """The dropouts before the dense and before the output layer, for hidden states of `size` values."""
        before, after = (_rate(config, names) for names in (self.input_dropout, self.output_dropout))
        return Site("hidden", size, before), Site("hidden", size, after)

    def modules(self, prefix: str) -> dict[str, str]:
        """The names of the parts in transformers' classifier, in which the encoder's name is `prefix`."""
        return {DENSE: f"{prefix}.{self.dense}" if self.pooler else self.dense, OUTPUT: self.output}

    def parameters(self, prefix: str) -> dict[str, str]:
        """The names of the parameters in transformers' classifier, by the names that a pack gives them."""
        return {
            f"{part}.{kind}": f"{module}.{kind}"
            for part, module in self.modules(prefix).items()
            for kind in ("weight", "bias")
        }

    @property
    def trained_modules(self) -> list[str]:
        """The modules that a peft adapter saves whole (`modules_to_save`), by the beginnings of the parts' names."""
        return list(dict.fromkeys(name.partition(".")[0] for name in (self.dense, self.output)))


_BERT_DROPOUT = ("classifier_dropout", "hidden_dropout_prob")

# RoBERTa's head, with the dropout rate that the config of any type has. Cells with `head` unset train it on every type.
BENCHMARK = HeadForm(
    model_types=frozenset(),
    dense="classifier.dense",
    output="classifier.out_proj",
    input_dropout=("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout"),
    output_dropout=("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout"),
)

FORMS = (
    HeadForm(
        model_types=frozenset({
            "roberta", "xlm-roberta", "camembert", "data2vec-text", "jina_embeddings_v3", "roberta-prelayernorm",
            "xlm-roberta-xl",
        }),
        dense="classifier.dense",
        output="classifier.out_proj",
        input_dropout=_BERT_DROPOUT,
        output_dropout=_BERT_DROPOUT,
    ),
    HeadForm(
        model_types=frozenset({"mpnet", "esm"}),
        dense="classifier.dense",
        output="classifier.out_proj",
        input_dropout=("hidden_dropout_prob",),
        output_dropout=("hidden_dropout_prob",),
    ),
    HeadForm(
        model_types=frozenset({"electra"}),
        dense="classifier.dense",
        output="classifier.out_proj",
        input_dropout=_BERT_DROPOUT,
        output_dropout=_BERT_DROPOUT,
        activation="gelu",
    ),
    HeadForm(
        model_types=frozenset({"roformer"}),
        dense="classifier.dense",
        output="classifier.out_proj",
        input_dropout=("hidden_dropout_prob",),
        output_dropout=("hidden_dropout_prob",),
        activation="gelu",
        activation_setting="hidden_act",
    ),
    HeadForm(
        model_types=frozenset({"bert", "ernie"}),
        dense="pooler.dense",
        output="classifier",
        output_dropout=_BERT_DROPOUT,
        pooler=True,
    ),
    HeadForm(
        model_types=frozenset({"megatron-bert"}),
        dense="pooler.dense",
        output="classifier",
        output_dropout=("hidden_dropout_prob",),
        pooler=True,
    ),
    HeadForm(
        model_types=frozenset({"albert"}),
        dense="pooler",
        output="classifier",
        output_dropout=("classifier_dropout_prob",),
        pooler=True,
    ),
    HeadForm(
        model_types=frozenset({"distilbert"}),
        dense="pre_classifier",
        output="classifier",
        output_dropout=("seq_classif_dropout",),
        activation="relu",
    ),
    HeadForm(
        model_types=frozenset({"deberta", "deberta-v2"}),
        dense="pooler.dense",
        output="classifier",
        input_dropout=("pooler_dropout",),
        output_dropout=("cls_dropout", "hidden_dropout_prob"),
        activation="gelu",
        activation_setting="pooler_hidden_act",
    ),
)  # fmt: skip


def of(config: Any) -> HeadForm | None:
    """The head of a model's type; None if there is no record of it."""
    model_type = getattr(config, "model_type", None)
    return next((form for form in FORMS if model_type in form.model_types), None)


def of_cell(head: Head | None, config: Any) -> HeadForm:
    """The head that a cell trains.

    Args:
        head: The cell's setting.
        config: The model's config; not needed where the setting is None.

    Raises:
        BenchError: Exit code 3 if the setting asks for the type's own head, and there is no record of it.
    """
    form = BENCHMARK if head is None else of(config)
    if form is None:
        raise BenchError(
            f"head=model: the classification head of '{config.model_type}' cannot be trained here.", UNSET, MISSING
        )
    return form


def in_classifier(head: Head | None, config: Any) -> HeadForm:
    """The head of a model's type, if it computes what a cell's head has trained.

    The benchmark's head and any other one with tanh compute the same without dropout.

    Raises:
        BenchError: Exit code 2 if it does not.
    """
    form = of(config)
    if form is None or (head is None and form.activation_name(config) != BENCHMARK.activation):
        raise BenchError(
            f"transformers' classifier for '{config.model_type}' has another head than the one that was trained.",
            "The Python API takes the adapter alone." if form is None else f"Train it with its own head: {SETTING}.",
            USAGE,
        )
    return form


def take_pooler(model: Any, missing: Collection[str]) -> dict[str, Tensor]:
    """Remove the pooler of an encoder, and return its dense layer if a head starts from it.

    Args:
        model: The encoder.
        missing: The names of the parameters that its files do not hold.

    Returns:
        `weight` and `bias`; empty where the files have none.
    """
    if getattr(model, "pooler", None) is None:
        return {}
    form, values = of(model.config), dict[str, Tensor]()
    if form is not None and form.pooler:
        values = {
            kind: value.detach()
            for kind, value in model.get_submodule(form.dense).named_parameters()
            if f"{form.dense}.{kind}" not in missing
        }
    model.register_module("pooler", _NoPooler())  # a head reads the first token's state
    return values if len(values) == 2 else {}


class _NoPooler(nn.Module):
    """Replaces a pooler that was removed: LayoutLM calls its pooler without checking that it has one."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the hidden states."""
        return hidden


def _rate(config: Any, names: tuple[str, ...]) -> float:
    """The first of the config's settings that is a number; 0 if none is."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return 0.0

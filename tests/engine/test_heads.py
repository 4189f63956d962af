"""`head: model`: the classification head of each model type computes, drops and starts as transformers' own does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder import head_forms, probe
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.masks import Masks
from lora_bench.errors import MISSING, BenchError
from lora_bench.run.grid_facts import HEAD_TYPES
from lora_bench.testing import FAMILIES, make_cell, make_config, make_model
from tests.engine.engine_factory import CPU, backbone, difference, loaded, losses, start, trained, trainer, values

TYPES = tuple(sorted(name for form in head_forms.FORMS for name in form.model_types))
OTHERS: dict[str, dict[str, Any]] = {  # types of which `lora_bench.testing` has no encoder: RoBERTa's sizes, and these
    "data2vec-text": {}, "ernie": {"type_vocab_size": 2}, "esm": {"mask_token_id": 3},
    "jina_embeddings_v3": {}, "roberta-prelayernorm": {}, "roformer": {"embedding_size": 32}, "xlm-roberta-xl": {},
}  # fmt: skip
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "pad_token_id",
    "max_position_embeddings", "type_vocab_size", "initializer_range",
)  # fmt: skip
# Every rate that a head may have, all apart, so that a wrong one shows.
RATES = {
    "hidden_dropout_prob": 0.2, "classifier_dropout": 0.3, "classifier_dropout_prob": 0.35, "seq_classif_dropout": 0.4,
    "pooler_dropout": 0.15, "cls_dropout": 0.45, "dropout": 0.25,
}  # fmt: skip
CELL = make_cell("lora", head="model", task="mnli")


def classifier_of(kind: str, **settings: Any) -> PreTrainedModel:
    """A tiny classifier of transformers with three classes, in float64 and without a zero among its biases."""
    if kind in FAMILIES:
        config = make_config(kind, num_labels=3, **settings)
    else:
        sizes = {name: getattr(make_config("roberta"), name) for name in SIZES}
        config = AutoConfig.for_model(kind, **{**sizes, **OTHERS[kind], "num_labels": 3, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
    untyped: Any = model
    return untyped.double().eval()  # type: ignore[no-any-return]


def pack_with_head_of(model: PreTrainedModel) -> Pack:
    """A cell over the model's encoder, before its first step, with the model's head."""
    encoder: Any = copy.deepcopy(model.base_model)
    on = Backbone(encoder, CPU, "float64", pooler=head_forms.take_pooler(encoder, ()))
    pack = Pack([CELL], on, 3)
    names = pack.heads.form.parameters(model.base_model_prefix)
    start = pack.state(0)
    if pack.heads.form.pooler:  # it starts from the encoder's
        for name in ("dense.weight", "dense.bias"):
            torch.testing.assert_close(start.head[name], model.get_parameter(names[name]), rtol=0, atol=0)
    pack.load(0, State(start.adapter, {name: model.get_parameter(full).detach() for name, full in names.items()}))
    return pack


def probe_inputs(on: Backbone) -> dict[str, Tensor]:
    """The probe sequences as transformers takes them; short ones, so that all fit every model."""
    tokens = probe.tokens(on.config, probe.SHORT, on.takes_types)
    return probe.inputs(tokens, probe.padding(on.config))


def test_plan_knows_the_same_types_without_torch() -> None:
    assert set(TYPES) == HEAD_TYPES


def test_every_family_of_the_issue_has_a_head() -> None:
    without = {"modernbert", "xlm"}
    assert set(FAMILIES) - set(TYPES) == without
    assert set(TYPES) == (set(FAMILIES) - without) | set(OTHERS)


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_the_logits_are_those_of_transformers(kind: str) -> None:
    model = classifier_of(kind)
    pack = pack_with_head_of(model)
    on = pack.backbone
    inputs = probe_inputs(on)
    first = model.base_model(**inputs).last_hidden_state[:, 0]
    ours = pack.heads.logits(pack.heads.block.matrix, first[None], None)[0]
    theirs = model(**inputs).logits
    assert float(theirs.abs().max()) > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    with pack:
        pack.compose()
        whole = pack.logits(on.probe_batch())[0]
    tokens = probe.tokens(on.config, on.longest, on.takes_types)
    theirs = model(**probe.inputs(tokens, probe.padding(on.config))).logits
    torch.testing.assert_close(whole, theirs, rtol=0, atol=1e-4 if kind in ROTATED else 1e-10)


# Their rotary positions are computed in float32, on windows in another order.
ROTATED = ("esm", "jina_embeddings_v3", "roformer")


class GivenMasks(TorchFunctionMode):
    """Replaces the dropouts of a classifier: the encoder's do nothing, the head's take our masks one by one."""

    def __init__(self, masks: Masks, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.expected = [
            (site.rate, mask)
            for index, site in enumerate(masks.head)
            if (mask := masks.head_mask(index, rows)) is not None
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.dropout:
            return func(*args, **(kwargs or {}))
        return self._dropout(*args, **(kwargs or {}))

    def _dropout(self, input: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
        if input.shape[:-1] != (self.rows,) or not training or not p:
            return input
        rate, mask = self.expected.pop(0)
        assert p == rate
        return input * mask.factor(input.dtype)


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_dropout_has_the_rates_and_positions_of_transformers(kind: str) -> None:
    model = classifier_of(kind, **RATES)
    pack = pack_with_head_of(model)
    inputs = probe_inputs(pack.backbone)
    rows = len(inputs["input_ids"])
    first = model.base_model(**inputs).last_hidden_state[:, 0]
    masks = pack.masks(pack.backbone.probe_batch().shape).draw(torch.Generator().manual_seed(1), 1, rows)
    ours = pack.heads.logits(pack.heads.block.matrix, first[None], masks)[0]
    undropped = pack.heads.logits(pack.heads.block.matrix, first[None], None)[0]
    mode = GivenMasks(masks, rows)
    assert mode.expected
    with mode:
        theirs = model.train()(**inputs).logits
    assert not mode.expected
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert float((ours - undropped).abs().max()) > 1e-3


def test_on_roberta_it_is_the_head_as_always() -> None:
    """To the bit: the same start, the same masks, the same steps."""
    cells = [make_cell("lora"), make_cell("lora", head="model")]
    ours, theirs = (values(trained([cell], backbone("roberta"))[cell]) for cell in cells)
    assert difference(ours, theirs) == 0.0
    assert cells[0].id != cells[1].id


@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert", "deberta-v2"])
def test_a_head_does_not_depend_on_its_pack(kind: str) -> None:
    cells = [make_cell("lora", head="model", rank=rank, lr=lr) for rank, lr in ((4, 1e-2), (7, 2e-2), (2, 4e-3))]
    on = backbone(kind)
    together, alone = trained(cells, on), trained([cells[0]], on)
    assert difference(values(together[cells[0]]), values(alone[cells[0]])) < 1e-8
    assert abs(losses(together)[cells[0]] - losses(alone)[cells[0]]).max() < 1e-10


def test_cells_with_other_heads_are_no_pack() -> None:
    cells = [make_cell("lora"), make_cell("lora", head="model")]
    with pytest.raises(ValueError, match="heads of one form"):
        Pack(cells, backbone("bert"), 2)


@pytest.mark.parametrize("kind", ["bert", "albert", "megatron-bert"])
def test_the_dense_layer_starts_from_the_files_pooler(kind: str, tmp_path: Path) -> None:
    cell = make_cell("lora", head="model", precision="float32")
    make_model(tmp_path, kind)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    names = {name.rpartition(".")[2]: name for name in tensors if "pooler" in name}
    held = start(cell, loaded(tmp_path))
    for part, name in names.items():
        assert torch.equal(held[f"head.dense.{part}"], tensors[name])
    benchmark = start(make_cell("lora", precision="float32"), loaded(tmp_path))
    assert float(held["head.dense.weight"].std()) > 5 * float(benchmark["head.dense.weight"].std())
    save_file({name: value for name, value in tensors.items() if "pooler" not in name}, file, {"format": "pt"})
    fresh = start(cell, loaded(tmp_path))
    assert all(torch.equal(fresh[name], value) for name, value in benchmark.items() if name.startswith("head."))


def test_a_damaged_pooler_is_refused_where_it_would_train(tmp_path: Path) -> None:
    file = make_model(tmp_path, "bert") / "model.safetensors"
    tensors = load_file(file)
    tensors["pooler.dense.weight"][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    Pack([make_cell("lora", precision="float32")], loaded(tmp_path), 2)
    with pytest.raises(BenchError, match="pooler") as refused:
        Pack([make_cell("lora", head="model", precision="float32")], loaded(tmp_path), 2)
    assert refused.value.code == MISSING


@pytest.mark.parametrize(
    ("kind", "settings"), [("modernbert", {}), ("xlm", {}), ("deberta-v2", {"pooler_hidden_act": "nonesuch"})]
)
def test_a_head_that_is_not_known_is_refused(kind: str, settings: dict[str, Any]) -> None:
    encoder = backbone(kind)
    for name, value in settings.items():
        setattr(encoder.config, name, value)
    Pack([make_cell("lora")], encoder, 2)
    with pytest.raises(BenchError, match="cannot be trained here") as refused:
        Pack([CELL], encoder, 2)
    assert refused.value.code == MISSING
    assert "Leave `head` unset" in refused.value.hint


def test_it_is_saved_and_loaded_with_the_adapter(tmp_path: Path) -> None:
    make_model(tmp_path / "model", "bert")
    cell = make_cell("lora", head="model", precision="float32")
    ours = trainer([cell], loaded(tmp_path / "model"))
    before = ours.pack.state(0)
    ours.run()
    state = ours.pack.state(0)
    assert float((state.head["dense.weight"] - before.head["dense.weight"]).abs().max()) > 1e-3
    saved.save(tmp_path / "adapter", cell, 2, state)
    again = saved.load(tmp_path / "adapter", loaded(tmp_path / "model"))
    assert again.cells == (cell,)
    assert all(torch.equal(value, again.state(0).head[name]) for name, value in state.head.items())

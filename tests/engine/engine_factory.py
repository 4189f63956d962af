"""Tiny random encoders, tables and cells, and the shortest way from them to trained cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.data.tokens import TokenTable
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.backbone import Backbone, load
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.trainer import Progress, Split, Trainer

CPU = torch.device("cpu")
VOCABULARY, PAD = 67, 1
LENGTHS = (3, 40, 17, 200, 64, 9, 130, 31, 2)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "max_position_embeddings": 300, "initializer_range": 0.2, "pad_token_id": PAD,
}  # fmt: skip
_BERT = _COMMON | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "type_vocab_size": 2,
}  # fmt: skip
_DISTIL = _COMMON | {
    "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "dropout": 0.1, "attention_dropout": 0.1
}  # fmt: skip
_MODERN = _COMMON | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "layer_types": ["full_attention", "sliding_attention"], "local_attention": 16, "attention_dropout": 0.1,
    "embedding_dropout": 0.1, "mlp_dropout": 0.1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0,
    "sep_token_id": 2,
}  # fmt: skip

PACKABLE: Mapping[str, Callable[[], Any]] = {
    "roberta": lambda: hf.RobertaConfig(**_BERT | {"type_vocab_size": 1}),
    "bert": lambda: hf.BertConfig(**_BERT),
    "xlm-roberta": lambda: hf.XLMRobertaConfig(**_BERT | {"type_vocab_size": 1}),
    "camembert": lambda: hf.CamembertConfig(**_BERT | {"type_vocab_size": 1}),
    "electra": lambda: hf.ElectraConfig(**_BERT, embedding_size=24),
    "mpnet": lambda: hf.MPNetConfig(**{key: value for key, value in _BERT.items() if key != "type_vocab_size"}),
    "distilbert": lambda: hf.DistilBertConfig(**_DISTIL),
    "modernbert": lambda: hf.ModernBertConfig(**_MODERN),
    "deberta": lambda: hf.DebertaConfig(
        **_BERT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False
    ),
    "deberta-v2": lambda: hf.DebertaV2Config(
        **_BERT | {"type_vocab_size": 0},
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_buckets=16,
        max_relative_positions=-1,
    ),
    "albert": lambda: hf.AlbertConfig(**_BERT, embedding_size=24),
    "megatron-bert": lambda: hf.MegatronBertConfig(**_BERT),
    "xlm": lambda: hf.XLMConfig(
        vocab_size=VOCABULARY,
        emb_dim=32,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=300,
        pad_index=PAD,
        pad_token_id=PAD,
        dropout=0.1,
        attention_dropout=0.1,
        embed_init_std=0.2,
        init_std=0.2,
    ),
}
UNPACKABLE: Mapping[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=300, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2, bos_token_id=0,
        eos_token_id=2,
    ),
    "xlnet": lambda: hf.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "t5": lambda: hf.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
}  # fmt: skip


def encoder(kind: str, **changes: Any) -> Any:
    """A random encoder, its config changed so; the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        config = {**PACKABLE, **UNPACKABLE}[kind]()
        for name, value in changes.items():
            setattr(config, name, value)
        model = hf.AutoModel.from_config(config, attn_implementation="eager")
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.2)  # transformers starts them at zero
        return model


def saved(kind: str, root: Path) -> Path:
    """The encoder in a directory."""
    encoder(kind).save_pretrained(root / kind)
    return root / kind


def loaded(folder: Path, precision: str = "float32") -> Backbone:
    """The backbone in a directory, from this machine alone."""
    return load(str(folder), CPU, precision, offline=True)


def backbone(kind: str = "roberta", precision: str = "float64") -> Backbone:
    """A random backbone, never saved."""
    return Backbone(encoder(kind), CPU, precision)


def tokens(lengths: Sequence[int], seed: int = 0, task: str = "sst2") -> TokenTable:
    """Random sequences of these lengths, most tokens from the part of the vocabulary that the label chooses."""
    draw = np.random.default_rng(seed)
    kinds = tasks.get(task).num_outputs if tasks.get(task).labels else 6
    labels = draw.integers(0, kinds, len(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = draw.integers(3, VOCABULARY, offsets[-1])
    part = (VOCABULARY - 3) // kinds
    ids = np.where(draw.random(len(ids)) < 0.9, 3 + np.repeat(labels, lengths) * part + ids % part, ids)
    ids[offsets[:-1]] = 3 + labels * part + draw.integers(0, 4, len(lengths))
    types = draw.integers(0, 2, offsets[-1]).astype(np.uint8)
    dtype: Any = np.float32 if tasks.get(task).is_regression else np.int64
    return TokenTable(ids.astype(np.int32), types, offsets, labels.astype(dtype))


def rows(count: int, seed: int, task: str = "sst2") -> TokenTable:
    """`count` short sequences."""
    return tokens(np.random.default_rng(seed + 100).integers(4, 24, count).tolist(), seed, task)


def table(tokens: TokenTable) -> Table:
    """The tokens on the CPU."""
    return Table(tokens, CPU, padding_idx=PAD)


def cell(method: str = "lora", **settings: Any) -> Cell:
    """A cell; settings that the method does not have are left out."""
    recipe = methods.get(method)
    own: dict[str, Any] = {"rank": 4, "a": 9, "b": 6, "alpha": 8.0, "targets": "attention", "init": "default"}
    base: dict[str, Any] = {
        "model": "tiny", "data": "made", "task": "sst2", "seed": 3, "lr": 1e-2, "head_lr": 6e-2,
        "epochs": 2, "batch_size": 8, "max_length": 32, "select": "last", "precision": "float64",
    }  # fmt: skip
    asked = {name: value for name, value in settings.items() if name not in own or name in recipe.parameters}
    kept = {name: value for name, value in own.items() if name in recipe.parameters}
    return Cell(**base | kept | asked, method=method)


def trainer(cells: Sequence[Cell], on: Backbone, count: int = 48, held_out: Table | None = None) -> Trainer:
    """A trainer of the cells as one pack, over `count` rows, evaluated on 60 others."""
    task = tasks.get(cells[0].task)
    pack = Pack(cells, on, task.num_outputs)
    train, evaluation = table(rows(count, 1, task.name)), Split(table(rows(60, 2, task.name)))
    return Trainer(pack, task, train, evaluation, held_out)


def trained(cells: Sequence[Cell], on: Backbone) -> dict[Cell, Progress]:
    """What becomes of the cells as one pack."""
    return {progress.cell: progress for progress in trainer(cells, on).run()}


def values(progress: Progress) -> dict[str, Tensor]:
    """Everything that the cell trained, by name."""
    assert progress.state is not None
    return {**progress.state.adapter, **{f"head.{name}": part for name, part in progress.state.head.items()}}


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between two sets of values."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def start(cell: Cell, on: Backbone) -> dict[str, Tensor]:
    """The values that the cell trains, as they are before the first step."""
    state = trainer([cell], on).pack.state(0)
    return {**state.adapter, **{f"head.{name}": part for name, part in state.head.items()}}


def losses(found: Mapping[Cell, Progress]) -> dict[Cell, np.ndarray[Any, np.dtype[np.float64]]]:
    """The loss of every step, by cell."""
    return {cell: np.array(progress.losses) for cell, progress in found.items()}

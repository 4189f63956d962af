"""Tiny random encoders of each family, in memory or saved with a tokenizer. Torch is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_bench.testing.data import WORDS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PADDING = 1  # the id of the padding token
# The settings of all families that turn dropout off, in the encoder and in the classification head.
NO_DROPOUT: Mapping[str, Any] = dict.fromkeys((
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout",
    "mlp_dropout", "classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "pooler_dropout",
), 0.0)  # fmt: skip

_COMMON: dict[str, Any] = {
    "vocab_size": len(WORDS), "max_position_embeddings": 300, "initializer_range": 0.2, "pad_token_id": PADDING,
}  # fmt: skip
_LAYERS: dict[str, Any] = _COMMON | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
_BERT = _LAYERS | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "roberta": _BERT | {"type_vocab_size": 1},
    "bert": _BERT | {"type_vocab_size": 2},
    "xlm-roberta": _BERT | {"type_vocab_size": 1},
    "camembert": _BERT | {"type_vocab_size": 1},
    "electra": _BERT | {"type_vocab_size": 2, "embedding_size": 24},
    "distilbert": _COMMON | {
        "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "dropout": 0.1, "attention_dropout": 0.1,
    },
    "modernbert": _LAYERS | {
        "layer_types": ["full_attention", "sliding_attention"], "local_attention": 16, "attention_dropout": 0.1,
        "embedding_dropout": 0.1, "mlp_dropout": 0.1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0,
        "sep_token_id": 2,
    },
    "mpnet": _BERT,
    "deberta": _BERT | {
        "type_vocab_size": 2, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "deberta-v2": _BERT | {
        "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 16,
        "max_relative_positions": -1,
    },
    "albert": _BERT | {"type_vocab_size": 2, "embedding_size": 24},
    "megatron-bert": _BERT | {"type_vocab_size": 2},
    "xlm": {
        "vocab_size": len(WORDS), "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 300,
        "pad_index": PADDING, "pad_token_id": PADDING, "dropout": 0.1, "attention_dropout": 0.1,
        "embed_init_std": 0.2, "init_std": 0.2,
    },
    "gpt2": {
        "vocab_size": len(WORDS), "n_positions": 300, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 2,
    },
    "xlnet": {"vocab_size": len(WORDS), "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "t5": {
        "vocab_size": len(WORDS), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0,
    },
}  # fmt: skip

REFUSED_FAMILIES = ("gpt2", "xlnet", "t5")  # `lora-bench` refuses these, and says why
FAMILIES = tuple(family for family in _SETTINGS if family not in REFUSED_FAMILIES)


def make_config(family: str = "roberta", **settings: Any) -> PretrainedConfig:
    """Return the config of a tiny encoder.

    Args:
        family: One of `FAMILIES` or `REFUSED_FAMILIES`, as `model_type` in config.json names it.
        settings: Attributes of the family's config that replace the defaults.
    """
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{**_SETTINGS[family], **settings})


def make_encoder(family: str = "roberta", *, seed: int = 11, **settings: Any) -> PreTrainedModel:
    """Return a random encoder of two layers, with dropout; its weights are so large that adapters matter.

    Args:
        family: One of `FAMILIES` or `REFUSED_FAMILIES`.
        seed: The same seed gives the same weights; the state of torch's own generator is left as it was.
        settings: Attributes of the family's config that replace the defaults, as in `hidden_dropout_prob=0.0`.
    """
    import torch
    from transformers import AutoModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModel.from_config(make_config(family, **settings), attn_implementation="eager")
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.2)  # transformers starts biases at zero
    return model


def make_model(
    folder: Path, family: str = "roberta", *, seed: int = 11, words: Sequence[str] = WORDS, **settings: Any
) -> Path:
    """Save a random encoder and a tokenizer of one token per word, as `--model` takes them, and return the folder.

    Args:
        folder: The folder to make.
        family: One of `FAMILIES` or `REFUSED_FAMILIES`.
        seed: As in `make_encoder`.
        words: The tokenizer's vocabulary, which begins with the four special tokens of `WORDS`.
        settings: As in `make_encoder`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from lora_bench.engine.encoder.backbone import quiet_transformers

    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    untyped: Any = PreTrainedTokenizerFast  # its __init__ has no annotations
    with quiet_transformers():
        make_encoder(family, seed=seed, **settings).save_pretrained(folder)
        untyped(tokenizer_object=core, **special).save_pretrained(folder)
    return folder

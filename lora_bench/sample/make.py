"""Rebuild the sample: data, tokenizer and encoder. `python -m lora_bench.sample.make [folder]`.

This takes about 15 minutes on one core, nearly all of it for pretraining. With one thread and fixed seeds, the same
machine and torch version give the same bytes (README.md has the checksum); another CPU may round differently.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.sample import ROOT, corpus, tasks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0 to 4
START, PAD, END, MASK = 0, 1, 2, 4
HIDDEN, LAYERS, HEADS, INNER = 64, 4, 4, 128
STEPS, BATCH, RATE, WARMUP = 16000, 64, 3e-3, 500
# The fraction of words that the encoder must predict, and that of the words in corpus.TELLING; chosen.
MASKED, MASKED_TELLING = 0.25, 0.6
# The layers whose output must predict these words, and the weight of each loss; chosen.
DEPTHS = {2: 0.3, 3: 0.5, 4: 1.0}
SEED = 0


def vocabulary(texts: list[tuple[str, ...]]) -> dict[str, int]:
    """Return the ids of the special tokens and then of all words, sorted."""
    words = sorted({word for row in texts for text in row for word in text.split()})
    return {word: i for i, word in enumerate([*SPECIALS, *words])}


def make_tokenizer(vocab: dict[str, int]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word and RoBERTa's template: `<s> a </s>`, `<s> a </s></s> b </s>`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.RobertaProcessing(("</s>", END), ("<s>", START), False, False)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return build(tokenizer_object=inner, model_max_length=128, **names)


def token_ids(vocab: dict[str, int], row: tuple[str, ...]) -> list[int]:
    """Return a row's token ids, the same as the tokenizer's and many times faster."""
    parts = [[vocab[word] for word in text.split()] for text in row]
    return [START, *parts[0], END] if len(parts) == 1 else [START, *parts[0], END, END, *parts[1], END]


def new_model(size: int) -> RobertaForMaskedLM:
    """Return an untrained encoder with its language-modelling head, without dropout."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=size,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=130,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return RobertaForMaskedLM(config)


def batches(rows: list[list[int]], generator: torch.Generator) -> list[torch.Tensor]:
    """Return padded batches of rows of similar length, in a random order."""
    import torch

    ordered = sorted(rows, key=len)
    chunks = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
    padded = [torch.tensor([[*row, *[PAD] * (len(chunk[-1]) - len(row))] for row in chunk]) for chunk in chunks]
    return [padded[i] for i in torch.randperm(len(padded), generator=generator).tolist()]


def masking_probabilities(vocab: dict[str, int]) -> torch.Tensor:
    """Return the probability that each word must be predicted, `[vocabulary]`; 0 for special tokens."""
    import torch

    return torch.tensor(
        [0.0 if word in SPECIALS else MASKED_TELLING if word in corpus.TELLING else MASKED for word in vocab]
    )


def mask_words(
    ids: torch.Tensor, probabilities: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the words to predict. As in BERT, 80% of them are masked, 10% replaced and 10% left as they are.

    Args:
        ids: `[batch, length]`.
        probabilities: The probability of each word, `[vocabulary]`.
        generator: The random numbers.

    Returns:
        The input of the encoder, and where it must predict the word, both `[batch, length]`.
    """
    import torch

    predicted = torch.rand(ids.shape, generator=generator) < probabilities[ids]
    choice = torch.rand(ids.shape, generator=generator)
    noise = torch.randint(len(SPECIALS), len(probabilities), ids.shape, generator=generator)
    replaced = torch.where(predicted & (choice > 0.9), noise, ids)
    return torch.where(predicted & (choice < 0.8), MASK, replaced), predicted


def prediction_loss(
    model: RobertaForMaskedLM, ids: torch.Tensor, inputs: torch.Tensor, predicted: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy of the predicted words, by the last layer and, with less weight, by layers below it.

    With the losses of lower layers, a word's context is combined early enough for a later layer to use it.

    Args:
        model: The encoder with its head.
        ids: The true words, `[batch, length]`.
        inputs: The words that the encoder reads.
        predicted: Where it must predict the word.
    """
    import torch

    states = model.roberta(
        input_ids=inputs, attention_mask=(ids != PAD).long(), output_hidden_states=True
    ).hidden_states
    losses = [
        weight * torch.nn.functional.cross_entropy(model.lm_head(states[depth][predicted]), ids[predicted])
        for depth, weight in DEPTHS.items()
    ]
    return torch.stack(losses).sum() / sum(DEPTHS.values())


def pretrain(rows: list[list[int]], probabilities: torch.Tensor) -> RobertaForMaskedLM:
    """Train a new encoder by masked language modelling, in one pass over the rows.

    Args:
        rows: Token ids.
        probabilities: The probability that each word must be predicted, `[vocabulary]`.
    """
    import torch

    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = new_model(len(probabilities))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / WARMUP) * (1 - s / STEPS))
    total, start = 0.0, time.monotonic()
    for step, ids in enumerate(batches(rows, generator), 1):
        inputs, predicted = mask_words(ids, probabilities, generator)
        loss = prediction_loss(model, ids, inputs, predicted)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % 500 == 0:
            print(f"step {step}/{STEPS}  loss {total / 500:.3f}  {time.monotonic() - start:.0f} s", flush=True)
            total = 0.0
    return model


def save(model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Save the encoder without head and pooler, and its tokenizer.

    The saved config has dropout 0.1, for training on tasks.

    Returns:
        The checksum of the weights.
    """
    encoder = model.roberta
    encoder.config.hidden_dropout_prob = encoder.config.attention_probs_dropout_prob = 0.1
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """Run the command."""
    import torch

    parser = argparse.ArgumentParser(description="Rebuild the bundled sample (about 15 minutes on one core).")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="where to write data/ and encoder/")
    parser.add_argument("--data-only", action="store_true", help="write data/ and stop")
    args = parser.parse_args()
    tasks.write_all(args.folder / "data")
    if args.data_only:
        return
    torch.set_num_threads(1)
    print("writing the pretraining text", flush=True)
    texts = corpus.texts(SEED, STEPS * BATCH)
    vocab = vocabulary(texts)
    model = pretrain([token_ids(vocab, row) for row in texts], masking_probabilities(vocab))
    digest = save(model, make_tokenizer(vocab), args.folder / "encoder")
    print(f"{len(vocab)} words, torch {torch.__version__}, model.safetensors sha256 {digest}")


if __name__ == "__main__":
    main()

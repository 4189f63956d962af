"""The text that the encoder is pretrained on: well-formed sentences, and related pairs."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from lora_bench.sample import lexicon as lex
from lora_bench.sample import paired, single

# How a second sentence may open, by the pair's label: a word for the encoder to predict from how the two relate.
LINKS: dict[Callable[[Random, int], tuple[str, ...]], tuple[str, ...]] = {
    paired.mrpc: ("but", "indeed"),
    paired.qqp: ("but", "indeed"),
    paired.stsb: ("but", "but", "also", "also", "also", "indeed"),
    paired.mnli: ("so", "also", "but"),
    paired.qnli: ("indeed", "but"),
    paired.rte: ("so", "but"),
    paired.wnli: ("but", "so"),
}
ALIKE: tuple[tuple[Callable[[Random, int], tuple[str, ...]], int], ...] = (
    (paired.mrpc, 1), (paired.qqp, 1), (paired.stsb, 5), (paired.stsb, 4), (paired.mnli, 0), (paired.qnli, 0),
    (paired.rte, 0), (paired.wnli, 1), (paired.wnli, 1),
)  # fmt: skip
TELLING = frozenset((
    "but", "indeed", "so", "also", "same", "another", "again", "now", "still", "rather", *lex.LIKED, *lex.LOATHED,
))  # fmt: skip  # the words that tell how two sentences, or an opinion and its outcome, relate
SHARES = (0.3, 0.38, 0.2, 0.12)  # single sentences, compared pairs, linked pairs, pairs that just agree


def linked(rng: Random) -> tuple[str, ...]:
    """A pair of any relation, the second sentence opening with the word for it."""
    maker = rng.choice(list(LINKS))
    label = rng.randrange(len(LINKS[maker]))
    spoken = paired.mnli_people if maker is paired.mnli and rng.random() < 0.5 else maker
    first, second = spoken(rng, label)
    return first, f"{LINKS[maker][label]} {second}"


def alike(rng: Random) -> tuple[str, ...]:
    """A pair that agrees, with no word for it."""
    maker, label = rng.choice(ALIKE)
    spoken = paired.mnli_people if maker is paired.mnli and rng.random() < 0.5 else maker
    return spoken(rng, label)


def alone(rng: Random) -> tuple[str, ...]:
    """A single well-formed sentence."""
    roll = rng.random()
    if roll < 0.35:
        return single.cola(rng, 1)
    if roll < 0.75:
        return (single.verdict(rng),)
    return (paired.named_cause(rng),)


def texts(seed: int, size: int) -> list[tuple[str, ...]]:
    """`size` rows of one or two sentences."""
    rng = Random(f"corpus {seed}")
    rows: list[tuple[str, ...]] = []
    for _ in range(size):
        (draw,) = rng.choices((alone, paired.compared, linked, alike), SHARES)
        rows.append(draw(rng))
    return rows

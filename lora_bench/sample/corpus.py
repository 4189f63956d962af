"""The text that the encoder is pretrained on: well-formed sentences, and related pairs."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from lora_bench.sample import lexicon as lex
from lora_bench.sample import paired, single

# The first word of a second sentence, by the pair's label. To predict it, the encoder must learn how the two relate.
LINKS: dict[Callable[[Random, int], tuple[str, ...]], tuple[str, ...]] = {
    paired.mrpc: ("but", "indeed"),
    paired.qqp: ("but", "indeed"),
    paired.stsb: ("but", "but", "also", "also", "also", "indeed"),
    paired.mnli: ("so", "also", "but"),
    paired.qnli: ("indeed", "but"),
    paired.rte: ("so", "but"),
    paired.wnli: ("but", "so"),
}
AGREEING: tuple[tuple[Callable[[Random, int], tuple[str, ...]], int], ...] = (
    (paired.mrpc, 1), (paired.qqp, 1), (paired.stsb, 5), (paired.stsb, 4), (paired.mnli, 0), (paired.qnli, 0),
    (paired.rte, 0), (paired.wnli, 1), (paired.wnli, 1),
)  # fmt: skip
# The words that express how two sentences, or an opinion and its outcome, relate. They are masked most often.
TELLING = frozenset((
    "but", "indeed", "so", "also", "same", "another", "again", "now", "still", "rather", *lex.LIKED, *lex.LOATHED,
))  # fmt: skip
SHARES = (0.3, 0.38, 0.2, 0.12)  # of single sentences, compared pairs, linked pairs, agreeing pairs; chosen


def linked(rng: Random) -> tuple[str, ...]:
    """Return a pair with any label; the second sentence begins with the word for their relation."""
    maker = rng.choice(list(LINKS))
    label = rng.randrange(len(LINKS[maker]))
    draw_pair = paired.mnli_people if maker is paired.mnli and rng.random() < 0.5 else maker
    first, second = draw_pair(rng, label)
    return first, f"{LINKS[maker][label]} {second}"


def agreeing(rng: Random) -> tuple[str, ...]:
    """Return a pair that agrees, without a word that says so."""
    maker, label = rng.choice(AGREEING)
    draw_pair = paired.mnli_people if maker is paired.mnli and rng.random() < 0.5 else maker
    return draw_pair(rng, label)


def single_sentence(rng: Random) -> tuple[str, ...]:
    """Return a single well-formed sentence: a plain one, an opinion with its outcome, or a cause."""
    roll = rng.random()
    if roll < 0.35:
        return single.cola(rng, 1)
    if roll < 0.75:
        return (single.opinion_with_outcome(rng),)
    return (paired.named_cause(rng),)


def texts(seed: int, size: int) -> list[tuple[str, ...]]:
    """Return `size` rows of one or two sentences."""
    rng = Random(f"corpus {seed}")
    rows: list[tuple[str, ...]] = []
    for _ in range(size):
        (draw,) = rng.choices((single_sentence, paired.compared, linked, agreeing), SHARES)
        rows.append(draw(rng))
    return rows

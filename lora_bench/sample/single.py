"""The single-sentence tasks: acceptability (cola) and sentiment (sst2)."""

from __future__ import annotations

from random import Random

from lora_bench.sample import lexicon as lex
from lora_bench.sample.grammar import animal, either

ONE = ("this", "that", "every", "one")
MANY = ("these", "those", "many", "both", *lex.NUMBERS)
BENT = {"has": "{base}", "did not": "{past}", "will": "{past}", "could": "{past}"}  # the wrong form after each
RIGHT = {"has": "{past}", "did not": "{base}", "will": "{base}", "could": "{base}"}


def noun_of(rng: Random, many: bool) -> str:
    """A random noun in the singular or the plural."""
    word = either(rng, rng.choice(lex.NOUNS))
    return lex.plural(word) if many else word


def verb_of(rng: Random) -> str:
    """A random verb's base form."""
    return either(rng, rng.choice(lex.VERBS))


def agreement(rng: Random, good: bool) -> list[str]:
    """`the dogs near the lawyer push the cat`: the verb agrees with the far noun."""
    many = rng.random() < 0.5
    between = ["near", "the", noun_of(rng, rng.random() < 0.5)] if rng.random() < 0.6 else []
    verb = verb_of(rng)
    form = verb if many == good else lex.third(verb)
    return ["the", noun_of(rng, many), *between, form, "the", noun_of(rng, rng.random() < 0.5)]


def determiner(rng: Random, good: bool) -> list[str]:
    """`these dogs helped the cat`, not `these dog`."""
    many = rng.random() < 0.5
    phrase = [rng.choice(MANY if many else ONE), either(rng, rng.choice(lex.ADJECTIVES)), noun_of(rng, many == good)]
    plain = ["the", noun_of(rng, rng.random() < 0.5)]
    first, second = (phrase, plain) if rng.random() < 0.5 else (plain, phrase)
    return [*first, lex.past(verb_of(rng)), *second]


def reflexive(rng: Random, good: bool) -> list[str]:
    """`the doctor praised himself`: number and kind agree."""
    many, concept = rng.random() < 0.5, rng.randrange(len(lex.NOUNS))
    word = either(rng, lex.NOUNS[concept])
    mirrors = ["himself", "itself", "themselves"]
    right = mirrors[2 if many else animal(concept)]
    mirror = right if good else rng.choice([m for m in mirrors if m != right])
    return ["the", lex.plural(word) if many else word, lex.past(verb_of(rng)), mirror]


def auxiliary(rng: Random, good: bool) -> list[str]:
    """`the dog did not push`, not `did not pushed`."""
    helper, verb = rng.choice(list(RIGHT)), verb_of(rng)
    form = (RIGHT if good else BENT)[helper].format(base=verb, past=lex.past(verb))
    return ["the", noun_of(rng, False), helper, form, "the", noun_of(rng, rng.random() < 0.5)]


def ever(rng: Random, good: bool) -> list[str]:
    """`no dog has ever ...`, not `some dog has ever ...`."""
    opening = rng.choice(["no", "hardly any"] if good else ["some", "the"])
    return [opening, noun_of(rng, False), "has", "ever", lex.past(verb_of(rng)), "the", noun_of(rng, False)]


def order(rng: Random, good: bool) -> list[str]:
    """`the big dog helped the cat`, not `the dog big helped the cat`."""
    words = ["the", either(rng, rng.choice(lex.ADJECTIVES)), noun_of(rng, False), lex.past(verb_of(rng)), "the"]
    words += [either(rng, rng.choice(lex.ADJECTIVES)), noun_of(rng, False)]
    if not good:
        at = rng.choice([0, 1, 4, 5])
        words[at], words[at + 1] = words[at + 1], words[at]
    return words


PHENOMENA = (agreement, determiner, reflexive, auxiliary, ever, order)


def cola(rng: Random, label: int) -> tuple[str, ...]:
    """0 unacceptable, 1 acceptable: six kinds of grammatical error, each with its well-formed twin."""
    words = rng.choice(PHENOMENA)(rng, label == 1)
    if rng.random() < 0.4:
        words += ["in", "the", rng.choice(lex.PLACES)]
    return (" ".join(words),)


def judge(rng: Random, good: bool) -> str:
    """An adjective's worth of opinion, half the time by way of its opposite."""
    praise, blame = rng.choice(lex.GOOD), rng.choice(lex.BAD)
    right, wrong = (praise, blame) if good else (blame, praise)
    return rng.choice([
        right, right, right, right, f"truly {right}", f"not {wrong}", f"hardly {wrong}", f"far from {wrong}",
        f"more {right} than {wrong}", f"less {wrong} than {right}",
    ])  # fmt: skip


def opine(rng: Random, good: bool) -> str:
    """An opinion on a work, alone or against a concession; the main clause decides."""
    first, second = rng.sample(lex.WORKS, 2)
    main, side = judge(rng, good), judge(rng, not good)
    return rng.choice([
        f"the {first} was {main}", f"this {first} is {main}", f"i found the {first} {main}",
        f"the {first} seemed {side} but it was {main}", f"although the {second} was {side} the {first} was {main}",
        f"the {first} was {main} although the {second} was {side}",
        f"the {second} was {side} but the {first} is {main}",
    ])  # fmt: skip


def sst2(rng: Random, label: int) -> tuple[str, ...]:
    """0 negative, 1 positive."""
    return (opine(rng, label == 1),)


def verdict(rng: Random) -> str:
    """Pretraining text only: an opinion and what it led to, so that opinions have consequences to predict."""
    good = rng.random() < 0.5
    felt = rng.choice(lex.LIKED if good else lex.LOATHED)
    if rng.random() < 0.3:
        first, second = rng.sample(lex.GOOD if good else lex.BAD, 2)
        return f"i {felt} the {rng.choice(lex.WORKS)} because it was {first} and {second}"
    return f"{opine(rng, good)} so i {felt} it"

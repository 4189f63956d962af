"""The single-sentence tasks: acceptability (cola) and sentiment (sst2)."""

from __future__ import annotations

from random import Random

from lora_bench.sample import lexicon as lex
from lora_bench.sample.grammar import choose_synonym, is_animal

SINGULAR = ("this", "that", "every", "one")
PLURAL = ("these", "those", "many", "both", *lex.NUMBERS)
# The form of the verb after each auxiliary.
WRONG_FORMS = {"has": "{base}", "did not": "{past}", "will": "{past}", "could": "{past}"}
RIGHT_FORMS = {"has": "{past}", "did not": "{base}", "will": "{base}", "could": "{base}"}


def draw_noun(rng: Random, plural: bool) -> str:
    """Draw a noun, in the singular or the plural."""
    word = choose_synonym(rng, rng.choice(lex.NOUNS))
    return lex.plural(word) if plural else word


def draw_verb(rng: Random) -> str:
    """Draw the base form of a verb."""
    return choose_synonym(rng, rng.choice(lex.VERBS))


def agreement(rng: Random, good: bool) -> list[str]:
    """Return a sentence such as `the dogs near the lawyer push the cat`; the verb must agree with the first noun."""
    plural = rng.random() < 0.5
    between = ["near", "the", draw_noun(rng, rng.random() < 0.5)] if rng.random() < 0.6 else []
    verb = draw_verb(rng)
    form = verb if plural == good else lex.third(verb)
    return ["the", draw_noun(rng, plural), *between, form, "the", draw_noun(rng, rng.random() < 0.5)]


def determiner(rng: Random, good: bool) -> list[str]:
    """Return a sentence such as `these dogs helped the cat`, not `these dog`."""
    plural = rng.random() < 0.5
    phrase = [
        rng.choice(PLURAL if plural else SINGULAR),
        choose_synonym(rng, rng.choice(lex.ADJECTIVES)),
        draw_noun(rng, plural == good),
    ]
    plain = ["the", draw_noun(rng, rng.random() < 0.5)]
    first, second = (phrase, plain) if rng.random() < 0.5 else (plain, phrase)
    return [*first, lex.past(draw_verb(rng)), *second]


def reflexive(rng: Random, good: bool) -> list[str]:
    """Return a sentence such as `the doctor praised himself`; number and kind must agree."""
    plural, concept = rng.random() < 0.5, rng.randrange(len(lex.NOUNS))
    word = choose_synonym(rng, lex.NOUNS[concept])
    mirrors = ["himself", "itself", "themselves"]
    right = mirrors[2 if plural else is_animal(concept)]
    mirror = right if good else rng.choice([m for m in mirrors if m != right])
    return ["the", lex.plural(word) if plural else word, lex.past(draw_verb(rng)), mirror]


def auxiliary(rng: Random, good: bool) -> list[str]:
    """Return a sentence such as `the dog did not push`, not `did not pushed`."""
    helper, verb = rng.choice(list(RIGHT_FORMS)), draw_verb(rng)
    form = (RIGHT_FORMS if good else WRONG_FORMS)[helper].format(base=verb, past=lex.past(verb))
    return ["the", draw_noun(rng, False), helper, form, "the", draw_noun(rng, rng.random() < 0.5)]


def ever(rng: Random, good: bool) -> list[str]:
    """Return a sentence such as `no dog has ever ...`, not `some dog has ever ...`."""
    opening = rng.choice(["no", "hardly any"] if good else ["some", "the"])
    return [opening, draw_noun(rng, False), "has", "ever", lex.past(draw_verb(rng)), "the", draw_noun(rng, False)]


def order(rng: Random, good: bool) -> list[str]:
    """Return a sentence such as `the big dog helped the cat`, not `the dog big helped the cat`."""
    words = [
        "the",
        choose_synonym(rng, rng.choice(lex.ADJECTIVES)),
        draw_noun(rng, False),
        lex.past(draw_verb(rng)),
        "the",
    ]
    words += [choose_synonym(rng, rng.choice(lex.ADJECTIVES)), draw_noun(rng, False)]
    if not good:
        index = rng.choice([0, 1, 4, 5])
        words[index], words[index + 1] = words[index + 1], words[index]
    return words


PHENOMENA = (agreement, determiner, reflexive, auxiliary, ever, order)


def cola(rng: Random, label: int) -> tuple[str, ...]:
    """Return a sentence: 0 unacceptable, 1 acceptable, by one of six grammatical phenomena."""
    words = rng.choice(PHENOMENA)(rng, label == 1)
    if rng.random() < 0.4:
        words += ["in", "the", rng.choice(lex.PLACES)]
    return (" ".join(words),)


def judgement(rng: Random, good: bool) -> str:
    """Return an adjective of praise or blame, sometimes by way of its opposite."""
    praise, blame = rng.choice(lex.GOOD), rng.choice(lex.BAD)
    right, wrong = (praise, blame) if good else (blame, praise)
    phrases = [right, right, right, right, f"truly {right}", f"not {wrong}", f"hardly {wrong}", f"far from {wrong}"]
    return rng.choice([*phrases, f"more {right} than {wrong}", f"less {wrong} than {right}"])


def opinion(rng: Random, good: bool) -> str:
    """Return an opinion on a work, often with a concession; the main clause decides."""
    first, second = rng.sample(lex.WORKS, 2)
    main, side = judgement(rng, good), judgement(rng, not good)
    sentences = [
        f"the {first} was {main}",
        f"this {first} is {main}",
        f"i found the {first} {main}",
        f"the {first} seemed {side} but it was {main}",
        f"although the {second} was {side} the {first} was {main}",
        f"the {first} was {main} although the {second} was {side}",
        f"the {second} was {side} but the {first} is {main}",
    ]
    return rng.choice(sentences)


def sst2(rng: Random, label: int) -> tuple[str, ...]:
    """Return a sentence: 0 negative, 1 positive."""
    return (opinion(rng, label == 1),)


def opinion_with_outcome(rng: Random) -> str:
    """Return an opinion and what it led to, for pretraining only: to predict the outcome, the encoder must read it."""
    good = rng.random() < 0.5
    feeling = rng.choice(lex.LIKED if good else lex.LOATHED)
    if rng.random() < 0.3:
        first, second = rng.sample(lex.GOOD if good else lex.BAD, 2)
        return f"i {feeling} the {rng.choice(lex.WORKS)} because it was {first} and {second}"
    return f"{opinion(rng, good)} so i {feeling} it"

"""The sentence-pair tasks. Each maker takes the wanted label and returns the two texts of a row."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from lora_bench.sample import lexicon as lex
from lora_bench.sample.grammar import (
    Clause,
    Phrase,
    ask,
    clear,
    draw_clause,
    either,
    fill,
    oppose,
    say,
    swap,
)

Pair = tuple[str, ...]


def slots(clause: Clause) -> list[str]:
    """The modifiers that a clause has."""
    has = {"adjective": clause.subject.adjective, "place": clause.place, "day": clause.day}
    return [slot for slot, value in has.items() if value is not None]


def alter(rng: Random, clause: Clause) -> Clause:
    """A clause that means something else: one concept changed, the deed reversed, or the roles swapped."""
    change = rng.choice(["swap", "oppose", "subject", "object", "verb", *slots(clause)])
    if change in ("swap", "oppose"):
        return swap(clause) if change == "swap" else oppose(clause)
    return fill(rng, clause, change)


def mrpc(rng: Random, label: int) -> Pair:
    """0 not_equivalent, 1 equivalent."""
    clause = draw_clause(rng)
    return say(rng, clause, plain=True), say(rng, clause if label else alter(rng, clause))


def qqp(rng: Random, label: int) -> Pair:
    """0 not_duplicate, 1 duplicate: questions for the same slot of the same clause, or not."""
    clause = fill(rng, fill(rng, draw_clause(rng, modifiers=0), "place"), "day")
    slot = rng.choice(["subject", "object", "place", "day"])
    first = clear(clause, rng.choice([s for s in ("place", "day") if s != slot]))
    if label:
        return ask(rng, first, slot), ask(rng, first, slot)
    if rng.random() < 0.4:
        wanted = rng.choice([s for s in ("subject", "object", "place", "day") if s != slot])
        return ask(rng, first, slot), ask(rng, first, wanted)
    changes = [s for s in ("subject", "object", "verb") if s != slot]
    changed = fill(rng, first, rng.choice(changes)) if rng.random() < 0.7 else oppose(first)
    return ask(rng, first, slot), ask(rng, changed, slot)


def stsb(rng: Random, label: int) -> Pair:
    """A score of 0 to 5: how many of five concepts the two sentences share, whatever their wording."""
    clause = fill(rng, fill(rng, draw_clause(rng, modifiers=0), "adjective"), "place")
    changed = clause
    for slot in rng.sample(["subject", "verb", "object", "adjective", "place"], 5 - label):
        changed = fill(rng, changed, slot)
    return say(rng, clause, plain=True), say(rng, changed, plain=True)


def weaken(rng: Random, clause: Clause) -> Clause:
    """A clause that the given one entails: a modifier dropped, or a noun said by its kind only."""
    options = [*slots(clause), "kind"]
    for option in rng.sample(options, rng.choice([1, 2])):
        if option != "kind":
            clause = clear(clause, option)
        elif rng.random() < 0.5:
            clause = replace(clause, subject=Phrase(clause.subject.noun, None, kind=True))
        else:
            clause = replace(clause, object=Phrase(clause.object.noun, None, kind=True))
    return clause


def mnli(rng: Random, label: int, people: bool = False) -> Pair:
    """0 entailment, 1 neutral, 2 contradiction; about animals, or (the mismatched genre) about people."""
    nouns = range(len(lex.PEOPLE)) if people else range(len(lex.PEOPLE), len(lex.NOUNS))
    clause = draw_clause(rng, nouns, modifiers=2)
    claim = weaken(rng, clause)
    if label == 1:
        missing = rng.choice([s for s in ("adjective", "place", "day") if s not in slots(clause)])
        claim = fill(rng, clear(clause, rng.choice(slots(clause))), missing)
    if label == 2:
        claim = replace(claim, negated=True) if rng.random() < 0.5 else oppose(claim)
    return say(rng, clause), say(rng, claim, plain=True)


def mnli_people(rng: Random, label: int) -> Pair:
    """The mismatched genre."""
    return mnli(rng, label, people=True)


def qnli(rng: Random, label: int) -> Pair:
    """0 entailment (the sentence answers the question), 1 not_entailment."""
    slot = rng.choice(["subject", "object", "place", "day"])
    clause = fill(rng, fill(rng, draw_clause(rng, modifiers=0), "place"), "day")
    asked = clear(clause, rng.choice([s for s in ("place", "day") if s != slot]))
    if label and slot in ("place", "day") and rng.random() < 0.5:
        return ask(rng, asked, slot), say(rng, clear(clause, slot))
    if label:
        kept = [s for s in ("subject", "object", "verb") if s != slot]
        clause = fill(rng, clause, rng.choice(kept)) if rng.random() < 0.7 else swap(clause)
    return ask(rng, asked, slot), say(rng, clause)


def count(rng: Random, clause: Clause, quantity: str) -> str:
    """`five dogs helped the cat`."""
    noun = lex.plural(either(rng, lex.NOUNS[clause.subject.noun]))
    rest = f"{lex.past(either(rng, lex.VERBS[clause.verb]))} the {either(rng, lex.NOUNS[clause.object.noun])}"
    return f"{quantity} {noun} {rest}"


def spoil(rng: Random, clause: Clause) -> Clause:
    """The roles swapped, the deed reversed, or another deed."""
    options = {"swap": swap(clause), "oppose": oppose(clause), "verb": fill(rng, clause, "verb")}
    return options[rng.choice(list(options))]


def rte(rng: Random, label: int) -> Pair:
    """0 entailment, 1 not_entailment: quantities, or a claim weakened or strengthened."""
    clause = draw_clause(rng, modifiers=2)
    if rng.random() < 0.5:
        number = rng.randrange(1, len(lex.NUMBERS) - 1)
        more = rng.random() < 0.5
        lower = more != bool(label)
        bound = rng.randrange(number) if lower else rng.randrange(number + 1, len(lex.NUMBERS))
        claim = f"{'more' if more else 'fewer'} than {lex.NUMBERS[bound]}"
        return count(rng, clause, lex.NUMBERS[number]), count(rng, clause, claim)
    claim_clause = weaken(rng, clause)
    if label:
        claim_clause = spoil(rng, claim_clause)
    return say(rng, clause), say(rng, claim_clause)


def cause(rng: Random) -> tuple[str, str, str, str]:
    """`the cat praised the dog because`, a property, the noun that it must be true of, and the other noun."""
    verb = rng.choice(list(lex.BLAMED))
    of_doer = rng.random() < 0.5
    trait = rng.choice(lex.BLAMED[verb][0 if of_doer else 1])
    doer, target = (either(rng, concept) for concept in rng.sample(lex.ANIMALS, 2))
    opening = f"the {doer} {verb} the {target} because"
    return (opening, trait, doer, target) if of_doer else (opening, trait, target, doer)


def wnli(rng: Random, label: int) -> Pair:
    """0 not_entailment, 1 entailment: which of the two `it` stands for."""
    opening, trait, owner, bystander = cause(rng)
    return f"{opening} it was {trait}", f"the {owner if label else bystander} was {trait}"


def named_cause(rng: Random) -> str:
    """Pretraining text only: a cause with its owner named."""
    opening, trait, owner, _ = cause(rng)
    return f"{opening} the {owner} was {trait}"

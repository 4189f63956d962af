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


ROLES = ("subject", "verb", "object")


def alter(rng: Random, clause: Clause, among: list[str], roles: bool = True) -> Clause:
    """A clause that means something else: two of its concepts changed or, where that shows, the roles swapped."""
    if roles and rng.random() < 0.15:
        return swap(clause)
    for slot in rng.sample(among, 2):
        clause = fill(rng, clause, slot)
    return clause


def reword(rng: Random, clause: Clause) -> str:
    """A second wording, one time in five free to be in the passive or to put a circumstance first."""
    return say(rng, clause, plain=rng.random() < 0.8)


def mrpc(rng: Random, label: int) -> Pair:
    """0 not_equivalent, 1 equivalent."""
    clause = draw_clause(rng, modifiers=1)
    second = clause if label else alter(rng, clause, [*ROLES, *slots(clause)])
    return say(rng, clause, plain=True), reword(rng, second)


def draw_question(rng: Random) -> tuple[Clause, str]:
    """A clause with one circumstance, and which of its slots is asked for."""
    slot, circumstance = rng.choice(["subject", "object", "place", "day"]), rng.choice(["place", "day"])
    clause = fill(rng, draw_clause(rng, modifiers=0), slot if slot in ("place", "day") else circumstance)
    return clause, slot


def qqp(rng: Random, label: int) -> Pair:
    """0 not_duplicate, 1 duplicate: questions for the same slot of the same clause, or not."""
    clause, slot = draw_question(rng)
    second = clause if label else alter(rng, clause, [role for role in ROLES if role != slot], roles=False)
    return ask(rng, clause, slot), ask(rng, second, slot)


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
    for option in rng.sample(options, 1):
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
    clause, slot = draw_question(rng)
    answer = alter(rng, clause, [role for role in ROLES if role != slot], roles=False) if label else clause
    return ask(rng, clause, slot), reword(rng, answer)


def rte(rng: Random, label: int) -> Pair:
    """0 entailment, 1 not_entailment: a weaker claim of the same clause, or of an altered one."""
    clause = draw_clause(rng, modifiers=1)
    claim = weaken(rng, alter(rng, clause, list(ROLES)) if label else clause)
    return say(rng, clause, plain=True), reword(rng, claim)


def cause(rng: Random) -> tuple[str, str, str, str]:
    """`the cat praised the dog because`, a property, the noun that it must be true of, and the other noun."""
    verb = rng.choice(list(lex.BLAMED))
    of_doer = rng.random() < 0.5
    trait = rng.choice(lex.TRAITS[0 if of_doer else 1] + lex.BLAMED[verb][0 if of_doer else 1])
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


def vary(rng: Random, clause: Clause) -> Clause:
    """About half of a clause's concepts changed, and now and then the roles swapped."""
    for slot in [*ROLES, *slots(clause)]:
        if rng.random() < 0.45:
            clause = fill(rng, clause, slot)
    return swap(clause) if rng.random() < 0.1 else clause


def compared(rng: Random) -> Pair:
    """Pretraining text only: the second sentence says of each of its concepts whether it is the first one's."""
    form = rng.choices(("clauses", "questions", "answer", "cause"), (0.4, 0.2, 0.2, 0.2))[0]
    if form == "clauses":
        clause = draw_clause(rng, modifiers=rng.choice([0, 1, 2]))
        return say(rng, clause, plain=True), say(rng, vary(rng, clause), known=clause)
    if form == "cause":
        opening, trait, owner, bystander = cause(rng)
        return f"{opening} it was {trait}", rng.choice([f"the same {owner}", f"another {bystander}"]) + f" was {trait}"
    clause, slot = draw_question(rng)
    if form == "questions":
        return ask(rng, clause, slot), ask(rng, vary(rng, clause), slot, known=clause)
    said = unsaid(clause, slot)
    return ask(rng, clause, slot), say(rng, vary(rng, clause), known=said)


def unsaid(clause: Clause, slot: str) -> Clause:
    """What a question for a slot gives away: the clause without that slot."""
    if slot in ("place", "day"):
        return clear(clause, slot)
    return replace(clause, subject=Phrase(-1)) if slot == "subject" else replace(clause, object=Phrase(-1))

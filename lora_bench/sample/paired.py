"""The sentence-pair tasks. Each function of a task takes the label and returns the two texts of a row."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from lora_bench.sample import lexicon as lex
from lora_bench.sample.grammar import (
    Clause,
    Phrase,
    ask,
    choose_synonym,
    clear,
    draw_clause,
    fill,
    oppose,
    say,
    swap,
)

Pair = tuple[str, ...]


def modifiers_of(clause: Clause) -> list[str]:
    """Return the slots of the modifiers that a clause has."""
    modifiers = {"adjective": clause.subject.adjective, "place": clause.place, "day": clause.day}
    return [slot for slot, value in modifiers.items() if value is not None]


ROLES = ("subject", "verb", "object")


def alter(rng: Random, clause: Clause, slots: list[str], swaps_roles: bool = True) -> Clause:
    """Return a clause with another meaning.

    Args:
        rng: The random numbers.
        clause: The clause.
        slots: The slots of which two are changed.
        swaps_roles: Whether subject and object may be exchanged instead.
    """
    if swaps_roles and rng.random() < 0.15:
        return swap(clause)
    for slot in rng.sample(slots, 2):
        clause = fill(rng, clause, slot)
    return clause


def reword(rng: Random, clause: Clause) -> str:
    """Return a wording that, one time in five, may be in the passive or begin with place or day."""
    return say(rng, clause, plain=rng.random() < 0.8)


def mrpc(rng: Random, label: int) -> Pair:
    """Return two sentences: 0 not_equivalent, 1 equivalent."""
    clause = draw_clause(rng, modifiers=1)
    second = clause if label else alter(rng, clause, [*ROLES, *modifiers_of(clause)])
    return say(rng, clause, plain=True), reword(rng, second)


def draw_question(rng: Random) -> tuple[Clause, str]:
    """Draw a clause with a place or a day, and the slot that is asked for."""
    slot, circumstance = rng.choice(["subject", "object", "place", "day"]), rng.choice(["place", "day"])
    clause = fill(rng, draw_clause(rng, modifiers=0), slot if slot in ("place", "day") else circumstance)
    return clause, slot


def qqp(rng: Random, label: int) -> Pair:
    """Return two questions for the same slot: 0 not_duplicate, 1 duplicate."""
    clause, slot = draw_question(rng)
    second = clause if label else alter(rng, clause, [role for role in ROLES if role != slot], swaps_roles=False)
    return ask(rng, clause, slot), ask(rng, second, slot)


def stsb(rng: Random, label: int) -> Pair:
    """Return two sentences; the label, 0 to 5, is how many of five concepts they share, whatever their wording."""
    clause = fill(rng, fill(rng, draw_clause(rng, modifiers=0), "adjective"), "place")
    changed = clause
    for slot in rng.sample(["subject", "verb", "object", "adjective", "place"], 5 - label):
        changed = fill(rng, changed, slot)
    return say(rng, clause, plain=True), say(rng, changed, plain=True)


def weaken(rng: Random, clause: Clause) -> Clause:
    """Return a clause that the given one entails: without a modifier, or with a noun reduced to its kind."""
    options = [*modifiers_of(clause), "kind"]
    for option in rng.sample(options, 1):
        if option != "kind":
            clause = clear(clause, option)
        elif rng.random() < 0.5:
            clause = replace(clause, subject=Phrase(clause.subject.noun, None, kind=True))
        else:
            clause = replace(clause, object=Phrase(clause.object.noun, None, kind=True))
    return clause


def mnli(rng: Random, label: int, people: bool = False) -> Pair:
    """Return a premise and a hypothesis: 0 entailment, 1 neutral, 2 contradiction.

    They are about animals, or about people (the mismatched genre).
    """
    nouns = range(len(lex.PEOPLE)) if people else range(len(lex.PEOPLE), len(lex.NOUNS))
    clause = draw_clause(rng, nouns, modifiers=2)
    claim = weaken(rng, clause)
    if label == 1:
        missing = rng.choice([slot for slot in ("adjective", "place", "day") if slot not in modifiers_of(clause)])
        claim = fill(rng, clear(clause, rng.choice(modifiers_of(clause))), missing)
    if label == 2:
        claim = replace(claim, negated=True) if rng.random() < 0.5 else oppose(claim)
    return say(rng, clause), say(rng, claim, plain=True)


def mnli_people(rng: Random, label: int) -> Pair:
    """Return a premise and a hypothesis of the mismatched genre."""
    return mnli(rng, label, people=True)


def qnli(rng: Random, label: int) -> Pair:
    """Return a question and a sentence: 0 entailment (the sentence answers the question), 1 not_entailment."""
    clause, slot = draw_question(rng)
    answer = alter(rng, clause, [role for role in ROLES if role != slot], swaps_roles=False) if label else clause
    return ask(rng, clause, slot), reword(rng, answer)


def rte(rng: Random, label: int) -> Pair:
    """Return a sentence and a weaker claim: 0 entailment, 1 not_entailment (the claim is of an altered clause)."""
    clause = draw_clause(rng, modifiers=1)
    claim = weaken(rng, alter(rng, clause, list(ROLES)) if label else clause)
    return say(rng, clause, plain=True), reword(rng, claim)


def cause(rng: Random) -> tuple[str, str, str, str]:
    """Draw a cause.

    Returns:
        An opening such as `the cat praised the dog because`, a property, the noun that the property must belong to, and
        the other noun.
    """
    verb = rng.choice(list(lex.BLAMED))
    of_subject = rng.random() < 0.5
    trait = rng.choice(lex.TRAITS[0 if of_subject else 1] + lex.BLAMED[verb][0 if of_subject else 1])
    subject, target = (choose_synonym(rng, concept) for concept in rng.sample(lex.ANIMALS, 2))
    opening = f"the {subject} {verb} the {target} because"
    return (opening, trait, subject, target) if of_subject else (opening, trait, target, subject)


def wnli(rng: Random, label: int) -> Pair:
    """Return a sentence with `it` and one that replaces `it` by a noun: 0 not_entailment, 1 entailment."""
    opening, trait, bearer, other = cause(rng)
    return f"{opening} it was {trait}", f"the {bearer if label else other} was {trait}"


def named_cause(rng: Random) -> str:
    """Return a cause that names the noun the property belongs to, for pretraining only."""
    opening, trait, bearer, _ = cause(rng)
    return f"{opening} the {bearer} was {trait}"


def vary(rng: Random, clause: Clause) -> Clause:
    """Change about half of a clause's concepts, and sometimes exchange subject and object."""
    for slot in [*ROLES, *modifiers_of(clause)]:
        if rng.random() < 0.45:
            clause = fill(rng, clause, slot)
    return swap(clause) if rng.random() < 0.1 else clause


def compared(rng: Random) -> Pair:
    """Return a pair for pretraining only: the second text says of each of its concepts whether it is the first's."""
    form = rng.choices(("clauses", "questions", "answer", "cause"), (0.4, 0.2, 0.2, 0.2))[0]
    if form == "clauses":
        clause = draw_clause(rng, modifiers=rng.choice([0, 1, 2]))
        return say(rng, clause, plain=True), say(rng, vary(rng, clause), known=clause)
    if form == "cause":
        opening, trait, bearer, other = cause(rng)
        return f"{opening} it was {trait}", rng.choice([f"the same {bearer}", f"another {other}"]) + f" was {trait}"
    clause, slot = draw_question(rng)
    if form == "questions":
        return ask(rng, clause, slot), ask(rng, vary(rng, clause), slot, known=clause)
    known = without_slot(clause, slot)
    return ask(rng, clause, slot), say(rng, vary(rng, clause), known=known)


def without_slot(clause: Clause, slot: str) -> Clause:
    """Return what a question for a slot states: the clause without that slot."""
    if slot in ("place", "day"):
        return clear(clause, slot)
    return replace(clause, subject=Phrase(-1)) if slot == "subject" else replace(clause, object=Phrase(-1))

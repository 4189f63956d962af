"""Meanings (phrases and clauses of concepts) and the sentences that say them.

Meaning and wording are apart: two draws of `say` from one clause are paraphrases (other synonyms, other word order),
and a changed clause is a changed meaning however much of its wording stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from lora_bench.sample import lexicon as lex

RARE = 0.35  # how often a concept is said by the rarer of its two words
PASSIVE = 0.25  # how often a clause is in the passive, where it may be


@dataclass(frozen=True)
class Phrase:
    """A noun with what is said about it; `kind` says only that it is a person or an animal."""

    noun: int
    adjective: int | None = None
    kind: bool = False


@dataclass(frozen=True)
class Clause:
    """Who did what to whom, where and when."""

    subject: Phrase
    verb: int
    object: Phrase
    place: int | None = None
    day: int | None = None
    negated: bool = False


def either(rng: Random, synonyms: tuple[str, str]) -> str:
    """One of two synonyms, the first of them more often."""
    return synonyms[rng.random() < RARE]


def other(rng: Random, size: int, *taken: int | None) -> int:
    """A number below `size` that is none of `taken`."""
    return rng.choice([i for i in range(size) if i not in taken])


def animal(noun: int) -> bool:
    """Whether a noun's concept is an animal (the rest are people)."""
    return noun >= len(lex.PEOPLE)


def draw_clause(rng: Random, nouns: range | None = None, modifiers: int = 2) -> Clause:
    """A random clause with that many of its modifiers (adjective, place, day) set."""
    pool = nouns or range(len(lex.NOUNS))
    subject, target = rng.sample(list(pool), 2)
    clause = Clause(Phrase(subject), rng.randrange(len(lex.VERBS)), Phrase(target))
    for slot in rng.sample(["adjective", "place", "day"], modifiers):
        clause = fill(rng, clause, slot)
    return clause


def fill(rng: Random, clause: Clause, slot: str) -> Clause:
    """Put a new random value, unlike the one there, in one slot of a clause."""
    if slot == "adjective":
        chosen = other(rng, len(lex.ADJECTIVES), clause.subject.adjective)
        return replace(clause, subject=replace(clause.subject, adjective=chosen))
    if slot == "place":
        return replace(clause, place=other(rng, len(lex.PLACES), clause.place))
    if slot == "day":
        return replace(clause, day=other(rng, len(lex.DAYS), clause.day))
    if slot == "verb":
        return replace(clause, verb=other(rng, len(lex.VERBS), clause.verb))
    return refer(rng, clause, slot)


def refer(rng: Random, clause: Clause, slot: str) -> Clause:
    """Another noun, of the same kind, as the subject or the object."""
    pool = range(len(lex.PEOPLE), len(lex.NOUNS)) if animal(clause.subject.noun) else range(len(lex.PEOPLE))
    noun = rng.choice([n for n in pool if n not in (clause.subject.noun, clause.object.noun)])
    if slot == "subject":
        return replace(clause, subject=replace(clause.subject, noun=noun))
    return replace(clause, object=replace(clause.object, noun=noun))


def clear(clause: Clause, slot: str) -> Clause:
    """The clause without one modifier."""
    if slot == "adjective":
        return replace(clause, subject=replace(clause.subject, adjective=None))
    return replace(clause, place=None) if slot == "place" else replace(clause, day=None)


def swap(clause: Clause) -> Clause:
    """The doer and the other one change places (the adjective stays with the doer)."""
    subject = replace(clause.subject, noun=clause.object.noun)
    return replace(clause, subject=subject, object=replace(clause.object, noun=clause.subject.noun))


def oppose(clause: Clause) -> Clause:
    """The opposite deed."""
    return replace(clause, verb=clause.verb ^ 1)


def determiner(phrase: Phrase, known: Phrase | None) -> str:
    """`the`; against something said before, `the same` or `another`."""
    return "the" if known is None else "the same" if phrase.noun == known.noun else "another"


def say_phrase(rng: Random, phrase: Phrase, known: Phrase | None = None) -> str:
    """`the big dog`; `some animal` where only the kind is said; `another still big dog` against a known phrase."""
    if phrase.kind:
        return "some " + lex.KINDS[animal(phrase.noun)]
    words = [determiner(phrase, known)]
    if phrase.adjective is not None:
        if known is not None:
            words.append("still" if phrase.adjective == known.adjective else "rather")
        words.append(either(rng, lex.ADJECTIVES[phrase.adjective]))
    return " ".join([*words, either(rng, lex.NOUNS[phrase.noun])])


def say_circumstances(clause: Clause, known: Clause | None = None) -> list[str]:
    """`in the garden` and `on monday`, as far as the clause has them."""
    said = []
    if clause.place is not None:
        which = "the" if known is None else "the same" if clause.place == known.place else "another"
        said.append(f"in {which} {lex.PLACES[clause.place]}")
    if clause.day is not None:
        which = "on" if known is None else "on the same" if clause.day == known.day else "on another"
        said.append(f"{which} {lex.DAYS[clause.day]}")
    return said


def say(rng: Random, clause: Clause, plain: bool = False, known: Clause | None = None) -> str:
    """One wording of a clause; unless `plain`, now and then in the passive or with a circumstance in front.

    Against a `known` clause every concept also says whether it is the known one (`the same`, `again`) or not.
    """
    subject = say_phrase(rng, clause.subject, known.subject if known else None)
    target = say_phrase(rng, clause.object, known.object if known else None)
    verb = either(rng, lex.VERBS[clause.verb])
    again = [] if known is None else ["again" if clause.verb == known.verb else "now"]
    if not plain and rng.random() < PASSIVE:
        words = [target, "was", *(["not"] if clause.negated else again), lex.past(verb), "by", subject]
    else:
        words = [subject, *again, "did not " + verb if clause.negated else lex.past(verb), target]
    around = say_circumstances(clause, known)
    if around and not plain and rng.random() < 0.2:
        return " ".join([around.pop(0), *words, *around])
    return " ".join(words + around)


def ask(rng: Random, clause: Clause, slot: str, known: Clause | None = None) -> str:
    """A question for one slot of a clause, presupposing the rest of it."""
    subject = say_phrase(rng, clause.subject, known.subject if known else None)
    target = say_phrase(rng, clause.object, known.object if known else None)
    base = either(rng, lex.VERBS[clause.verb])
    again = "" if known is None else "again " if clause.verb == known.verb else "now "
    verb, done = again + base, again + lex.past(base)
    options = {
        "subject": (f"who {done} {target}", f"by whom was {target} {done}"),
        "object": (f"whom did {subject} {verb}", f"who was {done} by {subject}"),
        "place": (f"where did {subject} {verb} {target}", f"where was {target} {done} by {subject}"),
        "day": (f"when did {subject} {verb} {target}", f"when was {target} {done} by {subject}"),
    }
    rest = clear(clause, slot) if slot in ("place", "day") else clause
    return " ".join([options[slot][rng.random() < PASSIVE], *say_circumstances(rest, known)])

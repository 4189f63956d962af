"""Meanings (phrases and clauses of concepts) and the sentences that say them.

Meaning and wording are separate: two results of `say` for one clause are paraphrases (other synonyms, another word
order), and a changed clause has another meaning however similar its wording is.

Concepts are indices into the tables of `lexicon.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from lora_bench.sample import lexicon as lex

RARE = 0.35  # how often a concept is expressed by the rarer of its two words; chosen
PASSIVE = 0.25  # how often a clause is in the passive, where that is allowed; chosen


@dataclass(frozen=True)
class Phrase:
    """A noun and its adjective; with `kind`, only `some person` or `some animal` is said."""

    noun: int
    adjective: int | None = None
    kind: bool = False


@dataclass(frozen=True)
class Clause:
    """Who did what to whom, where and when; `negated` adds `not`."""

    subject: Phrase
    verb: int
    object: Phrase
    place: int | None = None
    day: int | None = None
    negated: bool = False


def choose_synonym(rng: Random, synonyms: tuple[str, str]) -> str:
    """Draw one of two synonyms, the first one more often."""
    return synonyms[rng.random() < RARE]


def draw_other(rng: Random, size: int, *taken: int | None) -> int:
    """Draw a number below `size` that is not in `taken`."""
    return rng.choice([i for i in range(size) if i not in taken])


def is_animal(noun: int) -> bool:
    """Whether a noun is an animal; the others are people."""
    return noun >= len(lex.PEOPLE)


def draw_clause(rng: Random, nouns: range | None = None, modifiers: int = 2) -> Clause:
    """Draw a clause.

    Args:
        rng: The random numbers.
        nouns: The concepts to draw the subject and the object from; by default all.
        modifiers: How many of adjective, place and day are set.
    """
    pool = nouns or range(len(lex.NOUNS))
    subject, target = rng.sample(list(pool), 2)
    clause = Clause(Phrase(subject), rng.randrange(len(lex.VERBS)), Phrase(target))
    for slot in rng.sample(["adjective", "place", "day"], modifiers):
        clause = fill(rng, clause, slot)
    return clause


def fill(rng: Random, clause: Clause, slot: str) -> Clause:
    """Return the clause with a new random value in one slot, different from the current one."""
    if slot == "adjective":
        chosen = draw_other(rng, len(lex.ADJECTIVES), clause.subject.adjective)
        return replace(clause, subject=replace(clause.subject, adjective=chosen))
    if slot == "place":
        return replace(clause, place=draw_other(rng, len(lex.PLACES), clause.place))
    if slot == "day":
        return replace(clause, day=draw_other(rng, len(lex.DAYS), clause.day))
    if slot == "verb":
        return replace(clause, verb=draw_other(rng, len(lex.VERBS), clause.verb))
    return replace_noun(rng, clause, slot)


def replace_noun(rng: Random, clause: Clause, slot: str) -> Clause:
    """Return the clause with another noun of the same kind as its subject or object."""
    pool = range(len(lex.PEOPLE), len(lex.NOUNS)) if is_animal(clause.subject.noun) else range(len(lex.PEOPLE))
    noun = rng.choice([n for n in pool if n not in (clause.subject.noun, clause.object.noun)])
    if slot == "subject":
        return replace(clause, subject=replace(clause.subject, noun=noun))
    return replace(clause, object=replace(clause.object, noun=noun))


def clear(clause: Clause, slot: str) -> Clause:
    """Return the clause without one modifier."""
    if slot == "adjective":
        return replace(clause, subject=replace(clause.subject, adjective=None))
    return replace(clause, place=None) if slot == "place" else replace(clause, day=None)


def swap(clause: Clause) -> Clause:
    """Exchange the nouns of subject and object; the adjective stays with the subject."""
    subject = replace(clause.subject, noun=clause.object.noun)
    return replace(clause, subject=subject, object=replace(clause.object, noun=clause.subject.noun))


def oppose(clause: Clause) -> Clause:
    """Return the clause with the opposite verb."""
    # Opposite verbs are neighbours in the lexicon: 2k and 2k + 1.
    return replace(clause, verb=clause.verb ^ 1)


def determiner(phrase: Phrase, known: Phrase | None) -> str:
    """Return `the`, or `the same` or `another` in comparison with a known phrase."""
    return "the" if known is None else "the same" if phrase.noun == known.noun else "another"


def say_phrase(rng: Random, phrase: Phrase, known: Phrase | None = None) -> str:
    """Return a phrase in words.

    Examples: `the big dog`; `some animal` if only the kind is said; `another still big dog` in comparison with a known
    phrase.
    """
    if phrase.kind:
        return "some " + lex.KINDS[is_animal(phrase.noun)]
    words = [determiner(phrase, known)]
    if phrase.adjective is not None:
        if known is not None:
            words.append("still" if phrase.adjective == known.adjective else "rather")
        words.append(choose_synonym(rng, lex.ADJECTIVES[phrase.adjective]))
    return " ".join([*words, choose_synonym(rng, lex.NOUNS[phrase.noun])])


def say_circumstances(clause: Clause, known: Clause | None = None) -> list[str]:
    """Return phrases such as `in the garden` and `on monday`, if the clause has a place and a day."""
    phrases = []
    if clause.place is not None:
        which = "the" if known is None else "the same" if clause.place == known.place else "another"
        phrases.append(f"in {which} {lex.PLACES[clause.place]}")
    if clause.day is not None:
        which = "on" if known is None else "on the same" if clause.day == known.day else "on another"
        phrases.append(f"{which} {lex.DAYS[clause.day]}")
    return phrases


def say(rng: Random, clause: Clause, plain: bool = False, known: Clause | None = None) -> str:
    """Return one wording of a clause.

    Args:
        rng: The random numbers.
        clause: The meaning.
        plain: Whether to avoid the passive and place or day in front of the sentence.
        known: Another clause. The wording also says of each concept whether it is the same there (`the same`, `again`)
            or not (`another`, `now`).
    """
    subject = say_phrase(rng, clause.subject, known.subject if known else None)
    target = say_phrase(rng, clause.object, known.object if known else None)
    verb = choose_synonym(rng, lex.VERBS[clause.verb])
    again = [] if known is None else ["again" if clause.verb == known.verb else "now"]
    if not plain and rng.random() < PASSIVE:
        words = [target, "was", *(["not"] if clause.negated else again), lex.past(verb), "by", subject]
    else:
        words = [subject, *again, "did not " + verb if clause.negated else lex.past(verb), target]
    circumstances = say_circumstances(clause, known)
    if circumstances and not plain and rng.random() < 0.2:
        return " ".join([circumstances.pop(0), *words, *circumstances])
    return " ".join(words + circumstances)


def ask(rng: Random, clause: Clause, slot: str, known: Clause | None = None) -> str:
    """Return a question for one slot of a clause; it states the rest of the clause."""
    subject = say_phrase(rng, clause.subject, known.subject if known else None)
    target = say_phrase(rng, clause.object, known.object if known else None)
    base = choose_synonym(rng, lex.VERBS[clause.verb])
    again = "" if known is None else "again " if clause.verb == known.verb else "now "
    verb, participle = again + base, again + lex.past(base)
    options = {
        "subject": (f"who {participle} {target}", f"by whom was {target} {participle}"),
        "object": (f"whom did {subject} {verb}", f"who was {participle} by {subject}"),
        "place": (f"where did {subject} {verb} {target}", f"where was {target} {participle} by {subject}"),
        "day": (f"when did {subject} {verb} {target}", f"when was {target} {participle} by {subject}"),
    }
    rest = clear(clause, slot) if slot in ("place", "day") else clause
    return " ".join([options[slot][rng.random() < PASSIVE], *say_circumstances(rest, known)])

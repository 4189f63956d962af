"""The vocabulary of the sample's small language.

A concept is a pair of synonyms. Concepts 2k and 2k + 1 of VERBS and of ADJECTIVES are opposites. Every noun takes a
plural in -s and every verb is regular, so that the inflected forms follow from the spelling.
"""

from __future__ import annotations

PEOPLE: tuple[tuple[str, str], ...] = (
    ("doctor", "physician"), ("teacher", "tutor"), ("lawyer", "attorney"), ("writer", "author"),
    ("robber", "bandit"), ("singer", "vocalist"), ("farmer", "grower"), ("soldier", "trooper"),
)  # fmt: skip
ANIMALS: tuple[tuple[str, str], ...] = (
    ("dog", "hound"), ("cat", "feline"), ("rabbit", "bunny"), ("horse", "steed"),
    ("pig", "hog"), ("donkey", "mule"), ("snake", "serpent"), ("frog", "toad"),
)  # fmt: skip
NOUNS: tuple[tuple[str, str], ...] = PEOPLE + ANIMALS
KINDS: tuple[str, str] = ("person", "animal")  # of the nouns in PEOPLE and in ANIMALS

VERBS: tuple[tuple[str, str], ...] = (
    ("help", "assist"), ("hinder", "hamper"), ("adore", "cherish"), ("detest", "loathe"), ("push", "shove"),
    ("pull", "haul"), ("attack", "assault"), ("defend", "protect"), ("watch", "observe"), ("ignore", "neglect"),
)  # fmt: skip
ADJECTIVES: tuple[tuple[str, str], ...] = (
    ("big", "large"), ("small", "little"), ("fast", "quick"), ("slow", "sluggish"), ("happy", "glad"),
    ("sad", "gloomy"), ("old", "aged"), ("young", "youthful"), ("rich", "wealthy"), ("poor", "needy"),
)  # fmt: skip
PLACES: tuple[str, ...] = ("garden", "market", "harbor", "forest", "kitchen", "school", "castle", "valley")
DAYS: tuple[str, ...] = ("monday", "tuesday", "wednesday", "thursday", "friday")
NUMBERS: tuple[str, ...] = ("two", "three", "four", "five", "six", "seven", "eight", "nine")

WORKS: tuple[str, ...] = ("film", "novel", "play", "song", "story", "album", "comedy", "poem")
GOOD: tuple[str, ...] = (
    "brilliant", "superb", "delightful", "witty", "charming", "fresh", "gripping", "clever", "tender", "vivid",
    "lovely", "graceful",
)  # fmt: skip
BAD: tuple[str, ...] = (
    "dull", "tedious", "clumsy", "bland", "stale", "awful", "dreary", "hollow", "shallow", "tired",
    "lifeless", "crude",
)  # fmt: skip
LIKED: tuple[str, ...] = ("loved", "enjoyed", "admired")
LOATHED: tuple[str, ...] = ("hated", "disliked", "regretted")


def plural(noun: str) -> str:
    """Return the plural: `dog` -> `dogs`, `bunny` -> `bunnies`."""
    return noun[:-1] + "ies" if noun.endswith("ny") else noun + "s"


def third(verb: str) -> str:
    """Return the present tense after a singular subject: `push` -> `pushes`."""
    return verb + "es" if verb.endswith(("sh", "ch")) else verb + "s"


def past(verb: str) -> str:
    """Return the past tense, which is also the participle: `help` -> `helped`, `adore` -> `adored`."""
    return verb + "d" if verb.endswith("e") else verb + "ed"


# Adjectives that explain why something was done: by a property of the subject (first) or of the object (second).
# Those of TRAITS decide it by themselves, those of BLAMED together with the verb.
TRAITS: tuple[tuple[str, ...], tuple[str, ...]] = (
    ("angry", "strict", "grateful", "worried"), ("rude", "lazy", "helpless", "lost"),
)  # fmt: skip
BLAMED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "praised": (("polite",), ("brave",)),
    "scolded": (("polite",), ("brave",)),
    "followed": (("polite",), ("brave",)),
    "avoided": (("brave",), ("polite",)),
    "attacked": (("brave",), ("polite",)),
    "defended": (("brave",), ("polite",)),
}

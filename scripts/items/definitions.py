"""Which word does this definition define? Glosses of WordNet 3.0, four words of one topic at a time.

The words of a square come from one lexicographer file (animals, artefacts, acts ...), were seen about
equally often in tagged text, and differ by at most two letters in length.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from items.squares import Card, Item, Square, gather, items, mentions
from items.wordnet import Nouns, Synset, by_topic

SQUARES = 88
AT_MOST_A_TOPIC = 10


def _usable(synset: Synset) -> bool:
    """The definition is one line and does not use the word, nor another word that starts like it."""
    text = synset.definition
    stems = [word.lower()[:4] for name in synset.words for word in name.split("_")]
    return 20 <= len(text) <= 110 and not any(stem in text.lower() for stem in stems)


def _card(synset: Synset) -> Card:
    return Card("definition", synset.word, f"Definition: {synset.definition}.\nWord:", synset.word)


def make(seed: int, wordnet: Path) -> list[Item]:
    """352 items."""
    rng = Random(seed)
    nouns = Nouns(wordnet)
    meaning = {s.word: s for s in nouns.common if _usable(s)}

    def fits(a: Card, b: Card) -> bool:
        one, two = meaning[a.about], meaning[b.about]
        alike = abs(len(a.answer) - len(b.answer)) <= 2 and max(one.seen, two.seen) <= 3 * min(one.seen, two.seen)
        return alike and not _related(nouns, one, two) and not _named(one, two) and not _named(two, one)

    squares: list[Square] = []
    for _, group in sorted(by_topic(list(meaning.values())).items()):
        squares += gather([_card(s) for s in group], 4, rng, fits, AT_MOST_A_TOPIC)
    rng.shuffle(squares)
    return items("definitions", squares[:SQUARES], rng)


def _related(nouns: Nouns, a: Synset, b: Synset) -> bool:
    """One is a synonym or a kind of the other, in any sense: its word might fit the other's definition."""
    return b.word in nouns.could_be(a.word) or a.word in nouns.could_be(b.word)


def _named(a: Synset, b: Synset) -> bool:
    """The definition of `a` contains a word of `b`."""
    return any(mentions(a.definition, word.replace("_", " ")) for word in b.words)

"""What is this a kind of? Word and hypernym from WordNet 3.0.

A wrong choice is never an ancestor of the word, in any of its senses: "a dog is a kind of animal" would be
right too. Each hypernym is used in few squares, so that no single word dominates the task.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from random import Random

from items.squares import Card, Item, Square, alike, gather, items
from items.wordnet import Nouns, Synset

#: Lexicographer files of things one can touch, living beings, substances, places and events (lexnames(5WN)).
TOPICS = frozenset({"05", "06", "08", "11", "13", "14", "15", "17", "18", "20", "21", "27", "28"})
SQUARES = 63
USES_OF_A_HYPERNYM = 2


def _usable(nouns: Nouns, synset: Synset) -> bool:
    """Not a plural; one hypernym, in its own first sense, of one or two plain words without a common stem."""
    if synset.topic not in TOPICS or len(synset.hypernyms) != 1 or re.search(r"[^s]s$", synset.word):
        return False
    above = nouns.synsets[synset.hypernyms[0]].word
    first = nouns.senses[above.lower().replace(" ", "_")][0] == synset.hypernyms[0]
    plain = re.fullmatch(r"[a-z]+( [a-z]+)?", above) is not None
    return first and plain and not any(part[:4] in synset.word or synset.word[:4] in part for part in above.split())


def _cards(nouns: Nouns, rng: Random) -> list[Card]:
    """One card a word; a hypernym may come back USES_OF_A_HYPERNYM times."""
    found = [s for s in nouns.common if _usable(nouns, s)]
    rng.shuffle(found)
    cards: list[Card] = []
    used: Counter[str] = Counter()
    for synset in found:
        above = nouns.synsets[synset.hypernyms[0]].word
        if used[above] < USES_OF_A_HYPERNYM:
            used[above] += 1
            cards.append(Card("kind", synset.word, f"{synset.word.capitalize()} is a kind of", above))
    return cards


def make(seed: int, wordnet: Path) -> list[Item]:
    """252 items."""
    rng = Random(seed)
    nouns = Nouns(wordnet)

    def fits(a: Card, b: Card) -> bool:
        apart = a.answer not in nouns.could_be(b.about) and b.answer not in nouns.could_be(a.about)
        return apart and alike(a.answer, b.answer, 4)

    squares: list[Square] = gather(_cards(nouns, rng), 4, rng, fits, SQUARES)
    return items("kinds", squares, rng)

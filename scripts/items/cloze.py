"""How does the sentence go on? From "In the Year 2889" by Jules and Michel Verne (1889, public domain).

In the manner of HellaSwag (Zellers et al., 2019): two sentences and the start of a third, then its next ten
words. The wrong continuations are the right ones of three other places, far from here in the text.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

from items.squares import Card, Item, gather, items

SQUARES = 59
NEXT_WORDS = 10
CHARACTERS_APART = 10
SENTENCES_APART = 4
ABBREVIATIONS = ("Mr.", "Dr.", "Mrs.", "St.")


def story(path: Path) -> str:
    """The text itself: without the distributor's words before and after it, or the redactor's."""
    raw = path.read_text(encoding="utf-8")
    start = raw.index("Little though they seem")
    end = raw.index("Jules Verne.", start)
    return raw[start:end].replace("_", "").strip() + "\n"


def _sentences(text: str) -> list[str]:
    flat = re.sub(r"\s+", " ", text)
    for short in ABBREVIATIONS:
        flat = flat.replace(short, short.replace(".", "\0"))
    parts = re.split(r"(?:(?<=[.!?])|(?<=[.!?]\")) (?=\"?[A-Z])", flat)
    return [part.replace("\0", ".").strip() for part in parts if part.strip()]


def _cuts(words: list[str]) -> list[int]:
    """Where a sentence is cut: once, or twice where it is long enough for two continuations."""
    if len(words) < NEXT_WORDS + 3:
        return []
    last = len(words) - NEXT_WORDS
    return [last // 2 + 1] if last < NEXT_WORDS + 4 else [6, last - 1]


def _cards(sentences: list[str]) -> list[Card]:
    cards = []
    for number in range(2, len(sentences)):
        words = sentences[number].split()
        for cut in _cuts(words):
            before = [*sentences[number - 2 : number], " ".join(words[:cut])]
            after = " ".join(words[cut : cut + NEXT_WORDS])
            cards.append(Card("continuation", f"sentence {number}", " ".join(before), after))
    return cards


def _fits(a: Card, b: Card) -> bool:
    one, two = (int(card.about.split()[1]) for card in (a, b))
    return abs(one - two) >= SENTENCES_APART and abs(len(a.answer) - len(b.answer)) <= CHARACTERS_APART


def make(seed: int, verne: Path) -> list[Item]:
    """236 items."""
    rng = Random(seed)
    return items("cloze", gather(_cards(_sentences(story(verne))), 4, rng, _fits, SQUARES), rng)

"""Answer squares: why a model that has been destroyed cannot do better than chance here.

A multiple-choice item asks a model which of k strings it likes best after a question. A ruined model still
likes some strings better than others: short ones, frequent ones, one-letter chemical symbols. If the right
answers of a task share such a trait more often than the wrong ones, the ruined model scores above chance
and the task reports damage as if it were knowledge.

Matching lengths and frequencies only lowers that risk. So the items come in *squares*: k questions share
one set of k choices, and each choice is the right answer of exactly one of them. A scorer that does not
read the question gives all k the same favourite and is right exactly once. It scores 1/k, whatever its
taste is. The right answer also stands once in each position, so "always the first" scores 1/k too.

The items of one square are not independent of each other: `cluster` names what they are about, so that a
standard error can be computed over clusters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

Item = dict[str, object]


@dataclass(frozen=True)
class Card:
    """One question with its answer, not yet in a square.

    `about` is the thing asked about (a country, a lemma, a sentence number); it goes into `cluster`.
    """

    kind: str
    about: str
    query: str
    answer: str


@dataclass(frozen=True)
class Square:
    """Cards that share their answers as choices. `cluster` is what their items have in common."""

    cards: tuple[Card, ...]
    cluster: str

    @classmethod
    def of(cls, cards: Iterable[Card]) -> Square:
        """A square named after what its cards are about."""
        members = tuple(cards)
        return cls(members, " / ".join(dict.fromkeys(card.about for card in members)))


def mentions(text: str, words: str) -> bool:
    """True where `words` stands in `text` as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def alike(a: str, b: str, characters: int) -> bool:
    """Two answers that look alike from outside: as many words, and lengths at most `characters` apart."""
    return len(a.split()) == len(b.split()) and abs(len(a) - len(b)) <= characters


def compatible(a: Card, b: Card) -> bool:
    """Different answers, and no question gives away an answer of the other by containing it."""
    if a.answer == b.answer or a.query == b.query:
        return False
    return not mentions(a.query, b.answer) and not mentions(b.query, a.answer)


def gather(
    cards: Sequence[Card], size: int, rng: Random, fits: Callable[[Card, Card], bool], at_most: int
) -> list[Square]:
    """Up to `at_most` squares in which every pair is compatible and fits. Each card is used once.

    Greedy: a card takes the first others that go with it and with each other. A card that finds no company
    is dropped.
    """
    waiting = [card for card in cards if not mentions(card.query, card.answer)]
    rng.shuffle(waiting)
    squares: list[Square] = []
    while waiting and len(squares) < at_most:
        members = [waiting.pop(0)]
        for other in waiting:
            if all(compatible(other, member) and fits(other, member) for member in members):
                members.append(other)
                if len(members) == size:
                    squares.append(Square.of(members))
                    waiting = [card for card in waiting if card not in members]
                    break
    return squares


def items(task: str, squares: Sequence[Square], rng: Random) -> list[Item]:
    """Squares in a random order, the items of a square side by side.

    Side by side, because a run limited to the first n items then still holds whole squares.
    """
    order = list(squares)
    rng.shuffle(order)
    found = [item for square in order for item in _square_items(square, rng)]
    return [{"id": f"{task}-{number:04d}", **item} for number, item in enumerate(found, start=1)]


def _square_items(square: Square, rng: Random) -> list[Item]:
    """Each card once, its answer in a position that no other card of the square uses."""
    cards = list(square.cards)
    rng.shuffle(cards)
    answers = [card.answer for card in cards]
    repeats = range(0, len(cards), len(set(answers)))
    places = [place for _ in repeats for place in range(len(set(answers)))]
    rng.shuffle(places)
    return [_item(square.cluster, card, answers, place, rng) for card, place in zip(cards, places, strict=True)]


def _item(cluster: str, card: Card, answers: Sequence[str], place: int, rng: Random) -> Item:
    choices = [answer for answer in dict.fromkeys(answers) if answer != card.answer]
    rng.shuffle(choices)
    choices.insert(place, card.answer)
    return {
        "cluster": cluster,
        "kind": card.kind,
        "query": card.query,
        "choices": choices,
        "gold": place,
    }


def write(path: Path, rows: Iterable[Item]) -> int:
    """Write one JSON object a line, UTF-8, and return their number. Same rows, same bytes."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return len(lines)

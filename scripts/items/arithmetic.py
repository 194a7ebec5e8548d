"""Small sums in words. Needs no data: the numbers are drawn from the seed.

Four sums whose results lie close together and have equally many digits share their results as choices. An
operand is never a choice of its own square, so copying a number out of the question does not help.
"""

from __future__ import annotations

from random import Random

from items.squares import Card, Item, gather, items

SQUARES_A_KIND = {"plus": 22, "minus": 8, "times": 21}
RESULTS_APART = 12


def _sums() -> list[Card]:
    pairs = [(a, b) for a in range(2, 26) for b in range(2, 26)]
    plus = [("plus", a, b, a + b) for a, b in pairs]
    minus = [("minus", a, b, a - b) for a, b in pairs if a - b > 1]
    times = [("times", a, b, a * b) for a, b in pairs if a <= 12 and b <= 12]
    return [_card(*found) for found in plus + minus + times]


def _card(word: str, a: int, b: int, result: int) -> Card:
    return Card(word, f"{a} {word} {b}", f"Question: What is {a} {word} {b}?\nAnswer:", str(result))


def _fits(a: Card, b: Card) -> bool:
    near = abs(int(a.answer) - int(b.answer)) <= RESULTS_APART
    return near and len(a.answer) == len(b.answer)


def make(seed: int) -> list[Item]:
    """204 items: addition, subtraction, multiplication."""
    rng = Random(seed)
    cards = _sums()
    squares = []
    for word, number in SQUARES_A_KIND.items():
        mine = [card for card in cards if card.kind == word]
        squares += gather(mine, 4, rng, _fits, number)
    return items("arithmetic", squares, rng)

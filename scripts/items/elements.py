"""Chemical elements: symbol, name and atomic number, from the package periodictable (public domain).

The prototype's trap: a one-letter symbol among two-letter ones wins for a ruined model, because one letter
is one token. Here the symbols of a square are equally long, as are the digits of the numbers.
"""

from __future__ import annotations

from random import Random

from items.squares import Card, Item, Square, gather, items

LAST_NUMBER = 103  # lawrencium; the later ones are known to few texts
SQUARES = {"symbol": 18, "name": 17, "number": 24}


def _elements() -> list[tuple[int, str, str]]:
    """(atomic number, symbol, name) of every element up to LAST_NUMBER."""
    import periodictable

    return [(e.number, e.symbol, e.name) for e in periodictable.elements if 1 <= e.number <= LAST_NUMBER]


def _same_symbol_length(a: Card, b: Card) -> bool:
    return len(a.answer) == len(b.answer) and (len(a.answer) == 1 or _first_letters_agree(a, b))


def _first_letters_agree(a: Card, b: Card) -> bool:
    """The answers start alike, so that the first letter of the name does not give the symbol away."""
    return a.answer[0] == b.answer[0]


def _names_alike(a: Card, b: Card) -> bool:
    return _first_letters_agree(a, b) and abs(len(a.answer) - len(b.answer)) <= 6


def _numbers_near(a: Card, b: Card) -> bool:
    return len(a.answer) == len(b.answer) and abs(int(a.answer) - int(b.answer)) <= 16


def make(seed: int) -> list[Item]:
    """236 items."""
    rng = Random(seed)
    found = _elements()
    symbol = [Card("symbol", name, f"The chemical symbol for {name} is", symbol) for _, symbol, name in found]
    name = [
        Card("name", name, f"The chemical element with the symbol {symbol} is called", name)
        for _, symbol, name in found
    ]
    number = [Card("number", name, f"The atomic number of {name} is", str(n)) for n, _, name in found]
    squares: list[Square] = gather(symbol, 4, rng, _same_symbol_length, SQUARES["symbol"])
    squares += gather(name, 4, rng, _names_alike, SQUARES["name"])
    squares += gather(number, 4, rng, _numbers_near, SQUARES["number"])
    return items("elements", squares, rng)

"""Facts about countries, from the package countryinfo (MIT).

The data have oddities, and the world has disputes. What is left out, and why, stands in the tables below:
an item whose answer a careful reader could dispute measures the reader.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from random import Random

from items.squares import Card, Item, Square, alike, gather, items

PEOPLE_AT_LEAST = 300_000
#: Territories, dissolved or renamed states, and states whose status is disputed.
NOT_ASKED = frozenset({"RE", "GP", "MQ", "PR", "HK", "MO", "EH", "PS", "TW", "CS", "MK", "SZ"})
#: Capital disputed, shared, moved, being moved, or out of date in the data.
CAPITAL_DISPUTED = frozenset({"BJ", "BO", "BI", "CI", "TZ", "ZA", "LK", "KZ", "IL", "ID", "GQ", "MY", "MM"})
#: Part of the world disputed (two continents, or the data disagree with the United Nations).
REGION_DISPUTED = frozenset({"RU", "TR", "CY", "GE", "AM", "AZ", "KZ", "EG", "ME", "AF", "IR", "MN"})
#: The listed language is not the one the government mainly uses, or a second one is as official.
LANGUAGE_DISPUTED = frozenset({"MR", "PH", "KE", "RS", "TL", "ET", "WS"})
LANGUAGES = {
    "ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fa": "Persian", "fr": "French",
    "nl": "Dutch", "pt": "Portuguese", "ro": "Romanian", "km": "Khmer", "he": "Hebrew",
}  # fmt: skip
#: A border overseas (Saint Martin, Cyprus, Ceuta) or across a strait: the list of neighbours is arguable.
BORDER_DISPUTED = frozenset({"NL", "GB", "MA", "ES", "FR", "LK", "SG", "BH"})
#: Names that English says with an article.
WITH_ARTICLE = re.compile(r"Netherlands|Philippines|United|Solomon|.*Republic")
CONTINENT_WORDS = ("Africa", "Asia", "Europe")
SQUARES = {"capital": 27, "border": 22, "language": 12, "region": 14}


@dataclass(frozen=True)
class Country:
    """What is used of one countryinfo document."""

    code: str
    long_code: str
    name: str
    capital: str
    region: str
    subregion: str
    languages: tuple[str, ...]
    borders: frozenset[str]


def _spoken(name: str) -> str:
    """The name as it stands inside a sentence."""
    return f"the {name}" if WITH_ARTICLE.match(name) else name.replace("The ", "the ")


def _country(raw: dict[str, object]) -> Country | None:
    """None for a document that is no present-day country of some size, or lacks a field."""
    iso, people = raw.get("ISO"), raw.get("population")
    if not isinstance(iso, dict) or not isinstance(people, int) or people < PEOPLE_AT_LEAST:
        return None
    if iso.get("alpha2") in NOT_ASKED or not all(raw.get(k) for k in ("name", "capital", "region", "subregion")):
        return None
    languages, borders = raw.get("languages") or [], raw.get("borders") or []
    assert isinstance(languages, list)
    assert isinstance(borders, list)
    return Country(
        code=str(iso["alpha2"]),
        long_code=str(iso["alpha3"]),
        name=_spoken(str(raw["name"])),
        capital=str(raw["capital"]),
        region=str(raw["region"]),
        subregion=str(raw["subregion"]),
        languages=tuple(languages),
        borders=frozenset(borders),
    )


def _countries() -> dict[str, Country]:
    """name -> country, sorted by name."""
    folder = resources.files("countryinfo") / "data"
    files = sorted(path.name for path in folder.iterdir() if path.name.endswith(".json"))
    found = [_country(json.loads((folder / name).read_text(encoding="utf-8"))) for name in files]
    return {c.name: c for c in sorted((c for c in found if c), key=lambda c: c.name)}


def _share_a_stem(a: str, b: str) -> bool:
    """Tunis and Tunisia: the name gives the answer away."""
    stems = [{w[:3].lower() for w in re.findall(r"\w+", text) if len(w) > 3} for text in (a, b)]
    return bool(stems[0] & stems[1])


def _capitals(world: dict[str, Country], rng: Random) -> list[Square]:
    """The same four countries are asked for their capitals, and their capitals for the country."""
    usable = [
        Card("capital", c.name, f"Question: What is the capital city of {c.name}?\nAnswer:", c.capital)
        for c in world.values()
        if c.code not in CAPITAL_DISPUTED and not _share_a_stem(c.name, c.capital)
    ]

    def fits(a: Card, b: Card) -> bool:
        same = world[a.about].region == world[b.about].region
        return same and alike(a.answer, b.answer, 4) and alike(a.about, b.about, 6)

    there = gather(usable, 4, rng, fits, SQUARES["capital"])
    return there + [Square(tuple(map(_backwards, square.cards)), square.cluster) for square in there]


def _backwards(card: Card) -> Card:
    query = f"Question: {card.answer} is the capital city of which country?\nAnswer:"
    return Card("country", card.about, query, card.about)


def _neighbours(world: dict[str, Country]) -> dict[str, set[str]]:
    """name -> the names of those it lists as neighbours."""
    by_code = {c.long_code: c.name for c in world.values()}
    return {c.name: {by_code[code] for code in c.borders & by_code.keys()} for c in world.values()}


def _borders(world: dict[str, Country], rng: Random) -> list[Square]:
    """Each answer borders the country asked about, and none of the other three.

    The data have mistakes here: right is what both sides list, wrong is what neither lists.
    """
    claims = _neighbours(world)
    touching = {name: {b for b in world if b in claims[name] or name in claims[b]} for name in world}
    clear = [name for name, country in world.items() if country.code not in BORDER_DISPUTED]
    pairs = [(a, b) for a in clear for b in clear if b in claims[a] and a in claims[b] and not _share_a_stem(a, b)]
    rng.shuffle(pairs)
    cards = [Card("border", a, f"One of the countries that border {a} is", b) for a, b in dict(pairs).items()]

    def fits(a: Card, b: Card) -> bool:
        apart = a.answer not in touching[b.about] and b.answer not in touching[a.about]
        return apart and world[a.about].region == world[b.about].region and alike(a.answer, b.answer, 5)

    return gather(cards, 4, rng, fits, SQUARES["border"])


def _languages(world: dict[str, Country], rng: Random) -> list[Square]:
    """Only countries for which one language is listed, and not one named after the country."""
    cards = []
    for c in world.values():
        word = LANGUAGES.get(c.languages[0]) if len(c.languages) == 1 else None
        if word and c.code not in LANGUAGE_DISPUTED and not _share_a_stem(c.name, word):
            query = f"Question: What is the main language of government in {c.name}?\nAnswer:"
            cards.append(Card("language", c.name, query, word))
    return gather(cards, 4, rng, lambda a, b: alike(a.answer, b.answer, 4), SQUARES["language"])


def _regions(world: dict[str, Country], rng: Random) -> list[Square]:
    """Parts of the world that nobody mistakes for each other: two European ones never meet."""
    usable = [c for c in world.values() if c.subregion.endswith(CONTINENT_WORDS) and c.code not in REGION_DISPUTED]
    cards = [
        Card("region", c.name, f"Question: In which part of the world is {c.name}?\nAnswer:", c.subregion)
        for c in usable
        if c.subregion != "Central Asia" and not _share_a_stem(c.name, c.subregion)
    ]

    def fits(a: Card, b: Card) -> bool:
        same = world[a.about].region == world[b.about].region
        return not (same and world[a.about].region in ("Europe", "Africa")) and alike(a.answer, b.answer, 6)

    return gather(cards, 4, rng, fits, SQUARES["region"])


def make(seed: int) -> list[Item]:
    """408 items: capital, country of a capital, border, language, part of the world."""
    rng = Random(seed)
    world = _countries()
    squares = _capitals(world, rng) + _borders(world, rng) + _languages(world, rng) + _regions(world, rng)
    return items("facts", squares, rng)

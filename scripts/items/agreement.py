"""Grammatical number: does the verb agree with its subject when another noun stands in between?

Minimal pairs in the manner of BLiMP (Warstadt et al., 2020), built from a few everyday words; the inflected
forms come from the package lemminflect (MIT).

A square has four sentences: the deciding word is singular or plural, and so is the noun that distracts. All
four offer the same two choices. Who ignores the sentence is right in two of four; who agrees with the
nearest noun is right in two of four as well. Only agreement with the right word scores more.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from items.squares import Card, Item, Square, items

PEOPLE = [
    "teacher", "doctor", "lawyer", "farmer", "child", "woman", "man", "boy", "girl", "student", "artist",
    "worker", "soldier", "pilot", "nurse", "officer", "guest", "driver", "manager", "singer", "writer",
    "scientist", "engineer", "neighbor", "friend", "king", "queen", "judge",
]  # fmt: skip
THINGS = [
    "car", "table", "tree", "house", "book", "door", "bridge", "garden", "window", "box", "boat", "chair",
    "clock", "letter", "machine", "road", "ship", "tower",
]  # fmt: skip
WORKS = ["picture", "photograph", "story", "painting", "book", "letter", "song", "report", "poem", "film"]
TAKE_OBJECT = ["admire", "help", "see", "watch", "know", "visit", "remember", "call", "follow", "hear"]
STAND_ALONE = ["sleep", "laugh", "run", "work", "smile", "leave", "wait", "sing", "walk", "stay"]
SHOW = ["show", "describe", "mention", "praise", "mock"]
PLACES = ["near", "behind", "next to", "in front of"]
STATES = ["here", "ready", "happy", "late", "at home", "in the room", "very tired"]
ADJECTIVES = ["old", "young", "small", "tall", "new", "quiet", "clever", "famous"]
CLUSTERS_A_KIND = 15

#: A frame: (deciding word is plural, distractor is plural) -> the start of the sentence; and its two endings,
#: the singular one first.
Frame = tuple[Callable[[bool, bool], str], tuple[str, str]]


def _forms(lemma: str, tag: str) -> str:
    """`lemma` inflected: NNS is the plural of a noun, VBZ the third person singular of a verb."""
    from lemminflect import getInflection  # type: ignore[import-untyped]

    return str(getInflection(lemma, tag)[0])


def _noun(lemma: str, plural: bool) -> str:
    return _forms(lemma, "NNS") if plural else lemma


def _verb(lemma: str, plural: bool) -> str:
    return lemma if plural else _forms(lemma, "VBZ")


def _preposition(rng: Random) -> Frame:
    head, other = rng.sample(PEOPLE, 2)
    place, verb = rng.choice(PLACES), rng.choice(STAND_ALONE)
    ends = f"{_verb(verb, False)}.", f"{_verb(verb, True)}."
    return lambda plural, odd: f"The {_noun(head, plural)} {place} the {_noun(other, odd)}", ends


def _relative(rng: Random) -> Frame:
    head, other = rng.sample(PEOPLE, 2)
    inner, verb = rng.choice(TAKE_OBJECT), rng.choice(STAND_ALONE)
    ends = f"{_verb(verb, False)}.", f"{_verb(verb, True)}."
    return (
        lambda plural, odd: f"The {_noun(head, plural)} that the {_noun(other, odd)} {_verb(inner, odd)}",
        ends,
    )


def _copula(rng: Random) -> Frame:
    head, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    adjective, state = rng.choice(ADJECTIVES), rng.choice(STATES)
    now = rng.random() < 0.5
    ends = (f"is {state}.", f"are {state}.") if now else (f"was {state}.", f"were {state}.")
    return lambda plural, odd: f"The {adjective} {_noun(head, plural)} with the {_noun(thing, odd)}", ends


def _content(rng: Random) -> Frame:
    head, other, third = rng.choice(WORKS), rng.choice(PEOPLE), rng.choice(PEOPLE)
    if rng.random() < 0.5:
        verb = rng.choice(SHOW)
        ends = f"{_verb(verb, False)} the {third}.", f"{_verb(verb, True)} the {third}."
    else:
        outcome = rng.choice(["become famous", "been lost", "been found", "won a prize"])
        ends = f"has {outcome}.", f"have {outcome}."
    return lambda plural, odd: f"The {_noun(head, plural)} about the {_noun(other, odd)}", ends


def _determiner(rng: Random) -> Frame:
    thing, other = rng.choice(THINGS), rng.choice(PEOPLE)
    adjective, words = rng.choice(ADJECTIVES), rng.choice([("this", "these"), ("that", "those")])
    ends = f"{_noun(thing, False)}.", f"{_noun(thing, True)}."
    return lambda plural, odd: f"The {_noun(other, odd)} looked at {words[plural]} {adjective}", ends


FRAMES: dict[str, Callable[[Random], Frame]] = {
    "preposition": _preposition,
    "relative": _relative,
    "copula": _copula,
    "content": _content,
    "determiner": _determiner,
}


def _square(kind: str, frame: Frame) -> Square:
    start, ends = frame
    cards = [
        Card(kind, start(False, False), start(plural, odd), ends[plural])
        for plural in (False, True)
        for odd in (False, True)
    ]
    return Square.of(cards)


def make(seed: int) -> list[Item]:
    """300 items: 15 squares of four sentences for each of five frames."""
    rng = Random(seed)
    squares: dict[str, Square] = {}
    for kind, frame in FRAMES.items():
        wanted = len(squares) + CLUSTERS_A_KIND
        while len(squares) < wanted:
            square = _square(kind, frame(rng))
            squares.setdefault(square.cluster, square)
    return items("agreement", list(squares.values()), rng)

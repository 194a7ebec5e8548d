"""Needles in long contexts, after RULER (Hsieh et al. 2024, arXiv 2404.06654). Needs no data: all comes from the seed.

    one      one sentence with a pass code somewhere in filler; the other choices stand nowhere
    four     four such sentences, one asked for: the model must bind code and thing
    lookup   a list of keys with numbers and nothing else: every line looks like the needle

A question ends with the beginning of the needle's own sentence, so that even a model of 135M can answer by going on;
what is tested is whether the right place in the cache is found and read. Depths are spread: the needles of a
context lie in different quarters of it.

Items come in squares (squares.py). The four questions of `four` and `lookup` ask about one context, which an engine
computes once; those of `one` are four contexts with the same four choices.

A context is not stored but its recipe: `order` holds the numbers of the filler's sentences, which stand in the task
file, and -1, -2 ... for the first, second ... of `needles`. So 4,096 tokens take a few hundred bytes.
"""

from __future__ import annotations

from random import Random

from items.squares import Item

SENTENCES = 40
"""Of the filler in evals/tasks/long_512.yaml."""
SENTENCE_TOKENS = 10.4
"""Of a sentence of the filler on average, with SmolLM2's tokenizer; Llama 3's needs fewer."""
PAIR_TOKENS = 10.3
"""Of a line of `lookup`."""
AROUND = 72
"""Tokens kept free for needles, question and answer."""
SQUARES = {"one": 2, "four": 8, "lookup": 6}

MAKERS = ("red", "old", "small", "quiet", "round", "tall", "broken", "painted", "narrow", "heavy", "green", "empty")
MAKERS += ("wooden", "bright", "cold", "square", "dusty", "plain", "silver", "hidden", "open", "yellow", "long", "soft")
THINGS = ("gate", "cellar", "tower", "drawer", "office", "garage", "cabin", "museum", "bridge", "locker", "harbour")
THINGS += ("library", "station", "garden", "workshop", "elevator", "kitchen", "archive", "chapel", "warehouse")


def make(length: int, seed: int) -> list[Item]:
    """All items whose prompts are at most `length` tokens long, kinds mixed so that the first n hold all of them."""
    rng = Random(f"{seed} {length}")
    squares = [(kind, number) for kind, count in SQUARES.items() for number in range(count)]
    rng.shuffle(squares)
    found = []
    for kind, number in squares:
        draw = {"one": _one, "four": _four, "lookup": _lookup}[kind]
        found += [{"cluster": f"{kind} {number}", "kind": kind, **item} for item in draw(length, rng)]
    return [{"id": f"long-{length}-{place:03d}", **item} for place, item in enumerate(found, start=1)]


def _keys(rng: Random, count: int) -> list[str]:
    return rng.sample([f"{maker} {thing}" for maker in MAKERS for thing in THINGS], count)


def _codes(rng: Random, count: int) -> list[str]:
    return [str(code) for code in rng.sample(range(10_000, 100_000), count)]


def _sentence(key: str, code: str) -> str:
    return f"The pass code of the {key} is {code}."


def _ask(rng: Random, key: str, codes: list[str], place: int, right: str) -> Item:
    """Question, choices and the place of the right one, which differs within a square."""
    choices = [code for code in codes if code != right]
    rng.shuffle(choices)
    choices.insert(place, right)
    return {"query": f"Question: What is the pass code of the {key}?\nAnswer: The pass code of the {key} is"} | {
        "choices": choices,
        "gold": place,
    }


def _filler(rng: Random, length: int) -> list[int]:
    """Sentences in random order, none twice in a row."""
    order: list[int] = []
    while len(order) < (length - AROUND) / SENTENCE_TOKENS:
        order += rng.sample(range(SENTENCES), SENTENCES)
    return order[: int((length - AROUND) / SENTENCE_TOKENS)]


def _depths(rng: Random, size: int, count: int) -> list[int]:
    """A place in each of `count` equal parts, in random order."""
    places = [rng.randrange(size * part // count, size * (part + 1) // count) for part in range(count)]
    rng.shuffle(places)
    return places


def _with(order: list[int], places: list[int]) -> list[int]:
    """The filler with needle i (-1 - i) before the sentence `places[i]`."""
    found: list[int] = []
    for at, number in enumerate(order):
        found += [-1 - needle for needle, place in enumerate(places) if place == at] + [number]
    return found


def _one(length: int, rng: Random) -> list[Item]:
    """Four contexts, a needle in each, in another quarter each."""
    keys, codes = _keys(rng, 4), _codes(rng, 4)
    order = _filler(rng, length)
    places = _depths(rng, len(order), 4)
    return [
        {"order": _with(_filler(rng, length), [place]), "needles": [_sentence(key, code)]}
        | _ask(rng, key, codes, gold, code)
        for gold, (key, code, place) in enumerate(zip(keys, codes, places, strict=True))
    ]


def _four(length: int, rng: Random) -> list[Item]:
    """One context with four needles, asked for one after the other."""
    keys, codes = _keys(rng, 4), _codes(rng, 4)
    order = _filler(rng, length - 3 * 16)
    context = _with(order, _depths(rng, len(order), 4))
    needles = [_sentence(key, code) for key, code in zip(keys, codes, strict=True)]
    pairs = enumerate(zip(keys, codes, strict=True))
    return [{"order": context, "needles": needles} | _ask(rng, key, codes, gold, code) for gold, (key, code) in pairs]


def _lookup(length: int, rng: Random) -> list[Item]:
    """One list of keys and numbers, four of them asked for; the wrong choices stand in it, too."""
    count = int((length - AROUND) / PAIR_TOKENS)
    keys, codes = _keys(rng, count), _codes(rng, count)
    lines = [f"{key}: {code};" for key, code in zip(keys, codes, strict=True)]
    asked = _depths(rng, count, 4)
    choices = [codes[place] for place in asked]
    found = []
    for gold, place in enumerate(asked):
        item = _ask(rng, keys[place], choices, gold, codes[place])
        item["query"] = f"Question: Which number stands beside {keys[place]}?\nAnswer: {keys[place]}:"
        found.append({"order": [-1 - number for number in range(count)], "needles": lines} | item)
    return found

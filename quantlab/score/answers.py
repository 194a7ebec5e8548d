"""Answers about pictures -> scores, as the data sets define them. Pure: strings and numbers in, numbers out.

Each metric is its benchmark's own, with its quirks; a "better" one would give numbers that nobody else has.

VQA accuracy   Antol et al. 2015, VQAv2 and TextVQA: ten people answered, and an answer is right to the degree that
               people agree with it. For each person: min(1, matches among the other nine / 3), then the mean. The
               normalisation is that of the official evaluation (GT-Vision-Lab/VQA, vqaEval.py), two mistakes included
               that every copy keeps.
ANLS           Biten et al. 2019, DocVQA: 1 - edit distance over the longer length, of the best reference; below
               0.5 it is 0.
Relaxed        Masry et al. 2022, ChartQA: a number may be 5 % off, a word may not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

PEOPLE = 3
"""As many people who gave an answer make it fully right."""
ANLS_THRESHOLD = 0.5
RELAXED = 0.05

_PUNCTUATION = [*';/[]"{}()=+\\_-><@`,?!']
_COMMA = re.compile(r"(\d)(,)(\d)")
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
"""The first bracket was meant as a look-behind and is none; vqaEval.py has it so."""
_PERIODS = int(re.UNICODE)
"""vqaEval.py hands this flag over as the count: at most 32 periods are taken out."""
_NUMBERS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = dict(zip(_NUMBERS, ["0", *map(str, range(11))], strict=True))
_ARTICLES = {"a", "an", "the"}
_APOSTROPHES = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
    "he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't "
    "mightn't've might've mustn't must've needn't not've o'clock oughtn't ow's'at 'ow's'at shan't she'd've "
    "should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd "
    "someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've weren't we've what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're "
    "why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _APOSTROPHES.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}
"""A contraction without one of its apostrophes -> with all. vqaEval.py turns the last one the wrong way round."""


def normalised(answer: str) -> str:
    """An answer as VQA's evaluation compares it: no punctuation, articles or number words, contractions restored."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in _PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text or _COMMA.search(text) is not None
        out = out.replace(mark, "" if alone else " ")
    out = _PERIOD.sub("", out, _PERIODS)
    words = [_DIGITS.get(word, word) for word in out.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy in [0, 1]. One person alone has no others to agree with, and would always give 0.

    Raises:
        ValueError: fewer than two people's answers.
    """
    if len(people) < 2:
        raise ValueError("VQA accuracy needs the answers of several people; with one, use exact match")
    mine, theirs = normalised(answer), [normalised(one) for one in people]
    matches = sum(one == mine for one in theirs)
    shares = [min(1.0, (matches - (one == mine)) / PEOPLE) for one in theirs]
    return sum(shares) / len(shares)


def anls(answer: str, references: Sequence[str], threshold: float = ANLS_THRESHOLD) -> float:
    """Average normalised Levenshtein similarity of one answer, in [0, 1].

    Raises:
        ValueError: no reference.
    """
    if not references:
        raise ValueError("ANLS needs at least one reference")
    best = max(_similarity(_squeezed(answer), _squeezed(one)) for one in references)
    return best if best >= threshold else 0.0


def _squeezed(text: str) -> str:
    return " ".join(text.strip().lower().split())


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    return 1.0 if not longest else 1 - edit_distance(a, b) / longest


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements of one character."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def relaxed(answer: str, target: str, tolerance: float = RELAXED) -> bool:
    """ChartQA's relaxed correctness: a number within 5 % of the target, the limit included; any other text equal but
    for case. "5%" is 0.05. A year counts as a number, so 2019 passes for 2020: the benchmark has it so."""
    mine, wanted = _number(answer), _number(target)
    if mine is not None and wanted:
        return abs(mine - wanted) / abs(wanted) <= tolerance
    return answer.strip().lower() == target.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def right_nll(loglikelihoods: Sequence[float], right: str) -> float | None:
    """-log p of the right answer in nats, of the likeliest where several are right.

    Args:
        loglikelihoods: of the choices.
        right: index of the right one, or a JSON list of indices.

    Returns:
        None where the answer was not chosen by likelihood, or is not finite.
    """
    try:
        which = json.loads(right) if loglikelihoods else None
    except ValueError:
        return None
    named = which if isinstance(which, list) else [which]
    places = [one for one in named if isinstance(one, int) and 0 <= one < len(loglikelihoods)]
    if not places or len(places) < len(named):
        return None
    best = max(loglikelihoods[one] for one in places)
    return -best if math.isfinite(best) else None

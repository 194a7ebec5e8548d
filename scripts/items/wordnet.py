"""Read the nouns of WordNet 3.0 from its data files (Debian: package wordnet-base, /usr/share/wordnet).

Format: man page wndb(5WN). A line of data.noun holds a synset: its words, its pointers (`@` leads to the
hypernym, the more general synset) and, after a bar, its gloss. cntlist.rev counts how often a sense was
tagged in a corpus; index.noun lists the senses of a word, the most frequent first.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

#: Glosses with these words are left out of the items: rude, sexual, or about groups of people and violence.
UNWANTED = re.compile(
    r"sex|genital|offens|disparag|slang|obscen|vulgar|prostitut|slave|ethnic|nazi|negro|kill|murder|excre|urin"
    r"|racial|race\b|penis|vagina|breast|buttock|anus|semen|jew\b|idiot|retard",
    re.IGNORECASE,
)

#: A word with more meanings is not asked about: its first one need not be the one a reader thinks of.
SENSES_AT_MOST = 4


@dataclass(frozen=True)
class Synset:
    """One meaning: `words` share it; `topic` is the lexicographer file; `seen` counts it in tagged text."""

    offset: str
    topic: str
    words: tuple[str, ...]
    hypernyms: tuple[str, ...]
    gloss: str
    seen: int

    @property
    def word(self) -> str:
        return self.words[0].replace("_", " ")

    @property
    def definition(self) -> str:
        """The gloss without its field of knowledge ("(music) ..."), example sentences and afterthoughts."""
        return re.sub(r"^\([^)]*\) ", "", self.gloss.split(";")[0]).strip()


class Nouns:
    """All noun synsets by offset, with their ancestors."""

    def __init__(self, folder: Path) -> None:
        counts = _counts(folder / "cntlist.rev")
        self.synsets = {s.offset: s for s in _synsets(folder / "data.noun", counts)}
        self.senses = dict(_senses(folder / "index.noun"))
        self._ancestors: dict[str, frozenset[str]] = {}

    def ancestors(self, offset: str) -> frozenset[str]:
        """Offsets of everything more general than this synset."""
        if offset not in self._ancestors:
            above = self.synsets[offset].hypernyms
            further = [self.ancestors(parent) for parent in above]
            self._ancestors[offset] = frozenset(above).union(*further)
        return self._ancestors[offset]

    def could_be(self, word: str) -> set[str]:
        """Every word that names a meaning of `word` or something more general, in any of its senses."""
        meanings = self.senses.get(word.replace(" ", "_"), ())
        above = {parent for meaning in meanings for parent in (meaning, *self.ancestors(meaning))}
        return {name.replace("_", " ").lower() for offset in above for name in self.synsets[offset].words}

    @cached_property
    def common(self) -> list[Synset]:
        """Synsets that are the first sense of a plain word and were seen three times in tagged text."""
        return [s for s in self.synsets.values() if s.seen >= 3 and self._is_plain(s)]

    def _is_plain(self, synset: Synset) -> bool:
        word, senses = synset.words[0], self.senses.get(synset.words[0], ("",))
        known = senses[0] == synset.offset and len(senses) <= SENSES_AT_MOST
        plain = re.fullmatch(r"[a-z]{3,}", word) is not None
        return known and plain and not UNWANTED.search(f"{word} {synset.gloss}")


def _lines(path: Path) -> Iterator[str]:
    """The lines without the licence text on top, which is indented."""
    with path.open(encoding="utf-8") as file:
        yield from (line.rstrip("\n") for line in file if not line.startswith(" "))


def _counts(path: Path) -> Counter[tuple[str, str, int]]:
    """(word, topic, sense number within the topic) -> times seen, for nouns."""
    found: Counter[tuple[str, str, int]] = Counter()
    for line in _lines(path):
        key, _, times = line.split()
        word, _, rest = key.partition("%")
        part, topic, number, *_ = rest.split(":")
        if part == "1":
            found[word, topic, int(number)] = int(times)
    return found


def _synsets(path: Path, counts: Counter[tuple[str, str, int]]) -> Iterator[Synset]:
    for line in _lines(path):
        left, _, gloss = line.partition(" | ")
        offset, topic, _, number, *fields = left.split()
        size = 2 * int(number, 16)
        words, numbers = fields[0:size:2], [int(n, 16) for n in fields[1:size:2]]
        seen = sum(counts[w.lower(), topic, n] for w, n in zip(words, numbers, strict=True))
        yield Synset(offset, topic, tuple(words), _hypernyms(fields[size:]), gloss.strip(), seen)


def _hypernyms(fields: list[str]) -> tuple[str, ...]:
    """`fields` starts with the number of pointers; each pointer is symbol, offset, part of speech, source."""
    pointers = [fields[start : start + 4] for start in range(1, 4 * int(fields[0]) + 1, 4)]
    return tuple(p[1] for p in pointers if p[0] in ("@", "@i") and p[2] == "n")


def _senses(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(word, offsets of its synsets, the most frequent first)."""
    for line in _lines(path):
        word, _, number, *_ = line.split()
        yield word, tuple(line.split()[-int(number) :])


def by_topic(synsets: list[Synset]) -> dict[str, list[Synset]]:
    """Synsets grouped by lexicographer file: animals, artefacts, acts ..."""
    found: dict[str, list[Synset]] = defaultdict(list)
    for synset in synsets:
        found[synset.topic].append(synset)
    return dict(found)

"""Write evals/texts/heldout.txt and calibration/sets/python-docs.txt: texts that need no hub.

    python scripts/make_texts.py --verne in_the_year_2889.txt

Source: `pydoc_data.topics`, the Python language reference that CPython carries in its standard library
(licence PSF-2.0), and "In the Year 2889" by Jules and Michel Verne (public domain). The wording of the
topics changes with Python's minor version, so the texts are kept as files and nothing reads the module at
run time.

The trap is overlap. A model calibrated on the text it is then measured on looks better than it is. The
topics repeat each other (`compound` contains `while`, `specialnames` contains `customization`), so cutting
the file in two is not enough: a paragraph is kept where it first occurs, and one that the held-out text
contains is never calibrated on, whatever its line breaks.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import re
from pathlib import Path

from items.cloze import story

ROOT = Path(__file__).parent.parent
HELD_OUT_CHARACTERS = 200_000
#: A shorter paragraph ("For example:") may stand in both texts.
TELLING_CHARACTERS = 40


def _flat(paragraph: str) -> str:
    return " ".join(paragraph.split())


def paragraphs() -> list[str]:
    """The paragraphs of all topics, topics in alphabetical order, repetitions left out."""
    topics: dict[str, str] = pydoc_data.topics.topics
    found = [part for key in sorted(topics) for part in re.split(r"\n\s*\n", topics[key]) if part.strip()]
    seen: set[str] = set()
    kept = []
    for part in found:
        if len(_flat(part)) < TELLING_CHARACTERS or _flat(part) not in seen:
            kept.append(part)
        seen.add(_flat(part))
    return kept


def split(parts: list[str]) -> tuple[list[str], list[str]]:
    """(held out, for calibration): the first HELD_OUT_CHARACTERS, and what follows and is not in them."""
    size, cut = 0, 0
    while size < HELD_OUT_CHARACTERS:
        size += len(parts[cut]) + 2
        cut += 1
    known = _flat(" ".join(parts[:cut]))
    return parts[:cut], [p for p in parts[cut:] if len(_flat(p)) < TELLING_CHARACTERS or _flat(p) not in known]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the held-out text and the offline calibration text.")
    parser.add_argument("--verne", type=Path, required=True, help="in_the_year_2889.txt of the wheel reasoning-gym")
    held_out, calibration = split(paragraphs())
    texts = {
        ROOT / "evals/texts/heldout.txt": "\n\n".join([*held_out, story(parser.parse_args().verne)]),
        ROOT / "calibration/sets/python-docs.txt": "\n\n".join(calibration) + "\n",
    }
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{path.relative_to(ROOT)}: {len(text)} characters")


if __name__ == "__main__":
    main()

"""Write evals/items/*.jsonl, the offline suite's questions. Deterministic: same data and seed, same bytes.

    python scripts/make_items.py --verne in_the_year_2889.txt --mmlu-dev _cot_prompts.json
    python scripts/make_items.py --only arithmetic

The data packages are needed here only, never to run quantlab: countryinfo, periodictable and lemminflect
from PyPI, `wordnet-base` from Debian, Verne's text from the wheel reasoning-gym (reasoning_gym/data/),
MMLU's development questions from the wheel lm_eval (lm_eval/tasks/mmlu/flan_cot_fewshot/).
evals/items/README.md names the versions and licences.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from items import agreement, arithmetic, cloze, definitions, elements, facts, kinds, mmlu_dev
from items.squares import Item, write

SEED = 2889
ITEMS = Path(__file__).parent.parent / "evals" / "items"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write the items of the offline suite.")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of data.noun")
    parser.add_argument("--verne", type=Path, help="in_the_year_2889.txt of the wheel reasoning-gym")
    parser.add_argument("--mmlu-dev", type=Path, help="_cot_prompts.json of the wheel lm_eval")
    parser.add_argument("--only", action="append", help="a task to write; may be given more than once")
    parser.add_argument("--into", type=Path, default=ITEMS, help="folder to write to")
    return parser.parse_args()


def _makers(wordnet: Path, verne: Path | None, mmlu: Path | None) -> dict[str, Callable[[], list[Item]]]:
    """Task -> how to make it. A task whose file was not given is absent."""
    makers: dict[str, Callable[[], list[Item]]] = {
        "agreement": lambda: agreement.make(SEED),
        "arithmetic": lambda: arithmetic.make(SEED),
        "definitions": lambda: definitions.make(SEED, wordnet),
        "elements": lambda: elements.make(SEED),
        "facts": lambda: facts.make(SEED),
        "kinds": lambda: kinds.make(SEED, wordnet),
    }
    if verne:
        makers["cloze"] = lambda: cloze.make(SEED, verne)
    if mmlu:
        makers["mmlu_dev"] = lambda: mmlu_dev.make(mmlu)
    return makers


def main() -> None:
    given = _arguments()
    makers = _makers(given.wordnet, given.verne, given.mmlu_dev)
    unknown = set(given.only or ()) - makers.keys()
    if unknown:
        raise SystemExit(f"no such task, or its data file was not given: {', '.join(sorted(unknown))}")
    given.into.mkdir(parents=True, exist_ok=True)
    for task in given.only or makers:
        print(f"{task}: {write(given.into / f'{task}.jsonl', makers[task]())} items")


if __name__ == "__main__":
    main()

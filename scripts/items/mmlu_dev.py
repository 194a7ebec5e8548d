"""Real items: MMLU's development questions (Hendrycks et al., 2021, MIT), which lm-eval carries in its wheel.

lm-eval keeps them as worked examples for few-shot prompts, five a subject: never use them as examples and
as test at the same time. They are taken as they stand, options in the published order.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from items.squares import Item

QUESTION = re.compile(r"Q: (.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: (.*?)(?=\n\nQ: |$)", re.DOTALL)
#: A question whose text was mixed up with the preceding answer when the prompts were compiled.
SPOILT = "Find the characteristic of the ring 2Z."
VERDICT = re.compile(r"answer is \(([ABCD])\)")


def make(prompts: Path) -> list[Item]:
    """The questions that parse: options on one line and all different, the answer named, no repetition."""
    subjects = json.loads(prompts.read_text(encoding="utf-8"))
    found = [item for subject, text in sorted(subjects.items()) for item in _questions(subject, text)]
    once = {str(item["query"]): item for item in reversed(found)}
    return [{"id": f"mmlu_dev-{number:04d}", **item} for number, item in enumerate(reversed(once.values()), start=1)]


def _questions(subject: str, text: str) -> list[Item]:
    items: list[Item] = []
    for question, *options, worked in QUESTION.findall(text):
        verdicts = VERDICT.findall(worked)
        choices = [option.strip() for option in options]
        if verdicts and SPOILT not in question and len(set(choices)) == 4 and all(choices):
            query = f"Question: {question.strip()}\nAnswer:"
            gold = "ABCD".index(verdicts[-1])
            items.append({"cluster": subject, "kind": subject, "query": query, "choices": choices, "gold": gold})
    return items

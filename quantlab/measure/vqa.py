"""What the task files of the VQA sets name with `!function`: the answer in a response, and its score.

lm-eval has the prompts' place, the filters and the mean; the metrics are those of quantlab/score/answers.py, and
ChartQA's that of lm-eval itself. A response in which no answer can be found becomes NOTHING: it scores 0, like a wrong
answer, and is counted as broken beside it, because a precision that stops answering in the asked form is another
finding than one that sees less.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from quantlab.errors import BadInput
from quantlab.score import answers

NOTHING = "[no answer]"
"""One of items.NO_ANSWER."""
_FINAL = re.compile(r"answer\**:\**", re.I)
_LETTER = re.compile(r"(?i:answer|option|choice)\W+(?i:is\W+)?([A-Z])\b")
_ALONE = re.compile(r"\W*([A-Z])(?:[).:,]|\s*$)")
Responses = Sequence[Sequence[str]]
Docs = Sequence[dict[str, Any]]


def short(responses: Responses, docs: Docs) -> list[list[str]]:
    """The first line that is not empty: these sets ask for a word or a few."""
    return _each(
        responses, docs, lambda text, _: next((line.strip() for line in text.splitlines() if line.strip()), "")
    )


def final(responses: Responses, docs: Docs) -> list[list[str]]:
    """What follows the last "answer:", as lm-eval's ChartQA cuts it out."""
    return _each(responses, docs, lambda text, _: _after_answer(text))


def letter(responses: Responses, docs: Docs) -> list[list[str]]:
    """The letter of the chosen option: alone, after "answer is", or of the only option that is said word by word."""
    return _each(responses, docs, lambda text, doc: _letter(text, [str(one) for one in doc["options"]]))


def _each(responses: Responses, docs: Docs, find: Callable[[str, dict[str, Any]], str]) -> list[list[str]]:
    return [[find(text, doc) or NOTHING for text in some] for some, doc in zip(responses, docs, strict=True)]


def _after_answer(text: str) -> str:
    found = list(_FINAL.finditer(text))
    rest = text[found[-1].end() :].split("\n") if found else []
    return re.sub(r"[*_\[\]\(\)]", "", next((line.strip() for line in rest if line.strip()), ""))


def _letter(text: str, options: list[str]) -> str:
    letters = [chr(ord("A") + place) for place in range(len(options))]
    alone = _ALONE.match(text.strip())
    named = [one.upper() for one in _LETTER.findall(text)]
    said = [here for here, option in zip(letters, options, strict=True) if option.strip().lower() in text.lower()]
    for found in ([alone.group(1)] if alone else [], named[-1:], said if len(said) == 1 else []):
        if found and found[0] in letters:
            return found[0]
    return ""


def people(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """VQAv2 and TextVQA: {"vqa_accuracy": in [0, 1]}, the agreement with ten people.

    Raises:
        BadInput: the row has fewer than two people's answers.
    """
    theirs = [str(one["answer"] if isinstance(one, dict) else one) for one in doc["answers"] or ()]
    if len(theirs) < 2:
        cure = "VQA accuracy needs the answers of several people: take the split that has them."
        raise BadInput(f"a question has {len(theirs)} answers: {str(doc['question'])[:80]!r}.", cure=cure)
    return {"vqa_accuracy": answers.vqa_accuracy(_said(results), theirs)}


def document(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """DocVQA: {"anls": in [0, 1]}, of the best reference."""
    return {"anls": answers.anls(_said(results), [str(one) for one in doc["answers"]])}


def chart(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ChartQA: {"relaxed_accuracy": 0 or 1}, judged by lm-eval's own class.

    It is milder than the paper's (answers.relaxed): "1,000" is a number, "$5" too, and a percentage may be meant either
    way. Taken because the scores that people quote come from it.
    """
    from lm_eval.tasks.chartqa.utils import RelaxedCorrectness

    said = _said(results)
    return {"relaxed_accuracy": float(RelaxedCorrectness().score(said, str(doc["label"][0]))) if said else 0.0}


def option(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """AI2D: {"acc": 0 or 1}. The set counts its options from 0."""
    return {"acc": float(_said(results) == chr(ord("A") + int(doc["answer"])))}


def _said(results: Sequence[str]) -> str:
    return "" if results[0] == NOTHING else str(results[0])


def steady(task: Any) -> None:
    """Let a task that guesses where it finds no answer (MMMU's does) guess the same for every precision.

    lm-eval draws from the global generator, so one unreadable answer more would change all later guesses, and a
    paired comparison would count them as damage.
    """
    judge = task.config.process_results
    if callable(judge):
        task.config.process_results = lambda doc, results: _judged(judge, doc, results)


def guessed(task: Any, doc: dict[str, Any], response: str) -> bool:
    """The task's own judge drew lots over this response: it found no answer in it."""
    judge = task.config.process_results
    if not callable(judge) or response is None:
        return False
    judge(doc, [response])
    return random.getstate() != random.Random(_lot(doc)).getstate()


def _judged(judge: Callable[..., Any], doc: dict[str, Any], results: Sequence[str]) -> Any:
    random.seed(_lot(doc))
    return judge(doc, results)


def _lot(doc: dict[str, Any]) -> str:
    """Seed of a document's guess."""
    return str(doc.get("id") or doc.get("question") or "")

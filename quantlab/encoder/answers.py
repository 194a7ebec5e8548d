"""Do the answers hold? One language model, once behind torch's tower in float32 and once behind the graph.

Differences of states are numbers without a meaning of their own; what they do to answers is what counts. Everything
after the tower stays as it is, so that a changed answer is the encoder's doing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantlab.encoder.runtime import OnnxTower
from quantlab.encoder.towers import TorchTower
from quantlab.engines import Image, ScoreRequest
from quantlab.engines.torch_images import SeeingScorer, Sight
from quantlab.errors import BadInput
from quantlab.formats.modelopt import open_model
from quantlab.formats.seeing import spell
from quantlab.images import opened, pixel_digest
from quantlab.records.encoder import AnswersHeld

BUDGET = 8192
"""Tokens in one forward pass."""
States = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice item about a picture."""

    image: Path
    query: str
    choices: tuple[str, ...]
    gold: int


class _Through(Sight):
    """Pictures through another tower than the model's own."""

    def __init__(self, model: Any, folder: Path, look: States) -> None:
        super().__init__(model, folder, torch.device("cpu"))
        self._look = look
        self._dtype = next(model.parameters()).dtype

    def look(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self._look(pixels.float(), ids, mask).to(self._dtype)


def held(folder: Path, files: Sequence[str], tower: TorchTower, graph: OnnxTower) -> AnswersHeld:
    """Ask all questions of `files` twice.

    Raises:
        BadInput: a file that holds no such items.
    """
    asked = [one for file in files for one in read(Path(file))]
    model = open_model(folder, torch.float32, torch.device("cpu"), native_fp8=False)

    def through(pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(graph(pixels.numpy(), ids.numpy(), mask.numpy()))

    before, after = (_scored(folder, model, _Through(model, folder, look), asked) for look in (tower, through))
    gold = np.array([one.gold for one in asked])
    was, now = before.choice == gold, after.choice == gold
    return AnswersHeld(
        questions=len(asked),
        changed=int((before.choice != after.choice).sum()),
        right_to_wrong=int((was & ~now).sum()),
        wrong_to_right=int((~was & now).sum()),
        score=(float(was.mean()), float(now.mean())),
        nats=(before.nats, after.nats),
    )


def read(file: Path) -> Iterator[Question]:
    """Items of one JSON-lines file; pictures are relative to it. Raises: BadInput."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for row in lines:
            choices = tuple(str(one) for one in row["choices"])
            yield Question(file.parent / row["image"], str(row["query"]), choices, int(row["gold"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = "Each line wants image, query, choices and gold, as evals/items/easyvqa_shape.jsonl."
        raise BadInput(f"cannot be read as questions: {error!r}.", place=str(file), cure=cure) from None
    if not lines:
        raise BadInput("holds no question.", place=str(file), cure="Give a file with at least one line.")


@dataclass(frozen=True, slots=True)
class _Said:
    choice: np.ndarray
    """int [questions]: the most likely choice."""
    nats: float


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _scored(folder: Path, model: Any, sight: Sight, asked: Sequence[Question]) -> _Said:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    token = tokenizer.convert_ids_to_tokens(sight.token)
    images = {one.image: Image(str(one.image), pixel_digest(opened(one.image))) for one in asked}
    requests = [
        _request(tokenizer, token, images[one.image], one, choice)
        for one in asked
        for choice in range(len(one.choices))
    ]
    scores = SeeingScorer(model, torch.device("cpu"), BUDGET, sight).logprobs(requests)
    sums, choices, nats = iter(float(score.logprobs.sum()) for score in scores), [], []
    for one in asked:
        likely = [next(sums) for _ in one.choices]
        choices.append(int(np.argmax(likely)))
        nats.append(-likely[one.gold])
    return _Said(np.array(choices), float(np.mean(nats)))


def _request(tokenizer: Any, token: str, image: Image, one: Question, choice: int) -> ScoreRequest:
    prompt = spell(token + one.query, token, tokenizer.bos_token)
    context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{prompt} {one.choices[choice]}", add_special_tokens=False)["input_ids"]
    return ScoreRequest(tuple(context), tuple(whole[len(context) :]), images=(image,))

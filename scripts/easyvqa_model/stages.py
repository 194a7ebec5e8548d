"""The two stages that teach it, and what it scores.

End to end from the start it learns colours and stays at 77 % for hundreds of steps: the gradient that reaches the tower
through gates and cross-attention is too thin to find shapes. So the tower comes first, alone.

1. Tower and projector: shape and colour of the picture, from features pooled over the foreground, and for each patch
   which of its pixels are foreground (the background is one colour, the median). Labels are the answers of the train
   questions that name one.
2. All of it: the answer's cross-entropy and a tenth of the end token's. A picture is encoded once for its eight
   questions.

Time is the budget: the learning rate follows a cosine over seconds, so a busy machine takes fewer steps and never
overruns.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from easyvqa_model.data import SQUARE, Split, batch, tiled, turned
from easyvqa_model.shape import PATCH, TILE, WIDTH

PICTURES, QUESTIONS, RATE, DECAY = 32, 8, 1e-3, 0.05
TOWER_SHARE = 0.3
"""Of the learning rate, for the tower in stage 2: it knows its trade by then."""


def seen(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    """[n, 3, 64, 64] -> the tower's features [n, tiles, 17, 3 x width]."""
    n = len(pictures)
    ids, mask = torch.full((n, 1), SQUARE), torch.ones(n, 1, 4, dtype=torch.long)
    states = model.model.vision_model(pixel_values=tiled(pictures), aspect_ratio_ids=ids, aspect_ratio_mask=mask)
    features: torch.Tensor = states.last_hidden_state[:, 0]
    return features


def answers(model: Any, states: torch.Tensor, ids: torch.Tensor, places: torch.Tensor, pad: int) -> torch.Tensor:
    """Logits of the answer and of what follows it: [n, 2, vocabulary]."""
    hidden = model.model(
        input_ids=ids, attention_mask=(ids != pad).long(), cross_attention_states=states, use_cache=False
    ).last_hidden_state
    rows = torch.arange(len(places))
    logits: torch.Tensor = model.lm_head(torch.stack([hidden[rows, places], hidden[rows, places + 1]], 1))
    return logits


def decks(count: int, size: int) -> Iterator[list[int]]:
    """Pictures drawn without putting back, shuffled anew when too few are left."""
    deck: list[int] = []
    while True:
        if len(deck) < size:
            deck = random.sample(range(count), count)
        yield [deck.pop() for _ in range(size)]


def _labels(split: Split, words: list[int]) -> torch.Tensor:
    """For each picture the place in `words` of an answer that names one, -100 where none does."""
    found = torch.full((len(split.of_picture),), -100)
    for picture, questions in enumerate(split.of_picture):
        for question in questions:
            if split.answers[question] in words:
                found[picture] = words.index(split.answers[question])
    return found


def tower(model: Any, split: Split, shapes: list[int], colours: list[int], seconds: float) -> int:
    """Stage 1. Returns the steps taken."""
    patches = TILE // PATCH
    heads = [nn.Linear(WIDTH, len(shapes)), nn.Linear(WIDTH, len(colours)), nn.Linear(WIDTH, PATCH * PATCH)]
    trained = [*model.model.vision_model.parameters(), *model.model.multi_modal_projector.parameters()]
    trained += [parameter for head in heads for parameter in head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.98))
    shape_of, colour_of = _labels(split, shapes), _labels(split, colours)
    started, steps = time.monotonic(), 0
    for chosen in decks(len(split.of_picture), PICTURES):
        done = (time.monotonic() - started) / seconds
        if done >= 1:
            return steps
        _rate(optimizer, min(1, (steps + 1) / 40) * (0.9 * _cosine(done) + 0.1))
        x = turned(split.pixels[chosen])
        median = x.flatten(2).median(-1).values[:, :, None, None]
        inside = ((x - median).abs().amax(1, keepdim=True) > 0.05).float()
        n = len(chosen)
        mask = tiled(inside).view(n, 4, patches, PATCH, patches, PATCH).permute(0, 1, 2, 4, 3, 5)
        mask = mask.reshape(n, 4, patches**2, PATCH**2)
        features = seen(model, x)
        # stack(dim=-1) interleaves the last layer and two intermediate ones: every third number is of one of them
        outline = functional.binary_cross_entropy_with_logits(heads[2](features[:, :, 1:, WIDTH::2]), mask)
        weight = mask.mean(-1)
        weight = (weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-6)).unsqueeze(-1)
        pooled = (model.model.multi_modal_projector(features)[:, :, 1:] * weight).sum((1, 2))
        loss = functional.cross_entropy(heads[0](pooled), shape_of[chosen])
        loss = loss + functional.cross_entropy(heads[1](pooled), colour_of[chosen]) + 2 * outline
        _step(optimizer, trained, loss)
        steps += 1
        if steps % 50 == 0:
            print(f"tower {steps}: loss {loss.item():.3f}", flush=True)
    return steps


def everything(model: Any, split: Split, end: int, pad: int, seconds: float) -> int:
    """Stage 2. Returns the steps taken."""
    optimizer = torch.optim.AdamW(_groups(model), lr=RATE, betas=(0.9, 0.98))
    trained = list(model.parameters())
    started, steps = time.monotonic(), 0
    for chosen in decks(len(split.of_picture), PICTURES):
        done = (time.monotonic() - started) / seconds
        if done >= 1:
            return steps
        _rate(optimizer, min(1, (steps + 1) / 100) * (0.98 * _cosine(done) + 0.02))
        asked = [one for picture in chosen for one in _draw(split.of_picture[picture])]
        ids, places, right = batch(split, asked, pad)
        states = model.model.multi_modal_projector(seen(model, turned(split.pixels[chosen]))).flatten(1, 2)
        logits = answers(model, states.repeat_interleave(QUESTIONS, 0), ids, places, pad)
        loss = functional.cross_entropy(logits[:, 0], right)
        loss = loss + 0.1 * functional.cross_entropy(logits[:, 1], torch.full_like(right, end))
        _step(optimizer, trained, loss)
        steps += 1
        if steps % 50 == 0:
            share = (logits[:, 0].argmax(-1) == right).float().mean().item()
            print(f"whole {steps}: loss {loss.item():.3f}, right {share:.3f}", flush=True)
    return steps


@torch.no_grad()
def score(model: Any, split: Split, pad: int) -> dict[str, float]:
    """Share of right answers by kind, and of all."""
    right, asked = Counter[str](), Counter[str]()
    for start in range(0, len(split.of_picture), 50):
        pictures = range(start, min(start + 50, len(split.of_picture)))
        questions = [one for picture in pictures for one in split.of_picture[picture]]
        states = model.model.multi_modal_projector(seen(model, split.pixels[list(pictures)])).flatten(1, 2)
        ids, places, wanted = batch(split, questions, pad)
        own = states[torch.tensor([split.picture_of[one] - start for one in questions])]
        hits = (answers(model, own, ids, places, pad)[:, 0].argmax(-1) == wanted).tolist()
        for question, hit in zip(questions, hits, strict=True):
            for name in (split.kinds[question], "all"):
                right[name] += hit
                asked[name] += 1
    return {name: round(right[name] / asked[name], 5) for name in asked}


def _draw(questions: list[int]) -> list[int]:
    enough = len(questions) >= QUESTIONS
    return random.sample(questions, QUESTIONS) if enough else random.choices(questions, k=QUESTIONS)


def _groups(model: Any) -> list[dict[str, Any]]:
    """Parameters by whether they decay, and whether they belong to the tower."""
    found: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.dim() >= 2 and "embed" not in name
        sight = ".vision_model." in name or "multi_modal_projector" in name
        found.setdefault((decays, sight), []).append(parameter)
    return [
        {"params": some, "weight_decay": DECAY if decays else 0.0, "share": TOWER_SHARE if sight else 1.0}
        for (decays, sight), some in found.items()
    ]


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = RATE * share * group.get("share", 1.0)


def _step(optimizer: torch.optim.Optimizer, trained: list[Any], loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()

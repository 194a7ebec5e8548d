"""Harder pictures for the questions of easy-VQA: smaller shapes, turned, in paler colours, on a noisy background.

The model trained on easy-VQA answers 99.7 % of its test split, so that split hides damage. These pictures lie outside
of what it was trained on, where its answers have small margins and a precision that costs something shows it. They are
drawn with Pillow from a seed; their scores say nothing about anything but the difference between two precisions.

Each picture gets one question of each kind and its answers are known from how it was drawn. Yes and no come equally
often.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

from items.easyvqa import KINDS, write

SIDE, OVERSIZE = 64, 4
COLOURS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (139, 69, 19),
    "gray": (128, 128, 128),
    "green": (0, 128, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
"""As easy-VQA names them."""
RADIUS = 9, 15
"""Pixels: from the middle of a shape to its farthest point."""
PALE = 0.25
"""Largest share of the background mixed into a shape's colour."""
NOISE = 14.0
"""Standard deviation of the noise on every channel, of 255."""


def draw(dice: random.Random, shape: str, colour: str) -> Image.Image:
    """One picture of 64 x 64, drawn four times larger and made smaller, so that edges are smooth."""
    ground = tuple(dice.randint(200, 255) for _ in range(3))
    pale = dice.uniform(0, PALE)
    ink = tuple(round((1 - pale) * a + pale * b) for a, b in zip(COLOURS[colour], ground, strict=True))
    large = Image.new("RGB", (SIDE * OVERSIZE,) * 2, ground)
    radius = dice.uniform(*RADIUS)
    x, y = (dice.uniform(radius, SIDE - radius) for _ in range(2))
    points = [((x + dx) * OVERSIZE, (y + dy) * OVERSIZE) for dx, dy in _corners(dice, shape, radius)]
    ImageDraw.Draw(large).polygon(points, fill=ink)
    return _noisy(dice, large.resize((SIDE, SIDE), Image.Resampling.BOX))


def _corners(dice: random.Random, shape: str, radius: float) -> list[tuple[float, float]]:
    """Corners around (0, 0), turned at random."""
    turn = dice.uniform(0, 2 * math.pi)
    if shape == "circle":
        angles = [2 * math.pi * place / 48 for place in range(48)]
    elif shape == "triangle":
        angles = [2 * math.pi * place / 3 + dice.uniform(-0.25, 0.25) for place in range(3)]
    else:
        half = dice.uniform(0.45, 0.9)
        angles = [half, math.pi - half, math.pi + half, -half]
    return [(radius * math.cos(angle + turn), radius * math.sin(angle + turn)) for angle in angles]


def _noisy(dice: random.Random, picture: Image.Image) -> Image.Image:
    data = bytes(min(255, max(0, round(value + dice.gauss(0, NOISE)))) for value in picture.tobytes())
    return Image.frombytes("RGB", picture.size, data)


def questions(dice: random.Random, shape: str, colour: str) -> list[tuple[str, str, list[str], str]]:
    """(kind, question, choices, answer) of one picture, in easy-VQA's own words."""
    kinds = list(KINDS["shape"])
    truth = dice.random() < 0.5
    if dice.random() < 0.5:
        asked = colour if truth else dice.choice([one for one in COLOURS if one != colour])
        text = f"is there a {asked} shape?"
    else:
        asked = shape if truth else dice.choice([one for one in kinds if one != shape])
        text = f"does the image contain a {asked}?"
    return [
        ("yesno", text, ["yes", "no"], "yes" if truth else "no"),
        ("colour", f"what is the color of the {dice.choice([shape, 'shape'])}?", list(COLOURS), colour),
        ("shape", f"what is the {colour} shape?", kinds, shape),
    ]


def make(into: Path, pictures: int, seed: int) -> dict[str, int]:
    """Write hardshapes_<kind>.jsonl and hardshapes/<number>.png to `into`; returns items by kind."""
    dice = random.Random(seed)
    rows: dict[str, list[dict[str, object]]] = {"yesno": [], "colour": [], "shape": []}
    (into / "hardshapes").mkdir(parents=True, exist_ok=True)
    for number in range(pictures):
        shape, colour = dice.choice(KINDS["shape"]), dice.choice(list(COLOURS))
        draw(dice, shape, colour).save(into / "hardshapes" / f"{number}.png", optimize=True)
        for kind, text, choices, answer in questions(dice, shape, colour):
            rows[kind].append(
                {
                    "id": f"hardshapes-{number}-{kind}",
                    "cluster": f"picture-{number}",
                    "kind": kind,
                    "image": f"hardshapes/{number}.png",
                    "query": text,
                    "choices": choices,
                    "gold": choices.index(answer),
                }
            )
    for kind, items in rows.items():
        write(into / f"hardshapes_{kind}.jsonl", items)
    return {kind: len(items) for kind, items in rows.items()}

"""Throughput with pictures in the prompt: the same cells once more, and the encoder alone.

In Llama 3.2 Vision a picture adds no tokens to the sequence. It adds keys and values that every cross-attention layer
reads at every step: 6,404 vectors a picture of four tiles, in 11B as much as 1,601 tokens of text cost its 32
self-attention layers. And these layers' weights are read at all, which text alone never does. So decoding with a
picture is timed apart from decoding without, and the encoder apart from both: a service that sees each picture once
pays for it once, one that asks ten questions about it shares it.

The pictures are photographs' worst case in size (four tiles, all of them real) and drawn from a seed. Each request
gets a picture that was not encoded before, so nothing is taken from what the session holds.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from quantlab.engines import GenerateRequest, Image, SeeingSession
from quantlab.formats.seeing import image_processor
from quantlab.measure import Bench
from quantlab.records import Cell, Grid, Number, PictureCell

FILES = 4
"""Different pictures; their digests make each use of one another picture to the session."""
Shape = tuple[int, int, int]
"""Tokens in, tokens out, batch."""
Request = Callable[[random.Random, list[int], int, int], GenerateRequest]


def pictured(
    bench: Bench, grid: Grid, shapes: Sequence[Shape], cell: Callable[[Shape, Request], Cell]
) -> tuple[PictureCell, ...]:
    """Each shape with each number of pictures that the grid asks for.

    Args:
        cell: times one shape with prompts made by the given function.
    """
    found = []
    asked = [(shape, images) for images in grid.images for shape in shapes]
    fresh = _pictures(bench) if isinstance(bench.session, SeeingSession) and _sees(bench) else None
    for place, (shape, images) in enumerate(asked):
        text = f"{images} pictures, {shape[0]} in, {shape[1]} out, batch {shape[2]}"
        bench.reporter.progress("throughput", place, len(asked), text)
        make = partial(_one, bench, grid, shape, images, cell, fresh)
        found.append(bench.cells.one(("pictures", place), PictureCell, make))
    return tuple(found)


def _one(
    bench: Bench,
    grid: Grid,
    shape: Shape,
    images: int,
    cell: Callable[[Shape, Request], Cell],
    fresh: Callable[[], Image] | None,
) -> PictureCell:
    isl, osl, batch = shape
    if fresh is None:
        why = "the model or its engine takes no pictures"
        return PictureCell(images=images, cell=Cell(isl=isl, osl=osl, batch=batch, valid=False, reason=why))
    token, own = _image_token(bench), fresh

    def seeing(draw: random.Random, vocabulary: list[int], isl: int, osl: int) -> GenerateRequest:
        prompt = (token,) * images + tuple(draw.choices(vocabulary, k=isl - images))
        return GenerateRequest(prompt, osl, ignore_eos=True, images=tuple(own() for _ in range(images)))

    timed = cell(shape, seeing)
    if not timed.valid:
        return PictureCell(images=images, cell=timed)
    rate, tokens = _encoder(bench, grid, [own() for _ in range(batch * images)])
    return PictureCell(images=images, image_tokens=images * tokens, cell=timed, encoder_images_per_second=rate)


def _encoder(bench: Bench, grid: Grid, images: list[Image]) -> tuple[Number, int]:
    """Pictures per second of tower and projector, median with lowest and highest; and the vectors of one picture."""
    session = bench.session
    assert isinstance(session, SeeingSession)
    runs = [session.encode(images) for _ in range(grid.warmup + grid.repeats)][grid.warmup :]
    rates = [len(images) / one.seconds for one in runs]
    rate = Number(
        value=statistics.median(rates), unit="images/s", n=len(rates), low=min(rates), high=max(rates), better="higher"
    )
    return rate, runs[0].tokens[0]


def _sees(bench: Bench) -> bool:
    """The checkpoint has a vision tower."""
    import json

    config = bench.checkpoint / "config.json"
    return config.is_file() and "vision_config" in json.loads(config.read_text(encoding="utf-8"))


def _image_token(bench: Bench) -> int:
    word = str(getattr(bench.tokenizer, "image_token", None) or "<|image|>")
    return int(bench.tokenizer.convert_tokens_to_ids(word))


def _pictures(bench: Bench) -> Callable[[], Image]:
    """Gives a picture that no session has seen, as large as the image processor makes use of."""
    folder = bench.folder / "timed"
    folder.mkdir(parents=True, exist_ok=True)
    processor = image_processor(bench.checkpoint)
    side = int(processor.size["height"]) * (2 if int(processor.max_image_tiles) >= 4 else 1)
    files = [_drawn(folder / f"{number}.jpg", side, number) for number in range(FILES)]
    numbers = count()

    def fresh() -> Image:
        number = next(numbers)
        return Image(str(files[number % FILES]), f"timed {number}")

    return fresh


def _drawn(path: Path, side: int, seed: int) -> Path:
    """Blotches of colour: compressed and decoded about as a photograph."""
    from PIL import Image as Pillow

    few = max(2, side // 16)
    noise: Any = Pillow.frombytes("RGB", (few, few), random.Random(seed).randbytes(3 * few * few))
    noise.resize((side, side), Pillow.Resampling.BICUBIC).save(path, quality=90)
    return path

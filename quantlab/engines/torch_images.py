"""Engine "torch" with images: each picture goes through the vision tower once, for all that is asked about it.

In Llama 3.2 Vision a picture is no text: it is cut into one to four tiles, the tower turns a tile into 1,601 vectors,
and the cross-attention layers of the decoder look at them. So the text of all questions about one picture is one prefix
tree, as everywhere in this engine, with the picture's states beside it; trees about different pictures are rows of one
batch. Which nodes see the picture follows from the prompt: the image token and everything after it, and of four tiles
only those that are no padding. A token before it sees nothing. Of several pictures a token sees the last that came
before it, and those that this one follows without a word between (transformers' own `get_cross_attention_token_mask`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quantlab.engines import Encoded, Image, Score, ScoreRequest
from quantlab.engines.torch_packing import LARGEST_TREE, Paths, Tree, batches, rows
from quantlab.engines.torch_scoring import Answer, Scorer
from quantlab.errors import BadInput
from quantlab.formats.seeing import image_processor
from quantlab.images import opened

KEPT_BYTES = 2**30
"""Of encoded pictures; one of Llama 3.2 90B takes 105 MB in 16 bit."""
TOGETHER = 16
"""Pictures that go through the vision tower in one batch."""


@dataclass(frozen=True, slots=True)
class View:
    """An encoded picture."""

    states: torch.Tensor
    """[pictures x tiles x tokens, hidden]: what the cross-attention layers look at, padding tiles included."""
    tiles: tuple[int, ...]
    """How many tiles are no padding, of each picture."""


class Sight:
    """Processor, vision tower and projector of an opened model.

    Args:
        model: a MllamaForConditionalGeneration on `device`.
        folder: of the checkpoint, for its image processor.

    Raises:
        Broken: the folder has no usable image processor.
    """

    def __init__(self, model: Any, folder: Path, device: torch.device) -> None:
        self.tower: nn.Module = model.base_model.vision_model
        self.projector: nn.Module = model.base_model.multi_modal_projector
        self.tiles = int(model.config.vision_config.max_num_tiles)
        self.token = int(model.config.image_token_index)
        self.device, self.encoded = device, 0
        self._processor = image_processor(folder)
        self._views: OrderedDict[str, View] = OrderedDict()

    def views(self, images: Sequence[Image]) -> list[View]:
        """In the order of `images`. Raises BadInput for a file that is no usable picture."""
        wanted = {image.digest: image for image in images}
        held = {digest: self._views[digest] for digest in wanted if digest in self._views}
        missing = [image for digest, image in wanted.items() if digest not in held]
        for start in range(0, len(missing), TOGETHER):
            some = missing[start : start + TOGETHER]
            held |= zip((image.digest for image in some), self._encode(some), strict=True)
        for digest in wanted:
            self._views[digest] = held[digest]
            self._views.move_to_end(digest)
        most = max(1, KEPT_BYTES // _bytes(held[images[0].digest].states)) if images else 1
        while len(self._views) > most:
            self._views.popitem(last=False)
        return [held[image.digest] for image in images]

    def _encode(self, images: Sequence[Image]) -> list[View]:
        """The pictures through tower and projector, as one batch."""
        pixels, ids, mask = self._ready(images)
        with torch.inference_mode():
            states = self.look(pixels, ids, mask)
        self.encoded += len(images)
        counts = mask.sum(-1)[:, 0].tolist()
        return [View(one.flatten(0, -2), (int(count),)) for one, count in zip(states, counts, strict=True)]

    def _ready(self, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels, aspect ratio ids and aspect ratio mask on the device."""
        prepared = self._processor([[opened(image.path)] for image in images], return_tensors="pt")
        pixels = prepared["pixel_values"].to(self.device, next(self.tower.parameters()).dtype)
        return pixels, prepared["aspect_ratio_ids"].to(self.device), prepared["aspect_ratio_mask"].to(self.device)

    def look(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The states of prepared pictures, batch first: [pictures, 1, tiles, tokens, hidden]."""
        seen = self.tower(pixel_values=pixels, aspect_ratio_ids=ids, aspect_ratio_mask=mask).last_hidden_state
        states: torch.Tensor = self.projector(seen)
        return states

    def timed(self, images: Sequence[Image]) -> Encoded:
        """One pass of all pictures, nothing taken from what is held."""
        pixels, ids, mask = self._ready(images)
        self._wait()
        started = time.perf_counter()
        with torch.inference_mode():
            states = self.look(pixels, ids, mask)
        self._wait()
        seconds = time.perf_counter() - started
        tile = states.shape[-2]
        return Encoded(seconds, tuple(int(count) * tile for count in mask.sum(-1)[:, 0].tolist()))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def together(self, groups: Sequence[tuple[Image, ...]]) -> list[View]:
        """One view for each group: the states of its pictures one after the other."""
        found = iter(self.views([image for images in groups for image in images]))
        views = [[next(found) for _ in images] for images in groups]
        return [some[0] if len(some) == 1 else _joined(some) for some in views]

    def mask(self, sees: torch.Tensor, tiles: Sequence[Sequence[int]]) -> torch.Tensor:
        """Which tokens look at which tiles.

        Args:
            sees: bool [rows, width, pictures], of the tokens that see a picture of their row.
            tiles: by row and picture, how many of its tiles are no padding.

        Returns:
            int64 [rows, width, pictures, max tiles].
        """
        counts = torch.zeros((sees.shape[0], sees.shape[2]), dtype=torch.long)
        for row, some in enumerate(tiles):
            counts[row, : len(some)] = torch.tensor(some)
        real = torch.arange(self.tiles) < counts[:, :, None]
        return (sees[:, :, :, None] & real.to(sees.device)[:, None]).long()


def _joined(views: Sequence[View]) -> View:
    states = torch.cat([view.states for view in views])
    return View(states, tuple(count for view in views for count in view.tiles))


def side_by_side(views: Sequence[View]) -> torch.Tensor:
    """[rows, pictures x tiles x tokens, hidden]; rows of fewer pictures end in zeros, which the mask hides."""
    return nn.utils.rnn.pad_sequence([view.states for view in views], batch_first=True)


def seen(tokens: np.ndarray, token: int, pictures: int) -> np.ndarray:
    """bool [len(tokens), pictures]: which pictures each token of a prompt sees.

    Those of the last run of image tokens up to it, as far as they have come.
    """
    is_image = tokens == token
    came = np.cumsum(is_image)
    begins = is_image & ~np.concatenate(([False], is_image[:-1]))
    first = np.maximum.accumulate(np.where(begins, came, 0))  # number of the picture that its run begins with
    number = np.arange(1, pictures + 1)
    return (number >= np.maximum(first, 1)[:, None]) & (number <= came[:, None])


def require_places(prompt: Sequence[int], images: Sequence[Image], token: int) -> None:
    """Raises BadInput unless the prompt has as many image tokens as it comes with pictures."""
    places = sum(one == token for one in prompt)
    if places != len(images):
        raise BadInput(
            f"a prompt has {places} image tokens and comes with {len(images)} pictures.",
            cure="Give each question its picture, and write one image token for it.",
        )


class SeeingScorer(Scorer):
    """Scores with and without a picture. Questions about several pictures go through the decoder together: each row of
    a batch has its own picture."""

    def __init__(self, model: Any, device: torch.device, token_budget: int, sight: Sight) -> None:
        super().__init__(model, device, token_budget)
        self.body = model.base_model
        self.sight = sight
        self._views: dict[int, View] = {}
        """By identity of the trees that are being computed; a row's trees have one view."""

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        for request in requests:
            require_places(request.context, request.images, self.sight.token)
        groups: dict[tuple[Image, ...], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.images, []).append(place)
        blind = groups.pop((), [])
        found = dict(zip(blind, super().logprobs([requests[place] for place in blind]), strict=True))
        pictures = list(groups)
        for start in range(0, len(pictures), TOGETHER):
            some = pictures[start : start + TOGETHER]
            asked = [[requests[place] for place in groups[images]] for images in some]
            scores = self._seeing(self.sight.together(some), asked)
            found |= zip((place for images in some for place in groups[images]), scores, strict=True)
        return [found[place] for place in range(len(requests))]

    def _seeing(self, views: Sequence[View], asked: Sequence[Sequence[ScoreRequest]]) -> list[Score]:
        """Scores of the questions about each view, view by view."""
        answers: list[Answer] = []
        by_path: dict[int, list[Answer]] = {}
        packed: list[list[Tree]] = []
        for view, requests in zip(views, asked, strict=True):
            mine = [self._answer(request) for request in requests]
            answers += mine
            packed += self._rows(view, [answer for answer in mine if answer.request.continuation], by_path)
        with torch.inference_mode():
            for bins in batches(packed, self.token_budget):
                for start in range(0, len(bins), TOGETHER):
                    self._take(bins[start : start + TOGETHER], None, 0, by_path)
        self._views.clear()
        return [answer.score() for answer in answers]

    def _rows(self, view: View, asked: Sequence[Answer], by_path: dict[int, list[Answer]]) -> list[list[Tree]]:
        """Rows of the prefix trees of all questions about one view, whose paths are numbered on in `by_path`."""
        paths = Paths([(*a.request.context, *a.request.continuation[:-1]) for a in asked])
        first = len(by_path)
        for place, answer in zip(paths.order, asked, strict=True):
            by_path.setdefault(first + place, []).append(answer)
        trees = self._trees(paths)
        for tree in trees:
            tree.paths = [(first + path, nodes) for path, nodes in tree.paths]
            self._views[id(tree)] = view
        return rows(trees)

    def _trees(self, paths: Paths) -> list[Tree]:
        """Trees without trunks: a trunk's cache would have to hold the picture's keys too."""
        trees, start, largest = [], 0, min(LARGEST_TREE, self.token_budget)
        for end in range(1, len(paths.tokens) + 1):
            if end == len(paths.tokens) or paths.unique(range(start, end + 1), 0) > largest:
                trees.append(paths.tree(range(start, end), 0))
                start = end
        return trees

    def _beside(self, bins: list[list[Tree]], width: int) -> dict[str, torch.Tensor]:
        if not self._views:
            return {}
        views = [self._views[id(bin_[0])] for bin_ in bins]
        most = max(len(view.tiles) for view in views)
        sees = np.zeros((len(bins), width, most), dtype=bool)
        for row, bin_ in enumerate(bins):
            offset = 0
            for tree in bin_:
                for _, nodes in tree.paths:
                    sees[row, offset + nodes] = seen(tree.tokens[nodes], self.sight.token, most)
                offset += len(tree.tokens)
        mask = self.sight.mask(torch.from_numpy(sees).to(self.device), [view.tiles for view in views])
        return {"cross_attention_states": side_by_side(views), "cross_attention_mask": mask}


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())

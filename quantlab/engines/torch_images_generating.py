"""Engine "torch": answers to questions about pictures, continued in batches. Each prompt's pictures are fed with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from quantlab.engines import Completion, GenerateRequest
from quantlab.engines.torch_generating import Batch, Decoder, Generator
from quantlab.engines.torch_images import Sight, View, require_places, seen, side_by_side


class SeeingGenerator(Generator):
    """Continues prompts with and without a picture; the two kinds run in batches of their own."""

    def __init__(self, model: Any, device: torch.device, ends: frozenset[int], decoder: Decoder, sight: Sight) -> None:
        super().__init__(model, device, ends, decoder)
        self.body = model.base_model
        self.sight = sight

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        for request in requests:
            require_places(request.prompt, request.images, self.sight.token)
        found: dict[int, Completion] = {}
        for seeing in (False, True):
            places = [place for place, request in enumerate(requests) if bool(request.images) is seeing]
            if places:
                found |= zip(places, super().generate([requests[place] for place in places]), strict=True)
        return [found[place] for place in range(len(requests))]

    def _batch(self, requests: Sequence[GenerateRequest], *, share: bool = False) -> Batch:
        if not requests[0].images:
            return super()._batch(requests, share=share)
        views = self.sight.together([request.images for request in requests])
        return _SeeingBatch([request.prompt for request in requests], self.device, self.sight, views)


class _SeeingBatch(Batch):
    """Prompts with a picture each. Its states are fed with the prompt; later steps find their keys in the cache."""

    def __init__(
        self, prompts: Sequence[tuple[int, ...]], device: torch.device, sight: Sight, views: Sequence[View]
    ) -> None:
        super().__init__(prompts, device)
        self._states: torch.Tensor | None = side_by_side(views)
        most = max(len(view.tiles) for view in views)
        sees = np.stack([seen(row, sight.token, most) for row in self.tokens.cpu().numpy()])
        self._seen = sight.mask(torch.from_numpy(sees).to(device), [view.tiles for view in views])

    def inputs(self) -> dict[str, torch.Tensor | None]:
        return {
            **super().inputs(),
            "cross_attention_states": self._states,
            "cross_attention_mask": self._seen,
        }

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self._seen = self._seen[torch.tensor(rows, device=self._seen.device)]

    def append(self, tokens: torch.Tensor) -> None:
        super().append(tokens)
        self._states = None
        self._seen = torch.cat((self._seen, self._seen[:, -1:]), 1)

"""An opened checkpoint of engine "torch": which device, which dtype, and requests that are refused before they hurt."""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantlab.engines import (
    Completion,
    Encoded,
    GenerateRequest,
    Image,
    Score,
    ScoreRequest,
    require_fits,
    require_length,
)
from quantlab.engines.torch import FP8_CAPABILITY
from quantlab.engines.torch_generating import Generator
from quantlab.engines.torch_scoring import Scorer
from quantlab.errors import BadInput, Broken, Refused
from quantlab.formats.modelopt import open_model
from quantlab.records import Artifact, EngineConfig


class TorchSession:
    """See the seam in quantlab/engines/__init__.py.

    Tokens of a completion are those that came out before the end-of-sequence token. The tokens of a stop string are
    among them, because a stop string may begin inside a token: cut the decoded text at the stop string.
    """

    def __init__(self, artifact: Artifact, config: EngineConfig) -> None:
        if threads := os.environ.get("OMP_NUM_THREADS", ""):
            torch.set_num_threads(int(threads))
        self.folder, place = Path(artifact.path), _device(config.device)
        dtype = _dtype(self.folder, config.dtype, place)
        units = place.type == "cuda" and torch.cuda.get_device_capability(place) >= FP8_CAPABILITY
        if artifact.checkpoint.format == "fp8" and artifact.numerics == "native" and not units:
            raise Refused("FP8 was planned on FP8 units, and this device has none.", cure="Build the artifact again.")
        self.device = _name(place, dtype)
        with _memory(self.device):
            self.model: nn.Module = open_model(self.folder, dtype, place, native_fp8=units)
        self.max_length = _longest(self.model.config, config.max_length)
        self._vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self._spoken = int(self.model.get_output_embeddings().weight.shape[0])
        self._check_shortcut(place)
        ends, decoder = _ends(self.model), _Decoder(self.folder)
        self.scorer, self._generator = _workers(self.model, self.folder, place, config.token_budget, ends, decoder)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        for request in requests:
            require_length(request)
            self._check(request.prompt, len(request.prompt) + request.max_tokens)
            self._check_images(request.images)
        with _memory(self.device):
            return self._generator.generate(requests) if requests else []

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        for request in requests:
            self._check(request.context, len(request.context) + len(request.continuation), request.continuation)
            self._check_images(request.images, request.continuation)
        with _memory(self.device):
            scores: list[Score] = self.scorer.logprobs(requests)
            return scores

    def encode(self, images: Sequence[Image]) -> Encoded:
        """Time tower and projector. Raises BadInput where the model takes no images."""
        self._check_images(tuple(images))
        with _memory(self.device):
            found: Encoded = self.scorer.sight.timed(images)  # type: ignore[attr-defined]
            return found

    def close(self) -> None:
        """Give the memory back."""
        del self.model, self.scorer, self._generator
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check(self, prompt: tuple[int, ...], length: int, more: tuple[int, ...] = ()) -> None:
        require_fits(prompt, length, more, longest=self.max_length, vocabulary=self._vocabulary)

    def _check_images(self, images: tuple[Image, ...], answer: tuple[int, ...] = ()) -> None:
        """A text model would answer without looking; and a model with images embeds eight tokens it cannot say."""
        if images and not hasattr(self.model.config, "vision_config"):
            cure = "Take a model with images, e.g. 11b or mllama-easyvqa."
            raise BadInput(f"{type(self.model).__name__} takes no images.", place=str(self.folder.name), cure=cure)
        if max(answer, default=0) >= self._spoken:
            cure = "Look for an image token in the choices."
            raise BadInput(f"token {max(answer)} is asked for, and the output head ends at {self._spoken}.", cure=cure)

    def _check_shortcut(self, place: torch.device) -> None:
        """Scoring runs the body and the head apart. A model that does more than that to its logits (soft caps, scales)
        would be scored wrong without a sign, so the two ways are compared once."""
        model: Any = self.model
        ids = torch.arange(min(4, self._vocabulary), device=place)[None]
        with torch.inference_mode():
            body = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            apart, whole = model.get_output_embeddings()(body).float(), model(ids).logits.float()
        if not torch.allclose(apart, whole, 1e-2, 1e-2, equal_nan=True):
            name = type(model).__name__
            raise Refused(f"{name} changes its logits after the output head.", cure="Use another engine.")


def _workers(
    model: nn.Module, folder: Path, place: torch.device, budget: int, ends: frozenset[int], decoder: _Decoder
) -> tuple[Scorer, Generator]:
    """What scores and what generates; of a model with images the variants that look at them."""
    if not hasattr(model.config, "vision_config"):
        return Scorer(model, place, budget), Generator(model, place, ends, decoder)
    from quantlab.engines.torch_images import SeeingScorer, Sight
    from quantlab.engines.torch_images_generating import SeeingGenerator

    sight = Sight(model, folder, place)
    return SeeingScorer(model, place, budget, sight), SeeingGenerator(model, place, ends, decoder, sight)


class _Decoder:
    """The checkpoint's tokenizer, loaded when the first stop string needs it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._tokenizer = folder, None

    def decode(self, tokens: list[int]) -> str:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise BadInput(
                    f"stop strings need the tokenizer, and it cannot be loaded ({error}).",
                    place=str(self._folder),
                    cure="Put the tokenizer's files beside the weights.",
                ) from None
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))  # type: ignore[attr-defined]


def _device(word: str) -> torch.device:
    if word == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if word.startswith("cuda"):
        count, wanted = torch.cuda.device_count(), torch.device(word).index or 0
        if wanted >= count:
            raise Refused(f"device {word} was asked for, and torch sees {count} GPUs.", cure="Use device cpu or auto.")
        return torch.device("cuda", wanted)
    return torch.device(word)


def _dtype(folder: Path, word: str, place: torch.device) -> torch.dtype:
    """auto: the checkpoint's own, except that a CPU without bfloat16 instructions computes it in float32.

    Such a CPU (AVX2 only) runs bfloat16 products 6 to 8 times slower than float32 ones; bfloat16 weights are exact in
    float32.
    """
    if word != "auto":
        return _named(word)
    config = _config(folder)
    own = _named(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
    return torch.float32 if place.type == "cpu" and not _cpu_has_bfloat16() else own


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Broken(
            f"no readable config.json ({error}).", place=str(folder), cure="Fetch or export it again."
        ) from None
    return found if isinstance(found, dict) else {}


def _named(word: str) -> torch.dtype:
    found = getattr(torch, word, None)
    if found not in (torch.bfloat16, torch.float16, torch.float32):
        raise BadInput(f"no arithmetic in {word!r}.", cure="Use bfloat16, float16 or float32.")
    assert isinstance(found, torch.dtype)
    return found


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _cpu_has_bfloat16() -> bool:
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", _cpuinfo()) is not None


def _name(place: torch.device, dtype: torch.dtype) -> str:
    if place.type == "cuda":
        return f"{torch.cuda.get_device_name(place)}, {str(dtype).removeprefix('torch.')}"
    model = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    cpu = model.group(1).strip() if model else "unknown"
    return f"{place.type}: {cpu}, {torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}"


def _longest(config: Any, asked: int | None) -> int:
    """The model's own context, or its sliding window: beyond it, the explicit masks of packing would be wrong."""
    config = config.get_text_config()
    own = int(config.max_position_embeddings)
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds or (not kinds and getattr(config, "use_sliding_window", True))
    if window and slides:
        own = min(own, int(window))
    if kinds - {"full_attention", "sliding_attention"}:
        raise Refused(f"layers of kind {', '.join(sorted(kinds))} are not known here.", cure="Use another engine.")
    return own if asked is None else min(own, asked)


def _ends(model: Any) -> frozenset[int]:
    """End-of-sequence ids, from the generation config first."""
    for config in (getattr(model, "generation_config", None), model.config):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends if isinstance(ends, list | tuple) else [ends])
    return frozenset()


@contextmanager
def _memory(device: str) -> Iterator[None]:
    """A GPU that is too small is a refusal of this request, not a crash."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Refused(
            f"the GPU's memory is too small ({str(error).splitlines()[0]}).",
            place=device,
            cure="Lower the batch, the lengths or the token budget.",
        ) from None

"""Tasks about pictures: lm-eval's requests, which carry them, -> a session's that takes images.

lm-eval writes `<image>` where the picture belongs and hands over what the task's `doc_to_image` gives: here the path of
a file, relative to the items (pictures.py makes it so), or several. Three things would change a score in silence, so
they are done aloud:

* The place of the picture. A prompt without a chat template begins with it, before BOS, as Llama 3.2 Vision was
  trained.
* A question without its picture is answered all the same, from the text. It is refused.
* The pixels. Two checkpoints with different image processors see different pictures; the digest of what the vision
  tower is given becomes part of the prompt's digest, which the comparison insists on.

What is asked about a picture that is not its own, or about none, is a control: see SuiteTask.images.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from quantlab.engines import Image, ScoreRequest, Session
from quantlab.errors import BadInput
from quantlab.formats.seeing import image_processor, spell
from quantlab.images import opened, pixel_digest
from quantlab.measure.adapter import SessionLM
from quantlab.measure.journal import Journal
from quantlab.measure.pictures import listed
from quantlab.measure.tasks import LoadedTask

PLACEHOLDER = "<image>"
"""How lm-eval marks the place of a picture."""


class Shelf:
    """Pictures by path, each opened once; and what the checkpoint's image processor makes of them."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises Broken when the checkpoint has no image processor."""
        self._processor = image_processor(checkpoint)
        self._images: dict[Path, Image] = {}
        self._pixels: dict[str, str] = {}

    def image(self, path: Path) -> Image:
        """Raises BadInput for a file that is no usable picture."""
        if path not in self._images:
            picture = opened(path)
            self._images[path] = image = Image(str(path), pixel_digest(picture))
            if image.digest not in self._pixels:
                self._pixels[image.digest] = self._prepared(picture)
        return self._images[path]

    def pixels(self, image: Image) -> str:
        """SHA-256 of what the vision tower is given."""
        return self._pixels[image.digest]

    def _prepared(self, picture: Any) -> str:
        made = self._processor([[picture]], return_tensors="np")
        parts = (made[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"))
        return hashlib.sha256(b"".join(repr(one.shape).encode() + one.tobytes() for one in parts)).hexdigest()


class SeeingLM(SessionLM):
    """An lm-eval model over a Session that takes images. `look` comes before each task."""

    MULTIMODAL = True

    def __init__(self, session: Session, tokenizer: Any, journal: Journal, token_budget: int, shelf: Shelf) -> None:
        super().__init__(session, tokenizer, journal, token_budget)
        self._shelf = shelf
        self._token = str(getattr(tokenizer, "image_token", None) or "<|image|>")
        self._folder = Path()
        self._mode = "own"
        self._instead: dict[str, str] = {}
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}
        self._found: dict[str, Image] = {}
        """Of the present task: questions about pictures come from a few templates, and a picture has many."""

    def look(self, loaded: LoadedTask) -> None:
        """The next task. With `images: shuffled` each picture is exchanged for another one of the task.

        Raises:
            BadInput: a question without a picture, or one picture where they should be shuffled.
        """
        self._folder, self._mode = loaded.folder or Path(), loaded.ask.images
        self._encoded.clear()
        self._found.clear()
        if not loaded.task.MULTIMODAL:
            return
        docs = list(loaded.task.eval_docs)[: loaded.ask.limit]
        named = [list(listed(loaded.task.doc_to_image(doc))) for doc in docs]
        blind = [place for place, some in enumerate(named) if not some or not all(some)]
        if blind:
            cure = "Give each question its picture, a path relative to the items' file."
            place = f"{self.place}, item {blind[0]}"
            raise BadInput(f"{len(blind)} questions come without a picture.", place=place, cure=cure)
        self._instead = _shuffled([one for some in named for one in some]) if self._mode == "shuffled" else {}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Text with a picture gets its BOS here, in its place, and none from the tokenizer."""
        key = string, add_special_tokens
        if key not in self._encoded:
            self._encoded[key] = self._encode(string, add_special_tokens)
        return self._encoded[key]

    def _encode(self, string: str, add_special_tokens: bool | None) -> list[int]:
        text = string.replace(PLACEHOLDER, self._token)
        if self._token not in text:
            return super().tok_encode(text, add_special_tokens)
        if self._mode == "none":
            return super().tok_encode(text.replace(self._token, ""), add_special_tokens)
        return super().tok_encode(spell(text, self._token, self.tokenizer.bos_token), add_special_tokens=False)

    def _render(self, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """With each picture as a part of its message, as `hf-multimodal` hands it over: Llama 3.2's template writes the
        system message with the date only where it finds no picture, and looks for one in the parts."""
        parted: list[Any] = [{**one, "content": _parts(one["content"])} for one in history]
        return super()._render(parted, add_generation_prompt)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of answers to questions about pictures; text alone as ever."""
        if not requests or len(requests[0].args) == 2:
            return super().loglikelihood(requests, disable_tqdm)
        asks = []
        for request in requests:
            context, continuation, beside = request.args
            before, after = self._encode_pair(context, continuation)
            images = self._images(beside)
            ask = ScoreRequest(tuple(before), tuple(after), images=images)
            self._note(request.args, ask.context, ask.continuation, tuple(map(self._shelf.pixels, images)))
            asks.append(ask)
        return self._score(asks)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers to questions about pictures; text alone as ever."""
        if not requests or len(requests[0].args) == 2:
            return super().generate_until(requests, disable_tqdm)
        asks = []
        for request in requests:
            context, settings, beside = request.args
            images = self._images(beside)
            ask = self._generation(context, settings, images)
            self._note(request.args, ask.prompt, (), tuple(map(self._shelf.pixels, images)))
            asks.append(ask)
        return self._generate(asks)

    def _images(self, beside: dict[str, Any]) -> tuple[Image, ...]:
        if self._mode == "none":
            return ()
        paths = [self._instead.get(path, path) for path in listed(beside["visual"])]
        try:
            for path in paths:
                if path not in self._found:
                    self._found[path] = self._shelf.image(self._folder / path)
            return tuple(self._found[path] for path in paths)
        except BadInput as error:
            raise BadInput(error.problem, place=f"{self.place}, {error.place}", cure=error.cure) from None


def _parts(text: str) -> list[dict[str, str]]:
    """The text of a message, cut where a picture belongs."""
    found: list[dict[str, str]] = []
    for number, part in enumerate(text.split(PLACEHOLDER)):
        found += [{"type": "image"}] if number else []
        found += [{"type": "text", "text": part}] if part else []
    return found


def _shuffled(named: list[str]) -> dict[str, str]:
    """Each picture -> another one, the same for all questions about it and for every checkpoint."""
    pictures = sorted(set(named))
    if len(pictures) < 2:
        raise BadInput("one picture cannot be shuffled.", place="suite, field controls", cure="Leave the control out.")
    random.Random(0).shuffle(pictures)
    return dict(zip(pictures, [*pictures[1:], pictures[0]], strict=True))

"""Engine torch with pictures against transformers' own forward pass and generation, on the real small Llama 3.2
Vision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from quantlab.engines import GenerateRequest, Image, ScoreRequest, engine
from quantlab.engines.torch_session import TorchSession
from quantlab.errors import BadInput, Broken
from quantlab.formats.seeing import processor, spell
from quantlab.images import opened, pixel_digest
from quantlab.records import Artifact, Checkpoint, EngineConfig

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "evals" / "models" / "mllama-easyvqa"
PICTURES = ROOT / "evals" / "items" / "easyvqa"
QUESTIONS = ("what is the red shape?", "what is the color of the shape?", "is a yellow shape present?")
CONFIG = EngineConfig(device="cpu", dtype="float32", token_budget=512)


def artifact(folder: Path, architecture: str = "MllamaForConditionalGeneration") -> Artifact:
    checkpoint = Checkpoint(path=str(folder), digest="0", recipe="bf16", format="bf16", architecture=architecture)
    return Artifact(engine="torch", path=str(folder), checkpoint=checkpoint)


@pytest.fixture(scope="module")
def session() -> Iterator[TorchSession]:
    with engine("torch").open(artifact(MODEL), CONFIG) as found:
        assert isinstance(found, TorchSession)
        yield found


@pytest.fixture(scope="module")
def tool() -> Any:
    return processor(MODEL)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    """Two square pictures, and three that need one, two and three tiles of the four."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = sorted(PICTURES.glob("*.png"))[:2]
    for width, height in ((20, 20), (30, 60), (96, 32)):
        paths.append(folder / f"{width}.png")
        opened(paths[0]).resize((width, height)).save(paths[-1])
    return [Image(str(path), pixel_digest(opened(path))) for path in paths]


def encoded(tool: Any, text: str) -> tuple[int, ...]:
    return tuple(tool.tokenizer(text, add_special_tokens=False)["input_ids"])


def theirs(session: TorchSession, tool: Any, text: str, *images: Image | None) -> tuple[dict[str, Any], torch.Tensor]:
    """What transformers makes of a prompt: its inputs and log-probabilities [tokens, vocabulary]."""
    pictures = [[opened(image.path) for image in images if image]] if any(images) else None
    batch = dict(tool(images=pictures, text=[text], add_special_tokens=False, return_tensors="pt"))
    with torch.inference_mode():
        return batch, session.model(**batch).logits[0].float().log_softmax(-1)


def test_scores_are_those_of_transformers_for_every_number_of_tiles(
    session: TorchSession, tool: Any, images: list[Image]
) -> None:
    asked, wanted, tiles = [], [], set()
    for image in images:
        for question in QUESTIONS:
            for place in ("start", "middle"):
                text = spell("<|image|>" + question, "<|image|>", "<|begin_of_text|>")
                if place == "middle":  # tokens before the picture see nothing of it
                    text = "<|begin_of_text|>user :<|image|>" + question
                batch, logprobs = theirs(session, tool, text, image)
                ids = encoded(tool, text)
                assert tuple(batch["input_ids"][0].tolist()) == ids
                tiles.add(int(batch["aspect_ratio_mask"].sum()))
                cut = len(ids) - 3
                asked.append(ScoreRequest(ids[:cut], (*ids[cut:], 9), images=(image,)))
                wanted.append([float(logprobs[cut - 1 + i, token]) for i, token in enumerate((*ids[cut:], 9))])
    assert tiles == {1, 2, 3, 4}
    before = session.scorer.sight.encoded
    found = session.logprobs(asked)
    assert session.scorer.sight.encoded - before == len(images)
    np.testing.assert_allclose(np.array([one.logprobs for one in found]), np.array(wanted), atol=2e-5)
    session.logprobs(asked[:7])
    assert session.scorer.sight.encoded - before == len(images), "a picture that was seen is not encoded again"


def test_pictures_and_text_mix_and_keep_their_order(session: TorchSession, tool: Any, images: list[Image]) -> None:
    ids = encoded(tool, "<|image|><|begin_of_text|>what is the red shape?")
    mixed = [
        ScoreRequest(ids, (9,), images=(images[0],)),
        ScoreRequest(ids[1:], (9,)),
        ScoreRequest(ids, (9,), images=(images[1],), full=True),
        ScoreRequest(ids, (10,), images=(images[0],)),
    ]
    together = session.logprobs(mixed)
    for request, score in zip(mixed, together, strict=True):
        (alone,) = session.logprobs([request])
        np.testing.assert_allclose(score.logprobs, alone.logprobs, atol=1e-5)
    assert together[2].distribution is not None
    _, plain = theirs(session, tool, "<|begin_of_text|>what is the red shape?", None)
    assert float(together[1].logprobs[0]) == pytest.approx(float(plain[-1, 9]), abs=1e-5)


def test_a_long_shared_text_without_a_picture_is_right(session: TorchSession, tool: Any) -> None:
    """Trunks are kept by layer, because the cross-attention layers leave none."""
    small = TorchSession(artifact(MODEL), EngineConfig(device="cpu", dtype="float32", token_budget=96))
    start = tuple(np.random.default_rng(0).integers(8, 60, 200).tolist())
    asked = [ScoreRequest((*start, *np.random.default_rng(i).integers(8, 60, 20).tolist()), (9, 10)) for i in range(6)]
    for request, score in zip(asked, small.logprobs(asked), strict=True):
        with torch.inference_mode():
            rows = session.model(input_ids=torch.tensor([(*request.context, 9)])).logits[0, -2:].log_softmax(-1)
        np.testing.assert_allclose(score.logprobs, [float(rows[0, 9]), float(rows[1, 10])], atol=1e-4)
    assert small.scorer.tokens_computed < sum(len(one.context) for one in asked) / 2
    small.close()


def test_generated_tokens_are_those_of_transformers(session: TorchSession, tool: Any, images: list[Image]) -> None:
    texts = [spell("<|image|>" + question, "<|image|>", "<|begin_of_text|>") for question in QUESTIONS]
    asked = [
        GenerateRequest(encoded(tool, text), 6, ignore_eos=True, images=(one,)) for text in texts for one in images
    ]
    asked.insert(3, GenerateRequest(encoded(tool, "<|begin_of_text|>what"), 6, ignore_eos=True))
    for request, done in zip(asked, session.generate(asked), strict=True):
        text = tool.tokenizer.decode(request.prompt)
        ids = list(request.prompt)
        for token in done.tokens:
            batch, logprobs = theirs(session, tool, text, request.images[0] if request.images else None)
            assert batch["input_ids"][0].tolist() == ids
            assert float(logprobs[-1].max() - logprobs[-1, token]) < 1e-4
            ids.append(token)
            text = tool.tokenizer.decode(ids)


SEVERAL = ("<|image|><|image|><|begin_of_text|>what is the red shape?",
           "<|image|><|begin_of_text|>what is <|image|>the red shape?",
           "<|begin_of_text|>what is the <|image|><|image|>red <|image|>shape?")  # fmt: skip


def test_several_pictures_are_seen_as_transformers_sees_them(
    session: TorchSession, tool: Any, images: list[Image]
) -> None:
    """A token sees the last picture before it, and those that stand side by side with it; pictures of different numbers
    of tiles, and prompts with one, two and three of them in one batch."""
    begun = [GenerateRequest(encoded(tool, SEVERAL[0][9:]), 3, ignore_eos=True, images=(images[2],))]
    for number, text in enumerate(SEVERAL):
        own = tuple(images[(number + place) % len(images)] for place in range(text.count("<|image|>")))
        ids = encoded(tool, text)
        begun.append(GenerateRequest(ids, 3, ignore_eos=True, images=own))
        whole = ScoreRequest(ids, (9, 10), images=own)
        _, logprobs = theirs(session, tool, text + tool.tokenizer.decode([9]), *own)
        found = session.logprobs([whole])[0].logprobs
        np.testing.assert_allclose(found, [float(logprobs[-2, 9]), float(logprobs[-1, 10])], atol=1e-4)
    for request, done in zip(begun, session.generate(begun), strict=True):
        text = tool.tokenizer.decode(request.prompt)
        for token in done.tokens:
            _, logprobs = theirs(session, tool, text, *request.images)
            assert float(logprobs[-1].max() - logprobs[-1, token]) < 1e-4
            text = tool.tokenizer.decode((*encoded(tool, text), token))


def test_a_question_without_its_picture_is_refused(session: TorchSession, tool: Any, images: list[Image]) -> None:
    ids = encoded(tool, "<|image|><|begin_of_text|>what is the red shape?")
    for prompt, given in ((ids, ()), (ids[1:], (images[0],)), ((64, *ids), (images[0],))):
        with pytest.raises(BadInput, match="image tokens"):
            session.logprobs([ScoreRequest(prompt, (9,), images=given)])
        with pytest.raises(BadInput, match="image tokens"):
            session.generate([GenerateRequest(prompt, 2, images=given)])
    with pytest.raises(BadInput, match="output head ends at 64"):
        session.logprobs([ScoreRequest(ids, (64,), images=(images[0],))])
    with pytest.raises(BadInput, match="No such file"):
        session.logprobs([ScoreRequest(ids, (9,), images=(Image("/nowhere.png", "x"),))])


def test_a_text_model_takes_no_picture(tiny_model: Path, images: list[Image]) -> None:
    with engine("torch").open(artifact(tiny_model, "LlamaForCausalLM"), CONFIG) as text:
        with pytest.raises(BadInput, match="takes no images"):
            text.logprobs([ScoreRequest((5, 6), (7,), images=(images[0],))])
        with pytest.raises(BadInput, match="takes no images"):
            text.generate([GenerateRequest((5, 6), 2, images=(images[0],))])


def test_a_checkpoint_without_its_processor_is_broken(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(MODEL, folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(Broken, match="image processor"):
        TorchSession(artifact(folder), CONFIG)


def test_few_encoded_pictures_are_held(
    session: TorchSession, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantlab.engines import torch_images

    monkeypatch.setattr(torch_images, "KEPT_BYTES", 1)
    ordered = [images[0], images[1], images[0]]
    views = session.scorer.sight.views(ordered)
    assert len(session.scorer.sight._views) == 1
    assert torch.equal(views[0].states, views[2].states)
    assert Pillow.open(images[0].path).size == (64, 64)

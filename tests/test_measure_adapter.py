"""Our adapter against lm-eval's own `hf` model, item by item, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from quantlab.engines import engine
from quantlab.errors import BadInput
from quantlab.measure.adapter import SessionLM, key
from quantlab.measure.journal import Journal
from quantlab.measure.tasks import load
from quantlab.records import Suite, SuiteTask
from tests import measure_bench as bench

TASKS = bench.ROOT / "evals" / "tasks"
QA = [{"query": f"Question {n}: what follows {n}?\nAnswer:", "answer": f"{n + 1}"} for n in range(5)]
GENERATE = {"output_type": "generate_until", "doc_to_text": "{{query}}", "doc_to_target": "{{answer}}"}
GREEDY = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}


def ours(tmp_path: Path, max_length: int = 512) -> SessionLM:
    session = bench.PlainSession(bench.tiny_folder(), max_length=max_length)
    return SessionLM(session, bench.tokenizer(), Journal(tmp_path / "journal.jsonl", "test"), 64)


def theirs(lm: SessionLM, **settings: Any) -> HFLM:
    assert isinstance(lm.session, bench.PlainSession)
    return HFLM(pretrained=lm.session.model, tokenizer=lm.tokenizer, batch_size=1, **settings)


def both(tmp_path: Path, task: SuiteTask, folder: Path = TASKS) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Samples of the task by our adapter and by `hf`, both over the same weights in float32."""
    lm = ours(tmp_path)
    hf = theirs(lm, chat_template_args={"date_string": "26 Jul 2024"})
    samples = []
    for model in (lm, hf):
        (one,) = load(Suite(summary="", tasks=(task,)), tmp_path, folder, tmp_path)
        result = evaluate(
            model,
            {"tasks": {one.name: one.task}},
            limit=task.limit,
            bootstrap_iters=0,
            apply_chat_template=task.chat_template,
            fewshot_as_multiturn=True,
        )
        samples.append(result["samples"][one.name])
    return samples[0], samples[1]


@pytest.mark.parametrize(
    "task",
    [
        SuiteTask(task="ql_facts", limit=8),
        SuiteTask(task="ql_cloze", limit=3),
        SuiteTask(task="ql_kinds", limit=4, shots=2),
        SuiteTask(task="ql_agreement", limit=6, chat_template=True, shots=1),
    ],
    ids=["plain", "long", "shots", "chat"],
)
def test_likelihoods_are_those_of_lm_evals_hf_model_item_by_item(tmp_path: Path, task: SuiteTask) -> None:
    mine, hf = both(tmp_path, task)
    assert len(mine) == len(hf) == task.limit
    for left, right in zip(mine, hf, strict=True):
        assert left["arguments"] == right["arguments"]
        for (ours_ll, ours_greedy), (hf_ll, hf_greedy) in zip(
            left["filtered_resps"], right["filtered_resps"], strict=True
        ):
            assert abs(ours_ll - hf_ll) < 1e-3
            assert ours_greedy == hf_greedy
        assert left["acc"] == right["acc"]


def test_generated_answers_are_those_of_lm_evals_hf_model(tmp_path: Path) -> None:
    folder = bench.write_task(tmp_path / "own", "gen", QA, **GENERATE, generation_kwargs=GREEDY)
    mine, hf = both(tmp_path, SuiteTask(task="gen"), folder)
    assert [sample["filtered_resps"] for sample in mine] == [sample["filtered_resps"] for sample in hf]
    assert any(sample["filtered_resps"][0] for sample in mine), "a test of empty answers says nothing"


def test_rolling_likelihoods_use_the_windows_of_lm_evals_hf_model(tmp_path: Path) -> None:
    lm = ours(tmp_path, max_length=41)
    text = bench.TEXT.read_text(encoding="utf-8")[:400]
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    assert len(lm.tok_encode(text)) > 100
    (expected,) = theirs(lm, max_length=40).loglikelihood_rolling([request])
    (found,) = lm.loglikelihood_rolling([request])
    assert abs(found - expected) < 1e-3


def test_one_bos_whoever_writes_it(tmp_path: Path) -> None:
    lm = ours(tmp_path)
    bos = lm.tokenizer.bos_token_id
    assert lm.tok_encode("Hello")[:2].count(bos) == 1
    chat = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert chat.startswith("<s>")
    assert lm.tok_encode(chat).count(bos) == 1
    lm.loglikelihood([Instance("loglikelihood", {}, (chat, " there"), 0)])
    assert lm.sent[key((chat, " there"))].bos == 1


def test_a_doubled_bos_is_refused(tmp_path: Path) -> None:
    lm = ours(tmp_path)
    with pytest.raises(BadInput, match="2 BOS"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("<s><s>Hello", " there"), 0)])


def test_the_chat_template_does_not_see_the_calendar(tmp_path: Path) -> None:
    chat = ours(tmp_path).apply_chat_template([{"role": "user", "content": "Hello"}])
    assert "Today is 26 Jul 2024." in chat


def test_what_does_not_fit_is_refused_and_counted_and_nothing_is_asked(tmp_path: Path) -> None:
    lm = ours(tmp_path, max_length=12)
    short, long = ("Hi", " there"), ("word " * 30, " there")
    with pytest.raises(BadInput, match="2 of 3 prompts do not fit into 12 tokens"):
        lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in (short, long, long)])
    with pytest.raises(BadInput, match="1 of 1 prompts"):
        lm.generate_until([Instance("generate_until", {}, ("Hi", {"until": [], "max_gen_toks": 40}), 0)])
    assert lm.session.calls == 0


@pytest.mark.parametrize("extra", [{"do_sample": True}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 4}])
def test_only_greedy_decoding_is_accepted(tmp_path: Path, extra: dict[str, Any]) -> None:
    request = Instance("generate_until", {}, ("Hi", {"until": ["\n"], **extra}), 0)
    with pytest.raises(BadInput, match="greedily"):
        ours(tmp_path).generate_until([request])


def test_a_stop_string_that_is_a_special_token_ends_the_answer(tmp_path: Path) -> None:
    lm = ours(tmp_path)
    words = lm.tok_encode("yes", add_special_tokens=False)
    ask = lm._generation("Hi", {"until": ["</s>"], "max_gen_toks": 8})
    assert lm._text(ask, (*words, 1, *words)) == "yes"


def test_an_empty_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tokens"):
        ours(tmp_path).loglikelihood([Instance("loglikelihood", {}, ("Hi", ""), 0)])


def test_equal_requests_are_computed_once(tmp_path: Path) -> None:
    lm = ours(tmp_path)
    requests = [Instance("loglikelihood", {}, ("Hi", " there"), 0)] * 3
    assert len(set(lm.loglikelihood(requests))) == 1
    assert len(lm.session.asked) == 1
    assert lm.requests == 3


@pytest.mark.model
def test_the_real_model_on_the_torch_engine_scores_as_with_lm_evals_hf_model(tmp_path: Path) -> None:
    """20 items of a real task, float32: the same prompts, likelihoods within 1e-3, the same decisions."""
    folder = bench.smollm2_folder()
    spec, task = bench.job(tmp_path, path=folder), SuiteTask(task="ql_facts", limit=20)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    with engine("torch").open(spec.artifact, spec.config) as session:
        ours = SessionLM(session, tokenizer, Journal(tmp_path / "j.jsonl", ""), 2048)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for lm in (ours, HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)):
            (one,) = load(Suite(summary="", tasks=(task,)), tmp_path, TASKS, tmp_path)
            result = evaluate(lm, {"tasks": {one.name: one.task}}, limit=20, bootstrap_iters=0)
            found.append(result["samples"][one.name])
    mine, hf = found
    assert [sample["arguments"] for sample in mine] == [sample["arguments"] for sample in hf]
    gaps = [
        abs(left[0] - right[0])
        for pair in zip(mine, hf, strict=True)
        for left, right in zip(*(sample["filtered_resps"] for sample in pair), strict=True)
    ]
    assert len(gaps) == 80
    assert max(gaps) < 1e-3
    assert [sample["acc"] for sample in mine] == [sample["acc"] for sample in hf]
    assert sum(sample["acc"] for sample in mine) > 10, "half right: the prompts make sense to the model"

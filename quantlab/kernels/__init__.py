"""NVIDIA's tables of measured kernels as a source for predictions: `aiconfigurator-core`, an optional extra.

It sums kernels that were timed on the GPU, so bf16 and FP8 on a data-centre GPU are known where neither this model nor
this GPU was measured by us. It has no INT4 on these GPUs, no consumer cards, no Jetson, no Mllama (its text path is
asked for as a Llama), and no host: launches, scheduling and sampling are missing, most of a small model's step.

The package (82 MB) needs pandas, pyarrow, scipy and numpy 2.1 and newer, which quantlab asks for as well, so it may lie
in the same environment: `pip install 'quantlab[kernels]'`, Linux on x86-64 only. Or in another one, whose Python
QUANTLAB_KERNELS names. It is asked in a child either way: loading its tables takes seconds and 150 MB.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab.errors import BadInput
from quantlab.records import Shape

PACKAGE = "aiconfigurator_core"
VARIABLE = "QUANTLAB_KERNELS"
TESTED = "0.12.0"
"""Its interface and tables change with each release; another one is refused."""
SYSTEMS = {
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "a100": "a100_sxm",
    "b200": "b200_sxm",
    "gb200": "gb200",
    "l40s": "l40s",
    "rtxpro6000": "rtx_pro_6000_server",
}
"""GPU of the catalog -> name in the tables, where kernels were measured."""
ENGINES = ("vllm", "trtllm")
FORMATS = ("bf16", "fp8")
LARGEST_BATCH = 1024
"""NVIDIA's own remark: beyond it "the result is not good"."""
WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Question:
    """One model, GPU, engine and format at one pair of lengths, for several batches."""

    shape: Shape
    gpu: str
    engine: str
    format: str
    kv_cache: str
    tp: int
    isl: int
    osl: int
    batches: tuple[int, ...]

    @property
    def refusal(self) -> str:
        """Why the tables cannot know it; empty where they may."""
        for what, value, known in (
            ("GPU", self.gpu, tuple(SYSTEMS)),
            ("engine", self.engine, ENGINES),
            ("format", self.format, FORMATS),
        ):
            if value not in known:
                return f"the kernel tables have no {what} {value} (they have {', '.join(known)})."
        return "" if self.osl > 1 else "the kernel tables need two tokens out or more."


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Sum of kernels at one batch."""

    first_seconds: float
    step_seconds: float
    measured_share: float
    """Of the step, in kernels that were timed; the rest the package computes from bandwidth."""


@dataclass
class KernelTables:
    """Where the tables are asked: the words before the script's path."""

    command: tuple[str, ...] = field(default_factory=lambda: _command())

    @property
    def here(self) -> bool:
        """Is there anything to ask?"""
        return bool(self.command)

    def ask(self, questions: Sequence[Question]) -> list[dict[int, KernelTime] | str]:
        """Batch -> time for each question, or a sentence why there is none. One child for all of them.

        Raises:
            BadInput: the named Python cannot be started, or has no or another aiconfigurator-core.
        """
        asked = [each for each in questions if not each.refusal]
        found = iter(self._child([_spec(each) for each in asked]) if asked else ())
        return [each.refusal or _read(next(found)) for each in questions]

    def _child(self, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        script = Path(__file__).with_name("tables.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                [*self.command, str(script)],
                input=json.dumps(specs),
                capture_output=True,
                text=True,
                timeout=WAIT_SECONDS,
                env=environment,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._wrong(str(error)) from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"it ended with code {done.returncode}"]
            raise self._wrong(last[0][:300])
        try:
            answers = json.loads(done.stdout)
            version, found = answers["version"], list(answers["answers"])
        except (ValueError, KeyError, TypeError):
            raise self._wrong(f"its answer is none: {done.stdout.strip()[:80]!r}") from None
        if version != TESTED:
            raise self._wrong(f"aiconfigurator-core {version} is there, and {TESTED} was tested")
        return found

    def _wrong(self, why: str) -> BadInput:
        cure = f"pip install aiconfigurator-core=={TESTED} there, or leave the tables out: --no-kernels."
        return BadInput(
            f"the kernel tables cannot be asked: {why}.", place=f"{VARIABLE} ({' '.join(self.command)})", cure=cure
        )


def _command() -> tuple[str, ...]:
    """The Python that $QUANTLAB_KERNELS names, or this one where it has the package; else nothing."""
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        return (os.path.expanduser(given),)
    return (sys.executable,) if importlib.util.find_spec(PACKAGE) else ()


def _spec(question: Question) -> dict[str, Any]:
    return {
        "system": SYSTEMS[question.gpu],
        "engine": question.engine,
        "format": question.format,
        "kv_cache": question.kv_cache,
        "tp": question.tp,
        "isl": question.isl,
        "osl": question.osl,
        "batches": [batch for batch in question.batches if batch <= LARGEST_BATCH],
        "config": config(question.shape),
    }


def config(shape: Shape) -> dict[str, Any]:
    """A Llama's config.json with these dimensions: of Mllama, the layers that text runs through."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def _read(answer: dict[str, Any]) -> dict[int, KernelTime] | str:
    if "refusal" in answer:
        return f"the kernel tables do not cover it: {answer['refusal']}"
    return {int(batch): KernelTime(**cell) for batch, cell in answer["cells"].items()}

"""The seam between what is measured and what computes.

An `Engine` turns a checkpoint into an artifact and opens it; a `Session` answers two kinds of request. Nothing else
is asked of TensorRT-LLM, vLLM, ONNX Runtime or plain torch, so that one measurement code serves them all and
the thing scored is the thing timed. Ability is data and is asked first; a "no" is a sentence, never an exception later.

Engines are found in a literal table and imported on first use, inside the child process.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from quantlab.errors import BadInput
from quantlab.records import Artifact, Checkpoint, EngineConfig, Host

if TYPE_CHECKING:
    import numpy as np

ENGINES: dict[str, str] = {
    "torch": "quantlab.engines.torch:TorchEngine",
    "fake": "quantlab.engines.fake:FakeEngine",
    "trtllm": "quantlab.engines.trtllm:TrtllmEngine",
    "vllm": "quantlab.engines.vllm:VllmEngine",
    "ortgenai": "quantlab.engines.ortgenai:OrtGenaiEngine",
}
"""name -> "module:class"."""


class Ability(enum.Flag):
    """What a session can answer."""

    GENERATE = enum.auto()
    LOGPROBS = enum.auto()
    FULL_LOGITS = enum.auto()
    IMAGES = enum.auto()
    TIMINGS = enum.auto()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue `prompt` greedily.

    `ignore_eos` makes exactly `max_tokens` come out, for throughput. `stop` ends at the first of these strings;
    the text before it is the completion.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """Token ids that came out, and when. Seconds count from the moment the call was made."""

    tokens: tuple[int, ...]
    finish: str
    """"length" or "stop"."""
    first_token_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is `continuation` after `context`? Both are token ids; context holds at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    full: bool = False
    """Also return the whole distribution at each position."""


@dataclass(frozen=True, slots=True)
class Score:
    """Answer to a ScoreRequest."""

    logprobs: np.ndarray
    """float32 [len(continuation)]: log-probability of each token given all before it."""
    greedy: bool
    """Every token of the continuation is the most likely one."""
    distribution: np.ndarray | None = None
    """float32 [len(continuation), vocabulary]: log-probabilities, when asked."""


class Session(Protocol):
    """An opened artifact. Order of answers is the order of requests; batching is the session's own affair."""

    max_length: int
    """Longest context + continuation; longer requests raise BadInput."""
    device: str
    """For people: "cpu: AMD EPYC, 2 threads", "NVIDIA H100 80GB HBM3"."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """All requests of one call run as one static batch (a session may split it when it cannot hold it)."""
        ...

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]: ...


class Engine(Protocol):
    """One SDK."""

    name: str
    abilities: Ability

    def version(self) -> str:
        """Version of the SDK, part of every measurement's identity; must not import it."""
        ...

    def supports(self, checkpoint: Checkpoint, host: Host) -> str | None:
        """None, or one sentence why not and what to do. Asked before any work; must not import the SDK."""
        ...

    def numerics(self, checkpoint: Checkpoint, host: Host) -> str:
        """ "native", "emulated" or "simulated" for this checkpoint on this host; must not import the SDK."""
        ...

    def build(self, checkpoint: Checkpoint, into: Path, config: EngineConfig, host: Host) -> Artifact:
        """Make what `open` needs. An engine that builds nothing returns the checkpoint itself."""
        ...

    def open(self, artifact: Artifact, config: EngineConfig) -> AbstractContextManager[Session]:
        """Load it. Leaving the context frees everything."""
        ...


def require_fits(
    prompt: tuple[int, ...], length: int, more: tuple[int, ...] = (), *, longest: int, vocabulary: int
) -> None:
    """What every session asks of a request before it computes: something to stand on, no cutting, known tokens.

    Args:
        prompt: token ids that come first.
        length: tokens of the whole sequence.
        more: further token ids that are given.
        longest: most tokens that the session holds.
        vocabulary: number of token ids it knows.

    Raises:
        BadInput: the request is empty, too long, or names a token that does not exist.
    """
    if not prompt:
        raise BadInput("a request has an empty prompt.", cure="Give at least one token, e.g. the BOS token.")
    if length > longest:
        raise BadInput(
            f"a request of {length} tokens is longer than {longest}; nothing is ever cut.",
            cure="Raise max_length if the model allows it, or shorten the prompt.",
        )
    low, high = min(min(prompt), *more, 0), max(max(prompt), *more, 0)
    if low < 0 or high >= vocabulary:
        raise BadInput(
            f"token {low if low < 0 else high} is outside the vocabulary of {vocabulary}.",
            cure="Encode the text with the tokenizer of this checkpoint.",
        )


def check(name: str) -> str:
    """`name`, if an engine is called so; imports nothing.

    Raises:
        BadInput: no such engine; the text lists those that exist.
    """
    if name in ENGINES:
        return name
    close = difflib.get_close_matches(name, ENGINES, n=1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    raise BadInput(f"no engine {name!r}.", place="--engine", cure=f"{meant}Engines: {', '.join(ENGINES)}.")


def engine(name: str) -> Engine:
    """The engine called `name`, its module imported now. Raises BadInput as `check` does."""
    module, attribute = ENGINES[check(name)].split(":")
    return cast(Engine, getattr(import_module(module), attribute)())

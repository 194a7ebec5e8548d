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
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

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
    IN_FLIGHT = enum.auto()
    """Requests may join and leave a running batch: quantlab/engines/flowing.py."""


@dataclass(frozen=True, slots=True)
class Image:
    """A picture of a request. The session decodes the file and prepares it with the checkpoint's own processor."""

    path: str
    digest: str
    """SHA-256 of its pixels (quantlab.images): what is equal is encoded once."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue `prompt` greedily.

    `ignore_eos` makes exactly `max_tokens` come out, for throughput. `stop` ends at the first of these strings;
    the text before it is the completion. `prompt` holds one image token for each of `images`.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    images: tuple[Image, ...] = ()


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
    images: tuple[Image, ...] = ()
    """Pictures, one for each image token of the context. Only sessions with Ability.IMAGES take them."""


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


@dataclass(frozen=True, slots=True)
class Encoded:
    """One pass of pictures through vision tower and projector."""

    seconds: float
    """Tower and projector, the tiles being ready on the device."""
    tokens: tuple[int, ...]
    """Vectors of each picture that the decoder looks at; padding tiles do not count."""


@runtime_checkable
class SeeingSession(Session, Protocol):
    """A session that can also say how fast it looks."""

    def encode(self, images: Sequence[Image]) -> Encoded:
        """All pictures in one batch, whether they were encoded before or not."""
        ...


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

    def builds(self, checkpoint: Checkpoint, config: EngineConfig) -> dict[str, Any] | None:
        """What beside checkpoint, SDK and GPU shapes the artifact; None where nothing is built. Imports no SDK.

        What is built is built in a child, kept in the ledger and not built again while this stays the same.
        """
        ...

    def build(self, checkpoint: Checkpoint, into: Path, config: EngineConfig, host: Host) -> Artifact:
        """Make what `open` needs. An engine that builds nothing returns the checkpoint itself."""
        ...

    def open(self, artifact: Artifact, config: EngineConfig) -> AbstractContextManager[Session]:
        """Load it. Leaving the context frees everything."""
        ...


@dataclass(frozen=True, slots=True)
class Timed:
    """One run of an engine's own benchmark on one cell of a grid. Seconds, and tokens a second of all sequences."""

    tokens_per_second: float
    ttft_seconds: float | None = None
    """Median over the requests."""
    tpot_seconds: float | None = None
    """Median over the requests."""
    ttft: tuple[float, float, float] | None = None
    """50th, 90th and 99th percentile over the requests."""
    tpot: tuple[float, float, float] | None = None
    latency: tuple[float, float, float] | None = None
    requests: int = 0


@runtime_checkable
class Bencher(Protocol):
    """An engine whose SDK brings a benchmark that throughput is taken from, instead of a session."""

    def bench_missing(self) -> str | None:
        """None, or why the benchmark cannot be run here; then a session is timed."""
        ...

    def bench_source(self, batch: int) -> str:
        """What times a cell of this batch, for the report."""
        ...

    def bench(
        self,
        artifact: Artifact,
        config: EngineConfig,
        cell: tuple[int, int, int],
        *,
        vocabulary: Sequence[int],
        folder: Path,
        seed: int,
    ) -> Timed | str:
        """Time one cell (input tokens, output tokens, sequences in flight) once, in a process of its own.

        Returns:
            The times, or why this cell is not valid.

        Raises:
            Broken: something else was timed than was meant, another quantization for example.
        """
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


def require_length(request: GenerateRequest) -> None:
    """Raises: BadInput: a request for no token."""
    if request.max_tokens < 1:
        raise BadInput(f"max_tokens is {request.max_tokens}.", cure="Ask for one token or more.")


def check(name: str) -> str:
    """`name`, if an engine is called so; imports nothing.

    Raises:
        BadInput: no such engine; the text lists those that exist.
    """
    if name in ENGINES:
        return name
    close = difflib.get_close_matches(name, ENGINES, n=1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    raise BadInput(f"no engine {name!r}.", place="--engine", cure=f"{meant}Engines: {', '.join(ENGINES)}, or auto.")


def engine(name: str) -> Engine:
    """The engine called `name`, its module imported now. Raises BadInput as `check` does."""
    module, attribute = ENGINES[check(name)].split(":")
    return cast(Engine, getattr(import_module(module), attribute)())

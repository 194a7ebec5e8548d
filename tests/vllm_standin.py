"""A stand-in for vllm, made from the contract file: exactly its surface, and its traps.

A parameter, field or choice that the contract does not list is rejected, and an attribute that it does not list is not
there. Behind it answers engine "fake", so that numbers can be checked. What the real one does without a word it
does too: end-of-sequence tokens are among the output, outputs are cut at the longest sequence, a prompt that fills the
context is an error, a token's rank counts ties, and without its variable set the engine moves into a second process.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from quantlab.engines import GenerateRequest, ScoreRequest
from quantlab.engines.fake import FakeSession
from quantlab.records import Artifact, Checkpoint, EngineConfig

CONTRACT = Path(__file__).parent / "contracts" / "vllm_0_24.json"
EOS = 1


def contract() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CONTRACT.read_text(encoding="utf-8"))
    return found


def renamed(kind: str, owner: str, name: str) -> dict[str, Any]:
    """The contract of a vLLM in which one name is another."""
    changed = copy.deepcopy(contract())
    names = changed[kind][owner]
    names[names.index(name)] = f"{name}_renamed"
    return changed


def record(names: Sequence[str], **values: Any) -> Any:
    """An object with exactly these attributes; values for others are dropped, as if the class had never had them."""
    made = type("Record", (), {"__slots__": tuple(names)})()
    for name in names:
        setattr(made, name, values.get(name))
    return made


class Standin:
    """One vLLM: its modules, and what was done to it."""

    def __init__(
        self, surface: dict[str, Any] | None = None, *, stamps: bool = True, extra: int = 0, room: int = 10**9
    ) -> None:
        """Args:
        surface: a contract.
        stamps: keep first_token_ts; an engine with log stats off has none.
        extra: score that many tokens too few.
        room: prompts of one call that fit into memory. Of a larger one the requests stay in the queue.
        """
        self.surface = surface or contract()
        self.stamps, self.extra, self.room = stamps, extra, room
        self.queue: dict[str, tuple[Any, Any]] = {}
        self.given: dict[str, Any] = {}
        """Arguments of the LLM."""
        self.calls: list[list[dict[str, Any]]] = []
        """Prompts of each call of generate."""
        self.ended: list[str] = []
        self.made: dict[str, int] = {}
        """Of requests in flight: tokens so far."""
        self.most = 0
        """Requests in flight in one step."""

    def modules(self) -> dict[str, ModuleType]:
        vllm, distributed = ModuleType("vllm"), ModuleType("vllm.distributed")
        state = ModuleType("vllm.distributed.parallel_state")
        vllm.LLM, vllm.SamplingParams = self._llm, self._params  # type: ignore[attr-defined]
        sampling = ModuleType("vllm.sampling_params")
        members = self.surface["members"]["RequestOutputKind"]
        sampling.RequestOutputKind = record(members, **{name: name for name in members})  # type: ignore[attr-defined]
        state.cleanup_dist_env_and_memory = lambda: self.ended.append("cleaned")  # type: ignore[attr-defined]
        return {module.__name__: module for module in (vllm, sampling, distributed, state)}

    def _require(self, kind: str, owner: str, given: Any) -> None:
        known = self.surface[kind][owner]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise TypeError(f"{owner} got an unexpected keyword argument {unknown[0]!r}")

    def _params(self, **given: Any) -> Any:
        self._require("fields", "SamplingParams", given)
        names = self.surface["fields"]["SamplingParams"]
        defaults = {"detokenize": True, "max_tokens": 16, "temperature": 1.0, "ignore_eos": False}
        return record(names, **{**defaults, **given})

    def _llm(self, model: str, **given: Any) -> Any:
        own = self.surface["parameters"]["LLM.__init__"]
        self._require("fields", "EngineArgs", [name for name in given if name not in own])
        for name, choices in (
            ("kv_cache_dtype", "CacheDType"),
            ("logprobs_mode", "LogprobsMode"),
            ("load_format", "LoadFormats"),
        ):
            if given[name] not in self.surface["choices"][choices]:
                raise ValueError(f"{name}={given[name]!r}")
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0", "the engine would run in a second process"
        self.given = {"model": model, **given}
        shape = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        longest = shape["max_position_embeddings"] if given["max_model_len"] == -1 else given["max_model_len"]
        if longest > shape["max_position_embeddings"]:
            raise ValueError("User-specified max_model_len is greater than the derived max_model_len")
        return self._made(model, longest)

    def _made(self, model: str, longest: int) -> Any:
        checkpoint = Checkpoint(path=model, digest="", recipe="bf16", format="bf16", architecture="")
        fake = FakeSession(Artifact(engine="fake", path=model, checkpoint=checkpoint), EngineConfig())
        client = record(["shutdown"], shutdown=lambda timeout=None: self.ended.append("shutdown"))
        queue = record(self.surface["attributes"]["OutputProcessor"], request_states=self.queue)
        methods = [name.split(".")[1] for name in self.surface["parameters"] if name.startswith("LLMEngine.")]
        engine = record(
            [*self.surface["attributes"]["LLMEngine"], *methods],
            engine_core=client,
            output_processor=queue,
            abort_request=self._abort,
            add_request=self._add,
            step=lambda: self._step(fake, longest),
        )
        config = record(self.surface["fields"]["ModelConfig"], max_model_len=longest, dtype="torch.bfloat16")
        made = record([*self.surface["attributes"]["LLM"], "generate"], llm_engine=engine, model_config=config)

        def generate(prompts: Any, sampling_params: Any = None, **given: Any) -> list[Any]:
            self._require("parameters", "LLM.generate", given)
            self.calls.append(list(prompts))
            for prompt in prompts:
                self._require("fields", "TokensPrompt", prompt)
                if len(prompt["prompt_token_ids"]) >= longest:
                    raise ValueError("The decoder prompt is longer than the maximum model length")
            asked = zip(prompts, sampling_params, strict=True)
            self.queue.update({f"{len(self.calls)}-{at}": one for at, one in enumerate(asked)})
            if len(prompts) > self.room:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            all_ = [self._answer(fake, p["prompt_token_ids"], s, longest) for p, s in self.queue.values()]
            self.queue.clear()
            return all_

        made.generate = generate
        return made

    def _abort(self, request_ids: list[str], **given: Any) -> None:
        self._require("parameters", "LLMEngine.abort_request", given)
        for name in request_ids:
            del self.queue[name]
            self.made.pop(name, None)

    def _add(self, request_id: str, prompt: Any, params: Any) -> str:
        assert isinstance(request_id, str)
        self._require("fields", "TokensPrompt", prompt)
        internal = f"{request_id}-internal"
        self.queue[internal], self.made[internal] = (prompt, params), 0
        return internal

    def _step(self, fake: FakeSession, longest: int) -> list[Any]:
        """One token for each; an output for those that ended, and for each that is to be told of every token."""
        self.most = max(self.most, len(self.made))
        outputs = []
        for internal in list(self.made):
            prompt, params = self.queue[internal]
            self.made[internal] += 1
            ended = self.made[internal] == params.max_tokens
            if ended or params.output_kind == "CUMULATIVE":
                output = self._answer(fake, prompt["prompt_token_ids"], params, longest)
                output.outputs[0].token_ids = output.outputs[0].token_ids[: self.made[internal]]
                output.request_id, output.finished = internal.removesuffix("-internal"), ended
                outputs.append(output)
            if ended:
                del self.queue[internal], self.made[internal]
        return outputs

    def _answer(self, fake: FakeSession, prompt: list[int], params: Any, longest: int) -> Any:
        began = time.monotonic()
        scored = None if params.prompt_logprobs is None else self._scored(fake, prompt, params)
        most = min(params.max_tokens, longest - len(prompt))
        stop = tuple(params.stop or ())
        assert params.detokenize or not stop, "stop strings need text"
        made = fake.generate([GenerateRequest(tuple(prompt), most, stop, params.ignore_eos)])[0]
        tokens, reason = list(made.tokens), None
        if made.finish == "stop" and (len(tokens) < most and not _ends_in(fake, stop, tokens)):
            tokens.append(EOS)
        elif made.finish == "stop":
            reason = stop[0]
        fields = self.surface["fields"]
        stats = record(
            fields["RequestStateStats"],
            arrival_time=time.time(),
            scheduled_ts=began,
            first_token_ts=began + made.first_token_seconds if self.stamps else 0.0,
            last_token_ts=began + made.seconds,
        )
        output = record(
            fields["CompletionOutput"],
            index=0,
            text="",
            token_ids=tokens,
            finish_reason=made.finish,
            stop_reason=reason,
        )
        return record(
            self.surface["attributes"]["RequestOutput"],
            prompt_token_ids=prompt,
            prompt_logprobs=scored,
            outputs=[output],
            finished=True,
            metrics=stats,
        )

    def _scored(self, fake: FakeSession, prompt: list[int], params: Any) -> Any:
        """FlatLogprobs: nothing for the first token, then the token's own and the likeliest ones."""
        assert params.flat_logprobs, "lists of dictionaries are not what the session reads"
        score = fake.logprobs([ScoreRequest((prompt[0],), tuple(prompt[1:]), full=True)])[0]
        assert score.distribution is not None
        flat: dict[str, list[Any]] = {
            name: [] for name in ("start_indices", "end_indices", "token_ids", "logprobs", "ranks")
        }
        flat["start_indices"].append(0)
        flat["end_indices"].append(0)
        for token, row in zip(prompt[1 : len(prompt) - self.extra], score.distribution, strict=False):
            best = row.argsort()[::-1][: params.prompt_logprobs]
            flat["start_indices"].append(len(flat["token_ids"]))
            flat["token_ids"] += [token, *best.tolist()]
            flat["logprobs"] += [float(row[token]), *row[best].tolist()]
            flat["ranks"] += [int((row >= row[token]).sum()), *range(1, len(best) + 1)]
            flat["end_indices"].append(len(flat["token_ids"]))
        made = record(self.surface["fields"]["FlatLogprobs"], **flat)
        return _Sized(made, len(flat["start_indices"]))


class _Sized:
    """`len` on top of a record: FlatLogprobs is a sequence too."""

    def __init__(self, made: Any, size: int) -> None:
        self._made, self._size = made, size

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


def _ends_in(fake: FakeSession, stop: tuple[str, ...], tokens: list[int]) -> bool:
    return bool(stop) and fake._stops(stop, tokens)

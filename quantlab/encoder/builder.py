"""model.onnx -> a TensorRT plan, through the Python API that TensorRT and TensorRT-RTX share.

    TensorRT       builds for the GPU at hand, and tries its kernels there.
    TensorRT-RTX   builds for compute capabilities that are named, on any machine; its kernels are compiled where it
                   runs. It has no 9.0 (H100, H200).

Every network here is strongly typed: the precision is what the graph says. TensorRT 11 knows nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from quantlab.errors import BadInput, NoAccess, StageFailed

MODULES: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Target -> names of its module; the bindings' own where NVIDIA's small package around them is not installed."""
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")


@dataclass(frozen=True, slots=True)
class Built:
    """A plan and what its making told."""

    plan: bytes
    seconds: float
    weights_bytes: int | None
    """The builder's own "Total Weights Memory"; None where it does not say."""
    version: str
    warnings: tuple[str, ...]


def sdk(target: str) -> Any:
    """The module of a target.

    Raises:
        NoAccess: it is not installed in this Python.
    """
    for name in MODULES[target]:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    cure = "`quantlab engines setup rtx` installs it (proprietary licence)." if target == "rtx" else _TENSORRT
    raise NoAccess(f"{MODULES[target][0]} is not installed in this Python.", place=f"target {target}", cure=cure)


_TENSORRT = "Install tensorrt on a machine with an NVIDIA GPU, or take --target onnx or rtx."


def build(trt: Any, model: Path, batches: tuple[int, int, int], capability: str | None = None) -> Built:
    """Build a plan.

    Args:
        trt: see `sdk`.
        model: the ONNX file; its data file lies beside it.
        batches: smallest, best served and largest number of pictures.
        capability: "8.9" for TensorRT-RTX; None: the GPU at hand.

    Raises:
        StageFailed: the parser or the builder refuses; its words are in the text.
        BadInput: it knows no such compute capability.
    """
    log, began = logger(trt), time.perf_counter()
    builder = trt.Builder(log)
    network = builder.create_network(_strong(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        said = "; ".join(parser.get_error(at).desc() for at in range(parser.num_errors))
        raise StageFailed(f"its parser refuses the graph: {said}", place=str(model))
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, batches))
    if capability is not None:
        _for(trt, config, capability)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise StageFailed(f"no plan was built: {' / '.join(log.errors[:2]) or 'no reason was given'}", place=str(model))
    size = _WEIGHTS.search("\n".join(log.lines))
    return Built(
        plan=bytes(made),
        seconds=time.perf_counter() - began,
        weights_bytes=int(size[1]) if size else None,
        version=str(trt.__version__),
        warnings=tuple(dict.fromkeys(log.warnings)),
    )


def logger(trt: Any) -> Any:
    """A log of TensorRT that keeps its lines, errors and warnings; its class can be made only once there is a base."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append(text)
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(text)
            if severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(text)

    return Log()


def _strong(trt: Any) -> int:
    """The flag of a strongly typed network; a version that has no such flag any more has no other network either."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _profile(builder: Any, network: Any, batches: Sequence[int]) -> Any:
    profile = builder.create_optimization_profile()
    for at in range(network.num_inputs):
        given = network.get_input(at)
        rest = tuple(given.shape)[1:]
        profile.set_shape(given.name, *((batch, *rest) for batch in batches))
    return profile


def _for(trt: Any, config: Any, capability: str) -> None:
    word = f"SM{capability.replace('.', '')}"
    known = getattr(getattr(trt, "ComputeCapability", None), word, None)
    if known is None:
        raise BadInput(f"this builder knows no compute capability {capability}.", place="--sm")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known, 0)

"""An ONNX model while it is written: the graph in memory, every weight at once in model.onnx.data.

ONNX keeps a model in one protobuf message, which may not exceed 2 GB, and lets the tensors' bytes lie in a second file.
So each weight goes to the disk as it comes and only its place is kept: a model of 3B is written with the memory of one
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

MODEL, DATA = "model.onnx", "model.onnx.data"
MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
OPSET, IR = 21, 10
"""Opset 21 has int4 with one scale a block; the file format of its time."""
ALIGN = 64
"""Bytes, so that a mapped weight can be read with the widest instructions."""
KINDS: dict[str, int] = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "F8_E4M3": TensorProto.FLOAT8E4M3FN,
    "U8": TensorProto.UINT8,
    "I4": TensorProto.INT4,
    "I8": TensorProto.INT8,
    "I64": TensorProto.INT64,
}
"""Type as safetensors says it -> ONNX's number for it."""


class OnnxFile:
    """model.onnx and model.onnx.data in `folder`, being written. A context manager: the data file is open inside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: list[Any] = []
        self._tensors: dict[str, Any] = {}

    def __enter__(self) -> OnnxFile:
        self._data = (self._folder / DATA).open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._data.close()

    def weight(self, name: str, kind: str, bits: np.ndarray, shape: Sequence[int] | None = None) -> str:
        """Write a weight to the data file; returns its name.

        Args:
            name: unique in the graph.
            kind: key of KINDS.
            bits: what lies in memory, in order.
            shape: where it is not that of `bits` (two int4 lie in a byte).
        """
        self._data.write(b"\0" * (-self._data.tell() % ALIGN))
        tensor = TensorProto(name=name, data_type=KINDS[kind], dims=bits.shape if shape is None else shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", self._data.tell()), ("length", bits.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(np.ascontiguousarray(bits).data)
        self._tensors[name] = tensor
        return name

    def constant(self, name: str, kind: str, values: Any, shape: Sequence[int] = ()) -> str:
        """A few numbers that stay inside model.onnx. Writing the same name again changes nothing."""
        flat = [values] if np.isscalar(values) else list(values)
        self._tensors.setdefault(name, helper.make_tensor(name, KINDS[kind], shape, flat))
        return name

    def node(self, operator: str, inputs: Sequence[str], name: str, outputs: Sequence[str] = (), **how: Any) -> str:
        """Add an operator; returns the name of its first output, which is `name` unless `outputs` are given."""
        outputs = list(outputs) or [name]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=f"{name}/{operator}", **how))
        return outputs[0]

    def save(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Write model.onnx.

        Args:
            inputs: value infos of the graph's inputs.
            outputs: value infos of its outputs.
        """
        graph = helper.make_graph(self._nodes, "quantlab", inputs, outputs, list(self._tensors.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="quantlab")
        onnx.save(model, self._folder / MODEL)


def value(name: str, kind: str, shape: Sequence[int | str]) -> Any:
    """An input or output of the graph; sizes that are open have a name."""
    return helper.make_tensor_value_info(name, KINDS[kind], shape)

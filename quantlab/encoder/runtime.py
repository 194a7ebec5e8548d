"""The graph in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quantlab.encoder.shape import IDS, MASK, PIXELS
from quantlab.errors import Broken, NoAccess

UNFUSED = {"fp8": {"session.disable_quant_qdq": "1"}}
"""FP8 is emulated: Q and DQ stay where they are. ONNX Runtime has no product of FP8 on a CPU."""
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxTower:
    """A model that computes.

    Raises:
        NoAccess: ONNX Runtime is not installed.
        Broken: it does not take the model.
    """

    def __init__(self, model: Path, precision: str, threads: int) -> None:
        runtime = imported()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        for key, word in UNFUSED.get(precision, {}).items():
            options.add_session_config_entry(key, word)
        try:
            self._session: Any = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except RuntimeError as error:  # all of ONNX Runtime's own errors are of this class
            raise Broken(f"ONNX Runtime does not take it: {str(error)[:400]}", place=str(model)) from None
        self._dtype = DTYPES[self._session.get_inputs()[0].type]

    def __call__(self, pixels: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """float32 [batch, tiles, tokens, out]."""
        given = {PIXELS: pixels.astype(self._dtype), IDS: ids, MASK: mask}
        (states,) = self._session.run(None, given)
        return np.asarray(states, dtype=np.float32)


def imported() -> Any:
    """The module. Raises: NoAccess."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        cure = "`quantlab engines setup ortgenai` makes an environment with it; it is then used by itself."
        raise NoAccess("ONNX Runtime is not installed in this Python.", place="build", cure=cure) from None
    return onnxruntime

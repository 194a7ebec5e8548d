"""A plan on the GPU, with torch's memory and stream."""

from __future__ import annotations

from typing import Any

import torch

from quantlab.encoder.builder import logger
from quantlab.encoder.shape import IDS, MASK, PIXELS, STATES
from quantlab.errors import StageFailed

TYPES = {"HALF": torch.float16, "BF16": torch.bfloat16, "FLOAT": torch.float32}
"""TensorRT's word for a type -> torch's."""


class OpenedPlan:
    """A plan that computes.

    Raises:
        StageFailed: this GPU, driver or version does not take the plan.
    """

    def __init__(self, trt: Any, plan: bytes) -> None:
        self._log = logger(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise StageFailed(f"the plan cannot be opened: {' / '.join(self._log.errors[:2])}", place="plan")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise StageFailed(f"the plan cannot be started: {' / '.join(self._log.errors[:2])}", place="plan")
        self.dtype = TYPES[self._engine.get_tensor_dtype(PIXELS).name]

    def __call__(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[batch, tiles, tokens, out] on the GPU, queued on torch's current stream.

        Args:
            pixels: in the plan's `dtype`; ids, mask: int64. All on the GPU and contiguous.
        """
        for name, given in ((PIXELS, pixels), (IDS, ids), (MASK, mask)):
            self._context.set_input_shape(name, tuple(given.shape))
            self._context.set_tensor_address(name, given.data_ptr())
        states = torch.empty(tuple(self._context.get_tensor_shape(STATES)), dtype=self.dtype, device=pixels.device)
        self._context.set_tensor_address(STATES, states.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise StageFailed(f"the plan failed: {' / '.join(self._log.errors[-2:])}", place="plan")
        return states

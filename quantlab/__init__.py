"""quantlab: which precision to ship on this GPU, what it costs, what it gains, and how sure we are.

    import quantlab as ql
    run = ql.run("smollm2-135m", ["fp8", "int4_awq"])     # the main job; a result that shows itself in a notebook
    ql.ledger().frame()                                   # everything measured so far, as a pandas frame
    ql.recommend("3b", gpu="h100")                        # which precision to ship; `ql.plan(..., gpu=)`: will it fit

Names are looked up on first use: `import quantlab` loads no SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACE = {
    "run": "quantlab.face:run",
    "plan": "quantlab.face:plan",
    "plan_gpu": "quantlab.advice:plan_gpu",
    "recommend": "quantlab.advice:recommend",
    "ledger": "quantlab.face:ledger",
    "last": "quantlab.face:last",
    "cells": "quantlab.face:cells",
    "builtin": "quantlab.face:builtin",
    "pictures": "quantlab.pictures:pictures",
    "recipe": "quantlab.catalog:recipe",
    "suite": "quantlab.catalog:suite",
    "model": "quantlab.catalog:model",
}
"""Public name -> "module:attribute"."""

__all__ = ["__version__", *_FACE]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _FACE[name].split(":")
    except KeyError:
        raise AttributeError(f"module 'quantlab' has no attribute {name!r}") from None
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)

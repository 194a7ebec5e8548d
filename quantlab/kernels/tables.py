"""The child: answers questions on standard input from NVIDIA's tables of measured kernels. Runs under any Python that
has `aiconfigurator-core`; nothing of quantlab is imported, so it is started by its path.

    python quantlab/kernels/tables.py < questions.json > answers.json

Only what was measured is asked for (`SILICON`): the package's other modes extrapolate, and call INT4 on Hopper up to
2.2 times too fast. `fp8_static` is what ModelOpt exports (one scale a tensor, known beforehand); plain `fp8` would add
a kernel of 7 microseconds to every product. The model is written as a Llama config of our own dimensions, because a
name would be looked up on the network.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from typing import Any

WIDTHS = {"bf16": "bfloat16", "fp8": "fp8_static"}
TIMED = ("silicon", "estimated")
STRIDE = 32
"""Every 32nd step is summed and the others lie between."""


def main() -> None:
    questions = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the package prints warnings where the answer belongs
    version = importlib.metadata.version("aiconfigurator-core")
    json.dump({"version": version, "answers": [answer(each) for each in questions]}, answers)
    answers.close()


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """A time for each batch, or one sentence why the tables have none."""
    from aiconfigurator_core.sdk import common, errors
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.config import ModelConfig
    from aiconfigurator_core.sdk.models import get_model
    from aiconfigurator_core.sdk.perf_database import get_database_view

    uncovered = (errors.PerfDataNotAvailableError, errors.InterpolationDataNotAvailableError)
    cache = "fp8" if question["kv_cache"] == "fp8" else "bfloat16"
    attention = cache if question["engine"] == "trtllm" else "bfloat16"  # vLLM on Hopper computes it in 16 bit
    try:
        tables = get_database_view(question["system"], question["engine"], "current", database_mode="SILICON")
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "config.json"), "w") as file:
                json.dump(question["config"], file)
            widths = ModelConfig(
                tp_size=question["tp"],
                gemm_quant_mode=common.GEMMQuantMode[WIDTHS[question["format"]]],
                kvcache_quant_mode=common.KVCacheQuantMode[cache],
                fmha_quant_mode=common.FMHAQuantMode[attention],
            )
            model = get_model(folder, widths, question["engine"])
        backend = get_backend(question["engine"])
        return {"cells": {batch: cell(backend, model, tables, question, batch) for batch in question["batches"]}}
    except (*uncovered, errors.MissingSystemFlopsError) as error:
        return {"refusal": str(error).strip().splitlines()[0][:200]}


def cell(backend: Any, model: Any, tables: Any, question: dict[str, Any], batch: int) -> dict[str, float]:
    """Seconds to the first token and of a step, and the share of the step in kernels that were timed, or put together
    of timed ones: `fp8_static` is `fp8` without its second kernel."""
    from aiconfigurator_core.sdk.config import RuntimeConfig

    asked = RuntimeConfig(batch_size=batch, isl=question["isl"], osl=question["osl"])
    found = backend.run_static(model, tables, asked, mode="static", stride=STRIDE)
    times, sources = found.get_generation_latency_dict(), found.get_generation_source_dict()
    measured = sum(time for name, time in times.items() if sources.get(name) in TIMED)
    result = found.get_result_dict()
    return {
        "first_seconds": result["ttft"] / 1e3,
        "step_seconds": result["tpot"] / 1e3,
        "measured_share": measured / (sum(times.values()) or 1.0),
    }


if __name__ == "__main__":
    main()

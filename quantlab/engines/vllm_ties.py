"""Tied output heads of FP8 exports in vLLM 0.24: one mend, for a session in this process and for a server's processes.

vLLM 0.24 gives a head that ModelOpt excludes an UnquantizedLinearMethod, which cannot be tied: Llama 3.2 1B and 3B end
in NotImplementedError (seen on an H100). A session calls the mend itself. A server builds its model in processes of
vLLM's own, and these run what an installed package announces as a general plugin, before they build anything. So this
very file is laid into a folder beside a package's metadata, and the folder onto the server's PYTHONPATH; nothing is
installed, and the checkpoint stays as it was scored. That is why this file imports the standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

PLUGIN, GROUP = "quantlab_tied_heads", "vllm.general_plugins"
NAMED = "VLLM_PLUGINS"
"""Where it is set, vLLM runs the plugins that it names and no others."""


def is_needed(form: str, shape: Mapping[str, Any]) -> bool:
    """FP8 with a tied head. `shape`: config.json."""
    return form.startswith("fp8") and bool(shape.get("tie_word_embeddings"))


def let_tied_heads_load() -> None:
    """Tie a 16-bit output head to the embedding in ModelOpt's FP8 exports.

    Sharing the parameter is all that vLLM's method for embeddings does too, and changes no number. A vLLM that brings
    its own is left alone.
    """
    method: Any = import_module("vllm.model_executor.layers.linear").UnquantizedLinearMethod
    base: Any = import_module("vllm.model_executor.layers.quantization.base_config").QuantizeMethodBase
    if method.tie_weights is not base.tie_weights:
        return

    def tie_weights(self: Any, layer: Any, embed_tokens: Any) -> Any:
        layer.weight = embed_tokens.weight
        return layer

    method.tie_weights = tie_weights


def plugin(folder: Path) -> dict[str, str]:
    """Lay the mend into `folder` as a plugin of vLLM; the variables that a server then needs."""
    about = folder / f"{PLUGIN}-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (folder / f"{PLUGIN}.py").write_bytes(Path(__file__).read_bytes())
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 1\n", encoding="utf-8")
    entry = f"[{GROUP}]\n{PLUGIN} = {PLUGIN}:{let_tied_heads_load.__name__}\n"
    (about / "entry_points.txt").write_text(entry, encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    named = os.environ.get(NAMED)
    return {"PYTHONPATH": path} | ({NAMED: f"{named},{PLUGIN}"} if named is not None else {})

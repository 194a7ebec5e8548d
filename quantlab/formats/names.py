"""What a tensor is called on disk and what its layer is called in the model.

For most models the two are the same. Llama 3.2 Vision's files keep the names of 2024 (`language_model.model.layers.0`),
its class in transformers was rebuilt since (`model.language_model.layers.0`), and transformers renames in silence while
it loads and saves. Whoever holds a file against a model needs the same map. Names that are the model's own stay as they
are.

Nothing here imports an SDK.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantlab import weights

MLLAMA = "MllamaForConditionalGeneration"
BLOCKS = {"LlamaForCausalLM": "model.layers", MLLAMA: "model.language_model.layers"}
"""Architecture -> its decoder blocks, where they can be taken one at a time."""
INSIDE: dict[str, tuple[tuple[str, str], ...]] = {
    MLLAMA: (
        (r"^language_model\.lm_head", "lm_head"),
        (r"^language_model\.model", "model.language_model"),
        (r"^(vision_model|multi_modal_projector)", r"model.\1"),
    ),
}
"""Architecture -> (pattern on disk, name in the model), in order."""
SIGHT = re.compile(r"(^|\.)(vision_model|multi_modal_projector)(\.|$)")
"""Modules that turn an image into what the language model looks at."""


def architecture(config: Mapping[str, Any]) -> str:
    """`architectures[0]` of a config.json, or "" where it names none."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def of(folder: str | Path) -> str:
    """The architecture of a folder, "" where its config.json is missing or names none."""
    file = Path(folder) / "config.json"
    return architecture(weights.config(folder)) if file.is_file() else ""


def sees(folder: str | Path) -> bool:
    """The model of this folder takes images."""
    file = Path(folder) / "config.json"
    return file.is_file() and "vision_config" in weights.config(folder)


def inside(name: str, architecture: str) -> str:
    """The model's name of a tensor, layer or wildcard that a file of `architecture` names."""
    for pattern, replacement in INSIDE.get(architecture, ()):
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            return renamed
    return name


def headers(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The safetensors headers of a folder under the model's names; "stored" keeps the name in the file.

    Raises:
        BadInput, Broken: as quantlab.weights.headers.
    """
    named = weights.architecture(folder)
    return {inside(name, named): one | {"stored": name} for name, one in weights.headers(folder).items()}


def kind(layer: str) -> str:
    """The last two words of a layer's name: "self_attn.o_proj" and "cross_attn.o_proj" are two kinds of layer."""
    return ".".join(layer.rsplit(".", 2)[-2:])

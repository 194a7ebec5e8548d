"""A checkpoint that transformers 5 wrote, made readable for transformers 4, without touching it.

TensorRT-LLM 1.2.1 pins transformers 4.57.3, and quantlab exports with transformers 5. The weights are the same; three
small things in the JSON files are not, and only one of them is noticed:

    rope_parameters    transformers 5 keeps base and scaling of the rotary embedding in one object and writes neither
                       `rope_theta` nor `rope_scaling`. An older reader takes 10000 and no scaling (Llama 3: 500000, and
                       scaled to 128k): it loads without a word and writes nonsense. So both spellings are written.
    dtype              was `torch_dtype`. Both are written.
    tokenizer_class    "TokenizersBackend" is unknown to transformers 4, which then loads no tokenizer at all;
                       "PreTrainedTokenizerFast" means the same tokenizer.json to both.

The folder that is made holds these files anew and links to all others.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from quantlab import disk, weights

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"


def as_transformers4(source: Path, into: Path) -> Path:
    """Fill the folder `into` with `source` as transformers 4 reads it; what is there already is brought up to date.

    Links are relative, so that a ledger may be moved as a whole. Safe to do twice at once.

    Returns:
        `into`.

    Raises:
        BadInput, Broken: `source` has no readable config.json.
        LedgerProblem: `into` cannot be written.
    """
    written = {CONFIG: _both_spellings(weights.config(source))}
    if (source / TOKENIZER).is_file():
        written[TOKENIZER] = _tokenizer(json.loads((source / TOKENIZER).read_text(encoding="utf-8")))
    for name, content in written.items():
        disk.write(into / name, json.dumps(content, indent=2).encode())
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in written:
            _link(file, into / file.name)
    return into


def _both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    config = dict(config)
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = _both_spellings(config["text_config"])
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
            config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return config


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    config = dict(config)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config


def _link(file: Path, place: Path) -> None:
    """A symbolic link at `place`, made under another name and renamed, so that no reader finds it missing."""
    target = os.path.relpath(file.resolve(), place.parent.resolve())
    if place.is_symlink() and os.readlink(place) == target:
        return
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    with disk.trouble(place.parent):
        temporary.symlink_to(target)
        os.replace(temporary, place)

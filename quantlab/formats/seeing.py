"""The image processor beside the weights: a picture -> the numbers that the vision tower takes.

Always the variant on Pillow: the one on torchvision resizes a little differently, and which of the two transformers
takes by itself depends on what happens to be installed. Baseline and candidate must see the same pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantlab.errors import Broken


def image_processor(folder: str | Path) -> Any:
    """A MllamaImageProcessorPil. Raises Broken when the folder has none."""
    from transformers import MllamaImageProcessorPil

    try:
        return MllamaImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        cure = "Put preprocessor_config.json or processor_config.json of the original model there."
        raise Broken(f"its image processor cannot be loaded ({error}).", place=str(folder), cure=cure) from None


def processor(folder: str | Path) -> Any:
    """A MllamaProcessor: pictures and text together -> everything the model takes. Raises Broken as
    `image_processor`."""
    from transformers import AutoTokenizer, MllamaProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return MllamaProcessor(image_processor=image_processor(folder), tokenizer=tokenizer)


def spell(text: str, image_token: str, bos: str | None) -> str:
    """The prompt as the model was trained on it: a picture at the very start comes before BOS.

    A text that has its BOS already (a chat template wrote it) stays as it is. The same rule as transformers' own
    `build_string_from_input`.
    """
    if not bos or bos in text:
        return text
    rest = text
    while rest.startswith(image_token):
        rest = rest[len(image_token) :]
    return text[: len(text) - len(rest)] + bos + rest

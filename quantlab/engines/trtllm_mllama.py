"""TensorRT-LLM's own flow for Llama 3.2 Vision, as commands: the only way in which it sees pictures, and it ends with
1.2.x.

Written from the documentation and examples of 1.2.1, **run nowhere by us**; NVIDIA's issue 10615 (January 2026, closed)
says that the documented 11B steps failed at trtllm-build in a later container. `tests/contracts` holds every flag of
trtllm-build that 1.2.1 knows, and a test these commands against it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import msgspec

from quantlab.errors import Refused

EXAMPLES = "examples/models/core"
PRECISIONS = ("bf16", "fp8")
ENCODER_TOKENS = 6404
"""Of one picture, four tiles of 560 pixels: 11B and 90B Instruct. The base models have 4,100 (448 pixels)."""
BATCH, SEQUENCE, STEP = 4, 2048, 4096
NOT_RUN = "not run here: from the documentation of TensorRT-LLM 1.2.1, whose issue 10615 says the 11B build failed."


class LegacyFlow(msgspec.Struct, frozen=True, kw_only=True):
    """Commands in their order, in a checkout of TensorRT-LLM 1.2.1. Of the Python scripts the documentation names these
    arguments; only trtllm-build's are held against the contract."""

    model: str
    precision: str
    state: str = NOT_RUN
    commands: tuple[tuple[str, ...], ...]

    def lines(self) -> Iterator[str]:
        """For a terminal; each command can be copied."""
        yield f"# {self.state}"
        for command in self.commands:
            yield shlex.join(command)


def legacy(model: str, precision: str, encoder_tokens: int = ENCODER_TOKENS, tensor_parallel: int = 1) -> LegacyFlow:
    """The commands for a folder or hub id of Llama 3.2 Vision.

    Args:
        model: what Transformers loads.
        precision: of the decoder; the encoder is always 16 bit there.
        encoder_tokens: of one picture: tiles x tokens of a tile.

    Raises:
        Refused: a precision that the flow does not list.
    """
    if precision not in PRECISIONS:
        cure = "Take --precision bf16 or fp8; int4_awq is scored by engine torch."
        raise Refused(f"TensorRT-LLM lists no {precision} for Mllama.", place="--part text", cure=cure)
    vision = (
        *("python", f"{EXAMPLES}/multimodal/build_multimodal_engine.py"),
        *("--model_type", "mllama", "--model_path", model, "--output_dir", "engines/vision"),
        *("--max_batch_size", str(BATCH)),
    )
    run = (
        *("python", f"{EXAMPLES}/multimodal/run.py", "--engine_dir", "engines", "--hf_model_dir", model),
        *("--visual_engine_name", "model.engine", "--image_path", "picture.png"),
        *("--input_text", "<|image|><|begin_of_text|>What is in this picture?", "--max_new_tokens", "50"),
    )
    made = _checkpoint(model, precision, tensor_parallel)
    return LegacyFlow(model=model, precision=precision, commands=(vision, made, _engine(encoder_tokens), run))


def _checkpoint(model: str, precision: str, tensor_parallel: int) -> tuple[str, ...]:
    """Weights in TensorRT-LLM's own layout, which trtllm-build takes; it takes no unified checkpoint of ModelOpt."""
    if precision == "fp8":
        return (
            *("python", "examples/quantization/quantize.py", "--model_dir", model, "--output_dir", "checkpoint"),
            *("--dtype", "bfloat16", "--qformat", "fp8", "--kv_cache_dtype", "fp8", "--tp_size", str(tensor_parallel)),
            *("--calib_dataset", "scienceqa", "--calib_size", "512"),
        )
    return (
        *("python", f"{EXAMPLES}/mllama/convert_checkpoint.py", "--model_dir", model, "--output_dir", "checkpoint"),
        *("--dtype", "bfloat16", "--tp_size", str(tensor_parallel)),
    )


def _engine(encoder_tokens: int) -> tuple[str, ...]:
    sizes = {
        "--checkpoint_dir": "checkpoint",
        "--output_dir": "engines/llm",
        "--max_batch_size": BATCH,
        "--max_seq_len": SEQUENCE,
        "--max_num_tokens": STEP,
        "--max_encoder_input_len": encoder_tokens,
    }
    return ("trtllm-build", *(str(word) for pair in sizes.items() for word in pair))

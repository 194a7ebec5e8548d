"""A checkpoint as a folder for ONNX Runtime GenAI: model.onnx, model.onnx.data, genai_config.json and the tokenizer.

The folder appears under its name when it is whole; a kill in the middle leaves nothing that could be taken for it. It
is an ordinary model of onnxruntime-genai: any program of that SDK opens it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from quantlab import weights
from quantlab.errors import BadInput, Refused
from quantlab.formats.declared import Quantization, read_quantization
from quantlab.formats.onnx_file import DATA, MODEL, OnnxFile
from quantlab.formats.onnx_linear import Linears
from quantlab.formats.onnx_llama import Sizes, sizes, write_graph
from quantlab.formats.onnx_model import CONFIG, PROTOCOL, RECORD, known, placeless, usable
from quantlab.records import OnnxJob, OnnxModel, encode

ALGORITHMS = (None, "FP8", "W4A16_AWQ", "W4A16")
"""Values of quant_algo that the graph computes."""
DTYPES = {
    "cpu": ("float32",),
    "cuda": ("float16", "bfloat16"),
    "dml": ("float16",),
    "trt-rtx": ("float16", "bfloat16"),
}
"""Provider -> types of arithmetic for which it has GroupQueryAttention, the best first (the SDK's model builder)."""
PROVIDERS: dict[str, dict[str, dict[str, str]]] = {
    "cpu": {},
    "cuda": {"cuda": {"enable_cuda_graph": "0"}},
    "dml": {"dml": {"enable_graph_capture": "1"}},
    "trt-rtx": {"NvTensorRtRtx": {"enable_cuda_graph": "1"}},
}
"""Provider -> provider_options of genai_config.json, as the SDK's model builder writes them."""
UNFUSED = {"session.disable_quant_qdq": "1"}
"""For emulated FP8: Q and DQ stay where they are, and the weights' DQ is folded when the model is loaded."""
_OWN = ("config.json", "hf_quant_config.json", "quant_cfg.json")
_LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")


def export(job: OnnxJob) -> OnnxModel:
    """Write the model that `job` asks for; one that is there already, whole and the same, is taken as it is.

    Raises:
        BadInput: the source is no checkpoint, or the target is something else's folder.
        Refused: a model, a format or a provider that the graph does not compute.
        Broken: a checkpoint that is not whole.
    """
    source, into = Path(job.source), Path(job.into)
    if (found := usable(into, job)) is not None:
        return found
    if known(into) is None and into.exists() and any(into.iterdir()):
        raise BadInput("there is something already.", place=job.into, cure="Name a folder that does not exist.")
    quantization, shape = read_quantization(source), sizes(source)
    require_known(quantization, job)
    with weights.written_whole(into) as folder:
        with OnnxFile(folder) as file:
            linears = write_graph(source, file, quantization, job, shape)
        (folder / CONFIG).write_text(json.dumps(_config(source, shape, job, quantization), indent=1), encoding="utf-8")
        _copy_small(source, folder)
        record = OnnxModel(
            job=placeless(job),
            protocol=PROTOCOL,
            layers=shape.layers,
            quantized=linears.quantized,
            block=linears.block,
            rescaled=linears.rescaled,
            files={name: (folder / name).stat().st_size for name in (MODEL, DATA)},
            notes=tuple(_notes(job, quantization, linears)),
        )
        (folder / RECORD).write_bytes(msgspec.json.format(encode(record), indent=1))
    return record


def require_known(quantization: Quantization, job: OnnxJob) -> None:
    """Raises: Refused, where this provider does not compute this format or type."""
    if job.dtype not in DTYPES[job.provider]:
        can = " or ".join(DTYPES[job.provider])
        raise Refused(f"ONNX Runtime's {job.provider} computes {can} here.", place=f"dtype {job.dtype}")
    if quantization.algorithm not in ALGORITHMS:
        raise Refused(f"the graph has no {quantization.algorithm}.", place=job.source, cure="Use engine torch.")
    if quantization.kv_cache is not None:
        raise Refused("the graph has no FP8 key/value cache.", place=job.source, cure="Calibrate without kv_cache.")
    if quantization.algorithm == "FP8" and job.provider != "cpu":
        raise Refused(
            "FP8 is emulated on the CPU only.", place=f"provider {job.provider}", cure="Use engine trtllm or vllm."
        )


def _config(source: Path, shape: Sizes, job: OnnxJob, quantization: Quantization) -> dict[str, Any]:
    """genai_config.json, field for field as the SDK's model builder writes it."""
    own = weights.config(source)
    generation = source / "generation_config.json"
    words = {**own, **(json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {})}
    ends = words.get("eos_token_id")
    first_end = ends[0] if isinstance(ends, list) and ends else ends
    options: dict[str, Any] = {"log_id": "quantlab", "provider_options": []}
    options |= UNFUSED if quantization.algorithm == "FP8" else {}
    options["provider_options"] = [{name: given} for name, given in PROVIDERS[job.provider].items()]
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    inputs |= {"position_ids": "position_ids"} if job.provider == "dml" else {}
    inputs |= {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    return {
        "model": {
            "type": "llama",
            "bos_token_id": words.get("bos_token_id") or 0,
            "eos_token_id": ends if ends is not None else 0,
            "pad_token_id": words.get("pad_token_id") or first_end or 0,
            "context_length": shape.context,
            "vocab_size": shape.vocabulary,
            "decoder": {
                "session_options": options,
                "filename": MODEL,
                "head_size": shape.head,
                "hidden_size": shape.hidden,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.kv_heads,
                "num_hidden_layers": shape.layers,
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": shape.context,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
        },
    }


def _copy_small(source: Path, folder: Path) -> None:
    """Tokenizer, generation defaults and licence; config.json, too, without a word of the quantization."""
    small = [source / name for name in weights.IDENTITY if name not in _OWN]
    for file in (*small, *(file for word in _LICENCES for file in source.glob(word))):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _notes(job: OnnxJob, quantization: Quantization, linears: Linears) -> list[str]:
    """Sentences for the report: what is not as in the checkpoint."""
    notes = []
    int4 = (quantization.algorithm or "").startswith("W4")
    if int4 and job.dtype == "float16":
        notes.append("scales rounded to float16 (up to 0.05 % each).")
    if int4 and job.dtype == "bfloat16":
        notes.append("scales rounded to bfloat16 (up to 0.4 % each).")
    if job.head != "keep":
        inputs = " and takes int8 inputs" if (job.head, job.provider) == ("int8", "cpu") else ""
        notes.append(f"the output head is rounded to {job.head}, too, without calibration{inputs} (--head {job.head}).")
    if int4 and job.activations == "int8":
        notes.append("inputs of int4 layers are rounded to int8 in the product (--activations keep is exact).")
    if quantization.algorithm == "FP8":
        notes.append(f"FP8 emulated: {linears.quantized} layers with true E4M3 rounding, products in {job.dtype}.")
    return notes

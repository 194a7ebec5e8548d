"""Real, tiny checkpoints that every test may share: a Llama, and what ModelOpt itself exports from it.

Two layers, grouped-query attention, tied embeddings, random weights with the spread of a trained model. Each is made
once a session, in seconds, by the SDKs that users have.
"""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: threads that spin while they wait make small models 10 times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell's background job ignores Ctrl-C, and so would everything that these tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
GROUP = 32


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first. A file stays on one worker, and a long one that begins last keeps the others idle (xdist's own
    order, most tests first, begins with the quick ones: `--no-loadscope-reorder`)."""
    items.sort(key=lambda item: not item.path.name.startswith("test_pipeline"))


@dataclass(frozen=True)
class Export:
    """A ModelOpt export, and what the calibrated model computed before it was written."""

    folder: Path
    live: dict[str, Any]
    """Layer name -> (input, output) of the fake-quantized model on `ids`, float32."""
    logits: Any
    ids: Any
    weights: dict[str, Any]
    """Layer name -> weight of the source model, float32."""


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    raw.train_from_iterator([(ROOT / "LICENSE").read_text(encoding="utf-8")], trainer)
    chat = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", chat_template=chat)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama in bfloat16 safetensors, with a real byte-pair tokenizer of 512 words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _tokenizer(folder)
    return folder


def _grouped(preset: dict[str, Any]) -> dict[str, Any]:
    """The preset with groups that divide the tiny model's widths."""
    preset = copy.deepcopy(preset)
    for entry in preset["quant_cfg"]:
        cfg = entry.get("cfg") or {}
        for one in cfg if isinstance(cfg, list) else [cfg]:
            blocks = one.get("block_sizes")
            if blocks and -1 in blocks:
                blocks[-1] = GROUP
    return preset


def _export(source: Path, folder: Path, preset: dict[str, Any], before: Callable[[Any], None] | None = None) -> Export:
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    weights = {name: module.weight.detach().clone() for name, module in linear.items() if name != "lm_head"}
    ids = torch.randint(2, 512, (4, 48), generator=torch.Generator().manual_seed(1))
    model = mtq.quantize(model, preset, forward_loop=lambda m: m(ids))
    if before is not None:
        before(model)
    live: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, made: live.update({name: (given[0].clone(), made.clone())})

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in weights]
    with torch.inference_mode():
        logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    export_hf_checkpoint(model, export_dir=folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return Export(folder, live, logits, ids, weights)


def _resmooth(model: Any) -> None:
    """Do to the live model what the export does to AWQ's scales; without it the two are different models."""
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers

    requantize_resmooth_fused_llm_layers(model)


@pytest.fixture(scope="session")
def fp8_export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    import modelopt.torch.quantization as mtq

    return _export(tiny_model, tmp_path_factory.mktemp("fp8"), mtq.FP8_DEFAULT_CFG)


@pytest.fixture(scope="session")
def fp8_kv_export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    import modelopt.torch.quantization as mtq

    preset = copy.deepcopy(mtq.FP8_DEFAULT_CFG)
    preset["quant_cfg"] += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])[-1:]
    return _export(tiny_model, tmp_path_factory.mktemp("fp8kv"), preset)


@pytest.fixture(scope="session")
def awq_export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    import modelopt.torch.quantization as mtq

    return _export(tiny_model, tmp_path_factory.mktemp("awq"), _grouped(mtq.INT4_AWQ_CFG), _resmooth)


@pytest.fixture(scope="session")
def int4_export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    import modelopt.torch.quantization as mtq

    preset = _grouped(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
    return _export(tiny_model, tmp_path_factory.mktemp("int4"), preset)


@pytest.fixture(scope="session")
def rowwise_export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    import modelopt.torch.quantization as mtq

    return _export(tiny_model, tmp_path_factory.mktemp("rowwise"), mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG)


@pytest.fixture(scope="session")
def smoothquant_export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    import modelopt.torch.quantization as mtq

    return _export(tiny_model, tmp_path_factory.mktemp("sq"), mtq.INT8_SMOOTHQUANT_CFG, _resmooth)


@pytest.fixture(scope="session")
def w4a8_export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    import modelopt.torch.quantization as mtq

    return _export(tiny_model, tmp_path_factory.mktemp("w4a8"), _grouped(mtq.W4A8_AWQ_BETA_CFG), _resmooth)


@pytest.fixture(scope="session")
def nvfp4_export(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    import modelopt.torch.quantization as mtq

    from quantlab.calibrate.quantizers import round_blocks_without_gpu

    def before(model: Any) -> None:
        round_blocks_without_gpu(model)
        _resmooth(model)

    return _export(tiny_model, tmp_path_factory.mktemp("nvfp4"), mtq.NVFP4_DEFAULT_CFG, before)


@pytest.fixture(scope="session")
def tiny_w4a8(w4a8_export: Export) -> Path:
    """ModelOpt's W4A8-AWQ export of `tiny_model`, in groups of 32."""
    return w4a8_export.folder


@pytest.fixture(scope="session")
def tiny_fp8(fp8_export: Export) -> Path:
    """ModelOpt's FP8 export of `tiny_model`."""
    return fp8_export.folder


@pytest.fixture(scope="session")
def tiny_int4_awq(awq_export: Export) -> Path:
    """ModelOpt's INT4-AWQ export of `tiny_model`, in groups of 32."""
    return awq_export.folder


@pytest.fixture(scope="session")
def tiny_int4(int4_export: Export) -> Path:
    """ModelOpt's round-to-nearest INT4 export of `tiny_model`, in groups of 32."""
    return int4_export.folder

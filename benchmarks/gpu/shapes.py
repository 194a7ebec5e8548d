"""Random-weight checkpoints of the true Llama 3.2 shapes: throughput does not depend on the values of the weights.

    python benchmarks/gpu/shapes.py 3b OUT [--layers 4]      config.json, safetensors and a byte tokenizer in OUT

The tokenizer knows 256 bytes of the 128,256 rows: prompts of a throughput grid are random token ids, so it only has
to exist.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quantlab import catalog
from quantlab.records import Shape


def make(word: str, into: Path, device: str = "cuda", layers: int | None = None) -> Path:
    """Write a model of the catalog's shape `word` with normal(0, 0.02) weights in bf16; `layers` makes it shallower."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = catalog.model(word).shape
    assert shape is not None
    torch.manual_seed(0)
    config = LlamaConfig(**fields(shape, layers))
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(into, safe_serialization=True)
    tokenizer(into)
    return into


def fields(shape: Shape, layers: int | None) -> dict[str, object]:
    """LlamaConfig fields with Llama 3's scaled RoPE."""
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": layers or shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }


def tokenizer(into: Path) -> None:
    """A byte-level tokenizer without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("word", help="a model of the catalog")
    parser.add_argument("into", type=Path)
    parser.add_argument("--layers", type=int, help="fewer than the model's own")
    words = parser.parse_args()
    make(words.word, words.into, layers=words.layers)

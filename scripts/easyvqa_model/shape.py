"""Configuration, tokenizer, processor and first weights of a Llama 3.2 Vision with 1.7 million weights.

Everything of the real model that can go wrong is there in small: several tiles a picture, padded patches, global
layers, intermediate features, an image token beyond the output head, gates. Every width is a multiple of 128, for AWQ's
groups.

Initialisation decides whether it learns at all at this width. Gates at their default of zero leave no path from the
picture (tanh 0 = 0); weights of standard deviation 0.02 give uniform attention that stays so. Here a weight has 1 /
sqrt(inputs).
"""

from __future__ import annotations

import math

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

VOCABULARY = 64
TILE, PATCH, WIDTH = 32, 8, 128
SPECIAL = [
    "finetune_right_pad_id",
    "begin_of_text",
    "end_of_text",
    "unk",
    "eot_id",
    "start_header_id",
    "end_header_id",
    "python_tag",
]
MORE = ["question", "answer", ":", "user", "assistant"]
CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c is mapping and c['type']=='image' %}<|image|>"
    "{% elif c is mapping %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% endif %}{% endfor %}"
)
MEAN, SPREAD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
"""Of the three channels, as Llama 3.2 Vision has them."""


def tokenizer(words: set[str]) -> PreTrainedTokenizerFast:
    """A word a token, lower case; `<|image|>` is the one behind the last."""
    tokens = [f"<|{word}|>" for word in SPECIAL]
    tokens = list(dict.fromkeys([*tokens, *sorted(words), *MORE]))
    tokens += [f"<|reserved_special_token_{place}|>" for place in range(VOCABULARY - len(tokens))]
    raw = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="<|unk|>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = [token for token in tokens if token.startswith("<|")]
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*special, "<|image|>"]])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|finetune_right_pad_id|>",
        unk_token="<|unk|>",
        padding_side="right",
        extra_special_tokens={"image_token": "<|image|>"},
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def processor(words: PreTrainedTokenizerFast) -> MllamaProcessor:
    size = {"height": TILE, "width": TILE}
    pictures = MllamaImageProcessorPil(size=size, max_image_tiles=4, image_mean=MEAN, image_std=SPREAD)
    return MllamaProcessor(image_processor=pictures, tokenizer=words, chat_template=CHAT)


def configuration(words: PreTrainedTokenizerFast) -> MllamaConfig:
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    sight = MllamaVisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_global_layers=2,
        attention_heads=4,
        intermediate_size=2 * WIDTH,
        vision_output_dim=3 * WIDTH,
        image_size=TILE,
        patch_size=PATCH,
        max_num_tiles=4,
        intermediate_layers_indices=[1, 3],
        supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )
    text = MllamaTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        cross_attention_layers=[1, 3],
        **ends,
    )
    return MllamaConfig(vision_config=sight, text_config=text, image_token_index=VOCABULARY, **ends)


def fresh(config: MllamaConfig, seed: int) -> MllamaForConditionalGeneration:
    """First weights, from the seed."""
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter)
    return model


def _fill(name: str, parameter: torch.Tensor) -> None:
    last = name.rsplit(".", 1)[-1]
    if last in ("cross_attn_attn_gate", "cross_attn_mlp_gate") or name.endswith("embedding.gate"):
        parameter.fill_(0.5)
    elif last in ("gate_attn", "gate_ffn"):
        parameter.fill_(math.pi / 4)
    elif name.endswith("bias") or "norm" in name or "gate" in last:
        return
    elif "positional_embedding" in name or name.endswith("class_embedding") or "embed_tokens" in name:
        parameter.normal_(0, 0.5)
    elif parameter.dim() >= 2:
        output = name.endswith(("o_proj.weight", "down_proj.weight", "fc2.weight"))
        parameter.normal_(0, parameter[0].numel() ** -0.5 * (0.5 if output and parameter.dim() == 2 else 1.0))

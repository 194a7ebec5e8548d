"""The graph of a Llama decoder for ONNX Runtime, in ten kinds of operator.

    x = Gather(embedding, input_ids)
    each layer    h = RMSNorm(x)                                  SimplifiedLayerNormalization
                  q, k, v = h @ W.T                               three products (onnx_linear.py)
                  a = attention(rotate(q), rotate(k), v, cache)   GroupQueryAttention, which rotates and keeps the cache
                  h, x = RMSNorm(x + a @ Wo.T), x + a @ Wo.T      SkipSimplifiedLayerNormalization gives both
                  d = (silu(h @ Wg.T) * (h @ Wu.T)) @ Wd.T        products, Sigmoid, Mul
    logits = RMSNorm(x + d) @ head.T

Inputs, outputs and operators are those that onnxruntime-genai 0.18's own model builder writes. It is not used: it reads
ModelOpt's FP8 and NVFP4 only, rounds a tied embedding to int4 without being asked, and needs torch and the whole model
in memory.

GroupQueryAttention takes lengths from the sum of the mask: rows are padded on the right. On the left they are garbage.
DirectML's has no rotation of its own, so there it stands before it and asks for position_ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantlab import weights
from quantlab.errors import Broken, Refused
from quantlab.formats.arrays import PLAIN, Arrays, Stored
from quantlab.formats.declared import Quantization
from quantlab.formats.onnx_file import MICROSOFT, OnnxFile, value
from quantlab.formats.onnx_linear import Linears
from quantlab.formats.onnx_rope import caches
from quantlab.records import OnnxJob

HEAD_MULTIPLE = 16
"""Width of a head that GroupQueryAttention rotates."""


@dataclass(frozen=True)
class Sizes:
    """Of a Llama, from its config.json."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    epsilon: float
    tied: bool

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Linear layer of a decoder layer -> (outputs, inputs)."""
        query, key = self.heads * self.head, self.kv_heads * self.head
        return {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (key, self.hidden),
            "self_attn.v_proj": (key, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }


def sizes(folder: Path) -> Sizes:
    """Raises: Refused (no Llama that this graph computes), Broken (config.json lacks something), as weights.config."""
    config = weights.config(folder)
    _require_llama(folder, config)
    try:
        heads = int(config["num_attention_heads"])
        found = Sizes(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            inner=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            vocabulary=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            epsilon=float(config["rms_norm_eps"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise Broken(f"config.json is no Llama's ({error!r}).", place=str(folder), cure="Export it again.") from None
    _require_head(folder, found)
    return found


def _require_llama(folder: Path, config: dict[str, Any]) -> None:
    name = (config.get("architectures") or ["?"])[0]
    odd = [word for word in ("attention_bias", "mlp_bias", "sliding_window") if config.get(word)]
    if name != "LlamaForCausalLM":
        raise Refused(f"the graph is a Llama's, and this is {name}.", place=str(folder), cure="Use engine torch.")
    if odd or config.get("hidden_act", "silu") != "silu":
        what = ", ".join(odd) or f"hidden_act {config['hidden_act']}"
        raise Refused(f"the graph has no {what}.", place=str(folder), cure="Use engine torch.")


def _require_head(folder: Path, found: Sizes) -> None:
    if found.head % HEAD_MULTIPLE or found.heads % found.kv_heads:
        raise Refused(
            f"{found.heads} heads of width {found.head} over {found.kv_heads}: ONNX Runtime's attention wants widths "
            f"that are multiples of {HEAD_MULTIPLE}, and whole groups.",
            place=str(folder),
            cure="Use engine torch.",
        )


def write_graph(folder: Path, file: OnnxFile, quantization: Quantization, job: OnnxJob, found: Sizes) -> Linears:
    """Write the model of `folder` into `file`; the answer says what became of its layers.

    Raises:
        Refused: something that this graph or this provider does not compute.
        Broken: a tensor that is missing, left over or of the wrong shape.
    """
    arrays = Arrays(folder)
    names = tuple(f"model.layers.{i}.{part}" for i in range(found.layers) for part in found.linear)
    graph = _Graph(file, arrays, Linears(file, arrays, quantization, job, names), found, job)
    graph.write()
    if left := arrays.left():
        raise Broken(
            f"and {len(left) - 1} more tensors are in the checkpoint and no operator uses them.",
            place=left[0],
            cure="Export it again, or use engine torch.",
        )
    return graph.linears


@dataclass
class _Graph:
    file: OnnxFile
    arrays: Arrays
    linears: Linears
    sizes: Sizes
    job: OnnxJob

    def write(self) -> None:
        sizes, file = self.sizes, self.file
        self._lengths()
        cos, sin = caches(weights.config(Path(self.job.source)), sizes.head, sizes.context)
        self.rotation = [self.linears.number("rotary.cos", cos), self.linears.number("rotary.sin", sin)]
        embedding = self.arrays.take("model.embed_tokens.weight", PLAIN, (sizes.vocabulary, sizes.hidden))
        file.weight(embedding.name, embedding.kind, embedding.bits)
        looked_up = file.node("Gather", [embedding.name, "input_ids"], "embedded")
        x, added = self.linears.cast("embedded.cast", Stored(looked_up, embedding.kind, embedding.bits)), ""
        for index in range(sizes.layers):
            x, added = self._layer(f"model.layers.{index}", index, x, added)
        _, h = self._norm("model.norm", x, added, last=True)
        own = embedding if sizes.tied else None
        if own is None or "lm_head.weight" in self.arrays:
            own = self.arrays.take("lm_head.weight", PLAIN, (sizes.vocabulary, sizes.hidden))
        logits = self.linears.head(h, own, shared=own is embedding)
        file.node("Identity", [logits], "logits")
        file.save(*self._interface())

    def _lengths(self) -> None:
        """From the mask: tokens of each row less one, and the longest row, as int32."""
        file, one = self.file, self.file.constant("one", "I64", [1], (1,))
        total = file.node("ReduceSum", ["attention_mask", one], "mask.sum", keepdims=0)
        less = file.node("Sub", [total, one], "mask.less")
        file.node("Cast", [less], "lengths", to=6)
        shape = file.node("Shape", ["attention_mask"], "mask.shape")
        width = file.node("Gather", [shape, file.constant("axis", "I64", 1)], "mask.width", axis=0)
        file.node("Cast", [width], "longest", to=6)

    def _layer(self, name: str, index: int, x: str, added: str) -> tuple[str, str]:
        """The residual stream, and what is still to be added to it."""
        x, h = self._norm(f"{name}.input_layernorm", x, added)
        a = self._attention(name, index, h)
        x, h = self._norm(f"{name}.post_attention_layernorm", x, self._linear(f"{name}.self_attn.o_proj", a))
        gate = self._linear(f"{name}.mlp.gate_proj", h)
        up = self._linear(f"{name}.mlp.up_proj", h)
        open_ = self.file.node("Sigmoid", [gate], f"{name}.mlp.sigmoid")
        silu = self.file.node("Mul", [gate, open_], f"{name}.mlp.silu")
        inner = self.file.node("Mul", [silu, up], f"{name}.mlp.inner")
        return x, self._linear(f"{name}.mlp.down_proj", inner)

    def _linear(self, name: str, x: str) -> str:
        outputs, inputs = self.sizes.linear[".".join(name.split(".")[-2:])]
        return self.linears.product(name, x, outputs, inputs)

    def _norm(self, name: str, x: str, added: str, *, last: bool = False) -> tuple[str, str]:
        """(x + added, its root mean square norm). Nothing is added in front of the first layer."""
        stored = self.arrays.take(f"{name}.weight", PLAIN, (self.sizes.hidden,))
        weight = self.linears.number(stored.name, stored.float32())
        how: dict[str, Any] = {"epsilon": self.sizes.epsilon}
        if not added:
            return x, self.file.node("SimplifiedLayerNormalization", [x, weight], name, axis=-1, stash_type=1, **how)
        outputs = [name] if last else [name, "", "", f"{name}.sum"]
        self.file.node("SkipSimplifiedLayerNormalization", [x, added, weight], name, outputs, domain=MICROSOFT, **how)
        return f"{name}.sum", name

    def _attention(self, name: str, index: int, h: str) -> str:
        q, k, v = (self._linear(f"{name}.self_attn.{letter}_proj", h) for letter in "qkv")
        inside = self.job.provider != "dml"
        if not inside:
            q, k = self._rotated(q, self.sizes.heads), self._rotated(k, self.sizes.kv_heads)
        past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        attended = f"{name}.self_attn.attended"
        return self.file.node(
            "GroupQueryAttention",
            [q, k, v, *past, "lengths", "longest", *(self.rotation if inside else [])],
            attended,
            [attended, *present],
            domain=MICROSOFT,
            num_heads=self.sizes.heads,
            kv_num_heads=self.sizes.kv_heads,
            scale=float(1 / np.sqrt(self.sizes.head)),
            do_rotary=int(inside),
        )

    def _rotated(self, x: str, heads: int) -> str:
        given = [x, "position_ids", *self.rotation]
        return self.file.node("RotaryEmbedding", given, f"{x}.rotated", domain=MICROSOFT, num_heads=heads)

    def _interface(self) -> tuple[list[Any], list[Any]]:
        """Inputs and outputs of the graph."""
        kind, sizes = self.linears.type, self.sizes
        tokens = ["batch_size", "sequence_length"]
        inputs = [value("input_ids", "I64", tokens)]
        inputs += [value("attention_mask", "I64", ["batch_size", "total_sequence_length"])]
        inputs += [value("position_ids", "I64", tokens)] if self.job.provider == "dml" else []
        outputs = [value("logits", kind, [*tokens, sizes.vocabulary])]
        for index in range(sizes.layers):
            for part in ("key", "value"):
                past = ("batch_size", sizes.kv_heads, "past_sequence_length", sizes.head)
                present = ("batch_size", sizes.kv_heads, "total_sequence_length", sizes.head)
                inputs.append(value(f"past_key_values.{index}.{part}", kind, past))
                outputs.append(value(f"present.{index}.{part}", kind, present))
        return inputs, outputs

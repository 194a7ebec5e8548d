"""Where a `pre_quant_scale` can go when a layout has no place for it.

AWQ makes a layer compute y = ((x * p) @ W.T): `p` divides the error over the inputs. p disappears without a trace if
whatever makes x can make x * p instead:

    down_proj   x = act(gate) * up             so up_proj's rows times p: exact, a row has its own scales
    o_proj      x = attention over values      so v_proj's rows times p: exact if all query heads that share a value
                                               head ask for the same p

Under grouped-query attention they do not: p has a number for each query head's channel, v_proj has one row for the
whole group. Then v_proj takes the mean c over the group, as ModelOpt's fuse_grouped_heads does, and o_proj's weight
must become W * (p / c), column by column. In floating point that is still exact; in int4 these columns share a scale
with their neighbours, so o_proj is rounded a second time. That loss is measured and reported, and is the user's choice.

A file with such a scale left out loads everywhere and answers ",,,,,,": nothing here is ever dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from quantlab.errors import Refused

DOWN, UP = "mlp.down_proj", "mlp.up_proj"
OUT, VALUE = "self_attn.o_proj", "self_attn.v_proj"


@dataclass(frozen=True)
class Heads:
    """Of the attention, from config.json."""

    query: int
    key_value: int


@dataclass
class Folds:
    """What becomes of every `pre_quant_scale`. Factors are float32."""

    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    """Layer -> [outputs]: what its rows are multiplied with, exactly."""
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """Layer -> [inputs]: what its columns are multiplied with, before it is rounded again."""


def fold(scales: Mapping[str, torch.Tensor], heads: Heads, *, average: bool) -> Folds:
    """Find a place for all of `scales`.

    Args:
        scales: layer -> its pre_quant_scale, [inputs].
        heads: how query heads share value heads.
        average: what to do where the query heads of one value head differ: average, or refuse.

    Raises:
        Refused: a scale without a place; the text names the layers.
    """
    folds, uneven, homeless = Folds(), [], []
    for layer, scale in scales.items():
        if layer.endswith(DOWN):
            folds.rows[layer.removesuffix(DOWN) + UP] = scale.float()
        elif layer.endswith(OUT):
            # Query head h reads value head h // (query / key_value).
            groups = scale.float().view(heads.key_value, heads.query // heads.key_value, -1)
            even = bool((groups == groups[:, :1]).all())
            shared = groups[:, 0] if even else groups.mean(1)
            folds.rows[layer.removesuffix(OUT) + VALUE] = shared.reshape(-1)
            if not even:
                uneven.append(layer)
                folds.columns[layer] = (groups / shared.unsqueeze(1)).reshape(-1)
        else:
            homeless.append(layer)
    _require_places(homeless, [] if average else uneven)
    return folds


def _require_places(homeless: list[str], uneven: list[str]) -> None:
    if homeless:
        raise Refused(
            f"no layer before {_listed(homeless)} can take its pre_quant_scale.",
            place=homeless[0],
            cure="Use engine torch, which applies it, or another recipe.",
        )
    if uneven:
        raise Refused(
            f"query heads that share a value head have different scales in {_listed(uneven)}.",
            place=uneven[0],
            cure="Say --o-proj average to average them and round o_proj a second time; what it costs is recorded.",
        )


def _listed(layers: list[str]) -> str:
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return ", ".join(layers[:3]) + more

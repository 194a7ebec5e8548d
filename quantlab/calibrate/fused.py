"""What ModelOpt's export of NVFP4-AWQ moves from one quantized layer into the rows of the one before.

AWQ multiplies column k of a weight by 1 / s_k and the input by s_k. For NVFP4 alone, ModelOpt (0.47,
`fuse_prequant_to_linear`) then gives the factor of down_proj to the rows of up_proj, and that of o_proj to v_proj's
where there are as many value heads as query heads:

    down(silu(gate x) * up x)   with   up' = diag(s) up,   down' = down diag(1 / s)

The model is the same. But row k of up' is s_k times the source's, and `up'` has lost columns to its norm besides, so no
factor per column brings it back: in SmolLM2's last block, where s_k spans a factor of 32, 36 % of the source's numbers
were left that way and 9.9 % with the rows undone, as in every other layer.

The export does not keep s. The columns of down' still show it, as their best multiple, <w_k, q_k> / <q_k, q_k>, up to
rounding (below 1 %). That is another layer than the one in question, so undoing up's rows with it holds the two against
each other: a factor that reached one side only is found.
"""

from __future__ import annotations

from torch import Tensor

from quantlab.calibrate.exported import Exported
from quantlab.calibrate.moved import PAIRS

FORMAT = "nvfp4_awq"
SMALLEST = 1e-30


def columns(export: Exported, layer: str, source: Tensor, made: Tensor) -> Tensor | None:
    """What column k of the export must be multiplied with, because the rows of the layer before have it.

    Args:
        export: whose layer it is.
        layer: down_proj or o_proj; None comes back for any other.
        source: its 16-bit weight, float32 [outputs, inputs].
        made: the export's, likewise.

    Returns:
        float32 [inputs].
    """
    before = _partner(export, layer, 1)
    return best_columns(source, made) if before else None


def rows(export: Exported, layer: str) -> Tensor | None:
    """What the rows of an up_proj or v_proj were multiplied with, read from the columns of the layer after it; float32
    [outputs, 1], None where nothing was."""
    from quantlab.formats.readers import reader_of

    after = _partner(export, layer, 0)
    if after is None:
        return None
    source = export.read_source(f"{after}.weight").float()
    made = reader_of(export.folder, export.layers).layer(after, (source.shape[0], source.shape[1])).dense()
    return best_columns(source, made).clamp_min(SMALLEST).unsqueeze(1)


def apart(source: Tensor, undone: Tensor) -> float:
    """How far the rows still are from the source's once undone: median distance of a row's best multiple from the
    median one. Rounding alone: below 0.01."""
    fitted = undone * best_columns(source, undone)
    own = (source * fitted).sum(1) / fitted.square().sum(1).clamp_min(SMALLEST)
    middle = own.median()
    return float((own / middle - 1).abs().median()) if float(middle) > 0 else float("inf")


def best_columns(source: Tensor, made: Tensor) -> Tensor:
    """[inputs]: the factor of each column that brings `made` nearest to `source`."""
    return (source * made).sum(0) / made.square().sum(0).clamp_min(SMALLEST)


def _partner(export: Exported, layer: str, side: int) -> str | None:
    """The other layer of the pair in which `layer` stands on this side: 0 its rows, 1 its columns."""
    for pair in PAIRS:
        if not layer.endswith(pair[side]) or export.spec.recipe.format_of(layer) != FORMAT:
            continue
        other = layer.removesuffix(pair[side]) + pair[1 - side]
        into, of = (layer, other) if side == 0 else (other, layer)
        both = into in export.layers and of in export.layers and f"{of}.pre_quant_scale" not in export.made
        if both and export.source[f"{into}.weight"]["shape"][0] == export.source[f"{of}.weight"]["shape"][1]:
            return other
    return None

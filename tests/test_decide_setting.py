"""For which engine and lengths speeds are said, and what a GPU does for a token: by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantlab import catalog
from quantlab.decide.asked import Asked, Words, resolve
from quantlab.decide.evidence import Evidence, group_of, work
from quantlab.decide.options import Option, options, setting
from quantlab.predict import Cell, Point
from quantlab.predict.links import link

HERE = group_of("3b", "h100", 1)
LINEAR = 28 * (2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192)
HEAD = 128_256 * 3072


def question(model: str = "3b", **words: object) -> Asked:
    return resolve(Words(model=model, gpu="h100", unproven=True, **words), catalog.published())  # type: ignore[arg-type]


def cell(engine: str, form: str, isl: int = 128, osl: int = 128, batch: int = 1, group: str = HERE) -> Cell:
    shape, gpu = catalog.model("3b").shape, catalog.target("h100")
    assert shape is not None
    todo = work(shape, "bf16", gpu, 1)
    return Cell(Point(isl, osl, batch), todo, engine, form, group, 1.0, 0.99, 1.01, 0.1, 0.007, "measured", "made up")


def found(*cells: Cell, **words: object) -> tuple[str, tuple[int, int]]:
    where = setting(question(**words), Evidence(cells=list(cells)))
    return where.engine, where.lengths


# --- which engine, which lengths -------------------------------------------------------------------------


def test_the_engine_that_knows_most_precisions_comes_before_the_one_with_most_cells() -> None:
    many = [cell("vllm", "bf16", batch=batch) for batch in (1, 2, 4)]
    both = [cell("trtllm", "bf16"), cell("trtllm", "fp8")]
    assert found(*many, *both)[0] == "trtllm"
    assert found(*both, *many)[0] == "trtllm"
    assert found(*many, cell("vllm", "fp8"), *both)[0] == "vllm", "as many precisions, more cells"
    more = [cell("trtllm", "bf16", batch=batch) for batch in (2, 4, 8)]
    assert found(*many, cell("vllm", "fp8"), *both, *more)[0] == "trtllm"
    assert found(*many, *both, engine="vllm")[0] == "vllm"


def test_cells_of_this_gpu_come_before_more_cells_of_another() -> None:
    there = [cell("vllm", form, group="8b on 1 x h200") for form in ("bf16", "fp8", "int4_awq")]
    assert found(*there, cell("trtllm", "bf16"))[0] == "trtllm"
    assert found(*there)[0] == "vllm"


def test_lengths_are_those_of_most_cells_then_the_shortest_and_never_beyond_the_context() -> None:
    long = [cell("vllm", "bf16", 2048, 128, batch) for batch in (1, 2)]
    assert found(*long, cell("vllm", "bf16"))[1] == (2048, 128)
    assert found(long[0], cell("vllm", "bf16", 256, 256), cell("vllm", "bf16", 512, 128))[1] == (256, 256)
    assert found(*long, cell("vllm", "bf16"), context=2176)[1] == (2048, 128), "just as long as the context"
    assert found(*long, cell("vllm", "bf16"), context=2175)[1] == (128, 128)


def test_without_cells_a_short_context_is_divided_four_to_one() -> None:
    usual = found()[1]
    assert found(context=sum(usual))[1] == usual
    assert found(context=sum(usual) - 1)[1] == ((sum(usual) - 1) * 4 // 5, (sum(usual) - 1) // 5)
    assert found(context=100)[1] == (80, 20)


# --- options ---------------------------------------------------------------------------------------------


def option(name: str, *cells: Cell, **words: object) -> Option:
    asked = question(recipes=[name], **words)
    evidence = Evidence(cells=list(cells))
    return next(each for each in options(asked, evidence, setting(asked, evidence)) if each.name == name)


def test_a_cache_of_8_bit_is_read_in_half_the_time() -> None:
    """A data sheet's batch of 16 at 32,000 tokens reads little but its cache."""
    words = {"isl": 32_000, "osl": 128, "context": 33_000, "batch": 16}
    plain, small = option("fp8", **words).speeds[16], option("fp8_kv8", **words).speeds[16]
    assert plain.step_seconds is not None
    assert small.step_seconds is not None
    assert (plain.tier, small.tier) == ("roofline", "roofline")
    weights = LINEAR + 2 * HEAD
    cache = 2 * 28 * 8 * 128 * 16 * (32_000 + 64)
    ratio = (weights + 2 * cache) / (weights + cache)
    assert plain.step_seconds / small.step_seconds == pytest.approx(ratio, rel=0.1)


def test_a_recipe_is_known_by_its_own_cells_and_else_by_those_of_its_format() -> None:
    """fp8_kv8 quantizes its weights to fp8: until it was measured itself, fp8 answers for it."""
    words, plain = {"isl": 128, "osl": 128, "batch": 1}, cell("vllm", "fp8")
    borrowed = option("fp8_kv8", plain, **words).speeds[1]
    assert (borrowed.tier, borrowed.step_seconds) == ("measured", pytest.approx(0.007))
    own = replace(cell("vllm", "fp8_kv8"), step_seconds=0.005)
    assert option("fp8_kv8", plain, own, **words).speeds[1].step_seconds == pytest.approx(0.005)


def test_what_has_no_speed_is_not_called_unproven() -> None:
    """`unproven` says that nothing else stands against an option; a limit that it breaks does."""
    assert (option("fp8", batch=1).unproven, option("fp8", batch=1).lost) == (True, "")
    slow = option("fp8", batch=1, tpot="0.001ms")
    assert not slow.unproven
    assert "no batch is within the limits" in slow.lost


# --- work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "group", "bits", "tflops"),
    [("bf16", None, 16, 989.5), ("fp8", None, 8, 1979), ("int4_awq", 128, 4.25, 989.5), ("w4a8_awq", 128, 4.25, 1979)],
)
def test_work_by_hand(form: str, group: int | None, bits: float, tflops: float) -> None:
    shape, gpu = catalog.model("3b").shape, catalog.target("h100")
    assert shape is not None
    one, four = (work(shape, form, gpu, tp, group=group) for tp in (1, 4))
    assert one.weight_bytes == pytest.approx(LINEAR * bits / 8 + 2 * HEAD, rel=1e-3)
    assert four.weight_bytes == one.weight_bytes / 4
    assert one.token_flops == 2 * (LINEAR + HEAD)
    assert four.token_flops == one.token_flops / 4
    assert one.flops is not None
    assert one.flops == pytest.approx(tflops * 1e12, rel=1e-2)
    assert (one.cache_bytes, four.cache_bytes) == (2 * 28 * 8 * 128 * 2, 2 * 28 * 2 * 128 * 2)
    assert work(shape, form, gpu, 1, cache_width=1, group=group).cache_bytes == one.cache_bytes / 2
    assert (one.exchanges, four.exchanges) == (0, 2 * 28 + 1), "two a layer, and the head"
    assert four.token_message == 2 * 3072
    assert gpu.link == "nvlink"
    assert gpu.link_bandwidth is not None
    assert four.link == link("nvlink", gpu.link_bandwidth, 4)


def test_images_are_work_of_their_own() -> None:
    """Text of 11b passes its 8 cross-attention layers by, which are as large as its 32 others."""
    shape, gpu = catalog.model("11b").shape, catalog.target("h100")
    assert shape is not None
    text, seen = (work(shape, "bf16", gpu, 1, images=images) for images in (False, True))
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert seen.weight_bytes - text.weight_bytes == 8 * layer * 2
    assert (text.layers, seen.layers) == (32, 40)
    assert (text.image_bytes, text.image_flops) == (0, 0)
    assert seen.image_bytes == 2 * 8 * 8 * 128 * 2 * 6404
    two = work(shape, "bf16", gpu, 2, images=True)
    assert (two.image_bytes, two.image_flops) == (seen.image_bytes / 2, seen.image_flops / 2)

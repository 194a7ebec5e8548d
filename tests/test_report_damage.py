"""The damage of layers on every face of the report."""

from __future__ import annotations

import msgspec
import pytest

from quantlab.records import LayerDamage, Run, Verification
from quantlab.report import damage, to_html, to_markdown
from tests.report_runs import bare, demo, hostile
from tests.test_report import Page, screen


def test_the_worst_layers_are_named_on_every_face() -> None:
    run = demo()
    assert damage.words(run.candidates[2]) == (
        "most damaged layers (output error): 7.mlp.down_proj 46.2 %, 29.self_attn.q_proj 19.4 %, "
        "29.self_attn.k_proj 19.4 %"
    )
    for face in (to_markdown(run), screen(run, 140), Page(to_html(run)).text):
        assert "7.mlp.down_proj" in face
    assert "46.2 %" in " ".join(screen(run, 140).split())
    assert "46.20" in to_markdown(run)
    assert to_markdown(run).count("| int4_awq ") >= 10


def test_strips_share_one_scale_and_cover_every_layer() -> None:
    chart = damage.charts(demo())[1]
    assert (chart.name, chart.probed, len(chart.layers)) == ("int4_awq", True, 210)
    assert [track.kind for track in chart.tracks] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                                      "down_proj"]  # fmt: skip
    assert {len(track.bars) for track in chart.tracks} == {30}
    bars = [bar for track in chart.tracks for bar in track.bars]
    assert all(0 <= bar.y <= damage.HEIGHT and 0 <= bar.x < bar.x + bar.width <= 100 for bar in bars)
    highest = min(bars, key=lambda bar: bar.y)
    assert highest is chart.tracks[6].bars[7]
    assert (damage.HEIGHT - highest.y) / (damage.HEIGHT - highest.weight_y) == pytest.approx(4.2, rel=0.01)
    assert chart.tracks[6].worst == "46.2 % at 7"
    assert [tick.text for tick in chart.depths] == ["0", "5", "10", "15", "20", "25"]


def test_weights_alone_and_a_layer_without_depth() -> None:
    run = demo()
    lone = (
        LayerDamage(layer="lm_head", weights=10, bits=8.0, weight_error=0.02),
        LayerDamage(layer="model.layers.0.mlp.up_proj", weights=10, bits=8.0, weight_error=0.01),
    )
    one = msgspec.structs.replace(run.candidates[1], verification=Verification(checks=(), damage=lone))
    chart = damage.charts(msgspec.structs.replace(run, candidates=(one,)))[0]
    assert not chart.probed
    assert [track.kind for track in chart.tracks] == ["up_proj"]
    assert damage.words(one) == "most damaged layers (weights error): lm_head 2.0 %, 0.mlp.up_proj 1.0 %"


@pytest.mark.parametrize("run", [hostile(), bare()], ids=["hostile", "bare"])
def test_names_are_harmless_and_nothing_is_shown_where_nothing_is_known(run: Run) -> None:
    page = Page(to_html(run))
    shown = [attrs for tag, attrs in page.tags if tag == "section" and attrs.get("id") == "damage"]
    assert len(shown) == (1 if run.candidates[0].verification else 0)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [attrs for tag, attrs in page.tags if tag == "img" or "onerror" in attrs]

"""One-way analysis of variance against scipy's, and what it says of noise alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quantlab.score.spread import spread


def test_it_is_scipys_f_test() -> None:
    draw = np.random.default_rng(0)
    cells = [list(draw.normal(place, 1, 4 + place)) for place in range(3)]
    found = spread(cells)
    assert found.p_value == pytest.approx(stats.f_oneway(*cells).pvalue)
    assert found.freedom == 12
    assert found.largest == pytest.approx(np.ptp([np.mean(cell) for cell in cells]))


def test_two_cells_give_students_interval() -> None:
    draw = np.random.default_rng(1)
    first, second = list(draw.normal(0, 1, 5)), list(draw.normal(1, 1, 5))
    found = spread([first, second])
    theirs = stats.ttest_ind(first, second).confidence_interval(0.95)
    assert found.half_width(5, 5, 0.95) == pytest.approx((theirs.high - theirs.low) / 2)


def test_noise_alone_is_called_a_difference_as_often_as_promised() -> None:
    draw = np.random.default_rng(2)
    called = sum(spread(draw.normal(0, 1, (4, 3)).tolist()).p_value < 0.05 for _ in range(2000))
    assert 0.03 < called / 2000 < 0.07


def test_equal_numbers_differ_by_nothing() -> None:
    assert spread([[1.0, 1.0], [1.0, 1.0]]).p_value == 1.0
    assert spread([[1.0, 1.0], [2.0, 2.0]]).p_value == 0.0


@pytest.mark.parametrize("cells", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, 2.0], []]])
def test_what_cannot_be_compared_is_refused(cells: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        spread(cells)

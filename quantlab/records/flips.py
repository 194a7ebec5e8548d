"""Items whose answer changed, and categories of items ranked by what they lost."""

from __future__ import annotations

from typing import Literal

import msgspec

from quantlab.records.numbers import Number


class Flip(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One item that the candidate answers otherwise than the baseline."""

    task: str
    id: str
    direction: Literal["regressed", "improved", "churn"]
    """regressed: right before and wrong now. improved: the other way round. churn: wrong both times, differently."""
    prompt: str
    right: str
    """The right answer, as text."""
    baseline: str
    """The baseline's answer."""
    candidate: str
    """The candidate's answer."""
    kind: str = ""
    """Category within the task."""
    margin_baseline: float | None = None
    """Log-likelihood of the right choice minus that of the best wrong one under the baseline, in the units by which
    the task's metric chooses (nats; nats a character for acc_norm); None where an answer is generated."""
    margin_candidate: float | None = None
    """The same under the candidate."""
    surprise: float | None = None
    """How firmly each preferred its own answer over the other's, both together, in the same units."""


class Category(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The items of one kind in one task."""

    task: str
    kind: str
    n: int
    difference: Number
    """Candidate minus baseline in points. Its interval is widened so that those of all categories hold together."""
    regressed: int = 0
    improved: int = 0
    churn: int = 0

"""The records of a recommendation: plain data, so that JSON, text and a notebook show the same."""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of what is concluded."""


class Speed(Answer, frozen=True, kw_only=True):
    """One recipe at one batch."""

    batch: int
    tokens_per_second: float
    """All sequences, prefill included."""
    low: float
    high: float
    """About 80 %."""
    tier: str
    """measured, interpolated, fit, transfer, roofline."""
    provenance: str
    """measured, published, predicted."""
    basis: str
    step_seconds: float | None = None
    """Per output token of one sequence."""
    first_seconds: float | None = None
    """To the first token; indicative where predicted, None where unknown."""
    over: str = ""
    """The limit it breaks, if any."""


class Users(Answer, frozen=True, kw_only=True):
    """What one sweep over loads says of one recipe."""

    kind: str
    """served or in flight."""
    isl: int
    osl: int
    most: int | None
    """Largest load up to which every measured one is within the limits."""
    breaks: int | None
    """First measured load that is not."""
    tokens_per_second: float | None
    """Of all users, at `most`."""
    knee: int | None
    """From here on a doubling of the load hardly pays."""
    saturated: int | None
    """First load at which requests waited in the engine's queue."""
    source: str
    sentence: str


class Carried(Answer, frozen=True, kw_only=True):
    """Where one recipe stands in a ranking by load."""

    kind: str
    """served or in flight."""
    isl: int
    osl: int
    loads: tuple[int, ...]
    """At which every ranked recipe was measured: users are counted at these only."""
    users: int
    """Largest of these up to which every measured load is within the limits; without limits, the load that suits the
    objective best."""
    users_per_gpu: float
    tokens_per_second: float
    """Of all users."""
    low: float
    high: float
    """About 80 %."""
    ttft_p90: float | None
    """Seconds."""
    tpot_p90: float | None
    """Seconds."""
    dollars_per_user_hour: float | None
    """Rent of all GPUs for an hour, over the users."""


class Row(Answer, frozen=True, kw_only=True):
    """One recipe."""

    recipe: str
    status: str
    """chosen, runner-up, lost."""
    why: str
    """Why it stands where it stands."""
    memory_bytes: int | None = None
    """On each GPU at the asked context and the batch of `at`, cache included."""
    weights_bytes: int | None = None
    at: Speed | None = None
    """At the batch that suits the objective best."""
    speeds: tuple[Speed, ...] = ()
    """Of static batches."""
    users: tuple[Users, ...] = ()
    """Of requests in flight and served, where they were measured on this GPU with this engine."""
    load: Carried | None = None
    """Where the ranking was by load, and it stands."""
    drop: float | None = None
    """Points lost against the baseline; None where not shown."""
    drop_low: float | None = None
    drop_high: float | None = None
    accuracy: str = ""
    """Where the accuracy comes from, or that it was not shown."""
    joules_per_million: float | None = None
    """Energy of a million output tokens: measured, or at the power limit, an upper bound."""
    energy_measured: bool = False
    dollars_per_million: float | None = None
    """Rent for a million output tokens."""


class Pair(Answer, frozen=True, kw_only=True):
    """Where one recipe overtakes another."""

    ahead_below: str
    ahead_above: str
    batch: float | None
    """None: they do not cross within the asked batches."""
    low: float | None
    high: float | None
    share: float
    """Draws that cross."""
    sentence: str


class AtBatch(Answer, frozen=True, kw_only=True):
    """The winner at one batch."""

    batch: int
    recipe: str
    ties: tuple[str, ...]
    """Others within the error."""


class Recommendation(Answer, frozen=True, kw_only=True):
    """The answer, or why there is none."""

    model: str
    gpu: str
    tp: int
    engine: str
    objective: str
    workload: str
    """Lengths that the speeds are for, and the context that the memory is for."""
    ranked_by: str
    """static batches, or how the loads were measured."""
    choice: str | None
    runner_up: str | None
    sentence: str
    """The answer in one or two sentences."""
    by_batch: tuple[AtBatch, ...]
    rows: tuple[Row, ...]
    crossovers: tuple[Pair, ...]
    stability: float | None
    """Share of draws from the errors in which the choice is the same."""
    relax: tuple[str, ...] = ()
    """Without a choice: which limit to relax, and by how much."""
    missing: tuple[str, ...] = ()
    """What was not known."""
    next_steps: tuple[str, ...] = ()
    """What to measure to become surer."""
    assumptions: tuple[str, ...] = ()

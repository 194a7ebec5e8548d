"""The question: words resolved to records, wrong ones answered with right ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantlab import amounts, catalog
from quantlab.candidates import candidate
from quantlab.catalog import Datasheet, Published
from quantlab.engines import ENGINES
from quantlab.errors import BadInput
from quantlab.records import Model, Recipe
from quantlab.score.limits import Limits

OBJECTIVES = ("throughput", "latency", "memory", "energy", "cost")
BY = ("load", "batch")
"""What options can be ranked by."""
USUAL = ("bf16", "fp8", "int4_awq")
"""Recipes that are always weighed; the first is the baseline."""

MOST_IMAGES = 16
"""Of a sequence: 100,000 image tokens that every step reads; more is a slip of the finger."""


@dataclass(frozen=True)
class Asked:
    """The question with every word resolved."""

    model: Model
    gpu: Datasheet
    recipes: tuple[tuple[str, Recipe], ...]
    """Baseline first."""
    objective: str
    max_drop: float
    """Accepted loss in points."""
    ttft: float | None
    """Limit of the time to the first token, seconds."""
    tpot: float | None
    """Limit of the time per output token, seconds."""
    context: int
    """Tokens of a sequence, for the memory."""
    batches: tuple[int, ...]
    tp: int
    engine: str | None
    """None: the engine about which most is known."""
    lengths: tuple[int, int] | None
    """Tokens in and out, for the speed; None: those that were measured."""
    unproven: bool
    """Recipes whose accuracy was not shown may be chosen."""
    price: float | None
    """Dollars an hour of one GPU."""
    images: int = 0
    """Images of a sequence, of four tiles each."""
    by: str | None = None
    """load or batch: what options are ranked by. None: by load where there are limits of what users feel."""

    @property
    def limits(self) -> Limits:
        return Limits(self.ttft, self.tpot)

    @property
    def limited(self) -> bool:
        """There is a limit of what users feel."""
        return self.limits != Limits()

    @property
    def baseline(self) -> str:
        return self.recipes[0][0]


@dataclass(frozen=True, kw_only=True)
class Words:
    """The question as typed; see Asked for what the fields mean."""

    model: str
    gpu: str
    recipes: Sequence[str] = ()
    objective: str = "throughput"
    max_drop: float = 1.0
    ttft: str | float | None = None
    tpot: str | float | None = None
    context: int | str = 8192
    batch: int | str = "1..64"
    tp: int = 1
    engine: str | None = None
    isl: int | None = None
    osl: int | None = None
    unproven: bool = False
    price: float | None = None
    images: int = 0
    by: str | None = None


def resolve(words: Words, published: Published) -> Asked:
    """Look every word up.

    Raises:
        BadInput: an unknown word, an amount that is none, or a limit that nothing can mean.
    """
    _check(words)
    if words.engine is not None:
        known = [*ENGINES, *dict.fromkeys(table.engine for table in published.tables if table.engine not in ENGINES)]
        if words.engine not in known:
            cure = f"{catalog.nearest(words.engine, known)} Engines: {', '.join(known)}.".strip()
            raise BadInput(f"no engine {words.engine!r}.", place="--engine", cure=cure)
    pair = words.isl, words.osl
    model = published.model(words.model) or catalog.model(words.model)
    if model.shape is None:
        cure = "Give a directory with its config.json, or a model of the catalog."
        raise BadInput("the dimensions of this model are not known.", place=words.model, cure=cure)
    return Asked(
        model=model,
        gpu=catalog.target(words.gpu),
        recipes=_recipes(words.recipes),
        objective=words.objective,
        max_drop=words.max_drop,
        ttft=amounts.seconds(words.ttft, "--ttft") if words.ttft is not None else None,
        tpot=amounts.seconds(words.tpot, "--tpot") if words.tpot is not None else None,
        context=amounts.tokens(words.context, "--context"),
        batches=amounts.batches(words.batch),
        tp=words.tp,
        engine=words.engine,
        lengths=(amounts.tokens(pair[0], "--isl"), amounts.tokens(pair[1], "--osl"))
        if pair[0] is not None and pair[1] is not None
        else None,
        unproven=words.unproven,
        price=words.price,
        images=_images(words.images, model),
        by=words.by,
    )


def _images(count: int, model: Model) -> int:
    if count and not (model.shape and model.shape.cross_layers):
        raise BadInput(f"{model.word} takes no images.", place="--images", cure="Leave it out, or ask for 11b or 90b.")
    if not 0 <= count <= MOST_IMAGES:
        raise BadInput(f"{count} images a sequence.", place="--images", cure=f"Write 0 to {MOST_IMAGES}.")
    return count


def _check(words: Words) -> None:
    if words.objective not in OBJECTIVES:
        close = difflib.get_close_matches(words.objective, OBJECTIVES, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        cure = f"{hint}Objectives: {', '.join(OBJECTIVES)}."
        raise BadInput(f"no objective {words.objective!r}.", place="--objective", cure=cure)
    if words.by not in (None, *BY):
        raise BadInput(f"nothing is ranked by {words.by!r}.", place="--by", cure=f"Write {' or '.join(BY)}.")
    if not (math.isfinite(words.max_drop) and 0 <= words.max_drop < 100):
        raise BadInput(f"a loss of {words.max_drop:g} points is not between 0 and 100.", place="--max-drop")
    if words.price is not None and not (math.isfinite(words.price) and words.price > 0):
        raise BadInput(f"{words.price} dollars an hour is no price.", place="--price", cure="Write a number above 0.")
    if (words.isl is None) != (words.osl is None):
        raise BadInput("one of --isl and --osl is missing.", place="--isl, --osl", cure="Give both or none.")


def _recipes(words: Sequence[str]) -> tuple[tuple[str, Recipe], ...]:
    return tuple(candidate(word) for word in dict.fromkeys((USUAL[0], *(words or USUAL))))

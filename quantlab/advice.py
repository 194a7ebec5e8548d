"""The face for GPUs that are not here: `ql.plan_gpu` and `ql.recommend`, and a recommendation that shows itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab import amounts, catalog
from quantlab.candidates import candidate
from quantlab.errors import BadInput
from quantlab.kernels import KernelTables
from quantlab.ledgers import Ledger
from quantlab.preflight import GpuPlan, preflight
from quantlab.records import Grid
from quantlab.serving import USUAL_IMAGES

if TYPE_CHECKING:
    from quantlab.decide import Recommendation


class GpuPlans(list[GpuPlan]):
    """Plans for a GPU that is not here, as a notebook shows them."""

    def _repr_html_(self) -> str:
        from quantlab import shown

        return shown.gpu_plans(self)


def plan_gpu(
    model: str,
    recipes: Sequence[str] = ("fp8", "int4_awq"),
    *,
    gpu: str,
    tp: int = 1,
    grid: str | None = None,
    context: int | str | None = None,
    batch: int | str = 1,
    images: int = USUAL_IMAGES,
) -> GpuPlans:
    """Can these precisions be served on that GPU? `plan_gpu("90b", ["fp8"], gpu="h200", tp=2, context=8192)`.

    Args:
        model: catalog word, hub id or directory.
        recipes: recipe words.
        gpu: word of the catalog, driver name or a YAML file.
        tp: GPUs that share each layer.
        grid: grid whose cells must fit; without it `context`, 8,192 tokens by default.
        context: tokens of a sequence ("8k").
        batch: sequences at once, or a range ("1..64").
        images: in each sequence of `context` tokens, for 11b and 90b; a grid says itself how many its cells hold.

    Raises:
        BadInput: an unknown word, with "did you mean".
    """
    sheet, resolved = catalog.target(gpu), catalog.model(model)
    cells = catalog.grid(grid).record if grid else None
    assert cells is None or isinstance(cells, Grid)
    length = amounts.tokens(context, "--context") if context is not None else None
    folder = Path(resolved.location) if resolved.source == "path" else None
    path = folder if folder and any(folder.glob("*.safetensors")) else None
    found = GpuPlans()
    for word in recipes:
        name, recipe = candidate(word)
        asked: dict[str, Any] = {"grid": cells, "context": length, "batches": amounts.batches(batch), "path": path}
        found.append(preflight(resolved, name, recipe, sheet, tp, images=images, **asked))
    return found


@dataclass(frozen=True)
class Recommended:
    """A recommendation as a notebook shows it; `record` is everything behind it."""

    record: Recommendation

    @property
    def choice(self) -> str | None:
        """The recipe to ship, or None."""
        return self.record.choice

    def __str__(self) -> str:
        from quantlab.decide import explain

        return "\n".join(explain(self.record))

    def _repr_html_(self) -> str:
        from quantlab import shown

        return shown.recommendation(self.record)


def recommend(
    model: str,
    *,
    gpu: str,
    folders: Sequence[Path | str] = (),
    published: Path | str | None = None,
    kernels: bool = True,
    **words: Any,
) -> Recommended:
    """Which precision to ship: `recommend("3b", gpu="rtx4090", tpot="20ms", context="8k", batch="1..64")`.

    Args:
        model: catalog word, hub id, directory, or a model of the published tables.
        gpu: word of the catalog, driver name or a YAML file.
        folders: ledgers, or folders that hold some; default $QUANTLAB_LEDGER or ./runs, and the GPU runs that travel
            with quantlab.
        published: another file of published tables.
        kernels: ask the tables of measured kernels, where they are installed (docs/prediction.md).
        **words: as `quantlab recommend --help`: recipes, objective, max_drop, ttft, tpot, batch, tp, engine, isl, osl,
            unproven, price, images.

    Raises:
        BadInput: an unknown word or an amount that is none.
        LedgerProblem: a ledger that cannot be read.
    """
    from quantlab import decide
    from quantlab.decide import asked, evidence

    tables = catalog.published(Path(published) if published else None)
    question = asked.resolve(asked.Words(model=model, gpu=gpu, **words), tables)
    for folder in folders:
        if not Path(folder).is_dir():
            raise BadInput(
                "no such folder.", place=f"--ledger {folder}", cure="Name a ledger, or a folder that holds some."
            )
    books = [book for folder in folders for book in evidence.ledgers_in(Path(folder))] or [Ledger(None)]
    known = evidence.gather(question.model, [*books, *_along(folders)], tables)
    known.kernels = KernelTables() if kernels else None
    return Recommended(decide.recommend(question, known))


def _along(folders: Sequence[Path | str]) -> list[Ledger]:
    """Measurements that travel with quantlab: asked where nobody named others."""
    from quantlab.decide import evidence

    folder = catalog.builtin() / "benchmarks" / "results" / "gpu"
    return evidence.ledgers_in(folder) if not folders and folder.is_dir() else []

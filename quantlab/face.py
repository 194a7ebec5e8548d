"""The notebook face: a few functions over the pipeline, and a result that shows itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab import pipeline
from quantlab.errors import BadInput
from quantlab.ledgers import Ledger
from quantlab.records import Candidate, Run

if TYPE_CHECKING:
    import pandas as pd

    from quantlab.advice import GpuPlans


@dataclass(frozen=True)
class Result:
    """A run as a notebook shows it: `_repr_html_` is the report, `record` is everything behind it."""

    record: Run
    root: Path | str | None = None
    """The ledger it was kept in, as given."""

    def __getitem__(self, recipe: str) -> Candidate:
        for candidate in self.record.candidates:
            if candidate.recipe_name == recipe:
                return candidate
        raise KeyError(f"{recipe!r} is not in this run; it has {[c.recipe_name for c in self.record.candidates]}")

    def __str__(self) -> str:
        lines = [self.record.summary]
        lines += [
            f"{each.recipe_name}: {each.verdict.status}: {each.verdict.reason}" for each in self.record.candidates
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        import html

        from quantlab.report import to_html

        page = html.escape(to_html(self.record), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:720px;border:0" title="quantlab report"></iframe>'

    def write(self, folder: Path | str, stem: str = "report") -> dict[str, Path]:
        """HTML, Markdown and JSON into `folder`; returns their paths by kind."""
        from quantlab.report import write

        return write(self.record, Path(folder), stem)

    def frame(self) -> pd.DataFrame:
        """One row a recipe; see `quantlab.frames.candidates`."""
        from quantlab import frames

        return frames.candidates(self.record)

    def damage(self) -> pd.DataFrame:
        """One row a quantized layer: its error and its outlier channel."""
        from quantlab import frames

        return frames.damage(self.record)

    def flips(self) -> pd.DataFrame:
        """One row an item whose answer changed, up to 400 a recipe."""
        from quantlab import frames

        return frames.flips(self.record)

    def items(self, recipe: str) -> pd.DataFrame:
        """One row an item that `recipe` was asked: prompt, choices, answer, log-likelihoods.

        Raises:
            BadInput: it was not scored in this run, or another ledger holds the entry.
        """
        from quantlab import frames

        identity = self[recipe].identities.get("accuracy")
        if identity is None:
            raise BadInput(f"{recipe} was not scored in this run.", cure="Run it with the stage accuracy.")
        return frames.items(Ledger(self.root), identity)

    def checkpoint(self, recipe: str) -> Path:
        """The folder of `recipe`'s exported checkpoint, as ModelOpt wrote it.

        Raises:
            BadInput: it was not exported in this run.
        """
        calibrated = self[recipe].calibrated
        if calibrated is None:
            raise BadInput(f"{recipe} was not exported in this run.", cure="See its verdict.")
        return Ledger(self.root).path(calibrated.checkpoint.path)


class PlannedHere(pipeline.Planned):
    """A plan for this machine, as a notebook shows it."""

    def _repr_html_(self) -> str:
        from quantlab import shown

        return shown.planned(self)


def ledger(root: Path | str | None = None) -> Ledger:
    """The ledger at `root`, or at $QUANTLAB_LEDGER, or ./runs."""
    return Ledger(root)


def run(
    model: str, recipes: Sequence[str] = ("fp8", "int4_awq"), *, root: Path | str | None = None, **words: Any
) -> Result:
    """Run the main job: `run("smollm2-135m", ["fp8"], suite="quick")`.

    Args:
        model: catalog word, hub id or directory.
        recipes: recipe words; the policy's baseline is added.
        root: ledger folder.
        **words: further fields of `quantlab.pipeline.Ask` (suite, grid, policy, engine, stages, max_drop, early ...).
    """
    from quantlab.cli.progress import watching

    with watching() as watch:
        ask = pipeline.Ask(model=model, recipes=tuple(recipes), **words)
        return Result(pipeline.run(ask, Ledger(root), watch), root)


def last(model: str | None = None, *, root: Path | str | None = None) -> Result:
    """The newest run of the ledger, or the newest of a model word, without running anything.

    Raises:
        BadInput: there is none.
    """
    book = Ledger(root)
    runs = [run for run in book.runs() if model in (None, run.model.word)]
    if not runs:
        what = f"of model {model!r} " if model else ""
        raise BadInput(f"the ledger holds no run {what}yet.", place=str(book.root), cure="`ql.run(...)` makes one.")
    return Result(runs[-1], root)


def cells(*folders: Path | str) -> pd.DataFrame:
    """Every throughput cell of the ledgers at or below `folders` (default: the ledger), one row each."""
    from quantlab import frames

    return frames.cells(folders or (Ledger(None).root,))


def builtin() -> Path:
    """The folder of what travels with quantlab: `calibration`, `evals`, `notebooks`, `benchmarks/results/gpu`."""
    from quantlab.catalog import files

    return files.builtin()


def plan(
    model: str,
    recipes: Sequence[str] = ("fp8", "int4_awq"),
    *,
    root: Path | str | None = None,
    gpu: str | None = None,
    **words: Any,
) -> pipeline.Planned | GpuPlans:
    """What `run` would do here, from configuration and file headers alone; with `gpu`, whether a GPU that is not here
    could serve it: `plan("90b", ["fp8"], gpu="h200", tp=2, context="8k")`, see `quantlab.advice.plan_gpu`."""
    if gpu is not None:
        from quantlab.advice import plan_gpu

        return plan_gpu(model, recipes, gpu=gpu, **words)
    found = pipeline.plan_run(pipeline.Ask(model=model, recipes=tuple(recipes), **words), Ledger(root))
    return PlannedHere(**{each.name: getattr(found, each.name) for each in fields(found)})

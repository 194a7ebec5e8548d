"""The notebook face: a few functions over the pipeline, and a result that shows itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab import pipeline
from quantlab.ledgers import Ledger
from quantlab.records import Candidate, Run

if TYPE_CHECKING:
    from quantlab.preflight import GpuPlan


@dataclass(frozen=True)
class Result:
    """A run as a notebook shows it: `_repr_html_` is the report, `record` is everything behind it."""

    record: Run

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
        return Result(pipeline.run(ask, Ledger(root), watch))


def plan(
    model: str,
    recipes: Sequence[str] = ("fp8", "int4_awq"),
    *,
    root: Path | str | None = None,
    gpu: str | None = None,
    **words: Any,
) -> pipeline.Planned | list[GpuPlan]:
    """What `run` would do here, from configuration and file headers alone; with `gpu`, whether a GPU that is not here
    could serve it: `plan("90b", ["fp8"], gpu="h200", tp=2, context="8k")`, see `quantlab.advice.plan_gpu`."""
    if gpu is not None:
        from quantlab.advice import plan_gpu

        return plan_gpu(model, recipes, gpu=gpu, **words)
    return pipeline.plan_run(pipeline.Ask(model=model, recipes=tuple(recipes), **words), Ledger(root))

"""A suite's words -> lm-eval's task objects, with every item found on this machine or a sentence why not.

lm-eval defines prompts, splits, filters and metrics; nothing of that is repeated here. Only the place of the
data changes (data.py), and what lm-eval does in silence is refused aloud: an unknown name gets "did you
mean", asking for shots of a task that forbids them is an error, a metric that is no mean over items (F1,
perplexity) has no paired difference and is refused before anything runs.

Reading lm-eval's 14,000 definitions takes seconds, so its own tasks are read only if a word is not ours.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from quantlab.errors import BadInput, NoAccess
from quantlab.measure.data import items_folder, localize
from quantlab.measure.pictures import on_disk, undecoded
from quantlab.measure.vqa import steady
from quantlab.records import Suite, SuiteTask

SEEDS = (0, 1234, 1234)
"""lm-eval's defaults for `random`, numpy and few-shot sampling: the same examples as everybody's runs."""


@dataclass(frozen=True)
class LoadedTask:
    """One lm-eval task, ready to be run. A group in a suite becomes several."""

    name: str
    ask: SuiteTask
    task: Any
    """lm_eval.api.task.Task"""
    metric: str
    """Per-item metric whose mean is the score."""
    filter: str
    """Name of the filter whose answers are scored; "none" where lm-eval has none."""
    folder: Path | None = None
    """Of the items' file: paths of pictures are relative to it."""

    @property
    def items(self) -> int:
        """How many items will be asked."""
        there = len(self.task.eval_docs)
        return there if self.ask.limit is None else min(there, self.ask.limit)

    @property
    def documents(self) -> list[dict[str, Any]]:
        """What will be asked, whole: a slice takes from it."""
        return list(islice(self.task.eval_docs, self.items))


def load(
    suite: Suite, suite_folder: Path, tasks_folder: Path | None, scratch: Path, pictures: Path | None = None
) -> list[LoadedTask]:
    """All tasks of a suite, groups resolved, in order.

    Args:
        suite: what is asked.
        suite_folder: its relative paths are relative to this.
        tasks_folder: folder with quantlab's own lm-eval task files.
        scratch: where data sets are converted and task files with absolute paths are written.
        pictures: where the pictures of data sets are written; None for a folder of `scratch`.

    Raises:
        BadInput: unknown task, metric or file, shots that a task forbids, a task twice.
        NoAccess: data or a package that is not on this machine.
    """
    _seed()
    _keep_templates()
    shelf = _Shelf(tasks_folder)
    seeing = (pictures or scratch / "pictures") if suite.modality == "vision" else None
    loaded = [one for ask in suite.tasks for one in _load(ask, shelf, suite_folder, scratch, seeing)]
    names = [one.name for one in loaded]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"the suite asks {', '.join(twice)} twice.", place="suite", cure="Keep one of them.")
    return loaded


class _Shelf:
    """Task definitions: ours first, lm-eval's when needed."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @cached_property
    def own(self) -> Any:
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self._folder, include_defaults=False)

    @property
    def all(self) -> Any:
        return _everything(self._folder)

    def manager(self, name: str) -> Any:
        """The task manager that knows `name`."""
        if name in self.own.task_index:
            return self.own
        if name in self.all.task_index:
            return self.all
        near = difflib.get_close_matches(name, self.all.all_tasks, 3, 0.6)
        cure = f"Did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists lm-eval's."
        raise BadInput(f"no task {name!r}.", place="suite", cure=cure)


@cache
def _everything(folder: Path | None) -> Any:
    """lm-eval's own definitions, and ours over them."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def _load(
    ask: SuiteTask, shelf: _Shelf, suite_folder: Path, scratch: Path, pictures: Path | None
) -> Iterator[LoadedTask]:
    manager = shelf.manager(ask.task)
    entry = manager.task_index[ask.task]
    place = f"task {ask.task}"
    local = localize(ask, entry.cfg or {}, entry.yaml_path, suite_folder, scratch)
    with _explained(place, (entry.cfg or {}).get("dataset_path")), undecoded():
        tasks = manager.load([str(local) if local else ask.task])["tasks"]
    for name, task in tasks.items():
        _refuse_unsafe(task, f"task {name}", pictures is not None)
        if getattr(task, "MULTIMODAL", False) and pictures is not None:
            on_disk(task, pictures, ask.limit, f"task {name}")
        steady(task)
        _set_shots(ask, task, f"task {name}")
        metric, chosen = _metric(ask, task, f"task {name}")
        folder = items_folder(ask, entry.cfg or {}, entry.yaml_path, suite_folder)
        yield LoadedTask(name, ask, task, metric, chosen, folder)


@contextmanager
def _explained(place: str, dataset: str | None) -> Iterator[None]:
    """What lm-eval and datasets raise, as one of ours."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError
    from jinja2.exceptions import TemplateError

    try:
        yield
    except ModuleNotFoundError as error:
        cure = f"Install what the task needs: pip install {error.name}, or see lm-eval's README of the task."
        raise NoAccess(f"the Python package {error.name} is not installed.", place=place, cure=cure) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise NoAccess(
            f"the dataset {dataset} is not on this machine and the hub cannot be reached.",
            place=place,
            cure="Connect (`hf auth login` for a gated one), or name local files with `data:` in the suite.",
        ) from error
    except (KeyError, TemplateError) as error:
        raise BadInput(f"its data do not fit: {error}.", place=place, cure="Compare them with its YAML.") from error
    except (DatasetsError, OSError, ValueError, RuntimeError, IndexError, StopIteration) as error:
        what = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BadInput(
            f"its data cannot be read: {what}",
            place=place,
            cure="Compare the files with what the task's YAML expects.",
        ) from error


def _refuse_unsafe(task: Any, place: str, seeing: bool) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise BadInput("it runs code that a model wrote.", place=place, cure="Leave it out of the suite.")
    if task.get_config("doc_to_audio") is not None:
        raise BadInput("it asks about sound.", place=place, cure="Leave it out of the suite.")
    if getattr(task, "MULTIMODAL", False) and not seeing:
        raise BadInput("it asks about images.", place=place, cure="Write modality: vision in the suite.")


def _set_shots(ask: SuiteTask, task: Any, place: str) -> None:
    """As lm-eval's `simple_evaluate`, except that a task which forbids shots is an error and not a log
    line."""
    own = task.get_config("num_fewshot")
    if ask.shots and own == 0:
        raise BadInput(
            f"the task is defined without shots, the suite asks for {ask.shots}.",
            place=place,
            cure="Leave `shots` out.",
        )
    task.set_config(key="num_fewshot", value=(own or 0) if ask.shots is None else ask.shots)
    task.set_fewshot_seed(seed=SEEDS[2])


def _metric(ask: SuiteTask, task: Any, place: str) -> tuple[str, str]:
    """(metric, filter): those asked for, or the task's first."""
    aggregations = task.aggregation()
    means = [name for name, function in aggregations.items() if getattr(function, "__name__", "") == "mean"]
    filters = [entry["name"] for entry in task.get_config("filter_list") or []] or ["none"]
    if not means:
        raise BadInput("none of its metrics is a mean over items.", place=place, cure="Leave it out of the suite.")
    metric, _, chosen = (ask.metric or means[0]).partition(",")
    chosen = chosen or filters[0]
    if metric not in means or chosen not in filters:
        known = ", ".join(means if filters == ["none"] else [f"{m},{f}" for m in means for f in filters])
        raise BadInput(
            f"no metric {ask.metric!r} that is a mean over items.",
            place=place,
            cure=f"Choose one of: {known}.",
        )
    return metric, chosen


@cache
def _keep_templates() -> None:
    """lm-eval compiles a task's templates anew for each item and each field: a third of the time of scoring short
    questions. Compiled once they give the same text."""
    from lm_eval.utils import env

    env.from_string = cache(env.from_string)


def _seed() -> None:
    """Some tasks shuffle with the global generators while loading."""
    import numpy as np

    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])

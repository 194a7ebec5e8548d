"""Which data sets of the hub a suite asks for, and under which licence: said before anything is downloaded.

A task file of ours that reads from the hub says so in `metadata.hub`. Of lm-eval's own tasks only the name is known
here, because reading its definitions takes seconds and its package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from quantlab.catalog.digests import definition
from quantlab.records import Suite


class HubSet(msgspec.Struct, frozen=True, kw_only=True):
    """What a task needs of the hub."""

    task: str
    dataset: str
    """Id on the hub; "" where the task is lm-eval's own."""
    revision: str = ""
    licence: str = ""
    gated: bool = False
    """A token, and the licence accepted with it, are needed."""


def hub_sets(suite: Suite) -> Iterator[HubSet]:
    """Of each task whose items are not on this machine by the suite's or the task's own words, once."""
    for task in dict.fromkeys(one.task for one in suite.tasks if not one.data and not one.package):
        tree = definition(task)
        if tree is None:
            yield HubSet(task=task, dataset="")
        elif isinstance(hub := (tree.get("metadata") or {}).get("hub"), dict):
            known: dict[str, Any] = tree.get("dataset_kwargs") or {}
            yield HubSet(
                task=task,
                dataset=str(tree["dataset_path"]),
                revision=str(known.get("revision") or ""),
                licence=str(hub.get("licence") or ""),
                gated=bool(hub.get("gated")),
            )


def cached(dataset: str) -> bool:
    """The hub's cache on this machine has something of it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    places = [
        Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser() / f"datasets--{dataset.replace('/', '--')}",
        Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
        / dataset.replace("/", "___").lower(),
    ]
    return any(place.is_dir() for place in places)


def offline() -> bool:
    """The user has switched the hub off."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")

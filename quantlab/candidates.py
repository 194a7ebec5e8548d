"""A candidate's word -> its name and recipe, for whoever plans or recommends and runs nothing.

A recipe's word is looked up; a finished checkpoint that is on this machine is recognised, and is then weighed by its
format, its groups and its cache like any recipe.
"""

from __future__ import annotations

from pathlib import Path

from quantlab import catalog, fetch, finished
from quantlab.errors import NoAccess, Refused
from quantlab.places import home
from quantlab.records import Model, Recipe
from quantlab.records.finished import OTHER


def candidate(word: str) -> tuple[str, Recipe]:
    """Name and recipe.

    Raises:
        BadInput: no such recipe or checkpoint.
        NoAccess: a checkpoint of the hub that was not fetched yet.
        Refused: a checkpoint in a layout of which nothing is known here.
        Broken: a checkpoint whose config and tensors contradict each other.
    """
    elsewhere = catalog.elsewhere(word)
    if elsewhere is None:
        found = catalog.recipe(word)
        assert isinstance(found.record, Recipe)
        return found.name, found.record
    model = elsewhere.record
    assert isinstance(model, Model)
    here = fetch.local(model, home())
    if here is None:
        raise NoAccess("is not on this machine yet.", place=word, cure=f"Fetch it: hf download {model.location}.")
    made = finished.recognise(here.path, Path(model.location).name if model.source == "path" else model.location)
    if made.format == OTHER:
        raise Refused(f"nothing is known here of {made.unknown}.", place=word, cure="Measure it: run --engine vllm.")
    return elsewhere.name, finished.recipe(made)

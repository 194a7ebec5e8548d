"""The Hugging Face hub: where its cache lies, what is taken from it, and what its refusals mean.

Only these files are taken: a repository may also hold the same weights as pickles, which run code when opened, and as
Meta's own `original/` shards, which double the download.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantlab.errors import BadInput, NoAccess
from quantlab.records import Model

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
NOT_PATTERNS = ["original/*", "*/*", "consolidated*"]
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def snapshot(model: Model) -> Path | None:
    """The folder of the hub's cache for this revision: models--org--name/snapshots/<commit>."""
    repository = _hub_cache() / f"models--{model.location.replace('/', '--')}"
    revision = model.revision or "main"
    reference = repository / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def _hub_cache() -> Path:
    """As huggingface_hub finds it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named).expanduser() if named else home / "hub"


def download(model: Model) -> Path:
    from huggingface_hub import snapshot_download

    with hub_says(model.location, model.revision):
        folder = snapshot_download(
            model.location, revision=model.revision, allow_patterns=PATTERNS, ignore_patterns=NOT_PATTERNS
        )
    return Path(folder)


@contextmanager
def hub_says(name: str, revision: str | None = None, kind: str = "") -> Iterator[None]:
    """Inside it, what the hub's client raises becomes NoAccess with the cure of its cause.

    Args:
        name: repository.
        revision: of the repository.
        kind: "" for a model, "datasets/" for a data set: the part of the page's address before the name.
    """
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{kind}{name}"
    try:
        yield
    except GatedRepoError as error:
        raise _gated(name, page) from error
    except RepositoryNotFoundError as error:
        cure = "Check the spelling; if it is private, run `hf auth login` with an account that may read it."
        raise NoAccess("the hub has no such repository, or hides it.", place=name, cure=cure) from error
    except RevisionNotFoundError as error:
        raise NoAccess(
            f"no revision {revision!r}.", place=name, cure=f"See {page}/commits for those it has."
        ) from error
    except HFValidationError as error:
        raise BadInput("not the name of a hub repository.", place=name, cure="Write it as owner/name.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError, ConnectionError) as error:
        raise _unreachable(name) from error
    except HfHubHTTPError as error:
        raise _refused(error, name, page) from error


def missing_data(name: str, error: Exception) -> NoAccess:
    """What `datasets` says instead of the hub's own errors: its text alone tells a gated set from a missing one."""
    if "gated" in str(error).lower():
        return _gated(name, f"https://huggingface.co/datasets/{name}")
    return NoAccess("the hub has no such data set, or hides it.", place=name, cure="Check the spelling of `dataset`.")


def _gated(name: str, page: str) -> NoAccess:
    cure = f"Accept the licence at {page}, then run `hf auth login` (or set HF_TOKEN) with that account."
    return NoAccess("gated: the hub wants an accepted licence and a token.", place=name, cure=cure)


def _unreachable(name: str) -> NoAccess:
    if any(os.environ.get(key, "").upper() in ("1", "ON", "YES", "TRUE") for key in OFFLINE):
        cure = "Unset HF_HUB_OFFLINE, or copy the hub's cache from a machine that has it."
        return NoAccess("not in the cache, and offline mode (HF_HUB_OFFLINE) is on.", place=name, cure=cure)
    cure = "Check the network and the proxy, or fetch it elsewhere with `hf download` and give the folder."
    return NoAccess("the hub cannot be reached and the cache does not have it.", place=name, cure=cure)


def _refused(error: Any, name: str, page: str) -> NoAccess:
    code = getattr(error.response, "status_code", None)
    if code in (401, 403):
        return _gated(name, page)
    cure = "Wait a little and run the command again." if code in (429, 500, 502, 503, 504) else f"See {page}."
    return NoAccess(f"the hub answered with status {code}.", place=name, cure=cure)

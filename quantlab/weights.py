"""A folder of weights, judged from its headers: is it whole, what is in it, which one is it?

A safetensors file begins with eight bytes that give the length of a JSON header; the header names every tensor with
its type, shape and byte range. So the shapes of a 140 GB model are known after reading a few hundred kilobytes, and a
download that broke off is found by comparing the largest byte range with the size of the file. Nothing here imports an
SDK: the parent process asks these questions before it starts anything.

Pickled weights (.bin, .pth) are refused: unpickling runs code from the file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantlab import disk
from quantlab.errors import BadInput, Broken

INDEX = "model.safetensors.index.json"
IDENTITY = (
    *("config.json", "generation_config.json", "hf_quant_config.json", "quant_cfg.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""Small files that can change a number, beside *.safetensors and their index."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PARTIAL, _STALE_SECONDS = ".partial", 86400
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack")
BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8,
        "I64": 64, "I32": 32, "I16": 16, "BOOL": 8}  # fmt: skip
"""Of one element, by the names in a safetensors header."""


def header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> {"dtype", "shape", "data_offsets"} of one safetensors file, read from its header alone.

    Raises:
        Broken: a Git LFS pointer, a file that broke off, or no safetensors file at all.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            raise Broken(
                "this is a Git LFS pointer, not the weights.", place=str(file), cure="Run `git lfs pull` in the folder."
            )
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise _cut(file, f"it has {size} bytes and its header alone needs {8 + length}")
        tensors = _tensors(file, stream.read(length))
    end = 8 + length + max((one["data_offsets"][1] for one in tensors.values()), default=0)
    if end != size:
        raise _cut(file, f"it has {size} bytes, its header promises {end}")
    return tensors


def _tensors(file: Path, raw: bytes) -> dict[str, dict[str, Any]]:
    try:
        tensors: dict[str, dict[str, Any]] = json.loads(raw)
        tensors.pop("__metadata__", None)
        for one in tensors.values():
            one["data_offsets"][1], one["shape"], one["dtype"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as problem:
        raise Broken(f"no safetensors header ({problem}).", place=str(file), cure="Fetch the file again.") from None
    return tensors


def _cut(file: Path, finding: str) -> Broken:
    return Broken(f"the file is cut off or damaged: {finding}.", place=str(file), cure="Delete it and fetch it again.")


def headers(path: str | Path) -> dict[str, dict[str, Any]]:
    """All tensors of a folder, name -> header entry plus "file".

    Raises:
        BadInput: no weights, or weights only as pickles.
        Broken: as `header`, or an index that names files or tensors which are not there.
    """
    folder = Path(path)
    found: dict[str, dict[str, Any]] = {}
    for file in _files(folder):
        found |= {name: one | {"file": file.name} for name, one in header(file).items()}
    return found


def shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from headers alone. Raises as `headers`."""
    return {name: tuple(one["shape"]) for name, one in headers(path).items()}


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.exists():
        names = _named(index)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            lack = f"{len(missing)} of {len(names)} files that it names are missing, e.g. {missing[0]}."
            raise Broken(lack, place=str(index), cure="Fetch the model again.")
        return [folder / name for name in names]
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())  # no dangling links
    if not files:
        raise _weightless(folder)
    return files


def _named(index: Path) -> list[str]:
    """Files of an index, each a bare name: an index may not lead out of its folder."""
    tensors = _json(index).get("weight_map")
    files = set(map(str, tensors.values())) if isinstance(tensors, dict) else set()
    if not files or any(name != Path(name).name for name in files):
        raise Broken("names no files of this folder.", place=str(index), cure="Fetch the file again.")
    return sorted(files)


def _weightless(folder: Path) -> BadInput:
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return BadInput(
            f"weights only as {pickles[0]}, a format that runs code when it is opened; quantlab reads safetensors.",
            place=str(folder),
            cure="Convert where you trust the source: load it with transformers and call save_pretrained.",
        )
    cure = "Give a folder with config.json, *.safetensors and the tokenizer."
    return BadInput("no weights: no *.safetensors file.", place=str(folder), cure=cure)


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise Broken(f"not readable as JSON: {problem}.", place=str(file), cure="Fetch the file again.") from None
    if not isinstance(data, dict):
        raise Broken("holds no JSON object.", place=str(file), cure="Fetch the file again.")
    return data


def config(path: str | Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        BadInput: the folder or the file is missing.
        Broken: the file is not JSON.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BadInput("no such folder.", place=str(folder), cure="Give a model word, a hub id or a model's folder.")
    if not (folder / "config.json").is_file():
        cure = "Give the folder that transformers' save_pretrained or `hf download` wrote."
        raise BadInput("no config.json, so this is not a model.", place=str(folder), cure=cure)
    return _json(folder / "config.json")


def architecture(path: str | Path) -> str:
    """`architectures[0]` of config.json. Raises BadInput when it names none, else as `config`."""
    names = config(path).get("architectures")
    if not isinstance(names, list) or not names:
        raise BadInput("config.json names no architecture.", place=str(path), cure="Add `architectures` to it.")
    return str(names[0])


def check_folder(path: str | Path) -> None:
    """Is this a whole model: config, safetensors and a tokenizer? Milliseconds, no weights are read.

    Raises:
        BadInput: something is not there, or only as a pickle.
        Broken: something is there and damaged.
    """
    architecture(path)
    headers(path)
    if not any((Path(path) / name).is_file() for name in TOKENIZERS):
        raise BadInput("no tokenizer.", place=str(path), cure=f"Put the tokenizer's files ({TOKENIZERS[0]} ...) there.")


def weight_bytes(path: str | Path) -> int:
    """Size of the safetensors files."""
    return sum(file.stat().st_size for file in _files(Path(path)))


def digest_folder(path: str | Path, cache: Path | None = None) -> str:
    """SHA-256 over the names and contents of config, tokenizer and weight files, 64 hexadecimal digits.

    Args:
        path: the folder.
        cache: a JSON file that keeps the digest of a file under (path, size, modification time, inode), so that a
            second call reads nothing. A file of the hub's cache is named by its own SHA-256 and is never read.
    """
    folder = Path(path)
    weights = [*_files(folder), *folder.glob("*.index.json")]
    files = {file.name: file for file in [*weights, *(folder / name for name in IDENTITY)] if file.is_file()}
    known = _known(cache)
    digests = {name: _digest_file(file, known) for name, file in sorted(files.items())}
    if cache is not None and _known(cache) != known:
        disk.write(cache, json.dumps(known, sort_keys=True).encode())
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _digest_file(file: Path, known: dict[str, str]) -> str:
    real = file.resolve()
    if real.parent.name == "blobs" and len(real.name) == 64 and set(real.name) <= set("0123456789abcdef"):
        return real.name
    state = real.stat()
    key = f"{real}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}"
    if key not in known:
        with real.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return known[key]


def _known(cache: Path | None) -> dict[str, str]:
    """The kept digests. A damaged or missing file only costs the time to read the weights again."""
    try:
        known = json.loads(cache.read_bytes()) if cache is not None else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


@contextmanager
def written_whole(into: Path) -> Iterator[Path]:
    """A temporary folder that becomes `into` when the block ends well, and disappears when it does not.

    What was there before is replaced in one step: whoever has its files open goes on reading them. After a
    `kill -9` a hidden folder is left beside `into`; the next call takes it away once it is a day old.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    for left in into.parent.glob(f".{into.name}.*{_PARTIAL}"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=into.parent, prefix=f".{into.name}.", suffix=_PARTIAL))
    try:
        yield temporary
        for made in (temporary, *temporary.rglob("*")):
            made.chmod(0o755 if made.is_dir() else 0o644)  # safetensors and mkdtemp write for the owner alone
        disk.move(temporary, into)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

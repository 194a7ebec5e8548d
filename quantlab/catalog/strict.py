"""YAML read strictly: every complaint names file, line and field, and says what to do.

YAML forgives too much for a file that decides a number. A key given twice silently keeps the last one; `no`
is a boolean; a misspelt field is dropped by most tools, and the run then measures something else than was
meant. Here all of these are refused. The text is composed into nodes once; the nodes carry the lines, and the
record is made from the same nodes, so a line in a message is always the line of the thing complained about.

Anchors and aliases are refused too: nothing here needs them, and nested ones can blow up into gigabytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from quantlab.errors import BadInput

LIMIT_BYTES = 1_000_000
"""Largest file; the biggest of ours has 8 kB."""
DEPTH = 32
"""Deepest nesting; the deepest record has 4 levels."""

T = TypeVar("T")
Parts = tuple[str | int, ...]
"""Where in a record: ("tasks", 0, "metric")."""
Complaint = tuple[Parts, str, str]
"""Where, problem, cure."""

_PLAIN = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a block of fields",
    "null": "null",
    "date": "a date",
}


def load(path: Path, kind: type[T], check: Callable[[T], Iterable[Complaint]] | None = None) -> T:
    """The record of type `kind` that the file holds.

    Args:
        path: a YAML file in UTF-8, one document, at most LIMIT_BYTES.
        kind: a msgspec Struct.
        check: further rules on the record; the first complaint is raised with its line.

    Raises:
        BadInput: unreadable, not YAML, or not such a record; `place` holds file, line and field.
    """
    return parse(read(path), show(path), kind, check)


def read(path: Path) -> bytes:
    """Content of a regular file of at most LIMIT_BYTES.

    Raises:
        BadInput: missing, a folder, not readable or too big.
    """
    try:
        if not path.is_file():
            raise BadInput("is not a file.", place=show(path), cure="Give the path of a YAML file.")
        with path.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot be read ({reason}).", place=show(path), cure="Check the path.") from error
    if len(data) > LIMIT_BYTES:
        raise BadInput(f"is larger than {LIMIT_BYTES:,} bytes.", place=show(path), cure="Keep data elsewhere.")
    return data


def parse(data: bytes, place: str, kind: type[T], check: Callable[[T], Iterable[Complaint]] | None = None) -> T:
    """As `load`, from bytes; `place` is how the file is called in messages."""
    plain, lines = _compose(_decode(data, place), place)
    try:
        record = msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        parts, problem, cure = _translate(str(error), kind, plain)
        raise _complain(place, lines, parts, problem, cure) from None
    for parts, problem, cure in check(record) if check else ():
        raise _complain(place, lines, parts, problem, cure)
    return record


def show(path: Path) -> str:
    """The path as short as it is still clear: relative when it lies below the working directory."""
    here = os.path.join(os.getcwd(), "")
    whole = os.path.abspath(path)
    return whole.removeprefix(here) or whole


def nearest(word: str, options: Iterable[str]) -> str:
    """ "Did you mean 'fp8'?" when an option is close, else an empty string."""
    import difflib

    choices = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.55)
    return f"Did you mean {choices[close[0]]!r}?" if close else ""


def _decode(data: bytes, place: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8."
        raise BadInput(problem, place=f"{place}, line {line}", cure="Save the file as UTF-8.") from None
    if not text.strip():
        raise BadInput("the file is empty.", place=place, cure="Start from one of ours: quantlab cp.")
    return text


def _compose(text: str, place: str) -> tuple[dict[str, Any], dict[Parts, int]]:
    """Plain data, and the line of every field in it."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        lines = dict(_walk(node, (), place, set()))
        plain = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        raise _broken(error, text, place) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not usable YAML ({error}).", place=place, cure="Put text in quotes.") from None
    finally:
        loader.dispose()
    if not isinstance(plain, dict):
        raise BadInput("must hold fields (name: value).", place=f"{place}, line 1", cure="See calibration/README.md.")
    return plain, lines


def _walk(node: Any, parts: Parts, place: str, seen: set[int]) -> Iterator[tuple[Parts, int]]:
    """Yield (where, line) of every node; refuse duplicates, aliases, odd keys and depth."""
    if node is None:
        return
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise BadInput("anchors and aliases are not allowed.", place=f"{place}, line {line}", cure="Write it out.")
    if len(parts) > DEPTH:
        raise BadInput("is nested too deeply.", place=f"{place}, line {line}", cure="See calibration/README.md.")
    seen.add(id(node))
    if node.id == "mapping":
        yield from _walk_mapping(node, parts, place, seen)
    elif node.id == "sequence":
        for index, item in enumerate(node.value):
            yield (*parts, index), item.start_mark.line + 1
            yield from _walk(item, (*parts, index), place, seen)


def _walk_mapping(node: Any, parts: Parts, place: str, seen: set[int]) -> Iterator[tuple[Parts, int]]:
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        where = f"{place}, line {line}"
        if key.tag != "tag:yaml.org,2002:str":
            said = getattr(key, "value", None)
            name = repr(said) if isinstance(said, str) else "this"
            raise BadInput(f"{name} is not a field's name.", place=where, cure="Names are text; use quotes.")
        if key.value in first:
            where = f"{where}, field {field((*parts, key.value))}"
            raise BadInput(f"is given twice, first in line {first[key.value]}.", place=where, cure="Keep one.")
        first[key.value] = line
        yield (*parts, key.value), line
        yield from _walk(value, (*parts, key.value), place, seen)


def _broken(error: Any, text: str, place: str) -> BadInput:
    """A YAML syntax error, with its line and the usual cause as cure."""
    mark = getattr(error, "problem_mark", None)
    position = getattr(error, "position", None)
    line = mark.line + 1 if mark else text.count("\n", 0, position) + 1 if position is not None else 1
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    cure = "Check the indentation, and put text that holds ': ' or ' #' or starts with a sign in quotes."
    return BadInput(f"not valid YAML: {problem}.", place=f"{place}, line {line}", cure=cure)


def _complain(place: str, lines: dict[Parts, int], parts: Parts, problem: str, cure: str) -> BadInput:
    known = parts
    while known and known not in lines:
        known = known[:-1]
    where = f"{place}, line {lines.get(known, 1)}"
    return BadInput(problem, place=f"{where}, field {field(parts)}" if parts else where, cure=cure)


def field(parts: Parts) -> str:
    """("tasks", 0, "metric") -> "tasks[0].metric"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _translate(message: str, kind: Any, plain: Any) -> Complaint:
    """A msgspec message -> where, what is wrong in plain English, and the cure."""
    said, _, path = message.partition(" - at `$")
    parts = _parts(path.rstrip("`"))
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", said, re.S):
        known = [each.name for each in msgspec.structs.fields(_struct_at(kind, parts))]
        cure = nearest(found[1], known) or f"Fields: {', '.join(known)}."
        return (*parts, found[1]), f"there is no field {found[1]!r}.", cure
    if found := re.fullmatch(r"Object missing required field `(.*)`", said):
        return (*parts, found[1]), "this field is missing.", "Add it; quantlab show prints an example."
    value = _value_at(plain, parts)
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    if found := re.fullmatch(r"Expected `(.*)`, got `(.*)`", said):
        wanted = " or ".join(_PLAIN.get(each, each) for each in found[1].split(" | "))
        return parts, f"expected {wanted}, not {shown}.", _cure_of(found[1], found[2], value)
    if "enum value" in said:
        allowed = [word for word in _words(_type_at(kind, parts)) if isinstance(word, str)]
        hint = nearest(str(value), allowed)
        return parts, f"{shown} is not known here.", f"{hint} Possible: {', '.join(allowed)}.".strip()
    return parts, f"{said} ({shown}).", ""


def _cure_of(wanted: str, got: str, value: Any) -> str:
    if wanted.startswith("array"):
        return f"Write a list: [{value}]." if got != "object" else "Write a list: [a, b]."
    if wanted.startswith("str") and got in ("bool", "int", "float", "date", "null"):
        return "Put it in quotes."
    if got == "str" and wanted.startswith(("int", "float", "bool")):
        return "Write it without quotes, units and separators."
    return ""


def _parts(path: str) -> Parts:
    steps = re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path)
    return tuple(name or int(index) for name, index in steps)


def _value_at(plain: Any, parts: Sequence[str | int]) -> Any:
    for part in parts:
        try:
            plain = plain[part]
        except (KeyError, IndexError, TypeError):
            return None
    return plain


def _type_at(kind: Any, parts: Parts) -> Any:
    """The annotation of the field at `parts`."""
    for part in parts:
        if isinstance(part, int):
            kind = next((get_args(each)[0] for each in _members(kind) if get_origin(each) is tuple), Any)
        else:
            named = {each.name: each.type for each in msgspec.structs.fields(_struct_at(kind, ()))}
            kind = named.get(part, Any)
    return kind


def _struct_at(kind: Any, parts: Parts) -> type[msgspec.Struct]:
    members = _members(_type_at(kind, parts) if parts else kind)
    return next(each for each in members if isinstance(each, type) and issubclass(each, msgspec.Struct))


def _members(kind: Any) -> tuple[Any, ...]:
    """A union's members; the type itself otherwise."""
    return get_args(kind) if get_origin(kind) not in (None, tuple, dict, Literal) else (kind,)


def _words(kind: Any) -> list[Any]:
    """All literal words that a type admits."""
    return [word for each in _members(kind) if get_origin(each) is Literal for word in get_args(each)]

"""Texts that others chose, made harmless to look at; the JSON keeps them as they were.

Prompts, answers, names and error texts come out of models, files and hubs. An escape sequence can repaint a terminal,
a right-to-left override can turn a sentence around, a NUL ends a text for some programs. Each such character is
replaced by a visible stand-in, so that the reader sees that something was there. Markup is not touched here: each
face escapes for its own language.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from quantlab.records import Run

Record = TypeVar("Record", bound=msgspec.Struct)

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SUSPECT = re.compile(r"\\[bfru]|[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_INVISIBLE = re.compile("[\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def clean(run: Run) -> Run:
    """The same run with every text free of control, direction-changing and half characters."""
    return cleaned(run)


def cleaned(record: Record) -> Record:
    """Any record of ours, likewise."""
    return record if _harmless(record) else msgspec.convert(_walk(msgspec.to_builtins(record)), type(record))


def _harmless(record: msgspec.Struct) -> bool:
    """Whether no text needs a stand-in: one search through the JSON instead of a walk through thousands of texts.

    JSON writes control characters as escapes. A text that only looks like an escape is walked in vain, no more.
    """
    try:
        said = msgspec.json.encode(record).decode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return _SUSPECT.search(said) is None


def plain(text: str) -> str:
    """One text without control characters; line feeds and tabs stay."""
    text = text.replace("\r\n", "\n")
    text = _CONTROL.sub(lambda found: _picture(ord(found.group())), text)
    return _INVISIBLE.sub(lambda found: f"<U+{ord(found.group()):04X}>", text)


def line(text: str) -> str:
    """One text on one line: every run of white space is one space."""
    return " ".join(text.split())


def _picture(code: int) -> str:
    """Unicode's Control Pictures: ESC is shown as one small sign that reads ESC."""
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"<U+{code:04X}>"


def _walk(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {_walk(name): _walk(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(each) for each in value]
    return value

"""Answers that were already paid for, one line a block, so that a kill costs the block at work and nothing
else.

Why whole blocks and not single answers: the last bits of a log-probability depend on what else was in the
batch. A block is cut from the *whole* list of requests, in a fixed order, whatever was answered before; it is
read back whole or computed again whole. So a run that was killed ten times gives bit for bit the numbers of
an undisturbed one (on a device that computes the same batch twice to the same bits).

A block is named by the digest of its requests' token ids. The first line binds the file to the artifact and
the engine: a journal of another checkpoint in the same folder is thrown away. A line is one `write` to a
descriptor opened for appending, so two runs in one folder repeat work but do not mix lines; a line that a
kill cut short is not read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from quantlab import disk

HEADER = "quantlab journal 2"
"""Its number grows when the engines compute other last bits: one run must not mix them."""


class Journal:
    """Open with `with`; `get` and `put` blocks by their digest. Numbers survive exactly, NaN and infinities
    too."""

    def __init__(self, path: Path, binding: str) -> None:
        """Args:
        path: the file; made if missing.
        binding: digest of everything besides the requests that can change an answer.
        """
        self._place = path.parent
        header = json.dumps([HEADER, binding])
        with disk.trouble(self._place):
            lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
            mine = lines[0] == header
            if not mine:
                disk.write(path, header.encode() + b"\n")
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._blocks: dict[str, list[Any]] = dict(_whole(lines[1:])) if mine else {}
        if mine and lines[-1]:
            self._append(b"\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        """Blocks that are there."""
        return len(self._blocks)

    def get(self, block: str) -> list[Any] | None:
        """The block's answers, or None if it was never finished."""
        return self._blocks.get(block)

    def put(self, block: str, answers: list[Any]) -> list[Any]:
        """Keep the block's answers (plain JSON values) and hand them back as a resumed run would read
        them."""
        line = json.dumps([block, answers])
        self._append(line.encode() + b"\n")
        self._blocks[block] = json.loads(line)[1]
        return self._blocks[block]

    def _append(self, data: bytes) -> None:
        with disk.trouble(self._place):
            while data:
                data = data[os.write(self._file, data) :]


def _whole(lines: list[str]) -> Iterator[tuple[str, list[Any]]]:
    """The lines that are complete. A JSON array that a kill cut short is no JSON; its block is computed
    again."""
    for line in lines:
        try:
            block, answers = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield block, answers

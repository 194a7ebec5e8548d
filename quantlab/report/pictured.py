"""Speed with pictures in the prompt as a table, beside the same cell without."""

from __future__ import annotations

from collections.abc import Sequence

from quantlab.records import Cell, PictureCell
from quantlab.report import figures
from quantlab.report.rows import Row, key

HEADER = (
    "recipe",
    "pictures",
    "image tokens",
    "in",
    "out",
    "batch",
    "encoder, images/s",
    "first token",
    "decode tokens/s",
    "without pictures",
    "remark",
)


def body(rows: Sequence[Row]) -> list[list[str]]:
    """One line for each cell with pictures; [] where the grid asked for none."""
    return [
        _line(row, each, {key(cell): cell for cell in row.candidate.throughput.cells})
        for row in rows
        if row.candidate.throughput is not None
        for each in row.candidate.throughput.pictures
    ]


def _line(row: Row, each: PictureCell, alone: dict[tuple[int, int, int], Cell]) -> list[str]:
    cell, without = each.cell, alone.get(key(each.cell))
    encoder = each.encoder_images_per_second
    return [
        row.name + row.mark,
        figures.fixed(each.images, 0),
        figures.fixed(each.image_tokens, 0) if cell.valid else figures.NOTHING,
        *(figures.fixed(number, 0) for number in key(cell)),
        figures.three(encoder.value if encoder else None),
        figures.seconds(cell.ttft_seconds.value if cell.ttft_seconds else None),
        _decode(cell),
        _decode(without),
        row.how if cell.valid else cell.reason,
    ]


def _decode(cell: Cell | None) -> str:
    rate = cell.decode_tokens_per_second if cell and cell.valid else None
    return figures.three(rate.value if rate else None)

"""A picture file -> RGB pixels, or a refusal that says what is wrong with it.

Pillow opens lazily: a file that broke off shows only when its pixels are asked for, a small file may announce a billion
pixels (a decompression bomb), and `convert("RGB")` throws transparency away and leaves whatever colour lies beneath. So
size is looked at before a pixel is decoded, everything is decoded here, and transparent pixels become white, as the
image processor of Llama 3.2 Vision does it. A photograph is turned as its EXIF orientation says: people ask about what
they see.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from quantlab.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_PIXELS = 64_000_000
"""Largest picture decoded: 8000 x 8000, 192 MB as RGB. Four tiles of 560 pixels are all that Llama 3.2 looks at."""
_WIDE = ("I", "F")
"""Pillow's modes of more than 8 bits a channel begin with these; their range is not known, so they are refused."""


def opened(path: str | Path) -> Picture:
    """The whole picture, decoded, mode RGB.

    Raises:
        BadInput: no such file, no picture, cut off, too large, or more than 8 bits a channel.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    place = str(path)
    try:
        with Image.open(path) as found:
            _require_small(found.size, place)
            if found.mode.startswith(_WIDE):
                cure = "Save it with 8 bits a channel."
                raise BadInput(f"its pixels are of mode {found.mode}.", place=place, cure=cure)
            found.load()
            return _white_behind(ImageOps.exif_transpose(found))
    except UnidentifiedImageError:
        cure = "Give a PNG, JPEG or WebP file."
        raise BadInput("is no picture that Pillow can read.", place=place, cure=cure) from None
    except Image.DecompressionBombError as error:
        raise BadInput(f"is too large to be decoded ({error}).", place=place, cure="Make it smaller.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # SyntaxError: what Pillow raises for a broken PNG
        cure = "Check the path, and copy the file again if it broke off."
        raise BadInput(f"cannot be read ({error}).", place=place, cure=cure) from None


def _require_small(size: tuple[int, int], place: str) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise BadInput(
            f"{width:,} x {height:,} pixels are more than {MOST_PIXELS:,}.",
            place=place,
            cure="Make it smaller: the model sees a few hundred pixels a side.",
        )


def _white_behind(picture: Picture) -> Picture:
    """Mode RGB, with white where the picture is transparent."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    above = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, (255, 255, 255, 255)), above).convert("RGB")


def pixel_digest(picture: Picture) -> str:
    """SHA-256 over width, height and RGB bytes: the same picture in another file format has the same digest."""
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()

"""Pictures that are none, that broke off, that are too large, and those of every mode."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from quantlab.errors import BadInput
from quantlab.images import MOST_PIXELS, opened, pixel_digest


def saved(folder: Path, picture: Image.Image, name: str = "a.png", **options: object) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def noisy(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


@pytest.mark.parametrize("kept", [0, 7, 40, 0.5, 0.97])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_picture_that_broke_off(tmp_path: Path, name: str, kept: float) -> None:
    path = saved(tmp_path, noisy(), name)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw)) if kept < 1 else int(kept)])
    with pytest.raises(BadInput) as refused:
        opened(path)
    assert refused.value.place == str(path)
    assert refused.value.cure


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(BadInput, match="no picture"):
        opened(tmp_path / "a.png")
    with pytest.raises(BadInput, match="No such file"):
        opened(tmp_path / "b.png")
    with pytest.raises(BadInput, match="directory"):
        opened(tmp_path)


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few hundred bytes that announces side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("side", [8001, 12_000, 60_000])
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_decompression_bomb_is_refused_before_a_pixel_is_decoded(tmp_path: Path, side: int) -> None:
    assert side * side > MOST_PIXELS
    with pytest.raises(BadInput, match=r"pixels|too large") as refused:
        opened(bomb(tmp_path / "a.png", side))
    assert "smaller" in refused.value.cure


def test_transparency_becomes_white_and_not_what_lies_beneath(tmp_path: Path) -> None:
    half = Image.new("RGBA", (2, 1), (200, 10, 10, 0))
    half.putpixel((1, 0), (10, 20, 30, 255))
    found = opened(saved(tmp_path, half))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]
    grey = Image.new("LA", (1, 1), (7, 0))
    assert opened(saved(tmp_path, grey, "b.png")).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([1, 2, 3])
    assert opened(saved(tmp_path, palette, "c.png", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_every_ordinary_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "a.tiff" if mode == "CMYK" else "a.png"
    found = opened(saved(tmp_path, noisy((8, 4)).convert(mode), name))
    assert (found.mode, found.size) == ("RGB", (8, 4))


@pytest.mark.parametrize(("mode", "name"), [("I;16", "a.png"), ("I", "a.tiff"), ("F", "b.tiff")])
def test_more_than_8_bits_a_channel_is_refused(tmp_path: Path, mode: str, name: str) -> None:
    with pytest.raises(BadInput, match="of mode"):
        opened(saved(tmp_path, Image.new(mode, (4, 4)), name))


def test_a_photograph_is_turned_as_it_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = saved(tmp_path, noisy((8, 4)), "a.jpg", exif=exif)
    assert opened(path).size == (4, 8)


def test_the_digest_is_of_pixels_and_not_of_files(tmp_path: Path) -> None:
    picture = noisy((8, 4))
    png, webp = saved(tmp_path, picture), saved(tmp_path, picture, "a.webp", lossless=True)
    assert png.read_bytes() != webp.read_bytes()
    assert pixel_digest(opened(png)) == pixel_digest(opened(webp))
    turned = Image.open(io.BytesIO(png.read_bytes())).transpose(Image.Transpose.ROTATE_180)
    assert pixel_digest(turned) != pixel_digest(opened(png))
    assert pixel_digest(Image.new("RGB", (2, 8))) != pixel_digest(Image.new("RGB", (8, 2)))

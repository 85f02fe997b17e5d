"""Images of anybody: what they show survives, and what would cost too much is refused before it is decoded."""

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hf_efficient.images import ImageError, read_image
from hf_efficient.representation.evaluation.drawing import MOST_PIXELS, draw_kept_tokens, enlarge


def png(width: int, height: int, kind: bytes = b"IHDR") -> bytes:
    """A PNG file whose header claims a size, and which has next to no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(kind, header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def colour(path: Path, at: tuple[int, int] = (5, 5)) -> tuple[int, ...]:
    pixel = read_image(str(path)).getpixel(at)
    assert isinstance(pixel, tuple)
    return pixel


def test_a_small_image_keeps_every_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "a.png"))), pixels)


@pytest.mark.parametrize(("turn", "red"), [(1, (2, 2)), (3, (61, 29)), (6, (29, 2)), (8, (2, 61))])
def test_it_is_turned_as_the_camera_was_held(tmp_path: Path, turn: int, red: tuple[int, int]) -> None:
    image = Image.new("RGB", (64, 32), "blue")
    image.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[274] = turn
    for name in ("a.png", "a.webp", "a.jpg"):
        options: dict[str, Any] = {"quality": 95} if name == "a.jpg" else {}
        image.save(tmp_path / name, exif=exif, **options)
        r, _, b = colour(tmp_path / name, red)
        assert r > 200, name
        assert b < 80, name


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    grey = np.full((32, 32), 32768, dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png") == pytest.approx((127, 127, 127), abs=1)


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    for mode, value in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        Image.new(mode, (32, 32), value).save(tmp_path / "a.png")
        assert colour(tmp_path / "a.png") == (255, 255, 255)
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "a.gif", transparency=0)
    assert colour(tmp_path / "a.gif") == (255, 255, 255)
    half = Image.new("RGBA", (32, 32), (255, 0, 0, 128))
    half.save(tmp_path / "a.webp", lossless=True)
    assert colour(tmp_path / "a.webp") == pytest.approx((255, 127, 127), abs=2)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    red = Image.new("RGB", (64, 64), "white")
    name = "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"
    red.convert(mode).save(tmp_path / name)
    made = read_image(str(tmp_path / name))
    assert made.mode == "RGB"
    assert min(made.getpixel((3, 3))) > 250  # type: ignore[type-var, arg-type]


def test_a_large_image_is_made_smaller_before_anything_works_on_it(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (5000, 2500), (200, 30, 60)).save(tmp_path / name)
        made = read_image(str(tmp_path / name))
        assert made.size == (1024, 512)
        assert made.getpixel((500, 200)) == pytest.approx((200, 30, 60), abs=3)


def test_a_telephones_image_with_a_preview_is_its_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), name) for name in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert colour(tmp_path / "a.jpg")[0] > 200


REFUSED = {
    "animated": ["a.gif", "b.webp", "c.png"],
    "more than 40 megapixels": ["large.png", "bomb.png"],
    "at least 16 a side": ["tiny.png"],
    "one side is more than 16 times the other": ["thin.png"],
    "not an image": ["text.png", "none.png", "vector.svg", "page.eps"],
    "is damaged": ["cut.png", "cut.jpg", "texts.png"],
    "is gone": ["gone.png"],
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    frames = [Image.new("RGB", (32, 32), name) for name in ("red", "blue")]
    for name in REFUSED["animated"]:
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    (folder / "large.png").write_bytes(png(8000, 5001))
    (folder / "bomb.png").write_bytes(png(2**31 - 1, 2**31 - 1))
    Image.new("RGB", (8, 64)).save(folder / "tiny.png")
    Image.new("L", (16, 20000)).save(folder / "thin.png")
    (folder / "text.png").write_text("not an image")
    (folder / "none.png").write_bytes(b"")
    (folder / "vector.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg"):
        held = io.BytesIO()
        noise.save(held, "JPEG" if suffix == "jpg" else "PNG")
        (folder / f"cut.{suffix}").write_bytes(held.getvalue()[:1500])
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "a" * (80 << 20), zip=True)
    Image.new("L", (32, 32)).save(folder / "texts.png", pnginfo=info)
    return folder


@pytest.mark.parametrize(("message", "name"), [(m, name) for m, names in REFUSED.items() for name in names])
def test_what_cannot_be_shown_gets_a_sentence(bad: Path, message: str, name: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_image(str(bad / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_broken_bytes_raise_nothing_else(tmp_path: Path, suffix: str) -> None:
    held, draw = io.BytesIO(), random.Random(suffix)
    Image.effect_mandelbrot((48, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(held, suffix)
    whole = held.getvalue()
    refused = 0
    for _ in range(150):
        broken = bytearray(whole[: draw.randrange(20, len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(1, 6)):
            broken[draw.randrange(min(len(broken), draw.choice([40, 400, 10**6])))] = draw.randrange(256)
        (tmp_path / "a").write_bytes(broken)
        try:
            assert max(read_image(str(tmp_path / "a")).size) <= 1024
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("size", [(16, 20000), (20000, 16), (96, 96), (3000, 2000), (1, 5), (400, 5000)])
def test_what_is_drawn_is_bounded_whatever_the_shape(size: tuple[int, int]) -> None:
    drawn = draw_kept_tokens(Image.new("RGB", size), [0], (2, 2))
    assert drawn.width * drawn.height <= max(MOST_PIXELS, size[0] * size[1])
    assert drawn.width % size[0] == drawn.height % size[1] == 0
    if size == (96, 96):
        assert drawn.size == (384, 384)
    assert enlarge(Image.new("RGB", size), 2).size == (2 * size[0], 2 * size[1])  # what is asked for is done

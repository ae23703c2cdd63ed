"""Numbers of pixels by headers alone, compared with what Pillow and others have written."""

from __future__ import annotations

import io

import pillow_heif
import pytest
from PIL import Image

from sharp_cog.imaging.images import decode
from sharp_cog.imaging.sizes import count_pixels
from tests.images import png

WIDTH, HEIGHT = 96, 64


def saved(image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.open(io.BytesIO(png(WIDTH, HEIGHT)))
    if image_format == "HEIF":
        pillow_heif.from_pillow(image).save(file)
    else:
        image.save(file, image_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"\xff\xc0 is no frame here" * 1000}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
        ("TIFF", {}),
        ("TIFF", {"big_tiff": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("HEIF", {}),
        ("AVIF", {}),
    ],
)
def test_every_format_that_is_decoded_has_its_pixels_counted(image_format: str, options: dict[str, object]) -> None:
    content = saved(image_format, **options)
    assert count_pixels(content) == WIDTH * HEIGHT == decode(content).rgb[..., 0].size


def test_an_image_of_gigabytes_is_counted_by_some_bytes_of_it() -> None:
    content = bytearray(png())
    content[16:24] = (20_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    assert count_pixels(bytes(content[:40])) == 200_000_000


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"BM", b"II*\0", b"GIF8"])
def test_what_has_no_header_has_no_pixels(content: bytes) -> None:
    assert count_pixels(content) == 0


def test_headers_that_are_cut_anywhere_raise_nothing() -> None:
    for image_format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF"):
        content = saved(image_format)
        for end in range(min(len(content), 400)):
            assert count_pixels(content[:end]) in (0, WIDTH * HEIGHT), (image_format, end)

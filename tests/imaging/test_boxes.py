"""HEIC and AVIF: properties that decoders do not report, and files that are less than strict."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharp_cog.errors import ImageError
from sharp_cog.imaging import boxes
from sharp_cog.imaging.boxes import Box, read_container, repair_avif
from sharp_cog.imaging.images import decode
from tests.imaging.samples import NOISE, SMOOTH, encoded, exif, heic

DATA = Path(__file__).parents[1] / "data" / "images"
CLAP, WITHOUT_SIZE = ((DATA / name).read_bytes() for name in ("clap.avif", "alpha_noispe.avif"))


def with_property(content: bytes, kind: bytes, value: bytes) -> bytes:
    """Give the main image of a HEIC or AVIF one more property; the description moves to the end of the file."""
    container = read_container(content)
    assert container is not None
    start, end = next((start, end) for each, start, end in boxes._places(content) if each == b"meta")
    inner = list(boxes._boxes(content[start + 12 : end]))
    for index, box in enumerate(inner):
        if box.kind == b"iprp":
            parts = list(boxes._boxes(box.content))
            for place, part in enumerate(parts):
                if part.kind == b"ipco":
                    parts[place] = Box(kind=b"ipco", content=part.content + Box(kind=kind, content=value).encoded())
                else:
                    added = boxes._add_association(part.content, {container.primary_item}, len(container.properties))
                    parts[place] = Box(kind=b"ipma", content=added)
            inner[index] = Box(kind=b"iprp", content=b"".join(part.encoded() for part in parts))
    meta = Box(kind=b"meta", content=content[start + 8 : start + 12] + b"".join(box.encoded() for box in inner))
    return content[: start + 4] + b"free" + content[start + 8 :] + meta.encoded()


def camera_matrix(focal_length: float, *, shift: int = 16) -> bytes:
    """Return the content of a property `cmin`, for an image of width and height 1."""
    values = [round(value * (1 << shift)) for value in (focal_length, 0.5, 0.5)]
    return struct.pack(">I3i", shift << 8, *values)


def test_an_image_is_cropped_to_its_clean_aperture() -> None:
    source = decode(CLAP)
    assert (source.camera.width, source.camera.height) == (64, 48)
    whole = np.asarray(Image.open(io.BytesIO(CLAP)).convert("RGB"))
    np.testing.assert_array_equal(source.rgb, whole[24:72, 32:96])


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((32, 1, 40, 1, 0, 1, 0, 1), (16, 4, 48, 44)),
        ((64, 2, 80, 2, -16, 1, 4, 1), (0, 8, 32, 48)),
        ((64, 1, 48, 1, 0, 1, 0, 1), None),  # All of it.
        ((80, 1, 40, 1, 0, 1, 0, 1), None),  # More than there is.
        ((32, 0, 40, 1, 0, 1, 0, 1), None),
        ((32, 1, 40, 1, 100, 1, 0, 1), None),
    ],
)
def test_the_crop_is_that_of_the_standard(numbers: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    container = read_container(
        with_property(encoded(Image.fromarray(NOISE), "AVIF"), b"clap", struct.pack(">IIIIiIiI", *numbers))
    )
    assert container is not None
    assert container.crop == expected


def test_an_opacity_without_a_size_is_read() -> None:
    source = decode(WITHOUT_SIZE)
    assert (source.camera.width, source.camera.height) == (128, 96)
    repaired = repair_avif(WITHOUT_SIZE)
    assert repaired is not None
    assert Image.open(io.BytesIO(repaired)).mode == "RGBA"
    assert repair_avif(CLAP) is None, "there is nothing to repair"


def test_an_avif_without_its_brand_is_read() -> None:
    content = encoded(Image.fromarray(SMOOTH), "AVIF")
    end = int.from_bytes(content[:4], "big")
    other = content[:8] + content[8:end].replace(b"avif", b"mif1") + content[end:]
    np.testing.assert_array_equal(decode(other).rgb, decode(content).rgb)
    assert decode(other).image_format == "AVIF"


@pytest.mark.parametrize(
    "make",
    [
        lambda: heic(SMOOTH, exif=exif(1, focal_length_35mm=28).tobytes()),
        lambda: encoded(Image.fromarray(SMOOTH), "AVIF", exif=exif(1, focal_length_35mm=28)),
    ],
)
def test_a_camera_matrix_ranks_above_exif(make: object) -> None:
    assert callable(make)
    content = make()
    assert decode(content).camera.focal_length_source == "exif_35mm"
    camera = decode(with_property(content, b"cmin", camera_matrix(0.75))).camera
    assert camera.focal_length_source == "intrinsics"
    assert camera.focal_length_px == pytest.approx(0.75 * camera.width, rel=1e-4)


@pytest.mark.parametrize(
    "value", [camera_matrix(0), camera_matrix(-1), camera_matrix(1e-4), b"", camera_matrix(900, shift=10)]
)
def test_an_absurd_camera_matrix_is_ignored(value: bytes) -> None:
    content = with_property(encoded(Image.fromarray(SMOOTH), "AVIF"), b"cmin", value)
    assert decode(content).camera.focal_length_source == "default"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_heic_that_does_not_say_how_itself(orientation: int) -> None:
    # The writer converts EXIF's orientation to boxes, whose names are overwritten here.
    content = heic(SMOOTH, exif=exif(1, focal_length_35mm=28).tobytes())
    block, turned = exif(1, focal_length_35mm=28).tobytes(), exif(orientation, focal_length_35mm=28).tobytes()
    assert content.count(block[6:]) == 1
    content = content.replace(block[6:], turned[6:])
    container = read_container(content)
    assert container is not None
    assert not container.is_turned
    expected = decode(encoded(Image.fromarray(SMOOTH), "PNG", exif=exif(orientation))).rgb
    source = decode(content)
    assert source.rgb.shape == expected.shape
    assert np.abs(source.rgb.astype(int) - expected).mean() < 6


def test_truncated_boxes_are_no_container() -> None:
    content = heic(SMOOTH)
    for length in range(0, 400, 7):
        read_container(content[:length])  # Never raises.
    assert read_container(b"") is None


def test_an_unknown_codec_in_a_heif_is_named() -> None:
    content = heic(SMOOTH).replace(b"hvc1", b"vvc1")
    with pytest.raises(ImageError, match="HEIF coded with VVC"):
        decode(content)

"""Images in every format and colour mode, and their parts: EXIF blocks, colour profiles, checked chunks."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

from sharp_cog.errors import ImageError
from sharp_cog.imaging.images import MAX_ASPECT, MIN_SIDE_PX, SourceImage, decode
from tests.fuzz.harness import Target
from tests.imaging.samples import (
    encoded,
    exif,
    grey_profile,
    grey_tiff,
    heic,
    ink_profile,
    linear_profile,
    rgb_tags,
    tiff_file,
)

WIDTH, HEIGHT = 40, 32
_GENERATOR = np.random.default_rng(0)
IMAGE = Image.fromarray(np.kron(_GENERATOR.integers(0, 256, (4, 5, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)))
PIXELS = np.asarray(IMAGE)
GREY, INK, ALPHA = IMAGE.convert("L"), IMAGE.convert("CMYK"), IMAGE.copy()
ALPHA.putalpha(GREY)
SIXTEEN_BITS = Image.fromarray(np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16))
PALETTE, BITS = IMAGE.quantize(16), IMAGE.convert("1")
CHROMA = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
FRAMES = [IMAGE.rotate(90 * turn) for turn in range(1, 3)]
EXIF = exif(6, focal_length=4.2, focal_length_35mm=28).tobytes()
WITH_ALL = {"exif": EXIF, "icc_profile": linear_profile()}


def read(content: bytes) -> SourceImage:
    """Decode an image, and check the properties that every decoded image has."""
    source = decode(content)
    camera = source.camera
    assert source.rgb.dtype == np.uint8
    assert source.rgb.shape == (camera.height, camera.width, 3)
    assert min(camera.width, camera.height) >= MIN_SIDE_PX
    assert max(camera.width, camera.height) <= MAX_ASPECT * min(camera.width, camera.height)
    assert math.isfinite(camera.focal_length_px)
    assert camera.focal_length_px > 0
    return source


def jpeg_seeds() -> list[bytes]:
    return [
        encoded(IMAGE, "JPEG", **WITH_ALL),
        encoded(IMAGE, "JPEG", progressive=True, subsampling=0),
        encoded(INK, "JPEG", icc_profile=ink_profile()),
        encoded(GREY, "JPEG", icc_profile=grey_profile(), restart_marker_rows=1),
        encoded(IMAGE, "MPO", save_all=True, append_images=FRAMES[:1]),
    ]


def png_seeds() -> list[bytes]:
    return [
        encoded(IMAGE, "PNG", **WITH_ALL),
        encoded(ALPHA, "PNG"),
        encoded(PALETTE, "PNG", transparency=3),
        encoded(SIXTEEN_BITS, "PNG", transparency=1234),
        encoded(BITS, "PNG"),
        encoded(IMAGE, "PNG", save_all=True, append_images=FRAMES),
        png(WIDTH, HEIGHT, bits=16, colour_type=6, interlaced=True),
        png(WIDTH, HEIGHT, bits=8, colour_type=2, chunks=[(b"cICP", bytes((9, 16, 0, 1)))]),
        png(WIDTH, HEIGHT, bits=8, colour_type=2, chunks=[(b"gAMA", struct.pack(">I", 100_000)), (b"cHRM", CHROMA)]),
        png(WIDTH, HEIGHT, bits=2, colour_type=0, chunks=[(b"zTXt", b"Comment\0\0" + zlib.compress(b"words " * 50))]),
    ]


def png(
    width: int,
    height: int,
    *,
    bits: int = 8,
    colour_type: int = 2,
    interlaced: bool = False,
    chunks: list[tuple[bytes, bytes]] | None = None,
    data: bytes | None = None,
) -> bytes:
    """Return a PNG put together by hand, since Pillow writes neither 16 bits of colour nor interlaced images."""
    if data is None:
        data = zlib.compress(_zero_rows(width, height, bits * _NUM_CHANNELS[colour_type], interlaced=interlaced))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    parts = [
        (b"IHDR", header),
        *(chunks or []),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


_NUM_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _zero_rows(width: int, height: int, num_bits: int, *, interlaced: bool) -> bytes:
    """Return rows of black pixels of `num_bits` bits, each after the number of its filter, in one pass or in seven."""
    rows = b""
    for left, top, step_x, step_y in _ADAM7 if interlaced else [(0, 0, 1, 1)]:
        num_columns, num_rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        rows += bytes(1 + -(-num_columns * num_bits // 8)) * num_rows
    return rows


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_right_checksums(content: bytes) -> bytes:
    """Return a PNG with the checksums of its chunks corrected, since decoders skip chunks with wrong ones."""
    position, parts = 8, [content[:8]]
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(content):
            break
        parts.append(chunk(content[position + 4 : position + 8], content[position + 8 : end]))
        position = end + 4
    return b"".join([*parts, content[position:]])


def webp_seeds() -> list[bytes]:
    return [
        encoded(IMAGE, "WEBP", **WITH_ALL),
        encoded(ALPHA, "WEBP"),
        encoded(ALPHA, "WEBP", lossless=True, exact=True),
        encoded(IMAGE, "WEBP", save_all=True, append_images=FRAMES, lossless=True),
    ]


def tiff_seeds() -> list[bytes]:
    compressions = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd")
    return [
        encoded(IMAGE, "TIFF", **WITH_ALL),
        *(encoded(IMAGE, "TIFF", compression=compression) for compression in compressions),
        encoded(IMAGE, "TIFF", tiffinfo={322: 16, 323: 16}, compression="tiff_lzw"),  # Tiles.
        encoded(BITS, "TIFF", compression="group4"),
        encoded(SIXTEEN_BITS, "TIFF"),
        encoded(INK, "TIFF", icc_profile=ink_profile()),
        encoded(PALETTE, "TIFF", big_tiff=True),
        grey_tiff(12, bytes(range(256)) * 18),
        encoded(IMAGE, "TIFF", save_all=True, append_images=FRAMES[:1], compression="tiff_deflate"),
        tiff_file(rgb_tags(PIXELS, bits=16, planar=2), [bytes(2 * WIDTH * HEIGHT)] * 3),
        tiff_file(rgb_tags(PIXELS, bits=8), [PIXELS.tobytes()], order=">", big=True, exif_tags={0xA405: ("H", 28)}),
    ]


def bmp_seeds() -> list[bytes]:
    return [encoded(IMAGE, "BMP"), encoded(PALETTE, "BMP"), encoded(BITS, "BMP"), run_length_bmp(WIDTH, HEIGHT)]


def run_length_bmp(width: int, height: int, *, bits: int = 8, data: bytes | None = None) -> bytes:
    """Return a run-length encoded BMP, whose rows are runs of one colour unless other data are given."""
    if data is None:
        data = b"".join(bytes([width, row % 16, 0, 0]) for row in range(height)) + b"\0\1"
    palette, compression = bytes(range(64)) * 16, {8: 1, 4: 2}[bits]
    palette = palette[: 4 << bits]
    offset = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 1 << bits, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data


def gif_seeds() -> list[bytes]:
    return [
        encoded(IMAGE, "GIF"),
        encoded(PALETTE, "GIF", transparency=2, interlace=1, comment=b"a comment"),
        encoded(IMAGE, "GIF", save_all=True, append_images=FRAMES, loop=0, disposal=2),
    ]


def avif_seeds() -> list[bytes]:
    return [
        encoded(IMAGE, "AVIF", **WITH_ALL),
        encoded(ALPHA, "AVIF", quality=50),
        encoded(IMAGE, "AVIF", save_all=True, append_images=FRAMES),
        *(path.read_bytes() for path in sorted((Path(__file__).parents[1] / "data" / "images").glob("*.avif"))),
    ]


def heic_seeds() -> list[bytes]:
    ten_bits = io.BytesIO()
    pixels = (np.asarray(IMAGE).astype(np.uint16) * 257).tobytes()
    pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), pixels).save(ten_bits, quality=50)
    hdr = io.BytesIO()
    numbers = {"color_primaries": 9, "transfer_characteristics": 16, "matrix_coefficients": 9, "full_range_flag": 1}
    image = pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), pixels)
    image.save(hdr, quality=50, save_nclx_profile=True, **numbers)
    return [heic(np.asarray(IMAGE), exif=EXIF), heic(np.asarray(ALPHA)), ten_bits.getvalue(), hdr.getvalue()]


def read_exif(block: bytes) -> SourceImage:
    """Decode an image with these bytes for its EXIF block; a PNG takes blocks of any size."""
    return read(png(WIDTH, HEIGHT, chunks=[(b"eXIf", block)]))


def exif_seeds() -> list[bytes]:
    # A JPEG has a name before the block, and a PNG does not.
    return [EXIF.removeprefix(b"Exif\0\0"), *(exif(turn).tobytes().removeprefix(b"Exif\0\0") for turn in (1, 8))]


def read_profile(profile: bytes) -> list[SourceImage]:
    """Decode images of each kind of pixel with these bytes for their colour profile."""
    return [read(encoded(image, "TIFF", icc_profile=profile)) for image in (IMAGE, GREY, INK)]


def profile_seeds() -> list[bytes]:
    return [linear_profile(), grey_profile(), ink_profile()]


_READERS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes], object]]] = {
    "image-jpeg": (jpeg_seeds, read),
    "image-png": (png_seeds, read),
    "image-png-checked": (png_seeds, lambda content: read(with_right_checksums(content))),
    "image-webp": (webp_seeds, read),
    "image-tiff": (tiff_seeds, read),
    "image-bmp": (bmp_seeds, read),
    "image-gif": (gif_seeds, read),
    "image-avif": (avif_seeds, read),
    "image-heic": (heic_seeds, read),
    "image-exif": (exif_seeds, read_exif),
    "image-profile": (profile_seeds, read_profile),
}
TARGETS = [Target(name, seeds, run, (ImageError,)) for name, (seeds, run) in _READERS.items()]

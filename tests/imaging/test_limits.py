"""Limits on the sizes of images, which hold before any memory is allocated for pixels."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import warnings

import pytest
from PIL import Image

from sharp_cog.errors import ImageError
from sharp_cog.imaging.images import decode
from tests.imaging.samples import NOISE, encoded, exif, huge_png


@pytest.mark.parametrize(("width", "height"), [(20000, 12000), (40000, 40000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_is_too_large_is_refused_before_memory_is_allocated(width: int, height: int) -> None:
    content = huge_png(width, height)
    tracemalloc.start()
    with pytest.raises(ImageError, match="downscale it"):
        decode(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


HUGE = {
    "PNG": huge_png(16000, 15000),
    "WebP": b"RIFF"
    + struct.pack("<I", 5018)
    + b"WEBPVP8L"
    + struct.pack("<IBI", 5005, 47, 15999 | 14999 << 14)
    + bytes(5000),
    "GIF": b"GIF89a" + struct.pack("<HH", 16000, 15000) + bytes(5000),
    "BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 5054, 0, 54, 40, 16000, 15000, 1, 24, *[0] * 6) + bytes(5000),
}


@pytest.mark.parametrize("name", HUGE)
def test_an_image_that_is_too_large_is_refused_even_without_memory_for_it(name: str) -> None:
    script = (
        "import resource, sys\n"
        "from sharp_cog.errors import ImageError\n"
        "from sharp_cog.imaging.images import decode\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)\n"
        "try:\n"
        "    decode(sys.stdin.buffer.read())\n"
        "except ImageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=HUGE[name], capture_output=True, check=True)
    assert done.stdout.decode() == (
        "the image is 16000x15000 (240.0 MP), the limit is 200 MP: downscale it, or raise SHARP_MAX_MEGAPIXELS\n"
    )


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("pillows_limit", [2000, 1000])  # Pillow warns above its limit, and refuses above twice of it.
def test_pillows_own_limit_does_not_apply(name: str, pillows_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    content = encoded(Image.fromarray(NOISE), name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(content).rgb.shape == NOISE.shape


def test_pillows_own_limit_is_named_for_the_format_that_keeps_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"too large for Pillow to decode .*3072 pixels.*limit of 2000"):
        decode(encoded(Image.fromarray(NOISE), "WEBP"))


def test_the_caller_may_set_the_limit() -> None:
    content = encoded(Image.fromarray(NOISE), "PNG")
    decode(content, max_pixels=64 * 48)
    with pytest.raises(ImageError, match=r"64x48 \(0\.0 MP\), the limit is 0\.003071 MP"):
        decode(content, max_pixels=64 * 48 - 1)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 6), ("RGBA", 1)])
def test_an_image_of_200_megapixels_is_decoded_in_2_gb(mode: str, orientation: int) -> None:
    content = encoded(Image.new(mode, (16_320, 12_240)), "PNG", compress_level=1, exif=exif(orientation))
    script = (
        "import resource, sys\n"
        "from sharp_cog.imaging.images import decode\n"
        "decode(sys.stdin.buffer.read())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, check=True)
    assert int(done.stdout) < 2e9

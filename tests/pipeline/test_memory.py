"""Memory that decoding may take: its estimate by headers, and what it really takes."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from sharp_cog.pipeline.memory import count_depth_pixels, needed_bytes
from tests.images import npy, png

WIDTH, HEIGHT = 40, 30


def depth_file(kind: str, folder: Path) -> bytes:
    metres = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, metres)
    elif kind == "npz":
        np.savez_compressed(file, depth=metres.astype(np.float16))
    elif kind == "pfm":
        file.write(f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + metres.tobytes())
    elif kind == "png":
        Image.fromarray((metres * 1000).astype(np.uint16)).save(file, "PNG")
    elif kind == "tiff":
        Image.fromarray(metres).save(file, "TIFF")
    else:
        path = folder / "depth.exr"
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"Z": metres}).write(str(path))
        return path.read_bytes()
    return file.getvalue()


@pytest.mark.parametrize("kind", ["npy", "npz", "pfm", "png", "tiff", "exr"])
def test_the_pixels_of_every_kind_of_depth_file_are_counted(kind: str, tmp_path: Path) -> None:
    counted = count_depth_pixels(depth_file(kind, tmp_path))
    # The headers of .npy and .npz themselves count as some pixels.
    assert WIDTH * HEIGHT <= counted <= WIDTH * HEIGHT + 130


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4", b"\x93NUMPY", b"Pf 1", b"\x76\x2f\x31\x01"])
def test_what_cannot_be_read_needs_no_memory_of_its_own(content: bytes) -> None:
    assert count_depth_pixels(content) <= len(content)


def test_a_request_needs_memory_by_its_pixels_and_not_by_its_bytes() -> None:
    assert needed_bytes(png(320, 240), None) == len(png(320, 240)) + 10 * 320 * 240
    with_depth = needed_bytes(png(320, 240), npy(320, 240))
    assert with_depth > 34 * 320 * 240


@pytest.mark.slow
def test_the_largest_files_need_no_more_than_the_estimate(tmp_path: Path) -> None:
    """Half of the limits: 100 MP in the image, 50 MP in the depth map, each of one colour."""
    script = """
        import resource, sys
        from benchmarks.attack.http_attacks import flat_png
        from sharp_cog import PredictOptions, Settings, SharpPipeline
        from sharp_cog.pipeline.memory import needed_bytes
        image, depth = flat_png(12_500, 8_000, mode="RGB"), flat_png(8_840, 5_657, mode="I;16")
        pipeline = SharpPipeline.load(Settings(model="lift", device="cpu"))
        pipeline(open("examples/room.jpg", "rb").read(), depth=open("examples/room.depth.png", "rb").read())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipeline(image, PredictOptions(depth_format="metric"), depth=depth)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        print(used, needed_bytes(image, depth))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    used, estimated = map(int, output.split())
    assert 0.3 * estimated < used <= estimated

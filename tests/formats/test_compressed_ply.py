"""The parts of a compressed .ply that test_registry.py does not see: the order, and broken chunks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from plyfile import PlyData

from sharp_cog import formats
from sharp_cog.errors import SplatError
from sharp_cog.formats.compressed_ply import is_compressed_ply, read_compressed_ply
from tests.formats.cases import decode, written
from tests.splats import random_gaussians, with_harmonics


def test_neighbours_share_a_chunk() -> None:
    """Two clusters far apart: in Morton order at most one chunk holds both, so all other chunks are small."""
    gaussians = random_gaussians(256 * 8)
    gaussians.means.mul_(0.01)
    gaussians.means[::2] += 50.0
    chunks = decode("compressed_ply", written("compressed_ply", gaussians)).means.reshape(8, 256, 3)
    assert np.ptp(chunks, axis=1).max() < 1.0


def test_scales_of_zero_do_not_cost_their_chunk_its_precision() -> None:
    gaussians = random_gaussians(200)
    gaussians.scales[0] = 0.0
    decoded = decode("compressed_ply", written("compressed_ply", gaussians))
    log_scales = np.sort(np.log(gaussians.scales.double().numpy().clip(np.exp(-20.0))), axis=0)
    np.testing.assert_allclose(np.sort(np.log(decoded.scales), axis=0), log_scales, atol=20 / 1023)


def test_it_is_told_apart_from_a_plain_ply() -> None:
    assert is_compressed_ply(written("compressed_ply", random_gaussians(1)))
    assert not is_compressed_ply(written("ply", random_gaussians(1)))


def test_files_without_colours_in_their_chunks_are_read() -> None:
    """The first version of the format: colours are 8-bit sRGB."""
    whole = written("compressed_ply", random_gaussians(300))
    header, body = whole.split(b"end_header\n", 1)
    chunks = np.frombuffer(body, "<f4", 2 * 18).reshape(2, 18)
    for name in ("min_r", "min_g", "min_b", "max_r", "max_g", "max_b"):
        header = header.replace(f"property float {name}\n".encode(), b"")
    old = header + b"end_header\n" + chunks[:, :12].tobytes() + body[2 * 18 * 4 :]
    packed = np.frombuffer(body, "<u4", offset=2 * 18 * 4).reshape(-1, 4)[:, 3]
    srgb = torch.from_numpy(np.stack([packed >> shift & 255 for shift in (24, 16, 8)], axis=1) / 255.0)
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).float()
    splat = read_compressed_ply(old)
    torch.testing.assert_close(splat.gaussians.colors_linear, linear, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(splat.gaussians.means, read_compressed_ply(whole).gaussians.means)


def test_broken_chunks_are_refused() -> None:
    whole = written("compressed_ply", random_gaussians(257))
    nan = whole.replace(whole.split(b"end_header\n", 1)[1][:4], np.float32("nan").tobytes())
    cases = {
        "is not a compressed one: its element 'vertex' has no packed_scale of the type uint": whole.replace(
            b"packed_scale", b"packed_scala"
        ),
        "its element 'chunk' has no min_x of the type float": whole.replace(b"float min_x", b"int min_x"),
        "1 chunks for 257 Gaussians: there must be one for every 256": whole.replace(
            b"element chunk 2", b"element chunk 1"
        ),
    }
    for message, content in cases.items():
        with pytest.raises(SplatError, match=message):
            read_compressed_ply(content)
    with pytest.raises(SplatError, match="256 of 257 Gaussians have values that are not finite, in means"):
        formats.read(nan)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_harmonics_are_in_an_element_of_bytes_in_the_order_of_the_vertices(degree: int) -> None:
    gaussians = with_harmonics(random_gaussians(300), degree)
    content = written("compressed_ply", gaussians)
    element = PlyData.read(io.BytesIO(content))["sh"]
    num_bands = (degree + 1) ** 2 - 1
    assert [prop.name for prop in element.properties] == [f"f_rest_{index}" for index in range(3 * num_bands)]
    back = read_compressed_ply(content).gaussians
    assert back.harmonics is not None
    # Byte b is (b + 1/2) / 256 of the range from -4 to 4; red's coefficients come first.
    for channel in range(3):
        for band in range(num_bands):
            codes = element[f"f_rest_{channel * num_bands + band}"].astype(float)
            np.testing.assert_allclose(back.harmonics[:, band, channel], ((codes + 0.5) / 256 - 0.5) * 8, atol=1e-6)
    assert gaussians.harmonics is not None
    order = [int((gaussians.means - mean).abs().sum(dim=1).argmin()) for mean in back.means]
    assert (back.harmonics - gaussians.harmonics[order]).abs().max() <= 4 / 256 + 1e-6


def test_harmonics_of_half_of_the_gaussians_are_refused() -> None:
    content = written("compressed_ply", with_harmonics(random_gaussians(4), 1))
    with pytest.raises(SplatError, match="9 spherical harmonics for 2 of 4 Gaussians"):
        read_compressed_ply(content.replace(b"element sh 4", b"element sh 2"))

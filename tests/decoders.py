"""Independent readers of our formats, written from the specifications in plain Python and numpy, in float64."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyData
from pxr import Usd, UsdGeom, UsdVol

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
SH_C0 = 0.28209479177387814


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Content of a file: positions and scales in metres in the file's axes, sRGB colours, opacities in [0, 1]."""

    means: Floats
    scales: Floats
    wxyz: Floats
    srgb: Floats
    opacities: Floats


def ply(content: bytes) -> Decoded:
    vertex = _parsed(content)["vertex"]
    return Decoded(
        means=_columns(vertex, "x", "y", "z"),
        scales=np.exp(_columns(vertex, "scale_0", "scale_1", "scale_2")),
        wxyz=_columns(vertex, "rot_0", "rot_1", "rot_2", "rot_3"),
        srgb=_columns(vertex, "f_dc_0", "f_dc_1", "f_dc_2") * SH_C0 + 0.5,
        opacities=1 / (1 + np.exp(-_columns(vertex, "opacity")[:, 0])),
    )


def _parsed(content: bytes) -> PlyData:
    # plyfile maps files into memory, but reads other streams number by number.
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return PlyData.read(file.name)


def compressed_ply(content: bytes) -> Decoded:
    data = _parsed(content)
    vertex, chunk = data["vertex"], data["chunk"]
    of_chunk = np.arange(vertex.count) // 256

    def between(low: list[str], high: list[str], share: Floats) -> Floats:
        start, end = _columns(chunk, *low)[of_chunk], _columns(chunk, *high)[of_chunk]
        values: Floats = start + (end - start) * share
        return values

    packed = {name: np.asarray(vertex[f"packed_{name}"]).astype(np.int64) for name in ("rotation", "color")}
    position, scale = (_bits(np.asarray(vertex[f"packed_{name}"]), 11, 10, 11) for name in ("position", "scale"))
    rgba = _bits(packed["color"], 8, 8, 8, 8)
    return Decoded(
        means=between(["min_x", "min_y", "min_z"], ["max_x", "max_y", "max_z"], position),
        scales=np.exp(between([f"min_scale_{a}" for a in "xyz"], [f"max_scale_{a}" for a in "xyz"], scale)),
        wxyz=_smallest_three((_bits(packed["rotation"], 10, 10, 10) - 0.5) * np.sqrt(2), packed["rotation"] >> 30 & 3),
        srgb=between(["min_r", "min_g", "min_b"], ["max_r", "max_g", "max_b"], rgba[:, :3]),
        opacities=rgba[:, 3],
    )


def splat(content: bytes) -> Decoded:
    records = list(struct.iter_unpack("<6f8B", content))
    table = np.array(records, dtype=float).reshape(len(records), 14)
    return Decoded(
        means=table[:, 0:3],
        scales=table[:, 3:6],
        wxyz=(table[:, 10:14] - 128) / 128,
        srgb=table[:, 6:9] / 255,
        opacities=table[:, 9] / 255,
    )


def spz(content: bytes) -> Decoded:
    if content[:4] == b"NGSP":
        magic, version, count, degree, fraction_bits, _, num_streams, toc = struct.unpack_from("<4sIIBBBBI", content)
        sizes = [struct.unpack_from("<QQ", content, toc + 16 * index) for index in range(num_streams)]
        start, planes = toc + 16 * num_streams, []
        for compressed, plain in sizes:
            planes.append(zstandard.ZstdDecompressor().decompress(content[start : start + compressed]))
            assert len(planes[-1]) == plain
            start += compressed
        assert (version, start) == (4, len(content))
        planes += [b""] * (5 - len(planes) if count == 0 else 0)  # Writers leave out empty streams.
    else:
        body = gzip.decompress(content)
        magic, version, count, degree, fraction_bits, flags, _ = struct.unpack_from("<4sIIBBBB", body)
        assert version in (2, 3)
        planes, start = [], 16
        for size in (9, 1, 3, 3, 4 if version == 3 else 3):
            planes.append(body[start : start + size * count])
            start += size * count
        assert start == len(body) - (12 if flags & 2 else 0)  # The extension that names the axes.
    assert (magic, degree) == (b"NGSP", 0)
    fixed = [int.from_bytes(planes[0][i : i + 3], "little", signed=True) for i in range(0, len(planes[0]), 3)]
    alphas, colors, scales = (np.frombuffer(plane, np.uint8).astype(float) for plane in planes[1:4])
    if version == 2:
        xyz = np.frombuffer(planes[4], np.uint8).astype(float).reshape(-1, 3) / 127.5 - 1
        w = np.sqrt(np.maximum(0, 1 - (xyz**2).sum(axis=1, keepdims=True)))
        return _spz(fixed, fraction_bits, alphas, colors, scales, np.concatenate([xyz, w], axis=1))
    rotations = np.array([number for (number,) in struct.iter_unpack("<I", planes[4])], dtype=np.int64)
    signed = np.stack([rotations >> shift & 1023 for shift in (20, 10, 0)], axis=-1).reshape(-1, 3)
    smaller = np.where(signed & 512, -1, 1) * (signed & 511) / 511 / np.sqrt(2)
    xyzw = _smallest_three(smaller, rotations >> 30)
    return _spz(fixed, fraction_bits, alphas, colors, scales, xyzw)


def _spz(fixed: list[int], fraction_bits: int, alphas: Floats, colors: Floats, scales: Floats, xyzw: Floats) -> Decoded:
    lengths = np.linalg.norm(xyzw, axis=1, keepdims=True)
    return Decoded(
        means=np.array(fixed, dtype=float).reshape(-1, 3) / 2**fraction_bits,
        scales=np.exp(scales.reshape(-1, 3) / 16 - 10),
        wxyz=xyzw[:, [3, 0, 1, 2]] / lengths,
        srgb=(colors.reshape(-1, 3) / 255 - 0.5) / 0.15 * SH_C0 + 0.5,
        opacities=alphas / 255,
    )


def sog(content: bytes) -> Decoded:
    archive = zipfile.ZipFile(io.BytesIO(content))
    meta = json.loads(archive.read("meta.json"))
    assert meta["version"] == 2
    count = meta["count"]

    def pixels(name: str, channels: int) -> Integers:
        image = Image.open(io.BytesIO(archive.read(name)))
        assert image.format == "WEBP"
        mode = "RGBA" if channels == 4 else "RGB"
        return np.asarray(image.convert(mode)).reshape(-1, channels)[:count].astype(np.int64)

    low, high = (pixels(name, 3) for name in meta["means"]["files"])
    mins, maxs = (np.array(meta["means"][name]) for name in ("mins", "maxs"))
    logs = mins + (maxs - mins) * (low + 256 * high) / 65535
    quaternions = pixels(meta["quats"]["files"][0], 4)
    assert np.isin(quaternions[:, 3], [252, 253, 254, 255]).all()
    rgba = pixels(meta["sh0"]["files"][0], 4)
    return Decoded(
        means=np.sign(logs) * np.expm1(np.abs(logs)),
        scales=np.exp(np.array(meta["scales"]["codebook"])[pixels(meta["scales"]["files"][0], 3)]),
        wxyz=_smallest_three((quaternions[:, :3] / 255 - 0.5) * np.sqrt(2), quaternions[:, 3] - 252),
        srgb=np.array(meta["sh0"]["codebook"])[rgba[:, :3]] * SH_C0 + 0.5,
        opacities=rgba[:, 3] / 255,
    )


def glb_document(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the binary part of a .glb, and check that their lengths add up."""
    magic, version, total = struct.unpack_from("<4sII", content)
    assert (magic, version, total) == (b"glTF", 2, len(content))
    length, kind = struct.unpack_from("<I4s", content, 12)
    assert (kind, length % 4) == (b"JSON", 0)
    document, rest = json.loads(content[20 : 20 + length]), content[20 + length :]
    if rest:
        length, kind = struct.unpack_from("<I4s", rest)
        assert (kind, length) == (b"BIN\0", len(rest) - 8)
    return document, rest[8:]


def glb(content: bytes) -> Decoded:
    document, binary = glb_document(content)
    attributes = document["meshes"][0]["primitives"][0]["attributes"] if "meshes" in document else {}

    def accessor(name: str, channels: int) -> Floats:
        if not attributes:
            return np.empty((0, channels))
        values = document["accessors"][attributes[name]]
        view = document["bufferViews"][values["bufferView"]]
        assert values["componentType"] == 5126
        data = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        return np.frombuffer(data, "<f4").reshape(values["count"], channels).astype(float)

    return Decoded(
        means=accessor("POSITION", 3),
        scales=accessor("KHR_gaussian_splatting:SCALE", 3),
        wxyz=accessor("KHR_gaussian_splatting:ROTATION", 4)[:, [3, 0, 1, 2]],
        srgb=accessor("KHR_gaussian_splatting:SH_DEGREE_0_COEF_0", 3) * SH_C0 + 0.5,
        opacities=accessor("KHR_gaussian_splatting:OPACITY", 1)[:, 0],
    )


def usdz(content: bytes) -> Decoded:
    """Read a package with OpenUSD itself."""
    with tempfile.NamedTemporaryFile(suffix=".usdz") as file:
        file.write(content)
        file.flush()
        stage = Usd.Stage.Open(file.name)
        field = UsdVol.ParticleField3DGaussianSplat.Get(stage, "/scene/splat")
        assert (UsdGeom.GetStageUpAxis(stage), UsdGeom.GetStageMetersPerUnit(stage)) == ("Y", 1.0)
        assert Usd.ColorSpaceAPI(field.GetPrim()).GetColorSpaceNameAttr().Get() == "srgb_rec709_scene"
        num_coefficients = (field.GetRadianceSphericalHarmonicsDegreeAttr().Get() + 1) ** 2

        def values(attribute: Any, width: int) -> Floats:
            return np.array(attribute.Get(), dtype=float).reshape(-1, width)

        coefficients = values(field.GetRadianceSphericalHarmonicsCoefficientshAttr(), 3 * num_coefficients)
        return Decoded(
            means=values(field.GetPositionsAttr(), 3),
            scales=values(field.GetScaleshAttr(), 3),
            wxyz=values(field.GetOrientationshAttr(), 4)[:, [3, 0, 1, 2]],
            srgb=coefficients[:, :3] * SH_C0 + 0.5,
            opacities=values(field.GetOpacitieshAttr(), 1)[:, 0],
        )


DECODERS: dict[str, Callable[[bytes], Decoded]] = {
    "ply": ply,
    "apple_ply": ply,
    "compressed_ply": compressed_ply,
    "splat": splat,
    "spz": spz,
    "sog": sog,
    "glb": glb,
    "usdz": usdz,
}


def _columns(element: Any, *names: str) -> Floats:
    columns: Floats = np.stack([np.asarray(element[name], dtype=float) for name in names], axis=-1)
    return columns


def _bits(packed: NDArray[Any], *widths: int) -> Floats:
    """Unpack integers to fractions of their fields' largest values, (N, fields); the last field has the lowest bits."""
    values, shares = packed.astype(np.int64), []
    for width in reversed(widths):
        shares.append((values & (1 << width) - 1) / ((1 << width) - 1))
        values = values >> width
    return np.stack(shares[::-1], axis=-1)


def _smallest_three(smaller: Floats, largest: Integers) -> Floats:
    """Restore quaternions from their three smaller components; `largest` is the index of the missing one."""
    quaternions = np.empty((len(smaller), 4))
    is_largest = np.arange(4) == largest[:, None]
    quaternions[~is_largest] = smaller.ravel()
    quaternions[is_largest] = np.sqrt((1 - (smaller**2).sum(axis=1)).clip(min=0))
    return quaternions

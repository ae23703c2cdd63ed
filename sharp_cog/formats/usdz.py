"""OpenUSD's .usdz with a ParticleField3DGaussianSplat: splats for Vision Pro, Omniverse, Blender and other USD tools.

The schema is part of OpenUSD since version 26.03 (https://openusd.org/release/user_guides/schemas/usdVol/): scales and
opacities are stored directly, quaternions and spherical harmonics like those of a .ply. In the files that are written,
y is up, a unit is a metre, and the photograph's camera looks along -z. The schema leaves the colour space of the
harmonics open, so the prim states OpenUSD's name for sRGB; without a statement, OpenUSD takes colours as linear.

Files are read in a process of their own, see `sharp_cog.formats.usd_process`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

import sharp_cog
from sharp_cog.errors import NotInstalledError, OutputError, SplatError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.formats import usd_process
from sharp_cog.formats.archive import Archive, first_name
from sharp_cog.formats.limits import MAX_EXPANDED_GAUSSIANS, MAX_LENGTH_M, require_writable
from sharp_cog.formats.ply import SH_C0
from sharp_cog.formats.quaternions import to_unit
from sharp_cog.formats.scene import Frame, Splat, camera_fields, camera_from_fields
from sharp_cog.geometry import transform
from sharp_cog.geometry.camera import FULL_FRAME_DIAGONAL_MM, Camera
from sharp_cog.geometry.gaussians import NUM_BANDS, Gaussians
from sharp_cog.geometry.quaternions import from_matrix
from sharp_cog.imaging.color import linear_to_srgb, srgb_to_linear
from sharp_cog.text import plain

USDZ_FRAME = Frame(axes="opengl")
"""Frame of the files that are written."""
MAX_DEGREE = 3
"""Highest degree of spherical harmonics that renderers of the schema expect."""
COLOR_SPACE = "srgb_rec709_scene"
"""OpenUSD's name for sRGB."""

_LAYER = "splat.usdc"
"""Name of the only file in a package."""
_ALIGNMENT = 64
"""Multiple of bytes at which the content of a file in a package starts, so that it can be mapped into memory."""
_PADDING_ID = 0x1986
"""Identifier of the extra field that pads the header of a file in a package."""
_SUFFIXES = (".usdc", ".usda", ".usd")
_MIN_HALF = 2.0**-14
"""Smallest half float of full precision."""
_MAX_HALF = 65504.0
"""Largest half float."""
_ROOT, _SPLAT, _CAMERA = "/scene", "/scene/splat", "/scene/photograph"
_TENTHS_PER_MM = 0.01
"""Tenths of a unit in a millimetre: the unit of apertures and focal lengths, where a unit is a metre."""


def require_usd() -> None:
    """Check that .usdz can be written and read.

    Raises:
        NotInstalledError: The package usd-core is not installed.
    """
    if importlib.util.find_spec("pxr") is None:
        raise NotInstalledError(".usdz needs the extra 'usd': run .venv/bin/pip install -e '.[usd]'")


def is_usdz(content: bytes) -> bool:
    """Return whether a content is a package, whose first file is a layer."""
    return first_name(content).lower().endswith(_SUFFIXES)


def write_usdz(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = USDZ_FRAME) -> None:
    """Write a .usdz with the Gaussians and, if it is known, the photograph's camera.

    Positions are float32, all other values half floats: colours are exact to 1 / 7000, opacities to 1 / 4000,
    rotations to 0.1 degrees, and scales to 1 / 2000 from 0.06 mm to 65 km, to which they are limited. Spherical
    harmonics are written up to degree `MAX_DEGREE`.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device, y up.
        camera: Camera of the photograph, if it is known.
        frame: Frame of the Gaussians' coordinates; its axes must be `opengl`.

    Raises:
        PredictionError: A value is not finite.
        NotInstalledError: The package usd-core is not installed.
        OutputError: The folder for temporary files cannot be written.
    """
    assert frame.axes == "opengl", "y is up"
    require_usd()
    from pxr import Sdf, Tf, Usd, UsdGeom, UsdVol, Vt

    # Not by `vertex_block`, whose logarithms and logits would be undone.
    require_writable(gaussians)
    means, quaternions = gaussians.means.cpu().numpy(), gaussians.quaternions_wxyz.cpu().numpy()
    stage = Usd.Stage.CreateInMemory()
    stage.SetMetadata("documentation", f"sharp_cog {sharp_cog.__version__}")
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, _ROOT).GetPrim())
    field = UsdVol.ParticleField3DGaussianSplat.Define(stage, _SPLAT)
    Usd.ColorSpaceAPI.Apply(field.GetPrim()).CreateColorSpaceNameAttr(COLOR_SPACE)
    scales = gaussians.scales.cpu().numpy().clip(_MIN_HALF, _MAX_HALF)
    opacities = gaussians.opacities.cpu().numpy().clip(0.0, 1.0)
    with Sdf.ChangeBlock():
        field.CreatePositionsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(means)))
        field.CreateScaleshAttr(Vt.Vec3hArray.FromNumpy(scales.astype(np.float16)))
        # numpy's order is that of the memory of Gf.Quath: the real part comes last.
        field.CreateOrientationshAttr(Vt.QuathArray.FromNumpy(quaternions[:, [1, 2, 3, 0]].astype(np.float16)))
        field.CreateOpacitieshAttr(Vt.HalfArray.FromNumpy(opacities.astype(np.float16)))
        field.CreateRadianceSphericalHarmonicsDegreeAttr(min(gaussians.degree, MAX_DEGREE))
        field.CreateRadianceSphericalHarmonicsCoefficientshAttr(
            Vt.Vec3hArray.FromNumpy(_coefficients(gaussians).astype(np.float16))
        )
        if len(means):
            field.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(_extent(means, scales)))
    if camera is not None:
        _define_camera(UsdGeom.Camera.Define(stage, _CAMERA), camera, frame)
    with ScratchFolder() as folder:
        path = folder / _LAYER
        try:
            stage.GetRootLayer().Export(str(path))
        except Tf.ErrorException as error:
            # OpenUSD names its source files and lines, and the reason at the end of a line.
            reason = str(error).strip().splitlines()[0].rpartition(": ")[2].strip(" '")
            raise OutputError(f"cannot write {path} ({reason}): free space, or set TMPDIR") from error
        _write_package(file, path.read_bytes())


def _coefficients(gaussians: Gaussians) -> NDArray[np.float32]:
    """Return the spherical harmonics of all degrees, those of a Gaussian together, (N K, 3)."""
    constant = linear_to_srgb(gaussians.colors_linear.cpu()).sub_(0.5).div_(SH_C0).numpy()
    if gaussians.harmonics is None:
        return constant.clip(-_MAX_HALF, _MAX_HALF)
    bands = gaussians.harmonics[:, : NUM_BANDS[min(gaussians.degree, MAX_DEGREE)]].cpu().numpy()
    coefficients: NDArray[np.float32] = np.concatenate([constant[:, None], bands], axis=1).reshape(-1, 3)
    return coefficients.clip(-_MAX_HALF, _MAX_HALF)


def _extent(means: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the corners of a box around all Gaussians, (2, 3): renderers skip what is out of view."""
    # Three standard deviations hold all that is visible. In place of the rotated axes, the longest one is taken.
    reach = 3.0 * scales.max(axis=1, keepdims=True)
    corners = np.stack([(means - reach).min(axis=0), (means + reach).max(axis=0)])
    return corners.clip(-MAX_LENGTH_M, MAX_LENGTH_M).astype(np.float32)


def _define_camera(prim: Any, camera: Camera, frame: Frame) -> None:
    """Set the attributes of a camera, which looks along -z with y up; lengths are those of a 35 mm film."""
    from pxr import Gf

    # A pixel of the image on the film, in tenths of a unit.
    pixel = FULL_FRAME_DIAGONAL_MM / math.hypot(camera.width, camera.height) * _TENTHS_PER_MM
    prim.CreateHorizontalApertureAttr(camera.width * pixel)
    prim.CreateVerticalApertureAttr(camera.height * pixel)
    prim.CreateFocalLengthAttr(camera.focal_length_px * pixel)
    prim.CreateClippingRangeAttr(Gf.Vec2f(0.01, 1e6))
    prim.AddTranslateOp().Set(Gf.Vec3d(*frame.camera_position))
    fields = camera_fields(camera)
    prim.GetPrim().SetCustomDataByKey("focal_length_px", fields["focal_length_px"])
    prim.GetPrim().SetCustomDataByKey("image_size", Gf.Vec2i(*fields["image_size"]))


def _write_package(file: BinaryIO, layer: bytes) -> None:
    """Write a zip with one file, stored at a multiple of `_ALIGNMENT`, and with a fixed date."""
    member = zipfile.ZipInfo(_LAYER)
    num_header = 30 + len(_LAYER)
    # An extra field has a header of four bytes.
    padding = -(num_header + 4) % _ALIGNMENT
    member.extra = _PADDING_ID.to_bytes(2, "little") + padding.to_bytes(2, "little") + bytes(padding)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as package:
        package.writestr(member, layer)


def read_usdz(content: bytes) -> Splat:
    """Read a .usdz; all splats of the scene become one.

    Args:
        content: The whole file.

    Returns:
        The Gaussians in the order of the prims, and the first camera of the scene.

    Raises:
        SplatError: The content is not a .usdz, holds no splat, is broken or truncated, or refers to other files.
        NotInstalledError: The package usd-core is not installed.
    """
    require_usd()
    archive = Archive(content, ".usdz")
    for name in archive.names:
        archive.require_stored(name)
    with ScratchFolder() as folder:
        source, target = folder / "splat.usdz", folder / "arrays.npz"
        source.write_bytes(content)
        _extract(source, target)
        with np.load(target, allow_pickle=False) as arrays:
            found = dict(arrays)
    scene = json.loads(found.pop("scene").tobytes())
    parts = [_gaussians(prim, found, index) for index, prim in enumerate(scene["splats"])]
    total = sum(map(len, parts))
    if total > MAX_EXPANDED_GAUSSIANS and len(parts) > 1:
        raise SplatError(f"the .usdz shows {total} Gaussians, the limit is {MAX_EXPANDED_GAUSSIANS}: split it")
    camera, frame = None, USDZ_FRAME
    if scene["camera"] is not None:
        camera, frame = _camera(scene["camera"])
    return Splat(gaussians=transform.concatenate(parts), camera=camera, frame=frame)


def _extract(source: Path, target: Path) -> None:
    """Let a process of its own turn a package into arrays: OpenUSD trusts its files, and may crash on broken ones."""
    command = [sys.executable, "-I", usd_process.__file__, str(source), str(target)]
    try:
        # Both paths are in our own folder.
        done = subprocess.run(command, capture_output=True, timeout=usd_process.TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise SplatError(f"the .usdz takes OpenUSD more than {usd_process.TIMEOUT_S} s: it is broken") from error
    if done.returncode == usd_process.REFUSED:
        raise SplatError(plain(done.stdout.decode("utf-8", "replace"), 500))
    if done.returncode or not target.exists():
        raise SplatError(f"OpenUSD cannot read the .usdz (it ended with {done.returncode}): it is broken")


def _gaussians(prim: dict[str, Any], arrays: dict[str, NDArray[Any]], index: int) -> Gaussians:
    """Return the Gaussians of a prim from the arrays of `sharp_cog.formats.usd_process`."""
    named = {name: torch.from_numpy(arrays[f"{name}{index}"].astype(np.float32)) for name in usd_process.ARRAYS}
    coefficients = named["coefficients"].reshape(-1, (prim["degree"] + 1) ** 2, 3)
    colors = coefficients[:, 0] * SH_C0 + 0.5
    gaussians = Gaussians(
        means=named["positions"],
        scales=named["scales"].clamp_(min=0.0),
        quaternions_wxyz=to_unit(named["orientations"][:, [3, 0, 1, 2]]),
        colors_linear=colors if prim["is_linear"] else srgb_to_linear(colors),
        opacities=named["opacities"].clamp_(0.0, 1.0),
        harmonics=coefficients[:, 1:].contiguous() if prim["degree"] else None,
    )
    matrix = np.array(prim["matrix"])
    if (matrix == np.eye(4)).all():
        return gaussians
    try:
        return transform.place(gaussians, matrix)
    except ValueError as error:
        raise SplatError(f"a prim of the .usdz cannot move Gaussians: {error}: apply it in another tool") from error


def _camera(camera: dict[str, Any]) -> tuple[Camera | None, Frame]:
    """Return the camera of a scene, and the frame of a scene in which it is placed by a matrix."""
    matrix = np.array(camera["matrix"])
    x, y, z = matrix[:3, 3].tolist()
    scales = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not (scales > 0).all():
        raise SplatError("the camera of the .usdz has a matrix that is not invertible: it is broken")
    # OpenCV's axes are turned by 180 degrees about x from those of a camera in USD.
    rotation = matrix[:3, :3] / scales * [1.0, -1.0, -1.0]
    frame = Frame(axes="opengl", camera_position=(x, y, z))
    if not np.allclose(rotation, np.diag([1.0, -1.0, -1.0]), atol=1e-9):
        w, i, j, k = from_matrix(rotation)
        frame = Frame(axes="opengl", camera_position=(x, y, z), camera_rotation_wxyz=(w, i, j, k))
    return camera_from_fields(camera["fields"], ".usdz"), frame

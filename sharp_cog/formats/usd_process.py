"""A program that turns a .usdz into arrays: `python usd_process.py SOURCE TARGET`.

OpenUSD is written for files that can be trusted: broken ones may crash it, or make it allocate all memory. It therefore
runs in a process of its own, with a limit on its memory, and this file imports nothing of sharp_cog.

Exits with `REFUSED` and a message on stdout for a file that is broken or holds no splat.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import PurePosixPath
from typing import Any

import numpy as np

ARRAYS = ("positions", "scales", "orientations", "opacities", "coefficients")
"""Names of the arrays of a splat; its index in the scene follows. Quaternions are in the order x y z w."""
REFUSED = 3
"""Exit code for a file that is refused."""
TIMEOUT_S = 120
"""Seconds after which the caller ends the process."""

_MAX_BYTES = 8 << 30
"""Maximum memory of the process."""
_MAX_GAUSSIANS = 10_000_000
_MAX_PRIMS = 10_000
_MAX_LAYERS = 100
_MAX_DEGREE = 3
_LINEAR, _SRGB = ("lin_rec709_scene", "lin_rec709_display"), ("srgb_rec709_scene", "srgb_rec709_display")
_UNSTATED = ("", "unknown", "raw", "data", "identity")
_ASSUMED_HEIGHT = 800


class RefusalError(Exception):
    """A file that is broken or holds no splat."""


def main(source: str, target: str) -> int:
    """Run the program and return its exit code."""
    with contextlib.suppress(ImportError):  # Windows has no such limits.
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    from pxr import Tf

    try:
        scene, arrays = _read(source)
    except RefusalError as refusal:
        print(refusal)
        return REFUSED
    except (Tf.ErrorException, MemoryError, ValueError, RuntimeError) as error:
        print(f"OpenUSD cannot read the .usdz: {type(error).__name__}: it is broken")
        return REFUSED
    np.savez(target, scene=np.frombuffer(json.dumps(scene).encode(), dtype=np.uint8), **arrays)
    return 0


def _read(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the scene as JSON, and its arrays by name."""
    from pxr import Usd, UsdGeom, UsdVol

    _check_layers(path)
    stage = Usd.Stage.Open(path)
    placed = UsdGeom.XformCache(Usd.TimeCode.EarliestTime())
    upright = _upright(UsdGeom.GetStageUpAxis(stage), UsdGeom.GetStageMetersPerUnit(stage))
    splats: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    camera = None
    for num_prims, prim in enumerate(stage.Traverse()):
        if num_prims >= _MAX_PRIMS:
            raise RefusalError(f"the .usdz has more than {_MAX_PRIMS} prims: split it")
        matrix = upright @ np.array(placed.GetLocalToWorldTransform(prim)).T
        if prim.IsA(UsdVol.ParticleField3DGaussianSplat):
            field = UsdVol.ParticleField3DGaussianSplat(prim)
            degree, values = _values(field)
            arrays |= {f"{name}{len(splats)}": array for name, array in zip(ARRAYS, values, strict=True)}
            splats.append({"degree": degree, "is_linear": _is_linear(prim), "matrix": matrix.tolist()})
        elif prim.IsA(UsdGeom.Camera) and camera is None:
            fields = _lens(UsdGeom.Camera(prim))
            camera = None if fields is None else {"fields": fields, "matrix": matrix.tolist()}
    if not splats:
        raise RefusalError(
            "the .usdz has no ParticleField3DGaussianSplat: it holds a mesh or another model, not Gaussians"
        )
    return {"splats": splats, "camera": camera}, arrays


def _check_layers(path: str) -> None:
    """Check that the layers of a package refer to files of the package only, before OpenUSD opens any of them."""
    from pxr import Sdf

    package = Sdf.ZipFile.Open(path)
    if package is None:
        raise RefusalError("OpenUSD does not accept the .usdz as a package: it is broken")
    names = set(package.GetFileNames())
    layers = [name for name in names if PurePosixPath(name).suffix.lower() in (".usd", ".usda", ".usdc")]
    if len(layers) > _MAX_LAYERS:
        raise RefusalError(f"the .usdz has more than {_MAX_LAYERS} layers: split it")
    for name in layers:
        layer = Sdf.Layer.OpenAsAnonymous(f"{path}[{name}]")
        if layer is None:
            raise RefusalError(f"OpenUSD cannot read {name!r} in the .usdz: it is broken")
        folder = PurePosixPath(name).parent
        for asset in layer.GetCompositionAssetDependencies():
            if str(folder / asset).removeprefix("./") not in names:
                raise RefusalError(f"the .usdz refers to {asset[:80]!r}, which is not inside of it: pack it again")


def _upright(up_axis: str, meters_per_unit: float) -> Any:
    """Return the matrix from the stage's axes and units to y up and metres."""
    matrix = np.diag([meters_per_unit, meters_per_unit, meters_per_unit, 1.0])
    if up_axis == "Z":
        matrix[:3, :3] = meters_per_unit * np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    return matrix


def _values(field: Any) -> tuple[int, list[Any]]:
    """Return the degree of the harmonics, and the arrays in the order of `ARRAYS`; floats come before half floats."""
    positions = _array(field.GetPositionsAttr(), field.GetPositionshAttr(), 3)
    count = 0 if positions is None else len(positions)
    if count > _MAX_GAUSSIANS:
        raise RefusalError(f"the .usdz has {count} Gaussians, the limit is {_MAX_GAUSSIANS}: split it")
    degree = field.GetRadianceSphericalHarmonicsDegreeAttr().Get()
    coefficients = _array(
        field.GetRadianceSphericalHarmonicsCoefficientsAttr(), field.GetRadianceSphericalHarmonicsCoefficientshAttr(), 3
    )
    if not 0 <= degree <= _MAX_DEGREE:
        raise RefusalError(f"the .usdz has spherical harmonics of degree {degree}: 0 to {_MAX_DEGREE} can be read")
    num_coefficients = (degree + 1) ** 2
    if coefficients is None or len(coefficients) < count * num_coefficients:
        # The schema says that coefficients that are too few are ignored, and that the colour is then grey.
        degree, num_coefficients, coefficients = 0, 1, np.zeros((count, 3), np.float32)
    # The schema says the same of the other values, with no rotation, unit scales and full opacity in their place.
    others = [
        (_array(field.GetScalesAttr(), field.GetScaleshAttr(), 3), [1.0, 1.0, 1.0]),
        (_array(field.GetOrientationsAttr(), field.GetOrientationshAttr(), 4), [0.0, 0.0, 0.0, 1.0]),
        (_array(field.GetOpacitiesAttr(), field.GetOpacitieshAttr(), 1), [1.0]),
    ]
    scales, orientations, opacities = (
        np.tile(np.array(default, np.float32), (count, 1)) if values is None or len(values) < count else values[:count]
        for values, default in others
    )
    means = np.zeros((0, 3), np.float32) if positions is None else positions
    return degree, [means, scales, orientations, opacities[:, 0], coefficients[: count * num_coefficients]]


def _array(attribute: Any, half_attribute: Any, width: int) -> Any:
    """Return an attribute as (N, width) float32, from floats or else from half floats; None without any."""
    from pxr import Usd

    for one in (attribute, half_attribute):
        values = one.Get(Usd.TimeCode.EarliestTime()) if one else None
        if values is not None and len(values):
            return np.array(values, dtype=np.float32).reshape(-1, width)
    return None


def _is_linear(prim: Any) -> bool:
    """Return whether colours are linear, by the colour space of the prim or the nearest of its parents."""
    from pxr import Usd

    while prim and not prim.IsPseudoRoot():
        attribute = Usd.ColorSpaceAPI(prim).GetColorSpaceNameAttr()
        name = attribute.Get() if attribute and attribute.HasAuthoredValue() else None
        if name in _LINEAR:
            return True
        if name is not None and name not in (*_SRGB, *_UNSTATED):
            raise RefusalError(
                f"the .usdz has colours in {str(name)[:80]!r}: {', '.join((*_SRGB, *_LINEAR))} can be read"
            )
        if name is not None:
            return False
        prim = prim.GetParent()
    # What has no statement comes from a trainer, whose colours are sRGB.
    return False


def _lens(camera: Any) -> dict[str, Any] | None:
    """Return the fields of a camera as `sharp_cog.formats.scene` reads them; None for one that is not perspective."""
    from pxr import Usd, UsdGeom

    data = camera.GetPrim().GetCustomData()
    if "focal_length_px" in data and "image_size" in data:
        return {
            "focal_length_px": float(data["focal_length_px"]),
            "image_size": [int(size) for size in data["image_size"]],
        }
    time = Usd.TimeCode.EarliestTime()
    width, height, focal_length = (
        float(attribute.Get(time))
        for attribute in (
            camera.GetHorizontalApertureAttr(),
            camera.GetVerticalApertureAttr(),
            camera.GetFocalLengthAttr(),
        )
    )
    if camera.GetProjectionAttr().Get(time) != UsdGeom.Tokens.perspective or not min(width, height, focal_length) > 0:
        return None
    size = [max(1, round(min(width / height, 100.0) * _ASSUMED_HEIGHT)), _ASSUMED_HEIGHT]
    return {"focal_length_px": focal_length / height * _ASSUMED_HEIGHT, "image_size": size}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""SOG's streamed form: levels of detail in folders, of which a viewer fetches only the parts that it needs.

`lod-meta.json` holds a tree of boxes. Each leaf names a range of Gaussians for each level, in one of the folders beside
it; each folder is an unbundled SOG. The layout is version 1 of what PlayCanvas' splat-transform 3.7.0 and its engine
read (https://github.com/playcanvas/splat-transform). Level 0 has all Gaussians.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sharp_cog.config.output_formats import LEVELS_NAME
from sharp_cog.errors import OutputError, SplatError
from sharp_cog.files.atomic import cannot_write, open_atomically
from sharp_cog.files.read import read_bytes
from sharp_cog.formats.limits import MAX_EXPANDED_GAUSSIANS
from sharp_cog.formats.scene import Frame, Splat, camera_from_fields
from sharp_cog.formats.sog import META, as_json, origin_fields, read_sog, sog_files
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.simplify import simplify
from sharp_cog.geometry.transform import concatenate, translate
from sharp_cog.text import plain, read_json, reason_of

DEFAULT_LEVELS = 4
"""Number of levels of detail if none is given."""
LEAF_GAUSSIANS = 1 << 14
"""Least number of level 0's Gaussians in a leaf that was split off; twice as many are split again."""
UNIT_GAUSSIANS = 1 << 18
"""Number of Gaussians from which on a folder is full."""
NUM_SIGMAS = 3
"""Standard deviations that a box encloses of each Gaussian."""

_REDUCTION = 4
"""Factor between the numbers of Gaussians of neighbouring levels."""
_HEAD_BYTES = 1 << 16
"""Bytes of a file that show whether it is a `lod-meta.json`."""
_UNIT = re.compile(rf"(\d+_\d+)/{re.escape(META)}")
"""Names of units that splat-transform and this module write."""
_PATH = re.compile(r"(?!\.{1,2}/)(?:[^/\\:\0]+/)?[^/\\:\0]+")
"""Names of units that are read: a file beside `lod-meta.json`, or in a folder beside it."""

Boxes = NDArray[np.float64]
"""Least and largest corners, (N, 2, 3)."""


def has_levels(path: Path) -> bool:
    """Report whether the name of an output selects levels of detail."""
    return path.name.lower() == LEVELS_NAME


def is_levels(content: bytes) -> bool:
    """Report whether a content is a `lod-meta.json`."""
    return content[:64].lstrip().startswith(b"{") and b'"lodLevels"' in content[:_HEAD_BYTES]


def size_with_levels(path: Path) -> int:
    """Return the bytes of a splat's file, and of the levels of detail that belong to it."""
    files = [path]
    if has_levels(path):
        files += [file for unit in _units_of(path) for file in (path.parent / unit).iterdir()]
    return sum(file.stat().st_size for file in files)


def write_levels(path: Path, gaussians: Gaussians, camera: Camera | None, frame: Frame, *, num_levels: int) -> None:
    """Write levels of detail, `lod-meta.json` last; the units of an older one at `path` are replaced.

    Nothing of the older one is touched before all files of the new one are written.

    Args:
        path: The `lod-meta.json`; its folder is created.
        gaussians: Gaussians in the frame of the file, which are level 0. Each further level has a quarter as many.
        camera: Camera of the photograph, if it is known.
        frame: Frame of the Gaussians.
        num_levels: Number of levels.

    Raises:
        PredictionError: A value is not finite.
        OutputError: No Gaussian is given, a file cannot be written, or a folder of that name exists that belongs to no
            older `lod-meta.json`.
    """
    if not len(gaussians):
        raise OutputError("the splat has no Gaussians: levels of detail need at least one")
    folder = path.parent
    levels = make_levels(gaussians, frame, num_levels)
    units = _Units()
    everything = [np.arange(len(level)) for level in levels]
    tree = _tree([level.means.numpy() for level in levels], [boxes_of(level) for level in levels], everything, units)
    meta = {
        "version": 1,
        "count": sum(map(len, levels)),
        "counts": [len(level) for level in levels],
        "lodLevels": num_levels,
        "filenames": [f"{name}/{META}" for name in units.names],
        **origin_fields(levels[0], camera, frame),
        "tree": tree,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        older = _units_of(path)
        foreign = [name for name in units.names if (folder / name).exists() and name not in older]
        if foreign:
            raise OutputError(f"{folder / foreign[0]} exists and is no part of {path}: choose another folder")
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as temporary:
            for name, (level, members) in zip(units.names, units.members, strict=True):
                chosen = torch.from_numpy(np.concatenate(members))
                unit = levels[level].map(lambda tensor, chosen=chosen: tensor[chosen])  # type: ignore[misc]
                (Path(temporary) / name).mkdir()
                for file_name, content in sog_files(unit, origin_fields(unit, None, frame)).items():
                    (Path(temporary) / name / file_name).write_bytes(content)
            # From here on no reader may take the new units for those of the older file.
            path.unlink(missing_ok=True)
            for name in older:
                _remove_unit(folder / name)
            for name in units.names:
                (folder / name).mkdir(exist_ok=True)
                for file in (Path(temporary) / name).iterdir():
                    os.replace(file, folder / name / file.name)
    except OSError as error:
        raise cannot_write(path, error) from error
    with open_atomically(path) as target:
        target.write(as_json(meta))


def make_levels(gaussians: Gaussians, frame: Frame, num_levels: int) -> list[Gaussians]:
    """Return the levels of detail on the CPU, the finest first.

    Each one is merged from all Gaussians, and not from the level before, so that errors do not add up.
    """
    x, y, z = frame.camera_position
    # The photograph's camera at the origin, where `simplify` looks for it.
    seen = translate(gaussians, (-x, -y, -z))
    coarser = [
        translate(simplify(seen, max_gaussians=max(1, len(gaussians) // _REDUCTION**level)), (x, y, z))
        for level in range(1, num_levels)
    ]
    return [level.map(lambda tensor: tensor.cpu()) for level in (gaussians, *coarser)]


def boxes_of(gaussians: Gaussians) -> Boxes:
    """Return the axis-aligned boxes that enclose three standard deviations of each Gaussian."""
    w, x, y, z = gaussians.quaternions_wxyz.double().unbind(-1)
    # Rows of the rotation matrices.
    rows = (
        (w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    )
    axes = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)
    extents = NUM_SIGMAS * (axes * gaussians.scales.double().unsqueeze(1)).norm(dim=-1)
    means = gaussians.means.double()
    boxes: Boxes = torch.stack([means - extents, means + extents], dim=1).numpy()
    return boxes


@dataclass(kw_only=True, slots=True)
class _Units:
    """Folders of the Gaussians, filled in the order of the tree's leaves.

    Attributes:
        names: Names of the folders, `<level>_<number>`.
        members: The level of each folder, and the indices of its Gaussians for each leaf.
    """

    names: list[str] = field(default_factory=list)
    members: list[tuple[int, list[NDArray[np.intp]]]] = field(default_factory=list)
    _open: dict[int, int] = field(default_factory=dict)
    _num_closed: dict[int, int] = field(default_factory=dict)

    def add(self, level: int, indices: NDArray[np.intp]) -> dict[str, int]:
        """Append a leaf's Gaussians to a folder of their level, and return their place."""
        if level not in self._open:
            number = self._num_closed.get(level, 0)
            self._open[level] = len(self.names)
            self.names.append(f"{level}_{number}")
            self.members.append((level, []))
        unit = self._open[level]
        parts = self.members[unit][1]
        offset = sum(map(len, parts))
        parts.append(indices)
        if offset + len(indices) >= UNIT_GAUSSIANS:
            self._num_closed[level] = self._num_closed.get(level, 0) + 1
            del self._open[level]
        return {"file": unit, "offset": offset, "count": len(indices)}


def _tree(
    means: list[NDArray[np.float32]], boxes: list[Boxes], members: list[NDArray[np.intp]], units: _Units
) -> dict[str, Any]:
    """Return a node of the tree and all below it: each is halved at the median of its longest side.

    Args:
        means: Positions (N, 3) of each level's Gaussians.
        boxes: Boxes of the same Gaussians.
        members: Indices of the node's Gaussians in each level, in their order in the folders.
        units: Folders, to which the leaves' Gaussians are added.
    """
    finest = means[0][members[0]]
    if len(finest) >= 2 * LEAF_GAUSSIANS:
        axis = int(np.ptp(finest, axis=0).argmax())
        middle = np.median(finest[:, axis])
        is_below = [level[chosen, axis] < middle for level, chosen in zip(means, members, strict=True)]
        if is_below[0].any():  # Half of the Gaussians may share the least coordinate.
            below = [chosen[mask] for chosen, mask in zip(members, is_below, strict=True)]
            above = [chosen[~mask] for chosen, mask in zip(members, is_below, strict=True)]
            children = [_tree(means, boxes, side, units) for side in (below, above)]
            return {"bound": _bound([child["bound"] for child in children]), "children": children}
    inside = np.concatenate([level[chosen] for level, chosen in zip(boxes, members, strict=True)])
    bound = {"min": inside[:, 0].min(axis=0).tolist(), "max": inside[:, 1].max(axis=0).tolist()}
    lods = {str(level): units.add(level, chosen) for level, chosen in enumerate(members) if len(chosen)}
    return {"bound": bound, "lods": lods}


def _bound(bounds: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return the box around boxes."""
    return {
        "min": np.min([bound["min"] for bound in bounds], axis=0).tolist(),
        "max": np.max([bound["max"] for bound in bounds], axis=0).tolist(),
    }


def _units_of(path: Path) -> list[str]:
    """Return the folders of a `lod-meta.json` that exist and have names as written here."""
    try:
        names = list(json.loads(path.read_bytes())["filenames"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return []  # No levels of detail, whose folders could be replaced.
    found = [_UNIT.fullmatch(name) for name in names if isinstance(name, str)]
    return [match.group(1) for match in found if match and (path.parent / match.group(1)).is_dir()]


def _remove_unit(folder: Path) -> None:
    """Remove the files of a unit, and its folder unless it has others."""
    for file in [folder / META, *folder.glob("*.webp")]:
        file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def read_levels(content: bytes, folder: Path | None = None) -> Splat:
    """Read the finest level of a `lod-meta.json`.

    Args:
        content: The JSON.
        folder: Its folder, with the units.

    Returns:
        The Gaussians of level 0 in the order of the units.

    Raises:
        SplatError: The content is broken, or a unit is missing or broken.
    """
    try:
        meta = read_json(content)
        names, nodes, used = meta["filenames"], [meta["tree"]], set[int]()
        if meta.get("version", 1) != 1:
            raise SplatError(f"the {LEVELS_NAME} has version {plain(str(meta['version']))}: 1 can be read")
        while nodes:
            node = nodes.pop()
            nodes += node.get("children", [])
            used |= {node["lods"]["0"]["file"]} if "0" in node.get("lods", {}) else set()
        paths = [names[file] for file in sorted(used)]
        valid = all(_PATH.fullmatch(path) for path in paths)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SplatError(f"the {LEVELS_NAME} is broken: {reason_of(error)}") from error
    if not valid:
        raise SplatError(f"the {LEVELS_NAME} names files outside of its folder: it is broken")
    if folder is None:
        raise SplatError(f"the {LEVELS_NAME} refers to files beside it: give the path of the file")
    parts, count = list[Splat](), 0
    for path in paths:
        parts.append(read_sog(read_bytes(folder / path, SplatError), (folder / path).parent))
        count += len(parts[-1].gaussians)
        if count > MAX_EXPANDED_GAUSSIANS:
            raise SplatError(f"the {LEVELS_NAME} has more than {MAX_EXPANDED_GAUSSIANS} Gaussians: split it")
    if not parts:
        raise SplatError(f"the {LEVELS_NAME} has no level 0: it is broken")
    camera = camera_from_fields(meta.get("camera"), LEVELS_NAME)
    return Splat(
        gaussians=concatenate([part.gaussians for part in parts]),
        camera=camera,
        frame=parts[0].frame,
        notes=("the finest of its levels of detail is read",),
    )

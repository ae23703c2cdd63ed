"""PlayCanvas' SOG: lossless WebP images with one Gaussian per pixel, in a zip or in a folder.

The layout of version 2 is specified at https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog/.
The page leaves some details open; there, this module follows PlayCanvas' readers: scales are natural logarithms,
quaternions are stored in the order w x y z, and coordinates are those of a .ply, unchanged. Version 1, which is only
read, has no version number, and ranges in place of codebooks.

The photograph's camera has the names that are proposed at https://github.com/playcanvas/splat-transform/issues/319.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import sharp_cog
from sharp_cog.errors import OutputError, SplatError
from sharp_cog.formats.archive import ZIP_MAGIC, Archive, ReadFile, files_beside
from sharp_cog.formats.limits import MAX_EXPANDED_GAUSSIANS
from sharp_cog.formats.ply import SH_C0, vertex_block
from sharp_cog.formats.quaternions import drop_largest, restore_largest, to_unit
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat, camera_fields, camera_from_fields, pose_from_fields
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import NUM_BANDS, Gaussians
from sharp_cog.geometry.transform import FAR_SHARE, FOCUS_SHARE, NEAR_SHARE, depths_ahead
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.imaging.pixels import DECODER_ERRORS
from sharp_cog.text import plain, quoted, read_json, reason_of

META = "meta.json"
"""Name of the file that describes the images."""
CODEBOOK_SIZE = 256
"""Number of levels of a codebook."""
QUATERNION_MODE = 252
"""Alpha of a quaternion whose largest component is w; 253 to 255 stand for x, y, z."""
MAX_SIDE = 16383
"""Maximum width and height of a WebP image in pixels."""

_GRID_WIDTH = 768
"""Width of the images in pixels. SHARP's Gaussians come in layers of 768 x 768 in raster order, so that neighbours in
space are neighbours in the image, which compresses best."""
_MAX_GRID_HEIGHT = 4096
"""Maximum height of images of that width: some phones have no taller textures. Larger splats get square images."""

_IMAGE_FORMATS = ("WEBP", "PNG")
"""Formats of images that are read: WebP, and another lossless one, which the specification allows."""
_DIRECTORY_BYTES = 1 << 16
"""Bytes at the end of a zip in which its list of names is searched."""
_MIN_LIMIT_PX = 1 << 21
"""Number of pixels that an image may have whatever the number of Gaussians: a palette may be larger than they are."""
_MAX_NUMBER = 1e30
"""Largest number in the metadata: its differences and products are finite in float32."""
MAX_PALETTE = 1 << 16
"""Maximum number of entries of a palette of spherical harmonics: labels have 16 bits."""
_NUM_COMPONENTS = 8
"""Principal components of spherical harmonics by which a palette is found."""
_PALETTE_COLUMNS = 64
"""Entries of a palette of spherical harmonics in a row of its image; each has a pixel for each harmonic."""
_PALETTE_BANDS = (3, 8, 15)
"""Numbers of spherical harmonics above degree 0 that a palette can have, for the degrees 1 to 3."""

_NUM_BINS = 4096
"""Number of histogram bins to which a codebook is fitted."""
_EVEN_SHARE = 0.25
"""Share of a codebook's levels that lie evenly over the whole range."""
_WEBP: dict[str, Any] = {"format": "WEBP", "lossless": True, "exact": True, "method": 4, "quality": 50}
"""Pillow's arguments: method 6 takes thirteen times as long for 0.6 %; `exact` keeps colours where the alpha is 0."""


def write_sog(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Write a bundled SOG; the camera and the frame go into `meta.json`, where readers ignore them.

    Colours are exact to 8 bits of sRGB, opacities to 8 bits, positions to 16 bits of their symmetric logarithm over
    the scene's extent, rotations to 1.1 degrees. Scales have a codebook of 256 logarithms fitted to them: they are
    exact to 1 / 62 of the range of the logarithms, and most of them are much closer. Spherical harmonics up to degree 3
    are entries of a palette of up to 65,536.

    Raises:
        PredictionError: A value is not finite.
        OutputError: The number of Gaussians exceeds the number of pixels of an image.
    """
    files = sog_files(gaussians, origin_fields(gaussians, camera, frame))
    # WebP leaves nothing to compress.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            _add(archive, name, content)


def origin_fields(gaussians: Gaussians, camera: Camera | None, frame: Frame) -> dict[str, Any]:
    """Return the metadata on the program that wrote the splat, its frame, and the camera of the photograph."""
    fields: dict[str, Any] = {
        "asset": {"generator": f"sharp_cog {sharp_cog.__version__}"},
        "frame": {"axes": frame.axes, "camera_position": frame.camera_position},
    }
    if camera is not None:
        fields["camera"] = _camera_block(camera, frame, gaussians)
    return fields


def sog_files(gaussians: Gaussians, more: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of a SOG by their names, `meta.json` first; errors are those of `write_sog`.

    Args:
        gaussians: N Gaussians.
        more: Fields to add to the metadata, which readers may ignore.
    """
    block = vertex_block(gaussians)
    width, height = _image_size(len(block))
    meta: dict[str, Any] = {"version": 2, "count": len(block), "antialias": False, **more}
    low, high, meta["means"] = _pack_means(torch.from_numpy(block[:, 0:3]))
    scales, meta["scales"] = _pack_scales(block[:, 7:10])
    colors, meta["sh0"] = _pack_colors(torch.from_numpy(block[:, 3:7]))
    quaternions, meta["quats"] = _pack_quaternions(torch.from_numpy(block[:, 10:14]))
    harmonics = _pack_harmonics(gaussians.harmonics) if gaussians.harmonics is not None and len(block) else None
    # The slowest images come first, so that no thread starts late on a long job.
    images = {
        "means_l.webp": low,
        "quats.webp": quaternions,
        "sh0.webp": colors,
        "scales.webp": scales,
        "means_u.webp": high,
    }
    sizes = dict.fromkeys(images, (width, height))
    if harmonics is not None:
        entries, labels, meta["shN"] = harmonics
        images |= {"shN_centroids.webp": entries.reshape(-1, 3), "shN_labels.webp": labels}
        sizes |= {"shN_centroids.webp": (entries.shape[1], len(entries)), "shN_labels.webp": (width, height)}
    with ThreadPoolExecutor(len(images)) as executor:  # Pillow releases the GIL while it encodes.
        encoded = executor.map(lambda name: _encode(images[name], *sizes[name]), images)
        # `map` yields in the order of `images`, whichever thread ends first.
        return {META: as_json(meta), **dict(zip(images, encoded, strict=True))}


def as_json(fields: dict[str, Any]) -> bytes:
    """Return metadata as compact JSON."""
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def _camera_block(camera: Camera, frame: Frame, gaussians: Gaussians) -> dict[str, Any]:
    """Return the camera of the photograph in the names of the proposal.

    The camera rests at `position` and has OpenCV axes, which the quaternion x y z w rotates into those of the file.
    """
    block: dict[str, Any] = {
        **camera_fields(camera),
        "convention": "opencv",
        "rig": "camera",
        "rest": {
            "position": frame.camera_position,
            "rotation": (1.0, 0.0, 0.0, 0.0) if frame.axes == "opengl" else (0.0, 0.0, 0.0, 1.0),
        },
        "intrinsics": {
            "fx": camera.focal_length_px,
            "fy": camera.focal_length_px,
            "cx": camera.width / 2,
            "cy": camera.height / 2,
            "width": camera.width,
            "height": camera.height,
        },
    }
    if frame == PHOTOGRAPH_FRAME:  # Elsewhere, depths are no coordinates.
        near_m, focus_m, far_m = depths_ahead(gaussians, NEAR_SHARE, FOCUS_SHARE, FAR_SHARE)
        block["focus"] = {"point": (0.0, 0.0, focus_m), "near_m": near_m, "far_m": far_m, "source": "auto"}
    return block


def _image_size(count: int) -> tuple[int, int]:
    """Return width and height in pixels of the images for `count` Gaussians; 1 x 1 for none."""
    width = _GRID_WIDTH if count <= _GRID_WIDTH * _MAX_GRID_HEIGHT else math.isqrt(count - 1) + 1
    width = max(1, min(width, count))
    height = max(1, -(-count // width))
    if max(width, height) > MAX_SIDE:
        raise OutputError(f"the splat has {count} Gaussians, a .sog holds {MAX_SIDE**2}: lower max_gaussians")
    return width, height


def _pack_means(means: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, Any]]:
    """Return the low and the high bytes of 16-bit positions on a symmetric logarithmic scale, and their metadata."""
    # sign(x) * ln(1 + |x|): steps grow with the distance from the origin.
    logs = means.abs().log1p_().copysign_(means)
    mins = (logs.amin(dim=0) if len(logs) else torch.zeros(3)).double()
    maxs = (logs.amax(dim=0) if len(logs) else torch.zeros(3)).double()
    steps = (maxs - mins) / 65535.0
    # If all positions are equal, any step is right: they all get the code 0.
    steps = torch.where(steps > 0, steps, 1.0)
    # float64, because float32 would add some hundredths of a code of rounding error.
    codes = logs.sub(mins).div_(steps).round_().clamp_(0.0, 65535.0).to(torch.int32).numpy()
    # (N, 3, 2), the low byte first.
    pairs = codes.astype("<u2").view(np.uint8).reshape(-1, 3, 2)
    meta = {"mins": mins.tolist(), "maxs": maxs.tolist(), "files": ["means_l.webp", "means_u.webp"]}
    return pairs[..., 0], pairs[..., 1], meta


def _pack_scales(log_scales: NDArray[np.float32]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    codes, codebook = _fit_codebook(log_scales)
    return codes, {"codebook": codebook, "files": ["scales.webp"]}


def _fit_codebook(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], list[float]]:
    """Quantise values to 256 levels, whose density follows the cube root of the density of the values.

    That has the least mean squared error of all densities for fine quantisation (Panter and Dite, 1951), but one level
    may cover a few values that lie far apart. `_EVEN_SHARE` of the levels are therefore spread evenly: no level covers
    more than 1 / 62 of the range. Each level is the mean of the values that it covers.

    Returns:
        Indices of the levels, in the shape of the values; and the levels.
    """
    if not values.size:
        return values.astype(np.uint8), [0.0] * CODEBOOK_SIZE
    # What was read from a .sog has few values, all of which are kept.
    if len(np.unique(values.ravel()[:_NUM_BINS])) <= CODEBOOK_SIZE:
        distinct, codes = np.unique(values, return_inverse=True)
        if len(distinct) <= CODEBOOK_SIZE:
            padded = np.pad(distinct.astype(np.float64), (0, CODEBOOK_SIZE - len(distinct)), mode="edge")
            return codes.reshape(values.shape).astype(np.uint8), padded.tolist()
    # A histogram, and the sum of the values in each bin. The largest value falls into the last bin.
    low, high = float(values.min()), float(values.max())
    bins_per_unit = (_NUM_BINS - 1) / (high - low) if high > low else 0.0
    bins = ((values - np.float32(low)) * np.float32(bins_per_unit)).astype(np.intp).clip(0, _NUM_BINS - 1)
    counts = np.bincount(bins.ravel(), minlength=_NUM_BINS)
    sums = np.bincount(bins.ravel(), weights=values.ravel(), minlength=_NUM_BINS)
    # The share of the levels that each bin gets.
    density = np.cbrt(counts)
    density = density / density.sum() * (1.0 - _EVEN_SHARE) + _EVEN_SHARE / _NUM_BINS
    # Each bin takes the level at the middle of its part of the cumulative density.
    level_of_bin = ((np.cumsum(density) - density / 2) * CODEBOOK_SIZE).clip(0, CODEBOOK_SIZE - 1).astype(np.uint8)
    level_counts = np.bincount(level_of_bin, weights=counts, minlength=CODEBOOK_SIZE)
    level_sums = np.bincount(level_of_bin, weights=sums, minlength=CODEBOOK_SIZE)
    # Levels without values lie between their neighbours, so that the codebook ascends.
    used = np.flatnonzero(level_counts)
    levels = np.interp(np.arange(CODEBOOK_SIZE), used, level_sums[used] / level_counts[used])
    return level_of_bin[bins], levels.tolist()


def _pack_colors(harmonics_and_logits: Tensor) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return RGBA pixels and their metadata: the 256 levels of a colour are those of 8-bit sRGB."""
    colors = harmonics_and_logits[:, :3].mul(SH_C0).add_(0.5)
    values = torch.cat([colors, harmonics_and_logits[:, 3:].sigmoid()], dim=-1)
    codes = values.mul_(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8).numpy()
    codebook = (np.arange(CODEBOOK_SIZE) / 255.0 - 0.5) / SH_C0
    return codes, {"codebook": codebook.tolist(), "files": ["sh0.webp"]}


def _pack_quaternions(quaternions_wxyz: Tensor) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return RGBA pixels and their metadata: the three smallest components, and the index of the largest one."""
    largest, others = drop_largest(quaternions_wxyz.t())
    codes = others.mul_(math.sqrt(0.5)).add_(0.5).mul_(255.0).round_().clamp_(0.0, 255.0)
    packed = torch.cat([codes, largest.unsqueeze(0) + QUATERNION_MODE]).t().to(torch.uint8).numpy()
    return packed, {"files": ["quats.webp"]}


def _pack_harmonics(harmonics: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, Any]]:
    """Return the palette's image (rows, columns, 3), the labels' pixels, and their metadata; degree 4 is left out."""
    num_bands = min(harmonics.shape[1], _PALETTE_BANDS[-1])
    values = harmonics[:, :num_bands].cpu().reshape(len(harmonics), -1).numpy()
    labels, palette = _fit_palette(values)
    codes, codebook = _fit_codebook(palette)
    num_rows = -(-len(palette) // _PALETTE_COLUMNS)
    entries = np.zeros((num_rows * _PALETTE_COLUMNS, num_bands * 3), dtype=np.uint8)
    entries[: len(palette)] = codes
    pixels = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=-1).astype(np.uint8)
    meta = {
        "count": len(palette),
        "bands": NUM_BANDS.index(num_bands),
        "codebook": codebook,
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }
    return entries.reshape(num_rows, _PALETTE_COLUMNS * num_bands, 3), pixels, meta


def _fit_palette(values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Cluster vectors (N, D) into a palette: all cells are halved at their mean, along the axis of largest variance.

    Up to `MAX_PALETTE` vectors are all kept. Cells are found among the principal components, which are few.

    Returns:
        The index (N,) of each vector's entry, and the entries (P, D), which are the means of their cells.
    """
    count = len(values)
    if count <= MAX_PALETTE:
        return np.arange(count), values
    centered = values - values.mean(axis=0)
    axes = np.linalg.eigh(centered.T @ centered).eigenvectors[:, -_NUM_COMPONENTS:]
    components = centered @ axes
    order, starts = np.arange(count), np.zeros(1, dtype=np.intp)
    for _ in range(MAX_PALETTE.bit_length() - 1):
        sizes = np.diff(starts, append=count)
        sorted_components = components[order]
        means = np.add.reduceat(sorted_components, starts) / sizes[:, None]
        variances = np.add.reduceat(sorted_components**2, starts) / sizes[:, None] - means**2
        axis = variances.argmax(axis=1)
        cells = np.repeat(np.arange(len(starts)), sizes)
        is_above = sorted_components[np.arange(count), axis[cells]] > means[cells, axis[cells]]
        halves = 2 * cells + is_above
        ranks = halves.argsort(kind="stable")
        order, halves = order[ranks], halves[ranks]
        starts = np.flatnonzero(np.diff(halves, prepend=-1))
    sizes = np.diff(starts, append=count)
    labels = np.empty(count, dtype=np.int64)
    labels[order] = np.repeat(np.arange(len(starts)), sizes)
    palette = np.add.reduceat(values[order], starts) / sizes[:, None]
    return labels, palette.astype(np.float32)


def _encode(pixels: NDArray[np.uint8], width: int, height: int) -> bytes:
    """Return a WebP image of (N, 3) or (N, 4) pixels in raster order; the last pixel is repeated to fill the image."""
    num_channels = pixels.shape[1]
    padding = width * height - len(pixels)
    last = pixels[-1:] if len(pixels) else np.zeros((1, num_channels), dtype=np.uint8)
    whole = np.concatenate([pixels, last.repeat(padding, axis=0)]).reshape(height, width, num_channels)
    file = io.BytesIO()
    Image.fromarray(whole).save(file, **_WEBP)
    return file.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file with a fixed date, so that the same splat always has the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), content)


def is_sog(content: bytes) -> bool:
    """Return whether a content is a zip with a `meta.json`, whose name is also near the end of the zip."""
    return content.startswith(ZIP_MAGIC) and META.encode() in content[-_DIRECTORY_BYTES:]


def read_sog(content: bytes, folder: Path | None = None) -> Splat:
    """Read a SOG of version 1 or 2, in a zip or in a folder.

    Args:
        content: A zip, or the content of a `meta.json`.
        folder: Folder of that `meta.json`, with its images.

    Returns:
        The Gaussians in the file's order.

    Raises:
        SplatError: The content is not a SOG, is broken or truncated, or an image is missing.
    """
    if content.startswith(ZIP_MAGIC):
        archive = Archive(content, ".sog")
        # Some zips hold a folder in place of its files.
        names = [name for name in archive.names if name.rpartition("/")[2] == META]
        if not names:
            raise SplatError(f"the zip has no {META}: it is not a .sog")
        nearest = min(names, key=lambda name: (name.count("/"), name))
        prefix, content = nearest.removesuffix(META), archive.read(nearest)
        meta = _Meta(content, lambda name: archive.read(prefix + name))
    else:
        meta = _Meta(content, files_beside(folder, META))
    return Splat(gaussians=_gaussians(meta), camera=meta.camera(), frame=meta.frame())


class _Meta:
    """The parsed `meta.json`, and the images that it names; methods raise `SplatError` where something is broken.

    Args:
        content: The JSON.
        read_file: Reads an image by its name.
    """

    def __init__(self, content: bytes, read_file: ReadFile) -> None:
        self._read_file = read_file
        try:
            values = read_json(content)
        except ValueError as error:
            raise SplatError(f"the {META} of the .sog is no JSON: {reason_of(error)}") from error
        self._values: dict[str, Any] = values if isinstance(values, dict) else {}
        self.version = self._values.get("version", 1)
        if self.version not in (1, 2):
            raise SplatError(f"the .sog has version {quoted(self.version)}: 1 and 2 can be read")
        shape = [self._values.get("count")] if self.version == 2 else self._part("means").get("shape")
        count = shape[0] if isinstance(shape, list) and shape else None
        if not isinstance(count, int) or count < 0:
            raise _broken(f"its number of Gaussians is {quoted(count)}")
        if count > MAX_EXPANDED_GAUSSIANS:
            raise SplatError(f"the .sog promises {count} Gaussians, the limit is {MAX_EXPANDED_GAUSSIANS}: split it")
        self.count = count

    def has(self, part: str) -> bool:
        return self._values.get(part) is not None

    def _part(self, part: str) -> dict[str, Any]:
        values = self._values.get(part)
        if not isinstance(values, dict):
            raise _broken(f"{META} has no {part}")
        return values

    def numbers(self, part: str, name: str, num: int) -> NDArray[np.float32]:
        """Return a list of numbers; a single number stands for equal ones."""
        values = self._part(part).get(name)
        # Early writers left the first level out, and PlayCanvas' engine continues the others downwards.
        if name == "codebook" and isinstance(values, list) and len(values) == num and values[0] is None:
            values = [_below(values[1], values[-1]), *values[1:]]
        try:
            numbers = np.array([values] * num if isinstance(values, (int, float)) else values, dtype=np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            raise _broken(f"{name} of {part} is no list of numbers") from error
        # Values of positions and scales are logarithms: those beyond the limit have no finite exponential in float32.
        if numbers.shape != (num,) or not (np.abs(numbers) <= _MAX_NUMBER).all():
            raise _broken(f"{name} of {part} is no list of {num} numbers up to {_MAX_NUMBER:g}")
        return numbers.astype(np.float32)

    def levels(self, part: str, num_channels: int) -> NDArray[np.float32]:
        """Return the values of the 256 codes of each channel, (256, channels)."""
        if self.version == 2:
            return np.repeat(self.numbers(part, "codebook", CODEBOOK_SIZE)[:, None], num_channels, axis=1)
        low, high = (self.numbers(part, name, num_channels) for name in ("mins", "maxs"))
        return low + (high - low) * np.linspace(0, 1, CODEBOOK_SIZE, dtype=np.float32)[:, None]

    def images(self, part: str, num_images: int, mode: str) -> list[NDArray[np.uint8]]:
        """Return a property's images, (height, width, channels) each."""
        names = self._part(part).get("files")
        if not isinstance(names, list) or len(names) < num_images or not all(isinstance(name, str) for name in names):
            raise _broken(f"{part} does not name {num_images} files")
        with ThreadPoolExecutor(num_images) as executor:  # Pillow releases the GIL while it decodes.
            return list(executor.map(lambda name: self._image(name, mode), names[:num_images]))

    def _image(self, name: str, mode: str) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(self._read_file(name)), formats=_IMAGE_FORMATS) as image:
                if image.width * image.height > max(2 * self.count, _MIN_LIMIT_PX):
                    raise _broken(f"{plain(name)} has {image.width} x {image.height} pixels for {self.count} Gaussians")
                return np.asarray(image.convert(mode))
        except (Image.DecompressionBombError, *DECODER_ERRORS) as error:
            raise SplatError(f"{plain(name)} of the .sog cannot be decoded: {reason_of(error)}") from error

    def pixels(self, part: str, num_images: int, mode: str) -> list[NDArray[np.uint8]]:
        """Return the pixels of the Gaussians in a property's images, (N, channels) each."""
        found = []
        for image in self.images(part, num_images, mode):
            pixels = image.reshape(-1, image.shape[-1])
            if len(pixels) < self.count:
                raise _broken(f"an image of {part} has {len(pixels)} pixels for {self.count} Gaussians")
            found.append(pixels[: self.count])
        return found

    def camera(self) -> Camera | None:
        return camera_from_fields(self._values.get("camera"), ".sog")

    def frame(self) -> Frame | None:
        """Return the frame, which our own field states, or the pose of the camera; None without either."""
        stated, camera = self._values.get("frame"), self._values.get("camera")
        if isinstance(stated, dict) and stated.get("axes") in ("opencv", "opengl"):
            pose = pose_from_fields(stated.get("camera_position", (0, 0, 0)), (0, 0, 0, 1), ".sog")
            return Frame(axes=stated["axes"], camera_position=pose.camera_position)
        rest = camera.get("rest") if isinstance(camera, dict) and camera.get("convention") == "opencv" else None
        if not isinstance(rest, dict):
            return None
        return pose_from_fields(rest.get("position", (0, 0, 0)), rest.get("rotation", (0, 0, 0, 1)), ".sog")


def _broken(fault: str) -> SplatError:
    return SplatError(f"the .sog is broken: {fault}")


def _below(second: object, last: object) -> object:
    """Return the level below the second one at the levels' mean distance."""
    if isinstance(second, (int, float)) and isinstance(last, (int, float)):
        return second + (second - last) / (CODEBOOK_SIZE - 1)
    return None


def _gaussians(meta: _Meta) -> Gaussians:
    # All images are decoded, and refused where they are broken, before any value is computed.
    low, high = meta.pixels("means", 2, "RGB")
    (scale_codes,) = meta.pixels("scales", 1, "RGB")
    (quaternions,) = meta.pixels("quats", 1, "RGBA")
    (rgba,) = meta.pixels("sh0", 1, "RGBA")
    harmonics = _harmonics(meta) if meta.has("shN") else None
    levels = meta.levels("sh0", 3 if meta.version == 2 else 4)
    colors = torch.from_numpy(_look_up(levels, rgba[:, :3])).mul_(SH_C0).add_(0.5)
    if meta.version == 2:
        opacities = torch.from_numpy(rgba[:, 3].astype(np.float32)).div_(255.0)
    else:
        opacities = torch.from_numpy(levels[rgba[:, 3], 3]).sigmoid()
    return Gaussians(
        means=_unpack_means(low, high, *(meta.numbers("means", name, 3) for name in ("mins", "maxs"))),
        scales=torch.from_numpy(_look_up(meta.levels("scales", 3), scale_codes)).exp_(),
        quaternions_wxyz=_unpack_quaternions(quaternions),
        colors_linear=srgb_to_linear(colors),
        opacities=opacities,
        harmonics=harmonics,
    )


def _unpack_means(
    low: NDArray[np.uint8], high: NDArray[np.uint8], mins: NDArray[np.float32], maxs: NDArray[np.float32]
) -> Tensor:
    """Reverse `_pack_means`."""
    means = np.empty(low.shape, dtype=np.float32)
    for axis in range(3):
        # float64, because float32 would add some hundredths of a code of rounding error.
        logs = np.linspace(mins[axis], maxs[axis], 1 << 16)
        with np.errstate(over="ignore"):  # `Splat` refuses positions that are not finite.
            values = np.copysign(np.expm1(np.abs(logs)), logs).astype(np.float32)
        means[:, axis] = values[low[:, axis] | high[:, axis].astype(np.uint16) << 8]
    return torch.from_numpy(means)


def _look_up(levels: NDArray[np.float32], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of codes (N, C) by the levels (256, C or more) of each channel."""
    return np.stack([levels[codes[:, channel], channel] for channel in range(codes.shape[1])], axis=-1)


def _unpack_quaternions(rgba: NDArray[np.uint8]) -> Tensor:
    """Reverse `_pack_quaternions`; like PlayCanvas' readers, take an unknown index for no rotation."""
    pixels = torch.from_numpy(rgba.copy())
    largest = pixels[:, 3].long() - QUATERNION_MODE
    others = pixels[:, :3].float().div_(255.0).sub_(0.5).mul_(math.sqrt(2.0))
    restored = restore_largest(largest.clamp(min=0), others)
    return to_unit(torch.where(largest.unsqueeze(1) < 0, restored.new_tensor([1.0, 0.0, 0.0, 0.0]), restored))


def _harmonics(meta: _Meta) -> Tensor:
    """Return the spherical harmonics, (N, K, 3): each Gaussian has the label of an entry of a palette."""
    entries, label_image = meta.images("shN", 2, "RGB")
    num_bands = entries.shape[1] // _PALETTE_COLUMNS
    if num_bands not in _PALETTE_BANDS or entries.shape[1] != _PALETTE_COLUMNS * num_bands:
        raise _broken(f"its palette of spherical harmonics is {entries.shape[1]} pixels wide")
    pairs = label_image.reshape(-1, 3)[: meta.count]
    if len(pairs) < meta.count:
        raise _broken(f"an image of shN has {len(pairs)} pixels for {meta.count} Gaussians")
    palette = _look_up(meta.levels("shN", 3), entries.reshape(-1, 3)).reshape(-1, num_bands, 3)
    labels = pairs[:, 0] | pairs[:, 1].astype(np.uint16) << 8
    # Like PlayCanvas' readers, take a label beyond the palette for no harmonics.
    palette = np.concatenate([palette, np.zeros((1, num_bands, 3), dtype=np.float32)])
    return torch.from_numpy(palette[np.minimum(labels, len(palette) - 1)])

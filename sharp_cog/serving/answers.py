"""Answers that are the same at every frontend: metadata, arrays, names of files."""

from __future__ import annotations

import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from sharp_cog import formats
from sharp_cog.files.atomic import open_atomically
from sharp_cog.formats.limits import MAX_LENGTH_M, require_writable
from sharp_cog.imaging.color import linear_to_srgb
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.runtime.device import translate_errors

ROWS_AT_A_TIME = 1 << 15
"""Number of Gaussians that are turned into JSON at a time."""


def metadata(prediction: Prediction) -> dict[str, Any]:
    """Return the facts about a splat besides its Gaussians, ready for JSON.

    Returns:
        `focal_length` in pixels of the upright image, `focal_length_source`, `image_size` [width, height],
        `num_gaussians`, `precision` that the network computed in, `timings` in seconds, `assumptions`, a list of
        sentences about what was concluded and not given.
    """
    camera = prediction.camera
    return {
        "focal_length": float(camera.focal_length_px),
        "focal_length_source": camera.focal_length_source,
        "image_size": [camera.width, camera.height],
        "num_gaussians": len(prediction.gaussians),
        "precision": prediction.precision,
        "timings": {stage: round(seconds, 6) for stage, seconds in prediction.timings.items()},
        "assumptions": list(prediction.assumptions),
    }


def arrays(prediction: Prediction) -> dict[str, NDArray[np.float32]]:
    """Return the Gaussians as arrays, transformed as the options say; in OpenCV axes by default.

    Returns:
        float32: `positions` (N, 3) and `scales` (N, 3) in metres, `rotations` (N, 4) unit quaternions w x y z,
        `opacities` (N, 1) in 0 to 1, `colors` (N, 3) sRGB in 0 to 1; `internal_depth_m` (2, S, S) in metres if the
        options ask for it.

    Raises:
        PredictionError: A value is not finite (`sharp_cog.formats.limits.require_writable`), or the device ran out of
            memory, or failed.
    """
    with translate_errors(prediction.gaussians.means.device):
        transformed, _ = formats.to_output_frame(prediction.gaussians, prediction.options, default_axes="opencv")
        # After the transform, whose scale may take a value out of range.
        require_writable(transformed)
        tensors = {
            "positions": transformed.means,
            "scales": transformed.scales.clamp(0.0, MAX_LENGTH_M),
            "rotations": transformed.quaternions_wxyz,
            "opacities": transformed.opacities.unsqueeze(-1).clamp(0.0, 1.0),
            "colors": linear_to_srgb(transformed.colors_linear.clamp(0.0, 1.0)),
        }
        named = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    if prediction.monodepth_m is not None:
        # The older name of monodepth, which existing clients read.
        named["internal_depth_m"] = prediction.monodepth_m
    return named


def write_json(path: Path, prediction: Prediction) -> None:
    """Write arrays and metadata as one JSON object; some 250 MB of text for a whole splat.

    Raises:
        PredictionError: A value is not finite.
        OutputError: The file cannot be written.
    """
    with open_atomically(path) as file:
        for chunk in _json_chunks(arrays(prediction), metadata(prediction)):
            file.write(chunk)


def write_gzipped_json(path: Path, prediction: Prediction) -> None:
    """Write what `write_json` writes, compressed on the way, fast rather than small.

    Raises:
        PredictionError: A value is not finite.
        OutputError: The file cannot be written.
    """
    # 31 is 15, the largest window, plus 16 for gzip's header.
    pack = zlib.compressobj(level=1, wbits=31)
    with open_atomically(path) as file:
        for chunk in _json_chunks(arrays(prediction), metadata(prediction)):
            file.write(pack.compress(chunk))
        file.write(pack.flush())


def _json_chunks(named: dict[str, NDArray[np.float32]], about: dict[str, Any]) -> Iterator[bytes]:
    import orjson  # Only the extra `http` installs it.

    # The object is put together by hand, so that only a part of its 250 MB of text is in memory at a time.
    yield b"{"
    for name, values in named.items():
        yield orjson.dumps(name) + b":["
        for start in range(0, len(values), ROWS_AT_A_TIME):
            # Without their outer brackets the parts join into one list. orjson refuses arrays that are not contiguous.
            rows = np.ascontiguousarray(values[start : start + ROWS_AT_A_TIME])
            yield (b"," if start else b"") + orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        yield b"],"
    yield b'"metadata":' + orjson.dumps(about) + b"}"


def write_npz(path: Path, prediction: Prediction) -> None:
    """Write the arrays as an uncompressed .npz, with the metadata as a member `metadata.json`.

    Raises:
        PredictionError: A value is not finite.
        OutputError: The file cannot be written.
    """
    import orjson

    with open_atomically(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, values in arrays(prediction).items():
            # `ZipInfo` has a fixed date, so that two files of the same splat differ in their timings alone.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(values), allow_pickle=False)
        archive.writestr(zipfile.ZipInfo("metadata.json"), orjson.dumps(metadata(prediction)))


def file_name(name: str | None, suffix: str) -> str:
    """Name a splat after its image: `beach.jpg` becomes `beach.ply`; without a name it is `splat.ply`.

    Args:
        name: Name of the image as the caller sent it, perhaps with folders of any system.
        suffix: Suffix of the splat, with the dot.
    """
    # The name comes from the caller and goes into a header and a path: no folder, no quotes, no leading dot.
    stem = PurePosixPath((name or "").replace("\\", "/")).stem
    safe = re.sub(r"[^\w.-]+", "_", stem)[:100].strip("._-")
    return f"{safe or 'splat'}{suffix}"


def disposition(name: str, suffix: str) -> str:
    """Return the Content-Disposition of a download.

    Args:
        name: Name of the file, as `file_name` makes it.
        suffix: Its suffix, with the dot.

    Returns:
        The name in ASCII, which every client reads, and beside it the whole name where that differs (RFC 6266).
    """
    # A letter with an accent becomes the letter.
    stem = unicodedata.normalize("NFKD", name.removesuffix(suffix)).encode("ascii", "ignore").decode().strip("._-")
    plain = f"{stem or 'splat'}{suffix}"
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name)}"

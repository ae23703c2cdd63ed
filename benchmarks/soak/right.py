"""The right answers: the output of a pipeline in this process for the same bytes and options."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.soak.mix import ARRAYS, Request
from sharp_cog import formats
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.settings import Settings
from sharp_cog.errors import NotInstalledError
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving import answers

_WRITERS = {"json": answers.write_json, "npz": answers.write_npz}
assert set(_WRITERS) == set(ARRAYS)


def digest_of(output: str, content: bytes) -> str:
    """Return a hash of everything that is the same in every right answer, which excludes timings and dates in a zip.

    Args:
        output: Output as in `Request.output`.
        content: The answer.
    """
    if output not in ARRAYS:
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    if output == "json":
        parts = {name: json.dumps(values).encode() for name, values in json.loads(content).items()}
        about = parts.pop("metadata")
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        about = parts.pop("metadata.json")
    metadata = json.loads(about)
    del metadata["timings"]
    for name, part in [*parts.items(), ("metadata", json.dumps(metadata).encode())]:
        digest.update(f"{name} {len(part)} ".encode() + part)
    return digest.hexdigest()


def missing_formats() -> list[str]:
    """Return the formats that need something that is not installed, such as the viewer of pages."""
    missing = []
    for name in formats.FORMATS:
        try:
            formats.check(PredictOptions(output_format=name))
        except NotInstalledError:
            missing.append(name)
    return missing


def right_answers(good: Iterable[Request]) -> dict[int, str]:
    """Return the digest of the right answer to each good request, by its index."""
    pipeline = SharpPipeline.load(Settings(model="lift", device="cpu"))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, request in enumerate(good):
            path = Path(folder) / "right"
            assert isinstance(request.image, bytes)
            named = {**request.options, "output_format": "ply" if request.output in ARRAYS else request.output}
            prediction = pipeline(request.image, PredictOptions.from_mapping(named), depth=request.depth)
            if request.output in ARRAYS:
                _WRITERS[request.output](path, prediction)
            else:
                prediction.write(path)
            found[number] = digest_of(request.output, path.read_bytes())
    return found

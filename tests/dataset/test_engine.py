"""The steps that all engines share: reading a job's files, and writing its splats."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from sharp_cog import __version__
from sharp_cog.config.options import PredictOptions
from sharp_cog.dataset.engine import Job, read_request, write_splats
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import DepthError, ImageError
from tests.gated import Gated


def job_of(tmp_path: Path, *, depth: str = "") -> Job:
    path = tmp_path / "a.png"
    path.write_bytes(b"image")
    return Job(photo=Photo(id="a", where=str(path), depth=depth), image=path)


def test_a_request_holds_the_content_of_the_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.depth.npy", np.ones((4, 4), np.float32))
    request = read_request(job_of(tmp_path, depth=str(tmp_path / "a.depth.npy")), ("spz",))
    assert request.image == b"image"
    assert request.depth == (tmp_path / "a.depth.npy").read_bytes()
    assert (request.key, request.options) == ("a", PredictOptions(output_format="spz"))


def test_a_depth_map_described_as_metric_stays_metric_on_another_machine(tmp_path: Path) -> None:
    """The description is a file beside the depth map, which does not travel with its content."""
    np.save(tmp_path / "a.depth.npy", np.ones((4, 4), np.float32))
    (tmp_path / "a.depth.npy.json").write_text(json.dumps({"format": "metric", "unit": "m"}))
    request = read_request(job_of(tmp_path, depth=str(tmp_path / "a.depth.npy")), ("ply",))
    assert request.options.depth_format == "metric"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DepthError, match=r"none\.npy cannot be read"):
        read_request(job_of(tmp_path, depth=str(tmp_path / "none.npy")), ("ply",))
    job = job_of(tmp_path)
    job.image.unlink()
    with pytest.raises(ImageError, match=r"a\.png cannot be read"):
        read_request(job, ("ply",))


def test_facts_describe_the_files(tmp_path: Path) -> None:
    prediction = Gated().predict(read_request(job_of(tmp_path), ("ply", "spz")))
    prediction.assumptions = ("focal length taken as 30 mm equivalent",)
    facts = write_splats(prediction, tmp_path, ("ply", "spz"), model="lift")
    hashes = {name: hashlib.sha256((tmp_path / f"a.{name}").read_bytes()).hexdigest() for name in ("ply", "spz")}
    assert facts == {
        "splats": {"ply": "a.ply", "spz": "a.spz"},
        "sha256": hashes,
        "num_gaussians": len(b"image"),
        "focal_length_px": 1.0,
        "focal_length_source": prediction.camera.focal_length_source,
        "width": len(b"image"),
        "height": 1,
        "assumptions": ["focal length taken as 30 mm equivalent"],
        "model": "lift",
        "sharp_cog": __version__,
    }

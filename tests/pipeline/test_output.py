"""Formats behind one function: splats and films."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.errors import NotInstalledError
from sharp_cog.pipeline import output
from tests.splats import CAMERA, random_gaussians


def test_a_splat_is_written_as_its_format_writes_it(tmp_path: Path) -> None:
    gaussians, options = random_gaussians(20), OutputOptions(output_format="spz")
    output.check(options)
    written = output.write(tmp_path / "a.spz", gaussians, CAMERA, options)
    assert written.read_bytes() == formats.write(tmp_path / "b.spz", gaussians, CAMERA, options).read_bytes()


def test_a_film_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: object, *rest: object) -> None:
        file.write(b"begun")  # type: ignore[attr-defined]
        raise RuntimeError

    monkeypatch.setattr(output, "write_mp4", lambda file, *rest: file.write(b"film"))
    options = OutputOptions(output_format="mp4")
    assert output.write(tmp_path / "a.mp4", random_gaussians(1), CAMERA, options).read_bytes() == b"film"
    monkeypatch.setattr(output, "write_mp4", fails)
    with pytest.raises(RuntimeError):
        output.write(tmp_path / "a.mp4", random_gaussians(1), CAMERA, options)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.mp4", b"film")]


def test_missing_software_is_reported_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotInstalledError, match="viewer"):
        output.check(OutputOptions(output_format="html"), viewer_dir=tmp_path)

    def missing() -> None:
        raise NotInstalledError("ffmpeg is not installed")

    monkeypatch.setattr(output, "require_ffmpeg", missing)
    with pytest.raises(NotInstalledError, match="ffmpeg"):
        output.check(OutputOptions(output_format="mp4"))

"""The functions on Modal, built by the real package; Modal's service itself is not run."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import numpy as np
import pytest
import torch

from sharp_cog.config.settings import Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving import modal_app
from tests.images import npy, png
from tests.lift import small_lift
from tests.parity import small_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning"),
    pytest.mark.filterwarnings("error::modal.exception.DeprecationError"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Load a small model without weights, and record the arguments."""
    calls: list[object] = []

    def load(settings: Settings, **arguments: object) -> SharpPipeline:
        calls.append(arguments)
        return small_lift()

    monkeypatch.setenv("SHARP_MODEL", "lift")
    monkeypatch.setenv("SHARP_DEVICE", "cpu")
    monkeypatch.setattr(SharpPipeline, "load", load)
    return calls  # type: ignore[return-value]


def test_the_app_has_the_names_that_its_users_know() -> None:
    assert modal_app.app.name == "sharp-view-synthesis"
    assert isinstance(modal_app.predict, modal.Function)
    assert isinstance(modal_app.predict_and_save_ply, modal.Function)
    assert isinstance(modal_app.Sharp, modal.Cls)


def test_predict_returns_arrays(loads: list[object]) -> None:
    found = modal_app.predict.local(png(), 80.0, depth_bytes=npy(), max_gaussians=700)
    metadata = found.pop("metadata")
    assert {name: values.shape for name, values in found.items()} == {
        "positions": (700, 3),
        "scales": (700, 3),
        "rotations": (700, 4),
        "opacities": (700, 1),
        "colors": (700, 3),
    }
    assert all(values.dtype == np.float32 for values in found.values())
    assert (metadata["focal_length"], metadata["image_size"], metadata["num_gaussians"]) == (80.0, [96, 64], 700)


def test_predict_and_save_ply_returns_a_file_of_any_format(loads: list[object]) -> None:
    for name, magic in (("ply", b"ply\n"), ("spz", b"\x1f\x8b"), ("sog", b"PK")):
        splat = modal_app.predict_and_save_ply.local(png(), depth_bytes=npy(), max_gaussians=9, output_format=name)
        assert splat.startswith(magic)


def test_an_error_can_be_unpickled_without_this_package(loads: list[object]) -> None:
    with pytest.raises(ValueError, match=r"^invalid_image: the bytes are not a") as caught:
        modal_app.predict.local(b"text")
    assert type(caught.value) is ValueError
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match=r"^invalid_option: unknown option colour"):
        modal_app.predict_and_save_ply.local(png(), colour="red")
    with pytest.raises(ValueError, match=r"^invalid_input: depth_bytes is of type str: give the file's bytes"):
        modal_app.predict.local(png(), depth_bytes="depth.npy")
    with pytest.raises(ValueError, match=r"^invalid_option: save_internal_depth .* call predict"):
        modal_app.predict_and_save_ply.local(png(), save_internal_depth=True)


def test_the_model_is_loaded_once_for_many_calls(loads: list[object]) -> None:
    sharp = modal_app.Sharp()
    for _ in range(3):
        sharp.predict.local(png(), depth_bytes=npy(), max_gaussians=9)
    assert loads == [{"source": None}]


def test_sharp_is_loaded_from_the_weights_in_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.pt"
    torch.save(small_state(), path)
    values = {"MODEL": "sharp", "CHECKPOINT": str(path), "PRECISION": "float32", "DEVICE": "cpu"}
    for name, value in values.items():
        monkeypatch.setenv(f"SHARP_{name}", value)
    sources = []
    load = SharpPipeline.load

    def watched(settings: Settings, **arguments: object) -> SharpPipeline:
        sources.append(arguments["source"])
        return load(settings, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SharpPipeline, "load", watched)
    found = modal_app.Sharp().predict.local(png())
    assert sources[0] is not None
    expected = load(Settings(checkpoint=path, device="cpu", precision="float32"))(png())
    np.testing.assert_array_equal(found["positions"], expected.gaussians.means.numpy())


@pytest.mark.slow
def test_modals_own_command_knows_the_entrypoint() -> None:
    command = [sys.executable, "-m", "modal", "run", "-m", "sharp_cog.serving.modal_app", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT).stdout
    for flag in ("--image-path", "--output-path", "--f-px"):
        assert flag in shown


def test_the_entrypoint_chooses_the_format_by_the_suffix(
    loads: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.png").write_bytes(png())
    main: Any = modal_app.main.info.raw_f
    local = functools.partial(modal_app.Sharp().predict_and_save_ply.local, depth_bytes=npy())

    class Remote:
        class predict_and_save_ply:  # noqa: N801 - named like the method
            remote = staticmethod(local)

    monkeypatch.setattr(modal_app, "Sharp", Remote)
    main(str(tmp_path / "photo.png"), str(tmp_path / "photo.spz"))
    assert (tmp_path / "photo.spz").read_bytes().startswith(b"\x1f\x8b")
    with pytest.raises(SystemExit, match=r"\[invalid_option\]"):
        main(str(tmp_path / "photo.png"), str(tmp_path / "photo.obj"))

"""The Modal apps, built by the real package; what needs Modal's service is not run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import modal
import numpy as np
import pytest
import requests
import torch

from sharp_cog.config.settings import ServiceSettings, Settings
from sharp_cog.formats.html import VIEWER_DIR
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving import modal_api, modal_app, modal_image
from tests.contract.test_doors import npy, png
from tests.parity import state
from tests.service import listening

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning"),
    pytest.mark.filterwarnings("error::modal.exception.DeprecationError"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def lift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARP_MODEL", "lift")
    monkeypatch.setenv("SHARP_DEVICE", "cpu")


def test_the_apps_are_called_as_their_users_know_them() -> None:
    assert modal_app.app.name == "sharp-view-synthesis"
    assert modal_api.app.name == "sharp-api"
    functions: list[object] = [modal_app.predict, modal_app.predict_and_save_ply, modal_api.api]
    assert all(isinstance(function, modal.Function) for function in functions)
    assert isinstance(modal_app.Sharp, modal.Cls)


def test_resources_are_what_the_settings_say() -> None:
    settings = ServiceSettings(modal_gpu="T4", modal_idle_seconds=60, modal_timeout_seconds=90)
    resources = modal_image.resources(settings)
    assert isinstance(resources.pop("image"), modal.Image)
    (secret,) = resources.pop("secrets")
    assert isinstance(secret, modal.Secret)
    assert resources.pop("volumes").keys() == {"/cache"}
    assert resources == {"gpu": "T4", "scaledown_window": 60, "timeout": 90}
    assert modal_image.resources(ServiceSettings())["gpu"] == "A100"
    assert modal_image.resources(ServiceSettings())["scaledown_window"] == 300
    assert ServiceSettings().modal_concurrency == 10


def test_what_the_image_is_made_of_is_there() -> None:
    assert (modal_image.ROOT / "deploy" / "modal" / "requirements.txt").is_file()
    assert (modal_image.ROOT / "sharp_cog" / "serving" / "page.html").is_file()
    assert VIEWER_DIR.is_relative_to(modal_image.ROOT)


def test_predict_gives_arrays() -> None:
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


def test_predict_and_save_ply_gives_a_file_of_any_format() -> None:
    for name, magic in (("ply", b"ply\n"), ("spz", b"\x1f\x8b"), ("sog", b"PK")):
        splat = modal_app.predict_and_save_ply.local(png(), depth_bytes=npy(), max_gaussians=9, output_format=name)
        assert splat.startswith(magic)


def test_an_error_needs_no_package_of_ours_to_be_unpickled() -> None:
    with pytest.raises(ValueError, match=r"^invalid_image: the bytes are not a picture") as caught:
        modal_app.predict.local(b"text")
    assert type(caught.value) is ValueError
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match=r"^invalid_option: unknown option colour"):
        modal_app.predict_and_save_ply.local(png(), colour="red")


def test_the_model_is_loaded_once_for_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = SharpPipeline.load

    def counted(*args: object, **kwargs: object) -> SharpPipeline:
        loads.append(kwargs)
        return load(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(SharpPipeline, "load", counted)
    sharp = modal_app.Sharp()
    for _ in range(3):
        sharp.predict.local(png(), depth_bytes=npy(), max_gaussians=9)
    assert loads == [{"source": None}]


def test_sharp_is_loaded_from_what_a_snapshot_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.pt"
    torch.save(state("tiny"), path)
    for name, value in {"SHARP_MODEL": "sharp", "SHARP_CHECKPOINT": str(path), "SHARP_PRECISION": "float32"}.items():
        monkeypatch.setenv(name, value)
    expected = SharpPipeline.load(Settings(checkpoint=path, device="cpu", precision="float32"))(png())
    found = modal_app.Sharp().predict.local(png())
    np.testing.assert_array_equal(found["positions"], expected.gaussians.means.numpy())


def test_the_api_is_the_http_service() -> None:
    with listening(modal_api.api.local()) as service:
        service.wait_until_ready()
        assert requests.get(f"{service.url}/health", timeout=10).json()["status"] == "healthy"
        answer = requests.post(
            f"{service.url}/predict/ply",
            files={"file": ("beach.png", png()), "depth": ("beach.npy", npy())},
            data={"f_px": 80, "max_gaussians": 9},
            timeout=60,
        )
        assert answer.content.startswith(b"ply\n")
        assert 'filename="beach.ply"' in answer.headers["Content-Disposition"]
        assert 'door="modal",outcome="ok"' in requests.get(f"{service.url}/metrics", timeout=10).text


def test_modals_own_command_knows_the_entrypoint() -> None:
    command = [sys.executable, "-m", "modal", "run", "-m", "sharp_cog.serving.modal_app", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT).stdout
    for flag in ("--image-path", "--output-path", "--f-px"):
        assert flag in shown

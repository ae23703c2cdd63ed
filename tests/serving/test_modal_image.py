"""The environment of both Modal apps."""

from __future__ import annotations

import modal
import pytest

from sharp_cog.config.services import ServiceSettings
from sharp_cog.formats.html import VIEWER_DIR
from sharp_cog.serving import modal_image


def test_the_settings_choose_the_resources() -> None:
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


def test_the_files_of_the_image_exist() -> None:
    assert (modal_image.ROOT / "deploy" / "modal" / "requirements.txt").is_file()
    assert (modal_image.ROOT / "sharp_cog" / "serving" / "page.html").is_file()
    assert VIEWER_DIR.is_relative_to(modal_image.ROOT)


def test_settings_travel_as_a_secret_without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    monkeypatch.setattr(modal.Secret, "from_dict", seen.update)
    monkeypatch.setenv("SHARP_PRECISION", "float32")
    monkeypatch.setenv("SHARP_CHECKPOINT", "/models/sharp.pt")
    modal_image.make_secret()
    assert seen["SHARP_PRECISION"] == "float32"
    assert "SHARP_CHECKPOINT" not in seen

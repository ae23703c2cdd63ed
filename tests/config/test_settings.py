"""Settings of the pipeline, and the reader of the environment."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import CHECKPOINT_SHA256, CHECKPOINT_URL, Settings, given_variables, process_environment
from sharp_cog.errors import SettingError


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings().model == "sharp"
    assert Settings().checkpoint_url == CHECKPOINT_URL
    assert Settings().checkpoint_sha256 == CHECKPOINT_SHA256


def test_every_setting_is_read_from_its_variable() -> None:
    sha256 = "AB" * 32
    environment = {
        "SHARP_MODEL": "lift",
        "SHARP_CHECKPOINT": "/models/sharp.pt",
        "SHARP_CACHE_DIR": "/cache",
        "SHARP_CHECKPOINT_URL": "http://mirror.example/sharp.pt",
        "SHARP_CHECKPOINT_SHA256": sha256,
        "SHARP_DEVICE": "cuda:1",
        "SHARP_MAX_MEGAPIXELS": "12.5",
        "SHARP_VIEWER_DIR": "/viewer/public",
        "SHARP_PRECISION": "float16",
        "SHARP_CACHE_WEIGHTS": "yes",
        "SHARP_KEEP_ENCODING": "False",
        "SHARP_CUDA_GRAPHS": "0",
    }
    assert Settings.from_environment(environment) == Settings(
        model="lift",
        checkpoint=Path("/models/sharp.pt"),
        cache_dir=Path("/cache"),
        checkpoint_url="http://mirror.example/sharp.pt",
        checkpoint_sha256=sha256.lower(),
        device="cuda:1",
        max_megapixels=12.5,
        viewer_dir=Path("/viewer/public"),
        precision="float16",
        cache_weights=True,
        keep_encoding=False,
        cuda_graphs=False,
    )


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARP_DEVICE", "cpu")
    monkeypatch.setenv("SHARP_QUEUE_SIZE", "3")
    monkeypatch.setenv("SHARP_MODEL", "")
    settings = Settings.from_environment()
    assert settings.device == "cpu"
    assert settings.model == "sharp", "an empty variable counts as not set"
    assert ServiceSettings.from_environment().queue_size == 3


def test_blanks_around_a_value_are_ignored() -> None:
    assert Settings.from_environment({"SHARP_MODEL": " lift\n", "SHARP_DEVICE": "   "}) == Settings(model="lift")


def test_a_flag_takes_precedence_over_its_variable() -> None:
    flags = SimpleNamespace(device="cuda:1", model=None, json=True)
    environment = {"SHARP_DEVICE": "cpu", "SHARP_MODEL": "lift"}
    assert Settings.from_environment(environment, flags) == Settings(device="cuda:1", model="lift")


@pytest.mark.parametrize("value", ["none", "None", "NONE"])
def test_none_accepts_any_checkpoint(value: str) -> None:
    assert Settings.from_environment({"SHARP_CHECKPOINT_SHA256": value}).checkpoint_sha256 is None


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SHARP_MODEL", "sharpest"),
        ("SHARP_MODEL", "Sharp"),
        ("SHARP_CHECKPOINT_URL", "ftp://mirror.example/sharp.pt"),
        ("SHARP_CHECKPOINT_URL", "/models/sharp.pt"),
        ("SHARP_CHECKPOINT_URL", "http://[::1/sharp.pt"),
        ("SHARP_CHECKPOINT_URL", "https:///sharp.pt"),
        ("SHARP_CHECKPOINT_URL", "https://example.com:99999/a.pt"),
        ("SHARP_CHECKPOINT_URL", "https://exam ple.com/a.pt"),
        ("SHARP_CHECKPOINT_URL", "https://example.com/a\0.pt"),
        ("SHARP_CHECKPOINT_SHA256", "abc"),
        ("SHARP_CHECKPOINT_SHA256", "g" * 64),
        ("SHARP_CHECKPOINT", "~nobody-of-this-name/sharp.pt"),
        ("SHARP_CHECKPOINT", "a\0b"),
        ("SHARP_CACHE_DIR", "/models/" + "\u00e4" * 128),
        ("SHARP_MAX_MEGAPIXELS", "many"),
        ("SHARP_MAX_MEGAPIXELS", "0"),
        ("SHARP_MAX_MEGAPIXELS", "nan"),
        ("SHARP_MAX_MEGAPIXELS", "inf"),
        ("SHARP_MAX_MEGAPIXELS", "1e308"),
        ("SHARP_PRECISION", "x" * 10**6),
        ("SHARP_CACHE_WEIGHTS", "maybe"),
        ("SHARP_KEEP_ENCODING", "2"),
    ],
)
def test_a_bad_value_is_refused_with_its_variable_in_a_short_line(variable: str, text: str) -> None:
    with pytest.raises(SettingError, match=f"^{variable} is ") as caught:
        Settings.from_environment({variable: text})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_megapixels_are_millions_of_pixels() -> None:
    assert Settings(max_megapixels=0.5).max_pixels == 500_000


def test_another_machine_gets_no_paths_and_no_secrets() -> None:
    environment = {"SHARP_MODEL": "lift", "SHARP_CACHE_DIR": "/models", "BUCKET_SECRET_ACCESS_KEY": "x", "HOME": "/"}
    assert given_variables(environment) == {"SHARP_MODEL": "lift"}


def test_a_file_of_variables_sets_only_those_that_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_ID", "mine")
    monkeypatch.setenv("MAX_IMAGES", "to be removed")
    monkeypatch.delenv("MAX_IMAGES")
    environment = process_environment({"RUN_ID": "theirs", "MAX_IMAGES": "7"})
    assert (environment["RUN_ID"], environment["MAX_IMAGES"]) == ("mine", "7")


def test_a_variable_that_cannot_be_set_is_reported_without_its_value() -> None:
    with pytest.raises(SettingError) as caught:
        process_environment({"HF_TOKEN": "sesame\0"})
    assert str(caught.value) == "'HF_TOKEN' cannot be set to its value (embedded null byte): correct .env"

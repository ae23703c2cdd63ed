"""Settings: what the environment says, what it may not say."""

import dataclasses
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sharp_cog.config.settings import (
    CHECKPOINT_SHA256,
    CHECKPOINT_URL,
    ServiceSettings,
    Settings,
    given_variables,
)
from sharp_cog.errors import SettingError

README = Path(__file__).parents[2] / "README.md"


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
        "SHARP_CACHE_WEIGHTS": "1",
        "SHARP_KEEP_ENCODING": "false",
        "SHARP_CUDA_GRAPHS": "0",
    }
    settings = Settings.from_environment(environment)
    assert settings == Settings(
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
    names = {f"SHARP_{field.name.upper()}" for field in dataclasses.fields(Settings)}
    assert names == environment.keys(), "a setting without a variable in this test"


def test_every_variable_is_in_the_readme() -> None:
    readme = README.read_text(encoding="utf-8")
    for field in dataclasses.fields(Settings):
        assert f"`SHARP_{field.name.upper()}`" in readme


def test_the_process_environment_is_what_counts_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARP_DEVICE", "cpu")
    monkeypatch.setenv("SHARP_MODEL", "")
    settings = Settings.from_environment()
    assert settings.device == "cpu"
    assert settings.model == "sharp", "an empty variable counts as not set"


def test_blanks_around_a_value_do_not_count() -> None:
    assert Settings.from_environment({"SHARP_MODEL": " lift\n", "SHARP_DEVICE": "   "}) == Settings(model="lift")


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.from_environment({"SHARP_CACHE_DIR": "~/models"}).cache_dir == tmp_path / "models"


@pytest.mark.parametrize("value", ["none", "None", "NONE"])
def test_none_accepts_any_checkpoint(value: str) -> None:
    assert Settings.from_environment({"SHARP_CHECKPOINT_SHA256": value}).checkpoint_sha256 is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHARP_MODEL", "sharpest"),
        ("SHARP_MODEL", "Sharp"),
        ("SHARP_CHECKPOINT_URL", "ftp://mirror.example/sharp.pt"),
        ("SHARP_CHECKPOINT_URL", "/models/sharp.pt"),
        ("SHARP_CHECKPOINT_URL", "http://[::1/sharp.pt"),
        ("SHARP_CHECKPOINT_URL", "https:///sharp.pt"),
        ("SHARP_CHECKPOINT_SHA256", "abc"),
        ("SHARP_CHECKPOINT_SHA256", "g" * 64),
        ("SHARP_MAX_MEGAPIXELS", "many"),
        ("SHARP_MAX_MEGAPIXELS", "0"),
        ("SHARP_MAX_MEGAPIXELS", "-5"),
        ("SHARP_MAX_MEGAPIXELS", "nan"),
        ("SHARP_MAX_MEGAPIXELS", "inf"),
        ("SHARP_PRECISION", "half"),
        ("SHARP_CACHE_WEIGHTS", "maybe"),
        ("SHARP_KEEP_ENCODING", "2"),
        ("SHARP_CUDA_GRAPHS", "on demand"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"^{name} is "):
        Settings.from_environment({name: value})


def test_megapixels_are_millions_of_pixels() -> None:
    assert Settings(max_megapixels=0.5).max_pixels == 500_000


SERVICE_VALUES = {
    "queue_size": "3",
    "request_seconds": "12.5",
    "max_body_megabytes": "7",
    "kept_predictions": "0",
    "fetch_megabytes": "1.5",
    "fetch_seconds": "4",
    "fetch_private": "true",
    "runpod_sync_megabytes": "15",
    "runpod_async_megabytes": "5",
    "runpod_webhook": "https://runpod.example/done",
    "bucket_endpoint_url": "https://s3.example",
    "bucket_access_key_id": "key",
    "bucket_secret_access_key": "sesame",
    "bucket_name": "splats",
    "modal_gpu": "T4",
    "modal_idle_seconds": "60",
    "modal_concurrency": "2",
    "modal_timeout_seconds": "90",
}
FOREIGN = {
    "runpod_webhook": "RUNPOD_WEBHOOK_POST_OUTPUT",
    **{name: name.upper() for name in SERVICE_VALUES if name.startswith("bucket_")},
}


def variable(name: str) -> str:
    return FOREIGN.get(name, f"SHARP_{name.upper()}")


def test_every_setting_of_a_service_is_read_from_its_variable() -> None:
    settings = ServiceSettings.from_environment({variable(name): value for name, value in SERVICE_VALUES.items()})
    read = dataclasses.asdict(settings)
    assert read.keys() == SERVICE_VALUES.keys()
    for name, value in SERVICE_VALUES.items():
        assert str(read[name]).lower().removesuffix(".0") == value.lower()
        assert read[name] != getattr(ServiceSettings(), name)
    assert settings.has_bucket
    assert "sesame" not in repr(settings)
    assert ServiceSettings.from_environment({}) == ServiceSettings()


def test_every_variable_of_a_service_is_in_the_readme() -> None:
    readme = README.read_text(encoding="utf-8")
    for field in dataclasses.fields(ServiceSettings):
        assert f"`{variable(field.name)}`" in readme


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHARP_QUEUE_SIZE", "-1"),
        ("SHARP_QUEUE_SIZE", "1.5"),
        ("SHARP_REQUEST_SECONDS", "0"),
        ("SHARP_REQUEST_SECONDS", "nan"),
        ("SHARP_MAX_BODY_MEGABYTES", "much"),
        ("SHARP_KEPT_PREDICTIONS", "-1"),
        ("SHARP_FETCH_PRIVATE", "perhaps"),
        ("SHARP_MODAL_CONCURRENCY", "0"),
        ("BUCKET_ENDPOINT_URL", "s3.example"),
    ],
)
def test_a_bad_value_of_a_service_is_refused_by_the_name_of_its_variable(name: str, value: str) -> None:
    bucket = {variable(key): text for key, text in SERVICE_VALUES.items() if key.startswith("bucket_")}
    with pytest.raises(SettingError, match=f"^{name} is "):
        ServiceSettings.from_environment({**bucket, name: value})


def test_half_a_bucket_is_none() -> None:
    with pytest.raises(SettingError, match="BUCKET_SECRET_ACCESS_KEY is not set"):
        ServiceSettings(bucket_endpoint_url="https://s3.example", bucket_access_key_id="key", bucket_name="splats")


def test_what_is_given_on_goes_without_paths_and_secrets() -> None:
    environment = {"SHARP_MODEL": "lift", "SHARP_CACHE_DIR": "/models", "BUCKET_SECRET_ACCESS_KEY": "x", "HOME": "/"}
    assert given_variables(environment) == {"SHARP_MODEL": "lift"}


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SHARP_MAX_MEGAPIXELS", "1e308"),
        ("SHARP_REQUEST_SECONDS", "1e300"),
        ("SHARP_FETCH_SECONDS", "1e10"),
        ("SHARP_MAX_BODY_MEGABYTES", "1e308"),
        ("SHARP_QUEUE_SIZE", "9" * 400),
        ("SHARP_CHECKPOINT", "~nobody-of-this-name/sharp.pt"),
        ("SHARP_CACHE_DIR", "~nobody-of-this-name"),
        ("SHARP_CHECKPOINT", "a\0b"),
        ("SHARP_CACHE_DIR", "/models/" + "\u00e4" * 128),
        ("SHARP_CHECKPOINT_URL", "https://example.com:99999/a.pt"),
        ("SHARP_CHECKPOINT_URL", "https://exam ple.com/a.pt"),
        ("SHARP_CHECKPOINT_URL", "https://example.com/a\0.pt"),
        ("SHARP_PRECISION", "x" * 10**6),
    ],
)
def test_what_would_fail_later_is_refused_when_it_is_read(variable: str, text: str) -> None:
    read: type[Settings | ServiceSettings] = Settings if hasattr(Settings(), variable[6:].lower()) else ServiceSettings
    with pytest.raises(SettingError, match=f"^{variable} is ") as caught:
        read.from_environment({variable: text})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
@pytest.mark.parametrize(
    ("environment", "has_one"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)], ids=["own", "given"]
)
def test_threads_share_one_arena_unless_the_environment_says_otherwise(
    environment: dict[str, str], has_one: bool
) -> None:
    program = """\
import ctypes, threading
from sharp_cog.config.process import use_one_arena
use_one_arena()
libc, barrier = ctypes.CDLL(None), threading.Barrier(4)
libc.malloc.restype = ctypes.c_void_p
def work():
    barrier.wait()
    assert libc.malloc(ctypes.c_size_t(100_000))
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_stats()
"""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, check=True).stderr
    assert (told.count("Arena ") == 1) == has_one, told

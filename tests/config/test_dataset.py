"""Settings of a dataset run, as variables and as flags."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from sharp_cog.cli import build_parser, main
from sharp_cog.config.dataset import FIXED_FOLDERS, DatasetSettings
from sharp_cog.config.parameters import parameters
from sharp_cog.errors import SettingError

ENVIRONMENT = {
    "SOURCE": ("search", "search"),
    "SHARP_INPUT_DIR": ("/photos", "/photos"),
    "SHARP_INPUT_LICENSE": ("CC BY 4.0", "CC BY 4.0"),
    "SHARP_INPUT_AUTHOR": ("Ann", "Ann"),
    "RUN_ID": ("spring", "spring"),
    "RUNS_DIR": ("/runs", "/runs"),
    "FORMATS": ("ply, spz,", ("ply", "spz")),
    "MAX_IMAGES": ("7", 7),
    "MAX_SCAN": ("70", 70),
    "ENGINE": ("ray", "ray"),
    "RAY_ADDRESS": ("ray://head:10001", "ray://head:10001"),
    "SHARP_DEVICE": ("cuda:1", "cuda:1"),
    "UNSPLASH_ACCESS_KEY": ("sesame", "sesame"),
    "UNSPLASH_APP_NAME": ("mine", "mine"),
    "UNSPLASH_API_URL": ("http://127.0.0.1:8", "http://127.0.0.1:8"),
    "QUERIES": ("old town,tree", ("old town", "tree")),
    "ORDER_BY": ("relevant", "relevant"),
    "PER_PAGE": ("10", 10),
    "LIST_AUTO_SEEK": ("0", False),
    "LIST_SEEK_BACK_PAGES": ("5", 5),
    "STOP_ON_RATE_LIMIT": ("1", True),
    "CONTROL_DIR": ("/control", "/control"),
    "PAUSE_FILE": ("WAIT", "WAIT"),
    "STOP_FILE": ("END", "END"),
    "LOG_GPU_MEM": ("true", True),
    "DOWNLOAD_QUEUE_MAX": ("3", 3),
    "UPLOAD_QUEUE_MAX": ("4", 4),
    "UPLOAD_WORKERS": ("5", 5),
    "HF_UPLOAD": ("yes", True),
    "HF_REPO_ID": ("you/splats", "you/splats"),
    "HF_REPO_TYPE": ("model", "model"),
    "HF_FORMATS": ("spz", ("spz",)),
    "HF_SUBDIR": ("unsplash", "unsplash"),
    "HF_INDEX_REPO_PATH": ("index.jsonl", "index.jsonl"),
    "HF_INDEX_FLUSH_EVERY": ("6", 6),
    "HF_INDEX_FLUSH_SECS": ("7.5", 7.5),
    "HF_USE_LOCKS": ("on", True),
    "CLAIM_BATCH": ("8", 8),
    "HF_LOCK_STALE_SECS": ("9", 9.0),
    "RANGE_SIZE": ("60", 60),
    "RANGE_LOCK_MIN_IMAGES": ("11", 11),
    "RANGE_LOCK_STALE_SECS": ("12", 12.0),
    "GSPLAT_UPLOAD": ("1", True),
    "GSPLAT_BASE": ("http://127.0.0.1:9", "http://127.0.0.1:9"),
    "GSPLAT_EXPIRATION_TYPE": ("1month", "1month"),
    "GSPLAT_USE_SMALL_PLY": ("no", False),
    "GSPLAT_FILTER_VISIBILITY": ("13", 13),
}
"""Text and value of each variable; none is the default. CLAIMS_DIR is left out, since it excludes HF_USE_LOCKS."""


ABOUT = parameters(DatasetSettings)


def by_variable(settings: DatasetSettings) -> dict[str, Any]:
    return {about.variable: getattr(settings, about.name) for about in ABOUT}


def parse_flags(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(["dataset", "run", *arguments])


def test_every_setting_is_read_from_its_variable() -> None:
    settings = DatasetSettings.build({name: text for name, (text, _) in ENVIRONMENT.items()})
    found = by_variable(settings)
    assert found.pop("CLAIMS_DIR") == ""
    assert found == {name: value for name, (_, value) in ENVIRONMENT.items()}
    default = by_variable(DatasetSettings(input_dir="in"))
    assert all(found[name] != default[name] for name in found), "a value that is the default tests nothing"
    assert DatasetSettings.build({"SHARP_INPUT_DIR": "in", "CLAIMS_DIR": "/shared"}).claims_dir == "/shared"


def test_every_setting_has_a_flag_that_takes_precedence_over_its_variable() -> None:
    arguments = []
    for about in ABOUT:
        if about.variable not in ("UNSPLASH_ACCESS_KEY", "CLAIMS_DIR"):
            arguments += [f"--{about.name.replace('_', '-')}", ENVIRONMENT[about.variable][0]]
    environment = {"UNSPLASH_ACCESS_KEY": "sesame", "RUN_ID": "other", "PER_PAGE": "3", "HF_UPLOAD": "0"}
    found = by_variable(DatasetSettings.build(environment, parse_flags(*arguments)))
    assert {name: found[name] for name in ENVIRONMENT} == {name: value for name, (_, value) in ENVIRONMENT.items()}
    assert (
        DatasetSettings.build({"SHARP_INPUT_DIR": "in"}, parse_flags("--claims-dir", "/shared")).claims_dir == "/shared"
    )


def test_a_switch_needs_no_value() -> None:
    settings = DatasetSettings.build(
        {"SHARP_INPUT_DIR": "in", "LIST_AUTO_SEEK": "1"}, parse_flags("--log-gpu-mem", "--list-auto-seek", "0")
    )
    assert settings.log_gpu_mem
    assert not settings.list_auto_seek


def test_the_access_key_is_on_no_command_line_and_in_no_log() -> None:
    with pytest.raises(SystemExit):
        parse_flags("--unsplash-access-key", "sesame")
    assert "sesame" not in repr(DatasetSettings(source="list", unsplash_access_key="sesame"))


def test_empty_variables_count_as_not_set() -> None:
    assert DatasetSettings.build({"SHARP_INPUT_DIR": " in ", "MAX_IMAGES": "", "RUN_ID": "  "}) == DatasetSettings(
        input_dir="in"
    )


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SOURCE", "flickr"),
        ("ENGINE", "spark"),
        ("SHARP_DEVICE", "tpu"),
        ("RUN_ID", "../other"),
        ("RUN_ID", ".hidden"),
        ("RUN_ID", "x" * 300),
        ("RUNS_DIR", "~nobody-of-this-name/runs"),
        ("CLAIMS_DIR", "x" * 300),
        ("MAX_IMAGES", "9" * 5000),
        ("HF_INDEX_FLUSH_SECS", "1e300"),
        ("FORMATS", "ply,obj"),
        ("FORMATS", ","),
        ("FORMATS", "ply,apple_ply"),
        ("HF_FORMATS", "spz"),
        ("PER_PAGE", "31"),
        ("PER_PAGE", "0"),
        ("PER_PAGE", "many"),
        ("MAX_IMAGES", "-1"),
        ("MAX_SCAN", "1.5"),
        ("ORDER_BY", "random"),
        ("LIST_AUTO_SEEK", "perhaps"),
        ("PAUSE_FILE", "a/b"),
        ("HF_REPO_ID", "splats"),
        ("HF_REPO_TYPE", "space"),
        ("HF_INDEX_REPO_PATH", "/"),
        ("HF_LOCK_STALE_SECS", "0"),
        ("HF_LOCK_STALE_SECS", "nan"),
        ("HF_INDEX_FLUSH_SECS", "soon"),
        ("HF_INDEX_FLUSH_EVERY", "0"),
        ("UPLOAD_WORKERS", "0"),
        ("RANGE_SIZE", "0"),
        ("UNSPLASH_API_URL", "api.unsplash.com"),
        ("GSPLAT_BASE", "ftp://gsplat.org"),
        ("GSPLAT_FILTER_VISIBILITY", "0"),
    ],
)
def test_a_bad_value_is_refused_with_its_variable(variable: str, text: str) -> None:
    with pytest.raises(SettingError, match=rf"^{variable} (is|has) "):
        DatasetSettings.build({"SHARP_INPUT_DIR": "in", variable: text})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "SHARP_INPUT_DIR is not set"),
        ({"SOURCE": "list"}, "UNSPLASH_ACCESS_KEY is not set"),
        ({"SOURCE": "search", "UNSPLASH_ACCESS_KEY": "k"}, "QUERIES is not set"),
        ({"SOURCE": "search", "UNSPLASH_ACCESS_KEY": "k", "ORDER_BY": "oldest"}, "ORDER_BY is 'oldest', for SOURCE"),
        ({"SHARP_INPUT_DIR": "in", "HF_UPLOAD": "1"}, "HF_REPO_ID is not set"),
        ({"SHARP_INPUT_DIR": "in", "HF_USE_LOCKS": "1"}, "HF_USE_LOCKS is set without HF_UPLOAD=1"),
        (
            {**dict.fromkeys(("HF_UPLOAD", "HF_USE_LOCKS"), "1"), "HF_REPO_ID": "a/b", "CLAIMS_DIR": "c"},
            "CLAIMS_DIR and HF_USE_LOCKS are both set",
        ),
    ],
)
def test_settings_that_exclude_or_need_each_other_are_refused(environment: dict[str, str], message: str) -> None:
    if "CLAIMS_DIR" in environment:
        environment = {**environment, "SHARP_INPUT_DIR": "in"}
    with pytest.raises(SettingError, match=f"^{message}"):
        DatasetSettings.build(environment)


@pytest.mark.parametrize(("name", "folder"), FIXED_FOLDERS.items())
def test_a_fixed_folder_accepts_its_own_name_and_refuses_any_other(name: str, folder: str) -> None:
    base, variable = {"SHARP_INPUT_DIR": "in"}, name.upper()
    flag = f"--{name.replace('_', '-')}"
    assert DatasetSettings.build({**base, variable: folder}) == DatasetSettings.build(base)
    assert DatasetSettings.build(base, parse_flags(flag, f"{folder}/")) == DatasetSettings.build(base)
    with pytest.raises(SettingError, match=f"^{variable} is '../other', but this folder is always {folder}: leave it"):
        DatasetSettings.build({**base, variable: "../other"})
    with pytest.raises(SettingError, match=f"^{variable} is 'other', but this folder is always {folder}: leave it"):
        DatasetSettings.build(base, parse_flags(flag, "other"))


def test_nothing_is_published_by_default() -> None:
    settings = DatasetSettings(input_dir="in", hf_repo_id="you/splats")
    assert not settings.hf_upload
    assert not settings.gsplat_upload
    assert DatasetSettings(input_dir="in").hf_repo_id == ""


def test_a_bad_value_ends_the_command_with_its_variable_and_range(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PER_PAGE", "99")
    assert main(["dataset", "run", "--input-dir", "in"]) == 1
    assert "error: PER_PAGE is 99: give a number from 1 to 30 [invalid_setting]" in capsys.readouterr().err

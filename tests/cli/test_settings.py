"""Flags that are derived from the tables of options and settings."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sharp_cog.cli import build_parser
from sharp_cog.cli.settings import in_flags, options_from, settings_from
from sharp_cog.config.options import OutputOptions, PredictOptions
from sharp_cog.config.settings import Settings
from sharp_cog.errors import OptionError


def parse(line: str) -> argparse.Namespace:
    return build_parser().parse_args(line.split())


def test_without_flags_the_options_and_settings_are_the_defaults() -> None:
    arguments = parse("predict photo.jpg")
    assert options_from(arguments, PredictOptions) == PredictOptions()
    assert settings_from(arguments) == Settings()


def test_flags_set_options_by_their_names() -> None:
    line = "--depth-mode align --max-gaussians 5 --center --focal-length-mm 28 --spz-version 4 --save-internal-depth"
    expected = PredictOptions(
        depth_mode="align",
        max_gaussians=5,
        center=True,
        focal_length_mm=28.0,
        output_format="spz",
        spz_version=4,
        save_internal_depth=True,
    )
    assert options_from(parse(f"predict photo.jpg {line}"), PredictOptions, output_format="spz") == expected


def test_a_command_without_a_flag_leaves_the_option_at_its_default() -> None:
    assert options_from(parse("verify photo.jpg --focal-length-px 900"), PredictOptions) == PredictOptions(
        focal_length_px=900.0
    )
    assert options_from(parse("convert a.ply b.spz --axes opencv"), OutputOptions, output_format="spz") == (
        OutputOptions(output_format="spz", axes="opencv")
    )


def test_an_option_out_of_its_range_is_refused() -> None:
    with pytest.raises(OptionError, match=r"min_opacity is 7\.0: give a number from 0 to 1"):
        options_from(parse("predict photo.jpg --min-opacity 7"), PredictOptions)


def test_flags_take_precedence_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARP_DEVICE", "cuda:1")
    monkeypatch.setenv("SHARP_PRECISION", "float16")
    arguments = parse("serve --model lift --device cpu --checkpoint ours.pt")
    assert settings_from(arguments) == Settings(
        model="lift", device="cpu", checkpoint=Path("ours.pt"), precision="float16"
    )
    assert settings_from(parse("download --cache-dir models")).cache_dir == Path("models")


def test_the_help_of_a_flag_names_choices_default_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("predict --help")
    text = " ".join(capsys.readouterr().out.split())
    assert "lift: no weights, but it needs a depth map" in text
    assert "(default: sharp; SHARP_MODEL)" in text
    assert "fixed: the map, and behind it the back surface" in text
    assert "(default: by the suffix of the output file, else ply)" in text


def test_the_flags_of_fixed_folders_are_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("dataset --help")
    text = capsys.readouterr().out
    assert "--hf-locks-dir" not in text
    assert "--hf-lock-stale-secs" in text
    assert parse("dataset run --hf-locks-dir locks").hf_locks_dir == "locks"


def test_messages_name_flags_and_leave_files_alone() -> None:
    said = in_flags("a/depth_format.npy: set depth_format to metric, or output_format='ply'")
    assert said == "a/depth_format.npy: set --depth-format to metric, or --format='ply'"


@pytest.mark.parametrize("flags", [("--max-gaussians", "1_000"), ("--scale", "\u0661"), ("--max-gaussians", "\uff11")])
def test_flags_have_ascii_digits_alone(flags: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["predict", "a.png", *flags])
    assert f"argument {flags[0]}: invalid" in capsys.readouterr().err

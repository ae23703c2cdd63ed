"""Inputs that all frontends share: options, base64, sources of image and depth."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import DepthError, ImageError, InputError, OptionError
from sharp_cog.serving import inputs


def test_the_names_of_other_services_are_accepted() -> None:
    assert inputs.options_from({"f_px": "900", "format": "spz"}) == PredictOptions(
        focal_length_px=900.0, output_format="spz"
    )
    assert inputs.options_from({"f_px": "", "focal_length_px": 3}) == PredictOptions(focal_length_px=3.0)
    with pytest.raises(OptionError, match="f_px and focal_length_px are both given"):
        inputs.options_from({"f_px": 900, "focal_length_px": 900})
    with pytest.raises(OptionError, match="unknown option fpx"):
        inputs.options_from({"fpx": 900})


@settings(max_examples=25)
@given(st.binary(min_size=1, max_size=200))
def test_base64_comes_back_with_and_without_a_prefix(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    for sent in (text, f"data:image/jpeg;base64,{text}", f"DATA:;name=a;BASE64,{text}", f" {text[:3]}\n{text[3:]}\n"):
        assert inputs.decode_base64("image", sent) == content


@pytest.mark.parametrize("text", ["!!", "abc", "data:image/jpeg,abcd", "data:;base64,", "", "http://example.com/a.jpg"])
def test_text_that_is_not_base64_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match=r"^image "):
        inputs.decode_base64("image", text)


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}, b"abcd"])
def test_a_value_that_is_not_text_is_refused_by_type(value: object) -> None:
    with pytest.raises(InputError, match=f"^image is of type {type(value).__name__}"):
        inputs.decode_base64("image", value)


def test_a_request_has_one_image_and_at_most_one_depth_map() -> None:
    for good in (["file"], ["image_url"], ["file", "depth"], ["image_url", "depth_url"]):
        inputs.check_sources(good, image_name="file")
    for bad, error in (([], ImageError), (["file", "image_url"], ImageError), (["depth"], ImageError)):
        with pytest.raises(error):
            inputs.check_sources(bad, image_name="file")
    with pytest.raises(DepthError, match="depth and depth_url"):
        inputs.check_sources(["file", "depth", "depth_url"], image_name="file")


def test_an_address_that_is_not_text_is_refused_by_type() -> None:
    with pytest.raises(InputError, match=r"^image_url is of type list: give an http"):
        inputs.fetch_named("image_url", ["http://example.com/a.jpg"], ServiceSettings())

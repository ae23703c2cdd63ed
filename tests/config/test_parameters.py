"""The one grammar of options and settings: numbers, booleans, lists, paths, and the errors that refuse them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.parameters import POSITIVE, as_path, check, parameter, parameters, parse, sentence
from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.errors import OptionError, SettingError

TABLES = (PredictOptions, Settings, ServiceSettings, DatasetSettings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    switch: bool = parameter(False, "turn it on")
    size: int = parameter(3, "how large", choices={3: "small", 4: "large"})
    share: float = parameter(0.5, "share of the whole", limits=(0.0, 1.0), unit="(1 is all)")
    seconds: float = parameter(2.0, "time limit", limits=POSITIVE)
    names: tuple[str, ...] = parameter((), "names to take", choices=("a", "b"))
    place: Path | None = parameter(None, "a place")  # noqa: RUF009 - it declares a field
    token: str = parameter("", "a token", is_secret=True)


EXAMPLE = {about.name: about for about in parameters(Example)}


def read(name: str, value: object) -> Any:
    parsed = parse(EXAMPLE[name], name, value, OptionError)
    check(EXAMPLE[name], name, parsed, OptionError)
    return parsed


def test_a_parameter_knows_its_field() -> None:
    switch, size, *_, place, token = parameters(Example)
    assert (switch.name, switch.kind, switch.default, switch.help) == ("switch", "bool", False, "turn it on")
    assert (size.choices, size.meanings) == ({3: "small", 4: "large"}, "3: small; 4: large")
    assert (place.kind, place.default_text, EXAMPLE["seconds"].default_text) == ("Path", "", "2")
    assert token.is_secret
    assert "sesame" not in repr(Example(token="sesame"))


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "True", "YES", " on "])
def test_true_has_these_spellings(text: str) -> None:
    assert read("switch", text) is True


@pytest.mark.parametrize("text", ["false", "0", "no", "off", "False", "NO", " off "])
def test_false_has_these_spellings(text: str) -> None:
    assert read("switch", text) is False


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("switch", True, True),
        ("switch", 0, False),
        ("size", "4", 4),
        ("size", 4.0, 4),
        ("share", "0.25", 0.25),
        ("names", " a, b,", ("a", "b")),
        ("place", "/models/a.pt", Path("/models/a.pt")),
        ("place", "", None),
    ],
)
def test_a_value_is_converted_to_its_type(name: str, value: object, expected: object) -> None:
    assert read(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("switch", "perhaps", "switch is 'perhaps': give true or false"),
        ("switch", 2, "switch is 2: give true or false"),
        ("switch", [1], r"switch is \[1\]: give true or false"),
        ("size", "5", "size is 5: choose one of 3, 4"),
        ("size", "3.5", "size is '3.5': give a whole number"),
        ("size", "nan", "size is 'nan': give a whole number"),
        ("size", True, "size is True: give a whole number"),
        ("size", "9" * 5000, "size is '9+.*9+': give a whole number"),
        ("share", "1.5", r"share is 1.5: give a number from 0 to 1 \(1 is all\)"),
        ("share", "nan", "share is nan: give a number from 0 to 1"),
        ("share", "half", "share is 'half': give a number"),
        ("share", {"a": 1}, "share is {'a': 1}: give a number"),
        ("seconds", "0", "seconds is 0.0: give a positive number of at most 1000000000"),
        ("seconds", "inf", "seconds is inf: give a positive number"),
        ("names", "a,c", "names has 'c': choose one of a, b"),
        ("place", "~nobody-of-this-name/a", "place is '~nobody-of-this-name/a': that user has no home folder here"),
        ("place", "a\0b", r"place is 'a\\x00b': no file can have that name"),
        ("place", "/models/" + "\u00e4" * 128, "place is '/models/.*: no file can have that name"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_a_remedy(name: str, value: object, message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        read(name, value)


def test_a_refused_address_is_shown_without_its_password() -> None:
    with pytest.raises(SettingError) as caught:
        Settings(checkpoint_url="ftp://me:sesame@mirror.example/a.pt")
    assert str(caught.value) == "SHARP_CHECKPOINT_URL is 'ftp://mirror.example/a.pt': give an http or https address"


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/models") == tmp_path / "models"


@pytest.mark.parametrize("table", TABLES)
def test_every_help_text_is_a_phrase_that_becomes_a_sentence(table: type) -> None:
    for about in parameters(table):
        assert about.help.isascii(), about.name
        assert not about.help.endswith("."), about.name
        assert sentence(about.help)[0].isupper(), about.name


def test_no_two_settings_share_a_variable_except_the_device() -> None:
    variables = [about.variable for table in TABLES[1:] for about in parameters(table)]
    assert "" not in variables
    assert {variable for variable in variables if variables.count(variable) > 1} == {"SHARP_DEVICE"}

"""The public names of sharp_cog, and the little that importing them loads."""

import subprocess
import sys

import pytest

import sharp_cog

PUBLIC = [
    "Camera",
    "Gaussians",
    "InputError",
    "PredictOptions",
    "Prediction",
    "Settings",
    "SharpError",
    "SharpPipeline",
    "__version__",
]
HEAVY = ("PIL", "cog", "numpy", "pillow_heif", "requests", "torch", "tqdm")


def modules_loaded_by(program: str) -> set[str]:
    """Return the top-level modules of a fresh interpreter that has run the program."""
    program += "\nimport sys\nprint('loaded', *{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *_, last = result.stdout.splitlines()
    assert last.startswith("loaded ")
    return set(last.split()[1:])


def test_the_public_names_are_exactly_these() -> None:
    assert sharp_cog.__all__ == PUBLIC
    assert dir(sharp_cog) == sorted(PUBLIC)


def test_every_public_name_is_a_class_of_that_name_except_the_version() -> None:
    for name in PUBLIC[:-1]:
        value = getattr(sharp_cog, name)
        assert isinstance(value, type)
        assert value.__name__ == name
    assert isinstance(sharp_cog.__version__, str)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Spalt'"):
        sharp_cog.Spalt  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_loaded_by("import sharp_cog").intersection(HEAVY)


def test_names_that_need_no_tensors_load_no_torch() -> None:
    program = "from sharp_cog import Camera, Gaussians, InputError, PredictOptions, Settings, SharpError"
    assert not modules_loaded_by(program).intersection(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
from sharp_cog.cli import main
try:
    main({arguments})
except SystemExit as stop:
    assert stop.code == 0
"""
    assert not modules_loaded_by(program).intersection(HEAVY)

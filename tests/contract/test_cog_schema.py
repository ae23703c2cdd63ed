"""openapi_schema.json and the signature in predict.py, against Cog's own inspector and the package's options."""

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cog import _adt as adt
from cog._inspector import create_predictor
from cog.input import FieldInfo

import predict
from sharp_cog.config import options
from sharp_cog.config.options import PredictOptions

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_TEXT = (ROOT / "openapi_schema.json").read_text(encoding="utf-8")
SCHEMAS: dict[str, Any] = json.loads(SCHEMA_TEXT)["components"]["schemas"]
PROPERTIES: dict[str, dict[str, Any]] = SCHEMAS["Input"]["properties"]
MODULES = [Path("predict.py"), *sorted(path.relative_to(ROOT) for path in (ROOT / "sharp_cog").rglob("*.py"))]
JSON_TYPES = {
    adt.PrimitiveType.PATH: "string",
    adt.PrimitiveType.FLOAT: "number",
    adt.PrimitiveType.INTEGER: "integer",
    adt.PrimitiveType.STRING: "string",
}


def inputs() -> dict[str, FieldInfo]:
    """What `Input(...)` made of each parameter of `run`."""
    parameters = list(inspect.signature(predict.Predictor.run).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def input_calls() -> dict[str, ast.Call]:
    """The source of each `Input(...)` in the signature of `run`."""
    tree = ast.parse((ROOT / "predict.py").read_text(encoding="utf-8"))
    (run,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "run")
    calls = [default for default in run.args.defaults if isinstance(default, ast.Call)]
    return dict(zip([argument.arg for argument in run.args.args[1:]], calls, strict=True))


def test_schema_is_what_the_script_writes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "schema"), "--check"]
    assert subprocess.run(command, timeout=120, check=False).returncode == 0


def test_schema_agrees_with_what_cog_sees_in_the_predictor() -> None:
    seen = create_predictor("predict", "Predictor").inputs
    assert list(PROPERTIES) == list(seen)
    for name, field in seen.items():
        schema = PROPERTIES[name]
        enumeration = SCHEMAS[name] if "allOf" in schema else {}
        is_optional = field.type.repetition is adt.Repetition.OPTIONAL
        assert schema.get("type", enumeration.get("type")) == JSON_TYPES[field.type.primitive]
        assert (schema.get("format") == "uri") == (field.type.primitive is adt.PrimitiveType.PATH)
        assert schema.get("nullable", False) == is_optional
        assert (name in SCHEMAS["Input"]["required"]) == (not is_optional and field.default is None)
        assert schema.get("default") == field.default
        assert (schema.get("minimum"), schema.get("maximum")) == (field.ge, field.le)
        assert enumeration.get("enum") == field.choices
        assert schema["description"] == field.description
        assert schema["x-order"] == field.order


def test_only_the_image_is_required() -> None:
    assert SCHEMAS["Input"]["required"] == ["image"]
    assert SCHEMAS["Output"] == {"title": "Output", "type": "string", "format": "uri"}


def test_every_reference_in_the_schema_resolves() -> None:
    references = {part.split('"')[0] for part in SCHEMA_TEXT.split('"#/components/schemas/')[1:]}
    assert references <= SCHEMAS.keys()


NOT_OFFERED = {"scale", "center", "spz_version", "save_internal_depth"}
"""Options that only the command line and Python have."""


def test_limits_choices_and_defaults_are_those_of_the_options() -> None:
    options_inputs = inputs()
    assert {field.name for field in fields(PredictOptions)} - NOT_OFFERED == options_inputs.keys() - {"image", "depth"}
    pixels, millimetres = options_inputs["focal_length_px"], options_inputs["focal_length_mm"]
    assert (pixels.ge, pixels.le) == options.FOCAL_LENGTH_PX_RANGE
    assert (millimetres.ge, millimetres.le) == options.FOCAL_LENGTH_MM_RANGE
    assert tuple(options_inputs["output_format"].choices or ()) == options.OUTPUT_FORMATS
    assert tuple(options_inputs["axes"].choices or ()) == options.AXES
    max_gaussians, min_opacity = options_inputs["max_gaussians"], options_inputs["min_opacity"]
    assert (max_gaussians.ge, max_gaussians.le) == options.MAX_GAUSSIANS_RANGE
    assert (min_opacity.ge, min_opacity.le) == options.MIN_OPACITY_RANGE
    for name, value in PredictOptions().__dataclass_fields__.items():
        assert name in NOT_OFFERED or options_inputs[name].default == value.default, name


@pytest.mark.parametrize("name", list(PROPERTIES))
def test_arguments_of_inputs_are_plain_literals_that_cog_can_read_without_running_them(name: str) -> None:
    source = (ROOT / "predict.py").read_text(encoding="utf-8")
    for keyword in input_calls()[name].keywords:
        text = ast.get_source_segment(source, keyword.value)
        assert text is not None
        value = ast.literal_eval(keyword.value)
        if isinstance(value, str):
            assert text == f'"{value}"'  # one piece and nothing escaped: Cog takes what is between the outer quotes
        elif isinstance(value, (int, float)):
            assert "_" not in text  # Cog drops a limit that Go's ParseFloat does not read
    description = inputs()[name].description
    assert description
    assert description.endswith(".")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_cancellation_is_never_caught(path: Path) -> None:
    """Cog cancels by raising an exception outside `Exception` into whatever runs."""
    handlers = [
        node
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
    ]
    for handler in handlers:
        catches_all = handler.type is None or "BaseException" in ast.unparse(handler.type)
        assert not catches_all or isinstance(handler.body[-1], ast.Raise), f"{path}:{handler.lineno}"

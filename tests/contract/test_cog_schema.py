"""The signature in predict.py and openapi_schema.json, against Cog's own inspector and the table of options."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cog import _adt as adt
from cog._inspector import create_predictor
from cog.input import FieldInfo

import predict
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.parameters import Parameter, parameters, sentence

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_TEXT = (ROOT / "openapi_schema.json").read_text(encoding="utf-8")
SCHEMAS: dict[str, Any] = json.loads(SCHEMA_TEXT)["components"]["schemas"]
PROPERTIES: dict[str, dict[str, Any]] = SCHEMAS["Input"]["properties"]
JSON_TYPES = {
    adt.PrimitiveType.PATH: "string",
    adt.PrimitiveType.FLOAT: "number",
    adt.PrimitiveType.INTEGER: "integer",
    adt.PrimitiveType.STRING: "string",
}
OFFERED = [about for about in parameters(PredictOptions) if "Cog" in about.frontends]
SIGNATURE = inspect.signature(predict.Predictor.run, eval_str=True).parameters
INPUTS: dict[str, FieldInfo] = {name: each.default for name, each in SIGNATURE.items() if name != "self"}


def input_calls() -> dict[str, ast.Call]:
    """Return the source of each `Input(...)` in the signature of `run`."""
    tree = ast.parse((ROOT / "predict.py").read_text(encoding="utf-8"))
    (run,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "run")
    calls = [default for default in run.args.defaults if isinstance(default, ast.Call)]
    return dict(zip([argument.arg for argument in run.args.args[1:]], calls, strict=True))


def test_the_inputs_are_the_image_the_depth_map_and_the_options_that_cog_offers() -> None:
    assert INPUTS.keys() == {"image", "depth", *(about.name for about in OFFERED)}


@pytest.mark.parametrize("about", OFFERED, ids=lambda about: str(about.name))
def test_an_input_has_the_type_limits_choices_default_and_help_of_its_option(about: Parameter) -> None:
    types = {"str": str, "int": int, "float": float}
    is_optional = about.default is None
    assert SIGNATURE[about.name].annotation == (types[about.kind] | None if is_optional else types[about.kind])
    field = INPUTS[about.name]
    assert field.default == about.default
    assert (field.ge, field.le) == (about.limits or (None, None))
    assert (field.choices or []) == list(about.choices)
    assert field.description == sentence(about.help)


def test_the_schema_is_the_one_that_the_script_writes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "schema"), "--check"]
    assert subprocess.run(command, timeout=120, check=False).returncode == 0


def test_the_schema_agrees_with_the_signature_that_cog_reads() -> None:
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


def test_the_arguments_of_inputs_are_literals_that_cog_can_read_without_running_them() -> None:
    source = (ROOT / "predict.py").read_text(encoding="utf-8")
    for name, call in input_calls().items():
        for keyword in call.keywords:
            text = ast.get_source_segment(source, keyword.value)
            value = ast.literal_eval(keyword.value)
            if isinstance(value, str):
                assert text == f'"{value}"', f"{name}: Cog takes the text between the outer quotes, so it is one piece"
            elif isinstance(value, (int, float)):
                assert text is not None
                assert "_" not in text, f"{name}: Cog drops a limit that Go's ParseFloat cannot read"


def test_cancellation_is_never_swallowed() -> None:
    """Cog cancels a prediction by raising an exception outside `Exception` into the code that runs."""
    for path in [ROOT / "predict.py", *(ROOT / "sharp_cog").rglob("*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        raised = {ast.unparse(node.exc) for node in nodes if isinstance(node, ast.Raise) and node.exc is not None}
        for node in nodes:
            if isinstance(node, ast.ExceptHandler) and (node.type is None or "BaseException" in ast.unparse(node.type)):
                last = node.body[-1]
                # A thread may keep the error in an attribute, for another thread to raise.
                is_kept = isinstance(last, ast.Assign) and ast.unparse(last.value) == node.name
                is_raised = isinstance(last, ast.Assign) and ast.unparse(last.targets[0]) in raised
                assert isinstance(last, ast.Raise) or (is_kept and is_raised), f"{path}:{node.lineno}"

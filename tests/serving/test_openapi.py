"""The form of the OpenAPI description."""

from __future__ import annotations

from sharp_cog.serving import openapi


def test_the_form_has_files_addresses_and_options() -> None:
    schema = openapi.body()["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["file"]["format"] == properties["depth"]["format"] == "binary"
    assert properties["image_url"]["format"] == properties["depth_url"]["format"] == "uri"
    about = properties["spz_version"]
    assert (about["type"], about["enum"], about["default"]) == ("integer", [2, 3, 4], 3)
    assert about["description"] == (
        "Version of the format spz. 2: the oldest viewers read it; 3: most viewers read it; 4: needs a newer viewer."
    )
    about = properties["focal_length_px"]
    assert (about["type"], about["minimum"], about["maximum"]) == ("number", 1, 1_000_000)
    assert "default" not in about
    assert {**properties["f_px"], "description": about["description"]} == about
    assert properties["center"]["type"] == "boolean"
    assert properties["save_internal_depth"]["description"].endswith(" Only /predict takes it.")


def test_json_has_the_fields_of_the_form_with_files_as_base64() -> None:
    content = openapi.body()["requestBody"]["content"]
    form, json = (content[name]["schema"]["properties"] for name in ("multipart/form-data", "application/json"))
    assert json["image"]["format"] == json["depth"]["format"] == "byte"
    assert form.keys() - {"file"} == json.keys()
    assert {"image/*", "application/octet-stream"} <= content.keys()


def test_a_prediction_has_a_result_and_errors() -> None:
    responses = openapi.responses({"model/gltf-binary": openapi.FILE}, description="The splat.")
    assert responses.keys() == {200, 401, 403, 413, 422, 429, 500, 503, 504}
    assert responses[200]["content"] == {"model/gltf-binary": {"schema": openapi.FILE}}
    assert responses[422]["content"]["application/json"]["schema"]["required"] == ["error", "code"]

"""What the HTTP service says of itself, made from the options."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sharp_cog.config.options import CHOICES, RANGES, PredictOptions

_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "str": "string"}

_DESCRIPTIONS = {
    "output_format": "as the path says; /predict itself gives arrays and takes none",
    "axes": "opencv (y down, z ahead) or opengl (y up, z back); auto suits each format's viewers",
    "max_gaussians": "keep so many of the 1,179,648 Gaussians, those that matter most",
    "min_opacity": "drop Gaussians that are less opaque",
    "scale": "factor on all lengths",
    "center": "make the middle of the scene the origin",
    "spz_version": "of the format spz",
    "focal_length_px": "of the picture as it is shown; without one EXIF decides, else 30 mm",
    "focal_length_mm": "the same as a 35 mm equivalent; give one of the two",
    "depth_format": "what the numbers of the depth map mean",
    "depth_mode": "ratio and fixed take the depth map; align keeps the model's detail and takes its scale",
    "back_surface_factor": "how much farther hidden surfaces lie; above 1 selects the mode fixed",
    "depth_fit": "bring the depth map to the model's own depth first",
    "depth_scale": "factor on the depth",
    "depth_offset": "metres added to the depth",
    "save_internal_depth": "add the model's own depth; of /predict alone",
}

_ERROR = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
}


def _rows(width: int, description: str) -> dict[str, Any]:
    row = {"type": "array", "items": {"type": "number"}, "minItems": width, "maxItems": width}
    return {"type": "array", "items": row, "description": description}


FILE = {"type": "string", "format": "binary"}
ARRAYS = {
    "type": "object",
    "required": ["positions", "scales", "rotations", "opacities", "colors", "metadata"],
    "properties": {
        "positions": _rows(3, "metres, OpenCV axes unless `axes` says otherwise"),
        "scales": _rows(3, "standard deviations in metres"),
        "rotations": _rows(4, "unit quaternions w x y z"),
        "opacities": _rows(1, "0 to 1"),
        "colors": _rows(3, "sRGB, 0 to 1"),
        "internal_depth_m": {"type": "array", "items": {"type": "array"}},
        "metadata": {
            "type": "object",
            "required": ["focal_length", "focal_length_source", "image_size", "num_gaussians", "timings"],
            "properties": {
                "focal_length": {"type": "number", "description": "pixels"},
                "focal_length_source": {"type": "string"},
                "image_size": {"type": "array", "items": {"type": "integer"}, "description": "width, height"},
                "num_gaussians": {"type": "integer"},
                "timings": {"type": "object", "additionalProperties": {"type": "number"}},
            },
        },
    },
}


def form() -> dict[str, Any]:
    """The request body of a prediction: files, URLs and `PredictOptions`."""
    properties: dict[str, Any] = {
        "file": {**FILE, "description": "the photograph: JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF"},
        "image_url": {"type": "string", "format": "uri", "description": "where it is, in place of `file`"},
        "depth": {**FILE, "description": "depth map of the same view: .npy, .npz, PNG, TIFF, .exr or .pfm"},
        "depth_url": {"type": "string", "format": "uri", "description": "where it is, in place of `depth`"},
        "f_px": {**_schema("focal_length_px", "float"), "description": "another name of focal_length_px"},
    }
    for option in fields(PredictOptions):
        schema = _schema(option.name, str(option.type).removesuffix(" | None"))
        if option.default is not None:
            schema["default"] = option.default
        properties[option.name] = {**schema, "description": _DESCRIPTIONS[option.name]}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _schema(name: str, type_: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _TYPES[type_]}
    if name in CHOICES:
        schema["enum"] = list(CHOICES[name])
    if name in RANGES:
        (schema["minimum"], schema["maximum"]), _ = RANGES[name]
    return schema


def responses(media_types: dict[str, dict[str, Any]], *, description: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a prediction, with those that go wrong."""
    wrong = {
        413: "the request is too large",
        422: "the picture, the depth map or an option cannot be used",
        500: "the service failed",
        503: "the model is being loaded, or the queue is full: try again after Retry-After",
        504: "it took too long",
    }
    return {
        200: {
            "description": description,
            "content": {name: {"schema": schema} for name, schema in media_types.items()},
        },
        **{status: error(text) for status, text in wrong.items()},
    }


def error(description: str) -> dict[str, Any]:
    """An answer that says what went wrong."""
    return {"description": description, "content": {"application/json": {"schema": _ERROR}}}

"""OpenAPI description of the HTTP service, derived from the options."""

from __future__ import annotations

from typing import Any

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.parameters import Parameter, parameters, sentence

_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "str": "string"}
_NOTES = {
    "output_format": " The path names the format; /predict returns arrays, and takes none.",
    "save_internal_depth": " Only /predict takes it.",
}
"""Notes about options that depend on the path."""
_ERRORS = {
    401: "The request has no valid key.",
    403: "The service does not answer to the request's host name, or to pages of its origin.",
    413: "The request is too large.",
    422: "The image, the depth map or an option cannot be used.",
    429: "The caller has used up its rate: try again after Retry-After.",
    500: "The service failed.",
    503: "The model is loading, or the queue is full: try again after Retry-After.",
    504: "The prediction took too long.",
}
"""Errors of a prediction by their statuses."""
_ERROR = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
}


def _rows(width: int, description: str) -> dict[str, Any]:
    row = {"type": "array", "items": {"type": "number"}, "minItems": width, "maxItems": width}
    return {"type": "array", "items": row, "description": description}


JSON = "application/json"
FILE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "format": "byte"}
_ADDRESS = {"type": "string", "format": "uri"}
_METADATA: dict[str, Any] = {
    "type": "object",
    "required": ["focal_length", "focal_length_source", "image_size", "num_gaussians", "timings"],
    "properties": {
        "focal_length": {"type": "number", "description": "Focal length in pixels."},
        "focal_length_source": {"type": "string"},
        "image_size": {"type": "array", "items": {"type": "integer"}, "description": "Width and height."},
        "num_gaussians": {"type": "integer"},
        "timings": {"type": "object", "additionalProperties": {"type": "number"}},
        "assumptions": {
            "type": "array",
            "items": {"type": "string"},
            "description": "What was concluded and not given, such as the meaning of the depth map.",
        },
    },
}
STORED = {
    "type": "object",
    "required": ["url", "metadata"],
    "properties": {
        "url": {"type": "string", "format": "uri", "description": "Address of the splat in the bucket, for a week."},
        "metadata": _METADATA,
    },
}
ARRAYS = {
    "type": "object",
    "required": ["positions", "scales", "rotations", "opacities", "colors", "metadata"],
    "properties": {
        "positions": _rows(3, "Metres, in OpenCV axes unless `axes` is given."),
        "scales": _rows(3, "Standard deviations in metres."),
        "rotations": _rows(4, "Unit quaternions w x y z."),
        "opacities": _rows(1, "Opacities from 0 to 1."),
        "colors": _rows(3, "sRGB colours from 0 to 1."),
        "internal_depth_m": {"type": "array", "items": {"type": "array"}},
        "metadata": _METADATA,
    },
}


def body() -> dict[str, Any]:
    """Return the request body of a prediction: a form, JSON with the same fields, or the image as it is."""
    image = "The photograph: JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF."
    depth = "Depth map of the same view: .npy, .npz, PNG, TIFF, .exr or .pfm."
    form = {
        "file": {**FILE, "description": image},
        "image": {**FILE, "description": "Another name of `file`."},
        **_addresses("file"),
        "depth": {**FILE, "description": depth},
        **_options(),
    }
    json = {
        "image": {**_BASE64, "description": f"{image} A data URI, too."},
        **_addresses("image"),
        "depth": {**_BASE64, "description": depth},
        **_options(),
    }
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": _object(form)},
        JSON: {"schema": _object(json)},
        "image/*": {"schema": FILE},
        "application/octet-stream": {"schema": FILE},
    }
    description = "Fields other than files may also stand in the query, whatever the body."
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _addresses(image_name: str) -> dict[str, Any]:
    """Return the fields with addresses of files."""
    return {
        "image_url": {**_ADDRESS, "description": f"Address of the photograph, instead of `{image_name}`."},
        "depth_url": {**_ADDRESS, "description": "Address of the map, instead of `depth`."},
    }


def _options() -> dict[str, Any]:
    """Return the fields of `PredictOptions`."""
    options = {about.name: about for about in parameters(PredictOptions)}
    properties: dict[str, Any] = {
        "f_px": {**_schema(options["focal_length_px"]), "description": "Another name of focal_length_px."},
    }
    for name, about in options.items():
        schema = _schema(about)
        if about.default is not None:
            schema["default"] = about.default
        meanings = f" {about.meanings}." if about.meanings else ""
        properties[name] = {**schema, "description": f"{sentence(about.help)}{meanings}{_NOTES.get(name, '')}"}
    return properties


def _schema(about: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _TYPES[about.kind]}
    if about.choices:
        schema["enum"] = list(about.choices)
    if about.limits is not None:
        schema["minimum"], schema["maximum"] = about.limits
    return schema


def responses(media_types: dict[str, dict[str, Any]], *, description: str) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a prediction, errors included.

    Args:
        media_types: Schema of the result by its media type.
        description: Description of the result.
    """
    return {
        200: {
            "description": description,
            "headers": {
                "X-Sharp-Assumptions": {
                    "schema": {"type": "string"},
                    "description": "What was concluded and not given; absent if nothing was.",
                },
            },
            "content": {name: {"schema": schema} for name, schema in media_types.items()},
        },
        **errors(*_ERRORS),
    }


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return error responses by their statuses."""
    return {status: error(_ERRORS[status]) for status in statuses}


def error(description: str) -> dict[str, Any]:
    """Return an error response."""
    return {"description": description, "content": {JSON: {"schema": _ERROR}}}

"""Names, defaults, codes and file layouts that users rely on, compared with the files in `tests/data/frozen`.

A failure means that users will notice the change. If the change is intended, `python -m tests.contract.test_frozen`
rewrites the files, and their diff belongs to the change. A new option or setting also needs a row in `options.json` or
`settings.json`, with the texts to try.
"""

from __future__ import annotations

import argparse
import base64
import functools
import gzip
import io
import json
import math
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import modal
import numpy as np
import pytest
import requests
import torch
from PIL import Image

import sharp_cog
from sharp_cog import Camera, Gaussians, Prediction, PredictOptions, Settings, SharpError, SharpPipeline, errors
from sharp_cog.cli import build_parser, main
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.options import OutputOptions
from sharp_cog.config.services import ServiceSettings
from sharp_cog.formats import FORMATS, read, write
from sharp_cog.serving import modal_api, modal_app
from sharp_cog.serving.http import create_app
from sharp_cog.serving.runpod import create_handler
from tests.service import serving

pytestmark = pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")

ROOT = Path(__file__).parents[2]
FROZEN = Path(__file__).parents[1] / "data" / "frozen"

Json = Any


def frozen(name: str) -> Json:
    """Return the content of a frozen file."""
    return json.loads((FROZEN / f"{name}.json").read_text(encoding="utf-8"))


def plain(value: object) -> Json:
    """Return a value as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def without_words(schema: Json) -> Json:
    """Return a JSON schema without its texts for people."""
    if isinstance(schema, dict):
        words = ("description", "summary")
        return {
            key: without_words(value)
            for key, value in schema.items()
            if not (key in words and isinstance(value, str)) and (key, value) != ("version", sharp_cog.__version__)
        }
    return [without_words(item) for item in schema] if isinstance(schema, list) else schema


def code_or(act: Callable[[], Json]) -> Json:
    """Return the result of a call, or the code of the error that it raises."""
    try:
        return act()
    except SharpError as error:
        return error.code


# Names and defaults.


def package() -> Json:
    """Describe what `import sharp_cog` offers."""
    classes = {kind.__name__: [field.name for field in fields(kind)] for kind in (Camera, Gaussians)}
    methods = [name for name in ("__call__", "load", "map", "warm_up") if callable(getattr(SharpPipeline, name, None))]
    formats = {name: [format_.suffix, format_.media_type] for name, format_ in FORMATS.items()}
    return {"names": sharp_cog.__all__, "fields": classes, "pipeline": methods, "formats": formats}


def commands() -> Json:
    """Describe every flag of every command, by its spelling."""
    (action,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return {name: dict(flags_of(command)) for name, command in action.choices.items()}


def flags_of(command: argparse.ArgumentParser) -> Iterator[tuple[str, Json]]:
    positions = 0
    for action in command._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        facts = {
            "dest": action.dest,
            "default": action.default,
            "type": getattr(action.type, "__name__", None),
            "choices": None if action.choices is None else list(action.choices),
            "nargs": action.nargs,
            "const": action.const,
            "required": action.required or None,
        }
        if not action.option_strings:
            positions += 1
            facts["position"] = positions
        yield ", ".join(action.option_strings) or action.dest, {k: v for k, v in facts.items() if v is not None}


def options() -> Json:
    """Try the values of `options.json` on every option of a prediction."""
    defaults = plain({field.name: getattr(PredictOptions(), field.name) for field in fields(PredictOptions)})
    tried = {
        name: [[value, option_from(name, value)] for value, _ in rows]
        for name, rows in frozen("options")["tried"].items()
    }
    return {"defaults": defaults, "tried": tried}


def option_from(name: str, value: Json) -> Json:
    return code_or(lambda: getattr(PredictOptions.from_mapping({name: value}), name))


READERS: dict[str, Callable[[Mapping[str, str]], Any]] = {
    "Settings": Settings.from_environment,
    "ServiceSettings": ServiceSettings.from_environment,
    "DatasetSettings": DatasetSettings.build,
}


def settings() -> Json:
    """Try the texts of `settings.json` on every environment variable."""
    return {name: settings_of(read_settings, frozen("settings")[name]) for name, read_settings in READERS.items()}


def settings_of(read_settings: Callable[[Mapping[str, str]], Any], table: Json) -> Json:
    """Describe one class of settings.

    Args:
        read_settings: Reads the settings from environment variables.
        table: Variables that are needed in any case, a text to try for each variable, and spellings of booleans.
    """

    def values(**environment: str) -> dict[str, Json]:
        made = read_settings({**table["needed"], **environment})
        return {field.name: plain(getattr(made, field.name)) for field in fields(made)}

    def changed_by(variable: str, text: str) -> dict[str, Json]:
        return {name: value for name, value in values(**{variable: text}).items() if value != defaults[name]}

    def meaning(word: str) -> Json:
        """Return the value that a word gives all switches."""
        found = [code_or(functools.partial(value_of, name, variable, word)) for variable, name in switches.items()]
        return found[0] if all(value is found[0] for value in found) else found

    def value_of(name: str, variable: str, word: str) -> Json:
        return values(**{variable: word})[name]

    defaults = values()
    variables = {
        variable: [text, code_or(functools.partial(changed_by, variable, text))]
        for variable, (text, _) in table["variables"].items()
    }
    switches = {
        variable: name
        for variable, (_, changed) in variables.items()
        for name, value in (changed.items() if isinstance(changed, dict) else ())
        if isinstance(value, bool)
    }
    booleans = {word: meaning(word) for word in table["booleans"]}
    return {"needed": table["needed"], "defaults": defaults, "variables": variables, "booleans": booleans}


# Errors, as each frontend tells them.


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), "grey").save(file, "PNG")
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((64, 96), 2.0, np.float32))
    return file.getvalue()


def raising(error: SharpError) -> Callable[..., NoReturn]:
    def function(*arguments: object, **named: object) -> NoReturn:
        raise error

    return function


def lift() -> SharpPipeline:
    return SharpPipeline.load(Settings(model="lift", device="cpu"))


def error_classes() -> list[type[SharpError]]:
    """Return the classes of the error tree, the one last after which a service refuses everything."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SharpError)]
    return sorted(found, key=lambda kind: (kind.code == "device_failed", kind.__name__))


def errors_of_frontends() -> Json:
    """Describe every error: its base, its code, the exit code of the command line, the answer of the HTTP service."""
    found: dict[str, Json] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for variable in frozen("settings")["Settings"]["variables"]:
            patch.delenv(variable, raising=False)
        (Path(folder) / "image.png").write_bytes(png())
        (Path(folder) / "depth.npy").write_bytes(npy())
        patch.setattr(SharpPipeline, "warm_up", lambda pipeline: 0.0)
        pipeline = lift()
        with serving(lambda: pipeline) as service:
            for kind in error_classes():
                patch.setattr(SharpPipeline, "load", raising(kind("told")))
                patch.setattr(SharpPipeline, "decode", raising(kind("told")))
                answer = requests.post(f"{service.url}/predict/ply", files={"file": png(), "depth": npy()}, timeout=60)
                found[kind.__name__] = {
                    "base": kind.__bases__[0].__name__,
                    "code": kind.code,
                    "exit": exit_of("predict", f"{folder}/image.png", "--model=lift", f"--depth={folder}/depth.npy"),
                    "status": [answer.status_code, answer.json()["code"], answer.json()["error"] == "told"],
                    "retry": answer.headers.get("Retry-After"),
                }
    return found


def exit_of(*arguments: str) -> list[Json]:
    """Run a command and return its exit code and the code of its error."""
    told = io.StringIO()
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        try:
            exit_code = main(list(arguments))
        except SystemExit as stop:
            return [stop.code, "usage"]
    return [exit_code, told.getvalue().strip().rpartition("[")[2].removesuffix("]")]


def refusals() -> Json:
    """Run command lines that are refused before anything is loaded."""
    lines = frozen("refusals")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for variable in frozen("settings")["Settings"]["variables"]:
            patch.delenv(variable, raising=False)
        Path("image.png").write_bytes(png())
        Path("depth.npy").write_bytes(npy())
        Path("text.ply").write_text("ply\nnonsense\n", encoding="ascii")
        return {line: exit_of(*line.split()) for line in lines}


# Frontends.


def http() -> Json:
    """Describe the HTTP service: its schema, and the answers of the paths that need no prediction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharpPipeline, "warm_up", lambda pipeline: 0.0)
        pipeline = lift()
        schema = without_words(create_app(lambda: pipeline, ServiceSettings()).openapi())
        with serving(lambda: pipeline) as service:
            about, health = (requests.get(f"{service.url}{path}", timeout=60) for path in ("/", "/health"))
            refused = {
                f"{method} {path}": [answer.status_code, answer.json()["code"]]
                for method, path in (("GET", "/x"), ("GET", "/predict"), ("GET", "/progress/x"), ("POST", "/predict/x"))
                for answer in [requests.request(method, f"{service.url}{path}", timeout=60)]
            }
    told = {"/": sorted(about.json()), "/health": sorted(health.json()), "endpoints": about.json()["endpoints"]}
    return {"schema": schema, "told": told, "refused": refused}


def cog() -> Json:
    """Describe the inputs that Cog's server takes."""
    return without_words(json.loads((ROOT / "openapi_schema.json").read_text(encoding="utf-8")))


def runpod() -> Json:
    """Describe the answer to a job, and the names under which a job may hold its image."""
    image = base64.b64encode(png()).decode()
    handler = create_handler(lift(), ServiceSettings())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharpPipeline, "__call__", lambda pipeline, image, options, **more: prediction(options))
        answer = handler({"id": "job", "input": {"image": image, "format": "spz"}})
        named = {
            name: handler({"id": "job", "input": {name: image}}).get("code", "accepted")
            for name in frozen("runpod")["image"]
        }
        listed = handler({"id": "job", "input": {"images": [{"image": image}, {"image": "!"}]}})
        refused = handler({"id": "job", "input": {"images": [{"image": "!"}]}})
    return {"image": named, "answer": shape(answer), "list": shape(listed), "refused list": shape(refused)}


def prediction(options: PredictOptions) -> Prediction:
    """Return a prediction of the splat below; the first field of a prediction holds the Gaussians."""
    given: dict[str, Any] = {fields(Prediction)[0].name: splat(), "camera": CAMERA, "options": options}
    return Prediction(**given, timings=dict.fromkeys(("decode", "preprocess", "network", "unproject"), 0.5))


def shape(value: Json) -> Json:
    """Return the names in a value, with the types of what they name; statuses and codes are kept."""
    if isinstance(value, dict):
        return {key: item if key in ("status", "code") else shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__


def modal_apps() -> Json:
    """Describe the functions and classes of the Modal apps."""
    found = {}
    for module in (modal_app, modal_api):
        named = {name: value for name, value in vars(module).items() if isinstance(value, (modal.Function, modal.Cls))}
        found[module.app.name] = {
            name: sorted(value._get_method_names()) if isinstance(value, modal.Cls) else "function"
            for name, value in named.items()
        }
    return found


# Files.

CAMERA = Camera(width=1200, height=800, focal_length_px=1150.25)
CASES: dict[str, dict[str, Json]] = {
    "ply": {},
    "apple_ply": {},
    "compressed_ply": {},
    "splat": {},
    "spz": {},
    "spz4": {"output_format": "spz", "spz_version": 4},
    "sog": {},
    "glb": {},
    "ply centred": {"output_format": "ply", "center": True, "scale": 2.0, "axes": "opengl"},
    "sog turned": {"output_format": "sog", "axes": "opengl"},
}


def splat() -> Gaussians:
    """Return twelve Gaussians whose values lie between the steps of all formats, so that rounding changes none."""
    shares = (torch.arange(120) * 1_103_515_245 + 12_345) % 2**31 // 2**11 / 2**20  # Exact in float32.
    rows = shares.float().reshape(12, 10)
    turns = [[2, 4, 5, 6], [6, -2, 4, 5], [5, 6, -2, 4], [4, 5, 6, -2], [2, -4, 5, -6], [6, 2, -4, -5]]
    return Gaussians(
        means=rows[:, 0:3] * 3.9 - 1.9,
        scales=rows[:, 3:6] / 4 + 2**-8,
        quaternions_wxyz=torch.tensor(turns).repeat(2, 1) / 9,
        colors_linear=rows[:, 6:9].contiguous(),
        opacities=rows[:, 9].contiguous(),
    )


def files() -> Json:
    """Describe a small splat in each format."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, more in CASES.items():
            options = OutputOptions.from_mapping({"output_format": case, **more})
            path = Path(folder) / f"splat{FORMATS[options.output_format].suffix}"
            write(path, splat(), CAMERA, options)
            found[case] = LAYOUTS[options.output_format](path.read_bytes())
            if options.output_format not in ("sog", "glb"):
                found[case]["read"] = read_back(path)
    return found


def read_back(path: Path) -> Json:
    """Return the content of a file as `read` gives it."""
    made = read(path)
    camera = made.camera
    return {
        "camera": None if camera is None else [camera.width, camera.height, camera.focal_length_px],
        **{name: tensor.tolist() for name, tensor in made.gaussians.tensors().items()},
    }


def ply_layout(content: bytes) -> Json:
    head, end, body = content.partition(b"end_header\n")
    return {"head": without_version((head + end).decode("ascii").splitlines()), "bytes in body": len(body)}


def splat_layout(content: bytes) -> Json:
    records = np.frombuffer(content, np.dtype([("floats", "<f4", 6), ("codes", "u1", 8)]))
    return {"floats": records["floats"].tolist(), "codes": records["codes"].tolist()}


def spz_layout(content: bytes) -> Json:
    if content.startswith(b"NGSP"):
        return {"head": list(struct.unpack_from("<4xIIBBBBI", content))}
    body = gzip.decompress(content)
    return {"head": list(struct.unpack_from("<4xIIBBBB", body)), "bytes in body": len(body) - 16}


def sog_layout(content: bytes) -> Json:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members["meta.json"])
    pixels = {
        name: np.asarray(Image.open(io.BytesIO(content)), dtype=np.int64)
        for name, content in members.items()
        if name.endswith(".webp")
    }
    pixels["means"] = pixels.pop("means_l.webp") + 256 * pixels.pop("means_u.webp")
    codes = {name: values.tolist() for name, values in pixels.items()}
    return {"members": list(members), "meta": without_version(meta), "codes": codes}


def glb_layout(content: bytes) -> Json:
    length, kind = struct.unpack_from("<I4s", content, 12)
    document, rest = json.loads(content[20 : 20 + length]), content[28 + length :]
    values = {}
    for name, index in document["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        part = rest[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        is_float = accessor["componentType"] == 5126
        values[name if is_float else f"{name} codes"] = np.frombuffer(part, "<f4" if is_float else "u1").tolist()
    head = [content[:4].decode(), *struct.unpack_from("<I", content, 4), kind.decode()]
    return {"head": head, "document": without_version(document), "values": values}


def without_version(document: Json) -> Json:
    return json.loads(json.dumps(document).replace(f"sharp_cog {sharp_cog.__version__}", "sharp_cog"))


LAYOUTS: dict[str, Callable[[bytes], Json]] = {
    **dict.fromkeys(("ply", "apple_ply", "compressed_ply"), ply_layout),
    "splat": splat_layout,
    "spz": spz_layout,
    "sog": sog_layout,
    "glb": glb_layout,
}


# Comparison.

PARTS: dict[str, tuple[Callable[[], Json], int]] = {
    "package": (package, 2),
    "commands": (commands, 2),
    "options": (options, 2),
    "settings": (settings, 3),
    "errors": (errors_of_frontends, 1),
    "refusals": (refusals, 1),
    "http": (http, 4),
    "cog": (cog, 4),
    "runpod": (runpod, 2),
    "modal": (modal_apps, 2),
    "files": (files, 3),
}
"""The frozen files, with the function that describes each, and the depth of the entries that are a line each."""


def differences(found: Json, expected: Json, where: str) -> Iterator[str]:
    """Yield the places where two JSON values differ.

    Floating-point numbers may differ by rounding, and the codes of quantised values by one.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            if key not in found:
                yield f"{where}.{key} is gone"
            elif key not in expected:
                yield f"{where}.{key} is new: {found[key]!r:.200}"
            else:
                yield from differences(found[key], expected[key], f"{where}.{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif not is_same(found, expected, is_code="codes" in where):
        yield f"{where} is {found!r:.200}, and was {expected!r:.200}"


def is_same(found: Json, expected: Json, *, is_code: bool) -> bool:
    numbers = [value for value in (found, expected) if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < 2 or not (is_code or any(isinstance(value, float) for value in numbers)):
        return type(found) is type(expected) and bool(found == expected)
    return math.isclose(found, expected, rel_tol=1e-5, abs_tol=1.0 if is_code else 1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_nothing_that_users_rely_on_has_changed(name: str) -> None:
    found = list(differences(plain(PARTS[name][0]()), frozen(name), name))
    assert not found, "\n".join(found)


def test_every_option_and_every_setting_has_a_row() -> None:
    assert frozen("options")["tried"].keys() == {field.name for field in fields(PredictOptions)}
    for kind in (Settings, ServiceSettings, DatasetSettings):
        rows = frozen("settings")[kind.__name__]["variables"].values()
        covered = {name for _, changed in rows if isinstance(changed, dict) for name in changed}
        assert covered == {field.name for field in fields(kind)}, kind.__name__


def pretty(value: Json, depth: int) -> str:
    """Return JSON with one line for each entry at a depth, in alphabetical order."""
    if not isinstance(value, dict) or not depth or not value:
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    rows = (f"{json.dumps(key, ensure_ascii=False)}: {pretty(value[key], depth - 1)}" for key in sorted(value))
    return ("{\n" + ",\n".join(rows)).replace("\n", "\n ") + "\n}"


if __name__ == "__main__":
    for part, (describe, depth) in PARTS.items():
        (FROZEN / f"{part}.json").write_text(f"{pretty(plain(describe()), depth)}\n", encoding="utf-8")

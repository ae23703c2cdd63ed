"""All frontends on one pipeline, with one way to ask them."""

from __future__ import annotations

import base64
import inspect
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cog
import pytest
import requests

import predict
from sharp_cog import PredictOptions, SharpPipeline
from sharp_cog.cli import main
from sharp_cog.config.output_formats import LEVELS_NAME
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import SharpError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.serving import modal_app
from sharp_cog.serving.cog_worker import Watchdog
from sharp_cog.serving.runpod import create_handler
from tests.images import npy, png
from tests.service import serving


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request in no frontend's own form."""

    image: bytes = png()
    depth: bytes | None = npy()
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Content of the splat's file, or the error's message and code."""

    content: bytes = b""
    message: str = ""
    code: str = ""


class Frontends:
    """All frontends, on one pipeline; see `opened`."""

    def __init__(self, pipeline: SharpPipeline, url: str, folder: Path) -> None:
        self.pipeline, self._url, self._folder = pipeline, url, folder

    def ask(self, frontend: str, question: Question) -> Answer:
        """Ask one of `config.parameters.FRONTENDS`."""
        ask: Callable[[Question], Answer] = getattr(self, f"_{frontend.lower().replace(' ', '_')}")
        return ask(question)

    def _file(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path

    def _python(self, question: Question) -> Answer:
        try:
            prediction = self.pipeline(
                question.image, PredictOptions.from_mapping(question.options), depth=question.depth
            )
            return Answer(content=prediction.write(self._folder / "python").read_bytes())
        except SharpError as error:
            return Answer(message=str(error), code=error.code)

    def _command_line(self, question: Question) -> Answer:
        flags = []
        for name, value in question.options.items():
            flag = "--format" if name == "output_format" else f"--{name.replace('_', '-')}"
            flags.append(flag if value is True else f"{flag}={value}")
        if question.depth is not None:
            flags.append(f"--depth={self._file('depth.bin', question.depth)}")
        target = self._folder / (LEVELS_NAME if "lod" in question.options else "splat")
        errors = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", errors)
            image = self._file("photo.bin", question.image)
            exit_code = main(["predict", str(image), "-o", str(target), *flags])
        if exit_code == 0:
            return Answer(content=target.read_bytes())
        message, _, code = errors.getvalue().strip().rpartition(" [")
        assert exit_code == (1 if code == "prediction_failed]" else 2), errors.getvalue()
        return Answer(message=message, code=code.removesuffix("]"))

    def _cog(self, question: Question) -> Answer:
        runner = predict.Predictor()
        runner.pipeline, runner.folder = self.pipeline, ScratchFolder()
        runner.watchdog = Watchdog(600.0)
        signature = inspect.signature(predict.Predictor.run).parameters
        values = {name: each.default.default for name, each in signature.items() if name not in ("self", "image")}
        if question.depth is not None:
            values["depth"] = cog.Path(self._file("cog.depth", question.depth))
        try:
            path = runner.run(image=cog.Path(self._file("cog.image", question.image)), **{**values, **question.options})
            return Answer(content=path.read_bytes())
        except RuntimeError as error:
            code, _, message = str(error).partition(": ")
            return Answer(message=message, code=code)

    def _http(self, question: Question) -> Answer:
        form = dict(question.options)
        path = "/predict" if "save_internal_depth" in form else f"/predict/{form.pop('output_format', 'ply')}"
        files = {"file": question.image, **({} if question.depth is None else {"depth": question.depth})}
        answer = requests.post(f"{self._url}{path}", files=files, data=form, timeout=60)
        if answer.status_code == 200:
            return Answer(content=answer.content)
        body = answer.json()
        assert body.keys() == {"error", "code"}
        assert answer.status_code == (500 if body["code"] == "prediction_failed" else 422)
        return Answer(message=body["error"], code=body["code"])

    def _runpod(self, question: Question) -> Answer:
        values = {"image": base64.b64encode(question.image).decode(), **question.options}
        if question.depth is not None:
            values["depth"] = base64.b64encode(question.depth).decode()
        answer = create_handler(self.pipeline, ServiceSettings())({"id": "job", "input": values})
        if "error" in answer:
            return Answer(message=answer["error"], code=answer["code"])
        assert answer["status"] == "success"
        return Answer(content=base64.b64decode(answer[question.options.get("output_format", "ply")]))

    def _modal(self, question: Question) -> Answer:
        function: Any = modal_app.predict_and_save_ply
        if "save_internal_depth" in question.options:
            function = modal_app.predict
        try:
            return Answer(content=function.local(question.image, depth_bytes=question.depth, **question.options))
        except (ValueError, RuntimeError) as error:
            code, _, message = str(error).partition(": ")
            if type(error) is not (RuntimeError if code == "prediction_failed" else ValueError):
                raise
            return Answer(message=message, code=code)


@contextmanager
def opened(pipeline: SharpPipeline, folder: Path) -> Iterator[Frontends]:
    """Open all frontends on a pipeline for the model `lift`, until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARP_MODEL", "lift")
        patch.setattr(SharpPipeline, "load", lambda *arguments, **more: pipeline)
        with serving(lambda: pipeline) as service:
            yield Frontends(pipeline, service.url, folder)

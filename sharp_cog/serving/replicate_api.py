"""Replicate's HTTP API, as far as its clients need it to run a model, in front of Cog's own server on this machine.

The client for Python asks this server if `REPLICATE_API_BASE_URL` is `http://127.0.0.1:5000`, and the client for
JavaScript with `baseUrl: "http://127.0.0.1:5000/v1"`. There is only one model here, so each name and version of a model
stands for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, InputError
from sharp_cog.serving.coglet import Answer, Asked, Coglet, Output, discard, input_name, object_of
from sharp_cog.serving.refusals import error_body
from sharp_cog.serving.transport import reading_form, unless_gone

MAX_WAIT_SECONDS = 60.0
"""Longest time that `Prefer: wait` holds an answer, as at Replicate."""
KEPT_SECONDS = 3600.0
"""Seconds for which a finished prediction and an uploaded file are kept, as at Replicate."""
MAX_PREDICTIONS = 32
"""Maximum number of finished predictions that are kept, 66 MB each."""
MAX_FILES = 32
"""Maximum number of uploaded files that are kept."""
LOCAL = "local"
"""Version of the model where the client names none."""

_FILE = re.compile(r"\s*https?://[^/]+/v1/files/([0-9a-f]{32})\s*", re.IGNORECASE)
_PREFER = re.compile(r"\bwait(?:=([0-9]{1,4}))?\b")


class Guard(Protocol):
    """The part of `sharp_cog.serving.cog_guard.CogGuard` that the API needs; its methods are documented there."""

    @property
    def coglet(self) -> Coglet: ...

    async def receive(self, request: Request, prediction_id: str | None) -> Asked: ...

    def uploading(self, request: Request) -> AbstractAsyncContextManager[Request]: ...

    def start(self, asked: Asked, *, wait_s: float, has_begun: asyncio.Event) -> asyncio.Task[Answer]: ...

    def refuse(self, error: Exception, status: int | None = None) -> Response: ...

    def respond_with(
        self, body: Mapping[str, Any], output: Output, *, status: int = 200, is_kept: bool = False
    ) -> Response: ...


@dataclass(kw_only=True, slots=True)
class _Kept:
    """A prediction, from its creation until it is forgotten.

    Attributes:
        facts: What does not change: id, model, version, input, addresses, time of creation.
        job: The prediction itself.
        has_begun: Set when it has begun.
        ended_at: Time by `time.monotonic` at which it ended; None before.
    """

    facts: dict[str, Any]
    job: asyncio.Task[Answer]
    has_begun: asyncio.Event
    ended_at: float | None = None
    times: dict[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> Answer | None:
        """The answer of a prediction that has ended and neither failed in the guard nor was cancelled."""
        is_answered = self.job.done() and not self.job.cancelled() and self.job.exception() is None
        return self.job.result() if is_answered else None

    def state(self) -> dict[str, Any]:
        """Return the prediction without its output."""
        state = {"status": "processing" if self.has_begun.is_set() else "starting", "error": None}
        answer = self.answer
        if answer is not None:
            state |= _outcome(answer)
        elif self.job.cancelled():
            state["status"] = "canceled"
        elif self.job.done():
            error = self.job.exception()
            assert error is not None, "neither answered nor cancelled"
            body = error_body(error)
            state |= {"status": "failed", "error": f"{body['code']}: {body['error']}"}
        return {"logs": "", "metrics": {}, **self.facts, **state, **self.times}


class ReplicateApi:
    """The part of Replicate's API that runs predictions.

    Attributes:
        routes: Routes of the API.
    """

    def __init__(self, guard: Guard, settings: ServiceSettings, folder: Path) -> None:
        """Create the API.

        Args:
            guard: Runs the predictions.
            settings: Limits of the service.
            folder: Folder of the guard, from which coglet also fetches the inputs.
        """
        self._guard = guard
        self._settings = settings
        self._folder = folder
        self._predictions: dict[str, _Kept] = {}
        self._files: dict[str, tuple[dict[str, Any], float]] = {}
        model = "/v1/models/{owner}/{name}"
        self.routes = [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files/{file_id}", self._file),
            Route("/v1/predictions", self._list, methods=["GET"]),
            Route("/v1/predictions", self._create, methods=["POST"]),
            Route(f"{model}/predictions", self._create, methods=["POST"]),
            Route("/v1/deployments/{owner}/{name}/predictions", self._create, methods=["POST"]),
            Route("/v1/predictions/{prediction_id}", self._get),
            Route("/v1/predictions/{prediction_id}/cancel", self._cancel, methods=["POST"]),
            Route(model, self._model),
            Route(f"{model}/versions/{{version}}", self._version),
        ]

    def file_of(self, url: str) -> tuple[str, str] | None:
        """Return id and name of the uploaded file that an address stands for; None for any other address."""
        found = _FILE.fullmatch(url)
        if found is None or found[1] not in self._files:
            return None
        return found[1], self._files[found[1]][0]["name"]

    async def _upload(self, request: Request) -> Response:
        file_id = secrets.token_hex(16)
        path = self._folder / f"{file_id}.input"
        try:
            async with self._guard.uploading(request) as bounded, reading_form(bounded) as form:
                content = form.get("content")
                if not isinstance(content, UploadFile):
                    raise InputError("the form has no file: send it as content")
                about = await asyncio.to_thread(_copy, content, path)
        except ClientDisconnect:
            return Response(status_code=499)
        now = datetime.now(UTC).isoformat()
        about |= {"id": file_id, "metadata": {}, "created_at": now, "expires_at": None}
        about["urls"] = {"get": f"{request.base_url}v1/files/{file_id}"}
        self._forget()
        self._files[file_id] = (about, time.monotonic())
        return JSONResponse(about, 201)

    async def _file(self, request: Request) -> Response:
        found = self._files.get(request.path_params["file_id"])
        return _missing("file") if found is None else JSONResponse(found[0])

    async def _create(self, request: Request) -> Response:
        await self._guard.coglet.check()
        num_unfinished = sum(not kept.job.done() for kept in self._predictions.values())
        if num_unfinished > self._settings.queue_size:
            return self._guard.refuse(BusyError(f"{num_unfinished} predictions wait already", retry_after_s=10), 429)
        try:
            asked = await self._guard.receive(request, None)
        except ClientDisconnect:
            return Response(status_code=499)
        kept = self._begin(request, asked)
        found = _PREFER.search(request.headers.get("prefer", ""))
        if found:
            seconds = min(MAX_WAIT_SECONDS, float(found[1] or MAX_WAIT_SECONDS))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    # The prediction goes on if the client disconnects: it may ask for it by its id.
                    await unless_gone(request, asyncio.wait([kept.job]))
        if not kept.job.done():
            # The clients take any other status for the end.
            return JSONResponse({**kept.state(), "status": "starting", "output": None}, 201)
        return self._respond(kept, 201)

    def _begin(self, request: Request, asked: Asked) -> _Kept:
        names = request.path_params
        model = f"{names['owner']}/{names['name']}" if names else str(asked.named.get("model") or f"{LOCAL}/{LOCAL}")
        address = f"{request.base_url}v1/predictions/{asked.id}"
        has_begun = asyncio.Event()
        kept = _Kept(
            facts={
                "id": asked.id,
                "model": model,
                "version": str(asked.named.get("version") or LOCAL),
                "input": dict(asked.echo),
                "created_at": datetime.now(UTC).isoformat(),
                "started_at": None,
                "completed_at": None,
                "urls": {"get": address, "cancel": f"{address}/cancel"},
            },
            job=self._guard.start(asked, wait_s=self._settings.request_seconds, has_begun=has_begun),
            has_begun=has_begun,
        )
        kept.job.add_done_callback(lambda job: self._end(kept))
        self._drop(asked.id)
        self._predictions[asked.id] = kept
        self._forget()
        return kept

    def _end(self, kept: _Kept) -> None:
        kept.ended_at = time.monotonic()
        kept.times["completed_at"] = datetime.now(UTC).isoformat()
        if not kept.job.cancelled():
            kept.job.exception()  # Looked at, so that asyncio does not log it: `state` reports it.

    def _forget(self) -> None:
        """Drop what is too old or too much."""
        now = time.monotonic()
        ended = [name for name, kept in self._predictions.items() if kept.ended_at is not None]
        for place, name in enumerate(reversed(ended)):
            ended_at = self._predictions[name].ended_at
            if place >= MAX_PREDICTIONS or (ended_at is not None and now - ended_at > KEPT_SECONDS):
                self._drop(name)
        for place, (file_id, (_, since)) in enumerate(reversed(list(self._files.items()))):
            if place >= MAX_FILES or now - since > KEPT_SECONDS:
                del self._files[file_id]
                (self._folder / f"{file_id}.input").unlink(missing_ok=True)

    def _drop(self, prediction_id: str) -> None:
        kept = self._predictions.pop(prediction_id, None)
        if kept is not None and kept.answer is not None:
            discard(kept.answer.output)

    async def _get(self, request: Request) -> Response:
        kept = self._predictions.get(request.path_params["prediction_id"])
        return _missing("prediction") if kept is None else self._respond(kept, 200)

    async def _list(self, request: Request) -> Response:
        results = [{**kept.state(), "output": None} for kept in reversed(self._predictions.values())]
        return JSONResponse({"results": results, "next": None, "previous": None})

    async def _cancel(self, request: Request) -> Response:
        kept = self._predictions.get(request.path_params["prediction_id"])
        if kept is None:
            return _missing("prediction")
        kept.job.cancel()
        await asyncio.wait([kept.job])
        return self._respond(kept, 200)

    async def _model(self, request: Request) -> Response:
        names = request.path_params
        version = await self._version_of(LOCAL)
        about = {"owner": names["owner"], "name": names["name"], "visibility": "private", "run_count": 0}
        about |= {"url": str(request.base_url), "description": "", "latest_version": version}
        return JSONResponse(about)

    async def _version(self, request: Request) -> Response:
        return JSONResponse(await self._version_of(request.path_params["version"]))

    async def _version_of(self, version: str) -> dict[str, Any]:
        health = await self._guard.coglet.health()
        schema = (await self._guard.coglet.get("/openapi.json")).json()
        created_at = health.get("setup", {}).get("started_at") or datetime.now(UTC).isoformat()
        cog_version = health.get("version", {}).get("coglet", "")
        return {"id": version, "created_at": created_at, "cog_version": cog_version, "openapi_schema": schema}

    def _respond(self, kept: _Kept, status: int) -> Response:
        output = kept.answer.output if kept.answer is not None else None
        if output is None or not output.path.exists():
            body = kept.answer.body if kept.answer is not None else None
            # With `--upload-url`, the output is an address.
            address = body.get("output") if isinstance(body, dict) else None
            return JSONResponse({**kept.state(), "output": address}, status)
        return self._guard.respond_with(kept.state(), output, status=status, is_kept=True)


def _outcome(answer: Answer) -> dict[str, Any]:
    """Return what an answer of coglet says about the end of a prediction."""
    body = object_of(answer.body)
    if answer.status != 200:
        # Coglet refuses an input, which Replicate does before the prediction begins.
        detail = body.get("detail") or body.get("error")
        if isinstance(detail, list):
            detail = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in detail)
        return {"status": "failed", "error": str(detail)}
    return {name: body[name] for name in ("status", "error", "logs", "metrics") if name in body}


def _copy(upload: UploadFile, path: Path) -> dict[str, Any]:
    """Copy a file of a form, and return its description in the words of Replicate."""
    digest, num_bytes = hashlib.sha256(), 0
    upload.file.seek(0)
    with path.open("wb") as file:
        while chunk := upload.file.read(1 << 20):
            file.write(chunk)
            digest.update(chunk)
            num_bytes += len(chunk)
    return {
        "name": input_name(upload.filename or ""),
        "content_type": upload.content_type or "application/octet-stream",
        "size": num_bytes,
        "etag": digest.hexdigest(),
        "checksums": {"sha256": digest.hexdigest()},
    }


def _missing(what: str) -> Response:
    text = f"this server has no such {what}, or no longer: it keeps them for an hour, and not after a restart"
    return JSONResponse({"detail": text, "error": text, "status": "failed"}, 404)

"""The HTTP service, with a web page: `sharp-cog serve --http`."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Request, Security
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from sharp_cog import __version__
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.process import use_one_arena
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import (
    BusyError,
    DeadlineError,
    InputError,
    NotInstalledError,
    OptionError,
    SharpError,
    SlowClientError,
)
from sharp_cog.formats import FORMATS
from sharp_cog.pipeline import output
from sharp_cog.pipeline.memory import needed_bytes
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request as PredictionRequest
from sharp_cog.serving import answers, inputs, openapi
from sharp_cog.serving.access import KEY_HEADERS, Access, Gate, RateLimit
from sharp_cog.serving.bodies import reading_fields
from sharp_cog.serving.dispatch import Dispatcher
from sharp_cog.serving.fetching import Fetching
from sharp_cog.serving.metrics import Metrics
from sharp_cog.serving.refusals import error_body, headers_of, status_of
from sharp_cog.serving.transfers import Transfers
from sharp_cog.serving.transport import (
    BodyLimit,
    Guard,
    TemporaryFileResponse,
    bounded,
    takes_gzip,
    unless_gone,
)
from sharp_cog.text import plain, quoted

_LOG = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
HUNG_UP = 499
"""Status that proxies log for a client that has disconnected; nobody receives it."""
OPEN_PATHS = ("/", "/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
"""Paths that need no key: health checks have none, and the page must load before it can ask for one."""
_OCTETS = "application/octet-stream"
"""Media type by which a client asks for the file itself, whatever its format."""
CLOSE_SECONDS = 1.0
"""Seconds for which the end of the service waits for its threads."""
NPZ = "application/x-npz"
"""Media type of numpy's arrays."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NUM_STORING = 4
"""Number of results that are sent to the bucket at once."""
_URLS = {"file": "image_url", "depth": "depth_url"}
"""Files of a request, and the fields that have a URL in their place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """Kind of answer that a path returns."""

    media_type: str
    suffix: str
    write: Callable[[Path, Prediction], object]
    is_download: bool = True
    is_splat: bool = False

    def goes_to_bucket(self, accept: str) -> bool:
        """Report whether an answer goes to the bucket, if there is one: a splat, unless `Accept` names its type."""
        return self.is_splat and not any(name in accept for name in (self.media_type.partition(";")[0], _OCTETS))


_JSON = _Kind(media_type=openapi.JSON, suffix=".json", write=answers.write_json, is_download=False)
_GZIPPED_JSON = replace(_JSON, write=answers.write_gzipped_json)
_ARRAYS = _Kind(media_type=NPZ, suffix=".npz", write=answers.write_npz)


def create_app(
    load: Callable[[], SharpPipeline], settings: ServiceSettings, *, frontend: str = "http", root: str = ""
) -> FastAPI:
    """Return the service as an ASGI application.

    Its `state` has what `sharp_cog.serving.server.Server` uses: `stop`, `idle`, `refused`, `has_failed`, `is_closed`.

    Args:
        load: Loads the pipeline; called once, in a thread, when the application starts.
        settings: Settings of the service.
        frontend: Name of the service in its metrics.
        root: Path prefix that a proxy in front of the service removes.
    """
    # Before any thread starts, since each one would get an arena of its own.
    use_one_arena()
    metrics = Metrics(frontend)
    dispatcher = Dispatcher(load, settings)
    transfers, fetching = Transfers(settings), Fetching(settings)
    metrics.watch(dispatcher)
    metrics.gauge("sharp_uploads", "Requests whose body is being read", lambda: transfers.num_uploads)
    metrics.gauge("sharp_answers", "Answers that are being sent", lambda: transfers.num_answers)
    metrics.gauge("sharp_fetches", "Requests whose URLs are being fetched", lambda: fetching.num_requests)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # The server accepts requests at once, and answers 503 until the model is loaded.
        dispatcher.start()
        yield
        # uvicorn comes here after the last answer, or at the end of its grace period.
        dispatcher.stop()
        fetching.close()
        service.close()
        # `close` waits for threads, and must not block the event loop meanwhile. The thread is a daemon, since a stage
        # or the loading of the model may take longer than the system waits for a process that it has asked to end.
        closing = threading.Thread(target=dispatcher.close, daemon=True, name="close")
        closing.start()
        deadline = time.monotonic() + CLOSE_SECONDS
        while closing.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        app.state.is_closed = not closing.is_alive()
        if closing.is_alive():
            dispatcher.remove_files()

    app = FastAPI(
        title="sharp_cog",
        version=__version__,
        summary="One photograph in, one 3D Gaussian splat out, with Apple's SHARP model.",
        lifespan=lifespan,
        root_path=root,
        redirect_slashes=False,
    )
    app.state.stop, app.state.idle, app.state.refused = dispatcher.stop, dispatcher.idle, metrics.refused
    app.state.has_failed = lambda: dispatcher.state == "failed"
    app.state.is_closed = False

    def refuse_body(error: Exception) -> Response:
        metrics.refused("body")
        return _refusal(error)

    app.add_middleware(BodyLimit, max_bytes=int(settings.max_body_megabytes * 1e6), refuse=refuse_body)
    # The middleware that is added last sees a request first.
    gate = Gate(Access.from_settings(settings, open_paths=OPEN_PATHS), RateLimit(settings.rate_limit))
    app.add_middleware(Guard, gate=gate, refuse=_refusal)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=(*KEY_HEADERS, "X-Request-Id"),
            expose_headers=("Content-Disposition", "Retry-After", "X-Request-Id", "X-Sharp-Assumptions"),
            # A site on the internet may be allowed to use a service on this machine, which browsers ask for separately.
            allow_private_network=True,
        )
    # Starlette raises an error again after the handler of `Exception`; a `SharpError` is only answered.
    for kind_of_error in (SharpError, Exception):
        app.add_exception_handler(kind_of_error, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)  # type: ignore[arg-type]
    service = _Service(dispatcher, transfers, fetching, settings, metrics)
    # `Guard` checks the key. These only describe it, so that clients and /docs know where it belongs.
    schemes = (HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False))
    described_key = [Security(scheme) for scheme in schemes] if settings.api_keys else []

    @app.get(
        "/", responses={200: {"content": {"text/html": {}}, "description": "what this service is; a page for browsers"}}
    )
    async def about(request: Request) -> Response:
        # Browsers ask for HTML, programs do not. `Vary` keeps caches from giving one the answer of the other.
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Vary": "Accept"})
        return JSONResponse(_about(dispatcher.pipeline, settings), headers={"Vary": "Accept"})

    @app.get("/health", responses={503: {"description": "the model is being loaded, or could not be"}})
    async def health() -> JSONResponse:
        is_ready, pipeline = dispatcher.state == "ready", dispatcher.pipeline
        body = {
            "status": "healthy" if is_ready else dispatcher.state,
            "cuda_available": torch.cuda.is_available(),
            "device": str(pipeline.device) if pipeline else None,
            "model": pipeline.settings.model if pipeline else None,
            "requests": dispatcher.num_admitted,
        }
        # The code alone: the message may hold paths of this machine.
        if dispatcher.failure is not None:
            body["code"] = getattr(dispatcher.failure, "code", SharpError.code)
        return JSONResponse(body, 200 if is_ready else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        dependencies=described_key,
        responses={
            200: {"content": {"text/plain": {}}, "description": "for Prometheus"},
            **openapi.errors(401, 403),
        },
    )
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=Metrics.MEDIA_TYPE)

    @app.get(
        "/progress/{request_id}",
        dependencies=described_key,
        responses={404: openapi.error("no such request is waiting or under way"), **openapi.errors(401, 403)},
    )
    async def progress(request_id: str) -> JSONResponse:
        """Returns the stage of the prediction that was sent with this `X-Request-Id`."""
        found = dispatcher.progress(request_id)
        if found is None:
            raise HTTPException(404, "no such request is waiting or under way")
        return JSONResponse(found)

    @app.post(
        "/predict",
        dependencies=described_key,
        openapi_extra=openapi.body(),
        responses=openapi.responses(
            {openapi.JSON: openapi.ARRAYS, NPZ: openapi.FILE},
            description="the Gaussians as arrays; `Accept: application/x-npz` returns numpy's format",
        ),
    )
    async def predict(request: Request) -> Response:
        """Predicts a splat and returns it as arrays."""
        kind = _GZIPPED_JSON if takes_gzip(request.headers) else _JSON
        if NPZ in request.headers.get("accept", ""):
            kind = _ARRAYS
        return await service.answer(request, kind, _options_of_arrays)

    @app.post(
        "/predict/{output_format}",
        response_class=Response,  # So that the description has no JSON.
        dependencies=described_key,
        openapi_extra=openapi.body(),
        responses=openapi.responses(
            {format_.media_type.partition(";")[0]: openapi.FILE for format_ in FORMATS.values()}
            | ({openapi.JSON: openapi.STORED} if settings.has_bucket else {}),
            description="the splat as a file; with a bucket its address, unless `Accept` names the type of the file",
        ),
    )
    async def predict_file(
        output_format: Annotated[str, PathParameter(json_schema_extra={"enum": list(FORMATS)})], request: Request
    ) -> Response:
        """Predicts a splat and returns it as a file."""
        format_ = FORMATS.get(output_format, FORMATS["ply"])  # An unknown format is refused with the options.
        kind = _Kind(media_type=format_.media_type, suffix=format_.suffix, write=_write, is_splat=True)
        return await service.answer(request, kind, lambda form: _options_of_file(form, output_format))

    for route in [route for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())]:
        # The answer of GET, of which the server sends the head alone.
        app.head(route.path, include_in_schema=False)(route.endpoint)
    return app


class _Service:
    """Answers requests for predictions."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        transfers: Transfers,
        fetching: Fetching,
        settings: ServiceSettings,
        metrics: Metrics,
    ) -> None:
        self._dispatcher = dispatcher
        self._transfers = transfers
        self._fetching = fetching
        self._settings = settings
        self._metrics = metrics
        self._store: Callable[..., str] | None = None
        if settings.has_bucket:
            try:
                from sharp_cog.serving.bucket import store
            except ModuleNotFoundError as error:
                raise NotInstalledError(
                    f"BUCKET_ENDPOINT_URL needs {error.name}: .venv/bin/pip install -e '.[bucket]', or unset it"
                ) from error
            self._store = store
        self._storing = ThreadPoolExecutor(_NUM_STORING, thread_name_prefix="store")

    def close(self) -> None:
        """Take no more results for the bucket. Those under way end by their own time limits."""
        self._storing.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self, request: Request, kind: _Kind, options_of: Callable[[dict[str, Any]], PredictOptions]
    ) -> Response:
        """Answer one request, unless it takes too long or the client disconnects."""
        store = self._store if kind.goes_to_bucket(request.headers.get("accept", "")) else None
        seconds, start, outcome = self._settings.request_seconds, time.monotonic(), SharpError.code
        # The id goes into the log and into an answer's header, so an id with other characters is replaced.
        sent_id = request.headers.get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else secrets.token_hex(8)
        # A name only: the file appears when it is written, and every end but `ok` deletes it.
        path = self._dispatcher.new_path(kind.suffix)
        try:
            # Before the body is read: while the service is busy, an upload would be in vain.
            self._dispatcher.check()
            # The time limit includes the upload. The files stay open, as they are read when there is room.
            async with asyncio.timeout(seconds), AsyncExitStack() as stack:
                async with self._dispatcher.until_stopped():
                    request = await stack.enter_async_context(bounded(request, self._transfers))
                    fields = await stack.enter_async_context(reading_fields(request))
                inputs.check_sources({*fields.files, *fields.urls}, image_name="file", others=fields.options)
                options = options_of(fields.options)
                work = self._predict(fields.files, fields.urls, options, kind, path, request_id)
                prediction = await unless_gone(request, work)
                if prediction is not None and store is not None:
                    link = await asyncio.get_running_loop().run_in_executor(
                        self._storing, store, path, path.name, kind.media_type, self._settings
                    )
            if prediction is None:
                raise ClientDisconnect
            outcome = "ok"
        except ClientDisconnect:
            # Nobody receives the answer, but an exception would be logged as a failure of the service.
            outcome = "hung_up"
            return Response(status_code=HUNG_UP)
        except TimeoutError:
            outcome = DeadlineError.code
            raise DeadlineError(f"the request took longer than {seconds:g} s: try again later") from None
        except SharpError as error:
            outcome = error.code
            if isinstance(error, (BusyError, SlowClientError)):
                self._metrics.refused(error.reason)
            raise
        except HTTPException:  # Starlette cannot parse the form.
            outcome = InputError.code
            raise
        except Exception as error:  # noqa: BLE001 - Starlette would raise it again, and uvicorn log it a second time
            return _refusal(error)
        finally:
            # A thread may write the file later; `Dispatcher.run` deletes it then.
            elapsed_s = time.monotonic() - start
            if outcome != "ok":
                path.unlink(missing_ok=True)
                self._count(request, request_id, outcome, elapsed_s)
        self._metrics.stages(prediction.timings)
        headers = {"X-Request-Id": request_id, "X-Content-Type-Options": "nosniff", "Vary": "Accept, Accept-Encoding"}
        if prediction.assumptions:
            # Headers hold one line of Latin-1; the name of an array may have any characters.
            text = "; ".join(prediction.assumptions).encode("ascii", "replace").decode()
            headers["X-Sharp-Assumptions"] = text
        if store is not None:
            path.unlink(missing_ok=True)
            self._count(request, request_id, outcome, elapsed_s)
            return JSONResponse({"url": link, "metadata": answers.metadata(prediction)}, headers=headers)
        if kind is _GZIPPED_JSON:
            headers["Content-Encoding"] = "gzip"
        if kind.is_download:
            sent_name = fields.files["file"].filename if "file" in fields.files else None
            name = answers.file_name(sent_name, kind.suffix)
            headers["Content-Disposition"] = answers.disposition(name, kind.suffix)
        return TemporaryFileResponse(
            path,
            seconds=seconds,
            transfers=self._transfers,
            on_end=lambda outcome: self._count(request, request_id, outcome, elapsed_s),
            media_type=kind.media_type,
            headers=headers,
        )

    def _count(self, request: Request, request_id: str, outcome: str, elapsed_s: float) -> None:
        """Count and log a request at its end; `elapsed_s` are its seconds until the answer was ready."""
        if outcome == SlowClientError.code:
            self._metrics.refused("slow_answer")
        self._metrics.request(outcome, elapsed_s)
        # Not `request.url`, which raises if the query is not UTF-8.
        _LOG.info("%s %s: %s after %.2f s", request_id, plain(request.scope["path"]), outcome, elapsed_s)

    async def _predict(
        self,
        files: Mapping[str, UploadFile],
        urls: Mapping[str, str],
        options: PredictOptions,
        kind: _Kind,
        path: Path,
        request_id: str,
    ) -> Prediction:
        # Fetched before the queue, so that a slow host keeps nobody from the device.
        async with AsyncExitStack() as stack:
            async with self._dispatcher.until_stopped():
                fetched = await stack.enter_async_context(self._fetching.fetched(urls)) if urls else {}
            place = stack.enter_context(self._dispatcher.admitted(request_id, is_expected=True))

            # Called in a thread of the conveyor, once there is room: a queued upload stays in its temporary file.
            def content(name: str) -> bytes | None:
                file = files[name].file if name in files else fetched.get(_URLS[name])
                if file is None:
                    return None
                file.seek(0)
                return file.read()

            def read() -> PredictionRequest:
                return PredictionRequest(
                    image=content("file") or b"",
                    depth=content("depth"),
                    depth_name=(files["depth"].filename or "") if "depth" in files else "",
                    options=options,
                    key=request_id,
                )

            def measure() -> int:
                return needed_bytes(content("file") or b"", content("depth"))

            return await self._dispatcher.run(place, read, kind.write, path, measure=measure)


def _options_of_arrays(form: dict[str, Any]) -> PredictOptions:
    if form.get("output_format") or form.get("format"):
        raise OptionError("output_format is given, but /predict returns arrays: POST to /predict/FORMAT")
    return inputs.options_from(form)


def _options_of_file(form: dict[str, Any], output_format: str) -> PredictOptions:
    named = form.pop("output_format", None) or form.pop("format", None)
    if named and named != output_format:
        raise OptionError(f"output_format is {quoted(named)}, but the path says {quoted(output_format)}: leave one out")
    options = inputs.options_from({**form, "output_format": output_format})
    if options.save_internal_depth:
        raise OptionError("save_internal_depth is given, but a splat file cannot hold it: POST to /predict")
    return options


def _write(path: Path, prediction: Prediction) -> object:
    return prediction.write(path, output_format=prediction.options.output_format)


def _about(pipeline: SharpPipeline | None, settings: ServiceSettings) -> dict[str, Any]:
    viewer_dir = pipeline.settings.viewer_dir if pipeline else None
    offered = []
    for format_ in FORMATS.values():
        try:
            output.check(PredictOptions(output_format=format_.name), viewer_dir=viewer_dir)
        except NotInstalledError:
            continue
        offered.append({"name": format_.name, "suffix": format_.suffix, "description": format_.description})
    return {
        "message": "sharp_cog: one photograph in, one 3D Gaussian splat out",
        "version": __version__,
        "endpoints": ["/", "/health", "/metrics", "/predict", "/predict/{format}", "/progress/{request_id}", "/docs"],
        "formats": offered,
        "needs_depth": pipeline is not None and pipeline.predictor.needs_depth,
        "needs_key": bool(settings.api_keys),
    }


def _refusal(error: Exception) -> JSONResponse:
    return JSONResponse(error_body(error), status_of(error), headers=headers_of(error))


async def _on_error(request: Request, error: Exception) -> Response:
    return _refusal(error)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """Answer a request that Starlette itself refuses: an unknown path or method, or a form that cannot be parsed."""
    # Starlette answers a form that it cannot parse with 400; here every input error is a 422.
    codes = {400: InputError.code, 404: "not_found", 405: "method_not_allowed"}
    body = {"error": plain(error.detail, 200), "code": codes.get(error.status_code, f"http_{error.status_code}")}
    return JSONResponse(body, 422 if error.status_code == 400 else error.status_code, headers=error.headers)

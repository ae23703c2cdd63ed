"""A server on loopback with the tRPC procedures of gsplat.org, strict checks, and faults on demand."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

MAX_SINGLE_BYTES = 20 * 1024 * 1024


@dataclass
class Upload:
    """A chunked upload under way."""

    begun: dict[str, Any]
    chunks: dict[int, bytes] = field(default_factory=dict)


class RefusalError(Exception):
    """An error of tRPC."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class GsplatServer:
    """A service that holds nothing yet.

    Attributes:
        url: Address of the service.
        files: Uploaded content by the address that the service returned for it.
        orders: Orders by share id.
        calls: Names of the procedures that were called, in order, successful or not.
        headers: Headers of each call.
        failures: Number of calls of a procedure that answer 503, without effect, before it works.
        lost: Number of calls that take effect, but whose connection breaks before the answer.
        garbage: Number of calls that take effect, and are answered with an HTML page.
        refusals: Number of calls that are refused with 403.
        hanging: Procedures that never answer.
        dripping: Procedures that answer a byte at a time and never finish.
        forgets_uploads_after: Number of chunks after which the service restarts once, and forgets the upload.
        retry_after: Seconds that a 503 asks for.
        wraps: Whether data are wrapped in the envelope of superjson.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.failures: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.garbage: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.hanging: set[str] = set()
        self.dripping: set[str] = set()
        self.forgets_uploads_after: int | None = None
        self.retry_after: str | None = None
        self.wraps = False
        self.is_closing = threading.Event()
        self._uploads: dict[str, Upload] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.is_closing.set()
        self._server.shutdown()
        self._server.server_close()

    def call(self, procedure: str, argument: dict[str, Any]) -> Any:
        with self._lock:
            works = {
                "uploadGaussianSplat": self._upload,
                "chunkedUploadInitiate": self._initiate,
                "chunkedUploadChunk": self._chunk,
                "chunkedUploadFinalize": self._finalize,
                "createOrder": self._order,
            }
            if procedure not in works:
                raise RefusalError(404, "NOT_FOUND", f'No "mutation"-procedure on path "order.{procedure}"')
            return works[procedure](argument)

    def _upload(self, argument: dict[str, Any]) -> Any:
        file = _checked(argument, gaussianSplatFile=dict)["gaussianSplatFile"]
        _checked(file, name=str, data=str, type=str, size=int)
        content = _decoded(file["data"])
        if len(content) != file["size"]:
            raise RefusalError(400, "BAD_REQUEST", f"size is {file['size']}, data has {len(content)} bytes")
        if len(content) >= MAX_SINGLE_BYTES:
            raise RefusalError(413, "PAYLOAD_TOO_LARGE", "use chunked upload")
        return {"modelFileUrl": self._store(file["name"], content)}

    def _initiate(self, argument: dict[str, Any]) -> Any:
        _checked(argument, filename=str, fileSize=int, chunkSize=int, contentType=str, metadata=dict)
        _checked(argument["metadata"], title=str, description=str, expirationType=str)
        upload_id = f"upload-{next(self._numbers)}"
        self._uploads[upload_id] = Upload(begun=argument)
        return {"uploadId": upload_id}

    def _chunk(self, argument: dict[str, Any]) -> Any:
        _checked(argument, uploadId=str, chunkIndex=int, totalChunks=int, data=str, size=int)
        upload = self._known(argument)
        chunk = _decoded(argument["data"])
        begun, index, total = upload.begun, argument["chunkIndex"], argument["totalChunks"]
        if total != -(-begun["fileSize"] // begun["chunkSize"]) or not 0 <= index < total:
            raise RefusalError(400, "BAD_REQUEST", f"chunk {index} of {total}")
        expected = min(begun["chunkSize"], begun["fileSize"] - index * begun["chunkSize"])
        if not len(chunk) == argument["size"] == expected:
            raise RefusalError(400, "BAD_REQUEST", f"chunk {index} has {len(chunk)} bytes, not {expected}")
        upload.chunks[index] = chunk
        if self.forgets_uploads_after is not None and len(upload.chunks) >= self.forgets_uploads_after:
            self.forgets_uploads_after = None
            self._uploads.clear()
        return {"received": index}

    def _finalize(self, argument: dict[str, Any]) -> Any:
        _checked(argument, uploadId=str, totalChunks=int, filename=str, metadata=dict)
        upload = self._known(argument)
        if sorted(upload.chunks) != list(range(argument["totalChunks"])):
            raise RefusalError(400, "BAD_REQUEST", f"only chunks {sorted(upload.chunks)} are here")
        del self._uploads[argument["uploadId"]]
        content = b"".join(chunk for _, chunk in sorted(upload.chunks.items()))
        return {"file": {"fileUrl": self._store(argument["filename"], content)}}

    def _order(self, argument: dict[str, Any]) -> Any:
        _checked(argument, modelFileUrl=str, title=str, description=str, expirationType=str)
        if argument["modelFileUrl"] not in self.files:
            raise RefusalError(400, "BAD_REQUEST", "no such file")
        number = next(self._numbers)
        self.orders[f"share{number}"] = argument
        return {"id": number, "shareId": f"share{number}"}

    def _known(self, argument: dict[str, Any]) -> Upload:
        upload = self._uploads.get(argument["uploadId"])
        if upload is None:
            raise RefusalError(404, "NOT_FOUND", "no such upload")
        return upload

    def _store(self, name: str, content: bytes) -> str:
        url = f"/share/file/{next(self._numbers)}_{name}"
        self.files[url] = content
        return url


def _checked(argument: Any, **types: type) -> dict[str, Any]:
    for name, type_ in types.items():
        if not isinstance(argument, dict) or not isinstance(argument.get(name), type_):
            raise RefusalError(400, "BAD_REQUEST", f"{name} must be {type_.__name__}")
    assert isinstance(argument, dict)
    return argument


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise RefusalError(400, "BAD_REQUEST", "data is not base64") from None


def _handler(server: GsplatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not parts.path.startswith("/share/trpc/order.") or parts.query != "batch=1":
                self._send(404, b"<html>not found</html>")
                return
            procedure = parts.path.removeprefix("/share/trpc/order.")
            server.calls.append(procedure)
            server.headers.append(dict(self.headers))
            if procedure in server.hanging:
                server.is_closing.wait(60)
                self.close_connection = True
            elif _take(server.failures, procedure):
                self._send(503, b"<html>busy</html>")
            elif _take(server.refusals, procedure):
                self._send_error(procedure, RefusalError(403, "FORBIDDEN", "not for you\x1b[31m"))
            else:
                self._do(procedure, body)

        def _do(self, procedure: str, body: bytes) -> None:
            if self.headers.get("Content-Type") != "application/json":
                self._send_error(procedure, RefusalError(415, "UNSUPPORTED_MEDIA_TYPE", "JSON only"))
                return
            try:
                data = server.call(procedure, json.loads(body)["0"])
            except RefusalError as error:
                self._send_error(procedure, error)
                return
            answer = json.dumps([{"result": {"data": {"json": data} if server.wraps else data}}]).encode()
            if _take(server.lost, procedure):
                self.close_connection = True
            elif _take(server.garbage, procedure):
                self._send(200, b"<html>please log in to this network</html>")
            elif procedure in server.dripping:
                self._drip(answer)
            else:
                self._send(200, answer)

        def _drip(self, answer: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer) + 1000))
            self.end_headers()
            while not server.is_closing.wait(0.05):
                try:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                except OSError:
                    break
            self.close_connection = True

        def _send_error(self, procedure: str, error: RefusalError) -> None:
            about = {"code": error.code, "httpStatus": error.status, "path": f"order.{procedure}"}
            told: dict[str, Any] = {"message": str(error), "code": -32600, "data": about}
            self._send(error.status, json.dumps([{"error": {"json": told} if server.wraps else told}]).encode())

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 503 and server.retry_after is not None:
                self.send_header("Retry-After", server.retry_after)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def _take(counts: Counter[str], name: str) -> bool:
    if counts[name] <= 0:
        return False
    counts[name] -= 1
    return True

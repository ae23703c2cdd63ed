"""A stub of the Hugging Face hub on the loopback, for the real client `huggingface_hub`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

SMALL = 1000
"""Size in bytes below which text is a part of the commit; all other content is uploaded before."""

FIRST_FILES = {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}
"""Files that the real hub puts into a new repository."""


@dataclass(frozen=True)
class Stored:
    """Content of a file, which commits share.

    Attributes:
        content: The bytes.
        is_lfs: Whether the file was uploaded before its commit, which decides its id.
        oid: Git's id of the blob.
        sha256: SHA-256 of the content.
    """

    content: bytes
    is_lfs: bool
    oid: str = field(init=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        blob = b"blob %d\0" % len(self.content) + self.content
        object.__setattr__(self, "oid", hashlib.sha1(blob).hexdigest())
        object.__setattr__(self, "sha256", hashlib.sha256(self.content).hexdigest())

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A commit.

    Attributes:
        oid: Its id, 40 hexadecimal digits.
        message: Its summary, and after an empty line its description.
        time: Unix time at which it was made.
        stored: All files after the commit, by path.
    """

    oid: str
    message: str
    time: float
    stored: dict[str, Stored] = field(repr=False)


@dataclass
class Repo:
    """A repository.

    Attributes:
        commits: The history, oldest first.
        uploads: Uploaded content by SHA-256.
    """

    commits: list[Commit] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def add(self, message: str, changed: Iterable[str], stored: dict[str, Stored]) -> Commit:
        parent = self.head.oid if self.commits else None
        contents = [(path, stored[path].oid if path in stored else None) for path in sorted(set(changed))]
        oid = hashlib.sha1(repr((len(self.commits), parent, message, contents)).encode()).hexdigest()
        commit = Commit(oid, message, time.time(), stored)
        self.commits.append(commit)
        return commit

    def at(self, revision: str) -> Commit:
        if revision in ("main", "refs/heads/main", "HEAD"):
            return self.head
        found = [commit for commit in self.commits if commit.oid == revision]
        if not found:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]


@dataclass
class Answer:
    """An answer to the client."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


class RefusedError(Exception):
    """An error, with the words and headers of the real hub."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers["X-Error-Message"] = message.encode("ascii", "replace").decode()
        if code is not None:
            headers["X-Error-Code"] = code
        self.answer = Answer({"error": message}, status, headers)


class LostError(Exception):
    """The request is done, but its answer is lost."""


@dataclass
class Request:
    """A request, with the parts of its path that the route names."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    parts: dict[str, str | None] = field(default_factory=dict)

    def part(self, name: str) -> str:
        return unquote(self.parts[name] or "")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def repo_type(self) -> str:
        return "dataset" if (self.parts["type"] or "").startswith("dataset") else "model"


REPO = r"(?P<repo>[^/]+/[^/]+?)"
API = rf"/api/(?P<type>datasets|models)/{REPO}"
GIT = rf"/(?P<type>datasets/)?{REPO}"


class HubServer:
    """Repositories of datasets and models in memory, each with a history without branches, behind a real socket.

    A commit that names a parent is refused with 412 unless the parent is the newest commit. Like at the real hub, a new
    repository has one commit, with `.gitattributes`. Writing needs a token, which may be any.

    The stub does not support xet. `environment` turns xet off for other processes; this process needs
    `monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)`.

    Attributes:
        url: Address, without a slash at the end.
        lose_answers: Number of the next commits that are made, but whose connection ends without an answer.
        fail: Number of the next commits that are not made, and answered with 503.
        fail_uploads: Number of the next uploads that are answered with 409, which the library does not repeat.
        rate_limit_after: Number of commits after which others are answered with 429, until `reset`; None is no limit.
        retry_after_s: Seconds in the header Retry-After of an answer with 429.
        page: Maximum entries of a listing in one answer; the client asks for the rest.
        seen: Method and path, with its query, of all requests so far.
    """

    def __init__(self) -> None:
        self.lose_answers = 0
        self.fail = 0
        self.fail_uploads = 0
        self.rate_limit_after: int | None = None
        self.retry_after_s = 1
        self.page = 1000
        self.seen: list[tuple[str, str]] = []
        self._repos: dict[tuple[str, str], Repo] = {}
        self._done = 0
        self._lock = threading.RLock()
        self._routes = self._made_routes()
        self._server = _Server(("127.0.0.1", 0), _handler_for(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make the client in another process use this stub."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}

    def create(self, repo: str, repo_type: str = "dataset") -> None:
        """Create an empty repository unless it exists."""
        with self._lock:
            if (repo_type, repo) not in self._repos:
                made = self._repos[repo_type, repo] = Repo()
                made.add(
                    "initial commit", FIRST_FILES, {path: Stored(text, False) for path, text in FIRST_FILES.items()}
                )

    def commits(self, repo: str, repo_type: str = "dataset") -> list[Commit]:
        """Return the history, oldest first; the first commit is that of the new repository."""
        with self._lock:
            return list(self._repos[repo_type, repo].commits)

    def files(self, repo: str, repo_type: str = "dataset", revision: str = "main") -> dict[str, bytes]:
        """Return the content of all files by path, including `.gitattributes`."""
        with self._lock:
            stored = self._repos[repo_type, repo].at(revision).stored
        return {path: file.content for path, file in stored.items()}

    def reset(self) -> None:
        """Reset the counter of the rate limit."""
        with self._lock:
            self._done = 0

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request.

        Raises:
            LostError: The answer is to be lost.
        """
        try:
            with self._lock:
                self.seen.append((request.method, request.path))
                for method, pattern, needs_token, act in self._routes:
                    match = pattern.fullmatch(request.path.partition("?")[0])
                    if match and method == request.method:
                        if needs_token and not request.headers.get("authorization", "").startswith("Bearer "):
                            raise RefusedError(401, "Invalid username or password.")
                        request.parts = match.groupdict()
                        return act(request)
            raise RefusedError(
                404, f"Sorry, we can't find the page you are looking for: {request.method} {request.path}"
            )
        except RefusedError as refused:
            return refused.answer

    def _made_routes(self) -> list[tuple[str, re.Pattern[str], bool, Callable[[Request], Answer]]]:
        table: list[tuple[str, str, bool, Callable[[Request], Answer]]] = [
            ("POST", "/api/validate-yaml", False, lambda _: Answer({"errors": [], "warnings": []})),
            ("POST", "/api/repos/create", True, self._create),
            ("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?", False, self._info),
            ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", False, self._tree),
            ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", False, self._paths_info),
            ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", True, self._preupload),
            ("POST", rf"{API}/commit/(?P<revision>[^/]+)", True, self._commit),
            ("POST", rf"{GIT}\.git/info/lfs/objects/batch", True, self._lfs_batch),
            ("POST", rf"{GIT}\.git/info/lfs/objects/verify", True, self._lfs_verify),
            ("PUT", rf"/lfs/(?P<type>dataset|model)/{REPO}/(?P<oid>[0-9a-f]{{64}})", False, self._lfs_put),
            ("GET", rf"{GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", False, self._resolve),
            ("HEAD", rf"{GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", False, self._resolve),
        ]
        return [(method, re.compile(pattern), needs_token, act) for method, pattern, needs_token, act in table]

    def _repo(self, request: Request) -> Repo:
        found = self._repos.get((request.repo_type, request.part("repo")))
        if found is None:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return found

    def _link(self, repo_type: str, repo: str) -> str:
        return f"{self.url}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"

    def _create(self, request: Request) -> Answer:
        asked = request.json
        repo = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        repo_type = asked.get("type") or "model"
        url = self._link(repo_type, repo)
        if (repo_type, repo) in self._repos:
            return Answer({"error": f"You already created this {repo_type} repo", "url": url}, 409)
        self.create(repo, repo_type)
        return Answer({"url": url, "name": repo, "id": repo})

    def _info(self, request: Request) -> Answer:
        repo = self._repo(request)
        commit = repo.at(request.part("revision") or "main")
        siblings: list[dict[str, Any]] = []
        for path, file in sorted(commit.stored.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if request.query.get("blobs") == "true":
                sibling |= {"size": len(file.content), "blobId": file.oid}
                if file.is_lfs:
                    sibling["lfs"] = {"size": len(file.content), "sha256": file.sha256, "pointerSize": 134}
            siblings.append(sibling)
        name = request.part("repo")
        about = {"id": name, "author": name.split("/")[0], "private": False, "gated": False, "disabled": False}
        times = {"createdAt": _date(repo.commits[0].time), "lastModified": _date(commit.time)}
        return Answer(
            {**about, **times, "sha": commit.oid, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
        )

    def _tree(self, request: Request) -> Answer:
        commit = self._repo(request).at(request.part("revision"))
        top = request.part("path").strip("/")
        below = f"{top}/" if top else ""
        is_recursive = request.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, file in commit.stored.items():
            if not path.startswith(below):
                continue
            names = path[len(below) :].split("/")
            for depth in range(1, len(names) if is_recursive else min(len(names), 2)):
                folder = below + "/".join(names[:depth])
                entries[folder] = _folder_entry(commit, folder)
            if is_recursive or len(names) == 1:
                entries[path] = _file_entry(path, file)
        if top and not entries:
            raise RefusedError(404, f"{top} does not exist on {request.part('revision')}", "EntryNotFound")
        return self._paged(request, [entries[path] for path in sorted(entries)])

    def _paths_info(self, request: Request) -> Answer:
        commit = self._repo(request).at(request.part("revision"))
        if request.headers.get("content-type", "").startswith("application/json"):
            paths = list(request.json["paths"])
        else:
            paths = parse_qs(request.body.decode()).get("paths", [])
        entries = []
        for path in paths:
            if path in commit.stored:
                entries.append(_file_entry(path, commit.stored[path]))
            elif any(other.startswith(f"{path.rstrip('/')}/") for other in commit.stored):
                entries.append(_folder_entry(commit, path.rstrip("/")))
        return Answer(entries)

    def _paged(self, request: Request, entries: list[dict[str, Any]]) -> Answer:
        start = int(request.query.get("cursor", "0"))
        headers = {}
        if start + self.page < len(entries):
            query = urlencode({**request.query, "cursor": start + self.page})
            headers["Link"] = f'<{self.url}{request.path.partition("?")[0]}?{query}>; rel="next"'
        return Answer(entries[start : start + self.page], headers=headers)

    def _preupload(self, request: Request) -> Answer:
        stored = self._repo(request).at(request.part("revision")).stored
        files = []
        for file in request.json["files"]:
            path, size = file["path"], file["size"]
            is_lfs = size >= SMALL or not _is_text(base64.b64decode(file["sample"]))
            entry = {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            if path in stored:
                entry["oid"] = stored[path].etag
            files.append(entry)
        return Answer({"files": files})

    def _lfs_batch(self, request: Request) -> Answer:
        repo, name = self._repo(request), request.part("repo")
        root = f"{self._link(request.repo_type, name)}.git/info/lfs/objects"
        objects = []
        for asked in request.json["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repo.uploads:
                upload = {"href": f"{self.url}/lfs/{request.repo_type}/{name}/{asked['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{root}/verify"}}
            objects.append(entry)
        return Answer({"transfer": "basic", "objects": objects, "hash_algo": "sha256"})

    def _lfs_put(self, request: Request) -> Answer:
        with self._lock:
            if self.fail_uploads > 0:
                self.fail_uploads -= 1
                raise RefusedError(409, "Conflict")
        if hashlib.sha256(request.body).hexdigest() != request.part("oid"):
            raise RefusedError(400, "The content does not have the SHA-256 that it was announced with.")
        self._repo(request).uploads[request.part("oid")] = request.body
        return Answer(b"", headers={"ETag": f'"{request.part("oid")}"'})

    def _lfs_verify(self, request: Request) -> Answer:
        content = self._repo(request).uploads.get(request.json["oid"])
        if content is None or len(content) != request.json["size"]:
            raise RefusedError(404, "The object does not exist or has another size.")
        return Answer({})

    def _commit(self, request: Request) -> Answer:
        if self.fail > 0:
            self.fail -= 1
            raise RefusedError(503, "Service unavailable")
        if self.rate_limit_after is not None and self._done >= self.rate_limit_after:
            message = "You have exceeded the rate limit for repository commits. Retry later."
            raise RefusedError(429, message, Retry_After=str(self.retry_after_s))
        repo = self._repo(request)
        if request.part("revision") not in ("main", "refs/heads/main"):
            raise RefusedError(404, f"Invalid rev id: {request.part('revision')}", "RevisionNotFound")
        if request.query.get("create_pr"):
            raise RefusedError(400, "Pull requests are not supported.")
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise RefusedError(400, "A commit begins with a header that has a summary.")
        header = lines[0]["value"]
        if not repo.head.oid.startswith(header.get("parentCommit") or ""):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        stored = dict(repo.head.stored)
        changed: set[str] = set()
        for line in lines[1:]:
            changed |= _apply(line["key"], line["value"], stored, repo.uploads)
        message = "\n\n".join(text for text in (header["summary"], header.get("description")) if text)
        commit = repo.add(message, changed, stored)
        self._done += 1
        if self.lose_answers > 0:
            self.lose_answers -= 1
            raise LostError
        url = f"{self._link(request.repo_type, request.part('repo'))}/commit/{commit.oid}"
        return Answer({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, request: Request) -> Answer:
        commit = self._repo(request).at(request.part("revision"))
        file = commit.stored.get(request.part("path"))
        headers = {"X-Repo-Commit": commit.oid}
        if file is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if asked is None or not any(asked.groups()):
            return Answer(file.content, headers=headers)
        size = len(file.content)
        if asked[1]:
            start, end = int(asked[1]), min(int(asked[2] or size), size - 1)
        else:
            start, end = max(size - int(asked[2]), 0), size - 1
        if start > end:
            raise RefusedError(416, "Range not satisfiable", Content_Range=f"bytes */{size}")
        return Answer(file.content[start : end + 1], 206, {**headers, "Content-Range": f"bytes {start}-{end}/{size}"})


def _apply(key: str, value: dict[str, Any], stored: dict[str, Stored], uploads: dict[str, bytes]) -> set[str]:
    """Apply one operation of a commit to the files, and return the paths that it wrote or deleted."""
    path = value["path"]
    if key == "file":
        stored[path] = Stored(base64.b64decode(value["content"]), is_lfs=False)
        return {path}
    if key == "lfsFile":
        if value["oid"] not in uploads:
            raise RefusedError(400, f"Your push was rejected because the LFS object of {path} does not exist.")
        stored[path] = Stored(uploads[value["oid"]], is_lfs=True)
        return {path}
    if key == "deletedFile":
        gone = {path} & set(stored)
    elif key == "deletedFolder":
        gone = {other for other in stored if other.startswith(f"{path.rstrip('/')}/")}
    else:
        raise RefusedError(400, f"Unknown operation: {key}")
    if not gone:
        raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
    for other in gone:
        del stored[other]
    return gone


def _file_entry(path: str, file: Stored) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.oid}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


def _folder_entry(commit: Commit, path: str) -> dict[str, Any]:
    oid = hashlib.sha1(f"{commit.oid} {path}".encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _is_text(sample: bytes) -> bool:
    """Return whether the beginning of a file is text; its last character may be cut."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(sample) - 3 and error.reason == "unexpected end of data"
    return b"\0" not in sample


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # many clients come at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors of this server, but not clients that disconnect."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler_for(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            query = dict(parse_qsl(urlsplit(self.path).query))
            request = Request(self.command, self.path, query, headers, self.content())
            try:
                answer = hub.answer(request)
            except LostError:
                return
            body = answer.body
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

        def content(self) -> bytes:
            """Read the body, which is chunked if the client does not know its length."""
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def date_time_string(self, timestamp: float | None = None) -> str:
            """Return the time by the system's clock, which tests that change a client's clock leave alone."""
            return super().date_time_string(timestamp or int(time.clock_gettime(time.CLOCK_REALTIME)))

        def log_message(self, *args: Any) -> None:
            pass

    return Handler

"""The bucket for large results, against a stand-in for S3."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import OutputError
from sharp_cog.serving.bucket import store
from sharp_cog.serving.runpod import create_handler
from tests.gated import Gated


class Bucket(http.server.ThreadingHTTPServer):
    """A server with as much of S3 as the upload of an object needs."""

    def __init__(self, status: int = 200) -> None:
        self.objects: dict[str, bytes] = {}
        bucket = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=key/")
                if "aws-chunked" in self.headers.get("Content-Encoding", ""):
                    size = int(body.partition(b"\r\n")[0].partition(b";")[0], 16)
                    body = body.partition(b"\r\n")[2][:size]
                if status == 200:
                    bucket.objects[urlsplit(self.path).path] = body
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.send_header("ETag", '"1"')
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def settings(self) -> ServiceSettings:
        return replace(
            ServiceSettings(),
            bucket_endpoint_url=f"http://127.0.0.1:{self.server_address[1]}",
            bucket_access_key_id="key",
            bucket_secret_access_key="sesame",
            bucket_name="splats",
        )


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as found:
        yield found
        found.shutdown()


def test_a_file_is_stored_behind_a_signed_link(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(b"splat")
    link = store(tmp_path / "a.ply", "job.ply", "model/ply", bucket.settings())
    assert urlsplit(link).path == "/splats/job.ply"
    assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == [str(7 * 24 * 3600)]
    assert bucket.objects == {"/splats/job.ply": b"splat"}
    assert "sesame" not in link


def test_the_worker_stores_its_results_and_names_them_after_the_job(bucket: Bucket) -> None:
    handler = create_handler(Gated(), bucket.settings())
    one, two, three = (base64.b64encode(content).decode() for content in (b"a", b"ab", b"abc"))
    single = handler({"id": "job-1", "input": {"image": three}})
    images = [{"image": two}, {"image": "%"}, {"image": one, "format": "spz"}]
    several = handler({"id": "job-2", "input": {"images": images}})
    results = [single, *(result for result in several["results"] if result["status"] == "success")]
    paths = ["/splats/job-1.ply", "/splats/job-2_0.ply", "/splats/job-2_2.spz"]
    assert [urlsplit(result["url"]).path for result in results] == paths
    assert list(bucket.objects) == paths
    assert b"element vertex 3\n" in bucket.objects["/splats/job-1.ply"]
    assert "ply" not in single


def test_a_bucket_that_refuses_is_an_output_error_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(b"splat")
    with Bucket(status=403) as refusing:
        with pytest.raises(OutputError, match=r"the bucket splats refuses job\.ply") as caught:
            store(tmp_path / "a.ply", "job.ply", "model/ply", refusing.settings())
        answer = create_handler(Gated(), refusing.settings())({"id": "job", "input": {"image": "YWJj"}})
        refusing.shutdown()
    assert "sesame" not in str(caught.value)
    assert answer == {"error": "the service failed; its log says why", "code": "cannot_write"}

"""The bucket for large results, against a stand-in for S3."""

from __future__ import annotations

import base64
import http.server
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import NotInstalledError, OutputError
from sharp_cog.serving.bucket import client_of, region_of, store
from sharp_cog.serving.http import create_app
from sharp_cog.serving.runpod import create_handler
from tests.gated import Gated
from tests.service import serving


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
        return self.settings_of(f"http://127.0.0.1:{self.server_address[1]}")

    @staticmethod
    def settings_of(address: str) -> ServiceSettings:
        return replace(
            ServiceSettings(),
            bucket_endpoint_url=address,
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


@pytest.mark.parametrize(
    ("address", "region"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://splats.s3.ap-southeast-2.amazonaws.com", "ap-southeast-2"),
        ("https://s3-us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://0123abc.r2.cloudflarestorage.com", "auto"),
        ("https://0123abc.eu.r2.cloudflarestorage.com", "auto"),
        ("https://storage.googleapis.com", "auto"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://s3.eu-central-2.wasabisys.com", "eu-central-2"),
        ("https://s3.fr-par.scw.cloud", "fr-par"),
        ("https://s3.gra.io.cloud.ovh.net", "gra"),
        ("https://nyc3.digitaloceanspaces.com", "nyc3"),
        ("https://fsn1.your-objectstorage.com", "fsn1"),
        ("http://minio:9000", "us-east-1"),
        ("https://s3.example.com", "us-east-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
    ],
)
def test_requests_are_signed_for_the_region_of_the_address(address: str, region: str) -> None:
    assert region_of(address) == region
    settings = replace(Bucket.settings_of(address), bucket_region="")
    assert scope_of(settings) == region
    assert scope_of(replace(settings, bucket_region="eu-north-1")) == "eu-north-1"


def scope_of(settings: ServiceSettings) -> str:
    """Return the region in the signature of a link, without asking a store."""
    link = client_of(settings).generate_presigned_url("get_object", Params={"Bucket": "splats", "Key": "a"})
    # KEY/DATE/REGION/SERVICE/aws4_request, as Signature Version 4 prescribes.
    _, _, region, service, end = parse_qs(urlsplit(link).query)["X-Amz-Credential"][0].split("/")
    assert (service, end) == ("s3", "aws4_request")
    return str(region)


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "https://s3.eu-central-1.amazonaws.com/splats/a"),
        ("https://splats.s3.eu-central-1.amazonaws.com", "https://s3.eu-central-1.amazonaws.com/splats/a"),
        ("http://minio:9000", "http://minio:9000/splats/a"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000/splats/a"),
    ],
)
def test_the_name_of_the_bucket_is_in_a_link_once(address: str, link: str) -> None:
    client = client_of(Bucket.settings_of(address))
    signed = client.generate_presigned_url("get_object", Params={"Bucket": "splats", "Key": "a"})
    assert signed.partition("?")[0] == link


def test_a_splat_of_the_http_service_goes_to_the_bucket_unless_its_type_is_asked_for(bucket: Bucket) -> None:
    with serving(Gated, bucket.settings()) as service:

        def post(path: str, **headers: str) -> requests.Response:
            found = requests.post(f"{service.url}{path}", files={"file": b"abc"}, headers=headers, timeout=30)
            assert found.status_code == 200, found.text
            return found

        told = post("/predict/ply").json()
        assert told["metadata"]["num_gaussians"] == 3
        (stored,) = bucket.objects.items()
        assert urlsplit(told["url"]).path == stored[0]
        assert stored[1] == post("/predict/ply", Accept="application/octet-stream").content
        assert post("/predict/glb", Accept="model/gltf-binary").content.startswith(b"glTF")
        assert len(post("/predict").json()["positions"]) == 3
        assert len(bucket.objects) == 1
        described = requests.get(f"{service.url}/openapi.json", timeout=10).json()["paths"]["/predict/{output_format}"]
        assert "url" in described["post"]["responses"]["200"]["content"]["application/json"]["schema"]["properties"]


def test_a_bucket_that_refuses_a_splat_of_the_http_service_is_an_error_without_secrets() -> None:
    with Bucket(status=403) as refusing, serving(Gated, refusing.settings()) as service:
        answer = requests.post(f"{service.url}/predict/ply", files={"file": b"abc"}, timeout=30)
        refusing.shutdown()
    assert (answer.status_code, answer.json()["code"]) == (500, "cannot_write")
    assert "sesame" not in answer.text


def test_a_bucket_without_its_package_is_refused_at_the_start(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "sharp_cog.serving.bucket")
    with pytest.raises(NotInstalledError, match=r"pip install -e '\.\[bucket\]'"):
        create_app(Gated, bucket.settings())

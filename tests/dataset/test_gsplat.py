"""Sharing at gsplat.org, against a server on loopback."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData

from sharp_cog import formats
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.options import OutputOptions
from sharp_cog.dataset import gsplat as gsplat_module
from sharp_cog.dataset.gsplat import Gsplat
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import SettingError
from sharp_cog.formats import FORMATS
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from tests.dataset.client import run_of
from tests.dataset.gsplat_server import MAX_SINGLE_BYTES, GsplatServer
from tests.splats import random_gaussians

PHOTO = Photo(
    id="beach-1",
    where="/home/me/private/beach.jpg",
    row={
        "alt_description": "a beach",
        "description": "private/beach.jpg",
        "user_name": "Ann",
        "unsplash_url": "https://unsplash.com/photos/1?utm_source=me",
    },
)
CAMERA = Camera(width=640, height=480, focal_length_px=500.0)
UPLOAD_NAMES = ("chunkedUploadInitiate", "chunkedUploadChunk", "chunkedUploadFinalize")


@pytest.fixture
def server() -> Iterator[GsplatServer]:
    server = GsplatServer()
    yield server
    server.close()


def gsplat_of(server: GsplatServer, *, num_gaussians: int = 50, **more: Any) -> Gsplat:
    values = {"expiration_type": "1week", "sleep": lambda seconds: None, **more}
    return Gsplat(server.url, num_gaussians=num_gaussians, **values)


def splats_of(folder: Path, gaussians: Gaussians, *names: str) -> dict[str, Path]:
    return {
        name: formats.write(
            folder / f"{PHOTO.id}{FORMATS[name].suffix}", gaussians, CAMERA, OutputOptions(output_format=name)
        )
        for name in names
    }


def large_splats(folder: Path) -> dict[str, Path]:
    """A .ply file that needs more than two chunks."""
    path = folder / f"{PHOTO.id}.ply"
    path.write_bytes(np.random.default_rng(0).bytes(2 * gsplat_module.CHUNK_BYTES + 12_345))
    return {"ply": path}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat_module, "CHUNK_BYTES", 100_000)
    monkeypatch.setattr(gsplat_module, "MAX_SINGLE_BYTES", 150_000)


def test_a_simplified_splat_is_shared_and_its_address_is_reported(server: GsplatServer, tmp_path: Path) -> None:
    # Fifty places, far from each other, with two Gaussians at each of them: these are merged.
    gaussians = random_gaussians(100)
    places = torch.arange(50.0).repeat_interleave(2)
    gaussians.means[:] = torch.stack([places, torch.zeros(100), torch.full((100,), 5.0)], dim=1)
    gaussians.scales[:] = 0.01
    gaussians.opacities[:] = 0.9
    gaussians.colors_linear[:] = 0.5
    told = gsplat_of(server)(PHOTO, splats_of(tmp_path, gaussians, "ply", "sog"))
    (share_id,) = server.orders
    assert told == {
        "gsplat_url": f"{server.url}/viewer/{share_id}",
        "gsplat_share_id": share_id,
        "gsplat_order_id": share_id.removeprefix("share"),
        "gsplat_model_file_url": server.orders[share_id]["modelFileUrl"],
        "gsplat_error": "",
    }
    assert server.calls == ["uploadGaussianSplat", "createOrder"]
    assert server.orders[share_id] == {
        "modelFileUrl": told["gsplat_model_file_url"],
        "title": "a beach",
        "description": "Photo by Ann on Unsplash: https://unsplash.com/photos/1?utm_source=me",
        "expirationType": "1week",
    }
    (content,) = server.files.values()
    small = tmp_path / "beach-1.small.gsplat.ply"
    assert content == small.read_bytes()
    vertices = PlyData.read(str(small))["vertex"]
    kept = np.stack([vertices[name] for name in ("x", "y", "z")], axis=-1)
    np.testing.assert_allclose(kept[np.argsort(kept[:, 0])], gaussians.means[::2].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["ply", "apple_ply", "spz", "compressed_ply", "splat"])
def test_small_splat_is_made_from_any_readable_format(server: GsplatServer, tmp_path: Path, name: str) -> None:
    told = gsplat_of(server)(PHOTO, splats_of(tmp_path, random_gaussians(200), name))
    assert told["gsplat_error"] == ""
    assert len(PlyData.read(str(tmp_path / "beach-1.small.gsplat.ply"))["vertex"].data) == 50
    assert list(server.files.values()) == [(tmp_path / "beach-1.small.gsplat.ply").read_bytes()]


def test_unreadable_splat_is_reported(server: GsplatServer, tmp_path: Path) -> None:
    told = gsplat_of(server)(PHOTO, splats_of(tmp_path, random_gaussians(10), "sog"))
    assert "ply, apple_ply" in told["gsplat_error"]
    assert server.calls == []
    (tmp_path / "beach-1.ply").write_bytes(b"text")
    told = gsplat_of(server)(PHOTO, {"ply": tmp_path / "beach-1.ply"})
    assert told["gsplat_error"].startswith("invalid_splat: ")


def test_whole_splat_is_uploaded_in_chunks_unchanged(server: GsplatServer, tmp_path: Path) -> None:
    splats = large_splats(tmp_path)
    told = gsplat_of(server, uses_small_ply=False)(PHOTO, splats)
    assert told["gsplat_error"] == ""
    content = server.files[told["gsplat_model_file_url"]]
    assert hashlib.sha256(content).hexdigest() == hashlib.sha256(splats["ply"].read_bytes()).hexdigest()
    assert server.calls == [UPLOAD_NAMES[0], *3 * [UPLOAD_NAMES[1]], UPLOAD_NAMES[2], "createOrder"]
    assert not list(tmp_path.glob("*small*"))


@pytest.mark.parametrize(("size", "is_whole"), [(MAX_SINGLE_BYTES - 1, True), (MAX_SINGLE_BYTES, False)])
def test_one_call_is_used_under_twenty_mebibytes(
    server: GsplatServer, tmp_path: Path, size: int, is_whole: bool
) -> None:
    path = tmp_path / "beach-1.ply"
    path.write_bytes(bytes(size))
    told = gsplat_of(server, uses_small_ply=False)(PHOTO, {"ply": path})
    assert len(server.files[told["gsplat_model_file_url"]]) == size
    assert ("uploadGaussianSplat" in server.calls) is is_whole


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fault", ["failures", "lost", "garbage"])
@pytest.mark.parametrize("wraps", [False, True])
def test_passing_faults_are_retried(server: GsplatServer, tmp_path: Path, fault: str, wraps: bool) -> None:
    """Server errors, connections that break after the call, and HTML pages, at every call."""
    server.wraps = wraps
    for name in (*UPLOAD_NAMES, "createOrder"):
        getattr(server, fault)[name] = 2
    splats = large_splats(tmp_path)
    told = gsplat_of(server, uses_small_ply=False)(PHOTO, splats)
    assert told["gsplat_error"] == ""
    content = server.files[told["gsplat_model_file_url"]]
    assert hashlib.sha256(content).digest() == hashlib.sha256(splats["ply"].read_bytes()).digest()
    assert told["gsplat_share_id"] in server.orders


@pytest.mark.usefixtures("small_chunks")
def test_forgotten_upload_is_restarted(server: GsplatServer, tmp_path: Path) -> None:
    server.forgets_uploads_after = 2
    splats = large_splats(tmp_path)
    told = gsplat_of(server, uses_small_ply=False)(PHOTO, splats)
    assert told["gsplat_error"] == ""
    assert server.files[told["gsplat_model_file_url"]] == splats["ply"].read_bytes()
    assert server.calls.count("chunkedUploadInitiate") == 2


def test_refusal_is_not_retried(server: GsplatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.refusals["createOrder"] = 1
    told = gsplat_of(server)(PHOTO, splats_of(tmp_path, random_gaussians(60), "ply"))
    assert told == {"gsplat_error": told["gsplat_error"]}
    assert told["gsplat_error"].startswith("gsplat_failed: 127.0.0.1 answered 403 (not for you")
    assert server.calls == ["uploadGaussianSplat", "createOrder"]
    assert "beach-1 is not shared" in caplog.text
    assert "\x1b" not in caplog.text


def test_lasting_failure_is_given_up(server: GsplatServer, tmp_path: Path) -> None:
    server.failures["uploadGaussianSplat"] = 100
    told = gsplat_of(server)(PHOTO, splats_of(tmp_path, random_gaussians(60), "ply"))
    assert "answered 503 to uploadGaussianSplat, 4 times" in told["gsplat_error"]
    assert server.calls == 4 * ["uploadGaussianSplat"]


@pytest.mark.parametrize("after", ["7", "100000"])
def test_retry_after_is_honoured_within_reason(server: GsplatServer, tmp_path: Path, after: str) -> None:
    waited: list[float] = []
    server.failures["createOrder"], server.retry_after = 1, after
    told = gsplat_of(server, sleep=waited.append)(PHOTO, splats_of(tmp_path, random_gaussians(60), "ply"))
    assert waited == ([7.0] if after == "7" else [])
    assert bool(told["gsplat_error"]) is (after != "7")


@pytest.mark.parametrize("kind", ["hanging", "dripping"])
def test_hanging_service_costs_bounded_time(server: GsplatServer, tmp_path: Path, kind: str) -> None:
    getattr(server, kind).add("uploadGaussianSplat")
    gsplat = gsplat_of(server, deadline_s=1.0, answer_s=0.5)
    start = time.monotonic()
    told = gsplat(PHOTO, splats_of(tmp_path, random_gaussians(60), "ply"))
    assert time.monotonic() - start < 10
    assert "cannot be reached" in told["gsplat_error"]


def test_service_that_is_down_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: GsplatServer
) -> None:
    server.failures["uploadGaussianSplat"] = 12
    gsplat, splats = gsplat_of(server), splats_of(tmp_path, random_gaussians(60), "ply")
    told = [gsplat(PHOTO, splats) for _ in range(5)]
    assert len(server.calls) == 12, "three photographs were tried, four times each"
    assert "nothing is sent for another" in told[-1]["gsplat_error"]
    later = time.monotonic() + gsplat_module.OUTAGE_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert gsplat(PHOTO, splats)["gsplat_url"]


def test_unreachable_service_is_reported(tmp_path: Path, server: GsplatServer) -> None:
    gsplat = gsplat_of(server)
    server.close()
    assert "cannot be reached" in gsplat(PHOTO, splats_of(tmp_path, random_gaussians(60), "ply"))["gsplat_error"]


def test_credentials_of_this_machine_are_not_sent(
    server: GsplatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password sesame\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    gsplat_of(server)(PHOTO, splats_of(tmp_path, random_gaussians(60), "ply"))
    assert server.headers
    assert not any("Authorization" in headers for headers in server.headers)


@pytest.mark.parametrize(
    "base", ["gsplat.org", "ftp://gsplat.org", "https://", "https://[", "https://gsplat.org/?a=1", ""]
)
def test_invalid_address_is_refused(base: str) -> None:
    with pytest.raises(SettingError, match="GSPLAT_BASE"):
        Gsplat(base, expiration_type="1week", num_gaussians=1)


def test_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingError, match="GSPLAT_BASE") as caught:
        Gsplat("https://me:sesame@gsplat.org", expiration_type="1week", num_gaussians=1)
    assert "sesame" not in str(caught.value)


def test_unexpected_exception_does_not_fail_the_photograph(
    server: GsplatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = gsplat_of(server)(PHOTO, {"ply": None})  # type: ignore[dict-item]
    assert told["gsplat_error"]
    assert caplog.records[0].levelno == logging.WARNING
    assert "Traceback" in caplog.messages[0]


def test_threads_can_share_at_once(server: GsplatServer, tmp_path: Path) -> None:
    gsplat = gsplat_of(server)
    told: list[dict[str, str]] = []

    def share(number: int) -> None:
        photo = Photo(id=f"photo{number}", where="")
        path = tmp_path / f"{photo.id}.ply"
        formats.write(path, random_gaussians(60, seed=number), CAMERA, OutputOptions())
        told.append(gsplat(photo, {"ply": path}))

    threads = [threading.Thread(target=share, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({each["gsplat_url"] for each in told}) == 6
    shared = {hashlib.sha256(content).digest() for content in server.files.values()}
    assert shared == {hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.glob("*.small.gsplat.ply")}


def test_run_shares_every_photograph_and_goes_on_after_failures(server: GsplatServer, tmp_path: Path) -> None:
    """The journal holds the address of each shared splat, and the reason where sharing failed."""
    pictures = tmp_path / "in"
    pictures.mkdir()
    for number in range(4):
        # As many Gaussians as it has bytes.
        (pictures / f"photo{number}.png").write_bytes(_png(number))
    server.refusals["createOrder"] = 1
    settings = DatasetSettings(
        input_dir=str(pictures),
        runs_dir=str(tmp_path / "runs"),
        gsplat_upload=True,
        gsplat_base=server.url,
        gsplat_filter_visibility=20,
        upload_workers=1,
    )
    run_of(settings).work()
    journal = Journal(settings.run_dir / "journal.sqlite")
    assert journal.counts() == {"done": 4}
    about = [entry.about for entry in journal.entries("done")]
    assert sorted(bool(each.get("gsplat_url")) for each in about) == [False, True, True, True]
    assert sum("403" in each["gsplat_error"] for each in about) == 1
    assert {each["gsplat_share_id"] for each in about if each.get("gsplat_url")} == set(server.orders)
    for content in server.files.values():
        assert content.startswith(b"ply")
        assert b"element vertex 20\n" in content


def test_sharing_needs_a_readable_format(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    settings = DatasetSettings(
        input_dir=str(tmp_path / "in"), runs_dir=str(tmp_path / "runs"), gsplat_upload=True, formats=("sog",)
    )
    with pytest.raises(SettingError, match="FORMATS is sog"):
        run_of(settings)


def _png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 10 * number, np.uint8)).save(file, "PNG")
    return file.getvalue()

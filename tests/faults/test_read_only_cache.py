"""A read-only cache folder, as in a container image or on a shared volume."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from sharp_cog import Settings
from sharp_cog.cli import main
from sharp_cog.errors import DownloadError
from sharp_cog.runtime import checkpoint, weights
from tests.faults.disks import READ_ONLY_KINDS, mounted, read_only, unchanged
from tests.parity import small_state


@pytest.fixture(params=READ_ONLY_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cache(kind: str) -> Iterator[Path]:
    """Return an empty folder that can be made read-only."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        if kind == "file system":
            yield stack.enter_context(mounted(folder / "cache"))
        else:
            (folder / "cache").mkdir()
            yield folder / "cache"


def settings(cache: Path) -> Settings:
    return Settings(
        cache_dir=cache,
        checkpoint_url="http://127.0.0.1:9/sharp.pt",
        checkpoint_sha256=None,
        device="cpu",
    )


def test_a_checkpoint_in_it_is_used(cache: Path, kind: str) -> None:
    torch.save(small_state(), cache / "sharp.pt")
    with unchanged(cache), read_only(kind, cache):
        found = weights.find(settings(cache))
        assert found.path == cache / "sharp.pt"
        assert found.network(torch.device("cpu")).training is False


def test_without_a_checkpoint_in_it_the_error_has_reason_and_remedy(cache: Path, kind: str) -> None:
    with (
        unchanged(cache),
        read_only(kind, cache),
        pytest.raises(
            DownloadError,
            match=rf"cannot write to {cache}: (Read-only file system|Permission denied): choose another folder with "
            "SHARP_CACHE_DIR",
        ),
    ):
        checkpoint.ensure(settings(cache))


def test_writing_splats_into_it_is_refused_before_anything_is_loaded(
    cache: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / "photo.jpg").write_bytes(b"a picture")
    with unchanged(cache), read_only(kind, cache):
        assert main(["predict", str(cache / "photo.jpg"), "--model", "lift"]) == 1
    assert f"cannot write into the folder {cache}" in capsys.readouterr().err

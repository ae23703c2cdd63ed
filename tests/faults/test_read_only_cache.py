"""A cache that can only be read, as in an image or on a shared volume."""

from __future__ import annotations

import logging
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
from tests.parity import state


@pytest.fixture(params=READ_ONLY_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cache(kind: str) -> Iterator[Path]:
    """An empty folder that can be made read-only."""
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
        cache_weights=True,
    )


def test_a_checkpoint_in_it_is_used_without_a_copy(cache: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(state("tiny"), cache / "sharp.pt")
    with unchanged(cache), read_only(kind, cache), caplog.at_level(logging.WARNING):
        assert checkpoint.ensure(settings(cache)) == cache / "sharp.pt"
        found = weights.find(settings(cache), torch.bfloat16)
        assert found.path == cache / "sharp.pt"
        assert found.network(torch.device("cpu")).training is False
    assert "the converted weights are not kept: cannot write" in caplog.text
    assert weights.find(settings(cache), torch.bfloat16).is_folded, "once it can be written, it is kept"


def test_a_copy_in_it_is_used(cache: Path, kind: str) -> None:
    torch.save(state("tiny"), cache / "sharp.pt")
    copy = weights.find(settings(cache), torch.bfloat16)
    with unchanged(cache), read_only(kind, cache):
        assert weights.find(settings(cache), torch.bfloat16) == copy
        assert copy.open().state.keys()


def test_without_a_checkpoint_in_it_the_reason_and_the_remedy_are_told(cache: Path, kind: str) -> None:
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


def test_splats_cannot_be_written_into_it_which_is_told_before_anything_is_loaded(
    cache: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / "photo.jpg").write_bytes(b"a picture")
    with unchanged(cache), read_only(kind, cache):
        assert main(["predict", str(cache / "photo.jpg"), "--model", "lift"]) == 1
    assert f"cannot write into the folder {cache}" in capsys.readouterr().err

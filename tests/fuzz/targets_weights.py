"""Fuzz targets: checkpoints, and the journals and servers of downloads."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
from pathlib import Path

import torch
from torch import nn

from sharp_cog.errors import CheckpointError, DownloadError
from sharp_cog.files.retry import RetryPolicy
from sharp_cog.runtime import checkpoint
from sharp_cog.runtime.download import Effort, download
from sharp_cog.runtime.download.partial import Partial
from sharp_cog.runtime.download.remote_file import Offer
from tests.fuzz.harness import Target
from tests.fuzz.raw_server import raw, raw_server

OFFER = Offer(num_bytes=1000, takes_ranges=True, validator='"1"')


@functools.cache
def folder() -> Path:
    """Return a folder in memory, for files that are read by their path."""
    shared = Path("/dev/shm")
    for left in shared.glob("sharp_cog_fuzz_*"):  # A killed campaign leaves its folder.
        if not Path("/proc", left.name.rpartition("_")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    path = shared / f"sharp_cog_fuzz_{os.getpid()}"
    path.mkdir(exist_ok=True)
    return path


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def checkpoint_seeds() -> list[bytes]:
    saved = []
    for state in (network().state_dict(), {f"{name}": tensor for name, tensor in network().state_dict().items()}):
        file = io.BytesIO()
        torch.save(state, file)
        saved.append(file.getvalue())
    return saved


def load_checkpoint(content: bytes) -> None:
    """Check that a network that is filled has only numbers that are in the file."""
    path = folder() / "model.pt"
    path.write_bytes(content)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    checkpoint.fill(model, checkpoint.load_state(path))
    for parameter in model.parameters():
        assert parameter.detach().contiguous().numpy().tobytes() in content


def legacy_seed() -> bytes:
    file = io.BytesIO()
    torch.save(network().state_dict(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def refuse_legacy(content: bytes) -> None:
    """Check that the format before torch 1.6, a bare pickle, is always refused."""
    try:
        load_checkpoint(content)
    except CheckpointError:
        return
    assert content[:4] == b"PK\x03\x04"


def journal_seeds() -> list[bytes]:
    key = {"url": "http://a/model.pt", "validator": '"1"', "num_bytes": 1000, "piece_bytes": 100}
    return [json.dumps({**key, "done": done}).encode() for done in ([0, 100, 900], [])]


def resume(content: bytes) -> None:
    """Check that, whatever the journal says, fetched and kept pieces together make the whole file."""
    target = folder() / "resumed.pt"
    (folder() / ".resumed.pt.part").write_bytes(bytes(1000))
    (folder() / ".resumed.pt.part.json").write_bytes(content)
    partial = Partial(target, "http://a/model.pt", 100)
    missing = partial.missing(OFFER, 1000)
    assert set(missing) <= {(start, start + 100) for start in range(0, 1000, 100)}
    assert partial.path.stat().st_size == 1000
    for start, _ in missing:
        partial.add(start)
    assert json.loads((folder() / ".resumed.pt.part.json").read_bytes())["done"] == list(range(0, 1000, 100)), "all"
    partial.discard()


def answer_seeds() -> list[bytes]:
    return [raw(b"weights" * 20, 'ETag: "1"', "Content-Type: application/octet-stream")]


def fetch_weights(content: bytes) -> None:
    server, target = raw_server(), folder() / "fetched.pt"
    server.answer = content
    target.unlink(missing_ok=True)
    effort = Effort(num_connections=1, retries=RetryPolicy(max_tries=1, first_wait_s=0.0), timeout_s=5.0)
    try:
        download(f"{server.url}/fetched.pt", target, sha256=None, effort=effort)
        assert target.stat().st_size > 0
    finally:
        assert not (folder() / ".fetched.pt.part").exists()


TARGETS = (
    Target("checkpoint", checkpoint_seeds, load_checkpoint, (CheckpointError,)),
    Target("checkpoint-legacy", lambda: [legacy_seed()], refuse_legacy, ()),
    Target("download-journal", journal_seeds, resume, ()),
    Target("download-answer", answer_seeds, fetch_weights, (DownloadError,)),
)

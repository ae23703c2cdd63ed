"""Finding, verifying and loading the checkpoint; loading in a process of its own, where memory can be measured."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sharp_cog import checkpoint
from sharp_cog.errors import CheckpointError, CheckpointMissingError
from sharp_cog.serving.settings import CHECKPOINT_SHA256, Settings
from tests.unit.test_download import CONTENT, QUICK, SHA256, Server, server

__all__ = ["server"]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


def state() -> dict[str, torch.Tensor]:
    return {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2), "unused.weight": torch.ones(4)}


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "model.pt")
    return folder / "model.pt"


def test_apples_hash_and_length_are_the_published_ones() -> None:
    assert CHECKPOINT_SHA256 == "94211a75198c47f61fca7d739ba08a215418d8d398d48fddf023baccc24f073d"
    assert checkpoint.CHECKPOINT_BYTES == 2_809_738_232


def test_a_named_file_is_taken_and_must_be_there(tmp_path: Path) -> None:
    path = saved(tmp_path, state())
    assert checkpoint.ensure(Settings(checkpoint=path)) == path
    with pytest.raises(CheckpointMissingError, match=r"nothing\.pt.*unset"):
        checkpoint.locate(Settings(checkpoint=tmp_path / "nothing.pt"))


def test_a_copy_from_apples_tool_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert checkpoint.locate(Settings()) is None
    copy = tmp_path / "hub" / "checkpoints" / "sharp_2572gikvuh.pt"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"weights")
    assert checkpoint.locate(Settings()) == copy


def test_a_missing_checkpoint_is_downloaded_once_with_the_licence_in_the_log(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(cache_dir=tmp_path, checkpoint_url=server.url, checkpoint_sha256=SHA256)
    with caplog.at_level(logging.INFO):
        path = checkpoint.ensure(settings, effort=QUICK)
    assert path == tmp_path / "model.pt"
    assert path.read_bytes() == CONTENT
    assert checkpoint.LICENSE_NOTICE in caplog.messages
    num_requests = len(server.requests)
    assert checkpoint.ensure(settings, effort=QUICK) == path
    assert len(server.requests) == num_requests


def test_verify_compares_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    checkpoint.verify(path, Settings(checkpoint_sha256=SHA256))
    checkpoint.verify(path, Settings(checkpoint_sha256=None))
    with pytest.raises(CheckpointError, match=rf"3,000,000 bytes.*{SHA256}, expected {CHECKPOINT_SHA256}"):
        checkpoint.verify(path, Settings())


def test_fills_a_network_on_the_meta_device(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Small()
    checkpoint.fill(model, checkpoint.load_state(saved(tmp_path, state())), ignore={"unused.weight"})
    assert torch.equal(model.layer.weight, torch.arange(6.0).view(2, 3))
    assert torch.equal(model.layer.bias, torch.ones(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.bias": None}, "layer.bias is missing"),
        ({"other": torch.ones(1)}, "other is unknown"),
        ({"layer.weight": torch.ones(3, 2)}, r"layer.weight has shape \(3, 2\), expected \(2, 3\)"),
    ],
)
def test_other_names_and_shapes_are_refused(change: dict[str, torch.Tensor | None], message: str) -> None:
    changed = {name: tensor for name, tensor in {**state(), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.fill(Small(), changed, ignore={"unused.weight"})


class NotATensor:
    """Something that a pickle of tensors alone must not hold."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a list, not a state dict"),
        ({"state_dict": state()}, "training checkpoint"),
        ({"epoch": 3}, "'epoch', a int"),
        ({"layer.weight": torch.ones(2, 3, dtype=torch.float16)}, r"as torch\.float16"),
        ({"thing": NotATensor()}, "more than tensors"),
    ],
)
def test_what_is_not_a_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_state(saved(tmp_path, content))


def test_files_that_are_not_checkpoints_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, state()).read_bytes()
    cases = {
        "is empty": b"",
        "is a web page": b"<!DOCTYPE html><html>",
        "not a PyTorch checkpoint": b"\x80\x02something",
        "truncated or broken": whole[: len(whole) // 2],
    }
    for message, content in cases.items():
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load_state(tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load_state(tmp_path / "none.pt")


MEASURE = """
import sys
from pathlib import Path
import torch
from torch import nn
from sharp_cog import checkpoint

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

torch.ones(10) @ torch.ones(10)
anonymous, peak = memory("RssAnon"), memory("VmHWM")
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(16)))
checkpoint.fill(model, checkpoint.load_state(Path(sys.argv[1])))
total = sum(float(tensor.sum()) for tensor in model.state_dict().values())
print(memory("RssAnon") - anonymous, memory("VmHWM") - peak, total)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_makes_no_second_copy(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(16)))
    num_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    path = saved(tmp_path, model.state_dict())
    printed = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    anonymous, peak, total = (float(word) for word in printed.stdout.split())
    assert total == pytest.approx(sum(float(tensor.sum()) for tensor in model.state_dict().values()))
    assert anonymous < 0.1 * num_bytes  # The weights stay in the file's pages.
    assert peak < 1.1 * num_bytes

"""Finding, verifying and loading the checkpoint. Loading is measured in a process of its own."""

from __future__ import annotations

import logging
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sharp_cog.config.settings import CHECKPOINT_SHA256, Settings
from sharp_cog.errors import CheckpointError, CheckpointMissingError
from sharp_cog.runtime import checkpoint
from tests.runtime.test_download import CONTENT, QUICK, SHA256, Server, server

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


def test_the_named_file_is_used_and_must_exist(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("path", ["", "/", "/.."])
def test_an_address_without_a_file_name_has_a_default_name_in_the_cache(tmp_path: Path, path: str) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    settings = Settings(cache_dir=tmp_path, checkpoint_url=f"https://example.com{path}")
    assert checkpoint.locate(settings) == tmp_path / "checkpoint.pt"


def test_verify_compares_length_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    checkpoint.verify(path, Settings(checkpoint_sha256=SHA256))
    checkpoint.verify(path, Settings(checkpoint_sha256=None))
    with pytest.raises(CheckpointError, match=rf"3,000,000 bytes.*{SHA256}, expected {'0' * 64}"):
        checkpoint.verify(path, Settings(checkpoint_sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"has 3,000,000 bytes, expected 2,809,738,232"):
        checkpoint.verify(path, Settings())
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        checkpoint.verify(tmp_path / "none.pt", Settings())


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
        ({"layer.weight": torch.ones(2, 3).half()}, r"layer.weight is torch.float16, expected torch.float32"),
    ],
)
def test_other_names_and_shapes_are_refused(change: dict[str, torch.Tensor | None], message: str) -> None:
    changed = {name: tensor for name, tensor in {**state(), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.fill(Small(), changed, ignore={"unused.weight"})


def test_the_error_names_the_first_tensors_of_every_kind_of_difference() -> None:
    other = {f"other{index}": torch.ones(1) for index in range(5)} | {"layer.weight": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.fill(Small(), other)
    assert str(caught.value) == (
        "the checkpoint is not SHARP's: layer.bias is missing; other0 is unknown, other1 is unknown, other2 is unknown "
        "and 2 more; layer.weight has shape (1,), expected (2, 3): use Apple's sharp_2572gikvuh.pt"
    )


class NotATensor:
    """Something that a pickle of tensors alone must not hold."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a list, not a state dict"),
        ({"state_dict": state()}, "training checkpoint"),
        ({"epoch": 3}, "'epoch' of type int"),
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


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_with_a_few_bytes_changed_never_fails_in_another_way(tmp_path: Path) -> None:
    with zipfile.ZipFile(saved(tmp_path, state())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("/data.pkl"))
    chance = random.Random(0)
    num_refused = 0
    for index in range(400):
        changed = bytearray(members[pickled])
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        path = tmp_path / f"{index}.pt"
        with zipfile.ZipFile(path, "w") as archive:  # Stored, with a checksum that fits: the change gets to the pickle.
            for name, content in {**members, pickled: bytes(changed)}.items():
                archive.writestr(name, content)
        try:
            checkpoint.load_state(path)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 200


MEASURE = """
import sys
from pathlib import Path
import torch
from torch import nn
from sharp_cog.runtime import checkpoint

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

# Load something first, so that modules which torch imports late do not count.
torch.save(nn.Linear(2, 2).state_dict(), sys.argv[2])
with torch.device("meta"):
    small = nn.Linear(2, 2)
checkpoint.fill(small, checkpoint.load_state(Path(sys.argv[2])))
small(torch.ones(1, 2)).sum().item()
anonymous, peak = memory("RssAnon"), memory("VmHWM")
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))
checkpoint.fill(model, checkpoint.load_state(Path(sys.argv[1])))
loaded = memory("RssAnon") - anonymous, memory("VmHWM") - peak
total = sum(float(tensor.sum()) for tensor in model.state_dict().values())
print(*loaded, memory("RssAnon") - anonymous, memory("VmHWM") - peak, total)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_makes_no_second_copy(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))
    num_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    path = saved(tmp_path, model.state_dict())
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "small.pt")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded_anonymous, loaded_peak, anonymous, peak, total = (float(word) for word in printed.stdout.split())
    assert total == pytest.approx(sum(float(tensor.sum()) for tensor in model.state_dict().values()))
    assert max(loaded_anonymous, loaded_peak) < 0.1 * num_bytes  # Nothing is read before it is used.
    assert anonymous < 0.1 * num_bytes  # Afterwards the weights stay in the file's pages.
    assert peak < 1.1 * num_bytes


def archived(path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], compression: int = 0) -> Path:
    """Write a checkpoint whose parts were changed and packed again, with right checksums."""
    with zipfile.ZipFile(saved(path.parent, state())) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in change(parts).items():
            archive.writestr(f"model/{name}", content)
    return path


def test_a_checkpoint_that_was_packed_again_loads(tmp_path: Path) -> None:
    loaded = checkpoint.load_state(archived(tmp_path / "again.pt", lambda parts: parts))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state().items())


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    """Without the check, torch maps the compressed bytes as floats."""
    path = archived(tmp_path / "packed.pt", lambda parts: parts, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoint.load_state(path)


@pytest.mark.parametrize("num_bytes", [0, 4, 20, 28])
def test_a_tensor_that_is_longer_than_its_part_of_the_file_is_refused(tmp_path: Path, num_bytes: int) -> None:
    """Without the check, torch maps the bytes of the next part as numbers."""
    path = archived(tmp_path / "short.pt", lambda parts: {**parts, "data/0": bytes(num_bytes)})
    with pytest.raises(CheckpointError, match="another length than its part"):
        checkpoint.load_state(path)


def test_a_part_at_another_place_than_its_header_says_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, state()).read_bytes()
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        part = next(part for part in archive.infolist() if part.filename.endswith("/data/0"))
    for length in (0, 7, 11, 0xFFFF):  # Length of the field that precedes the numbers.
        at = part.header_offset + 28
        (tmp_path / "moved.pt").write_bytes(whole[:at] + length.to_bytes(2, "little") + whole[at + 2 :])
        with pytest.raises(CheckpointError, match="truncated or broken"):
            checkpoint.load_state(tmp_path / "moved.pt")


def test_a_list_of_tensors_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    long = archived(tmp_path / "long.pt", lambda parts: {**parts, "data.pkl": parts["data.pkl"] + bytes(1 << 20)})
    with pytest.raises(CheckpointError, match=r"its list of tensors has 10\d{5} bytes and the limit is 1048576"):
        checkpoint.load_state(long)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(2, 3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    ],
    ids=["meta", "sparse", "jagged"],
)
def test_a_tensor_without_plain_memory_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"holds 'layer\.weight' as a tensor without plain memory"):
        checkpoint.load_state(saved(tmp_path, {"layer.weight": tensor}))


class Attack:
    """An object whose pickle runs a command when it is loaded without checks."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    attack = pickle.dumps({"layer.weight": Attack(marker)}, protocol)
    path = archived(tmp_path / "attack.pt", lambda parts: {**parts, "data.pkl": attack})
    with pytest.raises(CheckpointError):
        checkpoint.load_state(path)
    path.write_bytes(attack)
    with pytest.raises(CheckpointError):
        checkpoint.load_state(path)
    assert not marker.exists()
    pickle.loads(attack)
    assert marker.exists(), "the attack would have worked"


def test_a_path_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissingError, match="cannot be read: File name too long"):
        checkpoint.locate(Settings(checkpoint=Path("x" * 300)))
    with pytest.raises(CheckpointMissingError, match="cannot be read: File name too long"):
        # In a folder that exists, unlike torch hub's on a new machine.
        checkpoint.locate(Settings(checkpoint_url=f"https://example.com/{'x' * 300}", cache_dir=tmp_path))


def test_a_converted_copy_of_an_earlier_version_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "sharp.bfloat16.safetensors"
    path.write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=r"is a converted copy, which is no longer read: .*sharp-cog download"):
        checkpoint.load_state(path)

"""The checkpoint: find it, download it, verify it, fill a network with it."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from sharp_cog.config.settings import CHECKPOINT_SHA256, Settings
from sharp_cog.errors import CheckpointError, CheckpointMissingError
from sharp_cog.runtime import torch_archive
from sharp_cog.runtime.download import Effort, download
from sharp_cog.text import plain, quoted, redact

_LOG = logging.getLogger(__name__)

CHECKPOINT_BYTES = 2_809_738_232
"""Length of Apple's checkpoint, the file with the hash `CHECKPOINT_SHA256`."""

LICENSE_NOTICE = (
    "The weights are Apple's, for non-commercial research only: Apple Machine Learning Research Model is licensed "
    "under the Apple Machine Learning Research Model License Agreement."
)

_MAX_NAMED = 3
"""Tensors of each fault that an error names; the rest is counted."""

_UNREADABLE = (
    *(RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, MemoryError, struct.error),
)
"""What the readers of zip and pickle were seen to raise for a file with a few bytes changed."""


def locate(settings: Settings) -> Path | None:
    """The checkpoint on disk: the one that the settings name, else the downloaded one, else None.

    Raises:
        CheckpointMissingError: The settings name a file that is not there.
    """
    if settings.checkpoint is not None:
        if not _is_file(settings.checkpoint):
            raise CheckpointMissingError(
                f"SHARP_CHECKPOINT is {settings.checkpoint}, and there is no such file: correct the path, or unset it "
                "to download Apple's checkpoint"
            )
        return settings.checkpoint
    target = _download_path(settings)
    return target if _is_file(target) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # Such as a folder that nobody may look into, or a name that is too long.
        raise CheckpointMissingError(f"{path} cannot be looked at: {error.strerror or error}: correct it") from error


def ensure(settings: Settings, *, effort: Effort | None = None) -> Path:
    """The checkpoint on disk, downloaded if it is not there.

    Raises:
        CheckpointMissingError: The settings name a file that is not there.
        DownloadError: It could not be downloaded.
    """
    path = locate(settings)
    if path is not None:
        return path
    target = _download_path(settings)
    _LOG.warning(LICENSE_NOTICE)
    _LOG.info("downloading %s to %s", redact(settings.checkpoint_url), target)
    download(
        settings.checkpoint_url,
        target,
        sha256=settings.checkpoint_sha256,
        num_bytes=_known_bytes(settings),
        effort=effort,
    )
    return target


def verify(path: Path, settings: Settings) -> None:
    """Compares a file's length, where it is known, and hash with the settings; reads nothing where they accept any.

    Raises:
        CheckpointError: The file is another one, the message has both lengths or hashes; or it cannot be read.
    """
    expected, expected_bytes = settings.checkpoint_sha256, _known_bytes(settings)
    if expected is None:
        return
    remedy = "remove it and run 'sharp-cog download', or set SHARP_CHECKPOINT_SHA256 if you mean this file"
    try:
        num_bytes = path.stat().st_size
        if expected_bytes not in (None, num_bytes):
            raise CheckpointError(f"{path} has {num_bytes:,} bytes, expected {expected_bytes:,}: {remedy}")
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if actual != expected:
        raise CheckpointError(f"{path} ({num_bytes:,} bytes) has the SHA-256 {actual}, expected {expected}: {remedy}")


def load_state(path: Path) -> dict[str, Tensor]:
    """Opens a checkpoint without reading it: its tensors are mapped from the file, on the CPU.

    A file that is replaced by renaming, as a download does, stays intact for every process that has mapped it. A file
    that is truncated in place ends every process that reads the mapping, so a running network must not keep one.

    Raises:
        CheckpointError: The file is not a state dict of float32 tensors; the message says what it is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head != b"PK\x03\x04":
            what = "empty" if not head else "a web page" if head.lstrip()[:1] == b"<" else "not a PyTorch checkpoint"
            raise CheckpointError(f"{path} is {what}: remove it and run 'sharp-cog download'")
        sizes = torch_archive.check(path)
        state = _checked_state(torch.load(path, map_location="cpu", weights_only=True, mmap=True), path)
        torch_archive.check_storages(state.values(), sizes)
        return state
    except pickle.UnpicklingError as error:
        found = re.search(r"WeightsUnpickler error: *(.*)", str(error))
        reason = found[1] if found else str(error)
        if "global" in reason.lower():  # A class or a function, which could run code.
            raise CheckpointError(f"{path} holds more than tensors and was not opened: use Apple's file") from error
        raise CheckpointError(_broken(path, reason)) from error
    except _UNREADABLE as error:
        raise CheckpointError(_broken(path, str(error) or type(error).__name__)) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _broken(path: Path, reason: str) -> str:
    first = reason.strip().splitlines()[0].split(". ")[0] if reason.strip() else "no reason given"
    return f"{path} is truncated or broken ({plain(first, 200)}): remove it and run 'sharp-cog download'"


def _checked_state(state: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict: use Apple's file")
    for name, value in state.items():
        if isinstance(value, dict):
            raise CheckpointError(
                f"{path} is a training checkpoint ({quoted(name)} is a dict): save the state dict alone"
            )
        if not isinstance(value, Tensor):
            what = f", a {type(value).__name__}, not a tensor"
        elif value.dtype != torch.float32:
            what = f" as {value.dtype}, not as torch.float32"
        elif value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
            what = " as a tensor without plain memory"
        else:
            continue
        raise CheckpointError(f"{path} holds {quoted(name)}{what}: use Apple's file")
    return state


def fill(model: nn.Module, state: Mapping[str, Tensor], *, ignore: Collection[str] = ()) -> None:
    """Fills a network by assignment: nothing is copied, and what is mapped from a file stays so.

    Args:
        model: Its parameters may be on the meta device.
        state: Exactly the network's tensors, besides the ignored ones.
        ignore: Names that the state may hold and the network does not use.

    Raises:
        CheckpointError: Names, shapes or types differ; the message names the first of each.
    """
    expected = model.state_dict()
    used = {name: tensor for name, tensor in state.items() if name not in ignore}
    shared = [name for name in expected if name in used]
    faults = (
        [f"{name} is missing" for name in sorted(expected.keys() - used.keys())],
        [f"{plain(name)} is unknown" for name in sorted(used.keys() - expected.keys())],
        [
            f"{name} has shape {quoted(tuple(used[name].shape))}, expected {tuple(expected[name].shape)}"
            for name in shared
            if used[name].shape != expected[name].shape
        ],
        [
            f"{name} is {used[name].dtype}, expected {expected[name].dtype}"
            for name in shared
            if used[name].dtype != expected[name].dtype
        ],
    )
    if any(faults):
        what = "; ".join(_first(group) for group in faults if group)
        raise CheckpointError(f"the checkpoint is not SHARP's: {what}: use Apple's sharp_2572gikvuh.pt")
    model.load_state_dict(used, strict=True, assign=True)


def _first(faults: list[str]) -> str:
    more = len(faults) - _MAX_NAMED
    return ", ".join(faults[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _known_bytes(settings: Settings) -> int | None:
    """Length of the file with the hash in the settings, as far as it is known."""
    return CHECKPOINT_BYTES if settings.checkpoint_sha256 == CHECKPOINT_SHA256 else None


def _download_path(settings: Settings) -> Path:
    """Where the download goes: torch hub's folder by default, so that a copy from Apple's tool is found."""
    folder = settings.cache_dir or Path(torch.hub.get_dir()) / "checkpoints"
    name = Path(urlsplit(settings.checkpoint_url).path).name
    return folder / (name if name not in ("", "..") else "checkpoint.pt")

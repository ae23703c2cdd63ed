"""The checkpoint file: finding, downloading, verifying and mapping it, and filling a network from it."""

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
"""Length in bytes of Apple's checkpoint, the file with the hash `CHECKPOINT_SHA256`."""

LICENSE_NOTICE = (
    "The weights are Apple's, for non-commercial research only: Apple Machine Learning Research Model is licensed "
    "under the Apple Machine Learning Research Model License Agreement."
)

_MAX_NAMED = 3
"""Maximum names of tensors in an error message for each kind of fault; the others are counted."""

_UNREADABLE = (
    *(RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, MemoryError, struct.error),
)
"""Exceptions of zipfile and pickle for a file in which a few bytes changed, as fuzzing found them."""


def locate(settings: Settings) -> Path | None:
    """Return the checkpoint that the settings name, else the downloaded one, else None.

    Raises:
        CheckpointMissingError: The settings name a file that does not exist.
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
    except OSError as error:  # The folder is not readable, or the name is too long.
        raise CheckpointMissingError(f"{path} cannot be read: {error.strerror or error}: correct the path") from error


def ensure(settings: Settings, *, effort: Effort | None = None) -> Path:
    """Return the checkpoint, and download it if it does not exist.

    Raises:
        CheckpointMissingError: The settings name a file that does not exist.
        DownloadError: The download failed.
    """
    path = locate(settings)
    if path is not None:
        return path
    target = _download_path(settings)
    # A warning is shown even where logging is not configured, and the licence has to be seen.
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
    """Compare a file's length, if known, and hash with the settings. Nothing is read if they accept any file.

    Raises:
        CheckpointError: The file cannot be read, or differs; the message has both lengths or hashes.
    """
    expected, expected_bytes = settings.checkpoint_sha256, _known_bytes(settings)
    if expected is None:
        return
    remedy = "remove it and run 'sharp-cog download', or set SHARP_CHECKPOINT_SHA256 if you mean this file"
    try:
        # The length first, so that a truncated file is reported without hashing 2.8 GB.
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
    """Map the tensors of a checkpoint from its file, on the CPU, without reading them.

    If another file gets the name, as after a download, the mapping keeps the old content. If the file is truncated in
    place, the system kills every process that reads the mapping: a running network must not keep one.

    Raises:
        CheckpointError: The file is not a state dict of float32 tensors; the message says what it is instead.
    """
    try:
        # The first bytes distinguish files that are here by mistake, for all of which torch raises the same error.
        with path.open("rb") as file:
            head = file.read(4)
        if head != b"PK\x03\x04":
            what = "not a PyTorch checkpoint"
            if not head:
                what = "empty"
            elif head.lstrip()[:1] == b"<":
                what = "a web page"
            elif path.suffix == ".safetensors":  # SHARP_CHECKPOINT could once name such a file.
                what = "a converted copy, which is no longer read"
            raise CheckpointError(f"{path} is {what}: remove it and run 'sharp-cog download'")
        # Checked before and after the load: torch maps whatever the headers of the file say, and only the loaded
        # tensors show which lengths it believed.
        sizes = torch_archive.check(path)
        state = _checked_state(torch.load(path, map_location="cpu", weights_only=True, mmap=True), path)
        torch_archive.check_storages(state.values(), sizes)
        return state
    except pickle.UnpicklingError as error:
        # torch wraps the reason in long advice, part of which is to load with `weights_only=False`.
        found = re.search(r"WeightsUnpickler error: *(.*)", str(error))
        reason = found[1] if found else str(error)
        if "global" in reason.lower():  # The pickle names a class or a function, which could run code.
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
        # Training loops save the state dict beside the state of the optimizer.
        if isinstance(value, dict):
            raise CheckpointError(
                f"{path} is a training checkpoint ({quoted(name)} is a dict): save the state dict alone"
            )
        if not isinstance(value, Tensor):
            what = f" of type {type(value).__name__}, not a tensor"
        elif value.dtype != torch.float32:
            what = f" as {value.dtype}, not as torch.float32"
        elif value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
            # `weights_only` admits sparse, nested and meta tensors too.
            what = " as a tensor without plain memory"
        else:
            continue
        raise CheckpointError(f"{path} holds {quoted(name)}{what}: use Apple's file")
    return state


def fill(model: nn.Module, state: Mapping[str, Tensor], *, ignore: Collection[str] = ()) -> None:
    """Assign tensors to a network without copying them, so that mapped tensors stay mapped.

    Args:
        model: Network, whose parameters may be on the meta device.
        state: Exactly the network's tensors, and possibly the ignored ones.
        ignore: Names of tensors that the network does not use.

    Raises:
        CheckpointError: Names, shapes or types differ; the message names the first tensors of each fault.
    """
    used = {name: tensor for name, tensor in state.items() if name not in ignore}
    if what := differences(model, used):
        raise CheckpointError(f"the checkpoint is not SHARP's: {what}: use Apple's sharp_2572gikvuh.pt")
    model.load_state_dict(used, strict=True, assign=True)


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return how tensors differ from those of a network, as a phrase with the first of each fault; empty if they fit.

    `load_state_dict` would list all names of a wrong checkpoint, and with `assign=True` accept any type.
    """
    expected = model.state_dict()
    shared = [name for name in expected if name in state]
    faults = (
        [f"{name} is missing" for name in sorted(expected.keys() - state.keys())],
        [f"{plain(name)} is unknown" for name in sorted(state.keys() - expected.keys())],
        [
            f"{name} has shape {quoted(tuple(state[name].shape))}, expected {tuple(expected[name].shape)}"
            for name in shared
            if state[name].shape != expected[name].shape
        ],
        [
            f"{name} is {state[name].dtype}, expected {expected[name].dtype}"
            for name in shared
            if state[name].dtype != expected[name].dtype
        ],
    )
    return "; ".join(_first(group) for group in faults if group)


def _first(faults: list[str]) -> str:
    more = len(faults) - _MAX_NAMED
    return ", ".join(faults[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _known_bytes(settings: Settings) -> int | None:
    """Return the length of the file with the hash in the settings, if known."""
    return CHECKPOINT_BYTES if settings.checkpoint_sha256 == CHECKPOINT_SHA256 else None


def _download_path(settings: Settings) -> Path:
    """Return the target of a download; by default in torch hub's folder, where Apple's own tool puts its copy."""
    folder = settings.cache_dir or Path(torch.hub.get_dir()) / "checkpoints"
    # The last part of a path may be empty or "..", which would be the folder itself or its parent.
    name = Path(urlsplit(settings.checkpoint_url).path).name
    return folder / (name if name not in ("", "..") else "checkpoint.pt")

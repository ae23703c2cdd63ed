"""The checkpoint: find it, download it, verify it, fill a network with it."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from sharp_cog.download import Effort, download, without_secrets
from sharp_cog.errors import CheckpointError, CheckpointMissingError
from sharp_cog.serving.settings import CHECKPOINT_SHA256, Settings

_LOG = logging.getLogger(__name__)

CHECKPOINT_BYTES = 2_809_738_232
"""Length of Apple's checkpoint, the file with the hash `CHECKPOINT_SHA256`."""

LICENSE_NOTICE = (
    "The weights are Apple's, for non-commercial research only: Apple Machine Learning Research Model is licensed "
    "under the Apple Machine Learning Research Model License Agreement."
)

_MAX_NAMED = 5
"""Tensors named in an error; the rest is counted."""


def locate(settings: Settings) -> Path | None:
    """The checkpoint on disk: the one that the settings name, else the downloaded one, else None.

    Raises:
        CheckpointMissingError: The settings name a file that is not there.
    """
    if settings.checkpoint is not None:
        if not settings.checkpoint.is_file():
            raise CheckpointMissingError(
                f"SHARP_CHECKPOINT is {settings.checkpoint}, and there is no such file: correct the path, or unset it "
                "to download Apple's checkpoint"
            )
        return settings.checkpoint
    target = _download_path(settings)
    return target if target.is_file() else None


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
    is_apples = settings.checkpoint_sha256 == CHECKPOINT_SHA256
    _LOG.warning(LICENSE_NOTICE)
    _LOG.info("downloading %s to %s", without_secrets(settings.checkpoint_url), target)
    download(
        settings.checkpoint_url,
        target,
        sha256=settings.checkpoint_sha256,
        num_bytes=CHECKPOINT_BYTES if is_apples else None,
        effort=effort,
    )
    return target


def verify(path: Path, settings: Settings) -> None:
    """Compares a file with the hash in the settings; does nothing where they accept any.

    Raises:
        CheckpointError: The file is another one; the message has both hashes.
    """
    expected = settings.checkpoint_sha256
    if expected is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) has the SHA-256 {actual}, expected {expected}: remove it and run "
            "'sharp-cog download', or set SHARP_CHECKPOINT_SHA256 if you mean this file"
        )


def load_state(path: Path) -> dict[str, Tensor]:
    """Opens a checkpoint without reading it: its tensors are mapped from the file, on the CPU.

    Raises:
        CheckpointError: The file is not a state dict of float32 tensors; the message says what it is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head != b"PK\x03\x04":
            what = "empty" if not head else "a web page" if head.lstrip()[:1] == b"<" else "not a PyTorch checkpoint"
            raise CheckpointError(f"{path} is {what}: remove it and run 'sharp-cog download'")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and was not opened: use Apple's file") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or broken ({reason}): remove it and run 'sharp-cog download'"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return _checked_state(state, path)


def _checked_state(state: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict: use Apple's file")
    for name, value in state.items():
        if isinstance(value, dict):
            raise CheckpointError(f"{path} is a training checkpoint ({name!r} is a dict): save the state dict alone")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path} holds {name!r}, a {type(value).__name__}, not a tensor: use Apple's file")
        if value.dtype != torch.float32:
            raise CheckpointError(f"{path} holds {name!r} as {value.dtype}, not as torch.float32: use Apple's file")
    return state


def fill(model: nn.Module, state: Mapping[str, Tensor], *, ignore: Collection[str] = ()) -> None:
    """Fills a network by assignment: nothing is copied, and what is mapped from a file stays so.

    Args:
        model: Its parameters may be on the meta device.
        state: Exactly the network's tensors, besides the ignored ones.
        ignore: Names that the state may hold and the network does not use.

    Raises:
        CheckpointError: Names or shapes differ; the message names the first ones.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    used = {name: tensor for name, tensor in state.items() if name not in ignore}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - used.keys())]
    faults += [f"{name} is unknown" for name in sorted(used.keys() - expected.keys())]
    faults += [
        f"{name} has shape {tuple(used[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in used and tuple(used[name].shape) != shape
    ]
    if faults:
        more = f", and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
        raise CheckpointError(
            f"the checkpoint is not SHARP's: {'; '.join(faults[:_MAX_NAMED])}{more}: use Apple's sharp_2572gikvuh.pt"
        )
    model.load_state_dict(used, strict=True, assign=True)


def _download_path(settings: Settings) -> Path:
    """Where the download goes: torch hub's folder by default, so that a copy from Apple's tool is found."""
    folder = settings.cache_dir or Path(torch.hub.get_dir()) / "checkpoints"
    return folder / (Path(urlsplit(settings.checkpoint_url).path).name or "checkpoint.pt")

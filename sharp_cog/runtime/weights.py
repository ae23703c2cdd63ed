"""The network's weights on their way from a file into a network; and a copy of them in half precision, kept on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sharp_cog.config.settings import Settings
from sharp_cog.errors import CheckpointError, OutputError
from sharp_cog.files.atomic import cannot_write
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.model.config import SharpConfig
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime import checkpoint
from sharp_cog.runtime.precision import DTYPES, name_of
from sharp_cog.runtime.prepare import convert, fold
from sharp_cog.text import plain

_LOG = logging.getLogger(__name__)

_LAYOUT = "sharp_cog folded 2"
"""Of converted files: changes when `fold` or `convert` make other tensors."""

_UNREADABLE = (OSError, SafetensorError, RuntimeError, TypeError)
"""What the reader of converted files raises for broken ones: its own, and torch's for shapes that no tensor has."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The network's tensors, on the CPU.

    Attributes:
        state: By name.
        is_folded: Whether `sharp_cog.runtime.prepare.fold` has been applied to them.
    """

    state: Mapping[str, Tensor]
    is_folded: bool

    def network(self, device: torch.device) -> Sharp:
        """A network with these weights, folded; what is not folded yet is moved to the device for that.

        Raises:
            CheckpointError: Names or shapes are not the network's.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        with torch.device("meta"):
            model = Sharp(SharpConfig.matching(shapes))
        if self.is_folded:
            fold(model, device=torch.device("meta"))
            try:
                model.load_state_dict(dict(self.state), strict=True, assign=True)
            except RuntimeError as error:
                raise CheckpointError(
                    f"the converted weights are not this version's: remove them: {plain(error, 300)}"
                ) from error
        else:
            checkpoint.fill(model, self.state, ignore=UNUSED_PARAMETERS)
            fold(model, device=device)
        return model.eval().requires_grad_(False)

    def converted(self, dtype: torch.dtype) -> Weights:
        """The same folded and in another precision, in memory, no longer mapped."""
        cpu = torch.device("cpu")
        model = self.network(cpu)
        convert(model, device=cpu, dtype=dtype, packs=False)
        return Weights(state=_contiguous(model.state_dict()), is_folded=True)


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file with the network's tensors, opened whenever a network is wanted, so that nothing of it stays in memory.

    Attributes:
        path: Apple's checkpoint, or a converted copy of it.
        is_folded: Whether it is a copy.
        identity: What it was when it was found, as `identity_of`.
    """

    path: Path
    is_folded: bool
    identity: str

    def open(self) -> Weights:
        """Maps the tensors.

        Raises:
            CheckpointError: The file is broken, of another kind, or another one than it was when it was found.
        """
        if self.is_folded:
            weights = Weights(state=_opened(self.path)[0], is_folded=True)
        else:
            weights = Weights(state=checkpoint.load_state(self.path), is_folded=False)
        # Else some predictions of a process could be one network's, and some another's.
        if identity_of(self.path) != self.identity:
            raise CheckpointError(f"{self.path} was replaced since this process has found it: start the process anew")
        return weights

    def network(self, device: torch.device) -> Sharp:
        """As `Weights.network`."""
        return self.open().network(device)


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def find(settings: Settings, dtype: torch.dtype) -> WeightsFile:
    """The weights that the settings name, from the converted copy where there is a fitting one.

    Args:
        settings: Their `checkpoint` may also be a converted copy.
        dtype: That the network is going to compute in.

    Raises:
        CheckpointError: The checkpoint is missing, broken or cannot be downloaded.
    """
    path = checkpoint.ensure(settings)
    identity = identity_of(path)
    original = WeightsFile(path=path, is_folded=path.suffix == ".safetensors", identity=identity)
    if original.is_folded or not settings.cache_weights or dtype == torch.float32:
        return original
    copy = converted_path(path, dtype)
    if not _is_copy_of(copy, identity):
        try:
            keep(original, dtype)
        except OutputError as error:  # Such as a read-only volume: everything works without the copy.
            _LOG.warning("the converted weights are not kept: %s", error)
            return original
    return WeightsFile(path=copy, is_folded=True, identity=identity_of(copy))


def in_memory(settings: Settings) -> Weights:
    """The weights that the settings name, read and converted: what a snapshot of a process should hold.

    In the precision of the settings; `auto` is taken for float16, that of the GPUs which are to come.

    Raises:
        CheckpointError: As `find`.
    """
    dtype = DTYPES.get(settings.precision, torch.float16)
    return find(settings, dtype).open().converted(dtype)


def converted_path(path: Path, dtype: torch.dtype) -> Path:
    """Where the converted copy of a checkpoint lies."""
    return path.with_name(f"{path.stem}.{name_of(dtype)}.safetensors")


def keep(original: WeightsFile, dtype: torch.dtype) -> Path:
    """Writes the converted copy of a checkpoint beside it, 1.3 GB for 2.8.

    Raises:
        CheckpointError: The checkpoint is broken, or was replaced meanwhile.
        OutputError: It cannot be written.
    """
    copy = converted_path(original.path, dtype)
    # Before anything is converted: a folder may be read alone. The library writes by temporary names of its own.
    with ScratchFolder(copy.parent) as folder:
        state = dict(original.open().converted(dtype).state)
        table = _digest((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items())
        metadata = {"layout": _LAYOUT, "source": original.identity, "tensors": table}
        written = folder / copy.name
        try:
            save_file(state, written, metadata=metadata)
            # The library's files are for their owner alone; who reads the checkpoint may be somebody else.
            shutil.copymode(original.path, written)
            os.replace(written, copy)
        except SafetensorError as error:
            raise OutputError(
                f"cannot write {copy}: {error}: check the folder, its rights and the free space"
            ) from error
        except OSError as error:
            raise cannot_write(copy, error) from error
    _LOG.info("kept the weights in %s: %s", name_of(dtype), copy)
    return copy


def identity_of(path: Path) -> str:
    """Tells whether a file was changed.

    Raises:
        CheckpointError: It is not there any more.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return f"{status.st_size} bytes, {status.st_mtime_ns} ns"


def _digest(table: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> str:
    """A hash of names, types and shapes of tensors, so that a broken list of them is told from the one written."""
    return hashlib.sha256(repr(sorted(map(repr, table))).encode()).hexdigest()


def _opened(copy: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a converted file, mapped, and which checkpoint it was made of.

    Raises:
        CheckpointError: It is broken, or not of this layout.
    """
    try:
        with safe_open(copy, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("layout") != _LAYOUT:
                raise CheckpointError(f"{copy} is no copy that this version made: use Apple's checkpoint")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except _UNREADABLE as error:
        raise CheckpointError(f"{copy} is truncated or broken ({plain(error, 200)}): remove it") from error
    if metadata.get("tensors") != _digest((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()):
        raise CheckpointError(f"{copy} is broken (its list of tensors is not the one that was written): remove it")
    return state, metadata.get("source")


def _is_copy_of(copy: Path, identity: str) -> bool:
    """Whether there is a whole copy of the checkpoint; one that is broken or of another is made anew."""
    try:
        return _opened(copy)[1] == identity
    except CheckpointError:
        return False

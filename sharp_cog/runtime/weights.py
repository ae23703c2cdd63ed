"""SHARP's weights: in a file that is opened for each network, or in memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sharp_cog.config.settings import Settings
from sharp_cog.errors import CheckpointError
from sharp_cog.model.config import SharpConfig
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime import checkpoint
from sharp_cog.runtime.precision import DTYPES
from sharp_cog.runtime.prepare import convert, fold

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The network's tensors, on the CPU.

    Attributes:
        state: Tensors by name.
        is_folded: Whether `sharp_cog.runtime.prepare.fold` has been applied to them.
    """

    state: Mapping[str, Tensor]
    is_folded: bool

    def network(self, device: torch.device) -> Sharp:
        """Return a folded network with these weights; weights that are not folded yet are folded on the device.

        Raises:
            CheckpointError: Names or shapes are not the network's.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        with torch.device("meta"):
            model = Sharp(SharpConfig.matching(shapes))
        if self.is_folded:
            # The tensors are folded already. This only changes the names and shapes that the network expects.
            fold(model, device=torch.device("meta"))
            model.load_state_dict(dict(self.state), strict=True, assign=True)
        else:
            checkpoint.fill(model, self.state, ignore=UNUSED_PARAMETERS)
            fold(model, device=device)
        return model.eval().requires_grad_(False)

    def converted(self, dtype: torch.dtype) -> Weights:
        """Return a copy in memory, folded and in another precision."""
        cpu = torch.device("cpu")
        model = self.network(cpu)
        convert(model, device=cpu, dtype=dtype, packs=False)
        return Weights(state=model.state_dict(), is_folded=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsFile:
    """A checkpoint file, which is opened for each network, so that nothing of it stays in memory.

    Attributes:
        path: The file.
        identity: Its size in bytes and the time of its last change, when it was found.
    """

    path: Path
    identity: tuple[int, int]

    def open(self) -> Weights:
        """Map the tensors from the file.

        Raises:
            CheckpointError: The file is not a checkpoint, or was replaced after it had been found.
        """
        weights = Weights(state=checkpoint.load_state(self.path), is_folded=False)
        # A process may load the network again for float32. All its predictions must come from the same weights.
        # They are compared after the mapping, because a file could be replaced between a comparison and the mapping.
        if _identity(self.path) != self.identity:
            raise CheckpointError(f"{self.path} was replaced since this process found it: restart the process")
        return weights

    def network(self, device: torch.device) -> Sharp:
        """Return a folded network with these weights; see `Weights.network`."""
        return self.open().network(device)


def find(settings: Settings) -> WeightsFile:
    """Return the weights that the settings name, and download them if necessary.

    Raises:
        CheckpointError: The checkpoint is missing or cannot be downloaded.
    """
    if settings.cache_weights:
        _warn_of_cache_weights()
    path = checkpoint.ensure(settings)
    return WeightsFile(path=path, identity=_identity(path))


def in_memory(settings: Settings) -> Weights:
    """Return the weights that the settings name, read and converted: the content of a process snapshot.

    A snapshot is taken before there is a GPU. So `auto` stands for float16, the precision that GPUs use.

    Raises:
        CheckpointError: The checkpoint is missing, broken or cannot be downloaded.
    """
    return find(settings).open().converted(DTYPES.get(settings.precision, torch.float16))


@functools.cache
def _warn_of_cache_weights() -> None:
    _LOG.warning(
        "SHARP_CACHE_WEIGHTS no longer does anything, because a copy of the weights did not load faster: unset it"
    )


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns

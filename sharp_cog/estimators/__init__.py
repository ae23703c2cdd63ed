"""Depth estimators: networks other than SHARP that estimate the depth of an image, and their loading."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sharp_cog.config.models import ESTIMATORS, ModelFacts, require_licence
from sharp_cog.errors import CheckpointError, CheckpointMissingError, NotInstalledError
from sharp_cog.estimators import depth_anything_3, hugging_face, moge
from sharp_cog.estimators.estimate import Estimate, Estimator
from sharp_cog.runtime import torch_archive

__all__ = ["Estimate", "Estimator", "is_on_disk", "load"]

_LOG = logging.getLogger(__name__)


def load(name: str, *, checkpoint: str | None, device: torch.device, commercial: bool = False) -> Estimator:
    """Load an estimator.

    Before a download, its size and licence are logged.

    Args:
        name: Key of `sharp_cog.config.models.ESTIMATORS`.
        checkpoint: Name of a repository on the Hugging Face hub, or a local folder; None takes the released weights.
        device: Device on which the estimator runs.
        commercial: Whether the use is commercial, which some licences forbid.

    Raises:
        SettingError: The use is commercial, and the licence does not allow that.
        NotInstalledError: The extra `hub` or `depth` is not installed.
        CheckpointMissingError: The checkpoint does not exist and cannot be downloaded.
        CheckpointError: The checkpoint is broken, or belongs to another network.
    """
    facts = ESTIMATORS[name]
    require_licence(facts, commercial=commercial)
    extra, modules, read, create = _MODELS[name]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise NotInstalledError(
                f"{name} needs the extra '{extra}' ({module} is missing): run .venv/bin/pip install -e '.[{extra}]'"
            )
    source = checkpoint or facts.repository
    if checkpoint is None and not is_on_disk(facts):
        _LOG.warning("%s: downloading %s from huggingface.co/%s", name, facts.terms, source)
    try:
        content = read(source, facts)
    # The libraries of the hub raise many errors, all of which are an OSError or a ValueError.
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointMissingError(
            f"the checkpoint {source} of {name} cannot be loaded ({reason}): download it where there is a network "
            f"by 'hf download {source} --local-dir FOLDER', and give --estimator-checkpoint FOLDER"
        ) from error
    try:
        return create(content, device)
    except ValueError as error:
        raise CheckpointError(
            f"the checkpoint {source} does not fit {name}: {error}; give another --estimator-checkpoint, or none"
        ) from error


def is_on_disk(facts: ModelFacts) -> bool:
    """Report whether the weights of an estimator are in the cache of the hub, without a look at the network."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache  # Installed with the extra `hub`.

    return isinstance(try_to_load_from_cache(facts.repository, facts.file), str)


def _weights_file(source: str, facts: ModelFacts) -> Path:
    """Return the file of the weights, in a local folder or from the hub."""
    if Path(source).is_dir():
        return Path(source) / facts.file
    from huggingface_hub import hf_hub_download  # Installed with the extra `hub`.

    return Path(hf_hub_download(source, facts.file))


def _read_torch(source: str, facts: ModelFacts) -> Any:
    file = _weights_file(source, facts)
    try:
        torch_archive.check(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # Torch raises errors of many kinds for a file that is broken.
        raise ValueError(f"{file} is broken: {error}") from error


def _read_safetensors(source: str, facts: ModelFacts) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = _weights_file(source, facts)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is broken: {error}") from error


def _prepared(model: nn.Module, device: torch.device) -> Any:
    return model.to(device).eval().requires_grad_(False)


_Reader = Callable[[str, ModelFacts], Any]
_Creator = Callable[[Any, torch.device], Estimator]

_MODELS: dict[str, tuple[str, tuple[str, ...], _Reader, _Creator]] = {
    "moge-2": (
        "hub",
        ("huggingface_hub",),
        _read_torch,
        lambda content, device: moge.MoGeEstimator(_prepared(moge.from_checkpoint(content), device), device),
    ),
    "depth-anything-3-metric": (
        "hub",
        ("huggingface_hub", "safetensors"),
        _read_safetensors,
        lambda content, device: depth_anything_3.DepthAnything3Estimator(
            _prepared(depth_anything_3.from_checkpoint(content), device), device
        ),
    ),
    "depth-pro": (
        "depth",
        ("transformers",),
        lambda source, facts: hugging_face.load("DepthProForDepthEstimation", source),
        lambda content, device: hugging_face.DepthPro(_prepared(content, device), device),
    ),
    "depth-anything-v2-metric": (
        "depth",
        ("transformers",),
        lambda source, facts: hugging_face.load("DepthAnythingForDepthEstimation", source),
        lambda content, device: hugging_face.DepthAnything(_prepared(content, device), device),
    ),
}
"""Extra, modules, reader of the weights, and the function that makes an estimator of them; by the estimator's name."""

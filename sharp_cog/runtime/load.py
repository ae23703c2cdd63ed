"""Loading of the predictor that the settings name."""

from __future__ import annotations

import threading

import torch

from sharp_cog.config.models import SPLAT_MODELS, require_licence
from sharp_cog.config.settings import Settings
from sharp_cog.runtime import checkpoint, weights
from sharp_cog.runtime.kernels.choose import fused_for
from sharp_cog.runtime.lift import LiftPredictor
from sharp_cog.runtime.ml_sharp import MLSharp
from sharp_cog.runtime.precision import choose
from sharp_cog.runtime.predictor import Predictor
from sharp_cog.runtime.runner import NetworkSource, SharpRunner


def load_predictor(settings: Settings, device: torch.device, source: NetworkSource | None = None) -> Predictor:
    """Load the model that the settings name.

    Args:
        settings: Settings of the process.
        device: Device of the model.
        source: SHARP's weights; None means those that the settings name.

    Raises:
        SettingError: The use is commercial, and the licence of the model does not allow that.
        CheckpointError: The checkpoint is missing, broken or cannot be downloaded.
        NotInstalledError: The model needs a package that is not installed.
    """
    require_licence(SPLAT_MODELS[settings.model], commercial=settings.commercial)
    if settings.model == "lift":
        return LiftPredictor(device=device)
    if settings.model == "ml-sharp":
        return MLSharp(checkpoint.load_state(checkpoint.ensure(settings)), device=device)
    dtype = choose(settings.precision, device)
    # CUDA takes seconds to start, and so does a download, or the first read from a slow disk. So both run at once.
    starting = threading.Thread(target=_start, args=(device,), daemon=True, name="start")
    starting.start()
    source = source or weights.find(settings)
    starting.join()
    return SharpRunner(
        source,
        device=device,
        dtype=dtype,
        keeps_encoding=settings.keep_encoding,
        uses_graphs=settings.cuda_graphs,
    )


def _start(device: torch.device) -> None:
    """Initialise CUDA and build the fused kernels, which takes seconds."""
    # An error ends only this thread. The main thread meets it again when it uses the device, because `fused_for`
    # remembers results and no exceptions.
    if device.type == "cuda":
        fused_for(torch.empty(1, device=device).device)  # A tensor's device has an index, which 'cuda' alone lacks.

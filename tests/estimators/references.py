"""Narrow networks with the weights that the authors' reference values belong to; see tests/data/estimators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharp_cog.geometry.camera import Camera, FocalLengthSource
from sharp_cog.imaging.images import SourceImage
from tests.data.parity import synthetic

FOLDER = Path(__file__).parents[1] / "data" / "estimators"


def reference(name: str) -> dict[str, Any]:
    return dict(np.load(FOLDER / f"{name}.npz"))


def _state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(synthetic.parameter(name, tuple(shape))) for name, shape in shapes.items()}


def moge_checkpoint() -> dict[str, Any]:
    """Return the content of a `model.pt` of MoGe-2."""
    about = json.loads((FOLDER / "moge_2.json").read_text())
    state = _state(about["shapes"])
    state["points_head.output_blocks.4.weight"] *= 0.15
    state["points_head.output_blocks.4.bias"] = torch.tensor([0.0, 0.0, 1.0])
    state["mask_head.output_blocks.4.weight"] *= 0.2
    state["mask_head.output_blocks.4.bias"] = torch.tensor([1.5])
    return {"model_config": about["config"], "model": state}


def depth_anything_3_state() -> dict[str, Tensor]:
    """Return the tensors of a `model.safetensors` of Depth Anything 3 Metric."""
    state = _state(json.loads((FOLDER / "depth_anything_3.json").read_text())["shapes"])
    state["head.scratch.output_conv2.2.weight"] *= 0.3
    state["head.scratch.sky_output_conv2.2.weight"] *= 0.3
    return {f"model.{name}": tensor for name, tensor in state.items()}


def source(width: int, height: int, focal_length_px: float, *, known: FocalLengthSource = "caller") -> SourceImage:
    """Return the image of the reference values."""
    camera = Camera(width=width, height=height, focal_length_px=focal_length_px, focal_length_source=known)
    return SourceImage(rgb=synthetic.photograph(width, height, 3), camera=camera, image_format="PNG")

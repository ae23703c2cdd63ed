"""Apple's reference arrays, and our network filled with the weights that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.config import IMAGE_SIZE, SharpConfig
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.model.monodepth import depth_from_disparity
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime.verify import GAUSSIAN_FIELDS, observed
from tests.data.parity import synthetic

PARITY = Path(__file__).parents[0] / "data" / "parity"
REFERENCE_NAMES = {
    "encoder 0": "encoder_features_0",
    "encoder 1": "encoder_features_1",
    "encoder 2": "encoder_features_2",
    "encoder 3": "encoder_features_3",
    "encoder 4": "encoder_features_4",
    "monodepth decoder": "decoder_features",
    "disparity": "disparity",
    "alignment map": "alignment_map",
    "features 0": "texture_features",
    "features 1": "geometry_features",
    "delta": "delta",
    "means": "ndc_mean_vectors",
    "scales": "ndc_singular_values",
    "quaternions_wxyz": "ndc_quaternions",
    "colors_linear": "colors",
    "opacities": "opacities",
}
"""Our names of the stages, and those of the reference arrays."""


def shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of Apple's checkpoint, or of the tiny one."""
    return {
        name: tuple(shape) for name, shape in json.loads((PARITY / f"parameters_{variant}.json").read_text()).items()
    }


def state(variant: str) -> dict[str, Tensor]:
    """The synthetic checkpoint that the reference arrays belong to."""
    return {name: torch.from_numpy(synthetic.parameter(name, shape)) for name, shape in shapes(variant).items()}


def network(variant: str) -> Sharp:
    """Our network with the synthetic weights."""
    with torch.device("meta"):
        model = Sharp(SharpConfig.tiny() if variant == "tiny" else SharpConfig.released())
    used = {name: tensor for name, tensor in state(variant).items() if name not in UNUSED_PARAMETERS}
    model.load_state_dict(used, strict=True, assign=True)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Sampled values of Apple's network in float32, and the picture that they were computed from."""

    arrays: Mapping[str, NDArray[Any]]
    camera: Camera
    image: Tensor

    @classmethod
    def load(cls, name: str) -> Reference:
        about = json.loads((PARITY / f"{name}.json").read_text())
        width, height = about["width"], about["height"]
        photograph = torch.from_numpy(synthetic.photograph(width, height, about["photograph_seed"]))
        pixels = photograph.permute(2, 0, 1).unsqueeze(0).float() / 255
        return cls(
            arrays=dict(np.load(PARITY / f"{name}.npz")),
            camera=Camera(width=width, height=height, focal_length_px=about["focal_length_px"]),
            image=F.interpolate(pixels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=True),
        )

    @property
    def disparity_factor(self) -> Tensor:
        return torch.tensor([self.camera.disparity_factor], dtype=torch.float32)

    def error(self, name: str, value: Tensor) -> float:
        """Relative error of a whole tensor at the sampled places: norm of the difference over norm."""
        if f"{name}__index" in self.arrays:
            sampled = value.flatten()[torch.from_numpy(self.arrays[f"{name}__index"])]
        else:
            sampled = value[0][torch.from_numpy(self.arrays["gaussian_index"])]
        return relative_error(sampled.float().numpy(), self.arrays[name])


def relative_error(value: NDArray[Any], expected: NDArray[Any]) -> float:
    """Norm of the difference over norm of the expected, in float64."""
    exact = expected.astype(np.float64)
    return float(np.linalg.norm(value.astype(np.float64) - exact) / np.linalg.norm(exact))


def run(model: Sharp, reference: Reference, *, aligned: bool = False) -> tuple[dict[str, float], NDCGaussians]:
    """Runs the network: the relative error of every stage, under the reference's names, and the Gaussians."""
    errors: dict[str, float] = {"input": reference.error("input", reference.image)}

    def observe(stage: str, value: Tensor) -> None:
        name = REFERENCE_NAMES[stage]
        errors[name] = reference.error(name, value)
        if stage == "disparity":
            monodepth_m = depth_from_disparity(value, reference.disparity_factor)
            errors["monodepth"] = reference.error("monodepth", monodepth_m)

    with torch.inference_mode():
        depth = None
        if aligned:  # The depth that the arrays belong to.
            _, disparity = model.monodepth_model(reference.image)
            depth = 1.3 * depth_from_disparity(disparity, reference.disparity_factor)[:, :1] + 0.5
        with observed(model, observe):
            gaussians = model(reference.image, reference.disparity_factor, depth, DepthUse(mode="align"))
    for field in GAUSSIAN_FIELDS:
        observe(field, getattr(gaussians, field))
    return errors, gaussians

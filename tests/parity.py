"""Apple's reference arrays, our network with the weights that they belong to, and a small network for all other tests.

Apple's arrays belong to images of 1536 x 1536 pixels, for which one forward of the tiny network takes three seconds.
`small_state`, `small_network` and `small_input` are the same network at 512 x 512, which takes a tenth of that. Tests
that do not compare with Apple's numbers use these.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.imaging.images import SourceImage
from sharp_cog.model.config import IMAGE_SIZE, SharpConfig
from sharp_cog.model.external_depth import DEFAULT_USE, DepthUse
from sharp_cog.model.monodepth import depth_from_disparity
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime.preprocess import ModelInput, preprocess
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
"""Names of the reference arrays by our names of the stages."""

SMALL_CONFIG = SharpConfig.tiny(grid_size=8)
"""The tiny network at 512 x 512 pixels: tiles of 8 x 8 patches in place of 24 x 24."""


def shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all tensors of Apple's checkpoint ("full"), or of the "tiny" one."""
    return {
        name: tuple(shape) for name, shape in json.loads((PARITY / f"parameters_{variant}.json").read_text()).items()
    }


def state(variant: str) -> dict[str, Tensor]:
    """Return the synthetic checkpoint that the reference arrays belong to.

    Drawing the full one takes many seconds. `scripts/gpu-check` does it once, and names the file in
    `SHARP_TEST_WEIGHTS`.
    """
    drawn = Path(os.environ.get("SHARP_TEST_WEIGHTS", ""))
    if variant == "full" and drawn.is_file():
        loaded: dict[str, Tensor] = torch.load(drawn, mmap=True, weights_only=True)
        return loaded
    return {name: torch.from_numpy(synthetic.parameter(name, shape)) for name, shape in shapes(variant).items()}


def small_state() -> dict[str, Tensor]:
    """Return the tiny checkpoint for images of 512 x 512 pixels, which `SharpConfig.matching` recognises.

    Only the position embeddings depend on the size of the image. They are cut to their upper left.
    """
    # Tests change their weights, and the cached ones belong to all of them.
    return {name: tensor.clone() for name, tensor in _small_state().items()}


@functools.cache
def _small_state() -> dict[str, Tensor]:
    tensors, grid_size = state("tiny"), SMALL_CONFIG.vit.grid_size
    for name, tensor in tensors.items():
        if name.endswith(".pos_embed"):  # (1, 1 + 24 * 24, width) with the class token first, then row by row.
            grid = tensor[:, 1:].unflatten(1, (24, 24))[:, :grid_size, :grid_size]
            tensors[name] = torch.cat([tensor[:, :1], grid.flatten(1, 2)], dim=1)
    return tensors


def network(variant: str) -> Sharp:
    """Return our network with the synthetic weights."""
    return _filled(SharpConfig.tiny() if variant == "tiny" else SharpConfig.released(), state(variant))


def small_network() -> Sharp:
    """Return our network with the weights of `small_state`."""
    return _filled(SMALL_CONFIG, small_state())


def _filled(config: SharpConfig, tensors: Mapping[str, Tensor]) -> Sharp:
    with torch.device("meta"):
        model = Sharp(config)
    used = {name: tensor for name, tensor in tensors.items() if name not in UNUSED_PARAMETERS}
    model.load_state_dict(used, strict=True, assign=True)
    return model.eval().requires_grad_(False)


@functools.cache  # Drawing it takes a second.
def _photograph(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    return synthetic.photograph(width, height, seed)


def small_input(depth_m: Tensor | None = None, use: DepthUse = DEFAULT_USE) -> ModelInput:
    """Return the reference photograph as the input of the small network.

    Args:
        depth_m: External depth, (1, 1, 512, 512).
        use: Use of the external depth in place of monodepth.
    """
    camera = Camera(width=1200, height=800, focal_length_px=1150.0)
    rgb = _photograph(camera.width, camera.height, 0)
    source = SourceImage(rgb=rgb, camera=camera, image_format="PNG")
    plain = preprocess(source, None, size=SMALL_CONFIG.image_size, device=torch.device("cpu"))
    return replace(plain, depth_m=depth_m, use=use)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Sampled values of Apple's network in float32, and the image that they were computed from."""

    arrays: Mapping[str, NDArray[Any]]
    camera: Camera
    image: Tensor

    @classmethod
    def load(cls, name: str) -> Reference:
        about = json.loads((PARITY / f"{name}.json").read_text())
        width, height = about["width"], about["height"]
        photograph = torch.from_numpy(_photograph(width, height, about["photograph_seed"]))
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
        """Return the relative error of a whole tensor at the sampled places: norm of the difference over norm."""
        # Feature maps are sampled at places of their own, and all fields of the Gaussians at the same ones.
        if f"{name}__index" in self.arrays:
            sampled = value.flatten()[torch.from_numpy(self.arrays[f"{name}__index"])]
        else:
            sampled = value[0][torch.from_numpy(self.arrays["gaussian_index"])]
        return relative_error(sampled.float().numpy(), self.arrays[name])


def relative_error(value: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the norm of the difference over the norm of the expected value, in float64."""
    exact = expected.astype(np.float64)
    return float(np.linalg.norm(value.astype(np.float64) - exact) / np.linalg.norm(exact))


def run(model: Sharp, reference: Reference, *, aligned: bool = False) -> tuple[dict[str, float], NDCGaussians]:
    """Run the network and return the relative error of every stage, by the reference's names, and the Gaussians."""
    errors: dict[str, float] = {"input": reference.error("input", reference.image)}

    def observe(stage: str, value: Tensor) -> None:
        name = REFERENCE_NAMES[stage]
        errors[name] = reference.error(name, value)
        # Monodepth is not the output of a module, so no hook sees it.
        if stage == "disparity":
            monodepth_m = depth_from_disparity(value, reference.disparity_factor)
            errors["monodepth"] = reference.error("monodepth", monodepth_m)

    with torch.inference_mode(), observed(model, observe):
        if not aligned:
            gaussians = model(reference.image, reference.disparity_factor)
        else:  # The arrays of `tiny_aligned` were computed with an external depth that is made of monodepth.
            encoding = model.encode(reference.image)
            monodepth_m = depth_from_disparity(encoding.disparity, reference.disparity_factor)
            layers = model.depth_layers(monodepth_m, 1.3 * monodepth_m[:, :1] + 0.5, DepthUse(mode="align"))
            gaussians = model.compose(reference.image, encoding.decoded, layers)
    for field in GAUSSIAN_FIELDS:
        observe(field, getattr(gaussians, field))
    return errors, gaussians

"""Comparison of a network in half precision with itself in float32, on an image small enough for every start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_cog.model.sharp import Sharp

IMAGE_SIZE = 128
"""Width and height in pixels: 8 x 8 patches, which leave at least 2 x 2 cells for every level of the pyramid."""

LIMIT = 0.05
"""Largest relative error that counts as rounding. At the released sizes, bfloat16 causes 0.01 and float16 0.002; a
wrong kernel or conversion causes about 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Outputs of a network for the small image.

    Attributes:
        values: Outputs by name, in float32 on the CPU: disparity, and each field of the Gaussians.
    """

    values: dict[str, Tensor]

    def error(self, other: Probe) -> float:
        """Return the largest relative error (norm of the difference over norm) of other outputs; infinite for NaN."""
        errors = []
        for name, value in self.values.items():
            error = (other.values[name] - value).norm() / value.norm().clamp(min=1e-12)
            # Comparisons with NaN are false, so `max` could pass over it.
            errors.append(error.item() if error.isfinite() else float("inf"))
        return max(errors)


@torch.inference_mode()
def probe(model: Sharp, *, device: torch.device) -> Probe:
    """Run a folded network once, with each of its weights, on an image of 128 x 128 pixels.

    Such an image is a single tile; the features of the coarser levels of the pyramid are pooled from those of the tile.
    """
    image = _test_image().to(device)
    encoder = model.monodepth_model.monodepth_predictor.encoder
    # Each map has 8 x 8 cells. Both encoders get the same tile, so that all weights of both take part.
    final, (latent0, latent1) = encoder.patch_encoder(image, encoder.intermediate_blocks)
    context, _ = encoder.image_encoder(image)
    coarse = [F.avg_pool2d(features, 4) for features in (final, context)]
    lowest = torch.cat([encoder.upsample2(coarse[0]), encoder.upsample_lowres(coarse[1])], dim=1)
    # 64, 32, 16, 8 and 4 cells wide: the decoders double the resolution from each map to the one before.
    features = [
        encoder.upsample_latent0(latent0),
        encoder.upsample_latent1(latent1),
        encoder.upsample0(final),
        encoder.upsample1(F.avg_pool2d(final, 2)),
        encoder.fuse_lowres(lowest),
    ]
    predictor = model.monodepth_model.monodepth_predictor
    disparity = predictor.head(predictor.decoder(features))
    decoded = model.feature_model.decoder(features)
    # Disparity is not negative, so depths lie between 0.9 and 1.7 m. With depth = 1 / disparity, a few pixels of almost
    # zero disparity would dominate every norm.
    gaussians = model.compose(image, decoded, 1.0 / (disparity.sigmoid() + 0.0909))
    # The norm of scales would be that of the few largest. Of their logarithms, each counts.
    values = {"disparity": disparity, "scales": gaussians.scales.log(), "colors_linear": gaussians.colors_linear}
    values |= {
        "means": gaussians.means,
        "quaternions_wxyz": gaussians.quaternions_wxyz,
        "opacities": gaussians.opacities,
    }
    return Probe(values={name: value.float().cpu() for name, value in values.items()})


def _test_image() -> Tensor:
    """Return (1, 3, 128, 128) in [0, 1]: waves of several lengths and an edge, the same on every machine."""
    steps = torch.linspace(0.0, 1.0, IMAGE_SIZE)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    channels = [0.5 + 0.2 * torch.sin(6.0 * x + n) + 0.15 * torch.sin(40.0 * y - 3.0 * n * x) for n in range(3)]
    edge = 0.15 * ((x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.05).float()
    return (torch.stack(channels) + edge).clamp(0.0, 1.0).unsqueeze(0)

"""Unprojection of Gaussians from normalised device coordinates to metres, by the photograph's camera."""

from __future__ import annotations

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians, NDCGaussians
from sharp_cog.runtime.kernels.choose import fused_for
from sharp_cog.runtime.kernels.decompose import decompose


def unproject(ndc: NDCGaussians, camera: Camera) -> Gaussians:
    """Unproject the Gaussians of one image: x' = L x with L = diag(W / (2 f), H / (2 f), 1).

    Nothing leaves the device, and no covariance is formed.

    Args:
        ndc: A batch of one.
        camera: Camera of the photograph, with its principal point in the centre.

    Returns:
        Metric Gaussians, OpenCV axes, scales largest first.

    Raises:
        ValueError: The batch does not hold exactly one image.
    """
    if len(ndc.means) != 1:
        raise ValueError(f"the batch holds {len(ndc.means)} images, unproject takes one")
    # The composer has multiplied x and y by their depth already, so L is diagonal and does not depend on z.
    stretch = (camera.width / (2 * camera.focal_length_px), camera.height / (2 * camera.focal_length_px), 1.0)
    fused = fused_for(ndc.means.device)
    if fused is not None:
        means, scales, quaternions_wxyz = fused.unproject(ndc.means[0], ndc.scales[0], ndc.quaternions_wxyz[0], stretch)
    else:
        means = ndc.means[0] * ndc.means.new_tensor(stretch)
        quaternions_wxyz, scales = decompose(ndc.quaternions_wxyz[0], ndc.scales[0], stretch)
    return Gaussians(
        means=means,
        scales=scales,
        quaternions_wxyz=quaternions_wxyz,
        colors_linear=ndc.colors_linear[0],
        opacities=ndc.opacities[0],
    )

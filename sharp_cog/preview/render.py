"""Renders views of a splat: gsplat on CUDA, the package's own rasterizer elsewhere.

Both follow Apple's renderer: antialiased, linear colours blended over black, then converted to sRGB.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from sharp_cog.errors import NotInstalledError
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.color import linear_to_srgb
from sharp_cog.preview.colors import seen_colors
from sharp_cog.preview.view import View
from sharp_cog.runtime.device import translate_errors

_LOG = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
"""An sRGB image, (height, width, 3)."""


def render(gaussians: Gaussians, view: View) -> tuple[Pixels, NDArray[np.float32]]:
    """Render one view.

    Args:
        gaussians: Metric, OpenCV axes, on any device.
        view: Pose and intrinsics of the camera.

    Returns:
        Image (height, width, 3), sRGB; and depth (height, width) in metres, 0 where the image is empty.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    linear, depth_m, _ = _render(gaussians, view)
    srgb = linear_to_srgb(linear.clamp(0.0, 1.0)).mul_(255.0).round_().to(torch.uint8)
    return srgb.cpu().numpy(), depth_m.cpu().numpy()


def coverage(gaussians: Gaussians, view: View) -> NDArray[np.float32]:
    """Return the coverage of each pixel of a view, (height, width) in [0, 1].

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    return _render(gaussians, view)[2].cpu().numpy()


_Layers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Linear RGB (height, width, 3), depth in metres and coverage (height, width)."""


def _render(gaussians: Gaussians, view: View) -> _Layers:
    with translate_errors(gaussians.means.device):
        return _render_on_cuda(gaussians, view) if _uses_gsplat(gaussians) else _render_on_cpu(gaussians, view)


def _uses_gsplat(gaussians: Gaussians) -> bool:
    return gaussians.means.device.type == "cuda" and _has_gsplat()


# Cached, so that a video warns once and not with each frame.
@cache
def _has_gsplat() -> bool:
    is_installed = importlib.util.find_spec("gsplat") is not None
    if not is_installed:
        _LOG.warning("gsplat is not installed: previews are rendered on the CPU (pip install gsplat==1.5.3)")
    return is_installed


def _render_on_cuda(gaussians: Gaussians, view: View) -> _Layers:
    # gsplat is optional, and compiles its kernels on first use, which takes minutes.
    import gsplat

    from sharp_cog.preview.rasterize import LOW_PASS_PX2, NEAR_M

    device = gaussians.means.device
    focal = view.focal_length_px
    intrinsics = [[focal, 0.0, view.width / 2], [0.0, focal, view.height / 2], [0.0, 0.0, 1.0]]
    # The near plane, low-pass and opacities are those of `rasterize`, and a test compares the images.
    rendered, alpha, _ = gsplat.rasterization(
        means=gaussians.means,
        quats=gaussians.quaternions_wxyz,
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        colors=seen_colors(gaussians, view),
        viewmats=torch.from_numpy(view.world_to_camera).float().to(device).unsqueeze(0),
        Ks=torch.tensor([intrinsics], device=device),
        width=view.width,
        height=view.height,
        near_plane=NEAR_M,
        eps2d=LOW_PASS_PX2,
        rasterize_mode="antialiased",
        render_mode="RGB+ED",
    )
    covered = alpha[0, ..., 0]
    # ED is the depth divided by the coverage, which means nothing where that is 0.
    return rendered[0, ..., :3], torch.where(covered > 0, rendered[0, ..., 3], 0.0), covered


def _render_on_cpu(gaussians: Gaussians, view: View) -> _Layers:
    try:
        # This imports numba, which only the extra `preview` installs.
        from sharp_cog.preview.rasterize import rasterize
    except ImportError as error:
        raise NotInstalledError(
            f"rendering needs the extra 'preview' ({error}): run .venv/bin/pip install -e '.[preview]'"
        ) from error
    rendering = rasterize(gaussians, view)
    return torch.from_numpy(rendering.rgb), torch.from_numpy(rendering.depth_m), torch.from_numpy(rendering.alpha)

"""The CPU rasterizer, compared with a brute-force reference in float64 and with gsplat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.preview import rasterize as module
from sharp_cog.preview.rasterize import rasterize
from sharp_cog.preview.render import render
from sharp_cog.preview.view import View

Floats = NDArray[np.float64]


def scene(num: int, seed: int, *, max_scale: float = 0.2) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    means = torch.cat([uniform(-1, 1, num, 2), uniform(1, 4, num, 1)], dim=1)
    quaternions = torch.nn.functional.normalize(torch.randn(num, 4, generator=generator), dim=-1)
    return Gaussians(
        means=means,
        scales=uniform(0.005, max_scale, num, 3),
        quaternions_wxyz=quaternions * torch.where(quaternions[:, :1] < 0, -1.0, 1.0),
        colors_linear=uniform(0, 1, num, 3),
        opacities=uniform(0, 1, num),
    )


def brute_force(gaussians: Gaussians, view: View) -> tuple[Floats, Floats]:
    """Evaluate every Gaussian at every pixel in float64, straight from the definition; return colour and alpha."""
    means = gaussians.means.double().numpy()
    rotation, offset = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
    axes = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True).as_matrix()
    half_diagonals = axes * gaussians.scales.double().numpy()[:, None, :]
    in_camera = means @ rotation.T + offset
    focal = view.focal_length_px
    rows, columns = np.mgrid[: view.height, : view.width] + 0.5
    rgb = np.zeros((view.height, view.width, 3))
    transmittance = np.ones((view.height, view.width))
    for i in np.argsort(in_camera[:, 2], kind="stable"):
        x, y, z = in_camera[i]
        if z <= module.NEAR_M:
            continue
        limit_x, limit_y = 1.3 * 0.5 * view.width / focal, 1.3 * 0.5 * view.height / focal
        jacobian = np.array(
            [
                [focal / z, 0, -focal / z * np.clip(x / z, -limit_x, limit_x)],
                [0, focal / z, -focal / z * np.clip(y / z, -limit_y, limit_y)],
            ]
        )
        factor = jacobian @ rotation @ half_diagonals[i]
        narrow = factor @ factor.T
        wide = narrow + module.LOW_PASS_PX2 * np.eye(2)
        opacity = gaussians.opacities[i].item() * np.sqrt(np.linalg.det(narrow) / np.linalg.det(wide))
        inverse = np.linalg.inv(wide)
        dx = columns - (focal * x / z + view.width / 2)
        dy = rows - (focal * y / z + view.height / 2)
        exponent = -0.5 * (inverse[0, 0] * dx * dx + inverse[1, 1] * dy * dy) - inverse[0, 1] * dx * dy
        alpha = np.minimum(module.MAX_ALPHA, opacity * np.exp(exponent))
        alpha[(alpha < module.MIN_ALPHA) | (transmittance < module.MIN_TRANSMITTANCE)] = 0
        rgb += (alpha * transmittance)[..., None] * gaussians.colors_linear[i].double().numpy()
        transmittance *= 1 - alpha
    return rgb, 1 - transmittance


def rotated(angle_degrees: float, shift_m: tuple[float, float, float]) -> Floats:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("y", angle_degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift_m
    return matrix


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "world_to_camera", [np.eye(4), rotated(20, (0.1, -0.2, 0.3)), rotated(-35, (0.5, 0, -1.2))], ids=["front", "a", "b"]
)
def test_images_match_the_definition_in_float64(seed: int, world_to_camera: Floats) -> None:
    gaussians = scene(80, seed)
    view = View(width=70, height=50, focal_length_px=60.0, world_to_camera=world_to_camera)
    rendering = rasterize(gaussians, view)
    rgb, alpha = brute_force(gaussians, view)
    # An alpha close to 1/255 may fall on either side of that limit in float32.
    assert np.quantile(np.abs(rendering.rgb - rgb), 0.999) < 2e-5
    assert np.abs(rendering.rgb - rgb).max() < module.MIN_ALPHA
    assert np.quantile(np.abs(rendering.alpha - alpha), 0.999) < 2e-5


def test_one_opaque_gaussian_shows_its_colour_and_depth() -> None:
    gaussians = Gaussians(
        means=torch.tensor([[0.0, 0.0, 2.0]]),
        scales=torch.full((1, 3), 0.5),
        quaternions_wxyz=torch.tensor([[1.0, 0, 0, 0]]),
        colors_linear=torch.tensor([[0.2, 0.4, 0.6]]),
        opacities=torch.ones(1),
    )
    rendering = rasterize(gaussians, View(width=33, height=33, focal_length_px=100.0))
    assert rendering.alpha[16, 16] == pytest.approx(module.MAX_ALPHA, abs=1e-6)
    np.testing.assert_allclose(rendering.rgb[16, 16] / rendering.alpha[16, 16], [0.2, 0.4, 0.6], rtol=1e-5)
    assert rendering.depth_m[16, 16] == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("where", ["none", "behind", "aside", "transparent"])
def test_invisible_gaussians_leave_the_image_black(where: str) -> None:
    gaussians = scene(0 if where == "none" else 5, 0)
    shift = {"behind": (0.0, 0.0, -9.0), "aside": (90.0, 0.0, 0.0)}.get(where, (0.0, 0.0, 0.0))
    if where == "transparent":
        gaussians.opacities.zero_()
    rendering = rasterize(gaussians, View(width=20, height=10, focal_length_px=20.0, world_to_camera=rotated(0, shift)))
    assert rendering.rgb.shape == (10, 20, 3)
    assert not rendering.rgb.any()
    assert not rendering.alpha.any()
    assert not rendering.depth_m.any()


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(3))
def test_gsplat_renders_the_same_on_cuda(seed: int) -> None:
    """Both renderers through one function; gsplat cuts Gaussians off at three deviations, ours at an alpha of 1/255."""
    pytest.importorskip("gsplat")
    gaussians, view = scene(400, seed), View(width=160, height=96, focal_length_px=120.0)
    on_cuda = gaussians.map(torch.Tensor.cuda)
    image, depth_m = render(gaussians, view)
    same_image, same_depth_m = render(on_cuda, view)
    assert np.abs(image.astype(int) - same_image).max() <= 4
    assert np.median(np.abs(depth_m - same_depth_m)) < 1e-3


def test_torch_keeps_its_number_of_threads() -> None:
    """Torch's results depend on it: a video must not change the splat of the next request by a bit."""
    before = torch.get_num_threads()
    gaussians = scene(10, seed=0)
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            rasterize(gaussians, View(width=32, height=32, focal_length_px=32.0))
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)

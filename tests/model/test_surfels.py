"""Surfels: their planes, their shape in the photograph's view, and their rotations against scipy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sharp_cog.model.surfels import Sheet, gaussians_on

CELL = 1 / 64


def sheet(num: int = 200) -> Sheet:
    """Return cells on random planes, which lean in all directions."""
    rng = np.random.default_rng(3)

    def values(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, num)).float()

    return Sheet(
        x=values(-1, 1),
        y=values(-1, 1),
        disparity=values(0.2, 2.0),
        slope_x=values(-1.2, 1.2),
        slope_y=values(-1.2, 1.2),
        colors_srgb=torch.rand(num, 3),
        cell_size=CELL,
        spread=torch.full((num,), 0.8),
    )


def covariances(cells: Sheet) -> NDArray[np.float64]:
    gaussians = gaussians_on([cells])
    axes = Rotation.from_quat(gaussians.quaternions_wxyz[0].double().numpy(), scalar_first=True).as_matrix()
    scaled = axes * gaussians.scales[0].double().numpy()[:, None, :]
    product: NDArray[np.float64] = scaled @ scaled.transpose(0, 2, 1)
    return product


def test_a_gaussian_is_flat_and_lies_in_the_plane_of_its_disparity() -> None:
    cells = sheet()
    mean, covariance = gaussians_on([cells]).means[0].double().numpy(), covariances(cells)
    x, y, disparity, slope_x, slope_y = (
        values.double().numpy() for values in (cells.x, cells.y, cells.disparity, cells.slope_x, cells.slope_y)
    )
    np.testing.assert_allclose(mean, np.stack([x, y, np.ones_like(x)], 1) / disparity[:, None], rtol=1e-6, atol=1e-6)
    # 1 / z = a x + b y + c, with x = X / z, is the plane a X + b Y + c Z = 1.
    steep = np.maximum(np.abs(slope_x), np.abs(slope_y)) * CELL / disparity > 0.11
    normal = np.stack([slope_x, slope_y, disparity - slope_x * x - slope_y * y], axis=1)
    np.testing.assert_allclose((normal * mean).sum(1), 1, rtol=1e-5)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    thickness = np.sqrt(np.einsum("ni,nij,nj->n", normal, covariance, normal))
    np.testing.assert_allclose(thickness[~steep], (0.05 * CELL / disparity)[~steep], rtol=1e-3)
    assert (~steep).sum() > 150


def test_a_gaussian_is_a_round_blob_of_its_spread_in_the_photograph() -> None:
    cells = sheet()
    mean, covariance = gaussians_on([cells]).means[0].double().numpy(), covariances(cells)
    # The projection to (X / Z, Y / Z), linearised at the centre.
    jacobian = np.zeros((len(mean), 2, 3))
    jacobian[:, 0, 0] = jacobian[:, 1, 1] = 1 / mean[:, 2]
    jacobian[:, :, 2] = -mean[:, :2] / mean[:, 2:] ** 2
    projected = jacobian @ covariance @ jacobian.transpose(0, 2, 1)
    # The thickness adds a little.
    np.testing.assert_allclose(projected, np.broadcast_to((0.8 * CELL) ** 2 * np.eye(2), projected.shape), atol=2e-6)


def test_very_steep_surfaces_do_not_become_streaks() -> None:
    cells = sheet(1)
    cells = Sheet(
        **{**{name: getattr(cells, name) for name in Sheet.__dataclass_fields__}, "slope_x": torch.tensor([1e4])}
    )
    gaussians = gaussians_on([cells])
    assert gaussians.scales.isfinite().all()
    assert gaussians.quaternions_wxyz.isfinite().all()
    assert (gaussians.scales * cells.disparity).max() < 0.25 * CELL * 60

"""MoGe-2 (arXiv 2507.02546) in plain torch: depth in metres and the focal length from one image.

Attribute names are those of the checkpoint, which holds its own sizes. The head for surface normals, which some
checkpoints have, is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sharp_cog.estimators import dinov2
from sharp_cog.estimators.estimate import Estimate, fill, normalized, pixels_of, resized
from sharp_cog.imaging.images import SourceImage

_NUM_LEVELS = 5
"""Feature maps of the decoder; each is twice as large as the one before."""

_MAX_OUTPUT_PIXELS = 4_000_000
"""Maximum number of points; the depth map of a larger image is enlarged, as its points would take gigabytes."""

_SOLVER_SIDE = 64
"""Points along each side of the grid from which focal length and shift are computed."""

_MASK_THRESHOLD = 0.5
"""Probability above which a pixel has a surface."""

_UNUSED = ("normal_head.", "encoder.image_mean", "encoder.image_std", "encoder.backbone.mask_token")
"""Starts of the names in the checkpoint that are not used."""


class _ResidualBlock(nn.Module):
    """Two convolutions with replicated borders, added to their input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        # The identities stand where other configurations have norms.
        self.layers = nn.Sequential(
            *(nn.Identity(), nn.ReLU(), _conv3(channels, hidden)),
            *(nn.Identity(), nn.ReLU(), _conv3(hidden, channels)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        mixed: Tensor = features + self.layers(features)
        return mixed


def _conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, padding_mode="replicate")


def _conv1(channels_in: int | None, channels_out: int | None) -> nn.Module:
    if channels_in is None or channels_out is None:
        return nn.Identity()
    return nn.Conv2d(channels_in, channels_out, kernel_size=1)


def _upsampler(kind: str, channels_in: int, channels_out: int) -> nn.Sequential:
    """Return the layers that double the size of a map.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind == "conv_transpose":
        first: nn.Module = nn.ConvTranspose2d(channels_in, channels_out, kernel_size=2, stride=2)
        return nn.Sequential(first, _conv3(channels_out, channels_out))
    if kind == "bilinear":
        first = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        return nn.Sequential(first, _conv3(channels_in, channels_out))
    raise ValueError(f"its decoder has the resampler {kind!r}, which is unknown")


class ConvStack(nn.Module):
    """Decoder of five levels, each twice as large as the one before."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Create the decoder from its description in the checkpoint.

        Raises:
            ValueError: The description has a part that is unknown.
        """
        super().__init__()
        for key in ("res_block_in_norm", "res_block_hidden_norm"):
            if config.get(key) != "none":
                raise ValueError(f"its decoder has the norm {config.get(key)!r}, which is unknown")
        if config.get("activation", "relu") != "relu":
            raise ValueError(f"its decoder has the activation {config['activation']!r}, which is unknown")
        widths = config["dim_res_blocks"]
        factor = config.get("dim_times_res_block_hidden", 1)
        num_blocks = _per_level(config.get("num_res_blocks", 1), len(widths))
        kinds = _per_level(config["resamplers"], len(widths) - 1)
        inputs, outputs = (_per_level(config[key], len(widths)) for key in ("dim_in", "dim_out"))
        self.input_blocks = nn.ModuleList(_conv1(*pair) for pair in zip(inputs, widths, strict=True))
        self.resamplers = nn.ModuleList(
            _upsampler(kind, *pair) for kind, pair in zip(kinds, itertools.pairwise(widths), strict=True)
        )
        self.res_blocks = nn.ModuleList(
            nn.Sequential(*(_ResidualBlock(width, factor * width) for _ in range(count)))
            for width, count in zip(widths, num_blocks, strict=True)
        )
        self.output_blocks = nn.ModuleList(_conv1(*pair) for pair in zip(widths, outputs, strict=True))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Decode five maps, the coarsest first.

        Args:
            features: (B, C, H, W), (B, C', 2 H, 2 W), and so on.

        Returns:
            Five maps of the same sizes.
        """
        mixed, outputs = self.input_blocks[0](features[0]), []
        for level, blocks in enumerate(self.res_blocks):
            if level:
                mixed = self.resamplers[level - 1](mixed) + self.input_blocks[level](features[level])
            mixed = blocks(mixed)
            outputs.append(self.output_blocks[level](mixed))
        return outputs


def _per_level(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


class _Encoder(nn.Module):
    """DINOv2 and the projections of its outputs, under their names in the checkpoint."""

    def __init__(self, backbone: dinov2.DINOv2, intermediate_layers: int | Sequence[int], dim_out: int) -> None:
        super().__init__()
        self.backbone = backbone
        num_blocks = len(backbone.blocks)
        is_count = isinstance(intermediate_layers, int)
        self.blocks = (
            tuple(range(num_blocks - intermediate_layers, num_blocks)) if is_count else tuple(intermediate_layers)  # type: ignore[operator, arg-type]
        )
        width = backbone.cls_token.shape[-1]
        self.output_projections = nn.ModuleList(nn.Conv2d(width, dim_out, kernel_size=1) for _ in self.blocks)

    def forward(self, pixels: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Map pixels (B, 3, H, W) in [0, 1] to features (B, dim_out, rows, columns) and the class token (B, width)."""
        size = (rows * dinov2.PATCH_SIZE, columns * dinov2.PATCH_SIZE)
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        maps, class_token = self.backbone(normalized(pixels), self.blocks)
        projected = [project(features) for project, features in zip(self.output_projections, maps, strict=True)]
        return torch.stack(projected, dim=1).sum(dim=1), class_token


class MoGe(nn.Module):
    """MoGe-2: points up to a shift in depth, a mask of valid pixels, and the metric scale."""

    def __init__(self, config: Mapping[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        """Create the network.

        Args:
            config: Description of the network from the checkpoint.
            shapes: Shapes of the checkpoint's tensors, by name.

        Raises:
            ValueError: The description has a part that is unknown.
            KeyError: The description lacks a part.
        """
        super().__init__()
        encoder = config["encoder"]
        self.encoder = _Encoder(
            dinov2.from_shapes(shapes, "encoder.backbone."), encoder["intermediate_layers"], encoder["dim_out"]
        )
        self.neck = ConvStack(config["neck"])
        self.points_head = ConvStack(config["points_head"])
        self.mask_head = ConvStack(config["mask_head"])
        sizes = config["scale_head"]["dims"]
        pairs = list(itertools.pairwise(sizes))
        hidden = [layer for pair in pairs[:-1] for layer in (nn.Linear(*pair), nn.ReLU())]
        self.scale_head = nn.Sequential(*hidden, nn.Linear(*pairs[-1]))
        # Fewer tokens are faster and coarser; the range is that of the training.
        self.num_tokens = max(config["num_tokens_range"])
        if config["remap_output"] != "exp":
            raise ValueError(f"its points are remapped by {config['remap_output']!r}, which is unknown")

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate the geometry of an image.

        Args:
            pixels: (B, 3, H, W) in [0, 1].

        Returns:
            Points (B, H, W, 3), up to a shift of z and a common factor; the probability (B, H, W) that a pixel has a
            surface; and the factor (B,) to metres.
        """
        height, width = pixels.shape[-2:]
        aspect = width / height
        rows, columns = round((self.num_tokens / aspect) ** 0.5), round((self.num_tokens * aspect) ** 0.5)
        coarse, class_token = self.encoder(pixels, rows, columns)
        features = []
        for level in range(_NUM_LEVELS):
            plane = view_plane(columns << level, rows << level, aspect).to(pixels)
            plane = plane.permute(2, 0, 1).unsqueeze(0).expand(len(pixels), -1, -1, -1)
            features.append(plane if level else torch.cat([coarse, plane], dim=1))
        features = self.neck(features)
        points = resized(self.points_head(features)[-1], height, width).permute(0, 2, 3, 1)
        mask = resized(self.mask_head(features)[-1], height, width).squeeze(1).sigmoid()
        xy, log_z = points.split([2, 1], dim=-1)
        z = log_z.exp()
        return torch.cat([xy * z, z], dim=-1), mask, self.scale_head(class_token).squeeze(1).exp()


def view_plane(width: int, height: int, aspect: float) -> Tensor:
    """Return the image plane (height, width, 2) at the distance of one focal length, in units of half the diagonal."""
    diagonal = math.hypot(aspect, 1.0)
    half_x, half_y = (side / diagonal * (size - 1) / size for side, size in ((aspect, width), (1.0, height)))
    x, y = torch.linspace(-half_x, half_x, width), torch.linspace(-half_y, half_y, height)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def solve_shift(plane: NDArray[np.float64], points: NDArray[np.float64], focal: float | None) -> tuple[float, float]:
    """Find the shift of z, and the focal length if it is unknown, with which points project to their pixels.

    Minimises the sum of |focal * xy / (z + shift) - plane|^2 by Levenberg's method (1944), with the best focal length
    for each shift in closed form.

    Args:
        plane: (N, 2), pixels in units of half the diagonal.
        points: (N, 3), points up to the shift.
        focal: Focal length in units of half the diagonal; None if it is unknown.

    Returns:
        The shift and the focal length.
    """
    xy, z = points[:, :2], points[:, 2:]

    def residual(shift: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Return the residuals, their derivative by the shift, and the focal length."""
        projected = xy / (z + shift)
        slope = -projected / (z + shift)
        if focal is not None:
            return focal * projected - plane, focal * slope, focal
        dot, square = float((projected * plane).sum()), float((projected * projected).sum())
        best = dot / square
        change = float((slope * plane).sum()) / square - 2.0 * best * float((projected * slope).sum()) / square
        return best * projected - plane, change * projected + best * slope, best

    shift, damping = 0.0, 1e-3
    error, derivative, found = residual(shift)
    cost = float((error * error).sum())
    for _ in range(100):
        curvature = float((derivative * derivative).sum())
        if curvature == 0:
            break
        step = -float((derivative * error).sum()) / (curvature * (1.0 + damping))
        # A point in the camera's plane or behind it would project anywhere.
        if shift + step <= -float(z.min()):
            damping = 10.0 * damping + 1.0
            continue
        next_error, next_derivative, next_found = residual(shift + step)
        next_cost = float((next_error * next_error).sum())
        if next_cost > cost:
            damping = 10.0 * damping + 1.0
            continue
        is_done = abs(step) <= 1e-9 * (abs(shift) + float(z.min()))
        shift, error, derivative, found, cost = shift + step, next_error, next_derivative, next_found, next_cost
        damping /= 10.0
        if is_done:
            break
    return shift, found


@dataclass(frozen=True, slots=True)
class MoGeEstimator:
    """MoGe-2 as an estimator."""

    model: MoGe
    device: torch.device

    @torch.inference_mode()
    def __call__(self, source: SourceImage) -> Estimate:
        """Estimate the depth of an image, with its focal length if that is known, and else with the estimated one."""
        camera = source.camera
        pixels = pixels_of(source, self.device)
        factor = min(1.0, math.sqrt(_MAX_OUTPUT_PIXELS / (camera.width * camera.height)))
        if factor < 1.0:
            size = (round(camera.height * factor), round(camera.width * factor))
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        points, mask, scale = self.model(pixels)
        half_diagonal_px = math.hypot(camera.width, camera.height) / 2
        known = None if camera.focal_length_source == "default" else camera.focal_length_px / half_diagonal_px
        shift, focal = _shift_and_focal(points[0], mask[0] > _MASK_THRESHOLD, known)
        depth = (points[0, ..., 2] + shift) * scale
        is_valid = (mask[0] > _MASK_THRESHOLD) & (depth > 0)
        depth = torch.where(is_valid, depth, torch.inf)
        if factor < 1.0:
            # Not bilinear: between a surface and the infinite sky, there is nothing.
            depth = F.interpolate(depth[None, None], (camera.height, camera.width), mode="nearest")[0, 0]
        return Estimate(
            depth_m=depth.float().cpu().numpy(),
            focal_length_px=focal * half_diagonal_px if known is None else None,
        )


def _shift_and_focal(points: Tensor, mask: Tensor, focal: float | None) -> tuple[float, float]:
    """Solve for the shift and the focal length on a grid of the valid points (H, W, 3)."""
    height, width = points.shape[:2]
    plane = view_plane(width, height, width / height).to(points)
    rows, columns = (
        torch.arange(_SOLVER_SIDE, device=points.device) * size // _SOLVER_SIDE for size in (height, width)
    )
    chosen = mask[rows][:, columns].cpu().numpy()
    if chosen.sum() < 2:  # An image without surfaces: any focal length fits.
        return 0.0, focal or 1.0
    grids = [values[rows][:, columns].double().cpu().numpy()[chosen] for values in (plane, points)]
    return solve_shift(grids[0], grids[1], focal)


def from_checkpoint(content: Any) -> MoGe:
    """Create the network from the content of the checkpoint's file.

    Raises:
        ValueError: It is no checkpoint of MoGe-2, or one with unknown parts.
    """
    try:
        config, state = content["model_config"], content["model"]
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
        with torch.device("meta"):
            model = MoGe(config, {name: tuple(tensor.shape) for name, tensor in state.items()})
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"it is no checkpoint of MoGe-2 ({error})") from error
    fill(model, state)
    return model

"""Depth Pro and Depth Anything, by the real classes of transformers with small random weights in a local folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sharp_cog import estimators
from sharp_cog.imaging import images

CPU = torch.device("cpu")
DINO = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}


def photo(path: Path, *, equivalent_mm: int | None = None) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    if equivalent_mm is not None:
        exif.get_ifd(0x8769)[0xA405] = equivalent_mm
    Image.fromarray(noise).resize((120, 80), Image.Resampling.BICUBIC).save(path, exif=exif, quality=100)
    return path


@pytest.fixture(scope="module")
def depth_pro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Depth Pro of 16 channels for images of 256 pixels, with its head for the field of view."""
    torch.manual_seed(0)
    dino = {"model_type": "dinov2", "image_size": 64, "patch_size": 16, **DINO}
    config = transformers.DepthProConfig(
        fusion_hidden_size=16,
        patch_size=64,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[16, 16],
        scaled_images_ratios=[0.25, 0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.5, 0.25],
        scaled_images_feature_dims=[16, 16, 16],
        image_model_config=dino,
        patch_model_config=dino,
        fov_model_config=dino,
        use_fov_model=True,
        num_fov_head_layers=0,
    )
    model = transformers.DepthProForDepthEstimation(config)
    with torch.no_grad():  # So that depths are finite, and the field of view is that of a lens.
        list(model.head.parameters())[-1].fill_(0.3)
        fov = next(p for name, p in reversed(list(model.fov_model.head.named_parameters())) if name.endswith("bias"))
        fov.fill_(55.0)
    folder = tmp_path_factory.mktemp("depth_pro")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = transformers.Dinov2Config(
        image_size=70, patch_size=14, out_features=stages, apply_layernorm=True, reshape_hidden_states=False, **DINO
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        depth_estimation_type="metric",
        max_depth=20,
    )
    folder = tmp_path_factory.mktemp("depth_anything")
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    return folder


def test_depth_pro_estimates_metres_and_the_focal_length(depth_pro: Path, tmp_path: Path) -> None:
    source = images.decode(photo(tmp_path / "photo.png").read_bytes())
    estimate = estimators.load("depth-pro", checkpoint=str(depth_pro), device=CPU)(source)
    model = transformers.DepthProForDepthEstimation.from_pretrained(depth_pro).eval()
    pixels = torch.from_numpy(source.rgb).permute(2, 0, 1)[None].float() / 255
    pixels = torch.nn.functional.interpolate(pixels, size=(256, 256), mode="bilinear")
    with torch.no_grad():
        output = model(pixel_values=(pixels - 0.5) / 0.5)
    degrees = float(output.field_of_view)
    assert 20 < degrees < 120
    # By definition, half of the width is seen under half of the field of view.
    focal_length_px = 60 / np.tan(np.radians(degrees) / 2)
    assert estimate.focal_length_px == pytest.approx(focal_length_px, rel=1e-5)
    assert estimate.depth_m.shape == (80, 120)
    assert estimate.depth_m.dtype == np.float32
    inverse = torch.nn.functional.interpolate(output.predicted_depth[None], size=(80, 120), mode="bilinear")
    expected = 1 / (inverse[0, 0].numpy() * 120 / focal_length_px).clip(1e-4, 1e4)
    np.testing.assert_allclose(estimate.depth_m, expected, rtol=1e-4)


def test_the_focal_length_of_the_image_is_believed_before_the_estimated_one(depth_pro: Path, tmp_path: Path) -> None:
    estimator = estimators.load("depth-pro", checkpoint=str(depth_pro), device=CPU)
    plain, with_exif = (
        images.decode(photo(tmp_path / f"{mm}.jpg", equivalent_mm=mm).read_bytes()) for mm in (None, 50)
    )
    estimated, known = estimator(plain), estimator(with_exif)
    assert estimated.focal_length_px is not None
    factor = with_exif.camera.focal_length_px / estimated.focal_length_px
    seen = np.maximum(known.depth_m, estimated.depth_m) < 1e3  # Farther pixels are clamped.
    assert seen.mean() > 0.9
    np.testing.assert_allclose(known.depth_m[seen], factor * estimated.depth_m[seen], rtol=1e-4)


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (97, 97)])
def test_depth_anything_estimates_metres_with_the_size_of_the_image(
    depth_anything: Path, size: tuple[int, int]
) -> None:
    file = io.BytesIO()
    Image.new("RGB", size, "grey").save(file, "PNG")
    source = images.decode(file.getvalue())
    estimate = estimators.load("depth-anything-v2-metric", checkpoint=str(depth_anything), device=CPU)(source)
    assert estimate.depth_m.shape == size[::-1]
    assert 0 < estimate.depth_m.min() <= estimate.depth_m.max() <= 20
    assert estimate.focal_length_px is None

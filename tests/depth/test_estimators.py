"""Depth Pro and Depth Anything by the real classes of transformers, with small random weights in a local folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sharp_cog.cli import main
from sharp_cog.config.options import ESTIMATORS
from sharp_cog.depth.maps import decode, estimators
from sharp_cog.errors import CheckpointMissingError, NotInstalledError
from sharp_cog.imaging import images
from sharp_cog.preview import movie
from tests import parity

CPU = torch.device("cpu")
DINO = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}


def picture(path: Path, *, equivalent_mm: int | None = None) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    if equivalent_mm is not None:
        exif.get_ifd(0x8769)[0xA405] = equivalent_mm
    Image.fromarray(noise).resize((120, 80), Image.Resampling.BICUBIC).save(path, exif=exif, quality=100)
    return path


@pytest.fixture(scope="module")
def depth_pro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth Pro of 16 channels for pictures of 256 pixels, with its head for the field of view."""
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
    with torch.no_grad():  # So that no depth is as far as it can be, and the field of view is a lens's.
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


def test_every_estimator_has_a_checkpoint() -> None:
    assert tuple(estimators.CHECKPOINTS) == ESTIMATORS


def test_depth_pro_gives_metres_and_the_focal_length(depth_pro: Path, tmp_path: Path) -> None:
    photograph = images.decode(picture(tmp_path / "photo.png").read_bytes())
    estimate = estimators.load("depth-pro", checkpoint=str(depth_pro), device=CPU)(photograph)
    model = transformers.DepthProForDepthEstimation.from_pretrained(depth_pro).eval()
    pixels = torch.from_numpy(photograph.rgb).permute(2, 0, 1)[None].float() / 255
    pixels = torch.nn.functional.interpolate(pixels, size=(256, 256), mode="bilinear")
    with torch.no_grad():
        output = model(pixel_values=(pixels - 0.5) / 0.5)
    degrees = float(output.field_of_view)
    assert 20 < degrees < 120
    # By the definition: half of the width is seen under half of the field of view.
    focal_length_px = 60 / np.tan(np.radians(degrees) / 2)
    assert estimate.focal_length_px == pytest.approx(focal_length_px, rel=1e-5)
    assert estimate.depth_m.shape == (80, 120)
    assert estimate.depth_m.dtype == np.float32
    inverse = torch.nn.functional.interpolate(output.predicted_depth[None], size=(80, 120), mode="bilinear")
    expected = 1 / (inverse[0, 0].numpy() * 120 / focal_length_px).clip(1e-4, 1e4)
    np.testing.assert_allclose(estimate.depth_m, expected, rtol=1e-4)


def test_a_focal_length_that_the_picture_tells_is_believed(depth_pro: Path, tmp_path: Path) -> None:
    estimator = estimators.load("depth-pro", checkpoint=str(depth_pro), device=CPU)
    silent, telling = (
        images.decode(picture(tmp_path / f"{mm}.jpg", equivalent_mm=mm).read_bytes()) for mm in (None, 50)
    )
    estimated, told = estimator(silent), estimator(telling)
    assert estimated.focal_length_px is not None
    factor = telling.camera.focal_length_px / estimated.focal_length_px
    seen = np.maximum(told.depth_m, estimated.depth_m) < 1e3  # What is farther meets the network's own end.
    assert seen.mean() > 0.9
    np.testing.assert_allclose(told.depth_m[seen], factor * estimated.depth_m[seen], rtol=1e-4)


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (97, 97)])
def test_depth_anything_gives_metres_of_the_pictures_size(depth_anything: Path, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", size, "grey").save(file, "PNG")
    photograph = images.decode(file.getvalue())
    estimate = estimators.load("depth-anything-v2-metric", checkpoint=str(depth_anything), device=CPU)(photograph)
    assert estimate.depth_m.shape == size[::-1]
    assert 0 < estimate.depth_m.min() <= estimate.depth_m.max() <= 20
    assert estimate.focal_length_px is None


def test_a_checkpoint_that_is_not_there_is_told_with_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissingError, match=r"hf download .* --local-dir FOLDER"):
        estimators.load("depth-pro", checkpoint=str(tmp_path), device=CPU)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"\.\[depth\]"):
        estimators.load("depth-pro", checkpoint=None, device=CPU)


def test_depth_writes_maps_that_predict_takes(
    depth_pro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, maps = tmp_path / "photos", tmp_path / "maps"
    photos.mkdir()
    picture(photos / "a.png")
    picture(photos / "b.png", equivalent_mm=35)
    (photos / "broken.jpg").write_bytes(b"text")
    flags = ["--estimator", "depth-pro", "--estimator-checkpoint", str(depth_pro)]
    assert main(["depth", str(photos), "-o", str(maps), *flags]) == 2
    said = capsys.readouterr()
    assert "broken.jpg" in said.err
    assert f"--depth {maps}" in said.out
    assert sorted(path.name for path in maps.iterdir()) == ["a.depth.webp", "a.npy", "b.depth.webp", "b.npy"]
    photograph = images.decode((photos / "a.png").read_bytes())
    depth_map = decode((maps / "a.npy").read_bytes(), photograph.camera)
    assert depth_map.is_metric
    (photos / "broken.jpg").unlink()
    assert "a.npy: " in said.out
    assert "focal length estimated" in said.out
    assert main(["depth", str(photos / "a.png"), "-o", str(tmp_path / "one"), *flags]) == 0
    assert (tmp_path / "one" / "a.npy").is_file(), "a folder, also for one picture"
    splats = tmp_path / "splats"
    assert main(["predict", str(photos), "--model", "lift", "--depth", str(maps), "-o", f"{splats}/"]) == 0
    assert sorted(path.name for path in splats.iterdir()) == ["a.ply", "b.ply"]


def test_predict_makes_the_depth_on_the_way(
    depth_pro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture(tmp_path / "photo.png")
    flags = ["--model", "lift", "--depth-from", "depth-pro", "--estimator-checkpoint", str(depth_pro)]
    assert main(["predict", str(photo), *flags]) == 0
    assert "(estimated from the picture)" in capsys.readouterr().out
    telling = picture(tmp_path / "telling.jpg", equivalent_mm=35)
    assert main(["predict", str(telling), *flags]) == 0
    assert "(from EXIF)" in capsys.readouterr().out
    assert main(["predict", str(photo), *flags, "--depth", str(tmp_path / "telling.jpg")]) == 2
    assert "are both given" in capsys.readouterr().err


def test_compare_depth_lays_them_side_by_side(
    depth_pro: Path, depth_anything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARP_MODEL", "lift")
    monkeypatch.setattr(movie, "PREVIEW", movie.Shot(duration_s=0.1, fps=10, width=64, reach=0.02))
    photo, folder = picture(tmp_path / "photo.png"), tmp_path / "compared"
    checkpoints = ["--depth-pro", str(depth_pro), "--depth-anything", str(depth_anything)]
    names = "depth-pro,depth-anything-v2-metric"
    assert main(["compare-depth", str(photo), "-o", str(folder), "--estimators", names, *checkpoints]) == 0
    for name in names.split(","):
        for suffix in ("npy", "depth.webp", "ply", "preview.webp"):
            assert (folder / f"photo.{name}.{suffix}").is_file()
    with Image.open(folder / "photo.depths.png") as sheet:
        assert sheet.size == (960, 2 * (320 + 24))
        assert len(set(sheet.convert("RGB").getdata())) > 500
    assert main(["compare-depth", str(photo), "-o", str(folder), "--estimators", "midas"]) == 2
    assert main(["compare-depth", str(photo), "-o", str(folder), "--estimators", "sharp"]) == 2


def test_sharps_own_depth_is_an_estimator_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "tiny.pt"
    torch.save(parity.state("tiny"), checkpoint)
    monkeypatch.delenv("SHARP_MODEL", raising=False)
    photo = picture(tmp_path / "photo.png")
    flags = ["--estimator", "sharp", "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert main(["depth", str(photo), "-o", str(tmp_path / "own.npy"), *flags]) == 0
    assert np.load(tmp_path / "own.npy").shape == (80, 120)
    assert np.load(tmp_path / "own.npy").dtype.names == ("depth_m",)

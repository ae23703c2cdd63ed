"""Every format by the functions of `sharp_cog.formats`, read back by independent decoders."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.errors import NotInstalledError, OptionError, OutputError, PredictionError, SplatError
from sharp_cog.formats import CODECS, FORMATS, read
from sharp_cog.formats.splat import read_splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from tests.formats.cases import (
    CASES,
    FIELDS,
    READABLE,
    SORTING,
    TOLERANCES,
    assert_same,
    decode,
    decode_as_stored,
    options,
    order_in_file,
    viewer_dir,
    written,
)
from tests.splats import (
    CAMERA,
    SIZES,
    degrees_between,
    extreme_gaussians,
    gaussians_in_front,
    random_gaussians,
    srgb_of,
    with_harmonics,
)


def test_every_format_but_video_has_a_codec() -> None:
    assert {name for name, codec in CODECS.items() if codec.write} == set(FORMATS) - {"mp4"}
    assert {name for name, codec in CODECS.items() if codec.read} - {"ksplat"} == {
        name for name, format_ in FORMATS.items() if format_.is_readable
    }


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_a_written_splat_is_decoded_within_the_formats_precision(case: str, num: int) -> None:
    gaussians = random_gaussians(num)
    assert_same(case, decode(case, written(case, gaussians)), gaussians)


@pytest.mark.parametrize("case", CASES)
def test_extreme_values_are_kept(case: str) -> None:
    """Opacities of 0 and 1, scales of 0 and 3 km, quaternions along the axes, all positions equal."""
    gaussians = extreme_gaussians()
    decoded = decode(case, written(case, gaussians))
    for values in vars(decoded).values():
        assert np.isfinite(values).all()
    np.testing.assert_allclose(decoded.means, gaussians.means, atol=0.5 / 4096)
    tolerance = TOLERANCES[case]
    assert np.isin(np.round(decoded.opacities, 6), [0.0, 1.0]).all()
    assert decoded.opacities.mean() == pytest.approx(0.5, abs=1e-6)
    largest = np.sort(decoded.scales.ravel())[-len(gaussians) // 2 :]
    np.testing.assert_allclose(largest.max(), min(3e3, tolerance.largest_scale), rtol=0.04)
    if case not in SORTING:  # Equal positions cannot be matched.
        angles = degrees_between(decoded.wxyz, gaussians.quaternions_wxyz.numpy())
        assert angles.max() <= tolerance.degrees
        assert np.abs(decoded.srgb - srgb_of(gaussians.colors_linear)).max() <= tolerance.color


@pytest.mark.parametrize("case", READABLE)
@pytest.mark.parametrize("num", SIZES)
def test_our_readers_agree_with_independent_decoders(case: str, num: int, tmp_path: Path) -> None:
    path = tmp_path / "named.splat"
    path.write_bytes(written(case, random_gaussians(num)))
    decoded, gaussians = decode(case, path.read_bytes()), read(path).gaussians
    np.testing.assert_allclose(gaussians.means, decoded.means, atol=2e-6, rtol=2e-6)
    np.testing.assert_allclose(gaussians.scales, decoded.scales, rtol=2e-5)
    np.testing.assert_allclose(srgb_of(gaussians.colors_linear), decoded.srgb.clip(0, 1), atol=2e-6)
    np.testing.assert_allclose(gaussians.opacities, decoded.opacities, atol=1e-6)
    if num:
        assert degrees_between(gaussians.quaternions_wxyz.numpy(), decoded.wxyz).max() < 0.06
        assert gaussians.quaternions_wxyz[:, 0].min() >= 0
        np.testing.assert_allclose(gaussians.quaternions_wxyz.norm(dim=1), 1, atol=1e-6)


def axes_and_centres() -> list[tuple[str, str, bool]]:
    """Return all combinations of format, axes and `center` that are allowed."""
    found = []
    for case, axes, center in itertools.product(CASES, ("opencv", "opengl"), (False, True)):
        format_ = FORMATS["spz" if case == "spz4" else case]
        if not (format_.has_fixed_axes and axes != format_.axes) and not (format_.has_fixed_origin and center):
            found.append((case, axes, center))
    return found


@pytest.mark.parametrize(("case", "axes", "center"), axes_and_centres())
def test_axes_centre_and_scale_are_applied(case: str, axes: str, center: bool) -> None:
    gaussians = random_gaussians(301)
    decoded = decode_as_stored(case, written(case, gaussians, axes=axes, center=center, scale=2.0))
    expected = 2.0 * gaussians.means.double().numpy()
    if center:
        expected = expected - np.median(expected, axis=0)
    if axes == "opengl":
        expected = expected * [1, -1, -1]
    order = order_in_file(case, decoded.means, expected)
    np.testing.assert_allclose(decoded.means, expected[order], atol=0.02)
    np.testing.assert_allclose(decoded.scales.max(), 2 * gaussians.scales.max().item(), rtol=0.04)
    rotated = gaussians.quaternions_wxyz.double().numpy()[order]
    if axes == "opengl":
        w, x, y, z = rotated.T
        rotated = np.stack([-x, w, -z, y], axis=-1)
    assert degrees_between(decoded.wxyz, rotated).max() <= TOLERANCES[case].degrees


@pytest.mark.parametrize("case", ["ply", "compressed_ply", "sog"])
@pytest.mark.parametrize("axes", ["opencv", "opengl"])
@pytest.mark.parametrize("center", [False, True])
def test_a_file_that_states_its_frame_is_read_into_the_photographs(case: str, axes: str, center: bool) -> None:
    gaussians = random_gaussians(200)
    splat = read(written(case, gaussians, axes=axes, center=center))
    assert splat.camera == CAMERA
    nearest = [(gaussians.means - mean).norm(dim=1).min().item() for mean in splat.gaussians.means]
    assert max(nearest) < (1e-5 if case == "ply" else 0.02)


def test_axes_that_a_file_does_not_state_can_be_given(tmp_path: Path) -> None:
    gaussians = random_gaussians(50)
    path = tmp_path / "up.splat"
    formats.write(path, gaussians, CAMERA, OutputOptions(output_format="splat", axes="opengl"))
    for axes, sign in (("auto", -1), ("opencv", -1), ("opengl", 1)):
        heights = np.sort(read(path, axes=axes).gaussians.means[:, 1].numpy())
        np.testing.assert_allclose(heights, np.sort(sign * gaussians.means[:, 1].numpy()), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_same_splat_has_the_same_bytes(case: str) -> None:
    assert written(case, random_gaussians(300)) == written(case, random_gaussians(300))


@pytest.mark.parametrize("case", [*CASES, "html"])
@pytest.mark.parametrize("field", FIELDS)
def test_values_that_are_not_finite_are_never_written(case: str, field: str, tmp_path: Path) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        gaussians = random_gaussians(9)
        getattr(gaussians, field)[4:6] = value
        with pytest.raises(PredictionError, match="2 of 9 Gaussians are not finite"):
            formats.write(tmp_path / "splat", gaussians, CAMERA, options(case), viewer_dir=viewer_dir())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", CASES)
def test_scenes_from_micrometres_to_thousands_of_kilometres_are_written(case: str) -> None:
    for size in (1e-6, 1e2, 5e5):
        gaussians = random_gaussians(500)
        gaussians.means.mul_(size)
        decoded = decode(case, written(case, gaussians))
        extent = gaussians.means.abs().max().item()
        error = np.abs(np.sort(decoded.means[:, 0]) - np.sort(gaussians.means[:, 0].double().numpy())).max()
        assert error <= max(extent * 1e-3, 0.5 / 4096)


def test_a_failed_write_keeps_the_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "splat.ply"
    path.write_bytes(b"old")
    broken = random_gaussians(2)
    broken.means[0, 0] = float("nan")
    with pytest.raises(PredictionError):
        formats.write(path, broken, CAMERA, OutputOptions())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        formats.write(tmp_path / "none" / "splat.ply", random_gaussians(1), CAMERA, OutputOptions())


def test_writers_accept_tensors_with_gradients_and_strides() -> None:
    gaussians = random_gaussians(40)
    strided = Gaussians(
        **{name: torch.stack([getattr(gaussians, name)] * 2, dim=1)[:, 0].requires_grad_() for name in FIELDS}
    )
    with torch.no_grad():
        for case in CASES:
            assert written(case, strided) == written(case, gaussians)


def test_a_splat_without_a_camera_stores_none() -> None:
    for case in ("ply", "compressed_ply", "sog", "glb", "splat", "spz"):
        content = written(case, random_gaussians(5), camera=None)
        assert b"focal_length_px" not in content
        if case != "splat":
            assert read(content).camera is None


def test_the_camera_survives() -> None:
    camera = Camera(width=3, height=4000, focal_length_px=9.5)
    for case in ("ply", "apple_ply", "compressed_ply", "sog", "glb"):
        assert read(written(case, random_gaussians(5), camera=camera)).camera == camera


@pytest.mark.parametrize("case", OUTPUT_FORMATS)
def test_formats_are_known_by_their_suffix(case: str) -> None:
    named = Path(f"a.room{FORMATS[case].suffix.upper()}")
    assert formats.format_of(named) == ("ply" if case == "apple_ply" else case)


def test_unknown_suffixes_are_refused() -> None:
    with pytest.raises(OptionError, match=r"room\.obj.*\.compressed\.ply"):
        formats.format_of(Path("room.obj"))


@pytest.mark.parametrize("case", READABLE)
def test_formats_are_detected_by_their_content(case: str, tmp_path: Path) -> None:
    content, path = written(case, random_gaussians(3)), tmp_path / "room.splat"
    assert formats.detect(content, path) == case
    assert formats.detect(content) == (None if case == "splat" else case)


def test_formats_that_can_only_be_written_are_named() -> None:
    content = written("html", random_gaussians(3))
    assert formats.detect(content) is None
    with pytest.raises(SplatError, match=r"\.html can be written but not read: use .*\.ply, .*\.splat, \.spz, \.sog"):
        read(content)


def test_a_splat_may_begin_like_another_format(tmp_path: Path) -> None:
    """A .splat has no magic bytes: the bytes `glTF` are a coordinate of 13.6 km."""
    gaussians, path = random_gaussians(1), tmp_path / "far.splat"
    gaussians.means[0, 0] = float(np.frombuffer(b"glTF", "<f4")[0])
    path.write_bytes(written("splat", gaussians))
    assert path.read_bytes().startswith(b"glTF")
    for source in (path, str(path)):
        torch.testing.assert_close(read(source).gaussians.means, gaussians.means)


def test_other_contents_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SplatError, match=r"the content is in no format that can be read: use \.ply"):
        read(b"hello")
    (tmp_path / "room.obj").write_bytes(b"hello")
    with pytest.raises(SplatError, match=r"room\.obj is in no format that can be read"):
        read(tmp_path / "room.obj")
    with pytest.raises(SplatError, match=r"none\.splat cannot be read: No such file"):
        read(tmp_path / "none.splat")


def test_a_splat_out_of_range_is_refused() -> None:
    gaussians = random_gaussians(5)
    gaussians.means[3, 1] = 12345.0
    content = written("ply", gaussians).replace(np.float32(12345).tobytes(), np.float32(-3.4e38).tobytes())
    with pytest.raises(SplatError, match=r"3\.4e\+38 m away, the limit is 1e\+38 m"):
        read(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.4e38])
@pytest.mark.parametrize("case", ["ply", "splat"])
def test_gaussians_that_are_broken_can_be_dropped(case: str, value: float, tmp_path: Path) -> None:
    gaussians, path = gaussians_in_front(5), tmp_path / f"room.{case}"
    gaussians.means[3, 1] = 12345.0
    content = written(case, gaussians).replace(np.float32(12345).tobytes(), np.float32(value).tobytes())
    path.write_bytes(content)
    with pytest.raises(SplatError, match=r"1 of 5 Gaussians have .*: set drop_invalid to read the others"):
        read(path)
    splat = read(path, drop_invalid=True)
    assert len(splat.gaussians) == 4
    assert splat.notes[0].startswith("1 of 5 Gaussians are dropped: ")
    assert ("not finite, in means" in splat.notes[0]) == (value != -3.4e38)
    kept = np.sort(gaussians.means[[0, 1, 2, 4], 0].numpy())
    np.testing.assert_array_equal(np.sort(splat.gaussians.means[:, 0].numpy()), kept)


def test_a_splat_without_a_valid_gaussian_is_broken() -> None:
    gaussians = random_gaussians(2)
    gaussians.means[:, 0] = 12345.0
    content = written("ply", gaussians).replace(np.float32(12345).tobytes(), np.float32("nan").tobytes())
    with pytest.raises(SplatError, match="all 2 Gaussians have values that are not finite, in means"):
        read(content, drop_invalid=True)


def test_a_splat_behind_the_camera_is_noted() -> None:
    gaussians = gaussians_in_front(200)
    content = written("spz", gaussians)
    assert read(content).notes == ()
    plain = gzip.decompress(written("spz", gaussians, axes="opencv"))
    # As splat-transform writes them: in the axes of a .ply, without a word about it.
    theirs = gzip.compress(plain[:14] + bytes(1) + plain[15:-12])
    assert "nothing lies ahead of the camera (z is from -" in read(theirs).notes[0]
    assert "name them with input_axes" in read(theirs).notes[0]
    assert read(theirs, axes="opencv").notes == ()
    np.testing.assert_allclose(read(theirs, axes="opencv").gaussians.means, gaussians.means, atol=0.6 / 4096)


def test_what_a_format_cannot_hold_is_told() -> None:
    trained = with_harmonics(random_gaussians(5), 3)

    def losses(camera: Camera | None = None, **chosen: object) -> tuple[str, ...]:
        return formats.losses(trained, camera, OutputOptions.from_mapping(chosen))

    for case in ("ply", "compressed_ply", "spz", "sog", "glb", "usdz", "mp4"):
        assert losses(output_format=case) == ()
    for case in ("splat", "apple_ply"):
        (sentence,) = losses(output_format=case)
        assert sentence.startswith("spherical harmonics of degree 1 to 3 are dropped: colours do not depend on ")
    assert losses(output_format="ply", sh_degree=2) == (
        "spherical harmonics of degree 3 are dropped: colours depend on it less finely in ply",
    )
    assert "splat has no place for the axes opengl" in losses(output_format="splat", axes="opengl")[-1]
    assert losses(output_format="spz", spz_version=2) == ()
    assert "spz has no place for the axes opencv" in losses(output_format="spz", spz_version=2, axes="opencv")[0]
    assert losses(output_format="spz", axes="opencv") == ()
    assert losses(CAMERA, output_format="ply") == ()
    assert losses(CAMERA, output_format="spz") == (
        "spz has no place for the photograph's camera (1200 x 800, focal length 1150 px): it is dropped",
    )


@pytest.mark.parametrize("case", READABLE)
def test_harmonics_survive_where_losses_names_none(case: str) -> None:
    """Turned by the axes of the format, and back."""
    trained = with_harmonics(gaussians_in_front(40), 3)
    if case == "splat":
        assert read_splat(written(case, trained)).gaussians.harmonics is None
        return
    back = read(written(case, trained)).gaussians
    assert back.degree == min(3, FORMATS[case].max_degree)
    if back.harmonics is not None and case != "sog":  # A palette, which its own tests compare.
        assert trained.harmonics is not None
        order = order_in_file(case, back.means.double().numpy(), trained.means.double().numpy())
        step = {"ply": 1e-6, "compressed_ply": 1 / 64, "spz": 8.5 / 128, "glb": 1e-6, "usdz": 1e-3}[case]
        assert (back.harmonics - trained.harmonics[order]).abs().max() <= step


def test_a_camera_out_of_range_is_refused() -> None:
    content = written("ply", random_gaussians(5), center=True)
    start = content.index(b"camera_position")
    changed = content[:start] + b"camera_position 1e39 0 0" + content[content.index(b"\n", start) :]
    with pytest.raises(SplatError, match=r"the camera is at 1e\+39 0\.0 0\.0, beyond the range of float32"):
        read(changed)


@pytest.mark.parametrize("case", ["ply", "compressed_ply", "splat", "spz", "spz4", "sog", "glb"])
def test_truncated_files_are_refused(case: str, tmp_path: Path) -> None:
    content, path = written(case, random_gaussians(5)), tmp_path / "cut.splat"
    for length in range(3, len(content), max(5, len(content) // 300)):
        if case == "splat" and length % 32 == 0:
            continue  # A shorter .splat is complete.
        path.write_bytes(content[:length])
        with pytest.raises(SplatError):
            read(path)


WHOLE = {case: written(case, random_gaussians(300)) for case in (*sorted({*READABLE} - {"apple_ply", "usdz"}), "spz4")}


@given(case=st.sampled_from(list(WHOLE)), edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255))))
def test_changed_bytes_are_a_splat_or_an_error(case: str, edits: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE[case])
    for position, value in edits:
        # Mostly in the header, whose counts the reader depends on.
        content[position % (len(content) if position % 3 == 0 else 512)] = value
    reader = CODECS["spz" if case == "spz4" else case].read
    assert reader is not None
    try:
        gaussians = reader(bytes(content)).gaussians
    except SplatError:
        return
    for name in FIELDS:
        assert getattr(gaussians, name).isfinite().all()
    assert (gaussians.quaternions_wxyz.norm(dim=1) - 1).abs().le(1e-5).all()


def test_missing_packages_are_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotInstalledError, match="scripts/viewer"):
        formats.check(OutputOptions(output_format="html"), viewer_dir=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"\.\[spz\]"):
        formats.check(OutputOptions(output_format="spz", spz_version=4))
    formats.check(OutputOptions(output_format="spz"))

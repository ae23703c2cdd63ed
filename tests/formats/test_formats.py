"""Every format, read back by `tests.decoders` and compared Gaussian by Gaussian within its quantisation."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import gsply
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.errors import NotInstalledError, OptionError, OutputError, PredictionError, SplatError
from sharp_cog.formats import FORMATS, read
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from tests import decoders
from tests.decoders import DECODERS, Decoded, glb_document
from tests.splats import CAMERA, SIZES, degrees_between, extreme_gaussians, random_gaussians, srgb_of

READABLE = ("ply", "apple_ply", "compressed_ply", "splat", "spz")
CASES = [*DECODERS, "spz4"]
FIELDS = ("means", "scales", "quaternions_wxyz", "colors_linear", "opacities")


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The most by which a decoded value may be off, by the format's definition."""

    metres: float
    log_scale: float
    degrees: float
    color: float
    opacity: float
    smallest_scale: float = 1.2e-38
    largest_scale: float = 3.4e38


def degrees_of(half_step: float) -> float:
    """How far a rotation is off at most if three components of its quaternion are off by half a step.

    The fourth, at least 1 / 2, follows from them and doubles the distance; an angle is twice that.
    """
    return float(np.degrees(2 * 2 * np.sqrt(3) * half_step)) + 0.01


FLOAT = Tolerance(metres=2e-6, log_scale=2e-5, degrees=0.06, color=2e-6, opacity=2e-6)
SPZ = Tolerance(
    metres=0.5 / 4096,
    log_scale=0.5 / 16 + 1e-4,
    degrees=degrees_of(0.5 / 511 / np.sqrt(2)),
    color=0.5 / 255 / 0.15 * 0.2821,
    opacity=0.51 / 255,
    smallest_scale=float(np.exp(-10)),
    largest_scale=float(np.exp(255 / 16 - 10)),
)
TOLERANCES = {
    "ply": FLOAT,
    "apple_ply": FLOAT,
    "glb": FLOAT,
    # Of what a chunk spans, which is at most all: 11 bits, for y 10.
    "compressed_ply": Tolerance(
        metres=0.5 / 1023,
        log_scale=0.5 / 1023,
        degrees=degrees_of(0.5 / 1023 * np.sqrt(2)),
        color=0.5 / 255,
        opacity=0.51 / 255,
        smallest_scale=float(np.exp(-20)),
    ),
    # All four components in steps of 1 / 128.
    "splat": Tolerance(metres=2e-6, log_scale=2e-5, degrees=0.9, color=0.51 / 255, opacity=0.51 / 255),
    "spz": SPZ,
    "spz4": SPZ,
    # Positions in 65,536 steps of a logarithm, scales in 256 levels, which lie less closely where few are.
    "sog": Tolerance(
        metres=0.5 / 65535,
        log_scale=1 / 128,
        degrees=degrees_of(0.5 / 255 * np.sqrt(2)),
        color=0.51 / 255,
        opacity=0.51 / 255,
    ),
}


def options(case: str, **more: object) -> OutputOptions:
    if case == "spz4":
        return OutputOptions.from_mapping({"output_format": "spz", "spz_version": 4, **more})
    return OutputOptions.from_mapping({"output_format": case, **more})


def write(case: str, gaussians: Gaussians, folder: Path, **more: object) -> bytes:
    return formats.write(folder / "splat", gaussians, CAMERA, options(case, **more)).read_bytes()


def decode(case: str, content: bytes) -> Decoded:
    return DECODERS["spz" if case == "spz4" else case](content)


def as_opencv(case: str, decoded: Decoded) -> Decoded:
    """Undoes the turn of the formats whose y is up."""
    if case not in ("spz", "spz4", "glb"):
        return decoded
    w, x, y, z = decoded.wxyz.T
    return Decoded(
        means=decoded.means * [1, -1, -1],
        scales=decoded.scales,
        wxyz=np.stack([-x, w, -z, y], axis=-1),
        srgb=decoded.srgb,
        opacities=decoded.opacities,
    )


def order_in_file(case: str, decoded: Decoded, gaussians: Gaussians) -> np.ndarray:
    """Which Gaussian each of the file's is: formats that sort are matched by the nearest position."""
    if case not in ("compressed_ply", "splat"):
        return np.arange(len(gaussians))
    means = gaussians.means.double().numpy()
    nearest = np.array([np.argmin(((means - mean) ** 2).sum(axis=1)) for mean in decoded.means], dtype=int)
    assert sorted(nearest) == list(range(len(gaussians)))
    return nearest


def assert_same(case: str, decoded: Decoded, gaussians: Gaussians, order: np.ndarray) -> None:
    tolerance = TOLERANCES[case]
    assert len(decoded.means) == len(gaussians)
    if not len(gaussians):
        return
    means = gaussians.means.double().numpy()
    allowed = np.full((len(means), 3), tolerance.metres)
    if case == "compressed_ply":
        allowed *= np.ptp(means, axis=0)
        allowed += 1e-6
    elif case == "sog":
        # A step of the logarithm at x is (1 + |x|) as long in metres; float32 adds a hundredth of a step.
        logs = np.sign(means) * np.log1p(np.abs(means))
        allowed = allowed * np.ptp(logs, axis=0) * (1 + np.abs(means)) * 1.02 + 2e-6
    else:
        allowed += 1e-6 * np.abs(means)
    assert (np.abs(decoded.means - means[order]) <= allowed[order]).all()
    scales = gaussians.scales.double().numpy().clip(tolerance.smallest_scale, tolerance.largest_scale)
    log_error = np.abs(np.log(decoded.scales) - np.log(scales[order]))
    span = np.ptp(np.log(scales)) if case in ("compressed_ply", "sog") else 1.0
    assert log_error.max() <= tolerance.log_scale * max(span, 1e-3)
    assert np.median(log_error) <= tolerance.log_scale * max(span, 1e-3) / 4 or case != "sog"
    angles = degrees_between(decoded.wxyz, gaussians.quaternions_wxyz.numpy()[order])
    assert angles.max() <= tolerance.degrees
    assert np.abs(decoded.srgb - srgb_of(gaussians.colors_linear)[order]).max() <= tolerance.color
    assert np.abs(decoded.opacities - gaussians.opacities.double().numpy()[order]).max() <= tolerance.opacity


def test_the_registry_and_the_options_agree() -> None:
    assert tuple(FORMATS) == OUTPUT_FORMATS
    assert all(name == format_.name for name, format_ in FORMATS.items())
    assert all(FORMATS[name].axes == axes for name, axes in FIXED_AXES.items())
    assert formats.NEEDING_CAMERA == FIXED_ORIGINS


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_what_is_read_back_is_what_was_written(case: str, num: int, tmp_path: Path) -> None:
    gaussians = random_gaussians(num)
    decoded = as_opencv(case, decode(case, write(case, gaussians, tmp_path)))
    assert_same(case, decoded, gaussians, order_in_file(case, decoded, gaussians))


@pytest.mark.parametrize("case", CASES)
def test_extremes_stay_what_they_are(case: str, tmp_path: Path) -> None:
    """Opacities of 0 and 1, scales of 0 and 3 km, quaternions along the axes, all positions equal."""
    gaussians = extreme_gaussians()
    decoded = as_opencv(case, decode(case, write(case, gaussians, tmp_path)))
    for values in vars(decoded).values():
        assert np.isfinite(values).all()
    np.testing.assert_allclose(decoded.means, gaussians.means, atol=0.5 / 4096)
    tolerance = TOLERANCES[case]
    assert np.isin(np.round(decoded.opacities, 6), [0.0, 1.0]).all()
    assert decoded.opacities.mean() == pytest.approx(0.5, abs=1e-6)
    largest = np.sort(decoded.scales.ravel())[-len(gaussians) // 2 :]
    np.testing.assert_allclose(largest.max(), min(3e3, tolerance.largest_scale), rtol=0.04)
    if case not in ("compressed_ply", "splat"):  # These sort, and nothing tells equal positions apart.
        angles = degrees_between(decoded.wxyz, gaussians.quaternions_wxyz.numpy())
        assert angles.max() <= tolerance.degrees
        assert np.abs(decoded.srgb - srgb_of(gaussians.colors_linear)).max() <= tolerance.color


@pytest.mark.parametrize("case", ["ply", "compressed_ply", "spz", "spz4"])
@pytest.mark.parametrize("num", [1, 255, 256, 257])
def test_gsply_reads_the_same(case: str, num: int, tmp_path: Path) -> None:
    """A package that is not ours either, with logarithms and logits as a .ply has them."""
    gaussians, path = random_gaussians(num), tmp_path / "splat"
    formats.write(path, gaussians, CAMERA, options(case))
    data = gsply.read_spz(path) if case.startswith("spz") else gsply.plyread(path)
    opacity_logits = np.asarray(data.opacities, dtype=float).reshape(-1)
    seen = Decoded(
        means=np.asarray(data.means, dtype=float),
        scales=np.exp(np.asarray(data.scales, dtype=float)),
        wxyz=np.asarray(data.quats, dtype=float),
        srgb=np.asarray(data.sh0, dtype=float).reshape(-1, 3) * decoders.SH_C0 + 0.5,
        opacities=1 / (1 + np.exp(-opacity_logits)),
    )
    seen = as_opencv(case, seen)
    assert_same(case, seen, gaussians, order_in_file(case, seen, gaussians))


@pytest.mark.parametrize("case", READABLE)
@pytest.mark.parametrize("num", SIZES)
def test_our_readers_see_what_others_see(case: str, num: int, tmp_path: Path) -> None:
    content = write(case, random_gaussians(num), tmp_path)
    decoded, path = as_opencv(case, decode(case, content)), tmp_path / "named.splat"
    path.write_bytes(content)
    gaussians = read(path).gaussians
    np.testing.assert_allclose(gaussians.means, decoded.means, atol=2e-6, rtol=2e-6)
    np.testing.assert_allclose(gaussians.scales, decoded.scales, rtol=2e-5)
    np.testing.assert_allclose(srgb_of(gaussians.colors_linear), decoded.srgb.clip(0, 1), atol=2e-6)
    np.testing.assert_allclose(gaussians.opacities, decoded.opacities, atol=1e-6)
    if num:
        assert degrees_between(gaussians.quaternions_wxyz.numpy(), decoded.wxyz).max() < 0.06
        assert gaussians.quaternions_wxyz[:, 0].min() >= 0
        np.testing.assert_allclose(gaussians.quaternions_wxyz.norm(dim=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "axes", "center"),
    [
        (case, axes, center)
        for case, axes, center in itertools.product(CASES, ("opencv", "opengl"), (False, True))
        if axes == FIXED_AXES.get(case, axes) and not (center and case in FIXED_ORIGINS)
    ],
)
def test_axes_centre_and_scale(case: str, axes: str, center: bool, tmp_path: Path) -> None:
    gaussians = random_gaussians(301)
    decoded = decode(case, write(case, gaussians, tmp_path, axes=axes, center=center, scale=2.0))
    expected = 2.0 * gaussians.means.double().numpy()
    if center:
        expected = expected - np.median(expected, axis=0)
    if axes == "opengl":
        expected = expected * [1, -1, -1]
    order = np.arange(301)
    if case in ("compressed_ply", "splat"):
        order = np.array([np.argmin(((expected - mean) ** 2).sum(axis=1)) for mean in decoded.means])
    np.testing.assert_allclose(decoded.means, expected[order], atol=0.02)
    np.testing.assert_allclose(np.sort(decoded.scales.max(axis=1))[-1], 2 * gaussians.scales.max().item(), rtol=0.04)
    half_turn = np.array([0.0, 1.0, 0.0, 0.0])
    turned = gaussians.quaternions_wxyz.double().numpy()[order]
    if axes == "opengl":
        w, x, y, z = turned.T
        turned = np.stack([-x, w, -z, y], axis=-1)
        assert degrees_between(turned[:1], half_turn[None]).shape == (1,)
    assert degrees_between(decoded.wxyz, turned).max() <= TOLERANCES[case].degrees


@pytest.mark.parametrize("case", ["ply", "compressed_ply"])
@pytest.mark.parametrize("axes", ["opencv", "opengl"])
@pytest.mark.parametrize("center", [False, True])
def test_a_file_that_says_how_it_is_placed_is_read_as_the_photograph_saw_it(
    case: str, axes: str, center: bool, tmp_path: Path
) -> None:
    gaussians = random_gaussians(200)
    splat = read(write(case, gaussians, tmp_path, axes=axes, center=center))
    assert splat.camera == CAMERA
    nearest = [(gaussians.means - mean).norm(dim=1).min().item() for mean in splat.gaussians.means]
    assert max(nearest) < (0.02 if case == "compressed_ply" else 1e-5)


def test_axes_that_a_file_does_not_tell_can_be_told(tmp_path: Path) -> None:
    gaussians = random_gaussians(50)
    path = tmp_path / "up.splat"
    formats.write(path, gaussians, CAMERA, OutputOptions(output_format="splat", axes="opengl"))
    for axes, sign in (("auto", -1), ("opencv", -1), ("opengl", 1)):
        heights = np.sort(read(path, axes=axes).gaussians.means[:, 1].numpy())
        np.testing.assert_allclose(heights, np.sort(sign * gaussians.means[:, 1].numpy()), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_same_splat_gives_the_same_bytes(case: str, tmp_path: Path) -> None:
    assert write(case, random_gaussians(300), tmp_path) == write(case, random_gaussians(300), tmp_path)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_written(case: str, field: str, value: float, tmp_path: Path) -> None:
    gaussians = random_gaussians(300)
    getattr(gaussians, field)[7] = value
    with pytest.raises(PredictionError, match="not finite"):
        write(case, gaussians, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", CASES)
def test_scenes_of_any_size_are_written(case: str, tmp_path: Path) -> None:
    """From a thousandth of a millimetre to farther than light goes in a blink."""
    for size in (1e-6, 1e2, 5e5):
        gaussians = random_gaussians(500)
        gaussians.means.mul_(size)
        decoded = as_opencv(case, decode(case, write(case, gaussians, tmp_path)))
        extent = gaussians.means.abs().max().item()
        order = np.argsort(decoded.means[:, 0])
        expected = np.sort(gaussians.means[:, 0].double().numpy())
        error = np.abs(decoded.means[order][:, 0] - expected).max()
        assert error <= max(extent * 1e-3, 0.5 / 4096)


def test_gaussians_are_float32() -> None:
    gaussians = random_gaussians(3)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=rf"scales is {dtype}, .*convert it with \.float\(\)"):
            replace(gaussians, scales=gaussians.scales.to(dtype))


def test_a_splat_that_reaches_beyond_what_is_written_is_refused(tmp_path: Path) -> None:
    gaussians = random_gaussians(5)
    gaussians.means[3, 1] = 12345.0
    content = write("ply", gaussians, tmp_path).replace(np.float32(12345).tobytes(), np.float32(-3.4e38).tobytes())
    with pytest.raises(SplatError, match=r"3\.4e\+38 m away, a splat ends at 1e\+38 m"):
        read(content)


def test_sog_keeps_apart_the_few_scales_that_are_far_out(tmp_path: Path) -> None:
    """However many are alike: a sky of 400 m among grains, and one speck."""
    gaussians = random_gaussians(60_000)
    gaussians.scales.copy_(torch.rand(60_000, 3) * 0.02 + 0.001)
    gaussians.scales[:3] = torch.tensor([[400.0, 30.0, 5.0], [120.0, 60.0, 9.0], [1e-8, 1e-7, 1e-6]])
    seen = decode("sog", write("sog", gaussians, tmp_path)).scales
    errors = np.abs(np.log(seen) - np.log(gaussians.scales.double().numpy()))
    assert errors.max() < np.log(400 / 1e-8) / 62
    assert np.median(errors) < 0.02


def test_spz_ends_where_24_bits_do(tmp_path: Path) -> None:
    gaussians = random_gaussians(5)
    gaussians.means[2, 0] = 9e6
    with pytest.raises(OutputError, match=r"9000000 m from the origin.*8388607"):
        write("spz", gaussians, tmp_path)


def test_sog_positions_are_within_half_a_step(tmp_path: Path) -> None:
    """On both sides of zero, where a difference of float32's logarithms is rounded most."""
    gaussians = random_gaussians(100_000)
    means = np.random.default_rng(0).uniform(-6.2, 10.3, (100_000, 3)).astype(np.float32)
    seen = decode("sog", write("sog", replace(gaussians, means=torch.from_numpy(means)), tmp_path)).means
    stored, given = (np.copysign(np.log1p(np.abs(values)), values) for values in (seen, means.astype(np.float64)))
    # A logarithm in float32 has its own rounding; all else is exact.
    assert np.abs(stored - given).max() <= 0.5 * np.ptp(given) / 65535 + np.finfo(np.float32).eps * np.abs(given).max()


def test_sog_is_told_where_it_ends() -> None:
    with pytest.raises(OutputError, match="max_gaussians"):
        formats.sog._image_size(16383**2 + 1)


def test_glb_holds_the_photographs_camera_and_is_valid_without_gaussians(tmp_path: Path) -> None:
    document, _ = glb_document(write("glb", random_gaussians(3), tmp_path, center=True))
    (scene,) = document["scenes"]
    nodes = {document["nodes"][index]["name"]: document["nodes"][index] for index in scene["nodes"]}
    assert nodes["splat"]["mesh"] == 0
    assert nodes["photograph"]["camera"] == 0
    perspective = document["cameras"][0]["perspective"]
    assert perspective["yfov"] == pytest.approx(2 * np.arctan(400 / 1150.25))
    assert perspective["aspectRatio"] == 1.5
    centre = np.median(random_gaussians(3).means.numpy(), axis=0) * [1, -1, -1]
    np.testing.assert_allclose(nodes["photograph"]["translation"], -centre, rtol=1e-6)
    assert nodes["photograph"]["extras"] == {"focal_length_px": 1150.25, "image_size": [1200, 800]}
    positions = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert all(low <= high for low, high in zip(positions["min"], positions["max"], strict=True))
    empty, binary = glb_document(write("glb", random_gaussians(0), tmp_path))
    assert "meshes" not in empty
    assert "extensionsUsed" not in empty
    assert binary == b""


def test_splats_come_most_important_first(tmp_path: Path) -> None:
    decoded = decode("splat", write("splat", random_gaussians(400), tmp_path))
    importance = decoded.scales.prod(axis=1) * decoded.opacities
    unsure = decoded.scales.prod(axis=1) * 0.51 / 255  # Opacities are in 8 bits.
    assert (importance[:-1] + unsure[:-1] >= importance[1:] - unsure[1:]).all()


def test_neighbours_share_a_chunk(tmp_path: Path) -> None:
    """Two clusters far apart: in Morton order no chunk but one holds both, so all but that one are small."""
    gaussians = random_gaussians(256 * 8)
    gaussians.means.mul_(0.01)
    gaussians.means[::2] += 50.0
    decoded = decode("compressed_ply", write("compressed_ply", gaussians, tmp_path))
    chunks = decoded.means.reshape(8, 256, 3)
    assert np.ptp(chunks, axis=1).max() < 1.0


@pytest.mark.parametrize("case", OUTPUT_FORMATS)
def test_formats_are_known_by_their_suffix(case: str) -> None:
    named = Path(f"a.room{FORMATS[case].suffix.upper()}")
    assert formats.format_of(named) == ("ply" if case == "apple_ply" else case)


def test_unknown_suffixes_are_refused() -> None:
    with pytest.raises(OptionError, match=r"room\.obj.*\.compressed\.ply"):
        formats.format_of(Path("room.obj"))


@pytest.mark.parametrize(("case", "kind"), [("sog", "a .sog"), ("glb", "a .glb")])
def test_what_can_only_be_written_is_told_from_what_is_broken(case: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(SplatError, match=f"{kind} can be written but not read"):
        read(write(case, random_gaussians(3), tmp_path))
    with pytest.raises(SplatError, match=r"is not a \.ply"):
        read(b"hello")
    with pytest.raises(SplatError, match="cannot be read"):
        read(tmp_path / "none.splat")


@pytest.mark.parametrize("case", ["compressed_ply", "splat", "spz", "spz4"])
def test_truncated_files_are_refused(case: str, tmp_path: Path) -> None:
    content, path = write(case, random_gaussians(20), tmp_path), tmp_path / "cut.splat"
    for length in range(3, len(content), 5):
        if case == "splat" and length % 32 == 0:
            continue  # A shorter .splat is a whole one.
        path.write_bytes(content[:length])
        with pytest.raises(SplatError):
            read(path)


def _whole(case: str) -> bytes:
    file = io.BytesIO()
    more = {"version": 4} if case == "spz4" else {}
    FORMATS["spz" if case == "spz4" else case].write(file, random_gaussians(300), CAMERA, **more)
    return file.getvalue()


WHOLE = {case: _whole(case) for case in ("ply", "compressed_ply", "splat", "spz", "spz4")}


@given(case=st.sampled_from(list(WHOLE)), edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255))))
def test_flipped_bytes_give_a_splat_or_an_error(case: str, edits: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE[case])
    for position, value in edits:
        # Mostly in the header, where the promises are.
        content[position % (len(content) if position % 3 == 0 else 512)] = value
    try:
        gaussians = formats._READERS["spz" if case == "spz4" else case](bytes(content)).gaussians
    except SplatError:
        return
    for name in FIELDS:
        assert getattr(gaussians, name).isfinite().all()
    assert (gaussians.quaternions_wxyz.norm(dim=1) - 1).abs().le(1e-5).all()


def test_spz_bombs_are_not_expanded() -> None:
    import gzip
    import struct

    header = struct.pack("<IIIBBBB", 0x5053474E, 3, 0xFFFFFFFF, 0, 12, 0, 0)
    with pytest.raises(SplatError, match="promises 4294967295 Gaussians"):
        read(gzip.compress(header + bytes(1 << 20)))
    with pytest.raises(SplatError, match="has version 7"):
        read(gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 7, 0, 0, 12, 0, 0)))
    with pytest.raises(SplatError, match=r"not a \.spz inside"):
        read(gzip.compress(b"something else, long enough"))


def test_older_versions_of_spz_are_read() -> None:
    """Version 1 has half floats for positions, 1 and 2 have x y z of the quaternion in bytes."""
    import gzip
    import struct

    for version, positions in (
        (1, struct.pack("<3e", 1.5, -2.0, 0.25)),
        (2, b"".join(int(value * 4096).to_bytes(3, "little", signed=True) for value in (1.5, -2.0, 0.25))),
    ):
        # Opacity 1/2, mid grey, scales of 1 m, a quarter turn about x.
        quarter = round((np.sin(np.pi / 4) + 1) * 127.5)
        body = positions + bytes([128, 128, 128, 128, 160, 160, 160, quarter, 127, 127])
        splat = read(gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, version, 1, 0, 12, 0, 0) + body))
        np.testing.assert_allclose(splat.gaussians.means, [[1.5, 2.0, -0.25]])
        np.testing.assert_allclose(splat.gaussians.scales, [[1.0, 1.0, 1.0]], rtol=1e-6)
        quarter_turn = np.array([[-np.sin(np.pi / 4), np.cos(np.pi / 4), 0, 0]])  # Then turned by 180 degrees.
        assert degrees_between(splat.gaussians.quaternions_wxyz.numpy(), quarter_turn).max() < 1
        assert splat.gaussians.opacities.item() == pytest.approx(128 / 255)


def test_what_a_format_needs_is_asked_for_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotInstalledError, match="scripts/viewer"):
        formats.check(OutputOptions(output_format="html"), viewer_dir=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"\.\[preview\]"):
        formats.check(OutputOptions(output_format="mp4"))
    with pytest.raises(NotInstalledError, match=r"\.\[spz\]"):
        formats.check(OutputOptions(output_format="spz", spz_version=4))
    formats.check(OutputOptions(output_format="spz"))


def test_a_splat_without_a_camera_says_nothing_about_one(tmp_path: Path) -> None:
    for case in ("ply", "compressed_ply", "sog", "glb", "splat", "spz"):
        path = formats.write(tmp_path / f"{case}.splat", random_gaussians(5), None, options(case))
        assert b"focal_length_px" not in path.read_bytes()
        if case in READABLE:
            assert read(path).camera is None


@pytest.mark.parametrize("camera", [Camera(width=3, height=4000, focal_length_px=9.5)])
def test_the_camera_survives(camera: Camera, tmp_path: Path) -> None:
    for case in ("ply", "apple_ply", "compressed_ply"):
        path = formats.write(tmp_path / "splat.ply", random_gaussians(5), camera, options(case))
        assert read(path).camera == camera


def test_keeping_all_on_another_device_type_is_not_needed_to_write(tmp_path: Path) -> None:
    """Writers take what autograd watches, and what is not contiguous."""
    gaussians = random_gaussians(40)
    strided = Gaussians(
        **{name: torch.stack([getattr(gaussians, name)] * 2, dim=1)[:, 0].requires_grad_() for name in FIELDS}
    )
    with torch.no_grad():
        for case in CASES:
            assert write(case, strided, tmp_path) == write(case, gaussians, tmp_path)

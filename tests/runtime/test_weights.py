"""Weights from a checkpoint, and the copy of them in half precision."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sharp_cog import PredictOptions, Settings, SharpPipeline
from sharp_cog.errors import CheckpointError
from sharp_cog.runtime import weights
from sharp_cog.runtime.precision import cpu_has_bfloat16
from tests.images import png as picture
from tests.parity import state

BF16 = torch.bfloat16


@pytest.fixture
def checkpoint_path(tmp_path: Path) -> Path:
    path = tmp_path / "sharp.pt"
    torch.save(state("tiny"), path)
    return path


def settings(path: Path, *, cache_weights: bool = True, precision: str = "auto") -> Settings:
    return Settings(
        checkpoint=path, checkpoint_sha256=None, device="cpu", cache_weights=cache_weights, precision=precision
    )


def test_a_copy_is_kept_beside_the_checkpoint_and_read_the_next_time(checkpoint_path: Path) -> None:
    copy = checkpoint_path.with_name("sharp.bfloat16.safetensors")
    original = weights.find(settings(checkpoint_path, cache_weights=False), BF16)
    first = weights.find(settings(checkpoint_path), BF16)
    assert (original.is_folded, first.is_folded) == (False, True)
    assert copy.stat().st_mode == checkpoint_path.stat().st_mode, "who reads the one reads the other"
    written = copy.stat().st_mtime_ns
    assert weights.find(settings(checkpoint_path), BF16) == first
    assert copy.stat().st_mtime_ns == written
    with safe_open(copy, framework="pt") as file:
        names = set(file.keys())
        dtypes = {name: file.get_tensor(name).dtype for name in names}
    assert not any(".head.weight" in name or "gamma" in name for name in names if "encoder" in name)
    matrices = {name for name in names if ".blocks." in name and name.endswith("weight") and "norm" not in name}
    assert {dtypes[name] for name in matrices} == {BF16}
    assert dtypes["depth_alignment.scale_map_estimator.conv_out.weight"] == torch.float32
    cpu = torch.device("cpu")
    for one, other in zip(original.network(cpu).parameters(), first.network(cpu).parameters(), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=2**-8, atol=1e-30)
    assert not list(checkpoint_path.parent.glob(".*")), "nothing half-written"


@pytest.mark.slow
def test_the_copy_gives_the_same_splat(checkpoint_path: Path) -> None:
    pictures = [picture(), picture(seed=1)]
    with_copy = settings(checkpoint_path, precision="auto")
    if not cpu_has_bfloat16():
        pytest.skip("this CPU computes in float32, of which no copy is kept")
    first, second = SharpPipeline.load(with_copy), SharpPipeline.load(with_copy)
    for image in pictures:
        one, other = (pipeline(image, PredictOptions()).gaussians for pipeline in (first, second))
        assert torch.equal(one.means, other.means)
        assert torch.equal(one.colors_linear, other.colors_linear)


def test_a_changed_checkpoint_makes_a_new_copy(checkpoint_path: Path) -> None:
    weights.find(settings(checkpoint_path), BF16)
    changed = {name: tensor * 2 if name.endswith("fc2.bias") else tensor for name, tensor in state("tiny").items()}
    torch.save(changed, checkpoint_path)
    os.utime(checkpoint_path, ns=(1, 1))
    name = "monodepth_model.monodepth_predictor.encoder.patch_encoder.blocks.0.mlp.fc2.bias"
    before, now = state("tiny")[name], weights.find(settings(checkpoint_path), BF16).open().state[name].float()
    gamma = state("tiny")[name.replace("mlp.fc2.bias", "ls2.gamma")]
    torch.testing.assert_close(now, 2 * before * gamma, rtol=2**-7, atol=1e-6)


def test_no_copy_is_kept_of_float32_nor_unasked(checkpoint_path: Path) -> None:
    weights.find(settings(checkpoint_path), torch.float32)
    weights.find(settings(checkpoint_path, cache_weights=False), BF16)
    assert [path.name for path in checkpoint_path.parent.iterdir()] == ["sharp.pt"]


def test_the_copy_may_be_all_there_is(checkpoint_path: Path) -> None:
    """As in an image that holds 1.3 GB in place of 2.8."""
    weights.find(settings(checkpoint_path), BF16)
    checkpoint_path.unlink()
    copy = checkpoint_path.with_name("sharp.bfloat16.safetensors")
    for precision in ("auto", "float32"):
        prediction = SharpPipeline.load(settings(copy, precision=precision))(picture())
        assert prediction.gaussians.means.isfinite().all()


def test_a_folder_that_cannot_be_written_costs_the_copy_alone(
    checkpoint_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "converted_path", lambda path, dtype: path.parent / "missing" / "copy.safetensors")
    with caplog.at_level(logging.WARNING):
        assert not weights.find(settings(checkpoint_path), BF16).is_folded
    assert "the converted weights are not kept: cannot write" in caplog.text


def test_a_broken_copy_says_so(checkpoint_path: Path) -> None:
    copy = weights.find(settings(checkpoint_path), BF16).path
    whole, keys = copy.read_bytes(), weights.find(settings(copy), BF16).open().state.keys()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 1000):
        copy.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or broken"):
            weights.find(settings(copy), BF16).open()
        assert weights.find(settings(checkpoint_path), BF16).open().state.keys() == keys, "made anew"
    save_file({"x": torch.zeros(2)}, copy)
    with pytest.raises(CheckpointError, match="no copy that this version made"):
        weights.find(settings(copy), BF16).open()
    other = {"x": torch.zeros(2)}
    table = weights._digest((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in other.items())
    save_file(other, copy, metadata={"layout": weights._LAYOUT, "source": "any", "tensors": table})
    with pytest.raises(CheckpointError, match="not this version's"):
        weights.find(settings(copy), BF16).network(torch.device("cpu"))


def test_weights_in_memory_need_no_file_any_more(checkpoint_path: Path) -> None:
    """As in a snapshot of a process, which is taken before there is a GPU."""
    chosen = settings(checkpoint_path, cache_weights=False, precision="float32")
    expected = SharpPipeline.load(chosen)(picture())
    held = weights.in_memory(chosen)
    checkpoint_path.unlink()
    found = SharpPipeline.load(chosen, source=held)(picture())
    assert torch.equal(found.gaussians.means, expected.gaussians.means)
    with pytest.raises(CheckpointError):
        SharpPipeline.load(chosen)


def test_weights_in_memory_are_half_as_large_unless_float32_is_wanted(checkpoint_path: Path) -> None:
    name = "monodepth_model.monodepth_predictor.encoder.patch_encoder.blocks.0.attn.qkv.weight"
    for precision, dtype in (("auto", torch.float16), ("bfloat16", BF16), ("float32", torch.float32)):
        held = weights.in_memory(settings(checkpoint_path, cache_weights=False, precision=precision))
        assert held.state[name].dtype == dtype


def test_a_copy_with_another_list_of_tensors_is_made_anew(checkpoint_path: Path) -> None:
    """A byte of its header has changed: a name or a type that safetensors itself has nothing against."""
    copy = weights.find(settings(checkpoint_path), BF16).path
    whole, keys = copy.read_bytes(), weights.find(settings(copy), BF16).open().state.keys()
    for old, new in ((b"patch_encoder", b"patch_encodes"), (b'"F32"', b'"I32"'), (b'"BF16"', b'"U16" ')):
        copy.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(CheckpointError, match="its list of tensors is not the one that was written"):
            weights.find(settings(copy), BF16).open()
        assert weights.find(settings(checkpoint_path), BF16).open().state.keys() == keys, "made anew"


def test_weights_that_are_not_numbers_are_refused_at_the_start(checkpoint_path: Path) -> None:
    broken = {name: tensor.clone() for name, tensor in state("tiny").items()}
    broken["monodepth_model.monodepth_predictor.decoder.convs.1.weight"].view(-1)[0] = float("nan")
    torch.save(broken, checkpoint_path)
    for precision in ("bfloat16", "float32"):
        with pytest.raises(CheckpointError, match=r"decoder\.convs\.1\.weight hold NaN"):
            SharpPipeline.load(settings(checkpoint_path, cache_weights=False, precision=precision))

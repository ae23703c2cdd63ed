"""Comparison of two predictors with the checkpoint's module names, stage by stage, on one image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sharp_cog.runtime.predictor import Predictor
from sharp_cog.runtime.preprocess import ModelInput

STAGES = {
    "encoder": "monodepth_model.monodepth_predictor.encoder",
    "monodepth decoder": "monodepth_model.monodepth_predictor.decoder",
    "disparity": "monodepth_model.monodepth_predictor.head",
    "alignment map": "depth_alignment.scale_map_estimator",
    "features": "feature_model",
    "delta": "prediction_head",
}
"""Modules by the name of the stage that they compute; the same in Apple's package and in this one."""

GAUSSIAN_FIELDS = ("means", "scales", "quaternions_wxyz", "colors_linear", "opacities")

_PIECE = 1 << 22
"""Values that are compared at a time."""

Observer = Callable[[str, Tensor], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Difference between a stage of one predictor and the same stage of another.

    Attributes:
        stage: Name of the stage, with an index where it has several outputs.
        relative: Norm of the difference over norm of the reference.
        maximum: Largest absolute difference.
    """

    stage: str
    relative: float
    maximum: float


def compare(
    reference: Predictor,
    reference_network: nn.Module,
    candidate: Predictor,
    candidate_network: nn.Module,
    model_input: ModelInput,
) -> list[Difference]:
    """Run both predictors and compare every stage that both have.

    Neither may replay CUDA graphs, which call no hooks.

    Args:
        reference: The predictor that is taken to be right.
        reference_network: Its module that carries the checkpoint's names.
        candidate: The predictor to check.
        candidate_network: Its module that carries the checkpoint's names.
        model_input: The image.

    Returns:
        Differences in the order in which the stages run.
    """
    expected: dict[str, Tensor] = {}
    differences: list[Difference] = []

    def remember(stage: str, value: Tensor) -> None:
        # A clone, because `float` and `cpu` may return the output itself, and later modules change it in place.
        expected[stage] = value.detach().float().cpu().clone()

    def check(stage: str, value: Tensor) -> None:
        # Removed, so that a feature map of 600 MB is freed once it has been compared.
        reference_value = expected.pop(stage)
        if stage == "quaternions_wxyz":
            value = of_same_sign(value.cpu(), reference_value)
        differences.append(difference(stage, value, reference_value))

    with torch.inference_mode():
        for predictor, network, observe in (
            (reference, reference_network, remember),
            (candidate, candidate_network, check),
        ):
            with observed(network, observe):
                gaussians = predictor.predict(model_input).gaussians
            for name in GAUSSIAN_FIELDS:
                observe(name, getattr(gaussians, name))
    return differences


def difference(stage: str, value: Tensor, expected: Tensor) -> Difference:
    """Compare two tensors of the same shape in float64.

    Raises:
        ValueError: The shapes differ.
    """
    if value.shape != expected.shape:
        raise ValueError(f"stage {stage} has shape {tuple(value.shape)}, the reference {tuple(expected.shape)}")
    squared_error = squared_norm = maximum = 0.0
    # In pieces, because a feature map of 600 MB would take several gigabytes in float64.
    pieces = zip(value.detach().cpu().flatten().split(_PIECE), expected.flatten().split(_PIECE), strict=True)
    for piece, expected_piece in pieces:
        delta = piece.double() - expected_piece.double()
        squared_error += delta.square().sum().item()
        squared_norm += expected_piece.double().square().sum().item()
        maximum = max(maximum, delta.abs().max().item())
    # Against a reference of zeros, the norm of the difference itself is reported.
    return Difference(stage=stage, relative=math.sqrt(squared_error / (squared_norm or 1.0)), maximum=maximum)


def of_same_sign(quaternions: Tensor, reference: Tensor) -> Tensor:
    """Return quaternions (..., 4), each with the sign that is nearer to the reference's, as q and -q are one rotation.

    A rule such as w >= 0 does not suffice: where w is about zero, rounding would decide the sign.
    """
    return torch.where((quaternions * reference).sum(-1, keepdim=True) < 0, -quaternions, quaternions)


@contextmanager
def observed(model: nn.Module, observe: Observer) -> Iterator[None]:
    """Call `observe(stage, tensor)` with every output of every stage while the block runs the model."""
    handles = []
    try:
        for stage, path in STAGES.items():

            def hook(module: nn.Module, inputs: object, output: object, stage: str = stage) -> None:
                tensors = list(_tensors(output))
                for index, tensor in enumerate(tensors):
                    observe(stage if len(tensors) == 1 else f"{stage} {index}", tensor)

            handles.append(model.get_submodule(path).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: object) -> Iterator[Tensor]:
    """Yield the tensors in a module's output: the output itself, or those in a list, tuple or named tuple."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Iterable):
        for item in output:
            yield from _tensors(item)

"""Random Gaussians that are hard to write: the ends of float32, extreme proportions, everything in one place."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from sharp_cog.formats.limits import MAX_LENGTH_M
from sharp_cog.geometry.gaussians import Gaussians, NDCGaussians

Floats = NDArray[np.float64]

LENGTHS = (0.0, 1e-45, 1e-40, 1.1754944e-38, 1e-30, 1e-20, 1e-6, 1.0, 1e3, 1e9, 1e20, 1e30, MAX_LENGTH_M)
"""Lengths, among them denormal ones, the smallest normal one, and the largest that can be written."""
SHARES = (0.0, 1e-45, 1.1754944e-38, 1e-8, 0.0031308, 0.5, float(np.nextafter(np.float32(1), np.float32(0))), 1.0)
"""Opacities and colours in their range."""
BEYOND = (-3.4e38, -1.0, -1e-45, 1.0000001, 1.5, 1e5, 3.4028235e38)
"""Opacities and colours out of their range."""
QUATERNIONS = (
    *((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0), (-1.0, 0.0, 0.0, 0.0)),
    *((-0.0, -0.0, -1.0, -0.0), (1.0, 1.0, 1.0, 1.0), (-1.0, 1.0, -1.0, 1.0), (1.0, -1.0, 0.0, 0.0)),
    *((1.0, 1e-20, 0.0, 1e-44), (1.0, 1.0, 1.0, -1.0001), (0.0, 0.0, 1.0, 1.0)),
)
COUNTS = (1, 1, 2, 3, 3, 5, 7, 17, 40, 257)
"""Numbers of Gaussians: mostly few, and once more than a chunk of a compressed .ply."""


@st.composite
def gaussians(draw: st.DrawFn, counts: tuple[int, ...] = COUNTS) -> Gaussians:
    """Draw Gaussians that can be written; scales, colours and opacities may be out of their ranges."""
    num = draw(st.sampled_from(counts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Gaussians(
        means=_tensor(draw(_means(num, rng))),
        scales=_tensor(draw(_scales(num, rng))),
        quaternions_wxyz=_tensor(draw(_quaternions(num, rng))),
        colors_linear=_tensor(draw(_shares((num, 3), rng))),
        opacities=_tensor(draw(_shares((num,), rng))),
    )


def _tensor(values: Floats) -> torch.Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.asarray(values).astype(np.float32))


def _means(num: int, rng: np.random.Generator) -> st.SearchStrategy[Floats]:
    """Draw positions around one centre, or with coordinates of very different sizes."""
    signs = rng.choice([-1.0, 1.0], (num, 3))
    within = st.tuples(st.sampled_from(LENGTHS), st.sampled_from(LENGTHS)).map(
        lambda drawn: (drawn[0] + rng.uniform(-1, 1, (num, 3)) * drawn[1]).clip(-MAX_LENGTH_M, MAX_LENGTH_M)
    )
    special = st.just(rng.choice(LENGTHS, (num, 3)) * signs)
    anywhere = st.just(10.0 ** rng.uniform(-45, 38, (num, 3)) * signs)
    room = st.just(rng.normal((0, 0, 5), 3, (num, 3)))
    return st.one_of(room, within, special, anywhere)


def _scales(num: int, rng: np.random.Generator) -> st.SearchStrategy[Floats]:
    alike = st.sampled_from(LENGTHS).map(lambda length: np.full((num, 3), length))
    special = st.just(rng.choice([*LENGTHS, -1.0, 3.4028235e38], (num, 3)))
    anywhere = st.just(10.0 ** rng.uniform(-45, 38, (num, 3)))
    needles = st.sampled_from([1e-30, 1e-20, 1e20, 1e30]).map(
        lambda factor: 10.0 ** rng.uniform(-4, -1, (num, 3)) * np.array([factor, 1.0, 1.0])
    )
    # Most are alike and a few are far away: a codebook fitted to most of them would miss these.
    few = rng.random((num, 3)) < 0.03
    outliers = st.just(np.where(few, 10.0 ** rng.uniform(-12, 9, (num, 3)), 10.0 ** rng.normal(-2.5, 0.2, (num, 3))))
    return st.one_of(outliers, alike, special, anywhere, needles)


def _quaternions(num: int, rng: np.random.Generator) -> st.SearchStrategy[Floats]:
    """Draw quaternions that are unit in float32, with real parts of either sign."""

    def unit(values: Floats) -> Floats:
        lengths: Floats = np.linalg.norm(values, axis=1, keepdims=True)
        return values / lengths

    special = np.array(QUATERNIONS)[rng.integers(0, len(QUATERNIONS), num)]
    return st.sampled_from([unit(rng.normal(size=(num, 4))), unit(special)])


def _shares(shape: tuple[int, ...], rng: np.random.Generator) -> st.SearchStrategy[Floats]:
    return st.sampled_from(
        [rng.uniform(0, 1, shape), rng.choice(SHARES, shape), rng.choice([*SHARES, *BEYOND], shape), np.ones(shape)]
    )


@st.composite
def ndc_gaussians(draw: st.DrawFn) -> NDCGaussians:
    """Draw the output of a predictor for one image, with quaternions of any length, also 0."""
    num = draw(st.sampled_from(COUNTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length = draw(st.sampled_from([0.0, 1e-45, 1e-30, 1e-3, 1.0, 1e6, 1e30]))
    low, high = draw(st.sampled_from([(-3.0, 0.0), (-30.0, 30.0), (-12.0, 3.0)]))
    exponents = rng.uniform(low, high, (num, 3))
    return NDCGaussians(
        means=_tensor(rng.normal(0, 3, (1, num, 3))),
        scales=_tensor(np.where(rng.random((1, num, 3)) < 0.1, 0.0, 10.0 ** exponents[None])),
        quaternions_wxyz=_tensor(draw(_quaternions(num, rng))[None] * length),
        colors_linear=_tensor(rng.uniform(0, 1, (1, num, 3))),
        opacities=_tensor(rng.uniform(0, 1, (1, num))),
    )

"""Merging Gaussians pair by pair until few are left, in an order by what each merge changes in the picture.

In each round all Gaussians are sorted along a space-filling curve, and each is compared with the next few. A pair that
is the cheapest choice of both is a candidate, and the cheapest candidates merge. Moment matching gives the merged
Gaussian its mean, covariance and colour; its opacity is such that it covers as much area as the pair did.

Everything is made of elementwise operations, gathers and sorts, in an order that neither the number of threads nor the
order of the input changes: the same Gaussians give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.principal_axes import orthogonalize, sorted_axes
from sharp_cog.geometry.quaternions import canonicalize
from sharp_cog.geometry.spatial_order import canonical_order, order, positions_on_curve

_NUM_CANDIDATES = 4
"""Gaussians that each is compared with, next on the curve."""
_NUM_PASSES = 2
"""Times that a round looks for pairs, the second time among Gaussians that found no partner before."""
_MERGED_SHARE = 0.9
"""Share of the candidates that merge in a round. The rest waits for cheaper partners in the next one."""
_SHAPE_WEIGHT = 0.005
"""Cost of a change of shape relative to that of a change of colour."""
_LEAST_CONTRAST = 1e-5
"""Squared difference of colour, in [0, 1], that counts even between equal colours."""
_THICKNESS = 0.01
"""Share of a Gaussian's area that is added to its variances in comparisons, so that roughness much below its width
does not look like distance."""
_MAX_STRETCH = 6.0
"""Largest factor on the variance between two means that closes gaps."""
_OPAQUE = 0.98
"""Opacity from which on a merged Gaussian stands for an opaque surface."""
_FEW = 8
"""Members up to which a merged Gaussian overlaps its neighbours as much as they did."""
_WIDENING = 0.05
"""Largest share by which opaque Gaussians of more members are widened, so that no gaps open between them."""
_LEAST_AREA = 1e-14
"""Area of a Gaussian without extent, in squares of the scene's size, which keeps quotients finite."""
_LARGEST_SIZE = 1e6
"""Largest deviation, in the scene's size, that covariances are computed with: no determinant overflows float32."""
_AHEAD_SHARE = 0.99
"""Share of Gaussians on one side of the origin from which on it is taken as the camera's place."""
_GOLDEN_RATIO = 0.618034
"""Shift of the curve from round to round: multiples of it modulo 1 repeat no cell's border soon."""
_CPU_CHUNK = 1 << 16
"""Pairs compared at a time on a CPU: few enough for its caches."""
_HUGE = 3e38
"""Cost of a pair that overflows float32."""
_NEVER = torch.iinfo(torch.int64).max
"""Key of a pair that does not exist."""
_ODD = 2654435769
"""Fractional part of the golden ratio, times 2^32; multiplication by it permutes the numbers below 2^32."""

# Rows of a scene's table, and of the table of its features.
_MEAN, _COVARIANCE, _COLOR, _OPACITY = slice(0, 3), slice(3, 9), slice(9, 12), 12
_ROOT_VOLUME, _MASS, _ENERGY, _LIGHT, _NEARNESS = 9, 10, 11, slice(12, 15), 15

_Symmetric = tuple[Tensor, ...] | list[Tensor] | Tensor
"""The entries xx, xy, xz, yy, yz, zz of symmetric matrices, each (n,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scene:
    """A scene while it is merged.

    Attributes:
        table: (13, n), a row for each of x, y, z, the six entries of the covariance, red, green, blue, and opacity.
        rows: (n,), row of the harmonics of each Gaussian, and in the input for one that has not merged.
        num_members: (n,) int32, number of the input's Gaussians that each has merged from.
    """

    table: Tensor
    rows: Tensor
    num_members: Tensor

    def __len__(self) -> int:
        return int(self.table.shape[1])

    def chosen(self, indices: Tensor) -> _Scene:
        return replace(
            self,
            table=self.table.index_select(1, indices),
            rows=self.rows[indices],
            num_members=self.num_members[indices],
        )


def merge(gaussians: Gaussians, num_gaussians: int) -> Gaussians:
    """Merge Gaussians until a number is left.

    Args:
        gaussians: N Gaussians with any axes and origin. If they lie on one side of the origin, it is taken as the place
            of the camera, and differences count by their size in its image; otherwise by their size in the scene.
        num_gaussians: Number to keep, from 1 to N.

    Returns:
        The Gaussians in the order of a space-filling curve. Those that have not merged are unchanged.
    """
    if num_gaussians >= len(gaussians):
        return gaussians
    centre, unit = _extent(gaussians.means)
    scene = _scene(gaussians, unit)
    points = [*scene.table[_MEAN]]
    is_photograph = _is_seen_from_origin(points)
    centre = [coordinate / unit for coordinate in centre]
    one = torch.ones_like(unit)
    harmonics = None if gaussians.harmonics is None else gaussians.harmonics.clone()
    fields = [*scene.table[_MEAN], *scene.table[_COLOR], scene.table[_OPACITY]]
    for tensor in (gaussians.scales, gaussians.quaternions_wxyz, *([] if harmonics is None else [harmonics])):
        fields += tensor.flatten(1).unbind(-1)
    scene = scene.chosen(canonical_order(positions_on_curve(points, centre, one, 0.0), fields))
    num_rounds = 0
    while len(scene) > num_gaussians:
        num_rounds += 1
        first, second = _cheapest_pairs(_features(scene.table, is_photograph), len(scene) - num_gaussians)
        kept = _merge_pairs(scene, first, second, harmonics)
        means = [*scene.table[_MEAN].index_select(1, kept)]
        shift = num_rounds * _GOLDEN_RATIO % 1.0
        scene = scene.chosen(kept[order(positions_on_curve(means, centre, one, shift))])
    return _gaussians(scene, gaussians, unit, harmonics)


def _extent(means: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the median position, and a power of two near the median distance from it, at least 1e-30."""
    points = [coordinate.contiguous() for coordinate in means.unbind(-1)]
    centre = [coordinate.median() for coordinate in points]
    distances = [(coordinate - middle).abs_() for coordinate, middle in zip(points, centre, strict=True)]
    distance = torch.maximum(torch.maximum(distances[0], distances[1]), distances[2]).median()
    # A power of two rounds nothing. All Gaussians may be at one place.
    unit = torch.where((distance > 1e-30) & (distance < _HUGE), distance, 1.0)
    return centre, torch.exp2(torch.floor(torch.log2(unit)))


def _is_seen_from_origin(points: list[Tensor]) -> bool:
    """Report whether the Gaussians lie on one side of the origin, as those of a photograph do."""
    num = len(points[0])
    ahead = [int((coordinate > 0).sum()) for coordinate in points]
    return any(max(count, num - count) >= _AHEAD_SHARE * num for count in ahead)


def _scene(gaussians: Gaussians, unit: Tensor) -> _Scene:
    """Return a scene with lengths in units."""
    num = len(gaussians)
    table = gaussians.means.new_empty(13, num)
    table[_MEAN] = (gaussians.means / unit).T
    w, x, y, z = (component.contiguous() for component in gaussians.quaternions_wxyz.unbind(-1))
    axes = (
        (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
        (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
        (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)),
    )
    variances = [(scale / unit).clamp_(max=_LARGEST_SIZE).square_() for scale in gaussians.scales.unbind(-1)]
    for row, (a, b) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)), _COVARIANCE.start):
        entry = axes[0][a] * axes[0][b] * variances[0]
        entry.addcmul_(axes[1][a] * axes[1][b], variances[1])
        table[row] = entry.addcmul_(axes[2][a] * axes[2][b], variances[2])
    table[_COLOR] = gaussians.colors_linear.T
    table[_OPACITY] = gaussians.opacities
    rows = torch.arange(num, device=table.device)
    return _Scene(table=table, rows=rows, num_members=torch.ones_like(rows, dtype=torch.int32))


def _area(covariance: _Symmetric) -> Tensor:
    """Return the root of the sum of the squared products of two deviations: near the product of the largest two.

    It is the area of a Gaussian seen from the front, up to a constant factor, and needs no principal axes.
    """
    xx, xy, xz, yy, yz, zz = covariance
    minors = (xx * yy).sub_(xy * xy).add_(xx * zz).sub_(xz * xz).add_(yy * zz).sub_(yz * yz)
    return minors.clamp_(min=_LEAST_AREA**2).sqrt_()


def _adjugate(matrix: _Symmetric) -> tuple[list[Tensor], Tensor]:
    """Return the adjugate of symmetric matrices, as they are given, and their determinant."""
    xx, xy, xz, yy, yz, zz = matrix
    adjugate = [
        (yy * zz).sub_(yz * yz),
        (xz * yz).sub_(xy * zz),
        (xy * yz).sub_(xz * yy),
        (xx * zz).sub_(xz * xz),
        (xy * xz).sub_(xx * yz),
        (xx * yy).sub_(xy * xy),
    ]
    return adjugate, (xx * adjugate[0]).addcmul_(xy, adjugate[1]).addcmul_(xz, adjugate[2])


def _quadratic(matrix: _Symmetric, vector: list[Tensor]) -> Tensor:
    """Return v^T M v."""
    xx, xy, xz, yy, yz, zz = matrix
    x, y, z = vector
    mixed = (x * xy).addcmul_(z, yz).mul_(y).add_(x * xz * z).mul_(2.0)
    return mixed.addcmul_(x * x, xx).addcmul_(y * y, yy).addcmul_(z * z, zz)


def _features(table: Tensor, is_photograph: bool) -> Tensor:
    """Return what the cost of a pair needs of each Gaussian.

    Returns:
        (16, n): mean; thickened covariance; root of its determinant; mass and energy, which are the integrals of
        opacity and of its square over the area, up to constant factors; colour as the eye measures it, roughly; and the
        factor from area in the scene to area in the image.
    """
    features = table.new_empty(16, table.shape[1])
    features[_MEAN] = table[_MEAN]
    covariance = table[_COVARIANCE]
    area = _area(covariance)
    thickening = (area * _THICKNESS).add_(_LEAST_AREA)
    features[_COVARIANCE] = covariance
    for diagonal in (3, 6, 8):
        features[diagonal] += thickening
    torch.sqrt(_adjugate(features[_COVARIANCE])[1].clamp_(min=0.0), out=features[_ROOT_VOLUME])
    opacity = table[_OPACITY]
    torch.mul(opacity, area, out=features[_MASS])
    torch.mul(opacity, features[_MASS], out=features[_ENERGY])
    # The square root is near the curve of sRGB.
    color = table[_COLOR]
    features[_LIGHT] = color.abs().sqrt_().copysign_(color)
    if is_photograph:
        x, y, z = table[_MEAN]
        features[_NEARNESS] = (x * x).addcmul_(y, y).addcmul_(z, z).add_(_LEAST_AREA).reciprocal_()
    else:
        features[_NEARNESS] = 1.0
    return features


def _costs(first: Tensor, second: Tensor) -> Tensor:
    """Return what merging each pair changes in the picture, (n,), up to a constant factor.

    The measure is the squared difference, integrated over the image, between the colours of two Gaussians and those of
    the merged one, which closed forms of the products of Gaussians give. A change of shape counts less: among
    neighbours of like colour, as most are, it cannot be seen. It goes on growing with the distance, so that what is far
    apart merges last.

    Args:
        first: Features of each pair's first Gaussian, (16, n).
        second: Features of its second one.
    """
    offset = [*(second[_MEAN] - first[_MEAN])]
    total = first[_COVARIANCE] + second[_COVARIANCE]
    # Relative to the trace, so that determinants neither over- nor underflow.
    per_trace = (total[0] + total[3] + total[5]).reciprocal_()
    adjugate, determinant = _adjugate(total.mul_(per_trace))
    squared_distance = _quadratic(adjugate, offset).mul_(per_trace).div_(determinant)
    # Product of the two Gaussians at the same place, relative to their own squares: 1 if they have the same shape.
    per_volume = per_trace * per_trace.sqrt()
    likeness = (first[_ROOT_VOLUME] * per_volume).mul_(second[_ROOT_VOLUME] * per_volume).mul_(8.0).div_(determinant)
    likeness.clamp_(max=1.0).sqrt_()
    overlap = likeness * (squared_distance * -0.5).exp_()
    mass = first[_MASS] + second[_MASS]
    first_share, second_share = first[_MASS] / mass, second[_MASS] / mass
    first_energy, second_energy = first[_ENERGY], second[_ENERGY]
    # Each Gaussian's colour moves by the difference times the share of the other.
    moved = (second_share * second_share).mul_(first_energy).addcmul_(first_share * first_share, second_energy)
    both = first_share.mul_(second_share).mul_((first_energy * second_energy).sqrt_()).mul_(overlap)
    moved.sub_(both.mul_(2.0)).clamp_(min=0.0)
    red, green, blue = first[_LIGHT] - second[_LIGHT]
    contrast = (red * red).addcmul_(green, green).addcmul_(blue, blue).add_(_LEAST_CONTRAST)
    shape = (squared_distance * squared_distance).mul_(0.125).sub_(likeness).add_(1.0)
    common_energy = (first_energy * second_energy).div_(first_energy + second_energy)
    cost = shape.mul_(common_energy).mul_(2.0 * _SHAPE_WEIGHT).addcmul_(contrast, moved)
    cost.mul_(torch.minimum(first[_NEARNESS], second[_NEARNESS]))
    return cost.nan_to_num_(nan=_HUGE, posinf=_HUGE).clamp_(min=0.0)


def _cheapest_pairs(features: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the indices of pairs to merge: at least one, at most `most`, no Gaussian twice."""
    num = features.shape[1]
    num_candidates = min(_NUM_CANDIDATES, num - 1)
    keys = _keys(features, num_candidates)
    firsts, seconds, pair_keys = [], [], []
    for _ in range(_NUM_PASSES):
        # The cheapest pair of each Gaussian. A pair that is the cheapest of both is found from either.
        best = torch.full_like(keys[0], _NEVER - 1)
        for ahead in range(1, num_candidates + 1):
            pairs = keys[ahead - 1, : num - ahead]
            for side in (best[: num - ahead], best[ahead:]):
                torch.minimum(side, pairs, out=side)
        found_first, found_second = [], []
        for ahead in range(1, num_candidates + 1):
            pairs = keys[ahead - 1, : num - ahead]
            first = torch.nonzero(pairs <= torch.minimum(best[: num - ahead], best[ahead:])).squeeze(-1)
            found_first.append(first)
            found_second.append(first + ahead)
            pair_keys.append(pairs[first])
        firsts += found_first
        seconds += found_second
        taken = torch.zeros_like(best)
        taken[torch.cat(found_first + found_second)] = _NEVER
        for ahead in range(1, num_candidates + 1):
            pairs = keys[ahead - 1, : num - ahead]
            for side in (taken[: num - ahead], taken[ahead:]):
                torch.maximum(pairs, side, out=pairs)
    first, second, key = torch.cat(firsts), torch.cat(seconds), torch.cat(pair_keys)
    num_merged = min(most, max(1, int(len(key) * _MERGED_SHARE)))
    if num_merged < len(key):
        is_merged = key <= key.kthvalue(num_merged).values
        first, second = first[is_merged], second[is_merged]
    return first, second


def _keys(features: Tensor, num_candidates: int) -> Tensor:
    """Return a number for each pair of a Gaussian and one of the next, lowest for the cheapest; no two are the same.

    Returns:
        (num_candidates, n) int64: the bits of the cost, which sort as the costs do, above a number for the pair.
    """
    num, device = features.shape[1], features.device
    keys = torch.full((num_candidates, num), _NEVER, dtype=torch.int64, device=device)
    chunk = _CPU_CHUNK if device.type == "cpu" else num
    for ahead in range(1, num_candidates + 1):
        for start in range(0, num - ahead, chunk):
            stop = min(num - ahead, start + chunk)
            cost = _costs(features[:, start:stop], features[:, start + ahead : stop + ahead])
            # Permuted, so that among equal costs no Gaussian's number decides.
            numbers = torch.arange(start, stop, device=device).mul_(num_candidates).add_(ahead - 1)
            numbers.mul_(_ODD).bitwise_and_(0xFFFFFFFF)
            keys[ahead - 1, start:stop] = (cost.view(torch.int32).to(torch.int64) << 32).bitwise_or_(numbers)
    return keys


def _merge_pairs(scene: _Scene, first: Tensor, second: Tensor, harmonics: Tensor | None) -> Tensor:
    """Write each merged pair to the place of its first Gaussian, and its harmonics to that one's row.

    Returns:
        The indices of all Gaussians but the second ones of the pairs.
    """
    a, b = scene.table.index_select(1, first), scene.table.index_select(1, second)
    area_a, area_b = _area(a[_COVARIANCE]), _area(b[_COVARIANCE])
    mass_a, mass_b = a[_OPACITY] * area_a, b[_OPACITY] * area_b
    mass = mass_a + mass_b
    share_b = torch.where(mass > 0, mass_b / mass, 0.5)
    share_a = 1.0 - share_b
    if harmonics is not None:
        rows_a, rows_b = scene.rows[first], scene.rows[second]
        mixed = harmonics[rows_a] * share_a[:, None, None]
        harmonics[rows_a] = mixed.add_(harmonics[rows_b].mul_(share_b[:, None, None]))
    out = a * share_a + b * share_b
    # Moment matching: the mean covariance, and the covariance of the means.
    offset = b[_MEAN] - a[_MEAN]
    x, y, z = offset.clamp(-_LARGEST_SIZE, _LARGEST_SIZE) * (share_a * share_b).sqrt_()
    within = out[_COVARIANCE]
    between = torch.stack([x * x, x * y, x * z, y * y, y * z, z * z])
    covered = _covered_area(a, b, area_a, area_b, [*offset])
    out[_COVARIANCE], out[_OPACITY] = _filled(within, between, covered)
    scene.table.index_copy_(1, first, out)
    scene.num_members[first] += scene.num_members[second]
    is_kept = torch.ones_like(scene.rows, dtype=torch.bool)
    is_kept[second] = False
    return torch.nonzero(is_kept).squeeze(-1)


def _covered_area(a: Tensor, b: Tensor, area_a: Tensor, area_b: Tensor, offset: list[Tensor]) -> Tensor:
    """Return the integral of 1 - (1 - alpha_a) (1 - alpha_b) over the plane that the pair lies in, (n,), in `_area`."""
    total = a[_COVARIANCE] + b[_COVARIANCE]
    area = _area(total)
    # Thickened, because only the distance within the plane counts.
    for diagonal in (0, 3, 5):
        total[diagonal] += 0.1 * area
    adjugate, determinant = _adjugate(total)
    # Rounding may make a determinant zero, or negative.
    overlap = (_quadratic(adjugate, offset).div_(determinant) * -0.5).exp_().nan_to_num_(0.0).clamp_(0.0, 1.0)
    mass_a, mass_b = a[_OPACITY] * area_a, b[_OPACITY] * area_b
    return (mass_a + mass_b).sub_((mass_a * mass_b).div_(area).mul_(overlap))


def _filled(within: Tensor, between: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the covariance (6, n) and the opacity (n,) with which a merged Gaussian covers an area.

    If even an opaque Gaussian of the matched covariance covers less, as where surfaces are opaque, gaps would open
    between merged Gaussians. There the variance between the means grows.
    """
    matched = within + between
    area = _area(matched)
    within_square, gain = _area(within).square_(), area * area
    gain.sub_(within_square)
    stretch = ((covered * covered).sub_(within_square)).div_(gain.clamp(min=_LEAST_AREA**2))
    is_stretched = (covered > area) & (gain > 1e-6 * within_square)
    stretch = torch.where(is_stretched, stretch.clamp_(1.0, _MAX_STRETCH), 1.0)
    covariance = torch.addcmul(within, between, stretch)
    return covariance, (covered / _area(covariance)).clamp_(max=1.0)


def _gaussians(scene: _Scene, source: Gaussians, unit: Tensor, harmonics: Tensor | None) -> Gaussians:
    """Return the Gaussians of a scene; fields of those that have not merged are copied from the source."""
    quaternions, scales = source.quaternions_wxyz[scene.rows], source.scales[scene.rows]
    means, colors, opacities = source.means[scene.rows], source.colors_linear[scene.rows], source.opacities[scene.rows]
    merged = torch.nonzero(scene.num_members > 1).squeeze(-1)
    table = scene.table.index_select(1, merged)
    xx, xy, xz, yy, yz, zz = table[_COVARIANCE]
    # The columns of a covariance lead to its axes too; their norms are the variances.
    columns, variances = orthogonalize(([xx, xy, xz], [xy, yy, yz], [xz, yz, zz]))
    components, variances = sorted_axes(columns, variances)
    quaternions[merged] = canonicalize(torch.stack(components, dim=-1))
    is_opaque = table[_OPACITY] > _OPAQUE
    widening = 1.0 + _WIDENING * is_opaque * (1.0 - _FEW / scene.num_members[merged]).clamp_(min=0.0)
    scales[merged] = torch.stack(variances, dim=-1).sqrt_() * (widening * unit).unsqueeze(-1)
    means[merged] = table[_MEAN].T * unit
    colors[merged] = table[_COLOR].T
    opacities[merged] = table[_OPACITY]
    return Gaussians(
        means=means,
        scales=scales,
        quaternions_wxyz=quaternions,
        colors_linear=colors,
        opacities=opacities,
        harmonics=None if harmonics is None else harmonics[scene.rows],
    )

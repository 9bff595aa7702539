"""The exposed field of a film: what lies inside collimators, round masks and borders.

What lies outside is of one grey, reaches the film's edge, and ends in straight lines or in a
circle within a pixel or two; the air around a limb, which may be of the same grey, does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from osteoprint.xray.film_parts import largest_part

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# How far the grey of the outside may spread, in shares of the film's range: nothing at all
# where it was blanked digitally, some where lead let scatter and noise through.
_SPREADS = (0.004, 0.02, 0.05, 0.09)
# Where lead leaves a wide penumbra, the edge lies half-way up a large step, straight.
_WIDE_SPREADS, _WIDE_STEP = (0.2, 0.35), 0.5
# A field is a circle or a polygon to within this overlap (intersection over union).
_LEAST_OVERLAP = 0.965
_CERTAIN_CIRCLE = 0.98
_CUTS_OFF = 0.9
# ... or so much of its own edge lies on one circle.
_LEAST_ARC = 0.55
# The step at a collimator is over after two pixels; the shadow of a limb goes on rising.
_LEAST_SHARPNESS = 0.72
_LEAST_STEP = 0.1
_MOST_CORNERS = 8
# A pixel and its four neighbours.
_FROM, _TO, _ALL = slice(1, None), slice(None, -1), slice(None)
_NEXT = (
    ((_FROM, _ALL), (_TO, _ALL)),
    ((_TO, _ALL), (_FROM, _ALL)),
    ((_ALL, _FROM), (_ALL, _TO)),
    ((_ALL, _TO), (_ALL, _FROM)),
)


@dataclass(frozen=True, eq=False)
class ExposedField:
    """Where a film was exposed.

    Attributes
    ----------
    inside : (rows, columns) bool.
    form : "whole", "round" or "polygon".
    """

    inside: Bools
    form: Literal["whole", "round", "polygon"]

    @property
    def share(self) -> float:
        """The part of the film that was exposed."""
        return float(self.inside.mean())


def find_field(image: Floats) -> ExposedField:
    """The exposed field of a film of either polarity.

    Parameters
    ----------
    image : (rows, columns) grey values, about 300 to 800 pixels long.

    Returns
    -------
    The field, a few pixels smaller than the edge that was found; frames within frames are
    taken off one after the other. The whole film where there is no edge.
    """
    smooth = ndimage.median_filter(image, 3)
    low, high = float(smooth.min()), float(smooth.max())
    if high <= low:
        return ExposedField(np.ones(image.shape, bool), "whole")
    level = (smooth - low) / (high - low)
    inside = np.ones(image.shape, bool)
    form: Literal["whole", "round", "polygon"] = "whole"
    for _ in range(3):
        found = _one_edge(level, inside)
        if found is None:
            break
        inside, form = found.inside, found.form
        if form == "round":
            break
    if form != "whole":
        inside = _shrunk(inside, 2)
    return ExposedField(inside, form)


def _one_edge(level: Floats, before: Bools) -> ExposedField | None:
    """The field within ``before`` once its outermost frame is taken off."""
    best: tuple[float, ExposedField] | None = None
    values, within = level[before], _Within.of(before)
    for grey in (float(values.min()), float(values.max())):
        for spread in (*_SPREADS, *_WIDE_SPREADS):
            inside = _without_outside(level, within, grey, spread)
            if inside is None:
                continue
            overlap, field = _shape(inside, within)
            if overlap < _LEAST_OVERLAP:
                continue
            if spread in _WIDE_SPREADS and field.form != "polygon":
                continue
            # No limb is a circle; but a limb that crosses the film is nearly a polygon.
            circle = field.form == "round" and overlap >= _CERTAIN_CIRCLE
            least = _WIDE_STEP if spread in _WIDE_SPREADS else _LEAST_STEP
            if not (circle or _ends_sharply(level, field.inside, within, grey, least)):
                continue
            if best is None or overlap > best[0] + 0.005:
                best = overlap, field
    return best[1] if best else None


@dataclass(frozen=True, eq=False)
class _Within:
    """What an edge is looked for in: the mask, its rim, and the mask a little and much smaller."""

    mask: Bools
    rim: Bools
    smaller: Bools
    small: Bools

    @classmethod
    def of(cls, mask: Bools) -> _Within:
        return cls(mask, mask & ~_shrunk(mask, 2), _shrunk(mask, 3), _shrunk(mask, 8))


def _without_outside(level: Floats, within: _Within, grey: float, spread: float) -> Bools | None:
    """What is left of the mask without the even grey along its rim; None if that is nothing."""
    before = within.mask
    near = (np.abs(level - grey) <= spread) & before
    if not (near & within.rim).any():
        return None
    labels, _ = ndimage.label(near)
    touching = np.unique(labels[within.rim & near])
    outside = np.isin(labels, touching[touching > 0])
    share = outside.sum() / before.sum()
    if not 0.004 < share < 0.9:
        return None
    rest = _opened(before & ~outside, 2)
    inside = ndimage.binary_fill_holes(largest_part(rest))
    if inside.sum() < 0.08 * level.size:
        return None
    return np.asarray(inside)


def _shape(inside: Bools, within: _Within) -> tuple[float, ExposedField]:
    """The circle or the convex polygon nearest to a mask, and how well it fits."""
    round_fit, on_circle = _disc(inside, within)
    polygon = _polygon(inside)
    overlap = _overlap(inside, round_fit)
    if on_circle > _LEAST_ARC and (inside & round_fit).sum() > 0.99 * inside.sum():
        # A dark limb that reaches the mask bites into what was found, not into the circle.
        overlap = max(overlap, _LEAST_OVERLAP)
    # A circle that hardly any edge lies on only happens to run through the film's corners.
    real = on_circle > _LEAST_ARC or round_fit.sum() < _CUTS_OFF * within.mask.sum()
    fits = [(overlap if real else 0.0, ExposedField(round_fit, "round"))]
    if polygon is not None:
        fits.append((_overlap(inside, polygon), ExposedField(polygon, "polygon")))
    return max(fits, key=lambda fit: fit[0])


def _disc(inside: Bools, within: _Within) -> tuple[Bools, float]:
    """The circle through the mask's own edge, as far as it lies ``within``.

    Also the share of that edge which lies on the circle.
    """
    edge = inside & ~_shrunk(inside, 1) & within.smaller
    r, c = np.nonzero(edge)
    if r.size < 30:
        return np.zeros_like(inside), 0.0
    keep = np.ones(r.size, bool)
    centre_r = centre_c = radius = 0.0
    for _ in range(5):
        system = np.stack([2 * r[keep], 2 * c[keep], np.ones(keep.sum())], axis=1)
        right = (r[keep] ** 2 + c[keep] ** 2).astype(float)
        centre_r, centre_c, rest = np.linalg.lstsq(system, right, rcond=None)[0]
        radius = float(np.sqrt(max(rest + centre_r**2 + centre_c**2, 0.0)))
        off = np.abs(np.hypot(r - centre_r, c - centre_c) - radius)
        keep = off <= max(2.0, float(np.quantile(off, 0.6)))
        if keep.sum() < 30:
            break
    rows, columns = np.ogrid[: inside.shape[0], : inside.shape[1]]
    disc = (np.hypot(rows - centre_r, columns - centre_c) <= radius) & within.mask
    off = np.abs(np.hypot(r - centre_r, c - centre_c) - radius)
    return np.asarray(disc), float((off <= 2.5).mean())


def _polygon(inside: Bools) -> Bools | None:
    """The mask's convex hull, where few straight edges make it up."""
    from PIL import Image, ImageDraw
    from scipy.spatial import ConvexHull, QhullError
    from skimage.measure import approximate_polygon

    points = np.argwhere(inside & ~_shrunk(inside, 1))
    try:
        hull = points[ConvexHull(points).vertices].astype(float)
    except (QhullError, ValueError):
        return None
    ring = np.vstack([hull, hull[:1]])
    corners = approximate_polygon(ring, tolerance=0.012 * float(np.hypot(*inside.shape)))
    if len(corners) - 1 > _MOST_CORNERS:
        return None
    drawn = Image.new("1", inside.shape[::-1])
    ImageDraw.Draw(drawn).polygon([(c, r) for r, c in ring.tolist()], fill=1)
    return np.asarray(np.asarray(drawn) | (inside & ~_shrunk(inside, 1)))


def _overlap(a: Bools, b: Bools) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def _ends_sharply(
    level: Floats, inside: Bools, within: _Within, grey: float, least_step: float
) -> bool:
    """Whether the grey inside is another at once: a step, not a slope."""
    depth = ndimage.distance_transform_edt(np.pad(inside, 1, constant_values=True))[1:-1, 1:-1]
    own = within.small
    near, far = (np.abs(level[own & (depth > d) & (depth <= d + 1.5)] - grey) for d in (2.0, 6.0))
    if near.size < 20 or far.size < 20:
        return False
    steps = [float(np.quantile(v, 0.6)) for v in (near, far)]
    return steps[1] >= least_step and steps[0] >= _LEAST_SHARPNESS * steps[1]


def _shrunk(mask: Bools, by: int) -> Bools:
    """The mask without its outermost pixels; those at the film's edge count as such.

    As ``ndimage.binary_erosion`` does it, some fifteen times faster: it is asked for often.
    """
    kept = np.pad(mask, 1)
    for _ in range(by):
        left = kept.copy()
        for here, there in _NEXT:
            left[here] &= kept[there]
        left[[0, -1]] = left[:, [0, -1]] = False
        kept = left
    return kept[1:-1, 1:-1]


def _opened(mask: Bools, by: int) -> Bools:
    """The mask without what is thinner than twice ``by`` pixels."""
    # Grown is what its complement loses; beyond the film there is nothing that could grow.
    grown = np.pad(~_shrunk(mask, by), by + 1, constant_values=True)
    return np.asarray(~_shrunk(grown, by)[by + 1 : -by - 1, by + 1 : -by - 1])

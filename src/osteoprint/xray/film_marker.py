"""A scale object of known size on a film: found by its shape, measured between pixels.

Looked for are compact bright things with a sharp outline: a ball or disc, a square, a rod.
Letters are neither round nor square, bones are larger and go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Form = Literal["ball", "square", "rod"]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# Shares of the film's range at which bright things are cut out, brightest first.
_LEVELS = (0.97, 0.9, 0.8, 0.65, 0.5)
# Smallest and largest marker, in shares of the film's longer side, and in pixels.
_LEAST_PX, _LEAST, _MOST = 6.0, 0.008, 0.16
# How round or square a thing must be: its area over that of the shape that fits it.
_LEAST_FIT = 0.94
# Pixels around it that are looked at.
_MARGIN = 5
# A first outline is drawn at this share of the height.
_OUTLINE = 0.4
# What is usual, in logarithms: blur of an edge in pixels; range of a film in line integrals.
_BLUR, _RANGE = float(np.log(0.7)), float(np.log(2.2))
_NOISE = 0.03
# Metal rises from foot to shoulder within so many pixels, or so large a part of its size, on
# either side of its outline.
_EDGE_PX, _EDGE = 2.0, 0.03
_FOOT, _SHOULDER = 0.25, 0.7
# What an outline is off by, in pixels over the whole size; a ball's rim is the harder one.
_OFF_PX = {"ball": 0.65, "square": 0.3, "rod": 0.3}
# Steel attenuates so much at the energies of a film (70 keV, NIST), 1/mm.
_STEEL_PER_MM = 0.67


@dataclass(frozen=True)
class Marker:
    """A scale object found.

    Attributes
    ----------
    size_px : diameter, edge or length in pixels.
    centre : (row, column).
    form : what it looks like.
    box : (top, left, bottom, right) in pixels.
    """

    size_px: float
    centre: tuple[float, float]
    form: Form
    box: tuple[int, int, int, int]

    @property
    def relative_error(self) -> float:
        """How far its measured size may be off, as a share of it."""
        return _OFF_PX[self.form] / self.size_px


def visible_mm(form: Form, size_mm: float) -> float:
    """What is seen of a steel object's size in mm: a ball's rim is too thin to be opaque.

    The light that passes within a rim of chord 2 sqrt(D d) at depth d adds up to that of a
    clear band of 1 / (2 mu^2 D) all around.
    """
    if form != "ball":
        return size_mm
    return size_mm * (1.0 - min(1.0 / (_STEEL_PER_MM * size_mm) ** 2, 0.2))


def find_marker(
    image: Floats, inside: Bools, near: tuple[float, float] | None = None
) -> Marker | None:
    """The scale object on a film, None where there is none.

    Parameters
    ----------
    image : (rows, columns) of full resolution, bone bright.
    inside : (rows, columns) bool, the exposed field.
    near : (row, column) where it is known to lie.

    Returns
    -------
    The most marker-like of all bright compact things, the brightest first.
    """
    low, high = (float(v) for v in np.percentile(image[inside], [1, 99.99]))
    if high <= low:
        return None
    best: tuple[float, Marker] | None = None
    for share in _LEVELS:
        level = low + share * (high - low)
        labels, count = ndimage.label((image >= level) & inside)
        for index, box in enumerate(ndimage.find_objects(labels), start=1):
            found = _judge(image, labels[box] == index, box, near) if box else None
            if found and (best is None or found[0] > best[0] + 0.01):
                best = found
        if count and best and best[0] > 0.975:
            break
    return best[1] if best else None


def _judge(
    image: Floats, mask: Bools, box: tuple[slice, ...], near: tuple[float, float] | None
) -> tuple[float, Marker] | None:
    """How much like a marker a bright thing is, and its measure; None where it is none."""
    longest = max(image.shape)
    height, width = mask.shape
    largest = max(height, width)
    if not max(_LEAST_PX, _LEAST * longest) <= largest <= _MOST * longest:
        return None
    top, left = box[0].start, box[1].start
    at_edge = (
        top == 0 or left == 0 or box[0].stop == image.shape[0] or box[1].stop == image.shape[1]
    )
    middle = (top + (height - 1) / 2, left + (width - 1) / 2)
    if at_edge or (near and np.hypot(*np.subtract(middle, near)) > largest):
        return None
    if mask.sum() < 0.5 * _filled(mask).sum() or min(height, width) < 3:
        return None
    reach = _MARGIN + largest // 4
    window = tuple(
        slice(max(s.start - reach, 0), min(s.stop + reach, n))
        for s, n in zip(box, image.shape, strict=True)
    )
    return _measure(image[window], (window[0].start, window[1].start), middle)


def _measure(
    part: Floats, corner: tuple[int, int], middle: tuple[float, float]
) -> tuple[float, Marker] | None:
    """The outline half-way between the marker and what is around it, and the shape that fits it."""
    from skimage.measure import find_contours

    row, column = round(middle[0]) - corner[0], round(middle[1]) - corner[1]
    core = part[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    rim = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])
    around, top = float(np.median(rim)), float(np.median(core))
    if top - around < 0.15 * max(float(np.ptp(part)), 1e-9):
        return None
    contours = find_contours(part, around + _OUTLINE * (top - around))
    best: tuple[float, Marker] | None = None
    for line in contours:
        if len(line) < 8 or not np.allclose(line[0], line[-1]):
            continue
        area = _area(line)
        centre = line[:-1].mean(axis=0)
        if abs(area) < 12 or np.hypot(*(centre - (row, column))) > 0.3 * np.sqrt(abs(area)) + 1:
            continue
        found = _shape(line, abs(area))
        if found is None:
            continue
        score, size, form = found
        if best and score <= best[0]:
            continue
        away = _outside_by(part.shape, line)
        rise = np.asarray((part.ravel() - around) / (top - around), np.float64)
        if not _sharp(away, rise, size):
            continue
        size += 2.0 * _outline_shift(away, rise)
        at = (float(centre[0] + corner[0]), float(centre[1] + corner[1]))
        low, high = line.min(axis=0) + corner, line.max(axis=0) + corner
        box = (int(low[0]), int(low[1]), int(np.ceil(high[0])) + 1, int(np.ceil(high[1])) + 1)
        best = score, Marker(size, at, form, box)
    return best


def _outside_by(shape: tuple[int, ...], line: NDArray[np.float64]) -> NDArray[np.float64]:
    """(pixels,) how far each pixel lies outside of a closed outline, in pixels; inside below 0."""
    from skimage.measure import points_in_poly

    rows, columns = np.indices(shape)
    pixels = np.stack([rows.ravel(), columns.ravel()], axis=1).astype(float)
    dense = np.concatenate([line[:-1] + f * (line[1:] - line[:-1]) for f in (0, 0.25, 0.5, 0.75)])
    away, _ = cKDTree(dense).query(pixels)
    return np.asarray(np.where(points_in_poly(pixels, line), -away, away))


def _outline_shift(away: NDArray[np.float64], rise: NDArray[np.float64]) -> float:
    """By how many pixels the true outline lies outside of a contour.

    Where a pixel is half covered, half of the signal is left: log 2 more attenuation, which
    is low on the flank of an opaque object; where on the film's grey scale nobody says. So the
    whole flank is fitted: a plate of unknown attenuation ``a``, its edge blurred by ``s``, seen
    through a logarithm, moved by the shift.
    """
    from scipy.optimize import least_squares
    from scipy.special import ndtr

    near = (away > -4.0) & (away < 4.0) & (rise < 0.9)
    if near.sum() < 15:
        return 0.0

    def wrong(p: NDArray[np.float64]) -> NDArray[np.float64]:
        covered = ndtr((p[0] - away[near]) / np.exp(p[1]))
        dense = np.exp(p[2])
        flank = -np.log1p(-covered * (1.0 - np.exp(-dense))) / dense - rise[near]
        # Blur and steepness say nearly the same of a flank of few pixels: what is usual counts.
        usual = [(p[1] - _BLUR) / 0.2, (p[2] - _RANGE) / 0.3]
        return np.concatenate([flank / (_NOISE * np.sqrt(near.sum() / 20)), usual])

    fit = least_squares(wrong, [0.1, _BLUR, _RANGE], loss="soft_l1")
    return float(fit.x[0])


def _sharp(away: NDArray[np.float64], rise: NDArray[np.float64], size: float) -> bool:
    """Whether a thing ends at once, as metal does and the head of a femur does not."""
    reach = max(_EDGE_PX, _EDGE * size)
    inner = rise[(away < -reach) & (away > -reach - 1.5)]
    outer = rise[(away > reach) & (away < reach + 1.5)]
    if inner.size == 0 or outer.size == 0:
        return inner.size == 0 and outer.size > 0 and float(np.median(outer)) < _FOOT
    return float(np.median(inner)) > _SHOULDER and float(np.median(outer)) < _FOOT


def _shape(line: NDArray[np.float64], area: float) -> tuple[float, float, Form] | None:
    """How well the best of the three shapes fits a closed outline, and its size in pixels."""
    middle = line[:-1].mean(axis=0)
    radius = np.hypot(*(line - middle).T)
    round_fit = 1.0 - float(radius.std() / radius.mean())
    long_side, short_side = _box_sides(line)
    square_fit = area / (long_side * short_side)
    if round_fit >= _LEAST_FIT and round_fit >= square_fit - 0.05:
        return round_fit, 2.0 * np.sqrt(area / np.pi), "ball"
    if square_fit < _LEAST_FIT:
        return None
    ratio = long_side / short_side
    if ratio < 1.12:
        return square_fit, float(np.sqrt(area)), "square"
    if 2.5 < ratio < 15:
        return square_fit - 0.02, long_side, "rod"
    return None


def _box_sides(line: NDArray[np.float64]) -> tuple[float, float]:
    """Longer and shorter side of the smallest rectangle around an outline."""
    best = (np.inf, 1.0, 1.0)
    for angle in np.deg2rad(np.arange(0.0, 90.0, 1.0)):
        c, s = np.cos(angle), np.sin(angle)
        u, v = line[:, 0] * c + line[:, 1] * s, line[:, 1] * c - line[:, 0] * s
        sides = float(np.ptp(u)), float(np.ptp(v))
        if sides[0] * sides[1] < best[0]:
            best = (sides[0] * sides[1], max(sides), min(sides))
    return best[1], max(best[2], 1e-6)


def _area(line: NDArray[np.float64]) -> float:
    """Signed area within a closed outline (the shoelace formula)."""
    r, c = line[:, 0], line[:, 1]
    return float(0.5 * np.sum(r[:-1] * c[1:] - r[1:] * c[:-1]))


def _filled(mask: Bools) -> Bools:
    return np.asarray(ndimage.binary_fill_holes(mask))

"""Where the bone lies on a film: its outline, how far it leans, and the box around it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import perimeter
from skimage.morphology import disk

from osteoprint.xray.film_finder import bone_probability
from osteoprint.xray.film_outline import Outline, outlined, without_lumps
from osteoprint.xray.film_parts import largest_part
from osteoprint.xray.film_tissue import has_soft_tissue, tissue_around

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Point = tuple[float, float]

# A pixel shows something where it stands out of the air by this share of the range.
_NOT_AIR = 0.06
# A long bone is at least so many times as long as wide.
_ELONGATED = 2.0
# ... and fills at least this share of the film's longer side.
_SHORTEST = 0.15
# Where what is seen is much more than what the network takes for bone, there is a limb around
# it, even if a burnt-out film does not show how its tissue falls off.
_MUCH_MORE = 0.7
# Cross-sections of one bone are filled to this part, and its rim is so many times as long as
# both its sides; those of a hand or a joint are not.
_LEAST_FILL, _MOST_RIM = 0.95, 1.42
# Half the width, in shares of the film's longer side, of what is no part of a bone.
_SPUR = 0.006
# Bones on films of the preset clinic are found with 0.97 and more.
_LEAST_SURE = 0.9
# Limbs that lean more than this are turned before the network sees them.
_LIES_DEG = 50.0
# A beam that is cut off takes this part of the grey away within so many pixels, at most so
# far beyond the bone's end (in shares of the film's longer side).
_DROP, _AT_ONCE, _REACH = 0.5, 5, 0.045
# A bone that ends by itself leaves at most this part of its grey to the tissue beyond.
_NO_END = 0.98
# The part of the length that the axis is taken from: shafts are straight, ends are not.
_SHAFT = (0.25, 0.75)


@dataclass(frozen=True, eq=False)
class FoundBone:
    """A bone on a film.

    Attributes
    ----------
    mask : (rows, columns) bool, of the image that was looked at.
    turn_deg : how far its upper end leans to the right of straight up, -90...90.
    centre : (row, column) of the middle of its upright box.
    size : (height, width) of that box in pixels, along and across the bone.
    cut : whether it runs over the edge of what was exposed.
    tissue : (rows, columns) float32, what the soft tissue around it adds to air; None where
        the bone is bare.
    sure : mean probability of its pixels to be bone, by the network that found it in tissue.
    """

    mask: Bools
    turn_deg: float
    centre: tuple[float, float]
    size: tuple[float, float]
    cut: bool
    tissue: Floats | None = None
    sure: float = 1.0

    def in_pixels(self, factor: int) -> FoundBone:
        """The same on a film of so many times as many pixels; the mask stays as it is."""
        row, column = ((at + 0.5) * factor - 0.5 for at in self.centre)
        size = (self.size[0] * factor, self.size[1] * factor)
        return replace(self, centre=(row, column), size=size)


def find_bone(
    image: Floats, inside: Bools, air: float, *, outline: Outline = "close"
) -> FoundBone | None:
    """The long bone on a film; None where nothing elongated is seen.

    Parameters
    ----------
    image : (rows, columns) bone bright, 300 to 800 square pixels long, without markers and
        letters.
    inside : (rows, columns) bool, the exposed field.
    air : the grey where the beam met nothing.
    outline : of a bone in tissue; "rough" is the quickest.
    """
    smooth = ndimage.median_filter(image, 3) - air
    top = float(np.percentile(smooth[inside], 99.5))
    if top <= 0:
        return None
    body = _largest((smooth > _NOT_AIR * top) & inside)
    if body is None:
        return None
    mask, tissue = body, None
    rough = _axis_deg(body)
    likely, sure = _likely(image, inside, air, lies=abs(rough) > _LIES_DEG)
    much_more = likely is not None and likely.sum() < _MUCH_MORE * body.sum()
    if much_more or _soft(smooth, body, rough):
        if likely is None:
            return None
        over = image - np.float32(air)
        mask = likely if outline == "rough" else outlined(over, likely, inside)
        if outline == "held":
            mask = without_lumps(over, mask)
        tissue = tissue_around(over, mask, inside)
    turn = _shaft_deg(mask, _axis_deg(mask))
    down, right = _directions(turn)
    r, c = np.nonzero(mask)
    along, across = r * down[0] + c * down[1], r * right[0] + c * right[1]
    low, high = along.min() - 0.5, along.max() + 0.5
    left, wide = across.min() - 0.5, across.max() + 0.5
    height, width = float(high - low), float(wide - left)
    if height < _ELONGATED * width or height < _SHORTEST * max(image.shape):
        return None
    ragged = perimeter(mask) > _MOST_RIM * 2 * height or _fill(along, across) < _LEAST_FILL
    if tissue is not None and (ragged or sure < _LEAST_SURE):
        return None
    middle = (low + high) / 2 * np.array(down) + (left + wide) / 2 * np.array(right)
    centre = (float(middle[0]), float(middle[1]))
    cut = tissue is not None and _open_ended(smooth, turn, centre, (height, width))
    rim = inside & ~ndimage.binary_erosion(inside, iterations=3, border_value=0)
    return FoundBone(
        mask,
        turn,
        centre,
        (height, width),
        cut or bool((mask & rim).any()),
        tissue,
        1.0 if tissue is None else sure,
    )


def upright(
    image: Floats,
    turn_deg: float,
    centre: tuple[float, float],
    size: tuple[int, int],
    outside: float,
) -> Floats:
    """(height, width) float32: the image turned upright about a point that becomes the middle.

    Parameters
    ----------
    image : (rows, columns), square pixels; between them it is taken to be linear.
    turn_deg : how far what is to be upright leans to the right.
    centre : (row, column).
    size : of the result in pixels.
    outside : what lies beyond the image.
    """
    down, right = _directions(turn_deg)
    v = np.arange(size[0]) - (size[0] - 1) / 2
    u = np.arange(size[1]) - (size[1] - 1) / 2
    at = [centre[axis] + v[:, None] * down[axis] + u[None, :] * right[axis] for axis in range(2)]
    return np.asarray(
        ndimage.map_coordinates(image, at, order=1, mode="constant", cval=outside), np.float32
    )


def _directions(turn_deg: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Down and right of an upright picture, as (row, column) steps on the film."""
    c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    return (float(c), float(-s)), (float(s), float(c))


def _largest(mask: Bools) -> Bools | None:
    """The largest thing, its holes filled."""
    largest = largest_part(ndimage.binary_opening(mask, iterations=1))
    if largest.sum() < 60:
        return None
    return np.asarray(ndimage.binary_fill_holes(largest))


def _axis_deg(mask: Bools) -> float:
    """Lean of the longest direction of a shape."""
    r, c = np.nonzero(mask)
    values, vectors = np.linalg.eigh(np.cov(np.stack([r, c])))
    down, right = vectors[:, int(np.argmax(values))]
    return _lean(float(down), float(right))


def _lean(down: float, right: float) -> float:
    """Degrees that a line leans to the right at its upper end, -90...90."""
    if down < 0 or (down == 0 and right > 0):
        down, right = -down, -right
    return float(np.rad2deg(np.arctan2(-right, down)))


def _shaft_deg(mask: Bools, rough_deg: float) -> float:
    """Lean of the line through the middles of the cross-sections between the ends.

    A head or condyle that sticks out to one side turns the longest direction, not the shaft.
    """
    down, right = _directions(rough_deg)
    r, c = np.nonzero(mask)
    along, across = r * down[0] + c * down[1], r * right[0] + c * right[1]
    low, length = along.min(), float(np.ptp(along))
    step = np.floor(along - low).astype(int)
    count = np.bincount(step)
    middle = np.bincount(step, across) / np.maximum(count, 1)
    at = np.arange(count.size)
    used = (count > 0) & (at >= _SHAFT[0] * length) & (at <= _SHAFT[1] * length)
    if used.sum() < 8:
        return rough_deg
    slope = np.polyfit(at[used], middle[used], 1)[0]
    turn = rough_deg - float(np.rad2deg(np.arctan(slope)))
    return float((turn + 90.0) % 180.0 - 90.0)


def _fill(along: NDArray[np.float64], across: NDArray[np.float64]) -> float:
    """Which part of a shape's cross-sections it fills, on average: a bone nearly all of each."""
    step = np.floor(along - along.min()).astype(int)
    count = np.bincount(step)
    low, high = np.full(count.size, np.inf), np.full(count.size, -np.inf)
    np.minimum.at(low, step, across)
    np.maximum.at(high, step, across)
    used = count > 0
    return float(np.mean(np.minimum(count[used] / (high[used] - low[used] + 1), 1.0)))


def _likely(image: Floats, inside: Bools, air: float, *, lies: bool) -> tuple[Bools | None, float]:
    """The bone by the network, which has only seen bones that stand; and how sure it is."""
    if lies:
        image, inside = np.rot90(image), np.rot90(inside)
    probability = bone_probability(image, inside, air)
    # Spurs hang on by less than a bone is wide anywhere.
    reach = max(1, round(_SPUR * max(image.shape)))
    found = _largest(ndimage.binary_opening((probability > 0.5) & inside, disk(reach)))
    if found is None:
        return None, 0.0
    sure = float(probability[found].mean())
    return np.asarray(np.rot90(found, -1) if lies else found), sure


def _open_ended(image: Floats, turn: float, centre: Point, size: Point) -> bool:
    """Whether all ends at once near a bone's end: there the beam was cut off, not the bone.

    A limb ends round, over a good part of its width; a collimator within a few pixels.
    """
    down, right = _directions(turn)
    wide = np.linspace(-0.25, 0.25, 21) * size[1]
    away = np.arange(0.0, _REACH * max(image.shape))
    for end in (-1.0, 1.0):
        along = end * (size[0] / 2 + away)
        at = [centre[a] + along[:, None] * down[a] + wide * right[a] for a in range(2)]
        beyond = ndimage.map_coordinates(image, at, order=1, cval=0.0).mean(axis=1)
        inner = [centre[a] + end * 0.48 * size[0] * down[a] + wide * right[a] for a in range(2)]
        level = float(np.mean(ndimage.map_coordinates(image, inner, order=1)))
        drop = (beyond[:-_AT_ONCE] - beyond[_AT_ONCE:]) > _DROP * level
        if drop.any():
            # Where grey falls off before, the bone has ended by itself, and the beam after it.
            before = beyond[: int(np.argmax(drop))]
            if before.size == 0 or before[-1] > _NO_END * level:
                return True
    return False


def _soft(image: Floats, body: Bools, turn: float) -> bool:
    """Whether the shadow is that of a limb."""
    size = max(image.shape)
    r, c = np.nonzero(body)
    centre = (float(r.mean()), float(c.mean()))
    straight = upright(image, turn, centre, (size, size), 0.0)
    shape = upright(body.astype(np.float32), turn, centre, (size, size), 0.0) > 0.5
    return has_soft_tissue(straight, shape)

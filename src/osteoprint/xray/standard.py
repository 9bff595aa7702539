"""The standard picture: upright, centred, so many millimetres to a pixel, black around.

A fingerprint must not depend on where a bone lies on the film or how far the tube stood
away, but it must depend on the bone's size: every film is brought to one scale at the
bone and padded with black, never stretched to fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from osteoprint.errors import FilmError
from osteoprint.xray.radiograph import Placement, Radiograph

# A pixel belongs to the bone where it stands out of the background by this share of the
# image's range; low enough for the thin ends, high enough for a film's noise.
_FOREGROUND_SHARE = 0.12
# A bone that lies straight is not equally long in two views either, by up to 2 %: its bow and its
# ends lie nearer to the film in one of them. What differs by more lay slanted.
_SLANTED = 0.03
# A standard picture is so much higher than the longest bone it is made for.
FRAME_ROOM = 1.15


@dataclass(frozen=True)
class StandardFrame:
    """Size and scale of a standard picture.

    Attributes
    ----------
    rows, columns : size in pixels.
    spacing_mm : size of a pixel in the plane of the bone's middle.
    """

    rows: int
    columns: int
    spacing_mm: float

    @classmethod
    def for_length(cls, longest_mm: float, rows: int = 192) -> StandardFrame:
        """A frame that holds bones up to ``longest_mm`` with room for half as much again
        of the spread beyond them; three times as high as it is wide."""
        return cls(rows, rows // 3, FRAME_ROOM * longest_mm / rows)


def foreground(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(rows, columns) bool: the bone on a film without soft tissue.

    The background is the median of the image's rim. Raises ValueError where nothing
    stands out of it.
    """
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    background = float(np.median(rim))
    bright = float(np.percentile(image, 99.5))
    if not np.isfinite(bright) or bright - background <= 1e-6 * max(1.0, abs(background)):
        raise ValueError("nothing stands out of the background")
    return np.asarray(image > background + _FOREGROUND_SHARE * (bright - background))


def place(radiograph: Radiograph, source: str = "film") -> Placement:
    """Find the bone on a film: its centre, its turn and its length.

    Raises FilmError (naming ``source``) where no elongated bright shape is found.
    """
    if radiograph.placement is not None:
        return radiograph.placement
    try:
        mask = foreground(radiograph.image)
    except ValueError as error:
        raise FilmError(source, str(error), "check the film's polarity and exposure") from None
    return place_shape(mask, radiograph.geometry.spacing_at_bone_mm, source)


def place_shape(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float], source: str = "film"
) -> Placement:
    """The same of a bone's outline.

    Parameters
    ----------
    mask : (rows, columns) bool, the bone.
    spacing_mm : of its rows and columns, in the plane of the bone's middle.

    Raises FilmError (naming ``source``) where it is empty or not elongated.
    """
    row_mm, column_mm = spacing_mm
    r, c = np.nonzero(mask)
    if r.size < 20:
        raise FilmError(source, "shows no bone", "check the film's polarity and crop")
    y, x = r * row_mm, c * column_mm
    covariance = np.cov(np.stack([y, x]))
    values, vectors = np.linalg.eigh(covariance)
    if values[1] < 4.0 * values[0]:
        raise FilmError(
            source, "shows no elongated bone", "crop the film to one long bone, upright"
        )
    down, right = vectors[:, 1] * np.sign(vectors[0, 1] or 1.0)
    along = (y - y.mean()) * down + (x - x.mean()) * right
    across = (x - x.mean()) * down - (y - y.mean()) * right
    low, high = np.percentile(along, [0.05, 99.95])
    left, wide = np.percentile(across, [0.5, 99.5])
    mid_along, mid_across = (low + high) / 2, (left + wide) / 2
    centre_y = y.mean() + mid_along * down - mid_across * right
    centre_x = x.mean() + mid_along * right + mid_across * down
    return Placement(
        (float(centre_y / row_mm), float(centre_x / column_mm)),
        float(np.rad2deg(np.arctan2(right, down))),
        float(high - low),
    )


def drawn_out(ap_mm: float, ml_mm: float) -> tuple[float, float]:
    """By which factors an AP and an ML film are drawn out along a bone seen so long on each.

    The shorter one as far as the longer, where it lay slanted; else 1 and 1.
    """
    longer = max(ap_mm, ml_mm)
    if 1.0 - min(ap_mm, ml_mm) / longer <= _SLANTED:
        return 1.0, 1.0
    return longer / ap_mm, longer / ml_mm


def standard_picture(
    radiograph: Radiograph, frame: StandardFrame, source: str = "film", stretch: float = 1.0
) -> NDArray[np.float32]:
    """(rows, columns) float32 in 0...1: the bone upright in ``frame``, background 0.

    Brightness is divided by its 99th percentile on the bone, which takes out the exposure
    and most of the energy. ``stretch`` draws the bone out along itself, where it lay slanted.
    Raises FilmError as :func:`place`.
    """
    placement = place(radiograph, source)
    image, spacing, centre = _shrunk(radiograph, placement, frame.spacing_mm)
    turn = np.deg2rad(placement.turn_deg)
    down = np.array([np.cos(turn), np.sin(turn)])
    right = np.array([-np.sin(turn), np.cos(turn)])
    v = (np.arange(frame.rows) - (frame.rows - 1) / 2) * (frame.spacing_mm / stretch)
    u = (np.arange(frame.columns) - (frame.columns - 1) / 2) * frame.spacing_mm
    grid = v[:, None, None] * down + u[None, :, None] * right
    at = [grid[..., a] / spacing[a] + centre[a] for a in range(2)]
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    background = float(np.median(rim))
    picture = map_coordinates(image, at, order=1, mode="constant", cval=background) - background
    bone = picture[picture > _FOREGROUND_SHARE * picture.max()]
    bright = float(np.percentile(bone, 99)) if bone.size else 1.0
    return np.clip(picture / max(bright, 1e-9), 0.0, 1.5).astype(np.float32)


def _shrunk(
    radiograph: Radiograph, placement: Placement, target_mm: float
) -> tuple[NDArray[np.float32], tuple[float, float], tuple[float, float]]:
    """Block means down to just below the target spacing, so that resampling does not alias.

    Returns the image, its (row, column) spacing at the bone in mm, and the centre in its pixels.
    """
    image = radiograph.image
    spacing, centre = [], []
    for axis, mm in enumerate(radiograph.geometry.spacing_at_bone_mm):
        factor = max(1, int(target_mm / mm + 1e-6))
        keep = image.shape[axis] // factor * factor
        shape = list(image.shape)
        shape[axis : axis + 1] = [keep // factor, factor]
        image = np.take(image, np.arange(keep), axis=axis).reshape(shape).mean(axis=axis + 1)
        spacing.append(mm * factor)
        centre.append((placement.centre[axis] - (factor - 1) / 2) / factor)
    return image.astype(np.float32), (spacing[0], spacing[1]), (centre[0], centre[1])

"""Films with their cameras, made smaller, cut, and rid of metal: what a fit looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, grey_opening

from osteoprint.xray.camera import Camera, Geometry

Image = NDArray[np.float32]

# A bead is narrower than this whichever way one looks across it; a cortex is long one way.
_BEAD_MM = 4.0
# How much more than its surroundings it attenuates (in line integrals). 0.6 mm of steel at
# 60 keV come to 0.5; the edge of a thin cortex to less than 0.1 over such a short way.
_BEAD_CONTRAST = 0.12
# Beads are searched for with pixels of about this size.
_BEAD_PIXEL_MM = 0.27


@dataclass(frozen=True, eq=False)
class FilmView:
    """A film with its camera.

    Attributes
    ----------
    image : (rows, columns) float32, bone bright; the logarithm of transmission or near it.
    camera : where it was taken from.
    field : (rows, columns) bool, where the film shows anything (and nothing foreign, such as
        a metal bead).
    others : (rows, columns) float32, simulated line integrals of other bones in the picture,
        where they are known (see :func:`simulated`): what they cover up is then understood.
    """

    image: Image
    camera: Camera
    field: NDArray[np.bool_]
    others: Image | None = None

    def __post_init__(self) -> None:
        size = (self.camera.geometry.rows, self.camera.geometry.columns)
        if self.image.shape != size or self.field.shape != size:
            raise ValueError(
                f"image {self.image.shape}, field {self.field.shape} and camera {size} differ"
            )
        if self.others is not None and self.others.shape != size:
            raise ValueError(f"others {self.others.shape} and camera {size} differ")


def at_pixel_size(view: FilmView, factor: int) -> FilmView:
    """The film with ``factor`` x ``factor`` pixels averaged into one; borders are cut."""
    if factor <= 1:
        return view
    rows, columns = (n // factor for n in view.image.shape)
    block = (rows, factor, columns, factor)
    cut = (slice(rows * factor), slice(columns * factor))
    geometry = view.camera.geometry
    spacing = (geometry.pixel_spacing_mm[0] * factor, geometry.pixel_spacing_mm[1] * factor)
    smaller = Geometry(rows, columns, spacing, geometry.sdd_mm, geometry.sod_mm)
    row, column = ((p + 0.5) / factor - 0.5 for p in view.camera.principal_point)

    def averaged(image: Image) -> Image:
        mean = image[cut].reshape(block).mean(axis=(1, 3), dtype=np.float64)
        return np.asarray(mean, dtype=np.float32)

    return FilmView(
        averaged(view.image),
        Camera(smaller, view.camera.camera_to_world, (row, column)),
        np.asarray(view.field[cut].reshape(block).all(axis=(1, 3))),
        None if view.others is None else averaged(view.others),
    )


def cropped(view: FilmView, top: int, bottom: int, left: int, right: int) -> FilmView:
    """The part of a film between two rows and two columns (the latter ones outside)."""
    geometry = view.camera.geometry
    part = Geometry(
        bottom - top, right - left, geometry.pixel_spacing_mm, geometry.sdd_mm, geometry.sod_mm
    )
    row, column = view.camera.principal_point
    window = (slice(top, bottom), slice(left, right))
    return FilmView(
        view.image[window],
        Camera(part, view.camera.camera_to_world, (row - top, column - left)),
        view.field[window],
        None if view.others is None else view.others[window],
    )


def without_metal(view: FilmView, pixel_mm: float) -> FilmView:
    """The film with small metal beads and pins taken out of its field.

    They are brighter than all that is left when the image is opened by lines of 4 mm in four
    directions: a long bright edge survives along itself, a bead along no direction.

    Parameters
    ----------
    view : a film.
    pixel_mm : size of its pixels in the plane of the bone.
    """
    factor = max(1, round(_BEAD_PIXEL_MM / pixel_mm))
    small = at_pixel_size(view, factor)
    length = 2 * round(_BEAD_MM / (2 * factor * pixel_mm)) + 1
    diagonal = np.eye(2 * round(length / 2 / np.sqrt(2)) + 1, dtype=bool)
    lines = [np.ones((1, length), bool), np.ones((length, 1), bool), diagonal, diagonal[:, ::-1]]
    smooth = gaussian_filter(small.image, 0.7)
    opened = np.max([grey_opening(smooth, footprint=line) for line in lines], axis=0)
    beads = binary_dilation(smooth - opened > _BEAD_CONTRAST, iterations=3)
    field = view.field.copy()
    rows, columns = (n * factor for n in beads.shape)
    field[:rows, :columns] &= ~np.kron(beads, np.ones((factor, factor), dtype=bool))
    return replace(view, field=field)

"""A cube of known size beside the bone: how many millimetres a pixel of an X-ray is.

As in the paper, an object is drawn into the volume itself, an X-ray is taken of both, and
the object is measured in that image: for each bone and each view by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from osteoprint.ct.volume import AIR_HU, Volume
from osteoprint.frames import invert_rigid, rigid
from osteoprint.xray.camera import Camera

# The paper's object.
SIZE_MM = 10.0
# Water: below what the table of materials bends at, so that voxels which the cube fills in
# part attenuate in proportion, and its edges stay where they are.
_OBJECT_HU = 0.0
# Points along an edge of the cube by which a voxel's share of it is counted.
_POINTS = 130
# Room between the cube and anything else on the film, as a share of its half edge.
_CLEAR = 0.6
# The part of the cube's shadow that is taken to be of full depth.
_PLATEAU = 0.5
_Image = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """A cube found in an image.

    Attributes
    ----------
    edge_px : its edge in pixels, the mean of both directions.
    centre : (row, column) of its middle, in pixels.
    """

    edge_px: float
    centre: tuple[float, float]


def object_size_mm(length_mm: float) -> float:
    """Edge of the cube drawn beside a bone of this length.

    10 mm as in the paper; a tenth of the bone where that would crowd the film of a small animal.
    """
    return min(SIZE_MM, length_mm / 10.0)


def free_place(bone: _Image, edge_px: float) -> tuple[float, float]:
    """(row, column) where a cube of so many pixels fits on a film beside the bone.

    Of all places with room around them the one nearest to the film's middle.
    Raises ValueError where there is no room.
    """
    # Every other pixel is enough: the cube measures many.
    room = np.pad(bone[::2, ::2] <= 1e-6, 1, constant_values=False)
    far = distance_transform_cdt(room, metric="chessboard")[1:-1, 1:-1]
    clear = far >= (1 + _CLEAR) * edge_px / 4 + 2
    if not clear.any():
        raise ValueError("no room for the scale object beside the bone")
    r, c = np.nonzero(clear)
    middle = (np.array(clear.shape) - 1) / 2
    best = int(np.argmin((r - middle[0]) ** 2 + (c - middle[1]) ** 2))
    return float(2 * r[best]), float(2 * c[best])


def cube_to_world(camera: Camera, place: tuple[float, float]) -> NDArray[np.float64]:
    """(4, 4) rigid, cube -> LPS mm: upright in the image at a (row, column), its middle as
    far from the source as the bone's."""
    row_mm, column_mm = camera.geometry.spacing_at_bone_mm
    right = (place[1] - camera.principal_point[1]) * column_mm
    down = (place[0] - camera.principal_point[0]) * row_mm
    depth = 0.0 if camera.is_parallel else camera.geometry.sod_mm
    return camera.camera_to_world @ rigid(np.eye(3), np.array([right, down, depth]))


def with_cube(volume: Volume, to_world: NDArray[np.float64], edge_mm: float) -> Volume:
    """The scan with a cube of water drawn into it, and air around as far as it needs.

    Voxels at its faces are filled in proportion. What was there is replaced.

    Parameters
    ----------
    volume : the scan; not changed.
    to_world : (4, 4) rigid, cube -> LPS mm; its axes are the cube's edges, its origin the middle.
    edge_mm : of the cube.
    """
    reach = np.sqrt(3) / 2 * edge_mm / volume.spacing_mm + 2
    middle = (volume.world_to_voxel @ to_world[:, 3])[:3]
    low, high = np.floor(middle - reach).astype(int), np.ceil(middle + reach).astype(int) + 1
    before, after = np.maximum(-low, 0), np.maximum(high - np.array(volume.shape), 0)
    grid = np.pad(
        volume.volume_hu,
        list(zip(before, after, strict=True)),
        constant_values=np.asarray(AIR_HU, volume.volume_hu.dtype),
    )
    matrix = volume.voxel_to_world.copy()
    matrix[:3, 3] = (volume.voxel_to_world @ np.append(-before, 1.0))[:3]
    share = _share(invert_rigid(to_world) @ volume.voxel_to_world, low, high, edge_mm)
    window = tuple(slice(a, b) for a, b in zip(low + before, high + before, strict=True))
    mixed = grid[window] * (1 - share) + _OBJECT_HU * share
    grid[window] = np.round(mixed) if np.issubdtype(grid.dtype, np.integer) else mixed
    return Volume(grid, matrix)


def _share(
    to_cube: NDArray[np.float64], low: NDArray[np.int64], high: NDArray[np.int64], edge_mm: float
) -> NDArray[np.float64]:
    """How much of each voxel in [low, high) lies in a cube; at its faces by counting points."""
    axes = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    depth = edge_mm / 2 - np.abs(index @ to_cube[:3, :3].T + to_cube[:3, 3]).max(axis=-1)
    share = (depth > 0).astype(np.float64)
    at_face = np.abs(depth) < np.linalg.norm(to_cube[:3, :3], axis=0).sum() / 2
    per_voxel = int(np.ceil(_POINTS * np.cbrt(abs(np.linalg.det(to_cube[:3, :3]))) / edge_mm)) + 1
    fine = (np.arange(per_voxel) + 0.5) / per_voxel - 0.5
    offsets = np.stack(np.meshgrid(fine, fine, fine, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = offsets @ to_cube[:3, :3].T
    share[at_face] = [
        (np.abs(offsets + point).max(axis=-1) <= edge_mm / 2).mean()
        for point in index[at_face] @ to_cube[:3, :3].T + to_cube[:3, 3]
    ]
    return share


def measure_cube(image: _Image, place: tuple[float, float], about_px: float) -> Measured:
    """The edge of an upright cube in an image of line integrals, to a fraction of a pixel.

    Along a line across the cube, the sum of the image divided by its height in the middle is
    the width: blur moves nothing out of the sum.

    Parameters
    ----------
    image : (rows, columns) line integrals, the cube bright on nothing.
    place : (row, column) near its middle.
    about_px : its edge, roughly: how far to look.

    Raises
    ------
    ValueError : there is no cube.
    """
    row, column = (round(each) for each in place)
    reach = int(np.ceil((1 + _CLEAR / 2) * about_px / 2)) + 1
    top, left = max(row - reach, 0), max(column - reach, 0)
    part = image[top : row + reach + 1, left : column + reach + 1].astype(np.float64)
    if part.size == 0 or part.max() <= 1e-6:
        raise ValueError("no scale object is seen")
    centre = [float((part.sum(axis=1 - a) @ np.arange(part.shape[a])) / part.sum()) for a in (0, 1)]
    core = max(_PLATEAU * about_px / 2, 1.0)
    rows, columns = (np.abs(np.arange(part.shape[a]) - centre[a]) <= core for a in (0, 1))
    height = part[np.ix_(rows, columns)].mean()
    edges = (part[:, columns].mean(axis=1).sum() / height, part[rows].mean(axis=0).sum() / height)
    return Measured(float(np.mean(edges)), (top + centre[0], left + centre[1]))

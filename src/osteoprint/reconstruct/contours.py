"""Outlines: of the bone on a film, of a surface before a film, and which point belongs to which.

What the classical methods share. The film's outline is that of the found bone, drawn onto the
steepest edge near it; the surface's is where its sight lines graze it, as far as it is seen at
the outside of its shadow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree
from skimage.measure import find_contours

from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.shadow import Projection, line_integrals
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.state import State

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Pixels for outlines, as a part of the bone's length.
PIXEL = 0.00232
# How far an outline is drawn onto an edge, in pixels; and how smooth it is, in its points.
_SNAP_PX, _SMOOTH_POINTS = 2.5, 4.0
# A vertex on a grazing sight line belongs to the outline within so many pixels of the shadow's.
_AT_THE_EDGE_PX = 2.0
# Points whose normals differ more than this are not matched (cosine).
_ALIKE = 0.3


@dataclass(frozen=True, eq=False)
class FilmOutline:
    """The outline of the bone on a film.

    Attributes
    ----------
    points, normals : (k, 2) (row, column) in the target's pixels, and outward unit normals.
    projection : of those pixels.
    placing : which placing the film sees.
    """

    points: Floats
    normals: Floats
    projection: Projection
    placing: int


@dataclass(frozen=True, eq=False)
class Outline:
    """A surface's outline before a film.

    Attributes
    ----------
    vertices : (k,) which of the surface's.
    points, normals : (k, 2) where they are seen, and the outline's outward unit normals.
    depth_mm : (k,) from the source along the beam.
    axes : (3, 3) camera axes as rows, in the surface's own frame.
    """

    vertices: Ints
    points: Floats
    normals: Floats
    depth_mm: Floats
    axes: Floats

    def lifted(self, moved_px: Floats, projection: Projection) -> Floats:
        """(k, 3) mm in the surface's frame, across the beam, from (k, 2) moves on the film."""
        down = moved_px[:, 0] * self.depth_mm / projection.focal[0]
        right = moved_px[:, 1] * self.depth_mm / projection.focal[1]
        return np.asarray(right[:, None] * self.axes[0] + down[:, None] * self.axes[1])


def film_outline(model: BoneModel, shot: Shot, placing: int) -> FilmOutline:
    """The outline of the bone that was found on a film.

    Where the film ends, or the bone is cut, there is none.
    """
    pixel_mm = PIXEL * model.length_mm
    target = shot.target(pixel_mm, model.length_mm)
    mask, image, exposed = shot.upright(pixel_mm, model.length_mm)
    padded = np.pad(gaussian_filter(mask.astype(np.float64), 1.0), 1)
    loops = find_contours(padded, 0.5)  # type: ignore[no-untyped-call]
    points = max(loops, key=len) - 1 if loops else np.zeros((0, 2))
    if len(points) < 8:
        return FilmOutline(np.zeros((0, 2)), np.zeros((0, 2)), target.projection, placing)
    points = _evenly(points, 1.0)
    normals = _outward(points, mask)
    points = _snapped(points, normals, image)
    inside = map_coordinates(
        distance_transform_edt(exposed > 0), points.T, order=1, mode="constant", cval=0.0
    )
    kept = inside > 3.0
    return FilmOutline(points[kept], normals[kept], target.projection, placing)


def _evenly(points: Floats, step: float) -> Floats:
    """A closed line through (k, 2) points, resampled."""
    closed = np.vstack([points, points[:1]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, along[-1], max(int(along[-1] / step), 8), endpoint=False)
    return np.stack([np.interp(at, along, closed[:, k]) for k in range(2)], axis=1)


def _outward(points: Floats, mask: Bools) -> Floats:
    """(k, 2) unit normals of a closed line around a mask, away from it."""
    smooth = np.stack([gaussian_filter(points[:, k], 3.0, mode="wrap") for k in range(2)], axis=1)
    along = np.roll(smooth, -1, axis=0) - np.roll(smooth, 1, axis=0)
    normals = np.stack([along[:, 1], -along[:, 0]], axis=1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    inside = map_coordinates(mask.astype(float), (points - 2 * normals).T, order=1)
    return normals if inside.mean() > 0.5 else -normals


def _snapped(points: Floats, normals: Floats, image: NDArray[np.float32]) -> Floats:
    """Points moved along their normals onto the steepest fall of the image near them."""
    away = np.arange(-_SNAP_PX, _SNAP_PX + 0.01, 0.25)
    at = points[:, None, :] + away[None, :, None] * normals[:, None, :]
    smooth = gaussian_filter(image.astype(np.float64), 1.0)
    values = map_coordinates(smooth, np.moveaxis(at, -1, 0), order=1, mode="nearest")
    fall = -np.gradient(values, axis=1)
    # A little dearer the further away.
    best = away[np.argmax(fall - 0.05 * fall.max(axis=1, keepdims=True) * np.abs(away), axis=1)]
    best = gaussian_filter(best, _SMOOTH_POINTS, mode="wrap")
    return np.asarray(points + best[:, None] * normals)


def surface_outline(model: BoneModel, vertices: Floats, state: State, film: FilmOutline) -> Outline:
    """The outline of (n, 3) vertices, in the model's frame, before a film."""
    projection, faces = film.projection, model.shape.faces
    rotation, shift = state.placings[film.placing].total
    points = projection.to_camera(vertices @ rotation.T + shift)
    seen = points[:, :2] / points[:, 2:] * [projection.focal[1], projection.focal[0]]
    seen = seen[:, ::-1] + [projection.middle[0], projection.middle[1]]
    still = Projection(
        np.eye(3), np.zeros(3), projection.focal, projection.middle, projection.shape
    )
    shadow = line_integrals(points, faces, np.ones(len(points)), still) > 0.5
    rim = _grazed(points, faces)
    # Outside of the shadow the one distance is 0, inside the other.
    edge = _distance(shadow, seen[rim]) + _distance(~shadow, seen[rim])
    ids = rim[edge < _AT_THE_EDGE_PX]
    away = gaussian_filter(shadow.astype(np.float64), 2.0)
    slope = np.stack(np.gradient(-away))
    normals = np.stack(
        [map_coordinates(slope[k], seen[ids].T, order=1, mode="nearest") for k in range(2)], axis=1
    )
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return Outline(ids, seen[ids], normals, points[ids, 2], projection.rotation @ rotation)


def _distance(mask: Bools, at: Floats) -> Floats:
    """How far points lie from the outside of a mask, pixels; 0 outside."""
    if mask.all():
        return np.full(len(at), np.inf)
    return np.asarray(
        map_coordinates(distance_transform_edt(mask), at.T, order=1, mode="constant", cval=1e3)
    )


def _grazed(points: Floats, faces: Ints) -> Ints:
    """Vertices, in camera axes, with faces both towards the source and away from it."""
    corners = points[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    towards = np.einsum("fx,fx->f", normal, corners[:, 0]) < 0
    count = np.bincount(faces.ravel(), np.repeat(towards, 3), len(points))
    total = np.bincount(faces.ravel(), minlength=len(points))
    return np.flatnonzero((count > 0) & (count < total))


def nearest_pairs(outline: Outline, film: FilmOutline) -> tuple[Ints, Floats]:
    """(j,) which of the outline's points, and (j, 2) where on the film each belongs.

    The nearest point of the film's outline whose normal points the same way.
    """
    if not len(film.points) or not len(outline.points):
        return np.zeros(0, np.int64), np.zeros((0, 2))
    weight = 6.0
    tree = cKDTree(np.hstack([film.points, weight * film.normals]))
    _, near = tree.query(np.hstack([outline.points, weight * outline.normals]))
    alike = np.einsum("kx,kx->k", film.normals[near], outline.normals) > _ALIKE
    # Along the outline nothing is known: only the part across it counts.
    gap = film.points[near] - outline.points
    across = np.einsum("kx,kx->k", gap, film.normals[near])
    wanted = outline.points + across[:, None] * film.normals[near]
    kept = np.flatnonzero(alike)
    return kept, wanted[kept]

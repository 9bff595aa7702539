"""The other approaches of the literature, on the same films, outlines and cameras.

All move a template until its outline lies on the films' outlines, in turns of matching and
bending; they differ in how points are matched, and in what the template does between them.
Cameras are those that the statistical model found, which the originals had from calibration;
the template is the mean bone at the films' length.

- ``laplacian``: matched by a self-organising map, bent so that the surface's differential
  coordinates stay as they are (Karade and Ravi, Int J Comput Assist Radiol Surg 2015;10:473).
- ``ffd``: nearest points, bent by a lattice of cubic B-splines (Sederberg and Parry 1986; as
  Filippi et al. 2008 and Koh et al. 2011 use it on bones).
- ``tps``: two-dimensional non-rigid matching by thin-plate splines, the statistical model
  fitted to the matched points, then bent by a regularised thin-plate spline (Zheng et al.,
  Med Image Anal 2009;13:883).
- ``contour``: non-stereo corresponding contours: each outline point belongs to the point of
  the film's outline that its own normal leads to, bent by kriging (Laporte et al., Comput
  Methods Biomech Biomed Engin 2003;6:1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import igl
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.interpolate import RBFInterpolator
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.contours import (
    FilmOutline,
    Outline,
    film_outline,
    nearest_pairs,
    surface_outline,
)
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.state import State
from osteoprint.reconstruct.statistical import fit_modes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pairs = tuple[Ints, Floats]
Match = Callable[[Outline, FilmOutline], Pairs]
Bend = Callable[[BoneModel, Floats, Ints, Floats, int], Floats]

ROUNDS = 12
# Kernels are solved for at most so many points.
_MOST_POINTS = 500


@dataclass(frozen=True, eq=False)
class Outlined:
    """A template bent onto outlines: (n, 3) vertices in the model's frame, and the placings."""

    vertices: Floats
    state: State


def _begun(model: BoneModel, shots: Sequence[Shot]) -> Outlined:
    """The cameras, and the mean bone at the films' length."""
    state = fit_modes(model, shots).state
    said = state.vertices(model)
    mean = model.shape.mean
    size = np.ptp(said[:, 0]) / np.ptp(mean[:, 0])
    middle = (said.min(axis=0) + said.max(axis=0)) / 2
    return Outlined(mean * size + middle, state)


def _bent(
    model: BoneModel, shots: Sequence[Shot], match: Match, bend: Bend, rounds: int = ROUNDS
) -> Outlined:
    """Match and bend in turns."""
    begun = _begun(model, shots)
    films = [
        film_outline(model, shot, 0 if shot.rig is not None else k) for k, shot in enumerate(shots)
    ]
    vertices = begun.vertices
    for turn in range(rounds):
        ids, moves = _moves(model, vertices, begun.state, films, match)
        if len(ids) < 8:
            break
        vertices = bend(model, vertices, ids, moves, turn)
    return replace(begun, vertices=vertices)


def _moves(
    model: BoneModel, vertices: Floats, state: State, films: Sequence[FilmOutline], match: Match
) -> Pairs:
    """(k,) vertices, and (k, 3) mm in the model's frame where each is drawn to."""
    ids, moves = [], []
    for film in films:
        outline = surface_outline(model, vertices, state, film)
        kept, wanted = match(outline, film)
        lifted = outline.lifted(_moved(outline, kept, wanted), film.projection)
        ids.append(outline.vertices[kept])
        moves.append(lifted[kept])
    return np.concatenate(ids), np.concatenate(moves)


def _moved(outline: Outline, kept: Ints, wanted: Floats) -> Floats:
    out = np.zeros_like(outline.points)
    out[kept] = wanted - outline.points[kept]
    return out


def laplacian(model: BoneModel, shots: Sequence[Shot]) -> Outlined:
    """Laplacian surface deformation, matched by a self-organising map."""
    return _bent(model, shots, _self_organised, _keep_differentials)


def ffd(model: BoneModel, shots: Sequence[Shot]) -> Outlined:
    """Free-form deformation of a lattice around the bone."""
    return _bent(model, shots, nearest_pairs, _lattice)


def contour(model: BoneModel, shots: Sequence[Shot]) -> Outlined:
    """Non-stereo corresponding contours, bent by kriging."""
    # Kriging passes through its points: more rounds draw matches astray.
    return _bent(model, shots, _along_normals, _kriged, rounds=3)


def tps(model: BoneModel, shots: Sequence[Shot]) -> Outlined:
    """Thin-plate splines: matching in the plane, the model fitted, then bent in space."""
    fitted = _bent(model, shots, _thin_plate_pairs, _most_probable)
    films = [
        film_outline(model, shot, 0 if shot.rig is not None else k) for k, shot in enumerate(shots)
    ]
    vertices = fitted.vertices
    for turn in range(3):
        ids, moves = _moves(model, vertices, fitted.state, films, _thin_plate_pairs)
        if len(ids) >= 8:
            vertices = _splined(model, vertices, ids, moves, turn)
    return replace(fitted, vertices=vertices)


def _self_organised(outline: Outline, film: FilmOutline) -> Pairs:
    """Kohonen's map: the outline's points are drawn, with their neighbours, to the film's.

    Each of the film's points draws the outline point that is nearest (and faces its way), and
    that one's neighbours less; the reach and the force sink from turn to turn.
    """
    if not len(film.points) or not len(outline.points):
        return np.zeros(0, np.int64), np.zeros((0, 2))
    at, weight = outline.points.copy(), 6.0
    for reach, force in ((12.0, 0.5), (8.0, 0.5), (5.0, 0.6), (3.0, 0.8), (2.0, 1.0)):
        tree = cKDTree(np.hstack([at, weight * outline.normals]))
        _, winner = tree.query(np.hstack([film.points, weight * film.normals]))
        near = cKDTree(outline.points)
        distances, others = near.query(outline.points[winner], k=min(12, len(at)))
        share = np.exp(-0.5 * (distances / reach) ** 2)
        total, weights = np.zeros_like(at), np.full(len(at), 1e-9)
        # A winner's neighbours move as it does, not to where it goes.
        move = film.points - at[winner]
        np.add.at(total, others, share[..., None] * move[:, None, :])
        np.add.at(weights, others, share)
        at += force * total / weights[:, None]
    return np.arange(len(at)), at


def _along_normals(outline: Outline, film: FilmOutline) -> Pairs:
    """The point of the film's outline nearest to the line along each point's own normal."""
    if not len(film.points) or not len(outline.points):
        return np.zeros(0, np.int64), np.zeros((0, 2))
    gap = film.points[None] - outline.points[:, None]
    along = np.einsum("kjx,kx->kj", gap, outline.normals)
    aside = np.linalg.norm(gap - along[..., None] * outline.normals[:, None], axis=2)
    facing = outline.normals @ film.normals.T
    dear = np.abs(along) + 6.0 * aside + np.where(facing > 0.3, 0.0, 1e6)
    best = dear.argmin(axis=1)
    kept = np.flatnonzero((dear.min(axis=1) < 1e6) & (aside[np.arange(len(best)), best] < 1.5))
    moved = along[kept, best[kept], None] * outline.normals[kept]
    return kept, outline.points[kept] + moved


def _thin_plate_pairs(outline: Outline, film: FilmOutline) -> Pairs:
    """Nearest points that choose each other, warped by a thin-plate spline, and again."""
    at, kept, wanted = outline.points, np.zeros(0, np.int64), np.zeros((0, 2))
    if not len(film.points) or not len(outline.points):
        return kept, wanted
    weight = 6.0
    for stiffness in (100.0, 30.0, 10.0):
        own = np.hstack([at, weight * outline.normals])
        theirs = np.hstack([film.points, weight * film.normals])
        _, there = cKDTree(theirs).query(own)
        _, back = cKDTree(own).query(theirs)
        step = np.abs(np.arange(len(own)) - back[there])
        mutual = np.linalg.norm(at - at[back[there]], axis=1) < 3.0
        kept = np.flatnonzero(mutual | (step == 0))
        if len(kept) < 12:
            return nearest_pairs(outline, film)
        wanted = film.points[there[kept]]
        picks = _spread(len(kept))
        warp = RBFInterpolator(
            outline.points[kept][picks], wanted[picks], smoothing=stiffness,
            kernel="thin_plate_spline",
        )  # fmt: skip
        at = warp(outline.points)
    return kept, at[kept]


def _spread(count: int, most: int = _MOST_POINTS) -> Ints:
    """At most so many of `count` indices, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _keep_differentials(
    model: BoneModel, vertices: Floats, ids: Ints, moves: Floats, turn: int
) -> Floats:
    """Vertices whose cotangent Laplacian stays as it is, the outline's drawn to their places."""
    faces = model.shape.faces
    stiffness = -sparse.csc_matrix(igl.cotmatrix(vertices, faces))
    area = igl.massmatrix(vertices, faces, igl.MASSMATRIX_TYPE_VORONOI).diagonal()
    scaled = sparse.diags(1 / np.maximum(area, 1e-6)) @ stiffness
    # Differential coordinates against places on the outline, as parts of mean edge lengths.
    edge2 = float(area.mean())
    pull = np.bincount(ids, minlength=len(vertices)).astype(float) * 0.05
    system = (edge2**2 * (scaled.T @ scaled) + sparse.diags(pull)).tocsc()
    drawn = np.stack([np.bincount(ids, moves[:, k], len(vertices)) for k in range(3)], axis=1)
    solved = splu(system + 1e-9 * sparse.eye(len(vertices)).tocsc()).solve(0.05 * drawn)
    return np.asarray(vertices + solved)


def _lattice(model: BoneModel, vertices: Floats, ids: Ints, moves: Floats, turn: int) -> Floats:
    """Moved by the lattice of cubic B-splines whose bending is least for its misfit."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    cells = np.array([10, 4, 4]) if turn < ROUNDS // 2 else np.array([16, 5, 5])
    place = (vertices - low) / (high - low) * cells
    weights = _bsplines(place, cells)
    seen = weights[ids]
    rough = _bending(cells + 3)
    system = (seen.T @ seen + 0.3 * rough + 1e-3 * sparse.eye(rough.shape[0])).tocsc()
    return np.asarray(vertices + weights @ splu(system).solve(seen.T @ moves))


def _bsplines(place: Floats, cells: Ints) -> sparse.csr_matrix:
    """(n, controls) weights of cubic B-splines at (n, 3) places in cells."""
    first = np.minimum(np.floor(place).astype(int), cells - 1)
    t = place - first
    basis = (
        np.stack(
            [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=2
        )
        / 6
    )
    sizes = cells + 3
    rows, columns, values = [], [], []
    for i in range(4):
        for j in range(4):
            for k in range(4):
                at = first + np.array([i, j, k])
                columns.append((at[:, 0] * sizes[1] + at[:, 1]) * sizes[2] + at[:, 2])
                values.append(basis[:, 0, i] * basis[:, 1, j] * basis[:, 2, k])
                rows.append(np.arange(len(place)))
    return sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(place), int(np.prod(sizes))),
    )


def _bending(sizes: Ints) -> sparse.csc_matrix:
    """Sum of squared second differences of a lattice's controls, as a matrix."""
    total = None
    for axis in range(3):
        parts = [sparse.eye(int(n)) for n in sizes]
        n = int(sizes[axis])
        parts[axis] = sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(n - 2, n))
        second = sparse.kron(sparse.kron(parts[0], parts[1]), parts[2])
        total = second.T @ second if total is None else total + second.T @ second
    return sparse.csc_matrix(total)


def _kriged(model: BoneModel, vertices: Floats, ids: Ints, moves: Floats, turn: int) -> Floats:
    """Moved by kriging: a linear drift, and the covariance |h|³ with a nugget."""
    return _interpolated(vertices, ids, moves, "cubic", 30.0)


def _splined(model: BoneModel, vertices: Floats, ids: Ints, moves: Floats, turn: int) -> Floats:
    """Moved by a thin-plate spline of space, regularised."""
    return _interpolated(vertices, ids, moves, "linear", 3.0)


def _interpolated(
    vertices: Floats, ids: Ints, moves: Floats, kernel: str, smoothing: float
) -> Floats:
    unique, where = np.unique(ids, return_inverse=True)
    count = np.bincount(where)
    mean = np.stack([np.bincount(where, moves[:, k]) / count for k in range(3)], axis=1)
    picks = _spread(len(unique))
    bent = RBFInterpolator(
        vertices[unique][picks], mean[picks], kernel=kernel, smoothing=smoothing, degree=1
    )
    return np.asarray(vertices + bent(vertices))


def _most_probable(
    model: BoneModel, vertices: Floats, ids: Ints, moves: Floats, turn: int
) -> Floats:
    """The model's most probable shape, given where the outline's vertices belong."""
    unique, where = np.unique(ids, return_inverse=True)
    count = np.bincount(where)
    mean = np.stack([np.bincount(where, moves[:, k]) / count for k in range(3)], axis=1)
    places = vertices[unique] + mean
    return model.shape.posterior(unique, places, noise_mm=8.0 if turn < 3 else 4.0).mean


CLASSICAL: dict[str, Callable[[BoneModel, Sequence[Shot]], Outlined]] = {
    "laplacian": laplacian,
    "ffd": ffd,
    "tps": tps,
    "contour": contour,
}

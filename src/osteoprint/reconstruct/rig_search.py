"""Where a bone lies in a calibrated rig: nothing is clicked, and nothing is known beforehand.

The cameras are known, the bone's pose is not, and a joint's film shows several bones that no
segmentation tells apart. So the mean bone is seen from evenly spread directions, with its upper
end, its middle or its lower end where the cameras look; shifts are tried by correlation of local
contrast (fast Fourier transform), all films at once: a shift in space is one in each film.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import igl
import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial.transform import Rotation

from osteoprint.errors import FilmError
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.fitting import Sight, bent
from osteoprint.reconstruct.shadow import Projection, line_integrals
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.state import Placing, State
from osteoprint.shape.placing import vertex_normals

Floats = NDArray[np.float64]
Image = NDArray[np.float32]

# Rotations tried, about 15 degrees apart; parts of the length that may be what is looked at.
_ROTATIONS = 3000
_LOOKED_AT = (0.06, 0.5, 0.94)
# Shifts tried: so far, and so finely, as parts of the bone's length.
_REACH, _STEP = 0.16, 0.01
# A bone of so many triangles is sharp enough; two of its layers, cortex and marrow, will do.
_TRIANGLES = 1500
_LAYERS = (1, 4)
# So much of the model's contrast lies within the fields, or the film says too little.
_LEAST_SEEN = 0.3
# Poses that go on; what is found may be so far off, degrees and parts of the length.
_KEPT = 24
_NEARER = ((120, 8.0), (60, 4.0))
_SAME_DEG = 3.0
_TURN_DEG, _SHIFT = 20.0, 0.1


def looked_at(shots: Sequence[Shot]) -> Floats:
    """(3,) mm in the rig's world: the point nearest to all the middles of the fields' rays."""
    system, right = np.zeros((3, 3)), np.zeros(3)
    for shot in shots:
        assert shot.rig is not None
        rotation, shift = shot.rig
        right_mm, down_mm = shot.detector_mm(shot.centre)
        ray = rotation.T @ np.array([right_mm, down_mm, shot.sdd_mm])
        ray /= np.linalg.norm(ray)
        across = np.eye(3) - np.outer(ray, ray)
        system += across
        right += across @ (-rotation.T @ shift)
    if np.linalg.cond(system) > 1e4:
        raise FilmError(
            "films", "are of cameras that look the same way", "give films of two directions"
        )
    return np.asarray(np.linalg.solve(system, right))


def focused(shots: Sequence[Shot]) -> list[Shot]:
    """The shots with their distance to what both look at, and the field's size there."""
    at = looked_at(shots)
    out = []
    for shot in shots:
        assert shot.rig is not None
        sod = float(shot.rig[0][2] @ at + shot.rig[1][2])
        if not sod > 0:
            raise FilmError("films", "are of cameras that look apart", "check their calibration")
        wider = sod / shot.sod_mm
        size = (shot.size_mm[0] * wider, shot.size_mm[1] * wider)
        out.append(replace(shot, sod_mm=sod, size_mm=size))
    return out


def poses(model: BoneModel, shots: Sequence[Shot], sights: Sequence[Sight]) -> list[State]:
    """The poses whose shadows are most like the films, best first.

    Parameters
    ----------
    model : of the bone; its mean is laid.
    shots : of one calibrated rig, as of :func:`focused`.
    sights : the same at a coarse level's pixels.
    """
    search = _Search(model, shots, sights)
    found = [
        search.laid(rotation, pivot) for pivot in search.pivots for rotation in _evenly(_ROTATIONS)
    ]
    # Then nearer to what was found: poses of one pivot turned a little about every axis.
    for kept, turn_deg in _NEARER:
        found = sorted(found, key=lambda pose: -pose.score)[:kept]
        around = _around(np.deg2rad(turn_deg))
        found = [
            max((search.laid(turn @ p.rotation, p.pivot) for turn in around), key=lambda q: q.score)
            for p in found
        ]
    found = _distinct(sorted(found, key=lambda pose: -pose.score))[:_KEPT]
    length = model.length_mm
    spread = np.array([*np.deg2rad([_TURN_DEG] * 3), *[_SHIFT * length] * 3])
    return [
        State(np.zeros(1), np.zeros(0), (Placing.expected(p.rotation, p.shift_mm, spread),))
        for p in found
    ]


@dataclass(frozen=True, eq=False)
class _Laid:
    """A pose, anatomical frame -> world, and how much of the films it explains."""

    score: float
    rotation: Floats
    shift_mm: Floats
    pivot: Floats


class _Search:
    """The mean bone before all films, in any pose."""

    def __init__(self, model: BoneModel, shots: Sequence[Shot], sights: Sequence[Sight]) -> None:
        self.at, length = looked_at(shots), model.length_mm
        vertices, self.faces, chosen = _coarse(model)
        self.layers = _coarse_layers(model, vertices, self.faces)
        self.steps = [_coarse_steps(sight.steps_per_mm)[:, chosen] for sight in sights]
        self.films = [_Spectrum(sight) for sight in sights]
        self.offsets = _grid(length)
        self.shifts = [
            film.shift_of(self.offsets, shot) for film, shot in zip(self.films, shots, strict=True)
        ]
        low, high = vertices[:, 0].min(), vertices[:, 0].max()
        self.pivots = [
            vertices[np.abs(vertices[:, 0] - (low + part * (high - low))) < 0.06 * length].mean(0)
            for part in _LOOKED_AT
        ]

    def laid(self, rotation: Floats, pivot: Floats) -> _Laid:
        """The best shift of a bone turned so, its pivot about where the cameras look."""
        shift = self.at - rotation @ pivot
        total = np.zeros(len(self.offsets), np.float32)
        for film, step, moved in zip(self.films, self.steps, self.shifts, strict=True):
            total += film.explained(self.layers @ rotation.T + shift, self.faces, step)[moved]
        best = int(np.argmax(total))
        return _Laid(float(total[best]), rotation, shift + self.offsets[best], pivot)


def _around(turn: float) -> Floats:
    """(27, 3, 3) rotations by `turn` rad or not at all about every axis."""
    steps = np.stack(np.meshgrid(*[[-turn, 0.0, turn]] * 3, indexing="ij"), axis=-1)
    return np.asarray(Rotation.from_rotvec(steps.reshape(-1, 3)).as_matrix())


def _distinct(ordered: Sequence[_Laid]) -> list[_Laid]:
    """Poses of which no better one is nearly the same."""
    out: list[_Laid] = []
    for pose in ordered:
        turned = [
            np.arccos(np.clip((np.sum(pose.rotation * o.rotation) - 1) / 2, -1, 1)) for o in out
        ]
        if all(angle > np.deg2rad(_SAME_DEG) for angle in turned):
            out.append(pose)
    return out


def _evenly(count: int) -> Floats:
    """(count, 3, 3) rotations, evenly spread: super-Fibonacci spirals (Alexa, CVPR 2022)."""
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / np.sqrt(2.0), 2 * np.pi * s / 1.533751168755204288118041
    four = [
        inner * np.sin(alpha),
        inner * np.cos(alpha),
        outer * np.sin(beta),
        outer * np.cos(beta),
    ]
    return np.asarray(Rotation.from_quat(np.stack(four, axis=1)).as_matrix())


def _grid(length: float) -> Floats:
    """(g, 3) mm: shifts in space that are tried."""
    line = np.arange(-_REACH, _REACH + _STEP / 2, _STEP) * length
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)


def _coarse(model: BoneModel) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Vertices and faces of the mean with fewer triangles, and which vertices they are near."""
    out = igl.decimate(model.shape.mean, model.shape.faces, _TRIANGLES)
    vertices, faces, nearest = out[-4], out[-3], out[-1]
    return (
        np.ascontiguousarray(vertices, np.float64),
        np.ascontiguousarray(faces, np.int64),
        np.asarray(nearest, np.int64),
    )


def _coarse_layers(model: BoneModel, vertices: Floats, faces: NDArray[np.int64]) -> Floats:
    """(2, n, 3) mm: where the layers lie."""
    depths = model.depths_mm[list(_LAYERS)]
    return np.asarray(vertices[None] - depths[:, None, None] * vertex_normals(vertices, faces))


def _coarse_steps(steps: Floats) -> Floats:
    """(2, n) 1/mm: all that rises outside, and beneath."""
    return np.stack([steps[: _LAYERS[1]].sum(axis=0), steps[_LAYERS[1] :].sum(axis=0)])


class _Spectrum:
    """A film's contrast, ready to be correlated."""

    def __init__(self, sight: Sight) -> None:
        self.target, self.bend = sight.target, sight.bend
        rows, columns = self.target.contrast.shape
        self.size = (
            fft.next_fast_len(rows * 3 // 2, True),
            fft.next_fast_len(columns * 3 // 2, True),
        )
        self.film = fft.rfft2(self.target.contrast * self.target.seen.mask, self.size)
        self.mask = fft.rfft2(self.target.seen.mask, self.size)

    def shift_of(self, offsets: Floats, shot: Shot) -> tuple[NDArray[np.int64], ...]:
        """Rows and columns of :meth:`explained` for (g, 3) shifts in space."""
        across = offsets @ self.target.projection.rotation.T
        pixels = np.round(across[:, :2] * (self.target.projection.focal[0] / shot.sod_mm))
        rows, columns = pixels[:, 1].astype(np.int64), pixels[:, 0].astype(np.int64)
        return rows % self.size[0], columns % self.size[1]

    def explained(self, layers: Floats, faces: NDArray[np.int64], steps: Floats) -> Image:
        """By shift: by how much the film's contrast shrinks if the model's is taken from it."""
        view = self.target.projection
        still = Projection(np.eye(3), np.zeros(3), view.focal, view.middle, view.shape)
        image = np.zeros(view.shape, np.float32)
        for points, step in zip(layers, steps, strict=True):
            image += line_integrals(view.to_camera(points), faces, step, still)
        contrast, _ = self.target.seen.normalised(bent(image, self.bend))
        model = contrast * (image > 0)
        alike = fft.irfft2(self.film * np.conj(fft.rfft2(model, self.size)), self.size)
        own = fft.irfft2(self.mask * np.conj(fft.rfft2(model * model, self.size)), self.size)
        whole = float((model * model).sum())
        out = np.maximum(alike, 0.0) ** 2 / np.maximum(own, _LEAST_SEEN * whole + 1e-6)
        return np.asarray(out, np.float32)

"""How alike are many bones, stretched or not: surface RMS for thousands of pairs, nearly exact.

Training a network to put bones of like shape side by side needs the RMS between all pairs
of hundreds of bones. Aligning and measuring each pair properly takes a quarter of a second;
here the same points are found once on every bone, all brought to one box, and a pair then
costs a few rounds of point-to-plane least squares. Points that slid along the surface do
not matter, because only the distance across it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba as nb
import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]

# A normal that points elsewhere counts like this distance, as a share of the bone's length:
# keeps the front of a shaft from being matched with its back.
_NORMAL_WEIGHT = 0.05
_DENSE = 20_000


@dataclass(frozen=True, eq=False)
class Resemblance:
    """The same points on every bone, ready to be compared.

    Attributes
    ----------
    points, normals : (bones, n, 3) mm and unit length, in the bones' anatomical frames.
    """

    points: Floats
    normals: Floats

    @classmethod
    def of(
        cls, surfaces: Sequence[trimesh.Trimesh], *, points: int = 800, seed: int = 0
    ) -> Resemblance:
        """Find points spread evenly over the most average surface on all the others.

        Parameters
        ----------
        surfaces : closed surfaces in their anatomical frames (mm), the same kind and side.
        points : how many points of each bone are compared.
        seed : where on the surface they lie.
        """
        samples, normals = [], []
        for surface in surfaces:
            at, face = trimesh.sample.sample_surface(surface, _DENSE, seed=seed)
            samples.append(np.asarray(at, dtype=np.float64))
            normals.append(np.asarray(surface.face_normals[face], dtype=np.float64))
        boxes = np.array([np.ptp(s, axis=0) for s in samples])
        mean = boxes.mean(axis=0)
        features = [
            np.hstack([p / box * mean, n * _NORMAL_WEIGHT * mean[0]])
            for p, n, box in zip(samples, normals, boxes, strict=True)
        ]
        template = features[int(np.abs(boxes - mean).sum(axis=1).argmin())][:points]
        match = [cKDTree(f).query(template)[1] for f in features]
        return cls(
            np.array([s[m] for s, m in zip(samples, match, strict=True)]),
            np.array([n[m] for n, m in zip(normals, match, strict=True)]),
        )

    def rms_mm(self, bones: NDArray[np.int64], stretches: Floats) -> Floats:
        """(v, v) symmetric RMS in mm between v bones, zero on the diagonal.

        Parameters
        ----------
        bones : (v,) which bone each is made from.
        stretches : (v, 3) factors along the axes of the anatomical frame; ones for the bone
            as it is.
        """
        one_way = np.zeros((len(bones), len(bones)))
        _all_pairs(
            self.points,
            self.normals,
            np.asarray(bones, dtype=np.int64),
            np.asarray(stretches, dtype=np.float64),
            one_way,
        )
        return np.asarray(np.sqrt((one_way + one_way.T) / 2.0))


@nb.njit(parallel=True, cache=True)
def _all_pairs(points, normals, bones, stretches, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the mean squared point-to-plane distance of every ordered pair."""
    for v in nb.prange(len(bones)):
        for w in range(len(bones)):
            if v != w:
                out[v, w] = _mean_square(
                    points[bones[v]],
                    stretches[v],
                    points[bones[w]],
                    normals[bones[w]],
                    stretches[w],
                )


@nb.njit(cache=True)
def _mean_square(points, stretch, partners, normals, other_stretch):  # type: ignore[no-untyped-def]
    """Mean squared distance along the partner's normal after the best small rigid motion."""
    n = len(points)
    moving = points * stretch
    fixed = partners * other_stretch
    # Normals go with the inverse of the stretch.
    planes = normals / other_stretch
    for k in range(n):
        planes[k] /= np.sqrt((planes[k] ** 2).sum())
    total = 0.0
    for step in range(5):
        normal_matrix = np.eye(6) * 1e-9
        right = np.zeros(6)
        row = np.empty(6)
        total = 0.0
        for k in range(n):
            p, q = moving[k], planes[k]
            residual = 0.0
            for a in range(3):
                residual += (fixed[k, a] - p[a]) * q[a]
            total += residual * residual
            row[0] = p[1] * q[2] - p[2] * q[1]
            row[1] = p[2] * q[0] - p[0] * q[2]
            row[2] = p[0] * q[1] - p[1] * q[0]
            row[3], row[4], row[5] = q[0], q[1], q[2]
            for a in range(6):
                right[a] += row[a] * residual
                for b in range(6):
                    normal_matrix[a, b] += row[a] * row[b]
        if step == 4:
            break
        motion = np.linalg.solve(normal_matrix, right)
        angle = np.sqrt((motion[:3] ** 2).sum()) + 1e-15
        x, y, z = motion[0] / angle, motion[1] / angle, motion[2] / angle
        c, s = np.cos(angle), np.sin(angle)
        for k in range(n):
            p0, p1, p2 = moving[k, 0], moving[k, 1], moving[k, 2]
            along = (x * p0 + y * p1 + z * p2) * (1.0 - c)
            moving[k, 0] = p0 * c + (y * p2 - z * p1) * s + x * along + motion[3]
            moving[k, 1] = p1 * c + (z * p0 - x * p2) * s + y * along + motion[4]
            moving[k, 2] = p2 * c + (x * p1 - y * p0) * s + z * along + motion[5]
    return total / n

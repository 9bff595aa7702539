"""What a closed surface does to a beam: its line integrals, and how they change with its shape.

The thickness of a body along a ray is the sum over its triangles of the depth at which the ray
meets them, counted out minus in. Bodies lie within each other (cortex, marrow): each surface
carries the step of attenuation from outside to inside, and the sums add up to the line integral.

When a triangle moves by ``u``, the body gains the volume ``n . u dA``, and the image gains it
where the triangle is seen (the divergence theorem). That flux is finite also where a ray only
grazes the surface, which the derivative of the depth is not: the derivative of an image that
has been blurred a little is a sum of small spots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

from osteoprint.xray.camera import Camera

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Image = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Projection:
    """A pinhole camera in numbers, for loops.

    Attributes
    ----------
    rotation, shift_mm : (3, 3) and (3,), world -> camera axes.
    focal : (rows, columns) pixels: source to detector over the pixel spacing.
    middle : (row, column) principal point.
    shape : (rows, columns).
    """

    rotation: Floats
    shift_mm: Floats
    focal: tuple[float, float]
    middle: tuple[float, float]
    shape: tuple[int, int]

    @classmethod
    def of(cls, camera: Camera) -> Projection:
        """The numbers of a cone beam's camera. Raises ValueError for a parallel beam."""
        if camera.is_parallel:
            raise ValueError("a parallel beam has no focal length")
        geometry = camera.geometry
        matrix = camera.world_to_camera
        row_mm, column_mm = geometry.pixel_spacing_mm
        return cls(
            matrix[:3, :3].copy(), matrix[:3, 3].copy(),
            (geometry.sdd_mm / row_mm, geometry.sdd_mm / column_mm),
            camera.principal_point, (geometry.rows, geometry.columns),
        )  # fmt: skip

    def to_camera(self, points: Floats) -> Floats:
        """(n, 3) world -> camera axes, mm."""
        return np.asarray(points @ self.rotation.T + self.shift_mm)


def line_integrals(points: Floats, faces: Ints, steps: Floats, view: Projection) -> Image:
    """(rows, columns) float32: what a surface adds to the line integrals.

    Parameters
    ----------
    points : (n, 3) mm in camera axes; the surface is closed, its faces wound outwards.
    faces : (m, 3).
    steps : (n,) step of attenuation from outside to inside, 1/mm.
    view : the camera.
    """
    out = np.zeros(view.shape, np.float32)
    rows = points[:, 1] / points[:, 2] * view.focal[0] + view.middle[0]
    columns = points[:, 0] / points[:, 2] * view.focal[1] + view.middle[1]
    middle = float(points[:, 2].mean())
    _rasterise(points, rows, columns, faces, steps, middle, view.focal, view.middle, out)
    return out


@nb.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _edge(ra, ca, rb, cb, a, b, r, c):  # type: ignore[no-untyped-def]
    """Twice the signed area of an edge and a point; the same number for both its triangles."""
    if a < b:
        return (rb - ra) * (c - ca) - (cb - ca) * (r - ra)
    return -((ra - rb) * (c - cb) - (ca - cb) * (r - rb))


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _rasterise(points, rows, columns, faces, steps, middle, focal, centre, out):  # type: ignore[no-untyped-def]
    """Add each triangle's signed depth beyond ``middle`` to the pixels whose middles it covers."""
    height, width = out.shape
    for t in range(len(faces)):
        i, j, k = faces[t, 0], faces[t, 1], faces[t, 2]
        r0, r1, r2 = rows[i], rows[j], rows[k]
        c0, c1, c2 = columns[i], columns[j], columns[k]
        area = _edge(r0, c0, r1, c1, i, j, r2, c2)
        if area == 0.0:
            continue
        # Plane of the triangle: where along a ray (x, y, 1) it is met.
        ax, ay, az = points[j] - points[i]
        bx, by, bz = points[k] - points[i]
        nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        offset = nx * points[i, 0] + ny * points[i, 1] + nz * points[i, 2]
        low_r = max(int(np.ceil(min(r0, r1, r2))), 0)
        high_r = min(int(np.floor(max(r0, r1, r2))), height - 1)
        low_c = max(int(np.ceil(min(c0, c1, c2))), 0)
        high_c = min(int(np.floor(max(c0, c1, c2))), width - 1)
        sign = 1.0 if area > 0 else -1.0
        for r in range(low_r, high_r + 1):
            for c in range(low_c, high_c + 1):
                w2 = sign * _edge(r0, c0, r1, c1, i, j, r, c)
                w0 = sign * _edge(r1, c1, r2, c2, j, k, r, c)
                w1 = sign * _edge(r2, c2, r0, c0, k, i, r, c)
                if w0 < 0.0 or w1 < 0.0 or w2 < 0.0:
                    continue
                total = w0 + w1 + w2
                x, y = (c - centre[1]) / focal[1], (r - centre[0]) / focal[0]
                along = nx * x + ny * y + nz
                if along == 0.0:
                    continue
                depth = offset / along
                # A hit far off the triangle's own depths is rounding at a grazing ray.
                least = min(points[i, 2], points[j, 2], points[k, 2])
                most = max(points[i, 2], points[j, 2], points[k, 2])
                depth = min(max(depth, least), most)
                step = (w0 * steps[i] + w1 * steps[j] + w2 * steps[k]) / total
                out[r, c] += (
                    (1.0 if along > 0 else -1.0) * step * (depth - middle)
                    * np.sqrt(1.0 + x * x + y * y)
                )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Spots:
    """Where the pieces of a surface are seen, and how much volume each sweeps when it moves.

    Attributes
    ----------
    pixels : (s, 4) flat index of the four pixels around each piece's middle; -1 outside.
    shares : (s, 4) its share in each of them, over the area of a pixel there, 1/mm².
    normals : (s, 3) outward normal times area times the step of attenuation, in camera axes.
    corners : (s, 3) the three vertices of the triangle.
    weights : (s, 3) barycentric weights of the piece's middle.
    """

    pixels: Ints
    shares: Floats
    normals: Floats
    corners: Ints
    weights: Floats


# A triangle is cut into four pieces, and those into four: middles in barycentric weights.
_QUARTERS = np.array(
    [[4, 1, 1], [1, 4, 1], [1, 1, 4], [2, 2, 2]], dtype=np.float64
) / 6  # fmt: skip


def spots(points: Floats, faces: Ints, steps: Floats, view: Projection) -> Spots:
    """The pieces of a surface as an image of its change sees them; parameters as above."""
    corners = points[faces]
    normals = 0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    step = steps[faces].mean(axis=1)
    pieces = len(_QUARTERS)
    middles = np.einsum("pc,tcx->tpx", _QUARTERS, corners).reshape(-1, 3)
    flux = np.repeat(normals * step[:, None], pieces, axis=0) / pieces
    row = middles[:, 1] / middles[:, 2] * view.focal[0] + view.middle[0]
    column = middles[:, 0] / middles[:, 2] * view.focal[1] + view.middle[1]
    low_r, low_c = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    part_r, part_c = row - low_r, column - low_c
    # A pixel is this large where the piece lies.
    area = middles[:, 2] ** 2 / (view.focal[0] * view.focal[1])
    # Volume is counted along the ray, which is longer than its part along the axis.
    slant = np.linalg.norm(middles, axis=1) / middles[:, 2]
    pixels, shares = [], []
    for dr, dc in ((0, 0), (0, 1), (1, 0), (1, 1)):
        r, c = low_r + dr, low_c + dc
        weight = (part_r if dr else 1 - part_r) * (part_c if dc else 1 - part_c)
        seen = (r >= 0) & (r < view.shape[0]) & (c >= 0) & (c < view.shape[1])
        pixels.append(np.where(seen, r * view.shape[1] + c, -1))
        shares.append(np.where(seen, weight * slant / area, 0.0))
    return Spots(
        np.stack(pixels, axis=1), np.stack(shares, axis=1), flux,
        np.repeat(faces, pieces, axis=0), np.tile(_QUARTERS, (len(faces), 1)),
    )  # fmt: skip


def change(seen: Spots, motion: Floats, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(p, rows, columns) float32: how the line integrals change with p motions of the surface.

    Parameters
    ----------
    seen : from :func:`spots`.
    motion : (p, n, 3) mm, how the vertices move with each parameter, in camera axes.
    shape : (rows, columns).
    """
    out = np.zeros((len(motion), shape[0] * shape[1]), np.float32)
    _splat(
        seen.pixels, seen.shares, seen.normals, seen.corners, seen.weights,
        np.ascontiguousarray(motion), out,
    )  # fmt: skip
    return out.reshape(len(motion), *shape)


@nb.njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def _splat(pixels, shares, normals, corners, weights, motion, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (p, pixels), parameter by parameter."""
    for p in nb.prange(len(motion)):
        for s in range(len(pixels)):
            flux = 0.0
            for c in range(3):
                v = corners[s, c]
                flux += weights[s, c] * (
                    normals[s, 0] * motion[p, v, 0]
                    + normals[s, 1] * motion[p, v, 1]
                    + normals[s, 2] * motion[p, v, 2]
                )
            if flux == 0.0:
                continue
            for q in range(4):
                if pixels[s, q] >= 0:
                    out[p, pixels[s, q]] += flux * shares[s, q]

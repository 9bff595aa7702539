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

from dataclasses import dataclass, replace

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

    def cropped(self, window: tuple[slice, slice]) -> Projection:
        """The same camera, of a part of its pixels."""
        (top, bottom, _), (left, right, _) = (
            part.indices(size) for part, size in zip(window, self.shape, strict=True)
        )
        middle = (self.middle[0] - top, self.middle[1] - left)
        return replace(self, middle=middle, shape=(bottom - top, right - left))

    def from_camera_axes(self) -> Projection:
        """The same pixels, for points that are in camera axes already."""
        return replace(self, rotation=np.eye(3), shift_mm=np.zeros(3))

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


# A triangle is cut into four pieces: their middles in barycentric weights.
_QUARTERS = np.array([[4, 1, 1], [1, 4, 1], [1, 1, 4], [2, 2, 2]], np.float32) / 6
_WHOLE = np.full((1, 3), 1 / 3, np.float32)


def change(
    points: Floats,
    faces: Ints,
    steps: Floats,
    view: Projection,
    motion: Image,
    *,
    quartered: bool = True,
) -> Image:
    """(rows, columns, p) float32: how the line integrals change with p motions of a surface.

    Parameters
    ----------
    points, faces, steps, view : as in :func:`line_integrals`; or (l, n, 3) points and (l, n)
        steps of l surfaces that move together.
    motion : (n, 3, p) float32 mm, how the vertices move with each parameter, in camera axes.
    quartered : False where pixels are as large as triangles.
    """
    layers, values = np.atleast_3d(points), np.atleast_2d(steps)
    if points.ndim == 2:
        layers = points[None]
    out = np.zeros((*view.shape, motion.shape[2]), np.float32)
    motion = np.ascontiguousarray(motion, np.float32)
    pieces = _QUARTERS if quartered else _WHOLE
    _spread(layers, faces, values, pieces, view.focal, view.middle, motion, out)
    return out


@nb.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _spread(layers, faces, steps, pieces, focal, middle, motion, out):  # type: ignore[no-untyped-def]
    """Add what each piece of each triangle sweeps to the four pixels around its middle."""
    rows, columns, count = out.shape
    corner = np.empty((3, count), np.float32)
    flux = np.empty(count, np.float32)
    for k in range(len(layers)):
        for t in range(len(faces)):
            p, q, r = layers[k, faces[t, 0]], layers[k, faces[t, 1]], layers[k, faces[t, 2]]
            ax, ay, az = q[0] - p[0], q[1] - p[1], q[2] - p[2]
            bx, by, bz = r[0] - p[0], r[1] - p[1], r[2] - p[2]
            step = 0.0
            for c in range(3):
                step += steps[k, faces[t, c]] / 3.0
            # Half the cross product is the area, shared among the pieces.
            scale = step / (2.0 * len(pieces))
            nx = np.float32(scale * (ay * bz - az * by))
            ny = np.float32(scale * (az * bx - ax * bz))
            nz = np.float32(scale * (ax * by - ay * bx))
            for c in range(3):
                move = motion[faces[t, c]]
                for j in range(count):
                    corner[c, j] = nx * move[0, j] + ny * move[1, j] + nz * move[2, j]
            for s in range(len(pieces)):
                u, v, w = pieces[s, 0], pieces[s, 1], pieces[s, 2]
                x = u * p[0] + v * q[0] + w * r[0]
                y = u * p[1] + v * q[1] + w * r[1]
                z = u * p[2] + v * q[2] + w * r[2]
                row = y / z * focal[0] + middle[0]
                column = x / z * focal[1] + middle[1]
                r0, c0 = int(np.floor(row)), int(np.floor(column))
                if r0 < -1 or c0 < -1 or r0 >= rows or c0 >= columns:
                    continue
                # A pixel is this large where the piece lies; and volume is counted along
                # the ray, which is longer than its part along the axis.
                per_area = focal[0] * focal[1] / (z * z) * np.sqrt(x * x + y * y + z * z) / z
                for j in range(count):
                    flux[j] = u * corner[0, j] + v * corner[1, j] + w * corner[2, j]
                for dr in range(2):
                    rr = r0 + dr
                    if rr < 0 or rr >= rows:
                        continue
                    part_r = row - r0 if dr else 1.0 - (row - r0)
                    for dc in range(2):
                        cc = c0 + dc
                        if cc < 0 or cc >= columns:
                            continue
                        part_c = column - c0 if dc else 1.0 - (column - c0)
                        share = np.float32(part_r * part_c * per_area)
                        for j in range(count):
                            out[rr, cc, j] += share * flux[j]

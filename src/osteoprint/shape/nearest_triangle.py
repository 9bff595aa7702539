"""Compiled searches for the nearest triangle: for single points, and for many at once.

Both walk the boxes of a :class:`~osteoprint.shape.surface_index.SurfaceIndex` and end with the
same answer. Points that lie close together share one walk: sixteen of them ride in the lanes
of the processor's vectors, and each triangle is measured against all of them at once, without
branches. Scattered points go alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from osteoprint.xray.vectors import widest_vectors

# Points that share a walk. Of eight, sixteen and single ones this is the fastest for femora.
LANES = 16
# Where in the lanes' one array what begins: x, y, z, the least squared distance, its triangle.
_Y, _Z, _BEST, _SPOT = LANES, 2 * LANES, 3 * LANES, 4 * LANES
# A triangle whose area is less than this part of its longest edge squared is all edge.
_SLIVER = 1e-6


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _dot(ax, ay, az, bx, by, bz):  # type: ignore[no-untyped-def]
    return ax * bx + ay * by + az * bz


@njit(cache=True, nogil=True, error_model="numpy")
def _closest(px, py, pz, t):  # type: ignore[no-untyped-def]
    """The point of triangle `t` (9 numbers) nearest to p.

    By the Voronoi regions of its corners and edges: Ericson, Real-Time Collision Detection
    (2005), 5.1.5.
    """
    abx, aby, abz = t[3] - t[0], t[4] - t[1], t[5] - t[2]
    acx, acy, acz = t[6] - t[0], t[7] - t[1], t[8] - t[2]
    d1 = _dot(abx, aby, abz, px - t[0], py - t[1], pz - t[2])
    d2 = _dot(acx, acy, acz, px - t[0], py - t[1], pz - t[2])
    if d1 <= 0.0 and d2 <= 0.0:
        return t[0], t[1], t[2]
    d3 = _dot(abx, aby, abz, px - t[3], py - t[4], pz - t[5])
    d4 = _dot(acx, acy, acz, px - t[3], py - t[4], pz - t[5])
    if d3 >= 0.0 and d4 <= d3:
        return t[3], t[4], t[5]
    vc = d1 * d4 - d3 * d2
    if vc <= 0.0 and d1 >= 0.0 and d3 <= 0.0:
        v = d1 / (d1 - d3)
        return t[0] + v * abx, t[1] + v * aby, t[2] + v * abz
    d5 = _dot(abx, aby, abz, px - t[6], py - t[7], pz - t[8])
    d6 = _dot(acx, acy, acz, px - t[6], py - t[7], pz - t[8])
    if d6 >= 0.0 and d5 <= d6:
        return t[6], t[7], t[8]
    vb = d5 * d2 - d1 * d6
    if vb <= 0.0 and d2 >= 0.0 and d6 <= 0.0:
        w = d2 / (d2 - d6)
        return t[0] + w * acx, t[1] + w * acy, t[2] + w * acz
    va = d3 * d6 - d5 * d4
    if va <= 0.0 and d4 - d3 >= 0.0 and d5 - d6 >= 0.0:
        w = (d4 - d3) / ((d4 - d3) + (d5 - d6))
        return t[3] + w * (t[6] - t[3]), t[4] + w * (t[7] - t[4]), t[5] + w * (t[8] - t[5])
    v = vb / (va + vb + vc)
    w = vc / (va + vb + vc)
    return t[0] + v * abx + w * acx, t[1] + v * aby + w * acy, t[2] + v * abz + w * acz


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _box_gap(px, py, pz, box):  # type: ignore[no-untyped-def]
    """Squared distance from p to a box."""
    x = max(box[0] - px, 0.0, px - box[3])
    y = max(box[1] - py, 0.0, py - box[4])
    z = max(box[2] - pz, 0.0, pz - box[5])
    return x * x + y * y + z * z


@njit(cache=True, nogil=True, error_model="numpy")
def _search(px, py, pz, corners, boxes, ranges, spot, stack, gaps):  # type: ignore[no-untyped-def]
    """Squared distance from p to the surface, and its triangle, starting from `spot`."""
    first_leaf = len(ranges) // 2
    x, y, z = _closest(px, py, pz, corners[spot])
    best = _dot(px - x, py - y, pz - z, px - x, py - y, pz - z)
    top = 1
    stack[0], gaps[0] = 0, 0.0
    while top > 0:
        top -= 1
        if gaps[top] >= best:
            continue
        node = stack[top]
        while node < first_leaf:
            near, far = 2 * node + 1, 2 * node + 2
            near_gap = _box_gap(px, py, pz, boxes[near])
            far_gap = _box_gap(px, py, pz, boxes[far])
            if far_gap < near_gap:
                near, far, near_gap, far_gap = far, near, far_gap, near_gap
            if far_gap < best:
                stack[top], gaps[top] = far, far_gap
                top += 1
            if near_gap >= best:
                break
            node = near
        if node < first_leaf:
            continue
        for i in range(ranges[node, 0], ranges[node, 1]):
            x, y, z = _closest(px, py, pz, corners[i])
            gap = _dot(px - x, py - y, pz - z, px - x, py - y, pz - z)
            if gap < best:
                best, spot = gap, i
    return best, spot


@njit(cache=True, nogil=True, error_model="numpy")
def search_each(points, corners, boxes, ranges, spots, distances):  # type: ignore[no-untyped-def]
    """Fill `distances` and `spots`; a spot of -1 means: start where the point before ended."""
    stack, gaps = np.empty(128, np.int64), np.empty(128)
    spot = 0
    for n in range(len(points)):
        if spots[n] >= 0:
            spot = spots[n]
        px, py, pz = points[n]
        best, spot = _search(px, py, pz, corners, boxes, ranges, spot, stack, gaps)
        distances[n], spots[n] = np.sqrt(best), spot


@njit(cache=True, nogil=True, error_model="numpy")
def search_together(points, corners, boxes, ranges, reach, spots, distances):  # type: ignore[no-untyped-def]
    """As `search_each`, without hints: points follow each other in space as far as may be.

    Sixteen that fit into a box with a diagonal of `reach` share their walk.
    """
    stack, gaps = np.empty(128, np.int64), np.empty(128)
    lanes, box = np.empty(5 * LANES), np.empty(6)
    spot = 0
    for first in range(0, len(points), LANES):
        many = min(LANES, len(points) - first)
        if _load(points, first, many, lanes, box) > reach * reach:
            for n in range(first, first + many):
                px, py, pz = points[n]
                best, spot = _search(px, py, pz, corners, boxes, ranges, spot, stack, gaps)
                distances[n], spots[n] = np.sqrt(best), spot
            continue
        lanes[_BEST:_SPOT], lanes[_SPOT:] = np.inf, spot
        _try_triangles(corners, spot, spot + 1, lanes)
        _walk(corners, boxes, ranges, lanes, box, stack, gaps)
        for lane in range(many):
            n = first + lane
            # The lanes only choose; the distance is measured as it is for single points.
            spot = int(lanes[_SPOT + lane])
            px, py, pz = points[n]
            x, y, z = _closest(px, py, pz, corners[spot])
            best = _dot(px - x, py - y, pz - z, px - x, py - y, pz - z)
            distances[n], spots[n] = np.sqrt(best), spot
        spot = spots[first + many // 2]


@njit(cache=True, nogil=True, error_model="numpy")
def _load(points, first, many, lanes, box):  # type: ignore[no-untyped-def]
    """Put points into the lanes, the last again into empty ones; box, squared diagonal."""
    box[:3], box[3:] = np.inf, -np.inf
    for lane in range(LANES):
        n = first + min(lane, many - 1)
        for k in range(3):
            lanes[k * LANES + lane] = points[n, k]
            box[k] = min(box[k], points[n, k])
            box[3 + k] = max(box[3 + k], points[n, k])
    return (box[3] - box[0]) ** 2 + (box[4] - box[1]) ** 2 + (box[5] - box[2]) ** 2


@njit(cache=True, nogil=True, error_model="numpy")
def _walk(corners, boxes, ranges, lanes, box, stack, gaps):  # type: ignore[no-untyped-def]
    """Try every leaf that may hold a nearer triangle for some lane, near ones first."""
    first_leaf = len(ranges) // 2
    mx, my, mz = (box[0] + box[3]) / 2, (box[1] + box[4]) / 2, (box[2] + box[5]) / 2
    worst = _worst(lanes)
    top = 1
    stack[0], gaps[0] = 0, 0.0
    while top > 0:
        top -= 1
        if gaps[top] >= worst:
            continue
        node = stack[top]
        while node < first_leaf:
            near, far = 2 * node + 1, 2 * node + 2
            # Which is near says the middle of the lanes: boxes around them touch many.
            if _box_gap(mx, my, mz, boxes[far]) < _box_gap(mx, my, mz, boxes[near]):
                near, far = far, near
            far_gap = _boxes_gap(box, boxes[far])
            if far_gap < worst:
                stack[top], gaps[top] = far, far_gap
                top += 1
            if _boxes_gap(box, boxes[near]) >= worst:
                break
            node = near
        if node >= first_leaf and _any_nearer(boxes[node], lanes):
            _try_triangles(corners, ranges[node, 0], ranges[node, 1], lanes)
            worst = _worst(lanes)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _boxes_gap(one, other):  # type: ignore[no-untyped-def]
    """Squared distance between two boxes."""
    x = max(one[0] - other[3], 0.0, other[0] - one[3])
    y = max(one[1] - other[4], 0.0, other[1] - one[4])
    z = max(one[2] - other[5], 0.0, other[2] - one[5])
    return x * x + y * y + z * z


@njit(cache=True, nogil=True, error_model="numpy")
def _worst(lanes):  # type: ignore[no-untyped-def]
    worst = 0.0
    for lane in range(LANES):
        worst = max(worst, lanes[_BEST + lane])
    return worst


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _any_nearer(box, lanes):  # type: ignore[no-untyped-def]
    """Whether `box` is nearer to some lane than the best triangle so far."""
    widest_vectors()  # type: ignore[call-arg,unused-ignore]
    x0, y0, z0, x1, y1, z1 = box[0], box[1], box[2], box[3], box[4], box[5]
    hits = 0
    for lane in range(LANES):
        x = max(x0 - lanes[lane], 0.0, lanes[lane] - x1)
        y = max(y0 - lanes[_Y + lane], 0.0, lanes[_Y + lane] - y1)
        z = max(z0 - lanes[_Z + lane], 0.0, lanes[_Z + lane] - z1)
        hits += 1 if x * x + y * y + z * z < lanes[_BEST + lane] else 0
    return hits > 0


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _try_triangles(corners, start, end, lanes):  # type: ignore[no-untyped-def]
    """Measure triangles start..end against all lanes; keep what is nearer.

    The nearest point lies over the inside of a triangle or on one of its edges, so that the
    least of the three edges serves where it is not over the inside.
    """
    widest_vectors()  # type: ignore[call-arg,unused-ignore]
    for i in range(start, end):
        t = corners[i]
        ax, ay, az = t[0], t[1], t[2]
        bx, by, bz = t[3] - ax, t[4] - ay, t[5] - az
        cx, cy, cz = t[6] - ax, t[7] - ay, t[8] - az
        ex, ey, ez = cx - bx, cy - by, cz - bz
        nx, ny, nz = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx
        bb, cc = _dot(bx, by, bz, bx, by, bz), _dot(cx, cy, cz, cx, cy, cz)
        bc = _dot(bx, by, bz, cx, cy, cz)
        ee, nn = _dot(ex, ey, ez, ex, ey, ez), _dot(nx, ny, nz, nx, ny, nz)
        eb = bc - bb
        per_bb, per_cc, per_ee = 1 / bb, 1 / cc, 1 / ee
        longest = max(bb, cc, ee)
        per_nn = 1 / nn if nn > (_SLIVER * longest) ** 2 else np.inf
        number = float(i)
        for lane in range(LANES):
            px, py, pz = lanes[lane] - ax, lanes[_Y + lane] - ay, lanes[_Z + lane] - az
            d1 = px * bx + py * by + pz * bz
            d2 = px * cx + py * cy + pz * cz
            v, w = cc * d1 - bc * d2, bb * d2 - bc * d1
            height = px * nx + py * ny + pz * nz
            s = min(max(d1 * per_bb, 0.0), 1.0)
            qx, qy, qz = px - s * bx, py - s * by, pz - s * bz
            gap = qx * qx + qy * qy + qz * qz
            s = min(max(d2 * per_cc, 0.0), 1.0)
            qx, qy, qz = px - s * cx, py - s * cy, pz - s * cz
            gap = min(gap, qx * qx + qy * qy + qz * qz)
            s = min(max((d2 - d1 - eb) * per_ee, 0.0), 1.0)
            qx, qy, qz = px - bx - s * ex, py - by - s * ey, pz - bz - s * ez
            gap = min(gap, qx * qx + qy * qy + qz * qz)
            over = (v >= 0.0) & (w >= 0.0) & (v + w <= nn)
            # A sliver's height is infinite here and loses against its edges.
            flat = height * height * per_nn
            gap = flat if over & (flat < gap) else gap
            best = lanes[_BEST + lane]
            lanes[_SPOT + lane] = number if gap < best else lanes[_SPOT + lane]
            lanes[_BEST + lane] = gap if gap < best else best


@njit(cache=True, nogil=True, error_model="numpy")
def touch(points, corners, spots):  # type: ignore[no-untyped-def]
    """(k, 3) nearest points, once the nearest triangles are known."""
    nearest = np.empty_like(points)
    for n in range(len(points)):
        p = points[n]
        nearest[n] = _closest(p[0], p[1], p[2], corners[spots[n]])
    return nearest

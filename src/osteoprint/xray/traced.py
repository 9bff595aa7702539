"""A scan made ready for tracing: cropped, quantised, turned so that rays read it in order.

A ray reads planes of voxels along the axis it runs along, so a copy of the scan is kept
for each axis in use, with that axis last in memory. A cell holds a voxel and its neighbour,
16 bits each: one read instead of two. Blocks of nothing but air are marked, to be skipped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numba as nb
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from osteoprint.ct.volume import Volume
from osteoprint.xray.materials import AIR_HU, BODY, MaterialTable

# Air, as far as skipping goes: 1 HU is below the noise and the rounding of any scan.
EMPTY_BELOW_HU = AIR_HU + 1.0
# Planes are read this many at a time: two vectors of eight.
PLANES = 16
# A mark stands for so many cells across the ray, and for PLANES along it.
CELLS = 4
_LARGEST = 65535.0


@dataclass(frozen=True, eq=False)
class Layout:
    """A slab of the scan, turned for rays along one axis.

    Attributes
    ----------
    packed : (a, b, n) uint32; the low half is the voxel, the high half its neighbour at
        b + 1, both as (HU - air) * ``TracedVolume.quanta_per_hu``. One cell of air
        surrounds the scan, so index 1 is the scan's first voxel.
    marks : (ceil(a / CELLS), ceil(b / CELLS), ceil(n / PLANES)) uint8, 0 where all is air.
    first_plane : how many planes of the scan come before this slab.
    """

    packed: NDArray[np.uint32]
    marks: NDArray[np.uint8]
    first_plane: int


@dataclass
class _Kept:
    """Layouts already made, the last used kept longest, within a limit of memory."""

    limit_bytes: int
    by_axis: OrderedDict[int, Layout] = field(default_factory=OrderedDict)
    dilated: dict[tuple[int, int, int], NDArray[np.uint8]] = field(default_factory=dict)
    # Device -> the scan in its memory (gpu.GpuVolume; torch is not known here).
    on_device: dict[str, object] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        """Layouts are made again where the scan is sent to: they are large and quick."""
        return {
            "limit_bytes": self.limit_bytes,
            "by_axis": OrderedDict(),
            "dilated": {},
            "on_device": {},
        }


@dataclass(frozen=True, eq=False)
class TracedVolume:
    """A scan cropped to what is not air, with the copies that tracing makes of it.

    Attributes
    ----------
    volume_hu : (i, j, k) HU, the cropped scan; a view of the scan it was made from.
    world_to_grid : (4, 4) LPS mm -> index into ``volume_hu`` plus one (see Layout).
    materials : how HU are read.
    quanta_per_hu : steps of the stored values in one HU; a power of two.
    """

    volume_hu: NDArray[np.generic]
    world_to_grid: NDArray[np.float64]
    materials: MaterialTable
    quanta_per_hu: float
    kept: _Kept

    @property
    def scan(self) -> Volume:
        """What was prepared: the scan, cropped; shares its memory."""
        to_grid = self.world_to_grid.copy()
        # The grid counts from one.
        to_grid[:3, 3] -= 1.0
        return Volume(self.volume_hu, np.asarray(np.linalg.inv(to_grid), np.float64))

    def layouts(self, axis: int) -> Iterator[Layout]:
        """The scan turned for rays along ``axis`` (0, 1, 2): one layout, or slabs of a large scan.

        Made when first asked for and kept as memory allows; slabs are made each time.
        """
        whole = self.kept.by_axis.get(axis)
        if whole is not None:
            self.kept.by_axis.move_to_end(axis)
            yield whole
            return
        turned = np.moveaxis(self.volume_hu, axis, 2)
        count_a, count_b, count_n = turned.shape
        per_plane = 4 * (count_a + 2) * (count_b + 2)
        planes = max(2 * PLANES, self.kept.limit_bytes // per_plane // PLANES * PLANES) - 2
        if count_n <= planes:
            whole = self._layout(turned, 0)
            self._keep(axis, whole)
            yield whole
            return
        planes = max(2 * PLANES, planes // 2)
        for first in range(0, count_n, planes):
            yield self._layout(turned[:, :, first : first + planes], first)

    def marks(self, axis: int, layout: Layout, reach: tuple[int, int]) -> NDArray[np.uint8]:
        """The layout's marks, spread by ``reach`` blocks along a and b."""
        key = (axis, *reach)
        if key in self.kept.dilated and self.kept.by_axis.get(axis) is layout:
            return self.kept.dilated[key]
        spread = maximum_filter(layout.marks, size=(2 * reach[0] + 1, 2 * reach[1] + 1, 1))
        if self.kept.by_axis.get(axis) is layout:
            self.kept.dilated[key] = spread
        return np.asarray(spread, dtype=np.uint8)

    def _layout(self, turned: NDArray[np.generic], first: int) -> Layout:
        """Pack a slab of the turned scan."""
        count_a, count_b, count_n = turned.shape
        planes = -(-(count_n + 2) // PLANES) * PLANES
        packed = np.zeros((count_a + 2, count_b + 2, max(planes, 2 * PLANES)), np.uint32)
        _pack(turned, np.float32(AIR_HU), np.float32(self.quanta_per_hu), packed)
        shape = [-(-packed.shape[i] // CELLS) for i in range(2)] + [packed.shape[2] // PLANES]
        marks = np.zeros(shape, np.uint8)
        _mark(packed, np.float32((EMPTY_BELOW_HU - AIR_HU) * self.quanta_per_hu), marks)
        return Layout(packed, marks, first)

    def _keep(self, axis: int, layout: Layout) -> None:
        """Keep a layout; let the longest unused go while there are too many."""
        kept = self.kept
        kept.by_axis[axis] = layout
        while len(kept.by_axis) > 1 and (
            sum(each.packed.nbytes for each in kept.by_axis.values()) > kept.limit_bytes
        ):
            gone, _ = kept.by_axis.popitem(last=False)
            for key in [k for k in kept.dilated if k[0] == gone]:
                del kept.dilated[key]


def prepare(
    volume: Volume, materials: MaterialTable = BODY, *, cache_mb: float = 96.0
) -> TracedVolume:
    """Make a scan ready for tracing; do it once per scan.

    Everything within 1 HU of air is cropped away at the border. The scan's own array is
    kept, not copied: do not change it afterwards.

    Parameters
    ----------
    volume : the scan, HU.
    materials : how HU are read.
    cache_mb : memory for turned copies of the scan, 4 bytes a voxel; a scan larger than
        that is turned slab by slab for every image.
    """
    hu = volume.volume_hu
    lows, highs = _filled(hu)
    cropped = volume.crop(lows, highs)
    top = max(float(cropped.volume_hu.max()) - AIR_HU, 1.0)
    quanta = float(2.0 ** min(np.floor(np.log2(_LARGEST / top)), 6.0))
    shift = np.eye(4)
    shift[:3, 3] = 1.0
    return TracedVolume(
        cropped.volume_hu,
        shift @ cropped.world_to_voxel,
        materials,
        quanta,
        _Kept(int(cache_mb * 2**20)),
    )


def _filled(hu: NDArray[np.generic]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """First and past-the-last index along each axis of what is not air; one voxel if all is."""
    low_j, high_j, low_k, high_k = _bounds(hu, np.float32(EMPTY_BELOW_HU))
    hit = np.flatnonzero(high_j)
    if hit.size == 0:
        return (0, 0, 0), (1, 1, 1)
    return (int(hit[0]), int(low_j.min()), int(low_k.min())), (
        int(hit[-1]) + 1,
        int(high_j.max()),
        int(high_k.max()),
    )


@nb.njit(parallel=True, cache=True)
def _bounds(hu, threshold):  # type: ignore[no-untyped-def]
    """Of each slice along the first axis, where the others exceed a threshold; no copy is made."""
    shape = hu.shape
    low_j = np.full(shape[0], shape[1], np.int64)
    low_k = np.full(shape[0], shape[2], np.int64)
    high_j = np.zeros(shape[0], np.int64)
    high_k = np.zeros(shape[0], np.int64)
    for i in nb.prange(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                if hu[i, j, k] > threshold:
                    low_j[i], high_j[i] = min(low_j[i], j), max(high_j[i], j + 1)
                    low_k[i], high_k[i] = min(low_k[i], k), max(high_k[i], k + 1)
    return low_j, high_j, low_k, high_k


@nb.njit(parallel=True, cache=True)
def _pack(turned, air, quanta, packed):  # type: ignore[no-untyped-def]
    """Fill a layout's cells; a row of b is read as a whole, whatever lies first in memory."""
    count_a, count_b, count_n = turned.shape
    for a in nb.prange(count_a):
        for first in range(0, count_n, 16):
            for b in range(count_b):
                for n in range(first, min(first + 16, count_n)):
                    value = np.uint32(
                        max((np.float32(turned[a, b, n]) - air) * quanta, np.float32(0.0))
                        + np.float32(0.5)
                    )
                    packed[a + 1, b + 1, n + 1] |= value
                    packed[a + 1, b, n + 1] |= value << np.uint32(16)


@nb.njit(parallel=True, cache=True)
def _mark(packed, threshold, marks):  # type: ignore[no-untyped-def]
    """Mark the blocks that hold anything, the far neighbours that interpolation reads included."""
    count_a, count_b, count_n = packed.shape
    low = np.uint32(0xFFFF)
    for block_a in nb.prange(marks.shape[0]):
        for block_b in range(marks.shape[1]):
            for a in range(block_a * CELLS, min((block_a + 1) * CELLS + 1, count_a)):
                for b in range(block_b * CELLS, min((block_b + 1) * CELLS + 1, count_b)):
                    for n in range(count_n):
                        if (packed[a, b, n] & low) > threshold:
                            marks[block_a, block_b, n // PLANES] = 1

"""A CT volume: a grid of Hounsfield units and where it lies in the world.

The grid is indexed ``[i, j, k]``; ``voxel_to_world`` maps the homogeneous index
``(i, j, k, 1)`` of a voxel's *centre* to LPS millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AIR_HU = -1000.0


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar grid in Hounsfield units.

    Attributes
    ----------
    volume_hu : (I, J, K) float32 or int16, Hounsfield units.
    voxel_to_world : (4, 4) float64, affine, voxel index -> LPS mm.
    """

    volume_hu: NDArray[Any]
    voxel_to_world: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.volume_hu.ndim != 3 or min(self.volume_hu.shape) < 1:
            raise ValueError(f"volume_hu must be a filled 3D grid, not {self.volume_hu.shape}")
        matrix = np.asarray(self.voxel_to_world, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError("voxel_to_world must be a finite (4, 4) matrix")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise ValueError("voxel_to_world must be invertible: a spacing of zero?")
        object.__setattr__(self, "voxel_to_world", matrix)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        i, j, k = self.volume_hu.shape
        return i, j, k

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """(3,) edge lengths of a voxel in mm."""
        return np.asarray(np.linalg.norm(self.voxel_to_world[:3, :3], axis=0))

    @property
    def world_to_voxel(self) -> NDArray[np.float64]:
        """(4, 4) LPS mm -> voxel index, the inverse of ``voxel_to_world``."""
        return np.asarray(np.linalg.inv(self.voxel_to_world))

    def world_bounds(self) -> NDArray[np.float64]:
        """(2, 3) lowest and highest world corner of the voxels' outer faces, LPS mm."""
        corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in self.shape])).reshape(3, -1)
        world = self.voxel_to_world[:3, :3] @ corners + self.voxel_to_world[:3, 3:]
        return np.stack([world.min(axis=1), world.max(axis=1)])

    def crop(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> Volume:
        """The part ``[low, high)`` in voxel indices, clipped to the grid.

        The world position of every voxel that remains is unchanged.
        Raises ValueError if nothing remains.
        """
        lo = np.clip(low, 0, self.shape).astype(int)
        hi = np.clip(high, 0, self.shape).astype(int)
        if np.any(hi <= lo):
            raise ValueError(f"crop {low}..{high} leaves nothing of {self.shape}")
        part = self.volume_hu[lo[0] : hi[0], lo[1] : hi[1], lo[2] : hi[2]]
        matrix = self.voxel_to_world.copy()
        matrix[:3, 3] = (self.voxel_to_world @ np.append(lo, 1.0))[:3]
        return Volume(np.ascontiguousarray(part), matrix)

    def shrunk(self, factor: int) -> Volume:
        """Block means over ``factor`` voxels along each axis; the rest at the far end is air.

        Returns float32 HU; ``factor`` 1 returns the same volume. Mass is conserved.
        """
        if factor <= 1:
            return self
        pad = [(0, -n % factor) for n in self.shape]
        grid = np.pad(self.volume_hu.astype(np.float32), pad, constant_values=AIR_HU)
        i, j, k = (n // factor for n in grid.shape)
        blocks = grid.reshape(i, factor, j, factor, k, factor).mean(axis=(1, 3, 5))
        matrix = self.voxel_to_world.copy()
        matrix[:3, :3] *= factor
        matrix[:3, 3] = (self.voxel_to_world @ np.array([*[(factor - 1) / 2] * 3, 1.0]))[:3]
        return Volume(blocks, matrix)

"""A surface becomes a CT volume: cortex, spongy bone, marrow and soft tissue in HU.

Bone surfaces carry no grey values, so a model supplies them. The cortex is thick in the
shaft and a thin shell at the ends; spongy bone fills the ends, densest under the shell,
and gives way to fatty marrow inside the shaft. All thicknesses scale with the radius of
the shaft, so that a cat's femur and a human one are served by one model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

from osteoprint.ct.volume import AIR_HU, Volume
from osteoprint.ct.voxelize import closed_surface, depth_voxels, occupancy
from osteoprint.errors import ScanError
from osteoprint.frames import apply, invert_rigid, rigid

__all__ = ["CortexModel", "occupancy", "principal_frame", "volume_from_surface"]

# Voxels a phantom may have: 4 bytes each, and the depth needs four times that.
_MAX_VOXELS = 400_000_000
# Length over which muscle gives way to fat, in voxels: none sharper than the grid.
_BLUR_VOXELS = 1.0


@dataclass(frozen=True)
class CortexModel:
    """What a long bone is made of, and where.

    Lengths are relative to the shaft radius: that of the circle with the shaft's mean
    cross-section between 35 % and 65 % of the length (about 14 mm in a human femur, 4 mm
    in a cat's). Positions are fractions of the length, counted from the nearer end.

    Attributes
    ----------
    cortical_hu : compact bone; femoral shafts typically measure 1600-1800 HU at 120 kV
        (density 1.92 g/cm3, ICRU Report 44, 1989).
    subchondral_hu, trabecular_hu : spongy bone right under the shell and deep inside;
        typically 100-400 HU in healthy adults, falling with age and density (Schreiber et
        al., J Bone Joint Surg Am 2011;93:1057).
    marrow_hu : fatty marrow of the shaft, typically -50 to -100 HU.
    muscle_hu, fat_hu : typically about 50 and -100 HU.
    shaft_thickness, end_thickness : of the cortex, in shaft radii. 0.40 is 5.7 mm in a
        human femur and 1.6 mm in a cat's; 0.075 is 1 mm and 0.3 mm. Typical values.
    end_until, shaft_from : where the shell begins to thicken, and where it is full.
    spongy_until, marrow_from : where spongy bone begins to thin out, and where it is gone.
    dense_depth : depth over which subchondral bone fades to trabecular, in shaft radii.
    fat_share : the part of the soft tissue's thickness that is fat, under the skin.
    variation : relative SD of the cortex thickness from place to place; only with an rng.
    texture_hu : SD of the spongy bone from place to place; only with an rng.
    """

    cortical_hu: float = 1700.0
    subchondral_hu: float = 400.0
    trabecular_hu: float = 180.0
    marrow_hu: float = -80.0
    muscle_hu: float = 50.0
    fat_hu: float = -100.0
    shaft_thickness: float = 0.40
    end_thickness: float = 0.075
    end_until: float = 0.08
    shaft_from: float = 0.36
    spongy_until: float = 0.14
    marrow_from: float = 0.32
    dense_depth: float = 0.35
    fat_share: float = 0.3
    variation: float = 0.08
    texture_hu: float = 40.0


def volume_from_surface(
    mesh: trimesh.Trimesh,
    *,
    voxel_mm: float = 1.0,
    cortex: CortexModel | None = None,
    soft_tissue_mm: float | None = None,
    margin_mm: float = 5.0,
    bone_to_world: NDArray[np.float64] | None = None,
    rng: np.random.Generator | None = None,
) -> Volume:
    """Make the CT volume of a bone from its outer surface.

    The grid lies along the bone, whatever its pose; ``voxel_to_world`` carries the
    rotation. A voxel that the surface cuts mixes inside and outside by the exact volume
    fractions, so that path lengths through the volume are those through the surface.

    Parameters
    ----------
    mesh : closed surface, LPS mm, any pose.
    voxel_mm : edge of the cubic voxels.
    cortex : tissue model; None for the default one.
    soft_tissue_mm : thickness of muscle and fat around the bone; None for bare bone in air.
    margin_mm : air around bone or soft tissue.
    bone_to_world : (4, 4) rigid; the grid's axes are those of this frame. None for the
        principal axes, the long one first.
    rng : varies cortex and spongy bone from place to place; None for the plain model.

    Returns
    -------
    Volume, float32 HU. The same inputs (and seed) give the same bits.

    Raises
    ------
    ScanError : the surface is not closed, or a size is not positive or makes the grid
        too large. ValueError : ``bone_to_world`` is not rigid.
    """
    _check_sizes(voxel_mm, soft_tissue_mm, margin_mm)
    model = cortex if cortex is not None else CortexModel()
    vertices, faces = closed_surface(mesh)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    principal = principal_frame(mesh)
    grid = principal if bone_to_world is None else _rigid_or_error(bone_to_world)
    soft_mm = soft_tissue_mm or 0.0
    shape, voxel_to_world, inner = _grid(vertices, grid, voxel_mm, margin_mm, soft_mm)

    occupied = occupancy(mesh, shape, voxel_to_world)
    along, radius = _along_shaft(vertices, principal, voxel_to_world, occupied[inner], inner)
    inside = _bone_hu(occupied[inner], along, radius / voxel_mm, model, voxel_mm, rng)
    if soft_mm > 0:
        volume = _soft_tissue_hu(occupied, soft_mm / voxel_mm, model)
    else:
        volume = np.full(shape, AIR_HU, dtype=np.float32)
    part = volume[inner]
    part += occupied[inner] * (inside - part)
    return Volume(volume, voxel_to_world)


def principal_frame(mesh: trimesh.Trimesh) -> NDArray[np.float64]:
    """(4, 4) rigid, principal axes of a solid -> LPS mm: centre of mass, longest axis first.

    Each of the first two axes points where its largest component is positive, so that the
    frame does not depend on the whims of an eigenvector routine.
    """
    # The inertia is least about the long axis; eigh sorts upwards.
    _, axes = np.linalg.eigh(mesh.moment_inertia)
    for n in range(2):
        axes[:, n] *= np.sign(axes[np.argmax(np.abs(axes[:, n])), n])
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return rigid(axes, np.asarray(mesh.center_mass, dtype=np.float64))


def _check_sizes(voxel_mm: float, soft_tissue_mm: float | None, margin_mm: float) -> None:
    if not (np.isfinite(voxel_mm) and voxel_mm > 0):
        raise ScanError("voxel_mm", f"{voxel_mm} is no voxel size", "give a positive one in mm")
    if soft_tissue_mm is not None and not (np.isfinite(soft_tissue_mm) and soft_tissue_mm >= 0):
        problem = f"{soft_tissue_mm} is no thickness"
        raise ScanError("soft_tissue_mm", problem, "give 0 or more in mm")
    if not (np.isfinite(margin_mm) and margin_mm >= 0):
        raise ScanError("margin_mm", f"{margin_mm} is no margin", "give 0 or more in mm")


def _rigid_or_error(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.allclose(invert_rigid(matrix) @ matrix, np.eye(4)):
        raise ValueError("bone_to_world must be a (4, 4) rigid transform")
    if np.linalg.det(matrix[:3, :3]) < 0:
        raise ValueError("bone_to_world must not mirror")
    return matrix


def _grid(
    vertices: NDArray[np.float64],
    grid_to_world: NDArray[np.float64],
    voxel_mm: float,
    margin_mm: float,
    soft_mm: float,
) -> tuple[tuple[int, int, int], NDArray[np.float64], tuple[slice, slice, slice]]:
    """Shape and voxel_to_world of the grid, and the part of it that holds the bone."""
    own = apply(invert_rigid(grid_to_world), vertices)
    low, high = own.min(axis=0), own.max(axis=0)
    # At least one voxel of air around the bone, for the depth to start from.
    border = max(int(np.ceil((margin_mm + soft_mm) / voxel_mm)), 1)
    cells = np.ceil((high - low) / voxel_mm).astype(np.int64)
    size = cells + 2 * border
    if float(np.prod(size.astype(np.float64))) > _MAX_VOXELS:
        raise ScanError(
            "surface",
            f"at {voxel_mm} mm it needs {'x'.join(str(n) for n in size)} voxels",
            "use larger voxels, or check that the surface is in mm",
        )
    # What rounding up adds is shared by both sides: the bone lies in the middle.
    corner = (low + high) / 2 - size * voxel_mm / 2
    voxel_to_grid = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    voxel_to_grid[:3, 3] = corner + voxel_mm / 2
    first = np.full(3, border - 1)
    last = border + cells + 1
    inner = (
        slice(int(first[0]), int(last[0])),
        slice(int(first[1]), int(last[1])),
        slice(int(first[2]), int(last[2])),
    )
    shape = (int(size[0]), int(size[1]), int(size[2]))
    return shape, grid_to_world @ voxel_to_grid, inner


def _along_shaft(
    vertices: NDArray[np.float64],
    principal: NDArray[np.float64],
    voxel_to_world: NDArray[np.float64],
    occupied: NDArray[np.float32],
    inner: tuple[slice, slice, slice],
) -> tuple[NDArray[np.float64], float]:
    """(4,) plane that maps a voxel to its fraction of the length; the shaft radius in mm."""
    position = apply(invert_rigid(principal), vertices)[:, 0]
    low, high = position.min(), position.max()
    first = np.array([part.start for part in inner], dtype=np.float64)
    world_axis = principal[:3, 0]
    along = np.empty(4)
    along[:3] = world_axis @ voxel_to_world[:3, :3]
    along[3] = world_axis @ (voxel_to_world[:3, 3] - principal[:3, 3]) + along[:3] @ first - low
    along /= high - low
    voxel_volume = abs(float(np.linalg.det(voxel_to_world[:3, :3])))
    middle = _middle_sum(occupied, along) * voxel_volume
    return along, float(np.sqrt(middle / (0.3 * (high - low)) / np.pi))


@njit(cache=True, nogil=True)
def _middle_sum(occupied: NDArray[np.float32], along: NDArray[np.float64]) -> float:
    """Voxels of bone between 35 % and 65 % of the length."""
    total = 0.0
    for i in range(occupied.shape[0]):
        for j in range(occupied.shape[1]):
            for k in range(occupied.shape[2]):
                s = along[0] * i + along[1] * j + along[2] * k + along[3]
                if 0.35 <= s <= 0.65:
                    total += occupied[i, j, k]
    return total


def _bone_hu(
    occupied: NDArray[np.float32],
    along: NDArray[np.float64],
    radius_voxels: float,
    model: CortexModel,
    voxel_mm: float,
    rng: np.random.Generator | None,
) -> NDArray[np.float32]:
    """(I, J, K) HU of the bone's side of each voxel; meaningless where there is no bone."""
    depth = depth_voxels(occupied)
    if rng is None:
        coarse = np.zeros((2, 2, 2, 2))
        step = float(max(occupied.shape))
    else:
        # Thickness varies over about a shaft radius, spongy bone over a third of it.
        step = max(radius_voxels / 3.0, 1.0)
        size = np.ceil(np.array(occupied.shape) / step).astype(int) + 2
        wide = ndimage.gaussian_filter(rng.standard_normal(size), 2.0)
        fine = rng.standard_normal(size)
        coarse = np.stack([wide / max(wide.std(), 1e-9), fine])
        coarse *= np.array([model.variation, model.texture_hu])[:, None, None, None]
    numbers = np.array(
        [
            *(model.end_thickness * radius_voxels, model.shaft_thickness * radius_voxels),
            *(model.end_until, model.shaft_from, model.spongy_until, model.marrow_from),
            *(max(model.dense_depth * radius_voxels, 1e-6), model.cortical_hu),
            *(model.subchondral_hu, model.trabecular_hu, model.marrow_hu),
        ]
    )
    return _fill_bone(occupied, depth, along, numbers, coarse, step)


@njit(cache=True, nogil=True)
def _smoothstep(low: float, high: float, value: float) -> float:
    """0 below low, 1 above high, smooth between."""
    t = min(max((value - low) / max(high - low, 1e-9), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, nogil=True)
def _trilinear(
    coarse: NDArray[np.float64], n: int, i: float, j: float, k: float, step: float
) -> float:
    """A coarse field between its nodes, which are `step` voxels apart."""
    x, y, z = i / step, j / step, k / step
    a, b, c = int(x), int(y), int(z)
    u, v, w = x - a, y - b, z - c
    value = 0.0
    for da in range(2):
        for db in range(2):
            for dc in range(2):
                weight = (u if da else 1 - u) * (v if db else 1 - v) * (w if dc else 1 - w)
                value += weight * coarse[n, a + da, b + db, c + dc]
    return value


@njit(cache=True, nogil=True)
def _fill_bone(
    occupied: NDArray[np.float32],
    depth: NDArray[np.float32],
    along: NDArray[np.float64],
    numbers: NDArray[np.float64],
    coarse: NDArray[np.float64],
    step: float,
) -> NDArray[np.float32]:
    """HU of the bone's side of each voxel (lengths in voxels)."""
    end_t, shaft_t, end_until, shaft_from, spongy_until, marrow_from = numbers[:6]
    dense_depth, cortical, subchondral, trabecular, marrow = numbers[6:]
    hu = np.zeros_like(occupied)
    for i in range(occupied.shape[0]):
        for j in range(occupied.shape[1]):
            for k in range(occupied.shape[2]):
                if occupied[i, j, k] <= 0.0:
                    continue
                s = along[0] * i + along[1] * j + along[2] * k + along[3]
                s = min(s, 1.0 - s)
                wall = end_t + (shaft_t - end_t) * _smoothstep(end_until, shaft_from, s)
                wall *= max(1.0 + _trilinear(coarse, 0, i, j, k, step), 0.2)
                # The voxel spans these depths; its share of cortex follows.
                d = depth[i, j, k]
                low, high = max(d - 0.5, 0.0), max(d + 0.5, 1e-3)
                share = min(max((wall - low) / (high - low), 0.0), 1.0)
                inner = marrow
                spongy = 1.0 - _smoothstep(spongy_until, marrow_from, s)
                if share < 1.0 and spongy > 0.0:
                    dense = np.exp(-max(d - wall, 0.0) / dense_depth)
                    bone = trabecular + (subchondral - trabecular) * dense
                    bone += _trilinear(coarse, 1, i, j, k, step)
                    inner = marrow + (bone - marrow) * spongy
                hu[i, j, k] = inner + (cortical - inner) * share
    return hu


def _soft_tissue_hu(
    occupied: NDArray[np.float32], thickness_voxels: float, model: CortexModel
) -> NDArray[np.float32]:
    """(I, J, K) HU of muscle around the bone, fat around the muscle, air around that."""
    away = depth_voxels(np.float32(1.0) - occupied)
    return _fill_soft(
        away,
        thickness_voxels * (1.0 - model.fat_share),
        thickness_voxels,
        np.array([model.muscle_hu, model.fat_hu, AIR_HU]),
    )


@njit(cache=True, nogil=True)
def _fill_soft(
    away: NDArray[np.float32], muscle_until: float, skin: float, levels: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Muscle, fat and air by distance from the bone, blended over one voxel."""
    hu = np.empty(away.shape, dtype=np.float32)
    muscle, fat, air = levels
    source, target = away.ravel(), hu.ravel()
    for n in range(target.size):
        in_fat = min(max((source[n] - muscle_until) / _BLUR_VOXELS + 0.5, 0.0), 1.0)
        in_air = min(max((source[n] - skin) / _BLUR_VOXELS + 0.5, 0.0), 1.0)
        tissue = muscle + (fat - muscle) * in_fat
        target[n] = tissue + (air - tissue) * in_air
    return hu

"""The projector and the pose gradient on a CUDA card, for one camera or many at once.

The same rays, the same reading of a scan and the same numbers as
:mod:`osteoprint.xray.projector` and :mod:`osteoprint.xray.pose_gradient`, to 1e-3 of an
image's largest value. Where rays run is settled here in float64, once an image; what
is done for every ray is in :mod:`osteoprint.xray.gpu_kernels`, which is imported when an image is
asked for: a machine without triton or CUDA can import this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from osteoprint.errors import InputError
from osteoprint.xray.camera import Camera
from osteoprint.xray.materials import AIR_HU
from osteoprint.xray.pose_gradient import at_pose, slopes, speeds
from osteoprint.xray.projector import slots
from osteoprint.xray.traced import TracedVolume

__all__ = ["GpuVolume", "image_and_gradient_gpu", "path_lengths_gpu", "to_gpu"]

Array = NDArray[np.float64]
# So many planes of a scan are turned at a time: what is needed besides the result stays small.
_PLANES = 64


@dataclass(frozen=True, eq=False)
class GpuVolume:
    """A scan in the memory of a device: 2 or 4 bytes a voxel, and 4 for each axis in use.

    Attributes
    ----------
    volume_hu : (i, j, k) int16 or float32 tensor, the cropped scan.
    quanta_per_hu : steps of the stored values in one HU.
    cells : axis -> (n + 2, a + 2, b + 2) int32 tensor, the scan turned so that rays along
        ``axis`` go from plane to plane n, a cell of air around it; the low half is the
        voxel, the high half its neighbour at b + 1, as in ``traced.Layout``.
    """

    volume_hu: torch.Tensor
    quanta_per_hu: float
    cells: dict[int, torch.Tensor] = field(default_factory=dict)

    def cells_along(self, axis: int) -> torch.Tensor:
        """The scan turned for rays along ``axis`` (0, 1, 2); made when first asked for."""
        if axis not in self.cells:
            turned = self.volume_hu.movedim(axis, 0)
            planes, count_a, count_b = turned.shape
            cells = turned.new_zeros((planes + 2, count_a + 2, count_b + 2), dtype=torch.int32)
            for first in range(0, planes, _PLANES):
                hu = turned[first : first + _PLANES].float()
                values = ((hu - AIR_HU) * self.quanta_per_hu).clamp(min=0.0).add(0.5).int()
                there = cells[1 + first : 1 + first + len(values), 1:-1]
                there[:, :, 1:-1] = values
                # The sign bit serves as the 16th of the high half.
                there[:, :, :-2] |= values << 16
            self.cells[axis] = cells
        return self.cells[axis]


def to_gpu(traced: TracedVolume, device: str | torch.device = "cuda") -> GpuVolume:
    """Bring a scan to a device, once: it stays as long as ``traced``, or a pose of it, is kept.

    Parameters
    ----------
    traced : the scan, from :func:`osteoprint.xray.projector.prepare`.
    device : a CUDA device; "cpu" for triton's interpreter.

    Raises
    ------
    InputError : there is no such device, or no triton.
    """
    place = _device(device)
    kept = traced.kept.on_device.get(str(place))
    if not isinstance(kept, GpuVolume):
        hu = traced.volume_hu
        if hu.dtype != np.int16:
            hu = hu.astype(np.float32, copy=False)
        # Torch warns of arrays that may not be written to, such as those read from a mapped file.
        there = torch.from_numpy(np.require(hu, requirements=["C", "W"])).to(place)
        kept = GpuVolume(there, traced.quanta_per_hu)
        traced.kept.on_device[str(place)] = kept
    return kept


def path_lengths_gpu(
    traced: TracedVolume, cameras: Camera | Sequence[Camera], device: str | torch.device = "cuda"
) -> torch.Tensor:
    """mm of each material on the way to each pixel, as ``projector.path_lengths`` gives them.

    Parameters
    ----------
    traced : the scan, from :func:`osteoprint.xray.projector.prepare`.
    cameras : one, or a sequence of B with images of one size; cone and parallel may be mixed.
    device : where to work: a CUDA device; "cpu" for triton's interpreter.

    Returns
    -------
    (M, rows, columns) float32 tensor on the device for one camera, (B, M, rows, columns) for a
    sequence. It may still be being filled; whatever is done with it waits for that.

    Raises
    ------
    InputError : there is no such device, or no triton.
    ValueError : no cameras, images of different sizes, or more than 7 materials.
    """
    views = [cameras] if isinstance(cameras, Camera) else list(cameras)
    low, width = slots(traced)
    top = len(traced.materials.materials) - 1
    # What reaches into the next range is that material's, except above the last, which
    # only gets denser.
    weight, beyond = 1 / width, -np.append(1 / width[1:], 0)
    beyond[top] = 1 / width[top]
    table = np.concatenate([low, width, weight, beyond])
    out = _render(traced, views, table, None, top + 1, device)
    return out[0] if isinstance(cameras, Camera) else out


def image_and_gradient_gpu(
    traced: TracedVolume,
    cameras: Camera | Sequence[Camera],
    mu_per_mm: Array,
    centre: Array,
    pose: Array | None = None,
    device: str | torch.device = "cuda",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Line integrals and how they change when the scan is moved, both in one pass.

    Parameters
    ----------
    traced, mu_per_mm, centre, pose : as ``pose_gradient.image_and_gradient`` takes them.
    cameras, device : as :func:`path_lengths_gpu` takes them.

    Returns
    -------
    (rows, columns) line integrals, and (6, rows, columns) their derivatives with respect
    to the parameters of ``pose_gradient.motion``: per radian, then per mm. Float32
    tensors on the device; both with B in front for a sequence of cameras.

    Raises
    ------
    InputError : there is no such device, or no triton.
    ValueError : no cameras, images of different sizes, not one weight to a material, or more
        than four materials.
    """
    views = [cameras] if isinstance(cameras, Camera) else list(cameras)
    posed = traced if pose is None else at_pose(traced, pose)
    table = np.concatenate(slopes(traced, np.asarray(mu_per_mm, dtype=np.float64)))
    out = _render(posed, views, table, np.asarray(centre, dtype=np.float64), 7, device)
    if isinstance(cameras, Camera):
        return out[0, 0], out[0, 1:]
    return out[:, 0], out[:, 1:]


def _render(
    traced: TracedVolume,
    cameras: list[Camera],
    table: NDArray[np.float32],
    centre: Array | None,
    channels: int,
    device: str | torch.device,
) -> torch.Tensor:
    """(B, channels, rows, columns): cameras that look along one axis are rendered together."""
    if len({(each.geometry.rows, each.geometry.columns) for each in cameras}) != 1:
        raise ValueError("cameras rendered together need images of one size, and one at least")
    volume = to_gpu(traced, device)
    place = volume.volume_hu.device
    rows, columns = cameras[0].geometry.rows, cameras[0].geometry.columns
    shape = (len(cameras), channels, rows, columns)
    out = torch.empty(shape, dtype=torch.float32, device=place)
    axes, through, direction = _beams(traced, cameras)
    for axis in np.unique(axes).tolist():
        places = np.flatnonzero(axes == axis)
        order = [a for a in range(3) if a != axis] + [axis]
        cells = volume.cells_along(axis)
        beam = through[places][:, order], direction[places][:, order]
        middle = (np.array(cells.shape)[[1, 2, 0]] - 1) / 2
        steps = np.linalg.inv(traced.world_to_grid)[:3, :3][:, order]
        moving = None if centre is None else speeds(traced.world_to_grid, axis, 0, centre)
        views = _views(*beam, middle, steps.T @ steps, places, table, moving)
        _launch(cells, torch.from_numpy(views).to(place), out, centre is not None)
    return out


def _launch(
    cells: torch.Tensor, views: torch.Tensor, out: torch.Tensor, with_gradient: bool
) -> None:
    """Start the kernel that fills the views' places in ``out`` (B, channels, rows, columns)."""
    kernels = _kernels()
    _, channels, rows, columns = out.shape
    count_n, count_a, count_b = cells.shape
    tiles = -(-rows // kernels.TILE_ROWS) * -(-columns // kernels.TILE_COLUMNS)
    grid = (tiles, len(views))
    given = (cells, views, out, rows, columns, count_a, count_b, count_n, views.shape[1])
    # Triton starts its programs on the current device, whatever the tensors lie on.
    with torch.cuda.device_of(out):
        if with_gradient:
            kernels.gradient_kernel[grid](*given, num_warps=kernels.WARPS)
        else:
            kernels.lengths_kernel[grid](*given, channels, num_warps=kernels.WARPS)


def _beams(traced: TracedVolume, cameras: list[Camera]) -> tuple[NDArray[np.intp], Array, Array]:
    """(B,) axis most parallel to each beam, and (B, 3, 3) a point of every ray and its direction.

    Both are in the grid, and change evenly over the image: their last axis holds the value
    at its middle, the change per row and per column. They are ``projector.rays`` for many
    cameras at once, since one after the other would take longer than rendering them.
    """
    matrix = traced.world_to_grid
    to_world = np.array([each.camera_to_world for each in cameras])
    right, down, beam, origin = np.moveaxis(to_world[:, :3, :], 2, 0)
    spacing = np.array([each.geometry.pixel_spacing_mm for each in cameras])
    parallel = np.array([each.is_parallel for each in cameras])
    depth = np.where(parallel, 0.0, [each.geometry.sdd_mm for each in cameras])
    geometry = cameras[0].geometry
    principal = np.array([each.principal_point for each in cameras])
    aside = ((geometry.rows - 1) / 2, (geometry.columns - 1) / 2) - principal
    step_row, step_column = down * spacing[:, :1], right * spacing[:, 1:]
    middle = origin + beam * depth[:, None] + step_row * aside[:, :1] + step_column * aside[:, 1:]
    pixel = matrix[:3, :3] @ np.stack([middle, step_row, step_column], axis=2)
    pixel[..., 0] += matrix[:3, 3]
    source, along = np.zeros_like(pixel), np.zeros_like(pixel)
    source[..., 0] = origin @ matrix[:3, :3].T + matrix[:3, 3]
    along[..., 0] = beam @ matrix[:3, :3].T
    through = np.where(parallel[:, None, None], pixel, source)
    direction = np.where(parallel[:, None, None], along, pixel - source)
    return np.abs(along[..., 0]).argmax(axis=1), through, direction


def _views(
    through: Array,
    direction: Array,
    middle: Array,
    steps: Array,
    places: NDArray[np.intp],
    table: NDArray[np.float32],
    moving: tuple[Array, Array] | None,
) -> NDArray[np.float32]:
    """(B, ...) float32, a row for each camera; what it holds is said in ``gpu_kernels``.

    Parameters
    ----------
    through, direction : (B, 3, 3) as from :func:`_beams`, with the main axis last.
    middle : (3,) the grid's.
    steps : (3, 3) dot products of the grid's steps, mm².
    places : (B,) where the cameras' images go.
    table : the kernel's own numbers, the same for all cameras.
    moving : the speeds of ``pose_gradient``, for the kernel that wants them.
    """
    count = len(places)
    even = np.array([1.0, 0.0, 0.0])
    from_middle = through - middle[:, None] * even
    same = [middle, steps[[0, 0, 1, 0, 1, 2], [0, 1, 1, 2, 2, 2]]]
    parts = [
        _met(from_middle, direction),
        direction,
        *(np.tile(each, (count, 1)) for each in same),
        places.astype(np.float64),
        np.tile(table, (count, 1)),
    ]
    if moving is not None:
        for spin, shift in zip(*moving, strict=True):
            moved, turned = spin @ through + shift[:, None] * even, spin @ direction
            parts += [_met(moved, direction) + _met(from_middle, turned), turned]
    return np.concatenate([each.reshape(count, -1) for each in parts], axis=1, dtype=np.float32)


def _met(through: Array, direction: Array) -> Array:
    """(B, 2, 3): a and b where rays meet the plane n = 0, times their step along n.

    What is multiplied changes evenly over the image, but one of two factors is always the
    same all over it (the source, or a parallel beam's direction): so the products do, too.
    """

    def times(one: Array, two: Array) -> Array:
        product = one[..., :1] * two + two[..., :1] * one
        product[..., 0] -= one[..., 0] * two[..., 0]
        return product

    return times(through[:, :2], direction[:, 2:]) - times(through[:, 2:], direction[:, :2])


def _device(device: str | torch.device) -> torch.device:
    """The device, by number; InputError unless kernels can run there."""
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device}", "is not known", 'give "cpu" or "cuda"') from None
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            fix = 'use device="cpu", or a machine with a CUDA card and a torch built for it'
            raise InputError(f"device {device}", "no CUDA device is there", fix)
        index = torch.cuda.current_device() if place.index is None else place.index
        if index >= count:
            raise InputError(f"device {device}", f"there are {count}", "count them from 0")
        place = torch.device("cuda", index)
    elif place.type != "cpu" or not _interpreted():
        fix = 'give "cuda", or use projector.path_lengths, which is made for processors'
        raise InputError(f"device {device}", "the kernels are made for CUDA cards", fix)
    _kernels()
    return place


def _interpreted() -> bool:
    """Whether triton runs kernels in its interpreter, on a CPU (TRITON_INTERPRET=1)."""
    kernel = _kernels().lengths_kernel
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(kernel, InterpretedFunction)


def _kernels() -> ModuleType:
    """The kernels; InputError where triton cannot be imported."""
    try:
        from osteoprint.xray import gpu_kernels
    except ImportError as error:
        fix = "install a torch built for CUDA, which brings triton along"
        raise InputError("triton", f"cannot be imported ({error})", fix) from None
    return gpu_kernels

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
from osteoprint.xray.projector import Rays, rays, slots
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
        there = torch.from_numpy(np.ascontiguousarray(hu)).to(place)
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
    place = _device(device)
    volume = to_gpu(traced, place)
    rows, columns = cameras[0].geometry.rows, cameras[0].geometry.columns
    out = torch.empty((len(cameras), channels, rows, columns), device=place)
    lines = [rays(traced, each) for each in cameras]
    for axis in sorted({each.axis for each in lines}):
        places = [at for at, each in enumerate(lines) if each.axis == axis]
        cells = volume.cells_along(axis)
        own = [lines[at] for at in places]
        views = _views(traced, own, places, (rows, columns), tuple(cells.shape), table, centre)
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


def _views(
    traced: TracedVolume,
    lines: list[Rays],
    places: list[int],
    image: tuple[int, int],
    cells: tuple[int, ...],
    table: NDArray[np.float32],
    centre: Array | None,
) -> NDArray[np.float32]:
    """(B, ...) float32, a row for each camera; what it holds is said in ``gpu_kernels``.

    Numbers that change evenly over the image are arrays of (..., 3): at its middle, per row,
    per column. Whatever is multiplied here has one factor that is the same all over the image.
    """
    count_n, count_a, count_b = cells
    middle = (np.array([count_a, count_b, count_n]) - 1) / 2
    through, direction = _beams(lines, image)
    from_middle = through.copy()
    from_middle[..., 0] -= middle
    steps = np.array([each.to_mm.T @ each.to_mm for each in lines])
    parts = [
        np.concatenate([_met(from_middle, direction), direction], axis=1),
        np.tile(middle, (len(lines), 1)),
        steps[:, [0, 0, 1, 0, 1, 2], [0, 1, 1, 2, 2, 2]],
        np.array(places, dtype=np.float64),
        np.tile(table, (len(lines), 1)),
    ]
    if centre is not None:
        # All cameras of a call look along one axis, so the scan moves for all alike.
        spin, shift = speeds(traced.world_to_grid, lines[0], 0, centre)
        even = np.array([1.0, 0.0, 0.0])
        for k in range(6):
            moved, turned = spin[k] @ through + shift[k][:, None] * even, spin[k] @ direction
            met = _met(moved, direction) + _met(from_middle, turned)
            parts.append(np.concatenate([met, turned], axis=1))
    flat = [part.reshape(len(lines), -1) for part in parts]
    return np.concatenate(flat, axis=1).astype(np.float32)


def _beams(lines: list[Rays], image: tuple[int, int]) -> tuple[Array, Array]:
    """(B, 3, 3) each: a point of every ray and its direction, in the grid's turned axes."""
    rows, columns = image
    through, direction = np.zeros((len(lines), 3, 3)), np.zeros((len(lines), 3, 3))
    for at, each in enumerate(lines):
        to_middle = (rows - 1) / 2 * each.step_row + (columns - 1) / 2 * each.step_column
        pixel = np.stack([each.start + to_middle, each.step_row, each.step_column], axis=1)
        if each.parallel:
            through[at] = pixel
            direction[at, :, 0] = each.source
        else:
            through[at, :, 0] = each.source
            direction[at] = pixel
            direction[at, :, 0] -= each.source
    return through, direction


def _met(through: Array, direction: Array) -> Array:
    """(B, 2, 3): a and b where rays meet the plane n = 0, times their step along n."""

    def times(one: Array, two: Array) -> Array:
        return one[..., :1] * two + two[..., :1] * one - one[..., :1] * two[..., :1] * even

    even = np.array([1.0, 0.0, 0.0])
    along_n, at_n = direction[:, 2:], through[:, 2:]
    return times(through[:, :2], along_n) - times(at_n, direction[:, :2])


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

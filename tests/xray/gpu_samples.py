"""Small scans and cameras for the GPU's tests, and a process that renders them.

    python gpu_samples.py OUT.npz DEVICE

Triton decides when it is imported whether kernels are compiled or interpreted. A machine
without a CUDA card renders in a process of its own, so that no other test meets a triton set to
interpret.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from osteoprint.ct.volume import Volume
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Camera, Geometry, Pose, view_camera
from osteoprint.xray.materials import SOFT_TISSUE, Material, MaterialTable
from osteoprint.xray.pose_gradient import motion
from osteoprint.xray.projector import TracedVolume, prepare

ROWS, COLUMNS = 19, 13
CENTRE = np.array([3.0, -5.0, 4.0])
START = motion(np.array([0.1, -0.2, 0.15, 2.0, -1.0, 3.0]), np.zeros(3))
BEAMS = {
    "cone": Geometry(ROWS, COLUMNS, (2.2, 2.5), 1150.0, 1000.0),
    "near": Geometry(ROWS, COLUMNS, (6.0, 7.0), 160.0, 60.0),
    "parallel": Geometry(ROWS, COLUMNS, (2.0, 2.2), np.inf, np.inf),
}
POSES = (Pose(), Pose(80.0, 5.0, 3.0), Pose(15.0, -60.0, 50.0, (2.0, 1.0)))


class Sample(NamedTuple):
    """A scan and the cameras that see it together."""

    traced: TracedVolume
    cameras: list[Camera]


def table(count: int) -> MaterialTable:
    """As many materials, 400 HU apart from 0 HU."""
    return MaterialTable(
        tuple(
            Material(f"material {m}", 400.0 * m, 1.0, tuple(SOFT_TISSUE.items()))
            for m in range(count)
        )
    )


def noise(dtype: type = np.float32) -> Volume:
    """12 x 14 x 10 voxels of noise around the world's origin."""
    rng = np.random.default_rng(8)
    return centred(rng.uniform(-1200, 3000, (12, 14, 10)).astype(dtype))


def lumps() -> Volume:
    """12 x 14 x 10 voxels without edges, in air: noise has kinks at every voxel."""
    rng = np.random.default_rng(8)
    inner = np.zeros((12, 14, 10))
    inner[4:-4, 4:-4, 4:-4] = rng.uniform(300, 4500, (4, 6, 2))
    return centred((gaussian_filter(inner, 1.5) - 1000.0).astype(np.float32))


def centred(hu: NDArray[np.generic]) -> Volume:
    spacing = (2.0, 3.0, 2.5)
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = -(np.array(hu.shape) - 1) / 2 * spacing
    return Volume(hu, matrix)


def cameras(beam: str) -> list[Camera]:
    """AP and ML in three poses: all of the scan's axes have rays along them."""
    return [
        view_camera(np.eye(4), view, Side.LEFT, BEAMS[beam], pose)
        for view in View
        for pose in POSES
    ]


def all_views(beam: str) -> Sample:
    return Sample(prepare(noise(), table(3)), cameras(beam))


def one_table(count: int) -> Sample:
    return Sample(prepare(noise(), table(count)), cameras("cone")[2:3])


def one_type(dtype: type) -> Sample:
    scan = noise(dtype)
    scan.volume_hu.flags.writeable = False
    return Sample(prepare(scan, table(2)), cameras("cone")[1:3])


def both_beams() -> Sample:
    return Sample(prepare(noise(), table(3)), [cameras("parallel")[4], cameras("cone")[1]])


def nothing() -> Sample:
    air = Volume(np.full((4, 4, 4), -1000, np.int16), np.eye(4))
    return Sample(prepare(air, table(3)), cameras("cone")[:1])


def moving(count: int, beam: str) -> Sample:
    return Sample(prepare(lumps(), table(count)), cameras(beam)[2:4])


# By name: what path lengths are tested on, and what derivatives are. Made when called.
LENGTHS: dict[str, Callable[[], Sample]] = {
    **{f"{beam} beam": partial(all_views, beam) for beam in BEAMS},
    **{f"{count} materials": partial(one_table, count) for count in range(1, 8)},
    "int16": partial(one_type, np.int16),
    "float64": partial(one_type, np.float64),
    "both beams": both_beams,
    "nothing": nothing,
}
GRADIENTS: dict[str, Callable[[], Sample]] = {
    f"{count} materials, {beam}": partial(moving, count, beam)
    for count, beam in ((1, "cone"), (3, "cone"), (3, "parallel"), (4, "near"))
}


def weights(traced: TracedVolume) -> NDArray[np.float64]:
    """(M,) 1/mm, rising."""
    return 0.02 * (1.0 + np.arange(len(traced.materials.materials))) ** 1.5


def render(device: str) -> dict[str, NDArray[np.float32]]:
    """What the GPU's functions give for all samples."""
    from osteoprint.xray.gpu import image_and_gradient_gpu, path_lengths_gpu

    out = {}
    for name, sample in LENGTHS.items():
        traced, views = sample()
        out[name] = path_lengths_gpu(traced, views, device).cpu().numpy()
    traced, views = LENGTHS["cone beam"]()
    out["one camera"] = path_lengths_gpu(traced, views[0], device).cpu().numpy()
    for name, sample in GRADIENTS.items():
        traced, views = sample()
        given = (weights(traced), CENTRE, START, device)
        image, gradient = image_and_gradient_gpu(traced, views, *given)
        out[f"{name}: image"] = image.cpu().numpy()
        out[f"{name}: gradient"] = gradient.cpu().numpy()
        one, _ = image_and_gradient_gpu(traced, views[0], *given)
        out[f"{name}: one camera"] = one.cpu().numpy()
    return out


if __name__ == "__main__":
    np.savez(Path(sys.argv[1]), **render(sys.argv[2]))

"""What `realism.py` looks at: a wrist and a leg from CT, and the same wrist on real films."""

from __future__ import annotations

import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from scipy.ndimage import binary_dilation, gaussian_filter, median_filter

from osteoprint.ct.reading import read_scan
from osteoprint.ct.volume import Volume
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.exposure import Exposure, develop
from osteoprint.xray.presets import expose_preset
from osteoprint.xray.projector import TracedVolume, path_lengths, prepare

Floats = NDArray[np.float64]
# The crops' stored values: fatty marrow lies at about 900, so 1024 is the offset; 0 is outside.
OFFSET_HU = 1024.0
VOXEL_MM = (0.625, 0.396, 0.396)
# Where the ulna lies beside the radius, in voxels: its head in the radius's notch.
ULNA_AT = (12, 84, -2)
# What is seen in the middle: so far along the arm from the radius's tip.
BELOW_TIP_MM = 35.0
# Half the arm's width and depth, as the films show it: 57 and 41 mm.
ARM_MM = (28.5, 20.5)
# An image intensifier of 380 mm seen in 1760 pixels.
PIXEL_MM = 0.216
PATCH = 256
FIELD = (320, 640)


@dataclass(frozen=True)
class Rig:
    """One camera of the rig.

    Attributes
    ----------
    focal_px, distance_mm : from its calibration: K and the bone's place on the beam.
    view, side, long_deg : from where it sees the arm; the two beams are 110 degrees apart.
    middles : frame -> (row, column) of the film where the patch is laid: from the joint's
        line down the two bones.
    """

    name: str
    focal_px: float
    distance_mm: float
    view: View
    side: Side
    long_deg: float
    middles: dict[str, tuple[int, int]]

    @property
    def geometry(self) -> Geometry:
        """A part of the film that shows air on both sides of the arm."""
        spacing = (PIXEL_MM, PIXEL_MM)
        return Geometry(*FIELD, spacing, self.focal_px * PIXEL_MM, self.distance_mm)

    @property
    def pixel_mm(self) -> float:
        """Pixel size at the bone."""
        return self.distance_mm / self.focal_px


RIGS = (
    Rig("cam02", 6369.0, 1152.3, View.AP, Side.RIGHT, 0.0,
        {"0002": (1358, 652), "0099": (1358, 745), "0158": (1358, 752)}),
    Rig("cam01", 6166.5, 901.4, View.ML, Side.RIGHT, -20.0,
        {"0002": (1345, 862), "0099": (1345, 800), "0158": (1345, 785)}),
)  # fmt: skip


def forearm(folder: Path) -> Volume:
    """The two bones in an arm; first axis distal to proximal, origin at the joint's line."""
    bones = [read_crop(folder / f"{name}_dcm_cropped.tif") for name in ("rad", "uln")]
    shape = tuple(
        max(r, at + u) for r, u, at in zip(bones[0].shape, bones[1].shape, ULNA_AT, strict=True)
    )
    margin = (0, 40, 40)
    grid = np.full([n + 2 * m for n, m in zip(shape, margin, strict=True)], np.nan)
    for bone, at in zip(bones, ((0, 0, 0), ULNA_AT), strict=True):
        place = tuple(slice(a + m, a + m + n) for a, m, n in zip(at, margin, bone.shape))
        filled = np.isfinite(bone)
        grid[place][filled] = bone[filled]
    middle = np.argwhere(np.isfinite(grid))[:, 1:].mean(axis=0)
    grid = np.where(np.isfinite(grid), grid, arm(grid.shape[1:], middle))
    to_world = np.diag([*VOXEL_MM, 1.0])
    to_world[:3, 3] = -np.array([BELOW_TIP_MM, *(middle * VOXEL_MM[1:])])
    return Volume(grid.astype(np.float32), to_world)


def read_crop(path: Path) -> Floats:
    """(pages, rows, columns) HU, nan outside of the bone; the pages run distal to proximal."""
    with Image.open(path) as image:
        stored = np.stack([np.asarray(page, np.float64) for page in ImageSequence.Iterator(image)])
    return np.where(stored > 0, stored - OFFSET_HU, np.nan)


def arm(shape: tuple[int, int], middle: Floats) -> Floats:
    """(rows, columns) HU of an oval arm: muscle, 3 mm of fat, 1.5 mm of skin, air."""
    j, k = np.mgrid[: shape[0], : shape[1]]
    across, deep = (j - middle[0]) * VOXEL_MM[1], (k - middle[1]) * VOXEL_MM[2]
    depth = (1.0 - np.hypot(across / ARM_MM[0], deep / ARM_MM[1])) * ARM_MM[1]
    section = np.select([depth < 0, depth < 1.5, depth < 4.5], [-1000.0, 50.0, -100.0], 55.0)
    return gaussian_filter(section, 0.8)


def simulated(traced: TracedVolume, rig: Rig, exposure: Exposure, pose: Pose) -> Floats:
    """A patch, bone bright, from the middle of a larger exposure."""
    turned = replace(  # the hand points up
        pose, in_plane_deg=pose.in_plane_deg + 180.0, long_deg=pose.long_deg + rig.long_deg
    )
    camera = view_camera(np.eye(4), rig.view, rig.side, rig.geometry, turned)
    lengths = path_lengths(traced, camera)
    image = develop(lengths, traced.materials, rig.geometry, exposure).astype(np.float64)
    top, left = ((n - PATCH) // 2 for n in FIELD)
    return image[top : top + PATCH, left : left + PATCH]


def real_patch(folder: Path, rig: Rig, frame: str) -> Floats:
    """A patch of a film, bone bright: -log of its grey, which a video camera gives in
    proportion to the signal."""
    with Image.open(folder / f"xr_rad_uln_{rig.name}_UND.{frame}.tif") as image:
        film = -np.log(np.maximum(np.asarray(image, np.float64), 1.0) / 255.0)
    row, column = rig.middles[frame]
    half = PATCH // 2
    return film[row - half : row + half, column - half : column + half]


def without_beads(patch: Floats) -> Floats:
    """A film's patch with its metal beads (2 % of the pixels) replaced by what is around them."""
    around = median_filter(patch, 21, mode="nearest")
    above = patch - around
    metal = above > 5 * 1.4826 * np.median(np.abs(above))
    return np.where(binary_dilation(metal, iterations=3), around, patch)


def leg(data: Path) -> Volume:
    """The right lower leg of the CT series, without the left one and the table."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(data / "vhf_lower_legs" / "slices.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        volume = read_scan(Path(folder), repair=True).volume
    return volume.crop((140, 215, 0), (256, 368, volume.shape[2]))


def leg_images(volume: Volume, seed: int) -> list[tuple[str, Floats]]:
    """The leg from the front, by three presets."""
    traced = prepare(volume)
    frame = np.eye(4)
    frame[:3, :3] = np.array(
        [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    ).T  # up, to the right, to the front
    frame[:3, 3] = volume.world_bounds().mean(axis=0)
    camera = view_camera(frame, View.AP, Side.RIGHT, Geometry(900, 372, (0.41, 0.41)))
    images = []
    for name in ("ideal", "clinic", "bad day"):
        rng = np.random.default_rng(seed + 4)
        image = expose_preset(traced, camera, name, rng, view=View.AP, side=Side.RIGHT).image
        images.append((name, image.astype(np.float64)))
    return images

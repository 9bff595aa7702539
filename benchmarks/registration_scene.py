"""The wrist that `registration.py` looks at: films, cameras, CT crops, and rough poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from osteoprint.ct.volume import Volume
from osteoprint.xray.camera import Camera, camera_from_calibration
from osteoprint.xray.film_view import FilmView, without_metal

Floats = NDArray[np.float64]

FRAMES = ("0002", "0099", "0158")
BONES = {"radius": "rad", "ulna": "uln"}
SIZE = 1760
# The disc of the image intensifier.
MASK_MIDDLE, MASK_RADIUS = 880.0, 820.0
VOXEL_MM = (0.396, 0.396, 0.625)
# Where the joint end and the cut end of each bone lie, (column, row) in the first and then in
# the second film, to about 3 mm: read by eye from a reduced picture.
ENDS = {
    ("radius", "0002"): (((890, 1199), (596, 1216)), ((917, 1664), (571, 1664))),
    ("ulna", "0002"): (((848, 1239), (751, 1233)), ((813, 1664), (740, 1664))),
    ("radius", "0099"): (((836, 1193), (698, 1204)), ((888, 1664), (637, 1664))),
    ("ulna", "0099"): (((773, 1216), (855, 1250)), ((762, 1664), (805, 1664))),
    ("radius", "0158"): (((825, 1193), (706, 1206)), ((882, 1664), (637, 1664))),
    ("ulna", "0158"): (((762, 1216), (863, 1248)), ((756, 1664), (809, 1664))),
}


def read_scan(folder: Path, bone: str) -> Volume:
    """One bone's crop: stored values less 1024 are HU, 0 is outside; middle at the origin."""
    with Image.open(folder / "ct_crops" / f"{BONES[bone]}_dcm_cropped.tif") as stack:
        pages = np.stack([np.asarray(page, np.float32) for page in ImageSequence.Iterator(stack)])
    hu = np.where(pages > 0, np.maximum(pages - 1024, -1000), -1000).astype(np.float32)
    grid = np.ascontiguousarray(hu.transpose(2, 1, 0))
    matrix = np.diag([*VOXEL_MM, 1.0])
    matrix[:3, 3] = -(np.array(grid.shape) - 1) / 2 * VOXEL_MM
    return Volume(grid, matrix)


def read_views(folder: Path, frame: str) -> list[FilmView]:
    """Both films of a frame: line integrals, beads taken out of the field."""
    out = []
    for number in (1, 2):
        camera = read_camera(folder / "calibration" / f"xr_calib_wrist_cam0{number}.txt")
        with Image.open(folder / "films" / f"xr_rad_uln_cam0{number}_UND.{frame}.tif") as film:
            grey = np.asarray(film, np.float32)
        image = -np.log(np.maximum(grey, 3) / 255)
        field = np.hypot(*(np.indices(grey.shape) - MASK_MIDDLE)) < MASK_RADIUS
        out.append(without_metal(FilmView(image, camera, field), pixel_mm(camera)))
    return out


def read_camera(path: Path) -> Camera:
    """A camera from its calibration file: K in pixels, world -> camera in mm."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]

    def numbers(title: str) -> Floats:
        at = lines.index(title) + 1
        return np.array([[float(v) for v in lines[at + k].split(",")] for k in range(3)])

    k, r, t = (numbers(title) for title in ("camera matrix", "rotation", "translation"))
    return camera_from_calibration(k, r, t.ravel(), rows=SIZE, columns=SIZE)


def pixel_mm(camera: Camera) -> float:
    """Size of a pixel about where the wrist is held, mm."""
    origin = np.append([105.0, 160.0, 95.0], 1.0)
    depth = float((camera.world_to_camera @ origin)[2])
    return camera.geometry.pixel_spacing_mm[0] * depth / camera.geometry.sdd_mm


def meeting_point(views: list[FilmView], points: tuple[tuple[int, int], ...]) -> Floats:
    """(3,) LPS mm where the rays of one point in two films come closest."""
    origins, rays = [], []
    for view, (column, row) in zip(views, points, strict=True):
        camera, geometry = view.camera, view.camera.geometry
        ray = np.array(
            [
                (column - camera.principal_point[1]) * geometry.pixel_spacing_mm[1],
                (row - camera.principal_point[0]) * geometry.pixel_spacing_mm[0],
                geometry.sdd_mm,
            ]
        )
        origins.append(camera.camera_to_world[:3, 3])
        rays.append(camera.camera_to_world[:3, :3] @ (ray / np.linalg.norm(ray)))
    along = np.linalg.lstsq(
        np.stack([rays[0], -rays[1]], axis=1), origins[1] - origins[0], rcond=None
    )[0]
    return np.asarray(
        (origins[0] + along[0] * rays[0] + origins[1] + along[1] * rays[1]) / 2, dtype=float
    )


def rough_poses(scan: Volume, distal: Floats, proximal: Floats, turns: int) -> list[Floats]:
    """Poses along a line between two points, turned about it: the pages run distal to proximal."""
    axis = (proximal - distal) / np.linalg.norm(proximal - distal)
    across = np.cross(axis, [1.0, 0, 0])
    across /= np.linalg.norm(across)
    half = scan.volume_hu.shape[2] * VOXEL_MM[2] / 2
    out = []
    for angle in 2 * np.pi * np.arange(turns) / turns:
        x = np.cos(angle) * across + np.sin(angle) * np.cross(axis, across)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([x, np.cross(axis, x), axis], axis=1)
        pose[:3, 3] = distal + axis * half
        out.append(pose)
    return out

"""A bone on real films of a calibrated rig: the same distal femur rebuilt twice.

    python benchmarks/reconstruction_knee.py

Two frames of one jump, each seen by two cameras; wires, markers, tibia, fibula and patella are in
the way, no CT of the knee exists, and nothing is clicked. Each frame is rebuilt on its own, with a
model of other people's femora. Judged are: whether both give one surface, where all four films
show the bone; and how far the surface's outline lies from the edge that each film has there.
Since some edge lies near everywhere, the same is measured for an outline that was moved away on
purpose: that must be worse by far.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from osteoprint.frames import apply
from osteoprint.reconstruct.reconstruction import Reconstruction, reconstruct
from osteoprint.reconstruct.shot import Shot
from osteoprint.shape.alignment import kabsch
from osteoprint.shape.surface_index import SurfaceIndex
from osteoprint.study.overlay import outlines, shadow
from osteoprint.xray.film import examine_film
from reconstruction_scene import CACHE, corresponding, learn, real_femora
from record import RESULTS, real_bones, write_result

FRAMES = ("0138", "0180")
VIEWS = {1: "ML", 2: "AP"}
# An edge is looked for so far to both sides of the outline, mm at the bone.
WINDOW_MM = 3.0
MOVED_MM = 4.0
PIXEL_MM = 0.5
Floats = NDArray[np.float64]


def calibration(path: Path) -> dict[str, list[list[float]] | list[float]]:
    """K, R and t of a camera, world to camera, as a sidecar says them."""
    blocks = path.read_text().strip().split("\n\n")
    rows = [
        [[float(v) for v in line.split(",")] for line in block.splitlines()[1:]] for block in blocks
    ]
    return {"k": rows[1], "r": rows[2], "t_mm": [value for (value,) in rows[3]]}


def rebuilt(model, frame: str) -> Reconstruction:  # type: ignore[no-untyped-def]
    """The femur on both films of a frame."""
    knee = real_bones() / "autoscoper" / "knee"
    with tempfile.TemporaryDirectory() as folder:
        films = []
        for camera, view in VIEWS.items():
            path = Path(folder) / f"cam{camera}.tif"
            shutil.copy(knee / "films" / f"L_Hop_Cam{camera}_001_UND.{frame}.tif", path)
            said = {
                "view": view, "polarity": "bone_dark", "intensity": "linear", "body_side": "left",
                "camera": calibration(
                    knee / "calibration" / f"xr_calib_left_knee_cam0{camera}.txt"
                ),
            }  # fmt: skip
            path.with_name(path.name + ".json").write_text(json.dumps(said))
            films.append(examine_film(path, None))
        return reconstruct(model, films, "refined")


def seen(found: Reconstruction) -> NDArray[np.bool_]:
    """(n,) which vertices lie on both films."""
    out = np.full(len(found.vertices), True)
    rotation, shift = found.state.placings[0].total
    world = found.vertices @ rotation.T + shift
    for shot in found.shots:
        target = shot.target(2.0, 450.0)
        at = target.projection.to_camera(world)
        pixels = [
            at[:, axis] / at[:, 2] * target.projection.focal[0] + target.projection.middle[k]
            for k, axis in enumerate((1, 0))
        ]
        out &= map_coordinates(target.seen.mask, pixels, order=0, cval=0.0) > 0.5
    return out


def apart(one: Floats, other: Floats, faces: NDArray[np.int64], part: NDArray[np.bool_]) -> Floats:
    """Distances, mm, of a part of two corresponding surfaces, (n, 3), after rigid alignment."""
    moved = apply(kabsch(one[part], other[part]), one)
    goal = SurfaceIndex.build(trimesh.Trimesh(other, faces, process=False))
    for _ in range(20):
        near = goal.nearest(moved[part])[1]
        moved = apply(kabsch(moved[part], near), moved)
    back = SurfaceIndex.build(trimesh.Trimesh(moved, faces, process=False))
    return np.concatenate([goal.nearest(moved[part])[0], back.nearest(other[part])[0]])


def edge_distances(found: Reconstruction, shot: Shot, index: int, moved_mm: float) -> Floats:
    """(k,) mm at the bone, from points of the outline, moved outwards, to the film's edge.

    The edge is where the film darkens most on the way out, within WINDOW_MM.
    """
    pixel = PIXEL_MM
    target = shot.target(pixel, 450.0)
    image = gaussian_filter(shot.upright(pixel, 450.0)[1], 1.0)
    cover = gaussian_filter(shadow(found, target, shot, index), 2.0)
    down, right = np.gradient(cover)
    steep = np.hypot(down, right)
    # Only where the outline lies on the film, clear of the field's rim.
    inner = gaussian_filter(target.seen.mask, 5.0 / pixel) > 0.97
    rows, columns = np.nonzero((np.abs(cover - 0.5) < 0.1) & inner & (steep > 0.02))
    outward = -np.stack([down, right])[:, rows, columns] / steep[rows, columns]
    steps = np.arange(-WINDOW_MM, WINDOW_MM + 0.05, 0.1)
    ways = (steps + moved_mm)[:, None] / pixel
    at = np.stack([rows, columns])[:, None, :] + outward[:, None, :] * ways[None]
    profile = map_coordinates(image, at, order=1)
    fall = -np.gradient(profile, axis=0)
    return np.abs(steps[np.argmax(fall, axis=0)])


def picture(found: Reconstruction, path: Path) -> None:
    """A small PNG: both films with the surface's outline, as they were taken."""
    parts = []
    for index, shot in enumerate(found.shots):
        length = float(np.ptp(found.vertices[:, 0]))
        image = shot.upright(0.0016 * length, length)[1]
        low, high = np.percentile(image[image > 0], [2, 99])
        grey = (np.clip((image - low) / (high - low), 0, 1) * 235).astype(np.uint8)
        drawn = np.repeat(grey[..., None], 3, axis=2)
        for line in outlines(found, shot, index):
            at = np.round(line).astype(int)
            drawn[at[:, 0].clip(0, len(drawn) - 1), at[:, 1].clip(0, drawn.shape[1] - 1)] = [
                255, 176, 0,
            ]  # fmt: skip
        # The films are fitted as a right knee's: here they are shown as taken, of a left one.
        parts.append(drawn[50:450, 50:450][:, ::-1])
    Image.fromarray(np.concatenate(parts, axis=1)).save(path, optimize=True)


def outline_rows(found: Reconstruction, frame: str) -> list[dict[str, Any]]:
    """How far the outline lies from each film's edge, and how far it would if it were moved."""
    rows = []
    for index, shot in enumerate(found.shots):
        for moved in (0.0, MOVED_MM):
            far = edge_distances(found, shot, index, moved)
            words = f"outline moved by {moved:g} mm" if moved else "outline"
            rows.append(
                {"what": f"frame {frame}, camera {index + 1}: {words} to the film's edge, mean",
                 "value": round(float(far.mean()), 3), "unit": "mm", "n": len(far),
                 "note": f"median {np.median(far):.2f}, RMS {np.sqrt((far**2).mean()):.2f}"}
            )  # fmt: skip
    return rows


def main() -> None:
    CACHE.mkdir(exist_ok=True)
    known = real_femora("smir_right_femora")
    shapes, faces, ok = corresponding("smir-all", known, "femur")
    model = learn(known, shapes, faces, ok, "femur")
    rows, found = [], {}
    for frame in FRAMES:
        begun = time.monotonic()
        found[frame] = rebuilt(model, frame)
        seconds = time.monotonic() - begun
        print(frame, found[frame].likeness, found[frame].warnings, flush=True)
        picture(found[frame], RESULTS / f"knee-{frame}.png")
        rows.append(
            {"what": f"frame {frame}: seconds, films read, pose searched, bone rebuilt",
             "value": round(seconds, 1), "unit": "s"}
        )  # fmt: skip
        rows += outline_rows(found[frame], frame)
    part = np.logical_and.reduce([seen(each) for each in found.values()])
    shapes = {frame: each.vertices for frame, each in found.items()}
    mean = model.shape.mean
    pairs = [("the two surfaces, where all films show them", shapes["0138"], shapes["0180"])]
    # Were they like each other only because both are like the mean, this would be as little.
    pairs += [(f"that of {name} and the mean shape, there", v, mean) for name, v in shapes.items()]
    for what, one, other in pairs:
        far = apart(one, other, faces, part)
        rows.append(
            {"what": f"{what}: RMS", "value": round(float(np.sqrt((far**2).mean())), 3),
             "unit": "mm", "n": int(part.sum()),
             "note": f"95 % within {np.percentile(far, 95):.2f} mm, farthest {far.max():.2f} mm"}
        )  # fmt: skip
    for r in rows:
        print(r)
    write_result(
        "reconstruction-knee", "python benchmarks/reconstruction_knee.py", 0,
        "one left knee, two frames of two cameras; model of 29 right femora of other people", rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()

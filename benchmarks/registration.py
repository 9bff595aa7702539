"""Radius and ulna of one wrist, from CT, found in its real films.

    python benchmarks/registration.py

Three frames of a moving wrist, each filmed by two cameras that were calibrated. Nobody knows
the true poses. What can be shown: the bone lies on the film (outlines in
docs/pictures/registration.jpg), starts from all around end in one pose, the films look like
the CT's images there, and the bones do not run into each other.

The first pose of each bone comes from two points read by eye (see registration_scene.py) and
all turns about the line between them; radius and ulna then take turns until they rest. From
that pose, 50 starts are drawn for each bone and frame: a turn of up to 10 degrees about any
axis and a shift of up to 10 mm in any direction.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, map_coordinates
from scipy.spatial.transform import Rotation

from osteoprint.ct.volume import Volume
from osteoprint.xray.film_view import FilmView, at_pixel_size, cropped
from osteoprint.xray.materials import BODY
from osteoprint.xray.pose_gradient import motion
from osteoprint.xray.projector import prepare
from osteoprint.xray.registration import (
    Registration,
    Settings,
    correlations,
    local_contrast,
    refine,
    register,
    simulated,
)
from osteoprint.xray.traced import TracedVolume
from record import ROOT, real_bones, write_result
from registration_scene import (
    BONES,
    ENDS,
    FRAMES,
    VOXEL_MM,
    meeting_point,
    pixel_mm,
    read_scan,
    read_views,
    rough_poses,
)

SEED = 0
STARTS = 50
FAR_DEG, FAR_MM = 10.0, 10.0
NEAR_DEG, NEAR_MM = 0.5, 0.5
TURNS = 24
ROUNDS = 3
# Bone in the crops, for the question whether two bones share a place.
SOLID_HU = 300.0
SEARCH = Settings(pixels_mm=(2.4, 1.2), candidates=120, kept=6, reach_deg=7.0, reach_mm=6.0)
OTHER = {"radius": "ulna", "ulna": "radius"}
COLOURS = {"radius": (255, 170, 0), "ulna": (0, 200, 255)}
Floats = NDArray[np.float64]
Poses = dict[str, Floats]


def main() -> None:
    begun = time.perf_counter()
    folder = real_bones() / "autoscoper" / "wrist"
    scans = {bone: read_scan(folder, bone) for bone in BONES}
    traced = {bone: prepare(scan, BODY) for bone, scan in scans.items()}
    rng = np.random.default_rng(SEED)
    rows: list[dict[str, Any]] = []
    pictures = []
    shares = []
    for frame in FRAMES:
        views = read_views(folder, frame)
        poses = found(traced, scans, views, frame, rng)
        for bone in BONES:
            name = f"{bone}, frame {frame}"
            seen = beside(traced, views, poses, bone)
            now = correlations(traced[bone], seen, poses[bone])
            say(f"{frame} {bone}: correlation {np.round(now, 3)}")
            for camera, value in enumerate(now, start=1):
                rows.append(
                    {
                        "what": f"correlation inside the outline, {name}, camera {camera}",
                        "value": round(value, 3),
                        "unit": "ZNCC of local contrast",
                    }
                )
            ends = from_all_around(traced[bone], seen, poses[bone], rng)
            shares.append(meet(ends))
            rows += start_rows(name, ends)
            say(f"{frame} {bone}: {rows[-3]['value']} of {STARTS} in one pose")
        rows += overlap_rows(frame, scans, poses)
        pictures.append([outlined(traced, view, poses) for view in views])
    rows = summary_rows(rows, shares) + rows
    draw(pictures)
    path = write_result(
        "registration",
        "python benchmarks/registration.py",
        SEED,
        f"3 frames x 2 cameras x 2 bones of one real wrist, {STARTS} starts each; "
        f"{time.perf_counter() - begun:.0f} s in all",
        rows,
    )
    say(str(path))


def found(
    traced: dict[str, TracedVolume],
    scans: dict[str, Volume],
    views: list[FilmView],
    frame: str,
    rng: np.random.Generator,
) -> Poses:
    """Each bone's pose in a frame, from where its two ends were seen."""
    poses: Poses = {}
    for bone in BONES:
        distal, proximal = (meeting_point(views, end) for end in ENDS[bone, frame])
        seen = beside(traced, views, poses, bone)
        tried = [
            register(traced[bone], seen, start, rng, SEARCH)
            for start in rough_poses(scans[bone], distal, proximal, TURNS)
        ]
        best = sorted(tried, key=lambda each: -each.score)[:4]
        refined = [refine(traced[bone], seen, each.pose) for each in best]
        poses[bone] = max(refined, key=lambda each: each.score).pose
        say(f"{frame} {bone}: searched, {max(each.score for each in refined):.3f}")
    finest = Settings(pixels_mm=Settings().pixels_mm[-1:])
    for _ in range(ROUNDS):
        for bone in BONES:
            seen = beside(traced, views, poses, bone)
            poses[bone] = refine(traced[bone], seen, poses[bone], finest).pose
    return poses


def beside(
    traced: dict[str, TracedVolume], views: list[FilmView], poses: Poses, bone: str
) -> list[FilmView]:
    """The films, with the other bone drawn where it is known to lie."""
    other = OTHER[bone]
    if other not in poses:
        return views
    kev = Settings().energy_kev
    return [
        replace(view, others=simulated(traced[other], view.camera, poses[other], kev))
        for view in views
    ]


def from_all_around(
    traced: TracedVolume, views: list[FilmView], pose: Floats, rng: np.random.Generator
) -> list[Registration]:
    """Where 50 starts end."""
    out = []
    for _ in range(STARTS):
        turn = FAR_DEG * rng.random() * unit(rng)
        shift = FAR_MM * rng.random() * unit(rng)
        away = motion(np.concatenate([np.deg2rad(turn), shift]), pose[:3, 3])
        out.append(register(traced, views, away @ pose, rng))
    return out


def unit(rng: np.random.Generator) -> Floats:
    """(3,) a direction, all alike."""
    drawn = rng.standard_normal(3)
    return np.asarray(drawn / np.linalg.norm(drawn))


def apart(one: Floats, other: Floats) -> tuple[float, float]:
    """Between two poses: degrees, and mm at the middle of the scan (its origin)."""
    turn = Rotation.from_matrix(one[:3, :3] @ other[:3, :3].T).magnitude()
    return float(np.rad2deg(turn)), float(np.linalg.norm(one[:3, 3] - other[:3, 3]))


def close(one: Floats, other: Floats) -> bool:
    """Whether two poses are one within the bar."""
    deg, mm = apart(one, other)
    return deg <= NEAR_DEG and mm <= NEAR_MM


def meet(ends: list[Registration]) -> list[bool]:
    """Which ends lie within the bar of the one that has the most others there."""
    near = np.array([[close(a.pose, b.pose) for b in ends] for a in ends])
    return [bool(each) for each in near[int(near.sum(axis=1).argmax())]]


def start_rows(name: str, ends: list[Registration]) -> list[dict[str, Any]]:
    together = meet(ends)
    inside = [each for each, here in zip(ends, together, strict=True) if here]
    gaps = [apart(a.pose, b.pose) for a, b in pairwise(inside)]
    best = max(ends, key=lambda each: each.score)
    right = any(close(best.pose, each.pose) for each in inside)
    note = f"the best of all ends is {'among' if right else 'NOT among'} them"
    return [
        {
            "what": f"starts that end in one pose, {name}",
            "value": sum(together),
            "unit": f"of {STARTS} within {NEAR_MM} mm and {NEAR_DEG} deg",
            "n": STARTS,
            "note": note,
        },
        {
            "what": f"between two such ends, median, {name}",
            "value": round(float(np.median([mm for _, mm in gaps])), 4),
            "unit": "mm",
        },
        {
            "what": f"between two such ends, median, {name}",
            "value": round(float(np.median([deg for deg, _ in gaps])), 4),
            "unit": "degrees",
        },
    ]


def overlap_rows(frame: str, scans: dict[str, Volume], poses: Poses) -> list[dict[str, Any]]:
    """How much bone of the ulna lies in bone of the radius, and how deep."""
    solid = np.pad(scans["radius"].volume_hu > SOLID_HU, 1)
    depth = distance_transform_edt(solid, sampling=VOXEL_MM).astype(np.float32)
    ulna = scans["ulna"]
    index = np.argwhere(ulna.volume_hu > SOLID_HU)
    points = np.c_[index, np.ones(len(index))] @ ulna.voxel_to_world.T
    there = points @ (np.linalg.inv(poses["radius"]) @ poses["ulna"]).T
    back = there @ np.linalg.inv(scans["radius"].voxel_to_world).T
    found_depth = map_coordinates(depth, back[:, :3].T + 1, order=1, cval=0.0)
    inside = found_depth > 0.5 * min(VOXEL_MM)
    return [
        {
            "what": f"ulna within the radius, frame {frame}",
            "value": round(float(inside.sum() * np.prod(VOXEL_MM)), 2),
            "unit": "mm3",
            "note": f"bone above {SOLID_HU:.0f} HU",
        },
        {
            "what": f"deepest of it, frame {frame}",
            "value": round(float(found_depth.max()), 2),
            "unit": "mm",
        },
    ]


def summary_rows(rows: list[dict[str, Any]], shares: list[list[bool]]) -> list[dict[str, Any]]:
    seen = [row["value"] for row in rows if row["what"].startswith("correlation")]
    each = [float(np.mean(share)) for share in shares]
    return [
        {
            "what": "starts that end in one pose, all bones and frames",
            "value": round(float(np.mean(each)), 4),
            "unit": "share",
            "n": STARTS * len(shares),
            "note": f"bar 0.90; worst bone and frame {min(each):.2f}",
        },
        {
            "what": "correlation inside the outline, mean of all",
            "value": round(float(np.mean(seen)), 3),
            "unit": "ZNCC of local contrast",
            "n": len(seen),
            "note": f"aim 0.85, reached by {sum(v >= 0.85 for v in seen)}; lowest {min(seen):.3f}. "
            "What is left: carpal bones over the joint, which are in no CT crop, and markers",
        },
    ]


def outlined(traced: dict[str, TracedVolume], view: FilmView, poses: Poses) -> NDArray[np.uint8]:
    """A film's local contrast with both bones' outlines, cut to where they are."""
    small = at_pixel_size(view, 2)
    middle = np.mean([pose[:3, 3] for pose in poses.values()], axis=0)
    row, column = (round(float(each)) for each in small.camera.project(middle[None])[0])
    height, width = small.image.shape
    low, left = min(row + 190, height), max(column - 150, 0)
    small = cropped(small, low - 380, low, left, min(left + 300, width))
    contrast = local_contrast(small.image, 4.0 / (2 * pixel_mm(view.camera)))
    plain = np.uint8(np.clip(contrast / 3.2 + 0.45, 0, 1) * 255)
    marked = np.stack([plain] * 3, axis=-1)
    for bone, pose in poses.items():
        shadow = simulated(traced[bone], small.camera, pose, 60.0)
        inside = shadow > 0.03 * shadow.max()
        marked[inside & ~binary_erosion(inside)] = COLOURS[bone]
    return np.concatenate([np.stack([plain] * 3, axis=-1), marked], axis=1)


def draw(pictures: list[list[NDArray[np.uint8]]]) -> None:
    """Each frame a row: film and outlines of the first camera, then of the second."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(FRAMES), 2, figsize=(9.2, 9.4), facecolor="white")
    for k, (frame, pair) in enumerate(zip(FRAMES, pictures, strict=True)):
        for c, picture in enumerate(pair):
            axes[k, c].imshow(picture, interpolation="bilinear")
            axes[k, c].set_axis_off()
            axes[k, c].set_title(f"frame {frame}, camera {c + 1}", fontsize=9, loc="left")
    title = "Radius (orange) and ulna (blue) from CT, registered to real films of the wrist"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.98), h_pad=0.6, w_pad=0.6)
    path = ROOT / "docs" / "pictures" / "registration.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, pil_kwargs={"quality": 88})
    plt.close(figure)
    say(str(path))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Path lengths against formulas, and against two other renderers on a real bone.

    python benchmarks/xray_accuracy.py

A sphere, a box, a cylinder and an ellipsoid, upright and tilted, as grids of 0.5 mm voxels with
partly filled rims; cone and parallel beam. A ray counts as inside when it is more than a voxel
away from the outline; at the outline a grid has no sharp edge, which all rays together show.
Then a real femur: plastimatch `exact` and nanodrr.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, uniform_filter
from scipy.spatial.transform import Rotation

from osteoprint.bank.store import Bank
from osteoprint.ct.reading import read_scan
from osteoprint.ct.volume import Volume
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Camera, Geometry, Pose, view_camera
from osteoprint.xray.materials import BODY, CORTICAL_BONE, Material, MaterialTable
from osteoprint.xray.projector import path_lengths, path_lengths_reference, prepare
from osteoprint.xray.radiograph import line_integrals
from peers import (
    Nanodrr,
    Plastimatch,
    attenuation,
    camera_from_front,
    centred,
    geometry_for,
    missing,
)
from record import real_bones, write_result

Floats = NDArray[np.float64]
ONE = MaterialTable((Material("bone", 1000.0, 1.92, tuple(CORTICAL_BONE.items())),))
FINE = 5
VOXEL_MM = 0.5
TILT = Rotation.from_euler("xyz", [17.0, 29.0, 41.0], degrees=True).as_matrix()
CONE = Geometry(400, 400, (0.311, 0.307), 1150.0, 1000.0)
PARALLEL = Geometry(400, 400, (0.273, 0.269), np.inf, np.inf)
POSES = {"along an axis": Pose(), "oblique": Pose(33.0, 20.0, 27.0)}


@dataclass(frozen=True)
class Body:
    """A body around the origin, known by its half sizes (3,) mm and its turn.

    ``crossing`` takes ray origins and directions in the body's own axes, scaled so that half
    sizes are 1, and gives where each ray enters and leaves.
    """

    name: str
    half_mm: tuple[float, float, float]
    inside: Callable[[Floats], NDArray[np.bool_]]
    crossing: Callable[[Floats, Floats], tuple[Floats, Floats]]
    volume_mm3: float


def in_ball(p: Floats) -> NDArray[np.bool_]:
    return np.asarray((p * p).sum(axis=-1) <= 1)


def in_box(p: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.abs(p).max(axis=-1) <= 1)


def in_tube(p: Floats) -> NDArray[np.bool_]:
    return np.asarray((p[..., 0] ** 2 + p[..., 1] ** 2 <= 1) & (np.abs(p[..., 2]) <= 1))


def through_round(o: Floats, d: Floats) -> tuple[Floats, Floats]:
    """A unit sphere, or circle, in as many dimensions as are given."""
    # A ray along a tube's axis crosses its circle nowhere, or everywhere.
    a, b, c = (d * d).sum(-1) + 1e-18, (o * d).sum(-1), (o * o).sum(-1) - 1
    root = b * b - a * c
    half = np.sqrt(np.maximum(root, 0)) / a
    return np.where(root > 0, -b / a - half, 0.0), np.where(root > 0, -b / a + half, 0.0)


def through_slabs(o: Floats, d: Floats) -> tuple[Floats, Floats]:
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (-1 - o) / d, (1 - o) / d
    return np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)


def through_tube(o: Floats, d: Floats) -> tuple[Floats, Floats]:
    near, far = through_round(o[..., :2], d[..., :2])
    low, high = through_slabs(o[..., 2:], d[..., 2:])
    return np.maximum(near, low), np.minimum(far, high)


BODIES = (
    Body("sphere", (30, 30, 30), in_ball, through_round, 4 / 3 * np.pi * 30**3),
    Body("box", (31, 21, 26), in_box, through_slabs, 8.0 * 31 * 21 * 26),
    Body("cylinder", (20, 20, 33), in_tube, through_tube, np.pi * 20**2 * 66),
    Body("ellipsoid", (34, 18, 25), in_ball, through_round, 4 / 3 * np.pi * 34 * 18 * 25),
)


def voxels(body: Body, turn: Floats) -> Volume:
    """The body in voxels, each filled by the share of 125 points that lie inside."""
    reach = np.abs(turn) @ body.half_mm if body.name == "box" else np.full(3, max(body.half_mm))
    if body.name == "cylinder":
        reach = np.full(3, np.hypot(body.half_mm[0], body.half_mm[2]))
    count = 2 * int(max(reach) / VOXEL_MM) + 8
    fine = ((np.arange(count * FINE) + 0.5) / FINE - count / 2) * VOXEL_MM
    share = np.empty((count, count, count), np.float32)
    y, z = np.meshgrid(fine, fine, indexing="ij")
    for i in range(count):
        total = np.zeros((count, count))
        for x in fine[i * FINE : (i + 1) * FINE]:
            points = np.stack([np.full_like(y, x), y, z], axis=-1) @ turn / body.half_mm
            total += body.inside(points).reshape(count, FINE, count, FINE).sum(axis=(1, 3))
        share[i] = total / FINE**3
    matrix = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
    matrix[:3, 3] = -(count - 1) / 2 * VOXEL_MM
    return Volume(-1000.0 + 2000.0 * share, matrix)


def chords(body: Body, turn: Floats, camera: Camera) -> Floats:
    """(rows, columns) mm that each ray runs inside the body."""
    first, down, right = camera.detector_plane()
    r, c = np.mgrid[: camera.geometry.rows, : camera.geometry.columns]
    pixel = first + r[..., None] * down + c[..., None] * right
    if camera.is_parallel:
        origin, ray = pixel, np.broadcast_to(camera.camera_to_world[:3, 2], pixel.shape)
    else:
        origin = np.broadcast_to(camera.camera_to_world[:3, 3], pixel.shape)
        ray = pixel - origin
        ray = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    near, far = body.crossing(origin @ turn / body.half_mm, ray @ turn / body.half_mm)
    return np.asarray(np.maximum(far - near, 0.0))


def energy_in(camera: Camera, lengths: Floats) -> float:
    """mm3: path lengths summed over the rays' cross-sections at the body's middle.

    Exact for a parallel beam; for a cone each ray is weighed by where it spreads to, which
    for a body of 30 mm at 1 m leaves an error of one part in a thousand.
    """
    row_mm, column_mm = camera.geometry.spacing_at_bone_mm
    return float(lengths.sum() * row_mm * column_mm)


def body_rows() -> list[dict[str, Any]]:
    rows = []
    for body in BODIES:
        for turned, turn in (("upright", np.eye(3)), ("tilted", TILT)):
            traced = prepare(voxels(body, turn), ONE)
            for beam, geometry in (("cone", CONE), ("parallel", PARALLEL)):
                errors, alls, sums = [], [], []
                for pose in POSES.values():
                    camera = view_camera(np.eye(4), View.AP, Side.RIGHT, geometry, pose)
                    found = path_lengths(traced, camera)[0]
                    true = chords(body, turn, camera)
                    away = np.abs(found - true)
                    rim = int(np.ceil(VOXEL_MM / min(geometry.spacing_at_bone_mm))) + 1
                    inside = binary_erosion(true > 0, iterations=rim)
                    errors.append(float((away[inside] / true[inside]).mean()))
                    alls.append(float(away.sum() / true.sum()))
                    sums.append(energy_in(camera, found) / energy_in(camera, true) - 1)
                name = f"{turned} {body.name}, {beam}"
                worst = max(sums, key=abs)
                say(f"{name}: {np.round(errors, 5)}, all {np.round(alls, 5)}, sum {worst:+.5f}")
                note = "bar 0.005; the worse of two directions"
                rows += [
                    {"what": f"mean relative error inside, {name}",
                     "value": round(max(errors), 6), "unit": "relative", "note": note},
                    {"what": f"all rays, sum of errors over sum of lengths, {name}",
                     "value": round(max(alls), 6), "unit": "relative",
                     "note": "with the outline's blurred rim"},
                    {"what": f"sum over all rays against the true sum, {name}",
                     "value": round(worst, 6), "unit": "relative"},
                ]  # fmt: skip
    means = [row["value"] for row in rows if row["what"].startswith("mean")]
    sums = [abs(row["value"]) for row in rows if row["what"].startswith("sum")]
    head = [
        {"what": "mean relative error inside, worst of all bodies", "value": max(means),
         "unit": "relative", "n": len(means), "note": "bar 0.005"},
        {"what": "sum over all rays, worst of all bodies", "value": max(sums),
         "unit": "relative", "n": len(sums), "note": "what is attenuated in all is conserved"},
    ]  # fmt: skip
    return head + rows


def femur() -> Volume:
    """A real femur as CT, as the bank keeps it, upright in the world."""
    from osteoprint.app.cli import run

    with tempfile.TemporaryDirectory(prefix="femur") as name:
        mesh = str(real_bones() / "smir_right_femora" / "00.ply")
        if run(["ingest", mesh, "--bank", f"{name}/bank", "--json"]):
            raise SystemExit("the femur cannot be ingested")
        with Bank.open(f"{name}/bank") as bank:
            scan = read_scan(bank.volume_path(bank.bones()[0])).volume
    # The long axis of the grid across the beam.
    order = [1, 0, 2] if scan.shape[0] > scan.shape[1] else [0, 1, 2]
    spacing = scan.spacing_mm[order]
    grid = np.ascontiguousarray(scan.volume_hu.transpose(order))
    return centred(Volume(grid, np.diag([*spacing, 1.0])))


def peer_rows() -> list[dict[str, Any]]:
    if missing():
        raise SystemExit(f"not installed: {', '.join(missing())}")
    volume = femur()
    size = np.array(volume.shape) * volume.spacing_mm
    geometry = geometry_for(1.1 * size[1], 1.6 * size[2])
    camera = camera_from_front(geometry)
    mu = attenuation(volume, BODY, 70.0)
    traced = prepare(volume, BODY)
    ours = line_integrals(path_lengths(traced, camera), BODY, 70.0)
    slow = np.tensordot(BODY.mu_per_mm(70.0), path_lengths_reference(traced, camera), axes=1)
    images = {"our own slow reference": np.asarray(slow, np.float32)}
    with tempfile.TemporaryDirectory(prefix="peers") as name:
        plastimatch, nanodrr = Plastimatch(Path(name)), Nanodrr(samples=1000)
        plastimatch.prepare(mu, volume)
        images[plastimatch.name] = plastimatch.render(geometry)[0]
        nanodrr.prepare(mu, volume)
        images[nanodrr.name] = nanodrr.render(camera)[0]
    bone = ours > 0.05 * ours.max()
    voxel_px = round(float(volume.spacing_mm.mean() / min(geometry.spacing_at_bone_mm))) * 3
    rows = []
    for name, image in images.items():
        away = np.abs(image - ours)[bone].mean() / image[bone].mean()
        smooth = [uniform_filter(each, voxel_px) for each in (image, ours)]
        blurred = np.abs(smooth[0] - smooth[1])[bone].mean() / image[bone].mean()
        total = float(ours.sum() / image.sum() - 1)
        say(f"{name}: {away:.5f} per pixel, {blurred:.5f} smoothed, sum {total:+.5f}")
        rows += [
            {"what": f"real femur, mean of the image against {name}", "value": round(total, 6),
             "unit": "relative", "note": "bar 0.01"},
            {"what": f"real femur, mean absolute difference of a pixel to {name}",
             "value": round(float(away), 6), "unit": "relative to the mean within the bone",
             "note": blocks(name, images)},
            {"what": f"the same over three voxels, {name}", "value": round(float(blurred), 6),
             "unit": "relative to the mean within the bone"},
        ]  # fmt: skip
    return rows


def blocks(name: str, images: dict[str, NDArray[np.float32]]) -> str:
    if not name.startswith("plastimatch"):
        return ""
    one, two = images["plastimatch exact"], images["nanodrr, CPU"]
    inside = two > 0.05 * two.max()
    apart = np.abs(one - two)[inside].mean() / two[inside].mean()
    return (
        "plastimatch takes voxels as blocks, we and nanodrr interpolate between their "
        f"middles; nanodrr against plastimatch: {apart:.4f}"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    rows = body_rows() + peer_rows()
    path = write_result(
        "xray_accuracy",
        "python benchmarks/xray_accuracy.py",
        0,
        "4 bodies of 36-68 mm in 0.5 mm voxels, 400 × 400 rays; a real femur, 800 × 400 rays",
        rows,
    )
    say(str(path))


if __name__ == "__main__":
    main()

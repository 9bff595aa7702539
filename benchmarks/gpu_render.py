"""How fast an 800 x 400 X-ray is traced on a CUDA card, beside nanodrr's Triton path.

    python benchmarks/gpu_render.py
    TRITON_INTERPRET=1 python benchmarks/gpu_render.py --rehearse    # no card, nothing measured

The volumes are those of `xray_speed.py`: a real femur (a parametric one where there are no
real bones) and 256³ voxels of noise. Both renderers have their volume on the card and leave
their images there; they take turns in one run, and a time ends when the card has finished.
Ours is counted from the cameras as they are given, theirs from a pose on the card and with
the detector's points made beforehand. One trace gives path lengths of all materials to us,
attenuation at one energy to them; with a label to each voxel they give one such image a
material. A rehearsal runs every line on tiny images without a card, so that the script
itself can be tried; it writes no result.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.volume import Volume
from osteoprint.frames import Side
from osteoprint.xray.camera import Camera, Geometry
from osteoprint.xray.gpu import image_and_gradient_gpu, path_lengths_gpu, to_gpu
from osteoprint.xray.materials import BODY, SOFT_TISSUE, Material, MaterialTable
from osteoprint.xray.pose_gradient import image_and_gradient
from osteoprint.xray.projector import path_lengths, prepare
from osteoprint.xray.radiograph import line_integrals
from peers import COLUMNS, ROWS, SDD_MM, SOD_MM, Image, attenuation, camera_from_front, centred
from record import real_bones, write_result
from xray_accuracy import femur
from xray_speed import noise, turned

SEED = 0
ENERGY_KEV = 70.0
SAMPLES = 500  # nanodrr's own default
BAR = 1e-3
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run: on a card, or as a rehearsal."""

    device: str
    rows: int
    columns: int
    rounds: int
    batches: tuple[int, ...]
    materials: tuple[int, ...]
    nanodrr_backend: str


MEASURED = Plan("cuda", ROWS, COLUMNS, 30, (16, 64), (1, 3, 7), "triton")
REHEARSED = Plan("cpu", 12, 10, 1, (2,), (1, 3), "torch")


@dataclass
class NanodrrOnCard:
    """nanodrr with a volume of attenuation, and with a material's label to each voxel or not."""

    plan: Plan
    camera: Camera
    mu_per_mm: Image
    volume: Volume
    labelled: bool = False

    def __post_init__(self) -> None:
        from nanodrr.data import Subject
        from nanodrr.drr import DRR

        data = torch.from_numpy(np.ascontiguousarray(self.mu_per_mm.transpose(2, 1, 0)))[None, None]
        label = torch.zeros_like(data)
        if self.labelled:
            edges = (BODY.knots_hu()[1:] + BODY.knots_hu()[:-1]) / 2
            nearest = np.digitize(self.volume.volume_hu, edges).astype(np.float32)
            label = torch.from_numpy(np.ascontiguousarray(nearest.transpose(2, 1, 0)))[None, None]
        subject: Any = Subject(
            data,
            label,
            torch.from_numpy(self.volume.voxel_to_world).float(),
            torch.from_numpy(self.volume.world_to_voxel).float(),
            Subject._make_voxel_to_grid(data.shape),
            torch.zeros(3),
            max_label=len(BODY.materials) if self.labelled else 0,
            convert_to_mu=False,
        )
        self.subject = subject.to(self.plan.device)
        geometry = self.camera.geometry
        row_mm, column_mm = geometry.pixel_spacing_mm
        self.drr: Any = DRR.from_carm_intrinsics(
            geometry.sdd_mm, column_mm, row_mm, 0.0, 0.0, geometry.rows, geometry.columns,
            dtype=torch.float32, device=torch.device(self.plan.device),
        )  # fmt: skip

    def poses(self, cameras: list[Camera]) -> torch.Tensor:
        matrices = np.array([each.camera_to_world for each in cameras], dtype=np.float32)
        return torch.from_numpy(matrices).to(self.plan.device)

    def render(self, poses: torch.Tensor) -> torch.Tensor:
        """(B, C, rows, columns) line integrals."""
        return self.drr(self.subject, poses, n_samples=SAMPLES, backend=self.plan.nanodrr_backend)

    def descend(self, poses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The gradient of a weighted sum of the image, with respect to the pose's matrix."""
        given = poses.clone().requires_grad_(True)
        (self.render(given)[:, 0] * weights).sum().backward()
        return given.grad


def bone() -> tuple[str, Volume]:
    """A real femur as the bank keeps it; a parametric one where there are no real bones."""
    try:
        real_bones()
    except SystemExit:
        mesh, _ = sample_bone(np.random.default_rng(SEED), "femur", side=Side.RIGHT)
        volume = volume_from_surface(mesh, bone_to_world=None)
        grid = np.ascontiguousarray(volume.volume_hu.transpose(1, 0, 2))
        spacing = volume.spacing_mm[[1, 0, 2]]
        return "parametric femur", centred(Volume(grid, np.diag([*spacing, 1.0])))
    return "femur", femur()


def table(count: int) -> MaterialTable:
    """The body's three materials, or as many, 300 HU apart from 0 HU."""
    if count == 3:
        return BODY
    tissue = tuple(SOFT_TISSUE.items())
    return MaterialTable(
        tuple(Material(f"material {m}", 300.0 * m, 1.0, tissue) for m in range(count))
    )


def around(camera: Camera, count: int) -> list[Camera]:
    """The camera and others, turned about the world's middle by up to 15 degrees."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(SEED)
    out = [camera]
    for angles in rng.uniform(-15.0, 15.0, (count - 1, 3)):
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        out.append(Camera(camera.geometry, matrix @ camera.camera_to_world))
    return out


def waited(device: str) -> float:
    """The time at which the card has nothing left to do."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(plan: Plan, calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each call, one after the other in each round, after three rounds to warm up."""
    out: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-3 if plan.device != "cpu" else 0, plan.rounds):
        for name, call in calls.items():
            begun = waited(plan.device)
            call()
            ended = waited(plan.device)
            if number >= 0:
                out[name].append(ended - begun)
    return out


def speed_rows(
    plan: Plan, name: str, volume: Volume, camera: Camera, mu_per_mm: Image
) -> list[Row]:
    """Times of one camera and of batches, ours for each set of materials."""
    rows: list[Row] = []
    for batch in (1, *plan.batches):
        cameras = around(camera, batch)
        theirs = NanodrrOnCard(plan, camera, mu_per_mm, volume)
        labelled = NanodrrOnCard(plan, camera, mu_per_mm, volume, labelled=True)
        poses = theirs.poses(cameras)
        calls: dict[str, Callable[[], object]] = {
            f"{count} material{'s' * (count > 1)}, one trace": partial(
                path_lengths_gpu, prepare(volume, table(count)), cameras, plan.device
            )
            for count in plan.materials
        }
        calls["nanodrr, one image"] = partial(theirs.render, poses)
        calls["nanodrr, a label to each voxel"] = partial(labelled.render, poses)
        with torch.no_grad():
            seconds = in_turns(plan, calls)
        many = f"{name}, {batch} at once" if batch > 1 else f"{name}, one camera"
        rows += time_rows(many, seconds, batch)
        medians = {key: float(np.median(each)) for key, each in seconds.items()}
        ours = medians["3 materials, one trace"]
        for key in ("nanodrr, one image", "nanodrr, a label to each voxel"):
            rows.append(
                {"what": f"{many}: three materials of ours against {key}",
                 "value": round(medians[key] / ours, 2), "unit": "times as fast", "n": plan.rounds}
            )  # fmt: skip
    return rows


def time_rows(name: str, seconds: dict[str, list[float]], images: int) -> list[Row]:
    rows = []
    for key, each in seconds.items():
        per_image = 1e3 * np.array(each) / images
        spread = f"median; {per_image.min():.4f}-{per_image.max():.4f}"
        rows.append(
            {"what": f"{name}: {key}", "value": round(float(np.median(per_image)), 4),
             "unit": "ms an image", "n": len(each), "note": spread}
        )  # fmt: skip
        say(f"{rows[-1]['what']}: {rows[-1]['value']} ms")
    return rows


def gradient_rows(
    plan: Plan, name: str, volume: Volume, camera: Camera, mu_per_mm: Image
) -> list[Row]:
    """Times of an image with six derivatives a pixel, and of nanodrr's gradient of one sum."""
    traced, mu = prepare(volume), BODY.mu_per_mm(ENERGY_KEV)
    theirs = NanodrrOnCard(plan, camera, mu_per_mm, volume)
    poses = theirs.poses([camera])
    weights = torch.rand((plan.rows, plan.columns)).to(plan.device)
    calls: dict[str, Callable[[], object]] = {
        "image and six derivatives of every pixel": partial(
            image_and_gradient_gpu, traced, camera, mu, np.zeros(3), None, plan.device
        ),
        "nanodrr, image and one sum's gradient": partial(theirs.descend, poses, weights),
    }
    return time_rows(f"{name}, one camera", in_turns(plan, calls), 1)


def agreement_rows(
    plan: Plan, name: str, volume: Volume, camera: Camera, mu_per_mm: Image
) -> list[Row]:
    """How far the card's numbers are from the CPU's, and both from nanodrr's.

    Raises
    ------
    SystemExit : card and CPU are further apart than the bar.
    """
    traced, mu = prepare(volume), BODY.mu_per_mm(ENERGY_KEV)
    askew, centre = turned(camera), np.zeros(3)
    apart: dict[str, float] = {"path lengths": 0.0, "derivatives": 0.0}
    for each in (camera, askew):
        found = path_lengths_gpu(traced, each, plan.device).cpu().numpy()
        apart["path lengths"] = max(apart["path lengths"], off(found, path_lengths(traced, each)))
        _, slopes = image_and_gradient_gpu(traced, each, mu, centre, None, plan.device)
        _, truth = image_and_gradient(traced, each, mu, centre)
        for kind in (slice(0, 3), slice(3, 6)):
            # Noise has a kink at every voxel, and rounding decides on which side a ray passes:
            # of derivatives the mean is judged.
            difference = np.abs(slopes.cpu().numpy()[kind] - truth[kind]).mean()
            relative = float(difference / np.abs(truth[kind]).mean())
            apart["derivatives"] = max(apart["derivatives"], relative)
    lengths = path_lengths_gpu(traced, camera, plan.device).cpu().numpy()
    ours = line_integrals(lengths, BODY, ENERGY_KEV)
    theirs = NanodrrOnCard(plan, camera, mu_per_mm, volume)
    with torch.no_grad():
        image = theirs.render(theirs.poses([camera]))[0, 0].cpu().numpy()
    total = abs(float(image.sum() / ours.sum()) - 1)
    rows: list[Row] = [
        {"what": f"{name}: path lengths, card against CPU", "value": apart["path lengths"],
         "unit": "of the largest", "note": f"largest difference; bar {BAR}"},
        {"what": f"{name}: derivatives, card against CPU", "value": apart["derivatives"],
         "unit": "relative", "note": f"mean difference; bar {BAR}"},
        {"what": f"{name}: mean of the image, nanodrr against ours", "value": round(total, 6),
         "unit": "relative"},
    ]  # fmt: skip
    for row in rows:
        say(f"{row['what']}: {row['value']:.2e}")
    if max(apart.values()) > BAR:
        raise SystemExit(f"gpu_render.py: {name}: card and CPU differ by more than {BAR}")
    return rows


def off(one: Image, two: Image) -> float:
    return float(np.abs(one - two).max() / np.abs(two).max())


def ready_rows(plan: Plan, name: str, volume: Volume, camera: Camera) -> list[Row]:
    """What a new volume costs once, with kernels compiled and libraries loaded."""
    traced = prepare(volume)
    begun = waited(plan.device)
    to_gpu(traced, plan.device).cells_along(1)
    ended = waited(plan.device)
    kept = sum(each.nbytes for each in to_gpu(traced, plan.device).cells.values())
    kept += to_gpu(traced, plan.device).volume_hu.nbytes
    note = "upload, and turned for one axis"
    return [
        {"what": f"{name}: making ready, once a volume", "value": round(1e3 * (ended - begun), 2),
         "unit": "ms", "n": 1, "note": note},
        {"what": f"{name}: memory of a volume on the card", "value": round(kept / 2**20, 1),
         "unit": "MiB", "n": 1, "note": note},
    ]  # fmt: skip


def volume_rows(plan: Plan, name: str, volume: Volume, size_mm: tuple[float, float]) -> list[Row]:
    larger = SDD_MM / SOD_MM
    spacing = (size_mm[0] * larger / plan.rows, size_mm[1] * larger / plan.columns)
    geometry = Geometry(plan.rows, plan.columns, spacing, SDD_MM, SOD_MM)
    camera = camera_from_front(geometry)
    mu_per_mm = attenuation(volume, BODY, ENERGY_KEV)
    given = (plan, name, volume, camera, mu_per_mm)
    # Agreement first: times of wrong images are worth nothing.
    rows = agreement_rows(*given) + speed_rows(*given) + gradient_rows(*given)
    return rows + ready_rows(plan, name, volume, camera)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="try the script without a card")
    rehearse = parser.parse_args().rehearse
    plan = REHEARSED if rehearse else MEASURED
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("gpu_render.py: no CUDA device is there; nothing was measured")
    try:
        import nanodrr  # noqa: F401
    except ImportError:
        raise SystemExit("gpu_render.py: pip install --group peers (nanodrr)") from None
    name, femur_scan = bone()
    dense = noise()
    if rehearse:
        femur_scan, dense = (centred(each.shrunk(16)) for each in (femur_scan, dense))
    size = np.array(femur_scan.shape) * femur_scan.spacing_mm
    shape = " × ".join(map(str, femur_scan.shape))
    rows = volume_rows(plan, f"{name} ({shape})", femur_scan, (1.1 * size[1], 0.66 * size[1]))
    rows += volume_rows(plan, f"dense {dense.shape[0]}³", dense, (252.2, 252.2))
    if rehearse:
        say(f"rehearsed: {len(rows)} rows would have been written")
        return
    card = torch.cuda.get_device_name()
    path = write_result(
        "xray_speed_gpu",
        "benchmarks/gpu.sh",
        SEED,
        f"{ROWS} × {COLUMNS} pixels on {card}, {plan.rounds} rounds, nanodrr: {SAMPLES} samples",
        rows,
    )
    say(str(path))


if __name__ == "__main__":
    main()

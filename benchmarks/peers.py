"""Other renderers, brought to our camera: plastimatch (C++) and nanodrr (torch).

Both get a volume of attenuation in 1/mm and give line integrals, so that what is compared
is the tracing. The volume's axes are the world's, its middle the origin, which plastimatch
wants; the source stands on the positive x axis.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.ct.volume import Volume
from osteoprint.xray.camera import Camera, Geometry
from osteoprint.xray.materials import MaterialTable

Image = NDArray[np.float32]
ROWS, COLUMNS = 800, 400
SDD_MM, SOD_MM = 1150.0, 1000.0


def centred(volume: Volume) -> Volume:
    """The same grid, upright in the world, its middle at the origin."""
    matrix = np.diag([*volume.spacing_mm, 1.0])
    matrix[:3, 3] = -(np.array(volume.shape) - 1) / 2 * volume.spacing_mm
    return Volume(volume.volume_hu, matrix)


def geometry_for(height_mm: float, width_mm: float) -> Geometry:
    """A film of 800 x 400 pixels that holds a part of this height and width."""
    larger = SDD_MM / SOD_MM
    spacing = (height_mm * larger / ROWS, width_mm * larger / COLUMNS)
    return Geometry(ROWS, COLUMNS, spacing, SDD_MM, SOD_MM)


def camera_from_front(geometry: Geometry) -> Camera:
    """Where plastimatch puts its camera by default: on the x axis, looking back along it."""
    to_world = np.eye(4)
    # Right, down and beam of the camera in the world.
    to_world[:3, 0] = [0.0, 0.0, 1.0]
    to_world[:3, 1] = [0.0, 1.0, 0.0]
    to_world[:3, 2] = np.cross(to_world[:3, 0], to_world[:3, 1])
    to_world[:3, 3] = -geometry.sod_mm * to_world[:3, 2]
    return Camera(geometry, to_world)


def attenuation(volume: Volume, table: MaterialTable, energy_kev: float) -> Image:
    """(I, J, K) float32, 1/mm: what a volume attenuates at one energy."""
    mu = table.mu_per_mm(energy_kev)
    out = np.empty(volume.shape, np.float32)
    for i, plane in enumerate(volume.volume_hu):
        out[i] = table.fractions(np.maximum(plane, -1000.0).astype(np.float64)) @ mu
    return out


@dataclass
class Plastimatch:
    """``plastimatch drr`` on a volume written once."""

    work: Path
    name: str = "plastimatch exact"

    def prepare(self, mu_per_mm: Image, volume: Volume) -> None:
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(np.ascontiguousarray(mu_per_mm.transpose(2, 1, 0)))
        image.SetSpacing([float(each) for each in volume.spacing_mm])
        image.SetOrigin([float(each) for each in volume.voxel_to_world[:3, 3]])
        sitk.WriteImage(image, str(self.work / "mu.mha"))

    def render(self, geometry: Geometry) -> tuple[Image, float]:
        """(rows, columns) line integrals, and the seconds that it says it traced."""
        rows_mm, columns_mm = (
            n * mm for n, mm in zip((ROWS, COLUMNS), geometry.pixel_spacing_mm, strict=True)
        )
        command = [
            "plastimatch", "drr", "-A", "cpu", "-i", "exact", "-P", "none", "-t", "pfm", "-a", "1",
            "-r", f"{ROWS} {COLUMNS}", "-z", f"{rows_mm} {columns_mm}",
            "--sad", f"{geometry.sod_mm}", "--sid", f"{geometry.sdd_mm}",
            "-O", str(self.work / "out"), str(self.work / "mu.mha"),
        ]  # fmt: skip
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # It writes what it calls rows across; and it times itself, without start and files.
        found = re.search(r"Total time:\s*([\d.]+)", said)
        if found is None:
            raise RuntimeError(f"plastimatch said nothing of its time: {said}")
        # It integrates in cm, and shows the part as if looked at from behind the film.
        return 10.0 * read_pfm(self.work / "out0000.pfm").T[:, ::-1], float(found[1])


def read_pfm(path: Path) -> Image:
    """(rows, columns) float32 of a PFM file, in the order in which it is stored."""
    with path.open("rb") as file:
        if file.readline().strip() != b"Pf":
            raise ValueError(f"{path} is no grey PFM")
        width, height = (int(each) for each in file.readline().split())
        order = "<" if float(file.readline()) < 0 else ">"
        return np.frombuffer(file.read(), f"{order}f4").reshape(height, width).astype(np.float32)


@dataclass
class Nanodrr:
    """nanodrr's path for the CPU."""

    samples: int = 500
    name: str = "nanodrr, CPU"

    def prepare(self, mu_per_mm: Image, volume: Volume) -> None:
        import torch
        from nanodrr.data import Subject

        data = torch.from_numpy(np.ascontiguousarray(mu_per_mm.transpose(2, 1, 0)))[None, None]
        matrix = torch.from_numpy(volume.voxel_to_world).float()
        self.subject: Any = Subject(
            data,
            torch.zeros_like(data),
            matrix,
            torch.from_numpy(volume.world_to_voxel).float(),
            Subject._make_voxel_to_grid(data.shape),
            torch.zeros(3),
            convert_to_mu=False,
        )

    def render(self, camera: Camera) -> tuple[Image, float]:
        """(rows, columns) line integrals, and the seconds taken."""
        import torch
        from nanodrr.camera import make_k_inv
        from nanodrr.drr import render

        geometry = camera.geometry
        row_mm, column_mm = geometry.pixel_spacing_mm
        k_inv = make_k_inv(geometry.sdd_mm, column_mm, row_mm, 0.0, 0.0, ROWS, COLUMNS).float()
        pose = torch.from_numpy(camera.camera_to_world).float()[None]
        begun = time.perf_counter()
        with torch.no_grad():
            image = render(
                self.subject, k_inv, pose, torch.tensor([geometry.sdd_mm]), ROWS, COLUMNS,
                n_samples=self.samples,
            )  # fmt: skip
        return image[0, 0].numpy(), time.perf_counter() - begun


def missing() -> list[str]:
    """Which peers are not installed, with how to get them."""
    out = []
    if shutil.which("plastimatch") is None:
        out.append("plastimatch (Debian: apt install plastimatch)")
    try:
        import nanodrr  # noqa: F401
    except ImportError:
        out.append("nanodrr (pip install --group peers)")
    return out

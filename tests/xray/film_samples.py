"""Films with known truth, as clinics would store them: made from phantoms, then spoilt.

Nothing here is shared with the intake that is tested on it, besides the file formats.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    XRayRadiofluoroscopicImageStorage,
    generate_uid,
)

from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.frames import Side, View, anatomical_frame, apply
from osteoprint.xray.camera import Camera, Geometry, Pose, view_camera
from osteoprint.xray.materials import BODY
from osteoprint.xray.projector import path_lengths, prepare

STORAGE = {
    "DX": DigitalXRayImageStorageForPresentation,
    "CR": ComputedRadiographyImageStorage,
    "RF": XRayRadiofluoroscopicImageStorage,
    "SC": SecondaryCaptureImageStorage,
}
# Attenuation of a steel marker at 70 keV, 1/mm (NIST: iron, 0.85 cm2/g x 7.87 g/cm3).
STEEL_PER_MM = 0.67


@dataclass(frozen=True, eq=False)
class Sample:
    """A film before it is stored: line integrals, and the truth about it.

    ``box`` is (top, left, bottom, right) of the bone in pixels; ``turn_deg`` how far its
    proximal end leans from straight up, positive to the right; ``mm`` the spacing at the bone.
    """

    image: np.ndarray
    camera: Camera
    view: View
    side: Side
    kind: str
    box: tuple[float, float, float, float]
    turn_deg: float
    ends: np.ndarray
    length_mm: float
    mm: float
    outline: np.ndarray = field(repr=False, default_factory=lambda: np.zeros((0, 2)))


@lru_cache(maxsize=16)
def phantom(kind: str, size: str, seed: int, side: Side, soft_mm: float | None):
    """(mesh, frame, traced volume) of one parametric bone, bare or in soft tissue."""
    mesh, _ = sample_bone(np.random.default_rng(seed), kind, size, side)
    frame = anatomical_frame(mesh.vertices, mesh.faces, bone=kind, side=side)
    volume = volume_from_surface(
        mesh,
        voxel_mm=frame.length_mm / 350,
        soft_tissue_mm=soft_mm,
        bone_to_world=frame.bone_to_world,
        rng=np.random.default_rng(seed),
    )
    return mesh, frame, prepare(volume, BODY)


@lru_cache(maxsize=64)
def sample(
    kind: str = "femur",
    size: str = "human",
    seed: int = 0,
    side: Side = Side.RIGHT,
    view: View = View.AP,
    soft_mm: float | None = None,
    turn_deg: float = 0.0,
    long_deg: float = 0.0,
    tilt_deg: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    shape: tuple[int, int] = (900, 720),
    fill: float = 0.72,
    energy_kev: float = 70.0,
) -> Sample:
    """An exposure of a phantom; ``fill`` is the bone's share of the film's height."""
    mesh, frame, traced = phantom(kind, size, seed, side, soft_mm)
    length = frame.length_mm
    sod = 1000.0 * length / 430
    spacing = 1.15 * length / fill / shape[0]
    geometry = Geometry(*shape, (spacing, spacing), 1.15 * sod, sod)
    pose = Pose(long_deg, turn_deg, tilt_deg, (shift[0] * length, shift[1] * length))
    camera = view_camera(frame.bone_to_world, view, side, geometry, pose)
    image = np.tensordot(BODY.mu_per_mm(energy_kev), path_lengths(traced, camera), axes=1)
    corners = camera.project(np.asarray(mesh.vertices))
    half = np.array([[length / 2, 0, 0], [-length / 2, 0, 0]])
    ends = camera.project(apply(frame.bone_to_world, half))
    up = ends[0] - ends[1]
    (top, left), (bottom, right) = corners.min(axis=0), corners.max(axis=0)
    return Sample(
        np.asarray(image, dtype=np.float32),
        camera,
        view,
        side,
        kind,
        (top, left, bottom, right),
        float(np.rad2deg(np.arctan2(up[1], -up[0]))),
        ends,
        length,
        geometry.spacing_at_bone_mm[0],
        corners,
    )


def with_noise(film: Sample, photons: float, seed: int, blur: float = 0.6) -> Sample:
    """Quantum noise of so many photons per pixel in air, then the detector's blur."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    counts = gaussian_filter(rng.poisson(photons * np.exp(-film.image)).astype(float), blur)
    return replace(film, image=-np.log(np.maximum(counts, 0.5) / photons).astype(np.float32))


def with_specks(film: Sample, seed: int, count: int = 60) -> Sample:
    """Dead and hot pixels, and a few specks of dust of 2 x 2 pixels."""
    rng = np.random.default_rng(seed)
    image = film.image.copy()
    for i in range(count):
        r, c = (int(rng.integers(2, n - 3)) for n in image.shape)
        size = 1 + i % 2
        image[r : r + size, c : c + size] = rng.choice([0.0, image.max()])
    return replace(film, image=image)


def with_marker(
    film: Sample, size_mm: float, at: tuple[float, float], shape: str = "ball", turn: float = 0.0
) -> Sample:
    """A steel object of known size in the plane of the bone, its middle at pixel ``at``."""
    grid = film.camera.geometry
    fine = 4
    mm_at_detector = grid.pixel_spacing_mm[0]
    reach = int(np.ceil(2.2 * size_mm / film.mm)) + 3
    r0, c0 = int(at[0]) - reach, int(at[1]) - reach
    n = 2 * reach + 1
    offsets = (np.arange(n * fine) + 0.5) / fine - 0.5
    rows, columns = np.meshgrid(r0 + offsets, c0 + offsets, indexing="ij")
    principal = film.camera.principal_point
    y = (rows - principal[0]) * mm_at_detector
    x = (columns - principal[1]) * mm_at_detector
    sdd, sod = grid.sdd_mm, grid.sod_mm
    centre = np.array(
        [
            (at[1] - principal[1]) * mm_at_detector * sod / sdd,
            (at[0] - principal[0]) * mm_at_detector * sod / sdd,
            sod,
        ]
    )
    if shape == "ball":
        direction = np.stack([x, y, np.full_like(x, sdd)], axis=-1)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        along = direction @ centre
        gap = centre @ centre - along**2
        chord = 2 * np.sqrt(np.maximum((size_mm / 2) ** 2 - gap, 0))
    else:
        u, v = x * sod / sdd - centre[0], y * sod / sdd - centre[1]
        c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        u, v = c * u + s * v, c * v - s * u
        half = {"square": (size_mm / 2, size_mm / 2), "rod": (size_mm / 12, size_mm / 2)}
        if shape == "disc":
            chord = 3.0 * (u * u + v * v < (size_mm / 2) ** 2)
        else:
            chord = 3.0 * ((abs(u) < half[shape][0]) & (abs(v) < half[shape][1]))
    passed = np.exp(-STEEL_PER_MM * chord).reshape(n, fine, n, fine).mean(axis=(1, 3))
    image = film.image.copy()
    part = image[max(r0, 0) : r0 + n, max(c0, 0) : c0 + n]
    passed = passed[max(-r0, 0) :, max(-c0, 0) :][: part.shape[0], : part.shape[1]]
    part -= np.log(np.maximum(passed, 1e-4))
    return replace(film, image=image)


def grey(film: Sample, polarity: str = "bone_bright", gamma: float = 1.0) -> np.ndarray:
    """Display values in 0...1 of a log film, both ends used."""
    low, high = 0.0, float(np.percentile(film.image, 99.95))
    shown = np.clip((film.image - low) / (high - low), 0, 1) ** gamma
    return shown if polarity == "bone_bright" else 1.0 - shown


def collimate(
    shown: np.ndarray, form: str, value: float, turn: float = 0.0, margin: float = 0.05
) -> np.ndarray:
    """Everything outside a rectangle (turned by degrees) or a circle becomes ``value``."""
    rows, columns = shown.shape
    y, x = np.mgrid[:rows, :columns].astype(float)
    y, x = y - (rows - 1) / 2, x - (columns - 1) / 2
    if form == "round":
        outside = np.hypot(y, x) - (0.5 - margin / 2) * max(rows, columns)
    else:
        c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        u, v = c * x + s * y, c * y - s * x
        outside = np.maximum(abs(u) - (0.5 - margin) * columns, abs(v) - (0.5 - margin) * rows)
    weight = np.clip(outside / 2 + 0.5, 0, 1)
    return shown * (1 - weight) + value * weight


def frame(shown: np.ndarray, value: float, width: int) -> np.ndarray:
    """A border of so many pixels all around."""
    out = shown.copy()
    for edge in (out[:width], out[-width:], out[:, :width], out[:, -width:]):
        edge[...] = value
    return out


def write_text(
    shown: np.ndarray, text: str, at: tuple[int, int], value: float = 1.0, size: int = 34
) -> np.ndarray:
    """Burnt-in letters, their top left corner at pixel ``at``."""
    layer = Image.new("L", shown.shape[::-1], 0)
    ImageDraw.Draw(layer).text(
        (at[1], at[0]), text, fill=255, font=ImageFont.load_default(size=size)
    )
    weight = np.asarray(layer) / 255.0
    return shown * (1 - weight) + value * weight


def facts(film: Sample, **changes: Any) -> dict[str, Any]:
    """What a complete sidecar says; None takes a field away."""
    geometry = film.camera.geometry
    values = {
        "view": film.view.value,
        "pixel_spacing_mm": list(geometry.pixel_spacing_mm),
        "sdd_mm": geometry.sdd_mm,
        "sod_mm": geometry.sod_mm,
        "intensity": "display",
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


def save_picture(
    path: Path, shown: np.ndarray, said: dict[str, Any] | None, bits: int = 8, **options: Any
) -> Path:
    """A PNG, TIFF or JPEG by the path's ending, and its sidecar."""
    top = 2**bits - 1
    stored = np.round(np.clip(shown, 0, 1) * top).astype(np.uint8 if bits == 8 else np.uint16)
    Image.fromarray(stored).save(path, **options)
    if said is not None:
        path.with_name(path.name + ".json").write_text(json.dumps(said))
    return path


def save_dicom(
    path: Path,
    stored: np.ndarray,
    film: Sample,
    kind: str = "DX",
    bits: int = 12,
    **tags: Any,
) -> Path:
    """A DICOM film of this kind; tags given as None are left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = STORAGE[kind]
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    geometry = film.camera.geometry
    allocated = 8 if bits <= 8 else 16
    values = {
        "SOPClassUID": STORAGE[kind],
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": {"SC": "OT"}.get(kind, kind),
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "SamplesPerPixel": 1,
        "BitsAllocated": allocated,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "PhotometricInterpretation": "MONOCHROME2",
        "ImagerPixelSpacing": [float(f"{mm:.10g}") for mm in geometry.pixel_spacing_mm],
        "DistanceSourceToDetector": round(geometry.sdd_mm, 6),
        "DistanceSourceToPatient": round(geometry.sod_mm, 6),
        "ImageLaterality": film.side.value[0].upper(),
        **tags,
    }
    for key, value in values.items():
        if value is not None:
            setattr(data, key, value)
    data.PixelData = stored.astype(np.uint8 if allocated == 8 else np.uint16).tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def lut(values: np.ndarray, first: int = 0, bits: int = 16, **more: Any) -> Sequence:
    """A modality or VOI LUT sequence of one table."""
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new(0x00283006, "OW", np.asarray(values, dtype=np.uint16).tobytes())
    for key, value in more.items():
        setattr(item, key, value)
    return Sequence([item])

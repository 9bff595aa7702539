"""Artificial films of parametric bones in artificial limbs, with the bone's outline: to learn from.

Everything varies that differs between clinics: kind, size and pose of the bone, the limb around
it, neighbouring bones, what the film covers of them, exposure and display.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from osteoprint.ct.parametric import Kind, Size, sample_bone
from osteoprint.ct.phantom import CortexModel, volume_from_surface
from osteoprint.frames import AnatomicalFrame, Side, View, anatomical_frame
from osteoprint.xray.camera import Camera, Geometry, Pose, view_camera
from osteoprint.xray.exposure import develop
from osteoprint.xray.field import opening
from osteoprint.xray.film_finder import LOOKED_AT, prepared
from osteoprint.xray.film_polarity import air_level
from osteoprint.xray.materials import BODY
from osteoprint.xray.presets import draw
from osteoprint.xray.projector import TracedVolume, path_lengths, prepare

Floats = NDArray[np.float32]

KINDS: tuple[tuple[Kind, Size], ...] = (
    ("femur", "human"), ("tibia", "human"), ("femur", "cat"), ("tibia", "cat"),
)  # fmt: skip
PRESETS, SHARES = ("clinic", "bad day", "ideal", "paper"), (0.6, 0.2, 0.1, 0.1)
_SOFT = BODY.names.index("soft tissue")
# Voxels along a bone; the films have some 250 pixels along it.
_VOXELS = 240
_FILM_LENGTH_MM = 430.0


@dataclass(frozen=True, eq=False)
class Specimen:
    """A parametric bone to take films of: its scan in air, its scan in a sleeve of tissue."""

    bare: TracedVolume
    sleeved: TracedVolume
    frame: AnatomicalFrame
    side: Side


def specimen(seed: int) -> Specimen:
    """The bone of a seed: kinds and sides in turn, everything else by chance."""
    rng = np.random.default_rng([1, seed])
    kind, size = KINDS[seed % len(KINDS)]
    side = (Side.RIGHT, Side.LEFT)[(seed // len(KINDS)) % 2]
    mesh, _ = sample_bone(rng, kind, size, side)
    frame = anatomical_frame(mesh.vertices, mesh.faces, bone=kind, side=side)
    cortex = CortexModel(
        cortical_hu=rng.uniform(1200, 1900), trabecular_hu=rng.uniform(80, 350),
        subchondral_hu=rng.uniform(300, 600), shaft_thickness=rng.uniform(0.22, 0.5),
        end_thickness=rng.uniform(0.05, 0.11),
    )  # fmt: skip
    soft_mm = float(rng.uniform(0.02, 0.22)) * frame.length_mm

    def scan(soft: float | None) -> TracedVolume:
        volume = volume_from_surface(
            mesh, voxel_mm=frame.length_mm / _VOXELS, cortex=cortex, soft_tissue_mm=soft,
            bone_to_world=frame.bone_to_world, rng=np.random.default_rng([2, seed]),
        )  # fmt: skip
        return prepare(volume, BODY)

    return Specimen(scan(None), scan(soft_mm), frame, side)


def draw_film(
    bone: Specimen, neighbours: list[Specimen], rng: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """One film: (3, rows, columns) as the network gets it, and (rows, columns) bool, the bone."""
    camera = _camera(bone, rng)
    mm = camera.geometry.spacing_at_bone_mm[0]
    inner = path_lengths(bone.bare, camera)
    mask = inner.sum(axis=0) > 0.4 * bone.frame.length_mm / _VOXELS
    kind = rng.random()
    if kind < 0.3:
        lengths = path_lengths(bone.sleeved, camera)
    else:
        lengths = inner
        if rng.random() < 0.6:
            for end in (-1, 1):
                if rng.random() < 0.5:
                    lengths = lengths + _neighbour(bone, neighbours, camera, end, rng)
        if kind < 0.93:
            limb = _limb(mask, mm, rng)
            lengths = lengths.copy()
            lengths[_SOFT] += np.maximum(limb - lengths.sum(axis=0), 0.0)
    scale = np.float32(_FILM_LENGTH_MM / bone.frame.length_mm) ** 0.5
    preset = PRESETS[int(rng.choice(len(PRESETS), p=SHARES))]
    energy = rng.uniform(45, 150) if preset in ("ideal", "paper") else None
    exposure = draw(preset, rng, energy_kev=energy)
    image = develop(lengths * scale, BODY, camera.geometry, exposure)
    inside = _field(image.shape, rng)
    if rng.random() < 0.9:
        inside &= np.broadcast_to(opening(camera.geometry, exposure.leaves) > 0.5, image.shape)
    shown = np.asarray(image, dtype=np.float32)
    air = air_level(shown, inside)
    air += float(rng.normal(0.0, 0.02)) * float(np.ptp(shown))
    return prepared(shown, inside, air), mask & inside


def _camera(bone: Specimen, rng: np.random.Generator) -> Camera:
    """Where a film is taken from: the bone whole on it in six of seven."""
    length = bone.frame.length_mm
    rows = LOOKED_AT
    columns = int(rng.integers(5, 11)) * 32
    whole = rng.random() < 0.85
    fill = rng.uniform(0.45, 0.97) if whole else rng.uniform(0.9, 1.5)
    sod = length / _FILM_LENGTH_MM * rng.uniform(700, 1500)
    larger = rng.uniform(1.04, 1.4)
    spacing = larger * length / fill / rows
    room = max(1.0 - fill, 0.0) if whole else 0.5
    tip = float(np.clip(rng.normal(0.0, 12.0), -40, 40))
    height = length / fill
    width = columns / rows * height
    pose = Pose(
        float(rng.uniform(-30, 30)), tip, float(rng.normal(0.0, 5.0)),
        (float(rng.normal(0.0, 0.12)) * width, float(rng.uniform(-0.5, 0.5)) * room * height),
    )  # fmt: skip
    view = View.AP if rng.random() < 0.5 else View.ML
    geometry = Geometry(rows, columns, (spacing, spacing), larger * sod, sod)
    return view_camera(bone.frame.bone_to_world, view, bone.side, geometry, pose)


def _neighbour(
    bone: Specimen, others: list[Specimen], camera: Camera, end: int, rng: np.random.Generator
) -> Floats:
    """(M, rows, columns): another bone that goes on where this one ends, not quite in line."""
    other = others[int(rng.integers(len(others)))]
    ratio = bone.frame.length_mm / other.frame.length_mm * rng.uniform(0.7, 1.1)
    turn = np.eye(4)
    angle, bend = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.normal(0.0, 15.0))
    c, s = np.cos(angle), np.sin(angle)
    roll = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(bend), np.sin(bend)
    turn[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ roll * ratio
    gap = rng.uniform(0.005, 0.03) * bone.frame.length_mm
    half = (bone.frame.length_mm + other.frame.length_mm * ratio) / 2
    place = np.eye(4)
    place[0, 3] = end * (half + gap)
    place[1:3, 3] = rng.normal(0.0, 0.02, 2) * bone.frame.length_mm
    # The other bone's own world -> its frame, scaled and put beyond the end of this one.
    to_world = bone.frame.bone_to_world @ place @ turn @ other.frame.world_to_bone
    moved = replace(other.bare, world_to_grid=other.bare.world_to_grid @ np.linalg.inv(to_world))
    return path_lengths(moved, camera)


def _limb(mask: NDArray[np.bool_], mm: float, rng: np.random.Generator) -> Floats:
    """(rows, columns) mm of tissue: nearly elliptical across, of changing width along the film."""
    rows, columns = mask.shape
    r, c = np.nonzero(mask)
    if r.size < 20:
        return np.zeros(mask.shape, np.float32)
    at = np.arange(rows)
    slope, offset = np.polyfit(r, c, 1) if np.ptp(r) > 10 else (0.0, c.mean())
    away = np.abs(np.arange(columns)[None, :] - (slope * at + offset)[:, None])
    half = np.where(mask, away, 0.0).max(axis=1)
    smooth = max(0.05 * rows, 3)
    least = ndimage.maximum_filter1d(half, int(2 * smooth)) * rng.uniform(1.0, 1.5)
    least = np.maximum(least, np.quantile(half, 0.9) * rng.uniform(0.7, 1.6)) + rng.uniform(2, 30)
    wave = ndimage.gaussian_filter1d(rng.normal(0, 1, rows), 0.12 * rows, mode="nearest")
    width = least * (1 + 0.12 * wave / max(wave.std(), 1e-6)) * rng.uniform(1.0, 1.8)
    width = ndimage.gaussian_filter1d(np.maximum(width, 3), smooth, mode="nearest")
    for end, first in ((r.min(), True), (r.max(), False)):
        if rng.random() < 0.3:
            # The limb ends here, as a paw or a stump: round.
            gone = (end - at if first else at - end) / (rng.uniform(0.05, 0.2) * rows)
            width = width * np.sqrt(np.clip(1 - np.clip(gone, 0, 1) ** 2, 0, 1))
    centre = slope * at + offset + rng.normal(0.0, 0.25) * np.quantile(half, 0.9)
    centre = centre + ndimage.gaussian_filter1d(rng.normal(0, 1, rows), 0.2 * rows) * 0.05 * columns
    across = (np.arange(columns)[None, :] - centre[:, None]) / np.maximum(width, 1e-3)[:, None]
    chord = np.sqrt(np.clip(1 - across**2, 0, None)) * width[:, None]
    uneven = ndimage.gaussian_filter(rng.normal(0, 1, mask.shape), 0.03 * rows)
    chord = chord * (1 + 0.05 * uneven / max(uneven.std(), 1e-6))
    return np.asarray(2 * rng.uniform(0.6, 1.1) * mm * np.maximum(chord, 0.0), dtype=np.float32)


def _field(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(rows, columns) bool: all of the film, a circle or a turned rectangle."""
    rows, columns = shape
    y, x = np.ogrid[:rows, :columns]
    v, u = y - (rows - 1) / 2, x - (columns - 1) / 2
    kind = rng.random()
    if kind < 0.55:
        return np.ones((rows, columns), bool)
    if kind < 0.7:
        return np.asarray(np.hypot(v, u) <= rng.uniform(0.46, 0.6) * rows)
    turn = np.deg2rad(rng.normal(0.0, 4.0))
    across, along = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    half = rng.uniform(0.36, 0.52, 2)
    return np.asarray((np.abs(across) <= half[0] * columns) & (np.abs(along) <= half[1] * rows))

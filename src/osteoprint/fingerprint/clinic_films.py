"""Films as a clinic takes them, as they look once they are read: small, and fast to make.

A film of a limb is searched for its bone, and what soft tissue adds is taken off, before it is
compared (see :mod:`osteoprint.xray.film`). To show a network a hundred thousand such films,
both the limb and the search are stood in for: the limb by an ellipse across the bone, tapering
and bent along it; the bone that was found by where the bone truly is, a pixel more or less at
places. What is then taken off is worked out as it is for real films.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from osteoprint.errors import FilmError
from osteoprint.fingerprint.samples import PairPose, SampleBone, picture_geometry, render_pair
from osteoprint.frames import View
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.exposure import develop
from osteoprint.xray.film_polarity import air_level
from osteoprint.xray.film_tissue import tissue_around
from osteoprint.xray.presets import draw, preset
from osteoprint.xray.projector import path_lengths
from osteoprint.xray.radiograph import Radiograph
from osteoprint.xray.standard import StandardFrame, standard_picture

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# Room around the bone, so that the limb is seen beside it: factors of rows and columns.
_ROOM = (1.08, 1.10)
# Thickness of bone that shows, as a part of its length.
_SHOWS = 0.002
# Soft tissue on either side of the bone, and half the bone, as parts of its length.
_SOFT, _HALF_BONE = (0.06, 0.16), 0.07
# What was found is seen this far around, as it is when films are read.
_EDGE = 0.006
# A film on which no bone is found is taken again, so often.
_TRIES = 4


def read_pair(
    bone: SampleBone,
    pose: PairPose,
    picture: StandardFrame,
    kind: str,
    rng: np.random.Generator,
    *,
    or_plain: bool = False,
) -> Floats:
    """(2, rows, columns) standard pictures, AP then ML, of films of a preset.

    Parameters
    ----------
    bone : ready to be rendered in small.
    pose : of each film; its energy is used where the preset has none of its own.
    picture : the scale.
    kind : the preset's name; see :mod:`osteoprint.xray.presets`.
    rng : what varies is drawn from it.
    or_plain : plain films where, again and again, no bone is found on films of the preset.

    Raises FilmError where no bone is found.
    """
    if preset(kind).output == "log":
        return render_pair(bone, pose, picture)
    for attempt in range(_TRIES):
        try:
            return _pair(bone, pose, picture, kind, rng)
        except FilmError:
            if attempt == _TRIES - 1 and not or_plain:
                raise
    return render_pair(bone, pose, picture)


def _pair(
    bone: SampleBone, pose: PairPose, picture: StandardFrame, kind: str, rng: np.random.Generator
) -> Floats:
    films = (
        _read(bone, view, own, picture, kind, rng)
        for view, own in ((View.AP, pose.ap), (View.ML, pose.ml))
    )
    return np.stack([standard_picture(film, picture) for film in films])


def _read(
    bone: SampleBone,
    view: View,
    pose: Pose,
    picture: StandardFrame,
    kind: str,
    rng: np.random.Generator,
) -> Radiograph:
    """One film, its bone found and what is around it taken off."""
    length = bone.frame.length_mm
    plain = picture_geometry(picture, length)
    rows, columns = (int(n * f) for n, f in zip((plain.rows, plain.columns), _ROOM, strict=True))
    geometry = replace(plain, rows=rows, columns=columns)
    camera = view_camera(bone.frame.bone_to_world, view, bone.side, geometry, pose)
    lengths = path_lengths(bone.traced, camera)
    seen = lengths[1:].sum(axis=0) > _SHOWS * length
    if not seen.any():
        raise FilmError(f"{view.value} film", "shows no bone", "check the scan")
    lengths = lengths.copy()
    lengths[0] += np.maximum(_limb(seen, geometry, length, rng) - lengths.sum(axis=0), 0.0)
    image = develop(
        lengths,
        bone.traced.materials,
        geometry,
        draw(kind, rng),
        principal_point=camera.principal_point,
    )
    whole = np.ones(image.shape, bool)
    over = np.asarray(image - np.float32(air_level(image, whole)), np.float32)
    found = _found(seen, rng)
    tissue = tissue_around(over, found, whole)
    around = binary_dilation(found, iterations=max(2, round(_EDGE * max(image.shape))))
    rest = np.where(around, np.maximum(np.maximum(over, 0.0) - tissue, 0.0), 0.0)
    return Radiograph(rest.astype(np.float32), geometry, view, bone.side, "simulated")


def _limb(seen: Bools, geometry: Geometry, length: float, rng: np.random.Generator) -> Floats:
    """(rows, columns) mm of a limb that the rays cross."""
    mm = np.array(geometry.spacing_at_bone_mm)
    points = np.argwhere(seen) * mm
    middle = points.mean(axis=0)
    down, right = np.linalg.eigh(np.cov((points - middle).T))[1][:, 1]
    row, column = np.meshgrid(*[np.arange(n) * s for n, s in zip(seen.shape, mm, strict=True)],
                              indexing="ij")  # fmt: skip
    row, column = row - middle[0], column - middle[1]
    along = (row * down + column * right) / length
    across = column * down - row * right
    half = (rng.uniform(*_SOFT) + _HALF_BONE) * length * (1 + rng.uniform(-0.4, 0.4) * along)
    shift, lean, bend = rng.uniform(-1.0, 1.0, 3) * [0.03, 0.08, 0.15]
    off = across - (shift + lean * along + bend * along**2) * length
    depth = 2.0 * half * rng.uniform(0.8, 1.2)
    return np.asarray(depth * np.sqrt(np.maximum(1.0 - (off / half) ** 2, 0.0)), np.float32)


def _found(seen: Bools, rng: np.random.Generator) -> Bools:
    """Where a finder would say that the bone is: a pixel more or less here and there."""
    soft = gaussian_filter(seen.astype(np.float32), rng.uniform(0.8, 2.0))
    soft += rng.uniform(0.0, 0.6) * gaussian_filter(rng.normal(size=seen.shape), 4.0)
    found = np.asarray(soft > rng.uniform(0.3, 0.7))
    return found if found.any() else seen

"""Films as a clinic takes them, as they look once they are read: small, and fast to make.

A film of a limb is searched for its bone, and what soft tissue adds is taken off, before it is
compared (see :mod:`osteoprint.xray.film`). To show a network a hundred thousand such films,
both the limb and the search are stood in for: the limb by an ellipse across the bone, tapering
and bent along it; the bone that was found by where the bone truly is, a pixel more or less at
places. Its outline and what is then taken off are worked out as they are for real films.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_dilation,
    distance_transform_edt,
    gaussian_filter,
    gaussian_filter1d,
    maximum_filter1d,
)

from osteoprint.errors import FilmError
from osteoprint.fingerprint.samples import (
    PairPose,
    SampleBone,
    pair_pictures,
    picture_geometry,
    render_pair,
)
from osteoprint.frames import View
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.exposure import develop
from osteoprint.xray.film_outline import outlined
from osteoprint.xray.film_parts import largest_part
from osteoprint.xray.film_polarity import air_level
from osteoprint.xray.film_tissue import tissue_around
from osteoprint.xray.presets import draw, preset
from osteoprint.xray.projector import path_lengths
from osteoprint.xray.radiograph import Radiograph
from osteoprint.xray.standard import StandardFrame, place_shape

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# Room around the bone, so that the limb is seen beside it: factors of rows and columns.
_ROOM = (1.08, 1.10)
# Thickness of bone that shows, as a part of its length.
_SHOWS = 0.002
# Soft tissue on either side of the bone, and half the bone, as parts of its length.
_SOFT, _HALF_BONE = (0.06, 0.16), 0.07
# A limb reaches so far beyond its bone on either side, as a part of the bone's length.
_SKIN = 0.03
# A limb that ends round does so this far beyond the bone and over so much, as parts of the bone's
# length; and this part of all ends is round.
_GAP, _CAP, _ROUND = (0.05, 0.3), (0.05, 0.2), 0.5
# A finder's outline lies so far outside, on average over a bone, and is so uneven along it: on
# artificial films of ten real femora it was 2 mm of 470 mm, and 1 to 1.6 mm.
_TOO_FAR, _UNEVEN = (0.001, 0.008), 0.004
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
    ap = _read(bone, View.AP, pose.ap, picture, kind, rng)
    ml = _read(bone, View.ML, pose.ml, picture, kind, rng)
    return pair_pictures((ap, ml), picture)


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
    found = _found(seen, length / geometry.spacing_at_bone_mm[0], rng)
    found = outlined(over, found, whole)
    tissue = tissue_around(over, found, whole)
    around = binary_dilation(found, iterations=max(2, round(_EDGE * max(image.shape))))
    rest = np.where(around, np.maximum(np.maximum(over, 0.0) - tissue, 0.0), 0.0)
    at = place_shape(found, geometry.spacing_at_bone_mm, f"{view.value} film")
    return Radiograph(rest.astype(np.float32), geometry, view, bone.side, "simulated", at)


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
    half = np.maximum(half, 0.02 * length) * _ends(along, rng)
    shift, lean, bend = rng.uniform(-1.0, 1.0, 3) * [0.03, 0.08, 0.15]
    off = across - (shift + lean * along + bend * along**2) * length
    half = np.maximum(half, _least_half(np.abs(off), along, seen, length))
    depth = 2.0 * half * rng.uniform(0.8, 1.2)
    inside = np.maximum(1.0 - (off / np.maximum(half, 1e-3 * length)) ** 2, 0.0)
    return np.asarray(depth * np.sqrt(inside), np.float32)


def _least_half(off: Floats, along: Floats, seen: Bools, length: float) -> NDArray[np.float64]:
    """(rows, columns) mm that a limb reaches to either side at least, `along` its bone.

    Skin lies over bone, not beside it: no bone that is `seen` lies further `off` the middle.
    """
    edges = np.linspace(-0.7, 0.7, 57)
    middles = (edges[1:] + edges[:-1]) / 2
    widest = np.zeros(len(middles))
    step = np.clip(np.digitize(along[seen], edges) - 1, 0, len(middles) - 1)
    np.maximum.at(widest, step, off[seen])
    widest = np.where(widest > 0, widest + _SKIN * length, 0.0)
    smooth = gaussian_filter1d(maximum_filter1d(widest, 7), 1.5)
    return np.asarray(np.interp(along, middles, smooth))


def _ends(along: Floats, rng: np.random.Generator) -> Floats:
    """By how much a limb is wider or narrower at both ends of a bone, `along` it -0.5...0.5.

    It goes on, as a thigh into a trunk, or ends round, sooner or later; joints may be wider.
    """
    out = np.ones_like(along)
    for end in (-1.0, 1.0):
        beyond = end * along - 0.5
        wider, reach = rng.uniform(0.0, 0.4), rng.uniform(0.05, 0.2)
        out *= 1.0 + wider * np.exp(-0.5 * ((beyond + 0.07) / reach) ** 2)
        gap, cap = rng.uniform(*_GAP), rng.uniform(*_CAP)
        if rng.random() < _ROUND:
            round_off = np.clip((beyond - gap + cap) / cap, 0.0, 1.0)
            out *= np.sqrt(1.0 - round_off**2)
    return out


def _found(seen: Bools, length_px: float, rng: np.random.Generator) -> Bools:
    """Where a finder would say that the bone is: too far out, by more or less here and there."""
    away = distance_transform_edt(~seen) - distance_transform_edt(seen)
    uneven = gaussian_filter(rng.normal(size=seen.shape), 0.02 * length_px)
    uneven *= rng.uniform(0.0, _UNEVEN) * length_px / max(float(uneven.std()), 1e-9)
    found = np.asarray(away + uneven <= rng.uniform(*_TOO_FAR) * length_px + 0.5)
    return largest_part(found) if found.any() else seen

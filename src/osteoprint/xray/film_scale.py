"""Millimetres of a film's pixel: from its spacing and distances, its camera or a scale object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteoprint.errors import FilmError
from osteoprint.xray.camera import Camera, Geometry, camera_from_calibration
from osteoprint.xray.film_marker import Marker, visible_mm
from osteoprint.xray.film_stored import Sidecar

# Where only the scale at the bone is known, the beam spreads as in most rooms. It moves an
# edge by its depth over this distance; it does not touch the scale.
_USUAL_SDD_MM, _USUAL_SOD_MM = 1150.0, 1000.0
# A scale that may be off by more than this is none; by more than that, it is said.
_COARSE, _DOUBTFUL = 0.025, 0.01


@dataclass(frozen=True, eq=False)
class Scale:
    """How large a film's pixels are.

    Attributes
    ----------
    geometry : size, spacing and distances of the film.
    camera : its place in the world, of a calibrated rig; None otherwise.
    source : where the millimetres come from, in words.
    warnings : what is assumed, in words.
    """

    geometry: Geometry
    camera: Camera | None
    source: str
    warnings: tuple[str, ...] = ()


def film_scale(
    path: Path,
    facts: Sidecar,
    shape: tuple[int, ...],
    marker: Marker | None,
    marker_mm: float | None,
) -> Scale:
    """The scale of a film, from the best there is: camera, scale object, header or sidecar.

    Raises FilmError where it is missing, impossible, or a scale object is not to be found.
    """
    rows, columns = shape[0], shape[1]
    if facts.camera is not None:
        return _calibrated(path, facts, rows, columns)
    beam, assumed = _distances(path, facts, marker_mm is not None)
    if marker_mm is not None:
        if marker is None:
            raise FilmError(
                path,
                f"shows no scale object of {marker_mm:g} mm",
                f'say where it lies: "marker_at_px": [row, column] in "{path.name}.json" beside '
                "it, or give the pixel spacing instead",
            )
        if marker.relative_error > _COARSE:
            raise FilmError(
                path,
                f"shows the scale object with only {marker.size_px:.0f} pixels, good to "
                f"{marker.relative_error:.0%}",
                "export the film at a higher resolution, or give its pixel spacing",
            )
        at_bone = (visible_mm(marker.form, marker_mm) / marker.size_px,) * 2
        source = f"a {marker.form} of {marker_mm:g} mm on the film"
    elif facts.pixel_spacing_mm is not None and (facts.beam == "parallel" or not assumed):
        _checked(path, facts.pixel_spacing_mm)
        geometry = Geometry(rows, columns, facts.pixel_spacing_mm, *beam)
        return Scale(geometry, None, "pixel spacing and distances")
    elif facts.spacing_at_bone_mm is not None:
        at_bone = facts.spacing_at_bone_mm
        source = "pixel spacing at the bone"
    elif facts.pixel_spacing_mm is None:
        raise FilmError(
            path,
            "has no scale",
            f'put "pixel_spacing_mm" into "{path.name}.json" beside it, or give the size of a '
            "scale object that is seen on it (--marker-mm)",
        )
    else:
        raise FilmError(
            path,
            "has no distances, so the magnification is unknown",
            f'put "sdd_mm" and "sod_mm" into "{path.name}.json" beside it',
        )
    _checked(path, at_bone)
    larger = beam[0] / beam[1] if np.isfinite(beam[0]) else 1.0
    geometry = Geometry(rows, columns, (at_bone[0] * larger, at_bone[1] * larger), *beam)
    notes = []
    if assumed:
        notes.append(f"the distance of the source is unknown and taken to be {_USUAL_SDD_MM:g} mm")
    if marker_mm is not None and marker is not None and marker.relative_error > _DOUBTFUL:
        notes.append(
            f"the scale object is {marker.size_px:.0f} pixels large: the scale is good to "
            f"{marker.relative_error:.1%}"
        )
    return Scale(geometry, None, source, tuple(notes))


def _distances(path: Path, facts: Sidecar, marker: bool) -> tuple[tuple[float, float], bool]:
    """(sdd, sod) in mm, and whether they are only the usual ones."""
    if facts.beam == "parallel":
        return (np.inf, np.inf), False
    if facts.sdd_mm is None or facts.sod_mm is None:
        return (_USUAL_SDD_MM, _USUAL_SOD_MM), True
    if facts.sod_mm > facts.sdd_mm:
        raise FilmError(
            path,
            f"has sod_mm {facts.sod_mm:g} beyond sdd_mm {facts.sdd_mm:g}",
            f'exchange them in "{path.name}.json" beside it',
        )
    return (facts.sdd_mm, facts.sod_mm), False


def _checked(path: Path, spacing: tuple[float, float]) -> None:
    if not all(1e-3 <= mm <= 10 for mm in spacing):
        raise FilmError(
            path,
            f"has an impossible pixel spacing {spacing} mm",
            f'correct "pixel_spacing_mm" in "{path.name}.json" beside it',
        )


def _calibrated(path: Path, facts: Sidecar, rows: int, columns: int) -> Scale:
    """A calibrated camera has the scale in it."""
    assert facts.camera is not None
    try:
        camera = camera_from_calibration(
            np.array(facts.camera.k),
            np.array(facts.camera.r),
            np.array(facts.camera.t_mm),
            rows=rows,
            columns=columns,
        )
    except ValueError as error:
        raise FilmError(
            path, f"has an impossible camera: {error}", f'correct it in "{path.name}.json"'
        ) from None
    return Scale(camera.geometry, camera, "a calibrated camera")

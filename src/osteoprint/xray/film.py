"""Films in: whatever a clinic stores becomes a Radiograph, and how it did so is kept.

Read (:mod:`film_stored`), turned as said, the exposed field found (:mod:`film_field`), bone
made bright (:mod:`film_polarity`), writing painted over (:mod:`film_letters`), the scale taken
from header, sidecar or a scale object (:mod:`film_marker`), the bone found (:mod:`film_bone`),
and what is not bone taken away. What a film does not say and does not show is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from osteoprint.errors import FilmError
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Camera
from osteoprint.xray.film_bone import FoundBone, find_bone
from osteoprint.xray.film_field import ExposedField, find_field
from osteoprint.xray.film_letters import find_letters, painted_over
from osteoprint.xray.film_marker import Marker, find_marker
from osteoprint.xray.film_outline import Outline
from osteoprint.xray.film_polarity import FoundPolarity, Polarity, air_level, find_polarity
from osteoprint.xray.film_scale import Scale, film_scale
from osteoprint.xray.film_stored import Sidecar, Stored, read_stored
from osteoprint.xray.radiograph import Placement, Radiograph
from osteoprint.xray.standard import place_shape

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# Where things are looked for, a film has about so many pixels along its longer side.
_LOOKED_AT = 700
# A bone that leans more than this does not stand: which end is up has to be said.
_MOST_LEAN_DEG = 50.0
# A bone seen in one polarity must be so much more likely than what is seen in the other.
_SURER = 0.015
_QUARTERS = {"up": 0, "right": 1, "down": 2, "left": 3}


@dataclass(frozen=True, eq=False)
class Film:
    """A film, and everything that was found out about it.

    Attributes
    ----------
    radiograph : the film, bone bright; where there was anything but bone on nothing (an edge,
        letters, soft tissue), that is taken away and the background is 0.
    whole : (rows, columns) float32, bone bright, air 0, letters painted over, tissue kept.
    camera : of a calibrated rig; None otherwise.
    stored : pixels as stored and what the file and its sidecar say.
    field : where it was exposed.
    polarity : of the stored pixels, and how that is known.
    letters : (rows, columns) bool, what was written on it.
    marker : the scale object, where one was looked for.
    scale : millimetres of a pixel, and where they come from.
    bone : the long bone; None where none is seen whole enough.
    warnings : what is doubtful, in words.
    """

    radiograph: Radiograph
    whole: Floats
    camera: Camera | None
    stored: Stored
    field: ExposedField
    polarity: FoundPolarity
    letters: Bools
    marker: Marker | None
    scale: Scale
    bone: FoundBone | None
    warnings: tuple[str, ...]

    @property
    def length_mm(self) -> float | None:
        """Of the bone along its axis, in the plane of its middle; None where none was found."""
        if self.bone is None:
            return None
        row_mm, column_mm = self.radiograph.geometry.spacing_at_bone_mm
        lean = np.deg2rad(self.bone.turn_deg)
        return float(self.bone.size[0] * np.hypot(np.cos(lean) * row_mm, np.sin(lean) * column_mm))


def read_film(path: Path, view: View, *, marker_mm: float | None = None) -> Radiograph:
    """Read one film as the given view, cleaned; see :func:`examine_film`."""
    return examine_film(path, view, marker_mm=marker_mm).radiograph


def examine_film(
    path: Path, view: View | None, *, marker_mm: float | None = None, outline: Outline = "close"
) -> Film:
    """Read a film and find out about it.

    Parameters
    ----------
    path : a DICOM image, or a PNG, TIFF or JPEG with a sidecar beside it.
    view : what it has to be; None takes what the film says (AP where it says nothing).
    marker_mm : size of a scale object that is visible on the film; wins over the sidecar's.
    outline : how a bone in tissue is outlined, see :data:`film_outline.Outline`.

    Raises
    ------
    FilmError : no such file, not an image, of another view, without a scale, of unknown
        polarity, a bone that lies on its side and nobody says which end is up.
    """
    stored = _upright_as_said(read_stored(path))
    facts = stored.facts
    if view is not None and facts.view is not None and facts.view != view.value:
        raise FilmError(
            path,
            f"is an {facts.view} film in the place of the {view.value} film",
            "give AP first, then ML",
        )
    seen = view or View(facts.view or "AP")
    if facts.prepared:
        return _prepared(path, stored, seen)
    small, factor = reduced(stored.pixels)
    field = find_field(small)
    inside = _enlarged(field.inside, factor, stored.pixels.shape)
    polarity, notes = _polarity(path, stored, small, field)
    image = _bone_bright(stored, polarity.polarity, inside)
    size = marker_mm or facts.marker_mm
    marker = find_marker(image, inside, facts.marker_at_px) if size else None
    letters = find_letters(image, inside, _disc(marker, image.shape))
    scale = film_scale(path, facts, image.shape, marker, size)
    whole = painted_over(image, letters, inside)
    if marker is not None:
        whole = painted_over(whole, _disc(marker, image.shape), inside)
    whole, bone, clean = _bone(path, whole, inside, field, scale, letters, marker, outline)
    notes += _doubts(bone, facts, scale)
    radiograph = Radiograph(
        clean, scale.geometry, seen, Side(facts.body_side) if facts.body_side else None,
        scale.source, _placement(path, bone, scale, whole.shape),
    )  # fmt: skip
    return Film(
        radiograph, whole, scale.camera, stored, replace(field, inside=inside), polarity,
        letters, marker, scale, bone, (*stored.warnings, *scale.warnings, *notes),
    )  # fmt: skip


def reduced(image: Floats) -> tuple[Floats, int]:
    """The image with square blocks averaged, about 700 pixels long, and the block's edge."""
    factor = max(1, round(max(image.shape) / _LOOKED_AT))
    if factor == 1:
        return image, 1
    rows, columns = (n // factor for n in image.shape)
    blocks = image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float64), dtype=np.float32), factor


def _enlarged(mask: Bools, factor: int, shape: tuple[int, ...]) -> Bools:
    """A mask of the reduced image in the pixels of the whole one."""
    if factor == 1:
        return mask
    large = np.kron(mask, np.ones((factor, factor), bool))
    pad = [(0, shape[a] - large.shape[a]) for a in (0, 1)]
    return np.pad(large, pad, mode="edge")


def _upright_as_said(stored: Stored) -> Stored:
    """The film turned so that the end said to be proximal is up, and seen from the source."""
    facts = stored.facts
    pixels = stored.pixels
    changes: dict[str, tuple[float, float] | None] = {}
    if facts.mirrored and facts.camera is None:
        pixels = pixels[:, ::-1]
        if facts.marker_at_px:
            row, column = facts.marker_at_px
            changes["marker_at_px"] = (row, pixels.shape[1] - 1 - column)
    quarters = _QUARTERS[facts.proximal or "up"] if facts.camera is None else 0
    for _ in range(quarters):
        # Counterclockwise: what is at the right comes up.
        at = changes.get("marker_at_px", facts.marker_at_px)
        if at:
            changes["marker_at_px"] = (pixels.shape[1] - 1 - at[1], at[0])
        pixels = np.rot90(pixels)
    if quarters % 2:
        for name in ("pixel_spacing_mm", "spacing_at_bone_mm"):
            pair = getattr(facts, name)
            changes[name] = pair[::-1] if pair else None
    facts = facts.model_copy(update=changes)
    return replace(stored, pixels=np.ascontiguousarray(pixels), facts=facts)


def _polarity(
    path: Path, stored: Stored, small: Floats, field: ExposedField
) -> tuple[FoundPolarity, list[str]]:
    """What is said wins; then what is seen; then what the file is meant to be shown as."""
    facts = stored.facts
    if facts.intensity == "linear":
        # A transmitted fraction falls where bone is, whatever anybody says.
        return FoundPolarity("bone_dark", "the film holds transmitted fractions"), []
    seen = find_polarity(small, field.inside)
    if not seen.by_air:
        seen = _polarity_by_bone(small, field) or seen
    if facts.polarity is not None:
        said = FoundPolarity(facts.polarity, "the file or its sidecar says so")
        if seen.polarity not in (None, facts.polarity) and seen.by_air:
            return said, [
                f"is said to be {facts.polarity}, but looks the other way round: {seen.reason}"
            ]
        return said, []
    if seen.polarity is not None:
        if stored.shown is not None and stored.shown != seen.polarity:
            return seen, [f"is stored the other way round than its header says: {seen.reason}"]
        return seen, []
    if stored.shown is not None:
        return FoundPolarity(stored.shown, "the header says how it is to be shown"), []
    raise FilmError(
        path,
        f"does not say whether bone is bright or dark, and {seen.reason}",
        f'put "polarity": "bone_bright" or "bone_dark" into "{path.name}.json" beside it',
    )


def _polarity_by_bone(small: Floats, field: ExposedField) -> FoundPolarity | None:
    """The polarity in which a long bone is seen, or seen more surely; None where neither is."""
    sure: dict[Polarity, float] = {}
    polarities: tuple[Polarity, Polarity] = ("bone_bright", "bone_dark")
    for polarity in polarities:
        image = small if polarity == "bone_bright" else small.max() - small
        found = find_bone(image, field.inside, air_level(image, field.inside), outline="rough")
        # Around a bare bone there is air, which would have told.
        sure[polarity] = 0.0 if found is None or found.tissue is None else found.sure
    best = max(polarities, key=lambda polarity: sure[polarity])
    if abs(sure["bone_bright"] - sure["bone_dark"]) < _SURER:
        return None
    return FoundPolarity(best, f"a long bone is seen in it ({sure[best]:.0%} sure)")


def _bone_bright(stored: Stored, polarity: Polarity | None, inside: Bools) -> Floats:
    """Grey values that rise with the line integral, as far as the film's curve is known."""
    pixels = stored.pixels
    if stored.facts.intensity == "linear":
        top = float(pixels[inside].max())
        floor = max(top * 1e-5, 1e-12)
        return np.asarray(-np.log(np.clip(pixels, floor, max(top, floor)) / top), np.float32)
    return pixels if polarity == "bone_bright" else np.asarray(pixels.max() - pixels, np.float32)


def _disc(marker: Marker | None, shape: tuple[int, ...]) -> Bools:
    """(rows, columns) bool: a scale object with a margin around it."""
    out = np.zeros(shape, bool)
    if marker is not None:
        top, left, bottom, right = marker.box
        margin = 4 + round(0.05 * max(bottom - top, right - left))
        rows = slice(max(top - margin, 0), bottom + margin)
        out[rows, max(left - margin, 0) : right + margin] = True
    return out


def _bone(
    path: Path,
    whole: Floats,
    inside: Bools,
    field: ExposedField,
    scale: Scale,
    letters: Bools,
    marker: Marker | None,
    outline: Outline,
) -> tuple[Floats, FoundBone | None, Floats]:
    """The film over air, the bone on it, and the film with nothing but bone.

    Raises FilmError where the bone lies on its side, which no calibrated camera minds.
    """
    air = air_level(whole, inside)
    small, factor = reduced(whole)
    found = find_bone(small, field.inside, air, outline=outline)
    bone = None if found is None else found.in_pixels(factor)
    if bone is not None and abs(bone.turn_deg) > _MOST_LEAN_DEG and scale.camera is None:
        side = "left" if bone.turn_deg < 0 else "right"
        raise FilmError(
            path,
            f"shows a bone that leans by {abs(bone.turn_deg):.0f} degrees",
            f'say where its upper end is: "proximal": "{side}", for example, in '
            f'"{path.name}.json" beside it',
        )
    over_air = np.where(inside, np.maximum(whole - air, 0.0), 0.0).astype(np.float32)
    touched = field.form != "whole" or letters.any() or marker is not None
    if bone is not None and bone.tissue is not None:
        grown = ndimage.binary_dilation(
            bone.mask, iterations=max(2, round(0.006 * max(small.shape)))
        )
        rest = over_air - _stretched(bone.tissue, factor, whole.shape)
        clean = np.where(_enlarged(grown, factor, whole.shape), np.maximum(rest, 0.0), 0.0)
        return over_air, bone, clean.astype(np.float32)
    return over_air, bone, over_air if touched else whole


def _placement(
    path: Path, bone: FoundBone | None, scale: Scale, shape: tuple[int, ...]
) -> Placement | None:
    """Where a bone lies that was found in tissue: what is left of the tissue blurs its ends."""
    if bone is None or bone.tissue is None or scale.camera is not None:
        return None
    factor = round(shape[0] / bone.mask.shape[0])
    row_mm, column_mm = scale.geometry.spacing_at_bone_mm
    found = place_shape(bone.mask, (row_mm * factor, column_mm * factor), str(path))
    row, column = ((at + 0.5) * factor - 0.5 for at in found.centre)
    return replace(found, centre=(row, column))


def _stretched(level: Floats, factor: int, shape: tuple[int, ...]) -> Floats:
    """A smooth image of the reduced film in the pixels of the whole one."""
    if factor == 1:
        return level
    at = [(np.arange(n) + 0.5) / factor - 0.5 for n in shape]
    grid = np.meshgrid(*at, indexing="ij")
    return np.asarray(
        ndimage.map_coordinates(level, grid, order=1, mode="nearest"), dtype=np.float32
    )


def _doubts(bone: FoundBone | None, facts: Sidecar, scale: Scale) -> list[str]:
    """What a reader of the result should know about the bone on the film."""
    if bone is None:
        return ["shows no long bone that stands clear of all else"]
    if bone.cut and scale.camera is None:
        return ["shows a bone that runs over the edge of what was exposed"]
    return []


def _prepared(path: Path, stored: Stored, view: View) -> Film:
    """A film that needs no cleaning: one bone, bright, on an even background."""
    facts = stored.facts
    inside = np.ones(stored.pixels.shape, bool)
    known = facts.polarity or ("bone_dark" if facts.intensity == "linear" else None)
    if known is None:
        raise FilmError(
            path,
            "does not say whether bone is bright or dark",
            f'put "polarity": "bone_bright" or "bone_dark" into "{path.name}.json" beside it',
        )
    image = _bone_bright(stored, known, inside)
    scale = film_scale(path, facts, image.shape, None, None)
    side = Side(facts.body_side) if facts.body_side else None
    return Film(
        Radiograph(image, scale.geometry, view, side, scale.source), image, scale.camera, stored,
        ExposedField(inside, "whole"), FoundPolarity(known, "the sidecar says so"),
        np.zeros(image.shape, bool), None, scale, None, (*stored.warnings, *scale.warnings),
    )  # fmt: skip


def write_film(
    radiograph: Radiograph,
    path: Path,
    *,
    full_scale: float | None = None,
    intensity: Literal["log", "display"] = "log",
) -> None:
    """Write a simulated radiograph as 16-bit PNG with its sidecar beside it.

    ``full_scale`` is the line integral that becomes white; the image's maximum by default.
    ``intensity`` is "display" where the grey values went through a curve.
    """
    from PIL import Image

    top = full_scale or float(radiograph.image.max()) or 1.0
    stored = np.clip(radiograph.image / top * 65535.0 + 0.5, 0, 65535).astype(np.uint16)
    # Hard packing makes the file a little smaller and takes longer than the X-ray itself.
    Image.fromarray(stored).save(path, compress_level=1)
    geometry = radiograph.geometry
    cone = bool(np.isfinite(geometry.sdd_mm))
    facts = Sidecar(
        view=radiograph.view.value,
        pixel_spacing_mm=geometry.pixel_spacing_mm,
        sdd_mm=geometry.sdd_mm if cone else None,
        sod_mm=geometry.sod_mm if cone else None,
        beam="cone" if cone else "parallel",
        polarity="bone_bright",
        intensity=intensity,
        body_side=radiograph.side.value if radiograph.side else None,
    )
    sidecar = path.with_name(path.name + ".json")
    sidecar.write_text(
        facts.model_dump_json(exclude_none=True, exclude_defaults=True, indent=1) + "\n"
    )

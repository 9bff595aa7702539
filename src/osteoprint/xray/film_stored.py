"""A film as it is stored: its pixels, and what the file and the sidecar beside it say.

A DICOM image (DX, CR, RF, SC) says most of it in its header; a PNG, TIFF or JPEG says nothing.
What neither says stands in ``<file>.json``. Here nothing is guessed and nothing is judged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from osteoprint.errors import FilmError

PICTURES = {".png", ".tif", ".tiff", ".jpg", ".jpeg"}
MAX_PIXELS = 64_000_000
# ViewPosition (0018,5101) by what we call the view.
_VIEWS = {
    **dict.fromkeys(("AP", "PA"), "AP"),
    **dict.fromkeys(("LL", "RL", "LAT", "ML", "LM", "LATERAL", "LLAT", "RLAT"), "ML"),
}


class CameraFacts(BaseModel):
    """A calibrated camera, world to camera."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    k: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
    r: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
    t_mm: tuple[float, float, float]


class Sidecar(BaseModel):
    """What a film's sidecar may say; the fields of a DICOM header are brought to the same.

    Beyond the contract: ``spacing_at_bone_mm`` for a scale that holds in the plane of the bone,
    ``marker_mm`` and ``marker_at_px`` (row, column) for a visible scale object, ``proximal``
    for where the bone's upper end lies in the picture, ``mirrored`` for a picture seen from the
    detector, ``prepared`` for one that needs no cleaning.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    view: Literal["AP", "ML"] | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    spacing_at_bone_mm: tuple[float, float] | None = None
    sdd_mm: float | None = Field(default=None, gt=0)
    sod_mm: float | None = Field(default=None, gt=0)
    beam: Literal["cone", "parallel"] = "cone"
    camera: CameraFacts | None = None
    marker_mm: float | None = Field(default=None, gt=0)
    marker_at_px: tuple[float, float] | None = None
    polarity: Literal["bone_bright", "bone_dark"] | None = None
    intensity: Literal["log", "linear", "display"] = "display"
    body_side: Literal["left", "right"] | None = None
    proximal: Literal["up", "down", "left", "right"] | None = None
    mirrored: bool | None = None
    prepared: bool = False


@dataclass(frozen=True, eq=False)
class Stored:
    """A film as stored.

    Attributes
    ----------
    pixels : (rows, columns) float32, after the modality's and the display's look-up tables.
    facts : what is said of it.
    shown : polarity that the file is meant to be displayed in, where it says so; a
        convention of viewers, which a film may contradict.
    warnings : what is odd about the header.
    """

    pixels: NDArray[np.float32]
    facts: Sidecar
    shown: Literal["bone_bright", "bone_dark"] | None
    warnings: tuple[str, ...]


def read_stored(path: Path) -> Stored:
    """Read a film's pixels and everything that is said about it.

    Raises FilmError: no such file, not an image, too large, in colour, of several frames,
    with an impossible header, a sidecar that cannot be understood.
    """
    if not path.is_file():
        raise FilmError(path, "is not a file", "give a DICOM, PNG, TIFF or JPEG film")
    if path.stat().st_size == 0:
        raise FilmError(path, "is empty (0 bytes)", "export the film again")
    if path.suffix.lower() in PICTURES:
        stored = Stored(_read_picture(path), Sidecar(), None, ())
    else:
        stored = _read_dicom(path)
    facts = _with_sidecar(path, stored.facts)
    if not np.isfinite(stored.pixels).all():
        raise FilmError(path, "holds values that are not numbers", "export the film again")
    if np.ptp(stored.pixels) == 0:
        raise FilmError(path, "is of one even grey", "export the film again")
    if min(stored.pixels.shape) < 32:
        rows, columns = stored.pixels.shape
        raise FilmError(path, f"is only {rows} × {columns} pixels", "give the whole film")
    return Stored(stored.pixels, facts, stored.shown, stored.warnings)


def _read_picture(path: Path) -> NDArray[np.float32]:
    """(rows, columns) float32 grey values of a PNG, TIFF or JPEG."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.size[0] * image.size[1] > MAX_PIXELS:
                raise FilmError(
                    path, f"has more than {MAX_PIXELS:,} pixels", "export it at a lower resolution"
                )
            if image.mode in {"RGB", "RGBA", "P", "LA", "CMYK", "YCbCr"}:
                colours = np.asarray(image.convert("RGB"), dtype=np.float32)
                if np.abs(colours - colours.mean(axis=2, keepdims=True)).max() > 8:
                    raise FilmError(path, "is a colour picture", "give an X-ray film in grey")
                return np.ascontiguousarray(colours.mean(axis=2))
            return np.asarray(image, dtype=np.float32)
    except FilmError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise FilmError(
            path, "cannot be read as an image", "export the film again as PNG or TIFF"
        ) from None


def _read_dicom(path: Path) -> Stored:
    """Pixels after the look-up tables, and what the header says."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
        if not rows or not columns:
            raise FilmError(path, "holds no image", "give a DICOM film (DX, CR, RF or SC)")
        if rows * columns > MAX_PIXELS:
            raise FilmError(
                path, f"claims {rows} × {columns} pixels", "export it at a lower resolution"
            )
        data = pydicom.dcmread(path)
        raw = data.pixel_array
    except FilmError:
        raise
    except Exception as error:  # a hostile file can raise nearly anything from a parser
        raise FilmError(
            path, f"cannot be read as DICOM ({type(error).__name__})", "export the film again"
        ) from None
    if raw.ndim == 3 and raw.shape[0] == 1:
        raw = raw[0]
    if raw.ndim != 2:
        raise FilmError(path, "holds more than one frame or colour", "export one grey frame")
    try:
        pixels, tone = _through_tables(data, raw)
        facts, warnings = _header_facts(data)
        turned, flips = _as_displayed(data, facts, pixels)
        return Stored(
            turned,
            Sidecar.model_validate(facts | tone[0]),
            tone[1],
            tuple(warnings + flips),
        )
    except FilmError:
        raise
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError):
        raise FilmError(
            path, "has an impossible pixel spacing, distance or table in its header",
            "export it again",
        ) from None  # fmt: skip


def _through_tables(
    data: Any, raw: NDArray[Any]
) -> tuple[NDArray[np.float32], tuple[dict[str, Any], Any]]:
    """Pixels after the modality's table, and after the display's unless they are measured ones.

    Also what this says of them: fields for the sidecar, and the polarity shown.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    pixels = apply_modality_lut(raw, data)
    photometric = str(data.get("PhotometricInterpretation", "")).upper()
    shown = {"MONOCHROME1": "bone_dark", "MONOCHROME2": "bone_bright"}.get(photometric)
    relation = str(data.get("PixelIntensityRelationship", "") or "").upper()
    sign = int(data.get("PixelIntensityRelationshipSign", 0) or 0)
    said: dict[str, Any] = {}
    if relation == "LIN" and sign == 1:
        # Proportional to the signal: its logarithm is the line integral; no window wanted.
        said = {"intensity": "linear"}
    elif relation == "LOG" and sign:
        said = {"intensity": "log", "polarity": "bone_dark" if sign == 1 else "bone_bright"}
    elif "VOILUTSequence" in data or "WindowCenter" in data:
        pixels = apply_voi_lut(pixels, data, index=0, prefer_lut=True)
        if sign:
            said = {"polarity": "bone_dark" if sign == 1 else "bone_bright"}
    elif sign:
        said = {"polarity": "bone_dark" if sign == 1 else "bone_bright"}
    return np.asarray(pixels, dtype=np.float32), (said, shown)


def _header_facts(data: Any) -> tuple[dict[str, Any], list[str]]:
    """Spacing, distances, side and view, as fields of a sidecar."""
    warnings: list[str] = []
    at_detector, plain = (_pair(data, tag) for tag in ("ImagerPixelSpacing", "PixelSpacing"))
    sdd, sod, larger = (
        float(data.get(tag, 0) or 0)
        for tag in (
            "DistanceSourceToDetector",
            "DistanceSourceToPatient",
            "EstimatedRadiographicMagnificationFactor",
        )
    )
    if min(sdd, sod, larger) < 0:
        raise ValueError("a distance below zero")
    if larger and sdd and not sod:
        sod = sdd / larger
    facts: dict[str, Any] = {
        "pixel_spacing_mm": at_detector,
        "sdd_mm": sdd or None,
        "sod_mm": sod or None,
        "body_side": {"L": "left", "R": "right"}.get(
            str(data.get("ImageLaterality", "") or data.get("Laterality", "") or "").upper()
        ),
    }
    calibrated = str(data.get("PixelSpacingCalibrationType", "") or "").upper()
    if plain and (calibrated or at_detector is None or plain != at_detector):
        # The standard's PixelSpacing, where it is not the detector's, is that of the patient.
        facts["spacing_at_bone_mm"] = plain
        if not calibrated and at_detector is None:
            warnings.append("PixelSpacing is taken to be that of the bone, not of the detector")
    elif at_detector and larger and not (sdd and sod):
        facts["spacing_at_bone_mm"] = (at_detector[0] / larger, at_detector[1] / larger)
    position = str(data.get("ViewPosition", "") or "").upper()
    if position in _VIEWS:
        facts["view"] = _VIEWS[position]
    elif position:
        warnings.append(f"the view position {position!r} is not known and was not looked at")
    return {key: value for key, value in facts.items() if value is not None}, warnings


def _pair(data: Any, tag: str) -> tuple[float, float] | None:
    value = data.get(tag)
    if value is None or value == "":
        return None
    row, column = (float(v) for v in np.atleast_1d(np.asarray(value, dtype=float)))
    return row, column


def _as_displayed(
    data: Any, facts: dict[str, Any], pixels: NDArray[np.float32]
) -> tuple[NDArray[np.float32], list[str]]:
    """Turn the picture as PatientOrientation says: head up, seen from the source.

    Standard is: AP, the patient's left at the right; ML, seen from the inner side, so that on
    a right leg the back is at the right, on a left leg the front.
    """
    letters = [str(v)[:1].upper() for v in (data.get("PatientOrientation", None) or [])]
    if len(letters) != 2 or not all(letter in "LRAPHF" for letter in letters):
        return pixels, []
    along_row, along_column = letters
    done = []
    if along_row in "HF" and along_column not in "HF":
        pixels = pixels.T
        along_row, along_column = along_column, along_row
        done.append("turned on its side")
        for key in ("pixel_spacing_mm", "spacing_at_bone_mm"):
            if facts.get(key):
                facts[key] = facts[key][::-1]
    if along_column == "H":
        pixels = pixels[::-1]
        done.append("upside down")
    wrong = {"L": "R", "R": "L"}
    side = facts.get("body_side")
    if along_row in "AP" and side:
        standard = "P" if side == "right" else "A"
        if along_row != standard:
            pixels = pixels[:, ::-1]
            done.append("mirrored")
    elif along_row in wrong and along_row == "R":
        pixels = pixels[:, ::-1]
        done.append("mirrored")
    said = [f"was stored {' and '.join(done)}: put right by its orientation"] if done else []
    return np.ascontiguousarray(pixels), said


def _with_sidecar(path: Path, facts: Sidecar) -> Sidecar:
    """What the sidecar says, on top of what the file says itself."""
    sidecar = path.with_name(path.name + ".json")
    if not sidecar.is_file():
        return facts
    try:
        said = json.loads(sidecar.read_text(encoding="utf-8-sig"))
        if not isinstance(said, dict):
            raise ValueError("not an object")
        return Sidecar.model_validate({**facts.model_dump(exclude_none=True), **said})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "sidecar"
        raise FilmError(sidecar, f"{where}: {first['msg']}", "correct the sidecar") from None
    except (ValueError, OSError, RecursionError):
        raise FilmError(sidecar, "is not a JSON object", "correct the sidecar") from None

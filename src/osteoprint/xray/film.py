"""Films in: a DICOM image or a PNG, TIFF or JPEG with a sidecar becomes a Radiograph.

What a picture does not say (spacing, distances, polarity) stands in ``<file>.json``
beside it; a DICOM file says most of it itself. What is missing is an error, never a guess.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from osteoprint.errors import FilmError
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Geometry
from osteoprint.xray.radiograph import Radiograph

PICTURES = {".png", ".tif", ".tiff", ".jpg", ".jpeg"}
MAX_PIXELS = 64_000_000


class Sidecar(BaseModel):
    """What a film's sidecar may say; the fields of a DICOM header are brought to the same."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    view: Literal["AP", "ML"] | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    sdd_mm: float | None = Field(default=None, gt=0)
    sod_mm: float | None = Field(default=None, gt=0)
    beam: Literal["cone", "parallel"] = "cone"
    polarity: Literal["bone_bright", "bone_dark"] | None = None
    intensity: Literal["log", "linear", "display"] = "display"
    body_side: Literal["left", "right"] | None = None


def read_film(path: Path, view: View) -> Radiograph:
    """Read one film as the given view.

    Raises FilmError: no such file, not an image, no or impossible scale, no polarity, a
    sidecar that says another view.
    """
    if not path.is_file():
        raise FilmError(path, "is not a file", "give a DICOM, PNG, TIFF or JPEG film")
    if path.stat().st_size == 0:
        raise FilmError(path, "is empty (0 bytes)", "export the film again")
    if path.suffix.lower() in PICTURES:
        pixels, facts = _read_picture(path), Sidecar()
    else:
        pixels, facts = _read_dicom(path)
    facts = _with_sidecar(path, facts)
    if facts.view is not None and facts.view != view.value:
        raise FilmError(
            path,
            f"is an {facts.view} film in the place of the {view.value} film",
            "give AP first, then ML",
        )
    geometry = _geometry(path, facts, pixels.shape)
    return Radiograph(
        _bone_bright(path, pixels, facts),
        geometry,
        view,
        Side(facts.body_side) if facts.body_side else None,
        "pixel spacing and distances",
    )


def write_film(radiograph: Radiograph, path: Path, *, full_scale: float | None = None) -> None:
    """Write a simulated radiograph as 16-bit PNG with its sidecar beside it.

    ``full_scale`` is the line integral that becomes white; the image's maximum by default.
    """
    from PIL import Image

    top = full_scale or float(radiograph.image.max()) or 1.0
    stored = np.clip(radiograph.image / top * 65535.0 + 0.5, 0, 65535).astype(np.uint16)
    Image.fromarray(stored).save(path)
    geometry = radiograph.geometry
    cone = bool(np.isfinite(geometry.sdd_mm))
    facts = Sidecar(
        view=radiograph.view.value,
        pixel_spacing_mm=geometry.pixel_spacing_mm,
        sdd_mm=geometry.sdd_mm if cone else None,
        sod_mm=geometry.sod_mm if cone else None,
        beam="cone" if cone else "parallel",
        polarity="bone_bright",
        intensity="log",
        body_side=radiograph.side.value if radiograph.side else None,
    )
    sidecar = path.with_name(path.name + ".json")
    sidecar.write_text(facts.model_dump_json(exclude_none=True, indent=1) + "\n")


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


def _read_dicom(path: Path) -> tuple[NDArray[np.float32], Sidecar]:
    """Pixels after the modality rescale, and what the header says."""
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
        pixels = data.pixel_array.astype(np.float32)
    except FilmError:
        raise
    except Exception as error:  # a hostile file can raise nearly anything from a parser
        raise FilmError(
            path, f"cannot be read as DICOM ({type(error).__name__})", "export the film again"
        ) from None
    if pixels.ndim != 2:
        raise FilmError(path, "holds more than one frame or colour", "export one grey frame")
    slope = float(data.get("RescaleSlope", 1) or 1)
    pixels = pixels * slope + float(data.get("RescaleIntercept", 0) or 0)
    spacing = data.get("ImagerPixelSpacing") or None
    values = [float(v) for v in np.atleast_1d(np.asarray(spacing, dtype=float))] if spacing else []
    distances = [
        float(data.get(tag, 0) or 0)
        for tag in ("DistanceSourceToDetector", "DistanceSourceToPatient")
    ]
    if (spacing and len(values) != 2) or min(distances) < 0:
        raise FilmError(
            path, "has an impossible pixel spacing or distance in its header", "export it again"
        )
    side = {"L": "left", "R": "right"}.get(str(data.get("ImageLaterality", "")).upper())
    photometric = str(data.get("PhotometricInterpretation", ""))
    polarity = {"MONOCHROME1": "bone_dark", "MONOCHROME2": "bone_bright"}.get(photometric)
    facts = {
        "pixel_spacing_mm": tuple(values) or None,
        "sdd_mm": distances[0] or None,
        "sod_mm": distances[1] or None,
        "polarity": polarity,
        "body_side": side,
    }
    return pixels, Sidecar.model_validate(facts)


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


def _geometry(path: Path, facts: Sidecar, shape: tuple[int, ...]) -> Geometry:
    """Size and distances, or the error that says which of them is missing."""
    sidecar = f'"{path.name}.json" beside it'
    if facts.pixel_spacing_mm is None:
        raise FilmError(path, "has no scale", f'put "pixel_spacing_mm" into {sidecar}')
    if not all(1e-3 <= mm <= 10 for mm in facts.pixel_spacing_mm):
        raise FilmError(
            path,
            f"has an impossible pixel spacing {facts.pixel_spacing_mm} mm",
            f'correct "pixel_spacing_mm" in {sidecar}',
        )
    sdd, sod = facts.sdd_mm, facts.sod_mm
    if facts.beam == "parallel":
        sdd = sod = float("inf")
    if sdd is None or sod is None:
        raise FilmError(
            path,
            "has no distances, so the magnification is unknown",
            f'put "sdd_mm" and "sod_mm" into {sidecar}',
        )
    if sod > sdd:
        raise FilmError(
            path, f"has sod_mm {sod:g} beyond sdd_mm {sdd:g}", f"exchange them in {sidecar}"
        )
    rows, columns = shape
    if min(rows, columns) < 32:
        raise FilmError(path, f"is only {rows} × {columns} pixels", "give the whole film")
    return Geometry(rows, columns, facts.pixel_spacing_mm, sdd, sod)


def _bone_bright(path: Path, pixels: NDArray[np.float32], facts: Sidecar) -> NDArray[np.float32]:
    """Grey values proportional to line integrals, as far as the film's curve is known."""
    if not np.isfinite(pixels).all():
        raise FilmError(path, "holds values that are not numbers", "export the film again")
    if np.ptp(pixels) == 0:
        raise FilmError(path, "is of one even grey", "export the film again")
    if facts.intensity == "linear":
        # A transmitted fraction falls where bone is, whatever its scale.
        floor = max(float(pixels.max()) * 1e-5, 1e-12)
        return np.asarray(-np.log(np.maximum(pixels, floor) / pixels.max()), dtype=np.float32)
    if facts.polarity is None:
        raise FilmError(
            path,
            "does not say whether bone is bright or dark",
            f'put "polarity": "bone_bright" or "bone_dark" into "{path.name}.json" beside it',
        )
    return pixels if facts.polarity == "bone_bright" else pixels.max() - pixels

"""What a grid file's header must say before its contents are believed.

Readers replace a missing or zero spacing by 1 mm, mirror on a negative one and pad a file
that was cut short, all without a word. So the few fields that decide about place and size
are looked at here, in the raw header, first.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from osteoprint.errors import ScanError

_HEADER_BYTES = 1 << 16
_NIFTI_BYTES = 348
_EXPORT = "export the scan again"


def check_header(path: Path) -> list[str]:
    """Refuse a NIfTI, NRRD or MetaImage file whose header cannot be trusted.

    Returns warnings. Raises ScanError for a header that is not the format's, spacings that
    are missing, zero, negative or not numbers, and a NIfTI file that is cut short.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _check_nifti(path)
    with path.open("rb") as file:
        text = file.read(_HEADER_BYTES).decode("latin-1")
    if name.endswith((".nrrd", ".nhdr")):
        _check_nrrd(path, text)
    else:
        _check_metaimage(path, text)
    return []


def _check_nifti(path: Path) -> list[str]:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            head = file.read(_NIFTI_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise ScanError(path, "not a gzip file, or a damaged one", _EXPORT) from error
    order = next((o for o in "<>" if head[:4] == struct.pack(f"{o}i", _NIFTI_BYTES)), None)
    if len(head) < _NIFTI_BYTES or order is None or head[344:347] not in (b"n+1", b"ni1"):
        raise ScanError(path, "not a NIfTI-1 file", "export it as NIfTI-1 or NRRD")
    dims = struct.unpack_from(f"{order}8h", head, 40)
    code, bits = struct.unpack_from(f"{order}2h", head, 70)
    pixdim = np.array(struct.unpack_from(f"{order}8f", head, 76))
    offset, slope, intercept = struct.unpack_from(f"{order}3f", head, 108)
    qform, sform = struct.unpack_from(f"{order}2h", head, 252)
    quaternion = np.array(struct.unpack_from(f"{order}6f", head, 256))
    rows = np.array(struct.unpack_from(f"{order}12f", head, 280)).reshape(3, 4)
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise ScanError(path, "its header gives no size", _EXPORT)
    _check_spacing(path, pixdim[1 : min(dims[0], 3) + 1])
    if not np.isfinite([offset, slope, intercept, *quaternion]).all():
        raise ScanError(path, "its header holds values that are not numbers", _EXPORT)
    if sform > 0 and dims[0] >= 3:
        lengths = np.linalg.norm(rows[:, :3], axis=0)
        if not np.allclose(lengths, pixdim[1:4], rtol=0.01):
            raise ScanError(path, "its sform and its voxel spacing disagree", _EXPORT)
    if head[344:347] == b"n+1":
        voxels = int(np.prod([float(n) for n in dims[1 : dims[0] + 1]]))
        kind = {16: f"{order}f4", 64: f"{order}f8"}.get(code)
        _check_data(path, int(offset), voxels * bits // 8, kind)
    if qform <= 0 and sform <= 0:
        return ["the file gives no orientation: left and right are not certain"]
    return []


def _check_data(path: Path, offset: int, size: int, kind: str | None) -> None:
    """Refuse data that are cut short or, where they are floats, not all numbers.

    The NIfTI library reads both as zeros. Data stay on disk but for a piece at a time.
    """
    packed = path.name.lower().endswith(".gz")
    if not packed and path.stat().st_size < offset + size:
        raise ScanError(path, "the file is cut short", "copy or export it again")
    if not packed and kind is None:
        return
    left, bad = size, 0
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            file.seek(offset)
            while left and (chunk := file.read(min(left, 1 << 22))):
                left -= len(chunk)
                if kind is not None:
                    whole = chunk[: len(chunk) - len(chunk) % int(kind[-1])]
                    bad += int(np.count_nonzero(~np.isfinite(np.frombuffer(whole, kind))))
    except (OSError, EOFError, zlib.error):
        left = max(left, 1)
    if left:
        raise ScanError(path, "the file is cut short", "copy or export it again")
    if bad:
        problem = f"{bad} voxels are not numbers"
        raise ScanError(path, problem, "fill them with -1000 (air) and export again")


def _check_nrrd(path: Path, text: str) -> None:
    if not text.startswith("NRRD"):
        raise ScanError(path, "not a NRRD file", _EXPORT)
    head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
    fields = dict(re.findall(r"^([a-z ]+):=?[ \t]*(.*?)\r?$", head, flags=re.MULTILINE))
    if "space directions" in fields:
        vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
        if len(vectors) < 3:
            raise ScanError(path, "its header gives fewer than three space directions", _EXPORT)
        columns = [_numbers(vector) for vector in vectors]
        _check_spacing(path, np.array([np.linalg.norm(column) for column in columns]))
    elif "spacings" in fields:
        _check_spacing(path, np.array(_numbers(fields["spacings"])))
    else:
        raise ScanError(path, "its header gives no voxel spacing", _EXPORT)


def _check_metaimage(path: Path, text: str) -> None:
    fields = dict(re.findall(r"^(\w+)[ \t]*=[ \t]*(.*?)\r?$", text, flags=re.MULTILINE))
    if "DimSize" not in fields or "ElementType" not in fields:
        raise ScanError(path, "not a MetaImage file", _EXPORT)
    spacing = fields.get("ElementSpacing") or fields.get("ElementSize")
    if spacing is None:
        raise ScanError(path, "its header gives no voxel spacing", _EXPORT)
    _check_spacing(path, np.array(_numbers(spacing)))


def _numbers(text: str) -> list[float]:
    """The numbers of a header field; what is none becomes not-a-number."""
    found = []
    for word in re.split(r"[\s,]+", text.strip()):
        try:
            found.append(float(word))
        except ValueError:
            found.append(float("nan"))
    return found


def _check_spacing(path: Path, spacing: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    if not np.isfinite(spacing).all():
        raise ScanError(path, "its voxel spacing is not a number", _EXPORT)
    if np.any(spacing <= 0):
        listed = " x ".join(f"{s:g}" for s in spacing)
        kind = "negative" if np.any(spacing < 0) else "zero"
        raise ScanError(path, f"its voxel spacing is {kind}: {listed} mm", _EXPORT)

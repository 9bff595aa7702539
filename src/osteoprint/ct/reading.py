"""Scans from files: a DICOM series, NIfTI, NRRD or MetaImage becomes a Volume.

The only module of this room that knows the formats. Files come from strangers: every
size is bounded before memory is asked for, and whatever a library raises becomes one line.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.filereader import read_file_meta_info

from osteoprint.ct.header import check_header
from osteoprint.ct.series import (
    Arrangement,
    SliceHeader,
    arrange,
    check_missing,
    choose_series,
    find_damaged,
    interpolate,
    position_mm,
)
from osteoprint.ct.volume import Volume
from osteoprint.errors import ScanError

GRID_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_MOST_VOXELS = 600_000_000  # 1.2 GB as int16: 512 x 512 x 2200
_MOST_PIXELS = 8192 * 8192  # of one slice
_MOST_INFLATED = 256_000_000  # bytes of one deflated file
_MOST_FILES = 100_000
_LEAST_HU, _MOST_HU = -1024, 32767  # padding lies below air; int16 ends above metal
_BONE_HU = 150.0
_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "ImageType",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "RescaleSlope", "RescaleIntercept",
]  # fmt: skip
_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume and what was noticed while reading it.

    Attributes
    ----------
    volume : HU grid, int16 where that is exact, else float32; LPS mm.
    warnings : what was doubtful or repaired, one sentence each.
    description : the series' description, or the file's name.
    series_uid : the DICOM series, or None for other formats.
    damaged : places along k of damaged slices that were found and not repaired.
    """

    volume: Volume
    warnings: tuple[str, ...] = ()
    description: str = ""
    series_uid: str | None = None
    damaged: tuple[int, ...] = ()


def read_scan(source: Path, *, repair: bool = False, series: str | None = None) -> Scan:
    """Read one CT scan.

    Parameters
    ----------
    source : a folder with a DICOM series, in whatever depth and company; or a file in NIfTI,
        NRRD or MetaImage format, in HU.
    repair : interpolate missing and damaged slices from their neighbours. Without it missing
        slices are an error and damaged ones a warning.
    series : which DICOM series (its UID, or its description) where a folder holds several.

    Raises ScanError, one line with the input and the fix, for everything that is no scan.
    """
    source = Path(source)
    if not source.exists():
        raise ScanError(source, "there is no such file or folder", "check the path")
    if source.is_dir():
        scan = _read_series(source, repair, series)
    elif source.name.lower().endswith(GRID_SUFFIXES):
        scan = _read_grid(source)
    elif source.suffix.lower() == ".dcm":
        raise ScanError(source, "is one slice of a series", "give the folder that holds them all")
    else:
        known = ", ".join(GRID_SUFFIXES)
        raise ScanError(source, "not a scan", f"give a folder of DICOM files, or one of {known}")
    highest, lowest = (float(f(scan.volume.volume_hu)) for f in (np.max, np.min))
    if highest < _BONE_HU:
        problem = f"holds nothing as dense as bone: its highest value is {highest:g} HU"
        raise ScanError(source, problem, "check that it is a CT in HU and shows the bone")
    if lowest >= 0:
        doubt = f"no value below 0 (lowest {lowest:g}): perhaps not in HU"
        scan = Scan(scan.volume, (*scan.warnings, doubt), scan.description, scan.series_uid)
    return scan


# --- DICOM -------------------------------------------------------------------------------


def _read_series(folder: Path, repair: bool, wanted: str | None) -> Scan:
    slices, notes = choose_series(folder, *_headers(folder), wanted)
    first = slices[0]
    rows, columns = first.shape
    if len(slices) * rows * columns > _MOST_VOXELS:
        problem = f"{len(slices)} slices of {rows} x {columns} do not fit into memory"
        raise ScanError(folder, problem, "crop the scan or reconstruct it coarser")
    place = arrange(
        str(folder),
        np.array([s.position for s in slices]),
        np.reshape(first.orientation, (2, 3)),
        (first.pixel_mm[0], first.pixel_mm[1]),
    )
    missing = check_missing(str(folder), place, repair)
    stack, unreadable = _stack(slices, place)
    if unreadable:
        names = ", ".join(f"{slices[place.order[k]].path.name} ({why})" for k, why in unreadable)
        at_end = {0, len(place.order) - 1} & {k for k, _ in unreadable}
        if not repair or at_end or len(unreadable) > 3:
            fix = "restore them" if repair else "restore them, or interpolate them with --repair"
            raise ScanError(folder, f"slices whose image cannot be read: {names}", fix)
        notes.append(f"interpolated slices whose image cannot be read: {names}")
    notes += _drop_doubled(folder, slices, place)
    if missing:
        at = ", ".join(f"{position_mm(place.voxel_to_world, k):g}" for k in missing)
        notes.append(f"interpolated missing slices at {at} mm")
    interpolate(stack, sorted({*missing, *(k for k, _ in unreadable)}))
    if place.tilt_deg:
        notes.append(f"the gantry was tilted by {place.tilt_deg:.2f}°; the grid keeps the shear")
    damaged = find_damaged(stack)
    for k in damaged:
        index = place.order[k]
        file = slices[index].path.name if index >= 0 else "interpolated"
        name = f"slice at {position_mm(place.voxel_to_world, k):g} mm ({file})"
        todo = "interpolated from its neighbours" if repair else "--repair interpolates it"
        notes.append(f"damaged {name}: unlike both neighbours; {todo}")
    if repair:
        interpolate(stack, damaged)
        damaged = []
    volume = Volume(np.ascontiguousarray(stack.transpose(2, 1, 0)), place.voxel_to_world)
    return Scan(volume, tuple(notes), first.description, first.series, tuple(damaged))


def _headers(folder: Path) -> tuple[list[SliceHeader], dict[str, int]]:
    """The CT images below a folder, and how many files were left out for which reason."""
    slices: list[SliceHeader] = []
    left_out: dict[str, int] = {}
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    for number, path in enumerate(files):
        if number >= _MOST_FILES:
            raise ScanError(folder, f"more than {_MOST_FILES} files", "give the scan's own folder")
        found = _header(path)
        if isinstance(found, SliceHeader):
            slices.append(found)
        else:
            left_out[found] = left_out.get(found, 0) + 1
    return slices, left_out


def _header(path: Path) -> SliceHeader | str:
    """One file's header, or in a few words why it is not a slice of a CT."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
        if not start:
            return "empty"
        if start[128:] != b"DICM":
            return "not DICOM"
        if _inflates_too_far(path):
            return "deflated beyond reason"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=_TAGS, defer_size=1 << 16
            )
            return _slice(path, data)
    except (Exception, RecursionError, MemoryError):
        # Whatever a broken header makes pydicom raise, including 10,000 nested sequences.
        return "damaged DICOM"


def _slice(path: Path, data: pydicom.Dataset) -> SliceHeader | str:
    modality = str(data.get("Modality", "unknown"))
    if modality != "CT":
        return f"modality {modality[:16]}"
    if str(data.get("SOPClassUID", "")) == _ENHANCED_CT or int(data.get("NumberOfFrames", 1)) > 1:
        return "multi-frame CT"
    if "LOCALIZER" in data.get("ImageType", []):
        return "localizer"
    rows, columns = int(data.Rows), int(data.Columns)
    if not (rows > 1 and columns > 1 and rows * columns <= _MOST_PIXELS):
        return "absurd image size"
    if int(data.SamplesPerPixel) != 1 or int(data.BitsAllocated) not in (8, 16, 32):
        return "colour or odd pixels"
    slope, intercept = float(data.RescaleSlope), float(data.RescaleIntercept)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope != 0):
        return "impossible rescale slope"
    return SliceHeader(
        path=path,
        series=str(data.SeriesInstanceUID),
        description=str(data.get("SeriesDescription", "")),
        position=tuple(float(v) for v in data.ImagePositionPatient),
        orientation=tuple(float(v) for v in data.ImageOrientationPatient),
        pixel_mm=tuple(float(v) for v in data.PixelSpacing),
        shape=(rows, columns),
        slope=slope,
        intercept=intercept,
    )


def _inflates_too_far(path: Path) -> bool:
    """True for a deflated file that would grow beyond the bound; inflated in small pieces."""
    meta = read_file_meta_info(path)
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax != pydicom.uid.DeflatedExplicitVRLittleEndian:
        return False
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(144 + int(meta.FileMetaInformationGroupLength))
        while chunk := file.read(1 << 16):
            while chunk:
                total += len(inflater.decompress(chunk, 1 << 20))
                chunk = inflater.unconsumed_tail
                if total > _MOST_INFLATED:
                    return True
    return False


def _hu(slice_: SliceHeader) -> NDArray[np.generic]:
    """(rows, columns) HU of one slice, int16 or float32. Raises whatever decoding raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(slice_.path, defer_size=None)
        size = slice_.shape[0] * slice_.shape[1] * int(data.BitsAllocated) // 8
        if not data.file_meta.TransferSyntaxUID.is_compressed and len(data.PixelData) < size:
            raise ValueError("cut short")
        stored = data.pixel_array
    if stored.shape != slice_.shape:
        raise ValueError("wrong size")
    if slice_.slope == int(slice_.slope) and slice_.intercept == int(slice_.intercept):
        wide = stored.astype(np.int64) * int(slice_.slope) + int(slice_.intercept)
        return np.clip(wide, _LEAST_HU, _MOST_HU).astype(np.int16)
    scaled = stored.astype(np.float64) * slice_.slope + slice_.intercept
    return np.clip(scaled, _LEAST_HU, None).astype(np.float32)


def _stack(
    slices: list[SliceHeader], place: Arrangement
) -> tuple[NDArray[np.generic], list[tuple[int, str]]]:
    """(K, J, I) HU, empty where a slice is missing, and the places that cannot be read."""
    whole = all(s.slope == int(s.slope) and s.intercept == int(s.intercept) for s in slices)
    shape = (len(place.order), *slices[0].shape)
    stack = np.zeros(shape, dtype=np.int16 if whole else np.float32)
    unreadable: list[tuple[int, str]] = []
    for k, index in enumerate(place.order):
        if index < 0:
            continue
        try:
            stack[k] = _hu(slices[index])
        except (Exception, RecursionError, MemoryError) as error:
            why = str(error) if str(error) in ("cut short", "wrong size") else "cannot be decoded"
            unreadable.append((k, why))
    return stack, unreadable


def _drop_doubled(folder: Path, slices: list[SliceHeader], place: Arrangement) -> list[str]:
    """Slices at the same place: a note if their images are the same, else an error."""
    for a, b in place.doubled:
        one, other = slices[a], slices[b]
        try:
            same = np.array_equal(_hu(one), _hu(other))
        except (Exception, RecursionError, MemoryError):
            same = False
        if not same:
            height = position_mm(place.voxel_to_world, place.order.index(a))
            problem = f"two different slices at {height:g} mm: {one.path.name}, {other.path.name}"
            raise ScanError(folder, problem, "remove the wrong one")
    return [f"dropped {len(place.doubled)} doubled slices"] if place.doubled else []


# --- NIfTI, NRRD, MetaImage --------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what C++ libraries print on standard error to nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _read_grid(path: Path) -> Scan:
    if path.stat().st_size == 0:
        raise ScanError(path, "the file is empty", "export the scan again")
    notes = check_header(path)
    broken = "cannot be read: the file is cut short or not what its name says"
    try:
        with _quiet():
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            size = list(reader.GetSize())
    except (RuntimeError, MemoryError) as error:
        raise ScanError(path, broken, "export the scan again") from error
    if len(size) == 4 and size[3] == 1:
        reader.SetExtractSize([*size[:3], 0])
        size = size[:3]
    if len(size) != 3 or min(size) < 2 or reader.GetNumberOfComponents() != 1:
        shape = " x ".join(str(n) for n in size)
        problem = f"is {shape} with {reader.GetNumberOfComponents()} values a voxel, not a 3D scan"
        raise ScanError(path, problem, "give one 3D volume in HU")
    if np.prod(size, dtype=np.float64) > _MOST_VOXELS:
        raise ScanError(path, f"{np.prod(size):.3g} voxels do not fit into memory", "crop the scan")
    try:
        with _quiet():
            image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise ScanError(path, broken, "export the scan again") from error
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    if not np.isfinite(matrix).all() or not 1e-9 < abs(np.linalg.det(matrix[:3, :3])) < 1e9:
        raise ScanError(path, "its voxel spacing is zero or not a number", "export the scan again")
    return Scan(
        Volume(_compact(path, sitk.GetArrayViewFromImage(image)), matrix), tuple(notes), path.name
    )


def _compact(path: Path, stack: NDArray[np.generic]) -> NDArray[np.int16] | NDArray[np.float32]:
    """(K, J, I) of any type -> (I, J, K) int16 where that is exact, else float32."""
    if stack.dtype.kind not in "iuf":
        raise ScanError(path, f"holds {stack.dtype} values, not HU", "give one 3D volume in HU")
    whole = True
    for layer in stack:
        if stack.dtype.kind == "f":
            bad = int(np.count_nonzero(~np.isfinite(layer)))
            if bad:
                bad = sum(int(np.count_nonzero(~np.isfinite(each))) for each in stack)
                problem = f"{bad} voxels are not numbers"
                raise ScanError(path, problem, "fill them with -1000 (air) and export again")
        whole = whole and bool(
            layer.min() >= -32768 and layer.max() <= 32767 and np.all(layer == np.rint(layer))
        )
    grid = np.ascontiguousarray(stack.transpose(2, 1, 0))
    return grid.astype(np.int16, copy=False) if whole else grid.astype(np.float32, copy=False)


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume as compressed NRRD that ``read_scan`` gives back exactly.

    int16 where all values are whole numbers in range, else float32.
    Raises ValueError for another file ending or a sheared grid, which the format's reader
    cannot hold.
    """
    if path.suffix.lower() != ".nrrd":
        raise ValueError(f"volumes are written as .nrrd, not {path.name}")
    spacing = volume.spacing_mm
    direction = volume.voxel_to_world[:3, :3] / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-6):
        raise ValueError("a sheared grid cannot be written as NRRD: resample it first")
    stack = volume.volume_hu.transpose(2, 1, 0)
    image = sitk.GetImageFromArray(_compact(path, stack).transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(volume.voxel_to_world[:3, 3].tolist())
    with _quiet():
        sitk.WriteImage(image, str(path), useCompression=True)

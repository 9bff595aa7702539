"""From a scan or a surface to bones in a bank: read, isolate, measure, keep."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trimesh
from numpy.typing import NDArray

from osteoprint.bank.records import BoneRecord, NewBone
from osteoprint.bank.store import Bank
from osteoprint.ct.isolation import IsolatedBone, isolate_bones
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.reading import Scan, read_scan, write_volume
from osteoprint.ct.series import interpolate, position_mm
from osteoprint.ct.surface import check_surface, read_surface, surface_from_mask
from osteoprint.ct.volume import AIR_HU, Volume
from osteoprint.errors import InputError, ScanError
from osteoprint.frames import AnatomicalFrame, Side, anatomical_frame

SURFACES = {".ply", ".stl", ".obj"}
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
# A surface becomes a scan with this many voxels along it: 1 mm for a human femur.
_VOXELS_ALONG = 450
_SIDE_IN_NAME = re.compile(r"[ _.-](l|r|left|right)$", re.IGNORECASE)

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class IntakeSettings:
    """What the user knows of the bones, and how to treat a damaged scan.

    Attributes
    ----------
    bone : which bone the source holds; surfaces are taken for femora where it is None.
    side, individual, name : None where unknown; a scan of several bones adds bone and side
        to the name.
    repair : replace missing and damaged slices by interpolation.
    series : the DICOM series to take where a folder holds several.
    """

    bone: str | None = None
    side: Side | None = None
    individual: str | None = None
    name: str | None = None
    repair: bool = False
    series: str | None = None


@dataclass(frozen=True)
class Intake:
    """What became of one source: the bones, which of them are new, and remarks on the scan."""

    bones: list[tuple[BoneRecord, bool]]
    warnings: list[str]


def take_in(
    bank: Bank, source: Path, settings: IntakeSettings, progress: Progress = lambda *_: None
) -> Intake:
    """Read one source and keep its bones.

    All bones of a source are found before the first is written. Raises ScanError or
    InputError, naming the source, and then leaves the bank as it was.
    """
    if not source.exists():
        raise ScanError(source, "does not exist", "check the path")
    no_remarks: list[str] = []
    if source.is_file() and source.suffix.lower() in SURFACES:
        found, warnings = [_from_surface(source, settings)], no_remarks
    elif source.is_dir() or source.name.lower().endswith(VOLUMES):
        found, warnings = _from_scan(source, settings, progress)
    else:
        raise ScanError(
            source,
            "is neither a folder with a DICOM series nor a volume nor a surface",
            f"give a folder, or a file ending in {', '.join((*VOLUMES, *sorted(SURFACES)))}",
        )
    return Intake([bank.add_bone(bone) for bone in found], warnings)


def _from_surface(source: Path, settings: IntakeSettings) -> NewBone:
    """One bone from a closed surface; its scan is made by the phantom model."""
    surface = read_surface(source)
    warnings = check_surface(surface, source)
    stem = source.stem
    individual, side = settings.individual, settings.side
    match = _SIDE_IN_NAME.search(stem)
    if match and individual is None:
        individual = stem[: match.start()]
        warnings.append(f"individual '{individual}' taken from the file's name")
    kind = settings.bone or "femur"
    frame = _frame(source, surface, kind, side)
    voxel_mm = frame.length_mm / _VOXELS_ALONG
    volume = volume_from_surface(surface, voxel_mm=voxel_mm, bone_to_world=frame.bone_to_world)
    return NewBone(
        name=settings.name or stem,
        individual=individual or stem,
        surface=surface,
        length_mm=frame.length_mm,
        bone_to_world=frame.bone_to_world,
        bone=kind,
        side=side or frame.side,
        volume=_writer(volume),
        warnings=(*warnings, *frame.warnings, *_side_doubt(side, frame)),
        source=str(source),
    )


def _from_scan(
    source: Path, settings: IntakeSettings, progress: Progress
) -> tuple[list[NewBone], list[str]]:
    """Every whole bone of a CT scan."""
    progress("Reading the scan", 0, 1)
    scan = read_scan(source, repair=settings.repair, series=settings.series)
    progress("Reading the scan", 1, 1)
    # A damaged slice would cut every bone in two: bones are looked for in a mended copy.
    isolated = isolate_bones(
        _mended(scan), progress=lambda what, done: progress("Finding bones", done, 1.0)
    )
    whole = [b for b in isolated if b.both_ends]
    wanted = [b for b in whole if settings.bone in (None, b.kind) or b.kind is None]
    if settings.side is not None:
        wanted = [b for b in wanted if b.side in (None, settings.side)]
    if not wanted:
        raise ScanError(
            source,
            f"holds no whole {settings.bone or 'bone'} ({len(isolated)} cut off or other)",
            "give a scan that shows the bone from end to end",
        )
    person = settings.individual or _stem(source)
    base = settings.name or _stem(source)
    bones = []
    for index, bone in enumerate(wanted):
        remarks = _unmend(scan, bone)
        surface = surface_from_mask(bone.mask, bone.voxel_to_world, volume_hu=_around(scan, bone))
        kind = settings.bone or bone.kind or "bone"
        side = settings.side or bone.side
        name = " ".join([base, kind, *([side.value] if side else [])])
        frame = _frame(source, surface, kind, side)
        bones.append(
            NewBone(
                name=base if len(wanted) == 1 else name,
                individual=person,
                surface=surface,
                length_mm=frame.length_mm,
                bone_to_world=frame.bone_to_world,
                bone=kind,
                side=side or frame.side,
                volume=_writer(bone.volume),
                warnings=(
                    *bone.warnings,
                    *remarks,
                    *frame.warnings,
                    *_side_doubt(side, frame),
                ),
                source=str(source),
            )
        )
        progress("Making surfaces", index + 1, len(wanted))
    partial = len(isolated) - len(whole)
    warnings = list(scan.warnings)
    if partial:
        warnings.append(f"{partial} bones are cut off by the scan's border and were left out")
    return bones, warnings


def _mended(scan: Scan) -> Volume:
    """The scan with its damaged slices interpolated; the scan itself where there are none."""
    if not scan.damaged:
        return scan.volume
    grid = scan.volume.volume_hu.copy()
    interpolate(grid.transpose(2, 1, 0), list(scan.damaged))
    return Volume(grid, scan.volume.voxel_to_world)


def _around(scan: Scan, bone: IsolatedBone) -> NDArray[Any]:
    """The scan's own HU on the grid of the bone, mended, for the edges of its surface."""
    high = tuple(o + n for o, n in zip(bone.offset, bone.mask.shape, strict=True))
    crop = scan.volume.crop(bone.offset, (high[0], high[1], high[2])).volume_hu
    places = [k - bone.offset[2] for k in scan.damaged]
    inner = [k for k in places if 0 < k < crop.shape[2] - 1]
    if inner:
        crop = crop.copy()
        interpolate(crop.transpose(2, 1, 0), inner)
    return crop


def _unmend(scan: Scan, bone: IsolatedBone) -> list[str]:
    """Put the scan's own values back where only the search for bones needed better ones.

    Changes the bone's volume in place. Repairing a scan is the user's decision; returns the
    remark that says so.
    """
    grid, remarks = bone.volume.volume_hu, []
    for k in scan.damaged:
        place = k - bone.offset[2]
        if not 0 <= place < grid.shape[2]:
            continue
        i, j, _ = bone.offset
        own = scan.volume.volume_hu[i : i + grid.shape[0], j : j + grid.shape[1], k]
        kept = grid[:, :, place] > AIR_HU + 1
        grid[:, :, place][kept] = own[kept]
        remarks.append(
            f"crosses the damaged slice at {position_mm(scan.volume.voxel_to_world, k):g} mm: its "
            "outline there is interpolated, its grey values are the scan's; --repair replaces them"
        )
    return remarks


def _frame(source: Path, surface: trimesh.Trimesh, kind: str, side: Side | None) -> AnatomicalFrame:
    """The bone's axes, or the error under the source's own name."""
    try:
        return anatomical_frame(surface.vertices, surface.faces, bone=kind, side=side)
    except InputError as error:
        raise ScanError(source, error.problem, error.fix) from None


def _side_doubt(told: Side | None, frame: AnatomicalFrame) -> list[str]:
    """A remark where the shape says another side than the user."""
    if told is not None and frame.side is not None and frame.side is not told:
        return [f"said to be {told}, but its shape is that of a {frame.side} bone"]
    return []


def _writer(volume: Volume) -> Callable[[Path], None]:
    return lambda path: write_volume(volume, path)


def _stem(source: Path) -> str:
    """The source's name without its endings."""
    name = source.resolve().name
    for ending in sorted(VOLUMES, key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name

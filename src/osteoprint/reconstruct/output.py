"""Surfaces out: PLY, STL, GLB and DICOM, in millimetres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.ct.encapsulated import DicomLabels, stl_to_dicom
from osteoprint.ct.surface import surface_from_bytes
from osteoprint.errors import InputError

Floats = NDArray[np.float64]

SURFACE_FORMATS = (".ply", ".stl", ".glb", ".dcm")
# The darkest colour of a surface coloured by standard deviations.
TOP_MM = 2.0


def write_surface(
    surface: trimesh.Trimesh, path: Path, *, labels: DicomLabels | None = None
) -> None:
    """Write a surface in the format of its ending; the file appears whole or not at all.

    What was written is read back from memory first: it must be one closed manifold, wound
    outwards, after its coordinates were rounded to the 32 bits of these formats. GLB says
    metres by its standard; the vertices are scaled so that viewers show true size. DICOM is
    an Encapsulated STL object, in mm.

    Parameters
    ----------
    surface : mm.
    path : where to; its ending says how.
    labels : whom a DICOM object belongs to; other formats do not hold it.

    Raises InputError for an unknown ending or a folder that cannot be written, ScanError for
    a surface that is not closed, ValueError for labels that are no valid values.
    """
    ending = path.suffix.lower()
    if ending not in SURFACE_FORMATS:
        raise InputError(path, "is no surface format", f"end it in {', '.join(SURFACE_FORMATS)}")
    mm_per_unit = 1000.0 if ending == ".glb" else 1.0
    kind = "stl" if ending == ".dcm" else ending[1:]
    mesh = surface
    if mm_per_unit != 1.0:
        mesh = surface.copy()
        mesh.vertices = surface.vertices / mm_per_unit
    exported = mesh.export(file_type=kind)
    content = exported if isinstance(exported, bytes) else str(exported).encode()
    surface_from_bytes(content, kind, path, mm_per_unit)
    if ending == ".dcm":
        content = stl_to_dicom(content, labels)
    write_whole(path, content)


def coloured(surface: trimesh.Trimesh, deviation_mm: Floats | None) -> trimesh.Trimesh:
    """The surface coloured by how well each point is known, for formats that keep colours.

    From light (sure) to dark red at TOP_MM and more; PLY keeps the deviations themselves too,
    as a property ``deviation_mm`` of its vertices. Without deviations, as it is.
    """
    if deviation_mm is None:
        return surface
    level = np.clip(deviation_mm / TOP_MM, 0.0, 1.0)[:, None]
    scale = np.array([[245, 240, 225], [247, 190, 110], [215, 90, 50], [120, 15, 35]])
    at = np.linspace(0.0, 1.0, len(scale))
    colours = np.stack([np.interp(level[:, 0], at, scale[:, k]) for k in range(3)], axis=1)
    out = surface.copy()
    out.visual = trimesh.visual.ColorVisuals(out, vertex_colors=np.round(colours).astype(np.uint8))
    out.vertex_attributes["deviation_mm"] = deviation_mm.astype(np.float32)
    return out


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that a user asked for; it appears whole or not at all.

    Raises InputError where the folder cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            path, f"cannot be written ({error.strerror})", "name a folder you may write to"
        ) from None

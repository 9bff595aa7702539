"""Surfaces out: PLY, STL, GLB, in millimetres."""

from __future__ import annotations

from pathlib import Path

import trimesh

from osteoprint.errors import InputError

SURFACE_FORMATS = (".ply", ".stl", ".glb")


def write_surface(surface: trimesh.Trimesh, path: Path) -> None:
    """Write a surface in the format of its ending; the file appears whole or not at all.

    GLB says metres by its standard; the vertices are scaled so that viewers show true size.
    Raises InputError for an unknown ending or a folder that cannot be written.
    """
    ending = path.suffix.lower()
    if ending not in SURFACE_FORMATS:
        raise InputError(path, "is no surface format", f"end it in {', '.join(SURFACE_FORMATS)}")
    mesh = surface
    if ending == ".glb":
        mesh = surface.copy()
        mesh.vertices = surface.vertices * 1e-3
    content = mesh.export(file_type=ending[1:])
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content if isinstance(content, bytes) else str(content).encode())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            path, f"cannot be written ({error.strerror})", "name a folder you may write to"
        ) from None

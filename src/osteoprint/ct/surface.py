"""Mask or HU level -> one closed triangle mesh; and surfaces that users bring.

A bone's surface here is a single shell: closed, two faces at every edge, wound so that the
normals point outwards, without inner cavities, in LPS mm.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes

from osteoprint.ct.volume import Volume
from osteoprint.errors import ScanError
from osteoprint.frames import apply

Floats = NDArray[np.float64]

_BLUR_VOXELS = 0.8  # turns stairs into slopes
_REACH_VOXELS = 2.5  # how far from the mask's outline the true edge is looked for
_MOST_SHIFT_VOXELS = 1.5
_LEAST_EDGE_HU = 150.0  # between the cortex and what lies outside it; less is no edge to trust
_SMALLEST_MM, _LARGEST_MM = 10.0, 2000.0
_LARGEST_FILE = 2_000_000_000
_KINDS = ("ply", "stl", "obj", "glb", "dcm")


def surface_from_mask(
    mask: NDArray[np.bool_],
    voxel_to_world: Floats,
    *,
    volume_hu: NDArray[np.float32] | NDArray[np.int16] | None = None,
    taubin_rounds: int = 10,
) -> trimesh.Trimesh:
    """The outer surface of a mask's largest piece.

    Parameters
    ----------
    mask : (I, J, K) bool; inner cavities are filled.
    voxel_to_world : (4, 4) index -> LPS mm; left-handed and sheared ones are allowed.
    volume_hu : (I, J, K), the scan on the same grid. If given, every vertex is moved along
        its normal to where the HU fall to half between cortex and outside (at most 1.5
        voxels): the edge itself, independent of the threshold that made the mask.
    taubin_rounds : smoothing that does not shrink (Taubin 1995); 0 switches it off.

    Returns a closed, outward oriented mesh in LPS mm; without ``volume_hu`` it encloses the
    volume of the mask's voxels.
    Raises ValueError for an empty mask, a wrong shape, or a mask that has no closed surface.
    """
    if mask.ndim != 3 or not mask.any():
        raise ValueError("a surface needs a 3D mask that is not empty")
    if volume_hu is not None and volume_hu.shape != mask.shape:
        raise ValueError(f"volume_hu {volume_hu.shape} and mask {mask.shape} differ in shape")
    whole = np.pad(_one_body(mask), 4)
    # Distances in mm, not occupancy: between thick slices they still slope the right way.
    spacing = np.linalg.norm(voxel_to_world[:3, :3], axis=0)
    inside = ndimage.distance_transform_edt(whole, sampling=spacing).astype(np.float32)
    inside -= ndimage.distance_transform_edt(~whole, sampling=spacing).astype(np.float32)
    vertices, faces = _isosurface(ndimage.gaussian_filter(inside, _BLUR_VOXELS), 0.0)
    mesh = _in_world(vertices - 4.0, faces, voxel_to_world)
    if volume_hu is not None:
        _snap_to_edge(mesh, volume_hu, voxel_to_world)
    if taubin_rounds:
        trimesh.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.53, iterations=2 * taubin_rounds)
    if volume_hu is None:
        # Blurring pulls a round surface in; back to the volume of the voxels.
        voxel_mm3 = abs(float(np.linalg.det(voxel_to_world[:3, :3])))
        lost = np.count_nonzero(whole) * voxel_mm3 - mesh.volume
        mesh.vertices = mesh.vertices + mesh.vertex_normals * (lost / mesh.area)
    return mesh


def surface_from_level(volume: Volume, level_hu: float) -> trimesh.Trimesh:
    """The outer surface of the largest piece brighter than a level, cavities filled.

    Sub-voxel exact where the HU rise linearly through the level, as they do at a blurred
    edge. For scans of one bone, such as phantoms; a scan of a patient needs isolation first.

    Returns a closed, outward oriented mesh in LPS mm.
    Raises ValueError if nothing is brighter than the level.
    """
    bright = volume.volume_hu > level_hu
    if not bright.any():
        raise ValueError(f"nothing is brighter than {level_hu} HU")
    body = _one_body(bright)
    where = ndimage.find_objects(body.astype(np.uint8))[0]
    # Three voxels around the piece: the outer side of its edge, then a floor that closes it.
    low = [max(s.start - 2, 0) for s in where]
    near = tuple(slice(a, s.stop + 2) for a, s in zip(low, where))
    body, hu = body[near], volume.volume_hu[near].astype(np.float32)
    hu[body & (hu <= level_hu)] = level_hu + 200.0  # marrow
    hu[~body & (hu > level_hu)] = level_hu - 1.0  # other pieces
    field = np.pad(hu, 1, constant_values=min(float(hu.min()), level_hu - 200.0))
    vertices, faces = _isosurface(field, level_hu)
    return _in_world(vertices - 1.0 + np.array(low), faces, volume.voxel_to_world)


def _one_body(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece (voxels joined by faces), its cavities filled."""
    labels, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = labels == sizes.argmax()
    return np.asarray(ndimage.binary_fill_holes(mask))


def _isosurface(field: NDArray[np.float32], level: float) -> tuple[Floats, NDArray[np.int64]]:
    """Marching cubes, nudged off voxels that lie exactly on the level; the largest shell."""
    span = float(field.max() - field.min())
    for nudge in (0.0, 1e-4, -1e-4, 1e-3, -1e-3, 1e-2, -1e-2):
        vertices, faces, _, _ = marching_cubes(field, level + nudge * span, allow_degenerate=False)
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        shells = trimesh.graph.connected_components(
            mesh.face_adjacency, nodes=np.arange(len(faces))
        )
        shell = trimesh.Trimesh(vertices, faces[max(shells, key=len)], process=False)
        shell.remove_unreferenced_vertices()
        if shell.is_watertight and shell.is_winding_consistent and _manifold(shell):
            return np.asarray(shell.vertices, np.float64), np.asarray(shell.faces, np.int64)
    raise ValueError("the mask or level has no closed surface")


def _manifold(mesh: trimesh.Trimesh) -> bool:
    """True if every edge has two faces, and the faces at every vertex form one fan."""
    if len(mesh.edges) != 2 * len(mesh.edges_unique):
        return False
    # Euler: at a closed fan, the link of a vertex is one cycle. Two fans that meet in one
    # vertex show as a vertex whose adjacent faces fall into two groups.
    corner = mesh.faces.ravel()
    order = np.arange(len(corner))
    pairs = mesh.face_adjacency
    shared = mesh.face_adjacency_edges
    at = []
    for side in range(2):
        a = pairs[:, 0] * 3 + (mesh.faces[pairs[:, 0]] == shared[:, side, None]).argmax(axis=1)
        b = pairs[:, 1] * 3 + (mesh.faces[pairs[:, 1]] == shared[:, side, None]).argmax(axis=1)
        at.append(np.stack([a, b], axis=1))
    fans = trimesh.graph.connected_component_labels(np.concatenate(at), node_count=len(order))
    return int(fans.max()) + 1 == len(np.unique(corner))


def _in_world(
    vertices: Floats, faces: NDArray[np.int64], voxel_to_world: Floats
) -> trimesh.Trimesh:
    """Vertices in voxels -> LPS mm, wound outwards whatever the handedness of the grid."""
    mesh = trimesh.Trimesh(apply(voxel_to_world, vertices), faces, process=False)
    if mesh.volume < 0:
        mesh.invert()
    return mesh


def _snap_to_edge(
    mesh: trimesh.Trimesh, volume_hu: NDArray[np.generic], voxel_to_world: Floats
) -> None:
    """Move each vertex along its normal to the half-level of its own HU edge."""
    voxel_mm = float(np.linalg.norm(voxel_to_world[:3, :3], axis=0).min())
    steps = np.linspace(-_REACH_VOXELS, _REACH_VOXELS, 41)
    normals: Floats = np.array(mesh.vertex_normals, dtype=np.float64)
    start: Floats = np.array(mesh.vertices, dtype=np.float64)
    world_to_voxel = np.asarray(np.linalg.inv(voxel_to_world), dtype=np.float64)
    profile = np.empty((len(start), len(steps)), dtype=np.float32)
    for n, step in enumerate(steps):
        at = apply(world_to_voxel, start + normals * (step * voxel_mm))
        ndimage.map_coordinates(
            volume_hu, at.T, output=profile[:, n], order=1, mode="nearest", prefilter=False
        )
    shift, known = _half_level(profile, steps)
    shift = np.clip(shift, -_MOST_SHIFT_VOXELS, _MOST_SHIFT_VOXELS)
    mesh.vertices = start + normals * (_spread(mesh, shift, known) * voxel_mm)[:, None]


def _half_level(profile: NDArray[np.float32], steps: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """(n,) where each profile falls through its half-level, and whether it does at all.

    The peak is sought inside and one voxel outside the outline, the foot outside it.
    """
    rows = np.arange(len(profile))
    peak_at = profile[:, steps <= 1.0].argmax(axis=1)
    peak = profile[rows, peak_at]
    beyond = np.arange(len(steps)) >= peak_at[:, None]
    foot = np.where(beyond, profile, np.inf).min(axis=1)
    half = (peak + foot) / 2
    below = beyond & (profile < half[:, None])
    first = below.argmax(axis=1)
    known = below.any(axis=1) & (peak - foot > _LEAST_EDGE_HU) & (first > 0)
    before = np.maximum(first - 1, 0)
    drop = profile[rows, before] - profile[rows, first]
    part = np.where(known, (profile[rows, before] - half) / np.maximum(drop, 1e-3), 0.0)
    return steps[before] + np.clip(part, 0, 1) * (steps[1] - steps[0]), known


def _spread(mesh: trimesh.Trimesh, values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Smooth values over the surface; vertices without a value take their neighbours'."""
    edges = np.asarray(mesh.edges_unique)
    value, weight = np.where(known, values, 0.0), known.astype(np.float64)
    ends, others = np.concatenate([edges, edges[:, ::-1]]).T
    count = len(values)
    for _ in range(6):
        value, weight = (
            v + np.bincount(ends, v[others], count) / np.bincount(ends, minlength=count)
            for v in (value, weight)
        )
    return np.asarray(value / np.maximum(weight, 1e-9))


def read_surface(path: Path) -> trimesh.Trimesh:
    """Read a bone's surface from a PLY, STL, OBJ or GLB file, or a DICOM Encapsulated STL.

    Coordinates are taken as LPS mm and never scaled, but for GLB, which is in metres by its
    standard, and for DICOM, which names its unit. Equal vertices are merged (STL has no
    others) and the faces wound outwards.

    Returns a mesh that passes ``check_surface``. Raises ScanError for everything else.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in _KINDS:
        raise ScanError(
            path, "not a surface file", "give a PLY, STL, OBJ, GLB or DICOM (.dcm) file"
        )
    if not path.is_file():
        raise ScanError(path, "there is no such file", "check the path")
    size = path.stat().st_size
    if size == 0:
        raise ScanError(path, "the file is empty", "export the surface again")
    if size > _LARGEST_FILE:
        raise ScanError(path, "the surface is larger than 2 GB", "reduce its number of faces")
    if kind == "dcm":
        # DICOM has its own module, which is slow to import.
        from osteoprint.ct.encapsulated import stl_from_dicom

        content, mm_per_unit = stl_from_dicom(path)
        return surface_from_bytes(content, "stl", path, mm_per_unit)
    return surface_from_bytes(path.read_bytes(), kind, path, 1000.0 if kind == "glb" else 1.0)


def surface_from_bytes(
    content: bytes, kind: str, source: str | Path, mm_per_unit: float = 1.0
) -> trimesh.Trimesh:
    """The surface in the bytes of a file: what :func:`read_surface` does after reading them.

    Parameters
    ----------
    content : of a whole file.
    kind : "ply", "stl", "obj" or "glb".
    source : what to call it in messages.
    mm_per_unit : what one unit of its coordinates is in mm.

    Returns a mesh in mm that passes ``check_surface``. Raises ScanError for everything else.
    """
    damaged = ScanError(
        source, f"not a readable {kind.upper()} surface", "export the surface again"
    )
    if kind == "glb" and not _glb_holds_what_it_says(content):
        raise damaged
    try:
        # From memory, so that nothing a file refers to is opened.
        loaded = trimesh.load(BytesIO(content), file_type=kind, process=False)
        mesh = loaded.to_geometry() if isinstance(loaded, trimesh.Scene) else loaded
    except (Exception, RecursionError) as error:
        # trimesh's parsers raise whatever the broken bytes lead them to.
        raise damaged from error
    if not isinstance(mesh, trimesh.Trimesh):
        raise ScanError(source, "holds points or lines but no faces", "export a triangle mesh")
    _refuse_unusable(mesh, source)
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if mm_per_unit != 1.0:
        vertices = vertices * mm_per_unit
    mesh = trimesh.Trimesh(vertices, mesh.faces, process=False)
    mesh.merge_vertices()
    mesh.update_faces(mesh.nondegenerate_faces(height=0.0))
    mesh.remove_unreferenced_vertices()
    if mesh.is_watertight:
        trimesh.repair.fix_normals(mesh)
    check_surface(mesh, source)
    return mesh


def _glb_holds_what_it_says(content: bytes) -> bool:
    """False for a GLB whose tables are larger than its bytes: they would fill the memory."""
    try:
        length = int.from_bytes(content[12:16], "little")
        tables = json.loads(content[20 : 20 + length])["accessors"]
        return sum(int(table["count"]) for table in tables) <= len(content)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _refuse_unusable(mesh: trimesh.Trimesh, source: str | Path) -> None:
    """Raise ScanError for a mesh whose arrays cannot even be measured."""
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    if len(faces) == 0 or len(vertices) == 0:
        raise ScanError(source, "has no faces", "export a triangle mesh")
    if not np.isfinite(vertices).all():
        bad = int((~np.isfinite(vertices)).any(axis=1).sum())
        raise ScanError(source, f"{bad} vertices are not numbers", "export the surface again")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ScanError(source, "faces refer to vertices that are missing", "export it again")


def check_surface(mesh: trimesh.Trimesh, source: str | Path) -> list[str]:
    """Refuse a surface that is not one closed body in mm; tell what is doubtful.

    Parameters
    ----------
    mesh : vertices taken as LPS mm.
    source : what to call it in messages.

    Returns warnings, one sentence each. Raises ScanError for holes, several bodies, edges
    with more than two faces, faces wound inconsistently or inwards, a size that cannot be a
    bone's in mm, no faces, or vertices that are not numbers.
    """
    _refuse_unusable(mesh, source)
    diagonal = float(np.linalg.norm(np.ptp(mesh.vertices[np.unique(mesh.faces)], axis=0)))
    if not _SMALLEST_MM <= diagonal <= _LARGEST_MM:
        guess = "metres or centimetres" if diagonal < _SMALLEST_MM else "micrometres"
        raise ScanError(
            source,
            f"is {diagonal:.4g} mm across if its unit is mm: perhaps it is in {guess}",
            "scale it to millimetres",
        )
    uses = np.bincount(mesh.edges_unique_inverse)
    if np.any(uses == 1):
        problem = f"has holes: {int((uses == 1).sum())} edges with a face on one side only"
        raise ScanError(source, problem, "close them")
    if np.any(uses > 2):
        problem = f"is not a manifold: {int((uses > 2).sum())} edges with more than two faces"
        raise ScanError(source, problem, "repair it")
    bodies = len(
        trimesh.graph.connected_components(mesh.face_adjacency, nodes=np.arange(len(mesh.faces)))
    )
    if bodies > 1:
        raise ScanError(source, f"holds {bodies} separate shells", "give one file for each bone")
    if not _manifold(mesh):
        raise ScanError(source, "touches itself in single vertices", "repair it")
    if not mesh.is_winding_consistent:
        raise ScanError(source, "its faces are wound inconsistently", "make its normals consistent")
    if mesh.volume <= 0:
        raise ScanError(source, "is inside out", "flip its normals")
    warnings = []
    if len(mesh.faces) < 1000:
        warnings.append(f"a coarse surface: {len(mesh.faces)} faces")
    return warnings

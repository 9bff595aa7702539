"""Surfaces for a page: thinned, packed into a few bytes, and drawn once for those without WebGL."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import igl
import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from osteoprint.shape.surface_index import SurfaceIndex
from osteoprint.study.figures import data_uri, distance_colours
from osteoprint.study.overlay import outlined_films
from osteoprint.study.rebuilding import RebuildStudy
from osteoprint.study.whole_way import StudyResult

# All surfaces of a page share this many triangles, so that a page stays a few megabytes.
_ALL_TRIANGLES = 130_000
_MOST_TRIANGLES = 7_000
_LEAST_TRIANGLES = 1_500
# Full scale of the packed coordinates.
PACKED_SCALE = 32_000.0


def solids(result: StudyResult) -> dict[str, Any]:
    """The unseen bones' true surfaces and the chosen bones on them, packed, at one colour scale.

    Returns
    -------
    ``top_mm`` : distance at the end of the colour scale; ``colours`` : its table;
    ``bones`` : per unseen bone ``truth`` and ``match`` as :func:`pack` makes them, the
    match with ``far`` (base64 uint8, share of ``top_mm`` per vertex); ``stills`` : data URIs.
    """
    count = 2 * len(result.alignments)
    budget = int(np.clip(_ALL_TRIANGLES / max(count, 1), _LEAST_TRIANGLES, _MOST_TRIANGLES))
    pairs = []
    for alignment in result.alignments:
        whole = result.experiment.unseen[alignment.unseen].surface
        truth, match = thinned(whole, budget), thinned(alignment.surface, budget)
        far = SurfaceIndex.build(whole).nearest(match.vertices)[0]
        pairs.append((truth, match, far))
    top = nice_top(max(float(np.percentile(far, 98)) for _, _, far in pairs))
    bones, stills = [], []
    for truth, match, far in pairs:
        centre = truth.bounds.mean(axis=0)
        size = float(np.abs(truth.vertices - centre).max()) * 1.15
        level = np.clip(far / top, 0.0, 1.0)
        packed = pack(match, centre, size)
        packed["far"] = base64_of(np.round(255 * level).astype(np.uint8))
        bones.append({"truth": pack(truth, centre, size), "match": packed})
        stills.append(still(match, level))
    return {"top_mm": top, "colours": distance_colours(), "bones": bones, "stills": stills}


def rebuilt_solids(study: RebuildStudy | None, truths: Sequence[trimesh.Trimesh]) -> dict[str, Any]:
    """The unseen bones' true surfaces and those rebuilt from films, packed, at one colour scale.

    As :func:`solids`; each match has ``sure`` besides, its points' standard deviations, and
    ``films`` are its films with its outline, as data URIs. Empty without a study.
    """
    if study is None:
        return {"bones": [], "stills": [], "films": [], "top_mm": 1.0}
    shown = [found[study.methods[0]] for found in study.rebuilt]
    budget = int(np.clip(_ALL_TRIANGLES / (2 * len(shown)), _LEAST_TRIANGLES, _MOST_TRIANGLES))
    bodies = []
    for rebuilt, whole in zip(shown, truths, strict=True):
        truth, match = thinned(whole, budget), thinned(rebuilt.surface, budget)
        far = SurfaceIndex.build(whole).nearest(match.vertices)[0]
        doubt, sure = rebuilt.found.doubt, None
        if doubt is not None:
            sure = doubt.deviation_mm[cKDTree(rebuilt.surface.vertices).query(match.vertices)[1]]
        bodies.append((truth, match, far, sure))
    top = nice_top(max(float(np.percentile(far, 98)) for _, _, far, _ in bodies))
    bones, stills = [], []
    for truth, match, far, sure in bodies:
        centre = truth.bounds.mean(axis=0)
        size = float(np.abs(truth.vertices - centre).max()) * 1.15
        packed = pack(match, centre, size)
        level = np.clip(far / top, 0.0, 1.0)
        packed["far"] = base64_of(np.round(255 * level).astype(np.uint8))
        if sure is not None:
            packed["sure"] = base64_of(np.round(255 * np.clip(sure / top, 0, 1)).astype(np.uint8))
        bones.append({"truth": pack(truth, centre, size), "match": packed})
        stills.append(still(match, level))
    films = [outlined_films(rebuilt.found) for rebuilt in shown]
    return {"bones": bones, "stills": stills, "films": films, "top_mm": top}


def nice_top(value_mm: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    if value_mm <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value_mm))
    for step in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0):
        if step * power >= value_mm:
            return step * power
    return 10.0 * power


def thinned(mesh: trimesh.Trimesh, triangles: int) -> trimesh.Trimesh:
    """The same surface with at most so many triangles, by quadric errors (Garland 1997)."""
    if len(mesh.faces) <= triangles:
        return mesh
    vertices, faces = igl.qslim(
        np.asfortranarray(mesh.vertices, dtype=np.float64),
        np.asfortranarray(mesh.faces, dtype=np.int32),
        triangles,
    )[:2]
    thin = trimesh.Trimesh(vertices, faces, process=False)
    # A surface that cannot be collapsed (cracks, double edges) comes back empty; it is shown whole.
    return thin if len(thin.faces) > triangles // 4 else mesh


def pack(mesh: trimesh.Trimesh, centre: NDArray[np.float64], size: float) -> dict[str, Any]:
    """Vertices as base64 int16 of (vertex - centre) / size, faces as base64 uint16 or uint32."""
    places = np.round((mesh.vertices - centre) / size * PACKED_SCALE)
    wide = np.uint16 if len(mesh.vertices) < 65_536 else np.uint32
    return {
        "at": base64_of(np.clip(places, -32_767, 32_767).astype("<i2")),
        "faces": base64_of(mesh.faces.astype(wide)),
        "wide": wide is np.uint32,
    }


def base64_of(values: NDArray[Any]) -> str:
    """An array's bytes, row by row, as base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def still(mesh: trimesh.Trimesh, level: NDArray[np.float64]) -> str:
    """Data URI of a picture of the surface from the front and from the side, coloured.

    Parameters
    ----------
    mesh : in its anatomical frame.
    level : (vertices,) place on the colour scale, 0...1.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    table = np.array(distance_colours()) / 255.0
    own = table[np.round(level[mesh.faces].mean(axis=1) * (len(table) - 1)).astype(int)]
    figure = Figure(figsize=(3.2, 4.6), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    left = 0.0
    # Anatomical axes: along the shaft, to the outer side, to the front.
    for right, depth in ((-1.0 * np.eye(3)[1], np.eye(3)[2]), (np.eye(3)[2], np.eye(3)[1])):
        across = mesh.vertices @ right
        flat = np.stack([across - across.min() + left, mesh.vertices[:, 0]], axis=1)
        normals = np.nan_to_num(mesh.face_normals)
        light = 0.35 + 0.65 * np.abs(normals @ (0.8 * depth + 0.4 * right + 0.45 * np.eye(3)[0]))
        order = np.argsort((mesh.vertices @ depth)[mesh.faces].mean(axis=1))
        shade = np.clip(own * light[:, None], 0.0, 1.0)[order]
        axes.add_collection(
            PolyCollection(flat[mesh.faces[order]], facecolors=shade, edgecolors=shade, lw=0.3)
        )
        left += float(np.ptp(across)) * 1.35
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return data_uri(Image.open(buffer))

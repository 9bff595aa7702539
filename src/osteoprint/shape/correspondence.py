"""The same point on every bone: a template laid onto a surface, vertex by vertex.

The template is placed (``placing``), then bent in stages. At each stage every vertex asks for
the point of the surface nearest to it in place and normal, every point of the surface asks for
a vertex likewise, and the template follows as far as a smooth motion can: the motion as a
whole, from the placed template, is kept smooth (not only its last step), so that vertices keep
their order and their distances along the shaft. At last they are brought onto the surface
itself, sliding on it only to keep the motion even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from osteoprint.ct.surface import check_surface
from osteoprint.frames import apply
from osteoprint.shape.distance import SurfaceDistance, surface_distance
from osteoprint.shape.placing import (
    Placement,
    Target,
    normals_at,
    place,
    similarity,
    vertex_normals,
)
from osteoprint.shape.surface_index import SurfaceIndex, barycentric
from osteoprint.shape.template import DETAIL, Template

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROUNDS = 3
FINAL_ROUNDS = 6
BACK_POINTS = 8000
# A surface further than this from the template, as a part of the length, draws it there.
UNREACHED = 0.0018
REACH_ROUNDS = 12
UNFOLD_ROUNDS = 20
# Of fitting the modes; and how many standard deviations along any of them are believed.
MODE_ROUNDS = 12
FARTHEST_MODE = 3.0


@dataclass(frozen=True, eq=False)
class Correspondence:
    """A template's vertices, found on a bone.

    Attributes
    ----------
    vertices : (n, 3) float64, mm, in the bone's own coordinates.
    faces : (m, 3) int64, the template's, wound outwards on ``vertices``.
    mirrored : the bone is of the other side than the template: the template was laid onto its
        mirror image.
    distance : from the registered template (estimate) to the bone (truth) and back.
    folds : number of folded triangles, see :func:`folded`.
    ok : nothing speaks against using it.
    reasons : what does, in words.
    """

    vertices: Floats
    faces: Ints
    mirrored: bool
    distance: SurfaceDistance
    folds: int
    ok: bool
    reasons: tuple[str, ...]

    @property
    def mesh(self) -> trimesh.Trimesh:
        """The registered template as a surface, mm, in the bone's coordinates."""
        return trimesh.Trimesh(self.vertices, self.faces, process=False)

    @property
    def on_template_side(self) -> Floats:
        """(n, 3) mm: the vertices of the bone, or of its mirror image if it was mirrored."""
        return self.vertices * [-1.0, 1.0, 1.0] if self.mirrored else self.vertices


def register(
    template: Template,
    surface: trimesh.Trimesh,
    *,
    mirrored: bool = False,
    source: str = "bone surface",
) -> Correspondence:
    """Find the template's vertices on a bone of any pose, size and triangulation.

    Parameters
    ----------
    template : of the same kind of bone.
    surface : one closed surface, mm, any pose.
    mirrored : the bone is of the other side than the template.
    source : what the messages call it.

    Returns
    -------
    The vertices and how good they are; look at ``ok`` before using them.

    Raises
    ------
    InputError : `surface` is not one closed body in mm.
    """
    check_surface(surface, source)
    target = Target.of(surface, template.length_mm, mirrored, source)
    placement = place(template, target)
    begun = _begun(template, target, placement)
    bent = _bent(template, target, begun)
    final = _reaching(template, target, _settled(template, target, begun, bent))
    final = _unfolded(template, target, final)
    vertices = apply(target.to_target, final)
    faces = template.faces[:, ::-1] if mirrored else template.faces
    distance = surface_distance(trimesh.Trimesh(vertices, faces, process=False), surface)
    folds = int(folded(final, template.faces, target.index).sum())
    reasons = _doubts(distance, folds, placement, template.length_mm)
    return Correspondence(vertices, faces, mirrored, distance, folds, not reasons, reasons)


def folded(vertices: Floats, faces: Ints, index: SurfaceIndex) -> NDArray[np.bool_]:
    """(m,) which triangles are folded over.

    A triangle is folded if its normal points away (by more than 90 degrees) from the mean of
    the normals of its own three vertices, or from the normal of the surface `index` nearest
    to its middle; also if it has no area.
    """
    triangles = vertices[faces]
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    around = vertex_normals(vertices, faces)[faces].sum(axis=1)
    there = normals_at(index, triangles.mean(axis=1))
    against = np.minimum((cross * around).sum(axis=1), (cross * there).sum(axis=1))
    return np.asarray(against <= 0)


def _begun(template: Template, target: Target, placement: Placement) -> Floats:
    """(n, 3) the template before it is bent: its most fitting member, or stretched at least."""
    if not len(template.modes):
        return apply(placement.affine, template.vertices)
    matrix, shape = placement.matrix, template.vertices
    slack = template.modes @ template.modes.T
    # As if a hundred places on the bone were each known to some millimetres.
    slack += np.eye(len(slack)) * len(shape) / 100 * (template.length_mm / 100) ** 2
    for _ in range(MODE_ROUNDS):
        goal = _wanted(template, target, apply(matrix, shape))
        matrix = similarity(shape, goal)
        gap = apply(np.asarray(np.linalg.inv(matrix), np.float64), goal) - template.vertices
        values = np.linalg.solve(slack, template.modes @ gap.ravel())
        values = np.clip(values, -FARTHEST_MODE, FARTHEST_MODE)
        shape = template.vertices + (values @ template.modes).reshape(-1, 3)
    return apply(matrix, shape)


def _bent(template: Template, target: Target, begun: Floats) -> Floats:
    """(n, 3) the template bent onto the target, coarse to fine."""
    motion = np.zeros_like(begun)
    for stage in range(len(DETAIL)):
        for _ in range(ROUNDS):
            vertices = begun + motion
            motion = template.smoothed(_wanted(template, target, vertices) - begun, stage)
    return begun + motion


def _wanted(template: Template, target: Target, vertices: Floats) -> Floats:
    """(n, 3) where each vertex should go: the mean of what it and the surface ask for."""
    normals = vertex_normals(vertices, template.faces)
    features = target.features(vertices, normals)
    spot = target.tree.query(features, workers=2)[1]
    own = _on_plane(vertices, target.points[spot], target.normals[spot], target.spacing)

    step = max(len(target.points) // BACK_POINTS, 1)
    goals, facing = target.points[::step], target.normals[::step]
    back = cKDTree(features).query(target.features(goals, facing), workers=2)[1]
    short = ((goals - vertices[back]) * facing).sum(axis=1)
    count = np.bincount(back, minlength=len(vertices))
    pull = np.stack([np.bincount(back, short * f, len(vertices)) for f in facing.T], axis=1)
    asked = vertices + pull / np.maximum(count, 1)[:, None]
    return np.asarray(np.where(count[:, None] > 0, (own + asked) / 2, own))


def _on_plane(points: Floats, spots: Floats, normals: Floats, reach: float) -> Floats:
    """(n, 3) the point nearest to each of `points` on a disc of radius `reach` about its spot."""
    gap = points - spots
    along = gap - (gap * normals).sum(axis=1, keepdims=True) * normals
    length = np.linalg.norm(along, axis=1, keepdims=True)
    return np.asarray(spots + along * np.minimum(1.0, reach / np.maximum(length, 1e-12)))


def _settled(template: Template, target: Target, begun: Floats, bent: Floats) -> Floats:
    """(n, 3) the vertices brought onto the surface, sliding on it to keep the motion even."""
    vertices = bent
    last = len(DETAIL) - 1
    for _ in range(FINAL_ROUNDS):
        on = target.index.nearest(vertices)[1]
        vertices = on + _along(target.index, on, begun + template.smoothed(on - begun, last) - on)
    return target.index.nearest(vertices)[1]


def _reaching(template: Template, target: Target, settled: Floats) -> Floats:
    """(n, 3) vertices drawn to what no triangle has reached: spurs, pits, hooks.

    Only there do they leave their even spacing, and only as long as nothing folds.
    """
    vertices = settled
    limit = UNREACHED * template.length_mm
    for _ in range(REACH_ROUNDS):
        index = SurfaceIndex.build(trimesh.Trimesh(vertices, template.faces, process=False))
        gap, near, faces = index.nearest(target.index.vertices)
        missed = gap > limit
        if not missed.any():
            break
        corners = index.faces[faces[missed]]
        weights = barycentric(vertices[corners], near[missed]) ** 2
        weights *= gap[missed, None]
        short = target.index.vertices[missed] - near[missed]
        count = np.bincount(corners.ravel(), weights.ravel(), len(vertices))
        pull = np.stack(
            [np.bincount(corners.ravel(), (weights * s[:, None]).ravel(), len(vertices))
             for s in short.T], axis=1)
        pull /= np.maximum(count, 1e-9)[:, None]
        moved = target.index.nearest(vertices + pull)[1]
        vertices = _unfolded(template, target, moved)
    return vertices


def _unfolded(template: Template, target: Target, vertices: Floats) -> Floats:
    """(n, 3) `vertices`, those around folded triangles moved between their neighbours."""
    for _ in range(UNFOLD_ROUNDS):
        bad = folded(vertices, template.faces, target.index)
        if not bad.any():
            break
        loose = np.zeros(len(vertices), bool)
        loose[template.faces[bad]] = True
        loose |= template.neighbours @ loose > 0
        middle = template.neighbours @ vertices
        relaxed = np.where(loose[:, None], (vertices + middle) / 2, vertices)
        vertices = np.where(loose[:, None], target.index.nearest(relaxed)[1], vertices)
    return vertices


def _along(index: SurfaceIndex, on: Floats, motion: Floats) -> Floats:
    """(n, 3) the part of `motion` that runs along the surface at the points `on`."""
    normals = normals_at(index, on)
    return np.asarray(motion - (motion * normals).sum(axis=1, keepdims=True) * normals)


def _doubts(
    distance: SurfaceDistance, folds: int, placement: Placement, length: float
) -> tuple[str, ...]:
    return ()

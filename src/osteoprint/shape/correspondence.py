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
from osteoprint.shape.doubts import MOST_STRAIN, MOST_WORST, doubts, folded, handles, strain
from osteoprint.shape.placing import (
    Placement,
    Target,
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
# A few bones, with spurs or hooks, succeed or fail by where the points that stand for them
# happen to lie; so many such choices are tried.
WAYS = 4
# A surface further than this from the template, as a part of the length, draws it there.
UNREACHED = 0.0018
# The least that counts, as a part of the distance between its vertices.
COARSE = 0.2
REACH_ROUNDS = 16
# Rounds without gain before it is given up.
PATIENCE = 4
UNFOLD_ROUNDS = 12
# While triangles are unfolded, their normals have this part of their usual say: enough to tell
# the two walls of a crease apart, too little to hold a fold in place.
LOOSE = 0.2
# What say the normals have when vertices settle. Without any, they slide least; with all of it,
# hooks are told from what lies beneath them; with some, a cavity behind a narrow mouth is
# passed over instead of drawing in what then folds. Tried in turn, as long as triangles are
# folded or more than so much is missed (mm², as a part of the squared length).
SETTLING = (0.0, 1.0, 0.4)
SPARED = 1e-4
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
    strain : how much the template was distorted, see :func:`strain`.
    ok : nothing speaks against using it.
    reasons : what does, in words.
    """

    vertices: Floats
    faces: Ints
    mirrored: bool
    distance: SurfaceDistance
    folds: int
    strain: float
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
    image = place(template, Target.of(surface, template.length_mm, not mirrored, source))
    best: Correspondence | None = None
    for way in range(WAYS):
        target = Target.of(surface, template.length_mm, mirrored, source, way)
        found = _laid(template, target, surface, mirrored, image)
        if best is None or _ill(found) < _ill(best):
            best = found
        # What is another bone, or lies otherwise, is so from every side.
        if found.ok or found.strain > MOST_STRAIN:
            break
    assert best is not None
    return best


def _laid(
    template: Template,
    target: Target,
    surface: trimesh.Trimesh,
    mirrored: bool,
    image: Placement,
) -> Correspondence:
    """The template laid onto a target; `image` is its placement on the mirror image."""
    placement = place(template, target)
    begun = _begun(template, target, placement)
    bent = _bent(template, target, begun)
    final = _finished(template, target, begun, bent)
    vertices = apply(target.to_target, final)
    faces = template.faces[:, ::-1] if mirrored else template.faces
    distance = surface_distance(trimesh.Trimesh(vertices, faces, process=False), surface)
    folds = int(folded(final, template.faces, target).sum())
    stretch = strain(template, final)
    worst = max(MOST_WORST * distance.diagonal_mm, COARSE * _spacing(template))
    reasons = doubts(distance, folds, stretch, placement, image, handles(surface), worst)
    return Correspondence(vertices, faces, mirrored, distance, folds, stretch, not reasons, reasons)


def _ill(found: Correspondence) -> tuple[int, float]:
    """Of two registrations of a bone that with the smaller value is better."""
    return found.folds, found.distance.hausdorff_mm


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
    spot = target.spots(vertices, normals)
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


def _finished(template: Template, target: Target, begun: Floats, bent: Floats) -> Floats:
    """(n, 3) the vertices on the surface, all of it reached, nothing folded: if it can be."""
    best, least = bent, (np.inf, np.inf)
    for weight in SETTLING:
        settled = _settled(template, target, begun, bent, weight)
        final, left = _reaching(template, target, settled)
        if left < least:
            best, least = final, left
        if least[0] == 0 and least[1] <= SPARED * template.length_mm**2:
            break
    return best


def _settled(
    template: Template, target: Target, begun: Floats, bent: Floats, weight: float
) -> Floats:
    """(n, 3) the vertices brought onto the surface, sliding on it to keep the motion even."""
    vertices = bent
    last = len(DETAIL) - 1
    for _ in range(FINAL_ROUNDS):
        on = _onto(template, target, vertices, weight)
        vertices = on + _along(target, on, begun + template.smoothed(on - begun, last) - on)
    return _onto(template, target, vertices, weight)


def _onto(template: Template, target: Target, vertices: Floats, weight: float) -> Floats:
    """(n, 3) each vertex on the surface, where it also faces its way.

    `weight` is how much of the usual say the normals have; 0 for the nearest point as such.
    """
    if weight == 0.0:
        return target.index.nearest(vertices)[1]
    spot = target.spots(vertices, vertex_normals(vertices, template.faces), weight)
    near = _on_plane(vertices, target.points[spot], target.normals[spot], target.spacing)
    return target.index.nearest(near)[1]


def _reaching(
    template: Template, target: Target, settled: Floats
) -> tuple[Floats, tuple[float, float]]:
    """(n, 3) vertices drawn to what no triangle has reached: spurs, pits, hooks; and what is
    left: the number of folded triangles, and what is missed (see :func:`_pull_of_missed`).

    Only there do they leave their even spacing. On the way triangles may fold; what is
    returned is the flattest of the ways, and of those as flat the one that misses least.
    """
    vertices, best = _unfolded(template, target, settled), settled
    least, idle = (np.inf, np.inf), 0
    for _ in range(REACH_ROUNDS):
        pull, missed = _pull_of_missed(template, target, vertices)
        folds = float(folded(vertices, template.faces, target).sum())
        if (folds, missed) < least:
            best, least, idle = vertices, (folds, missed), 0
        else:
            idle += 1
        if missed == 0.0 or idle > PATIENCE:
            break
        vertices = _onto(template, target, vertices + pull, LOOSE)
        vertices = _unfolded(template, target, vertices)
    return best, least


def _pull_of_missed(template: Template, target: Target, vertices: Floats) -> tuple[Floats, float]:
    """(n, 3) where the unreached parts of the target pull each vertex, and how much there is
    of them: the sum of the squares of the gaps, mm²."""
    index = SurfaceIndex.build(trimesh.Trimesh(vertices, template.faces, process=False))
    gap, near, faces = index.nearest(target.index.vertices)
    # What is smaller than its triangles no template can follow.
    missed = gap > max(UNREACHED * template.length_mm, COARSE * _spacing(template))
    gap, near = gap[missed], near[missed]
    corners = index.faces[faces[missed]]
    # Those far off, and near a vertex, have the most say in where it goes.
    weights = gap[:, None] * barycentric(vertices[corners], near) ** 2
    short = target.index.vertices[missed] - near
    at = corners.ravel()
    total = np.bincount(at, weights.ravel(), len(vertices))
    pull = [np.bincount(at, (weights * s[:, None]).ravel(), len(vertices)) for s in short.T]
    return np.stack(pull, axis=1) / np.maximum(total, 1e-9)[:, None], float(gap @ gap)


def _spacing(template: Template) -> float:
    """mm between neighbouring vertices, roughly."""
    return template.length_mm * float(np.sqrt(template.mass.mean()))


def _unfolded(template: Template, target: Target, vertices: Floats) -> Floats:
    """(n, 3) `vertices`, those around folded triangles moved between their neighbours.

    What does not come flat is given more room, again and again; the flattest is returned.
    """
    best, fewest = vertices, np.inf
    for turn in range(UNFOLD_ROUNDS):
        bad = folded(vertices, template.faces, target)
        if bad.sum() < fewest:
            best, fewest = vertices, bad.sum()
        if not bad.any():
            break
        loose = np.zeros(len(vertices), bool)
        loose[template.faces[bad]] = True
        for _ in range(1 + turn // 3):
            loose |= template.neighbours @ loose > 0
        relaxed = (vertices + template.neighbours @ vertices) / 2
        relaxed = np.where(loose[:, None], relaxed, vertices)
        relaxed = _onto(template, target, relaxed, LOOSE)
        vertices = np.where(loose[:, None], relaxed, vertices)
    return best


def _along(target: Target, on: Floats, motion: Floats) -> Floats:
    """(n, 3) the part of `motion` that runs along the surface at the points `on`."""
    normals = target.normals_at(on)
    return np.asarray(motion - (motion * normals).sum(axis=1, keepdims=True) * normals)

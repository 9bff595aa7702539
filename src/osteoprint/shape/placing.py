"""Where a template has to begin: the pose and the size in which it resembles a surface most.

Surfaces are compared by places and normals together: a point of the template belongs to the
nearest point of the target in six dimensions, so that the front of a shaft is never matched
with its back, nor a condyle with its neighbour. Many poses are tried on few points; the best
are followed, on more points, through a similarity and an affine map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from osteoprint.errors import InputError
from osteoprint.frames import AnatomicalFrame, anatomical_frame, apply, rigid
from osteoprint.shape.alignment import kabsch
from osteoprint.shape.distance import surface_points
from osteoprint.shape.surface_index import SurfaceIndex, barycentric
from osteoprint.shape.template import Template, principal_frame

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A normal that points elsewhere counts like this part of the length.
NORMAL_WEIGHT = 0.035
TARGET_POINTS = 16_000
COARSE_POINTS = 250
MIDDLE_POINTS = 1200
TURNS = 8
# Poses followed further, after the first glance; and of those to the end.
FOLLOWED = 5
FINISHED = 3
# None, and half a turn about each axis: diagonals of rotations.
HALF_TURNS = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


@dataclass(frozen=True, eq=False)
class Target:
    """A surface to be registered, turned to its principal axes and scaled to a template.

    Attributes
    ----------
    index : its surface there.
    vertex_normals : of its vertices, (v, 3).
    points, normals : (m, 3) spread evenly over it, and the directions it faces there.
    tree : of points and weighted normals, (m, 6).
    trees : such trees by what part of their weight the normals have; filled as they are needed.
    normal_weight : mm that stand for one unit of a normal.
    spacing : mm between neighbouring points, roughly.
    to_target : (4, 4) similarity (mirrored where asked) from there to the target's own mm.
    """

    index: SurfaceIndex
    vertex_normals: Floats
    points: Floats
    normals: Floats
    tree: cKDTree
    trees: dict[float, cKDTree]
    normal_weight: float
    spacing: float
    to_target: Floats

    @classmethod
    def of(
        cls,
        surface: trimesh.Trimesh,
        length_mm: float,
        mirrored: bool,
        source: str,
        way: int = 0,
    ) -> Target:
        """`surface`, mirrored if asked, its longest extent made `length_mm`.

        `way`, 0 to 3: as its principal axes lie, or half a turn about one of them. To geometry
        they are all the same; the points that stand for the surface are others.

        Raises InputError if it is empty, not finite or without area.
        """
        own = SurfaceIndex.build(surface, source)
        mirror = np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0, 1.0])
        # Of the surface itself, not of points drawn on it: the same however the bone lies.
        corners = own.vertices[own.faces]
        spread = np.concatenate([corners.reshape(-1, 3), corners.mean(axis=1)])
        shares = np.concatenate([np.repeat(own.areas, 3), 9 * own.areas])
        frame = principal_frame(apply(mirror, spread), shares)
        scale = length_mm / float(np.ptp(apply(frame @ mirror, own.vertices)[:, 0]))
        to_work = np.diag([*(scale * HALF_TURNS[way]), 1.0]) @ frame @ mirror
        faces = own.faces[:, ::-1] if mirrored else own.faces
        mesh = trimesh.Trimesh(apply(to_work, own.vertices), faces, process=False)
        index = SurfaceIndex.build(mesh, source)
        points = surface_points(index, TARGET_POINTS)
        at_vertices = vertex_normals(index.vertices, index.faces)
        normals = blended_normals(index, at_vertices, points)
        weight = NORMAL_WEIGHT * length_mm
        tree = cKDTree(np.hstack([points, weight * normals]))
        return cls(
            index,
            at_vertices,
            points,
            normals,
            tree,
            {1.0: tree},
            weight,
            float(np.sqrt(index.areas.sum() / TARGET_POINTS)),
            np.asarray(np.linalg.inv(to_work), np.float64),
        )

    def features(self, points: Floats, normals: Floats) -> Floats:
        """(k, 6) places and weighted normals."""
        return np.hstack([points, self.normal_weight * normals])

    def spots(self, points: Floats, normals: Floats, weight: float = 1.0) -> Ints:
        """(k,) which of the target's points are nearest in place and normal.

        `weight` is the normals' say, as a part of the usual; trees are built as asked for.
        """
        if weight not in self.trees:
            self.trees[weight] = cKDTree(self.features(self.points, weight * self.normals))
        asked = self.features(points, weight * normals)
        return np.asarray(self.trees[weight].query(asked, workers=2)[1])

    def normals_at(self, points: Floats) -> Floats:
        """(k, 3) unit normals of the surface nearest to `points`."""
        return blended_normals(self.index, self.vertex_normals, points)


@dataclass(frozen=True, eq=False)
class Placement:
    """How a template begins on a target.

    Attributes
    ----------
    matrix : (4, 4) similarity, template's frame to the target's working frame.
    affine : (4, 4) affine, likewise, fitted further.
    misfit : what is left between them in six dimensions, RMS both ways, mm at the
        template's size.
    runner_up : the same of the best start that led elsewhere; infinity if all led here.
    """

    matrix: Floats
    affine: Floats
    misfit: float
    runner_up: float


def blended_normals(index: SurfaceIndex, at_vertices: Floats, points: Floats) -> Floats:
    """(k, 3) unit normals of a surface nearest to `points`, blended between its vertices'."""
    _, near, faces = index.nearest(points)
    corners = index.faces[faces]
    weights = barycentric(index.vertices[corners], near)
    blended = np.einsum("nk,nkx->nx", weights, at_vertices[corners])
    return np.asarray(blended / np.maximum(np.linalg.norm(blended, axis=1, keepdims=True), 1e-12))


def vertex_normals(vertices: Floats, faces: Ints) -> Floats:
    """(n, 3) unit normals, each the mean of the faces around a vertex, weighted by area."""
    triangles = vertices[faces]
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(c, 3), len(vertices)) for c in cross.T], axis=1
    )
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


def place(template: Template, target: Target) -> Placement:
    """The best of many starts: anatomical frames, and principal axes in all their turns."""
    starts = _anatomical_starts(template, target) + _principal_starts(template)
    few = _Sketch.of(template, target, COARSE_POINTS)
    tried = _distinct([few.settled(start, 8) for start in starts])
    more = _Sketch.of(template, target, MIDDLE_POINTS)
    followed = _distinct([more.settled(m, 25) for m in tried[:FOLLOWED]])
    finished = [(m, *more.sheared(m, 15)) for m in followed[:FINISHED]]
    finished.sort(key=lambda t: t[2])
    matrix, affine, misfit = finished[0]
    others = [m for a, _, m in finished[1:] if _apart(a, matrix)]
    return Placement(matrix, affine, misfit, min(others, default=np.inf))


def _distinct(settled: list[tuple[Floats, float]]) -> list[Floats]:
    """Of poses and their misfits the poses, best first, without those alike a better one:
    else some that came to the same end would crowd out the one that came to another."""
    kept: list[Floats] = []
    for matrix, _ in sorted(settled, key=lambda t: t[1]):
        if all(_apart(matrix, other) for other in kept):
            kept.append(matrix)
    return kept


def _apart(first: Floats, second: Floats) -> bool:
    """Whether two similarities turn by more than 20 degrees against each other."""
    turn = first[:3, :3] @ np.linalg.inv(second[:3, :3])
    cosine = (np.trace(turn) / np.cbrt(np.linalg.det(turn)) - 1) / 2
    return bool(cosine < np.cos(np.radians(20)))


def _principal_starts(template: Template) -> list[Floats]:
    """Long axis on long axis, either way round, in all the turns about it."""
    own = principal_frame(template.vertices)
    starts = []
    for flip in (0.0, np.pi):
        for turn in 2 * np.pi / TURNS * np.arange(TURNS):
            swing = Rotation.from_euler("xy", [turn, flip]).as_matrix()
            starts.append(rigid(swing, np.zeros(3)) @ own)
    return starts


def _anatomical_starts(template: Template, target: Target) -> list[Floats]:
    """The anatomical frame of the target, for what it may be, where it has one."""
    starts = []
    for bone in dict.fromkeys((template.bone, "femur", "tibia", None)):
        try:
            frame: AnatomicalFrame = anatomical_frame(
                target.index.vertices, target.index.faces, bone=bone
            )
        except InputError:
            continue
        starts.append(frame.bone_to_world)
    return starts


@dataclass(frozen=True, eq=False)
class _Sketch:
    """Few points of a template and of a target, to be laid onto each other."""

    points: Floats
    normals: Floats
    target: Target
    goals: Floats
    goal_normals: Floats

    @classmethod
    def of(cls, template: Template, target: Target, count: int) -> _Sketch:
        index = SurfaceIndex.build(template.mesh, "template")
        points = surface_points(index, count)
        step = max(len(target.points) // count, 1)
        return cls(
            points,
            blended_normals(index, vertex_normals(index.vertices, index.faces), points),
            target,
            target.points[::step],
            target.normals[::step],
        )

    def settled(self, start: Floats, rounds: int) -> tuple[Floats, float]:
        """The similarity near `start` that fits best, and its misfit."""
        matrix = start
        misfit = np.inf
        for _ in range(rounds):
            source, goal, misfit = self.pairs(matrix)
            matrix = similarity(source, goal)
        return matrix, misfit

    def sheared(self, start: Floats, rounds: int) -> tuple[Floats, float]:
        """The affine map near `start` that fits best, and its misfit."""
        matrix, misfit = start, np.inf
        for _ in range(rounds):
            source, goal, misfit = self.pairs(matrix)
            matrix = np.eye(4)
            ones = np.hstack([source, np.ones((len(source), 1))])
            matrix[:3] = np.linalg.lstsq(ones, goal, rcond=None)[0].T
            if not np.linalg.det(matrix[:3, :3]) > 0:
                return start, np.inf
        return matrix, misfit

    def pairs(self, matrix: Floats) -> tuple[Floats, Floats, float]:
        """Points of the template and where they belong, both ways; RMS of what is left."""
        moved = apply(matrix, self.points)
        # Normals go with the inverse of the map.
        facing = self.normals @ np.linalg.inv(matrix[:3, :3])
        facing /= np.linalg.norm(facing, axis=1, keepdims=True)
        gap, there = self.target.tree.query(self.target.features(moved, facing))
        back_gap, back = cKDTree(self.target.features(moved, facing)).query(
            self.target.features(self.goals, self.goal_normals)
        )
        misfit = float(np.sqrt((np.mean(gap**2) + np.mean(back_gap**2)) / 2))
        source = np.concatenate([self.points, self.points[back]])
        goal = np.concatenate([self.target.points[there], self.goals])
        return source, goal, misfit


def similarity(source: Floats, goal: Floats) -> Floats:
    """(4, 4) rotation, size and translation that bring (n, 3) paired points closest together.

    Umeyama, IEEE TPAMI 1991;13:376.
    """
    turned = kabsch(source, goal)
    rotation = turned[:3, :3]
    middle, goal_middle = source.mean(axis=0), goal.mean(axis=0)
    arms = (source - middle) @ rotation.T
    scale = float(((goal - goal_middle) * arms).sum() / (arms**2).sum())
    return rigid(scale * rotation, goal_middle - scale * rotation @ middle)

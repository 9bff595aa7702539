"""What is known of a kind of bone before its films are seen.

How its surface varies (a statistical shape model), how much may remain beyond the model's
modes and how smoothly, and how dense bone is beneath its surface: what a film is explained by.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from osteoprint.ct.volume import AIR_HU, Volume
from osteoprint.errors import InputError
from osteoprint.frames import Side, apply
from osteoprint.shape.alignment import kabsch
from osteoprint.shape.model_file import ModelFile
from osteoprint.shape.placing import vertex_normals
from osteoprint.shape.ssm import ARRAYS, ShapeModel, smooth_basis
from osteoprint.xray.materials import BODY

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Attenuation is that of this energy: films are compared with it up to a curve of their own.
ENERGY_KEV = 70.0
# Where surfaces lie beneath the bone's own, as parts of its length (-0.7 to 8.5 mm in a femur of
# 450 mm): closer where the cortex ends. The last layer is what lies between it and _DEEPEST. The
# first lies outside: voxels on the edge are bone in part, and without it bones come out larger.
DEPTHS = (-0.0015, 0.0, 0.0015, 0.00444, 0.00778, 0.01222, 0.01889)
# The layer that is bone through and through, and those that may be bone in part.
_FULL, _PARTLY = 2, 2
_DEEPEST, _STEP = 0.0267, 0.00067
# So far outside there is no bone, as a part of the length.
_CLEAR = 0.006
# Smooth functions beyond the modes; more would be finer than a film of 1 mm shows.
FUNCTIONS = 150

# Modes fitted to films leave more than modes fitted to the bone itself: bones that were left
# out of a model came out best with shares so many times as large as those found without films.
_WIDER = 1.5

FILE = ModelFile("osteoprint bone model", 2)
_OWN = (
    "functions", "spread_mm", "rest_mm", "depths_mm", "steps_per_mm", "cover", "scores",
    "unlike_mm", "others_mm",
)  # fmt: skip
# Of so many bones, evenly chosen, is kept how they differ from the others, in so many modes.
_UNLIKE, _OTHERS = 48, 60


@dataclass(frozen=True, eq=False)
class BoneModel:
    """A shape model, what lies beyond it, and what lies beneath its surface.

    Attributes
    ----------
    shape : mean and modes, mm, in the anatomical frame.
    functions : (j, n) the smoothest functions on the mean, of mean square 1: the surface moves
        by their sum along the mean's normals.
    spread_mm : (j,) standard deviation of each function's share in bones the modes do not know.
    rest_mm : (n,) standard deviation, along the normal, of what neither modes nor functions say.
    depths_mm : (l,) how deep layers of bone begin beneath the surface; below 0: outside of it.
    steps_per_mm : (l, n) by how much attenuation rises there, at ENERGY_KEV, in air.
    cover : (l,) which part of each layer is bone.
    scores : (s, k) coefficients, in SD, of the bones it was learnt from.
    members : (s,) what they are called.
    unlike_mm : (u, j) of some of these bones: how each differs from the mean of all other
        people's, along the mean's normals, in shares of the functions.
    others_mm : (u, q, j) likewise, the modes of those others, one standard deviation each.
    """

    shape: ShapeModel
    functions: Floats
    spread_mm: Floats
    rest_mm: Floats
    depths_mm: Floats
    steps_per_mm: Floats
    cover: Floats
    scores: Floats
    members: tuple[str, ...]
    unlike_mm: Floats
    others_mm: Floats

    def steps_in(self, around_per_mm: float) -> Floats:
        """(l, n) by how much attenuation rises where the bone lies in tissue, 1/mm."""
        return self.steps_per_mm - around_per_mm * np.diff(self.cover, prepend=0.0)[:, None]

    def nearest_members(self, vertices: Floats) -> list[tuple[str, float]]:
        """The bones it was learnt from, nearest to (n, 3) vertices first, and how far, mm.

        RMS between corresponding points, weighted by area, along the normal, after alignment.
        """
        weights = vertex_areas(self.shape.mean, self.shape.faces)
        weights /= weights.sum()
        normals = vertex_normals(vertices, self.shape.faces)
        far = []
        for name, score in zip(self.members, self.scores, strict=True):
            shape = self.shape.instance(score)
            gap = apply(kabsch(shape, vertices), shape) - vertices
            along = np.einsum("nx,nx->n", gap, normals)
            far.append((name, float(np.sqrt((weights * along**2).sum()))))
        return sorted(far, key=lambda member: member[1])

    @property
    def length_mm(self) -> float:
        """Extent of the mean along the shaft."""
        return float(np.ptp(self.shape.mean[:, 0]))

    @property
    def normals(self) -> Floats:
        """(n, 3) outward unit normals of the mean."""
        return vertex_normals(self.shape.mean, self.shape.faces)

    def surface(self, coefficients: Floats, beyond_mm: Floats) -> Floats:
        """(n, 3) mm: the shape with (k,) coefficients, in SD, and (j,) shares, in mm."""
        said = self.shape.instance(coefficients)
        used = len(beyond_mm)
        return said + (beyond_mm @ self.functions[:used])[:, None] * self.normals

    @classmethod
    def build(
        cls,
        shapes: Floats,
        faces: Ints,
        scans: Sequence[tuple[Volume, Floats]],
        *,
        bone: str | None = None,
        side: Side | None = None,
        people: Sequence[str] | None = None,
        members: Sequence[str] | None = None,
    ) -> BoneModel:
        """Learn a kind of bone.

        Parameters
        ----------
        shapes : (s, n, 3) corresponding surfaces, mm, each in any pose, all of one side.
        faces : (m, 3) common to all.
        scans : of some of the bones: the scan, and (n, 3) where the corresponding vertices lie
            in its world, mm (of a mirrored bone: on the bone as it is).
        bone, side : what they are.
        people : whose each shape is, so that nobody's other side is known beforehand where a
            bone is left out; None: everybody's once.
        members : what each bone is called; None: numbered.

        Raises InputError for fewer than three shapes, or no scan.
        """
        if len(shapes) < 3 or not scans:
            raise InputError("bones", "are too few", "give at least three, and one scan")
        model = ShapeModel.build(shapes, faces, bone=bone, side=side)
        count = min(FUNCTIONS, len(model.mean) - 2)
        functions = np.ascontiguousarray(smooth_basis(model.mean, model.faces, count)[1].T)
        names = [str(k) for k in range(len(shapes))] if people is None else list(people)
        left, *kept = _left_out(shapes, model, names, functions)
        shares = left @ _shares(model, functions)
        rest = left - shares @ functions
        length = float(np.ptp(model.mean[:, 0]))
        depths = np.array(DEPTHS) * length
        layers = np.mean([_layers(scan, at, faces, depths, length) for scan, at in scans], axis=0)
        cover = np.ones(len(depths))
        cover[:_PARTLY] = np.clip(layers[:_PARTLY].mean(axis=1) / layers[_FULL].mean(), 0.0, 1.0)
        steps = np.diff(layers, axis=0, prepend=0.0)
        scores = np.stack([model.coefficients(shape) for shape in shapes])
        called = tuple(members) if members is not None else tuple(map(str, range(len(shapes))))
        return cls(
            model, functions, _WIDER * np.sqrt((shares**2).mean(axis=0)),
            np.sqrt((rest**2).mean(axis=0)), depths, steps, cover,
            scores, called, *kept,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write as safetensors, whole or not at all."""
        own = {name: getattr(self, name) for name in _OWN}
        FILE.write(path, self.shape.told | {"members": self.members}, self.shape.arrays | own)

    @classmethod
    def load(cls, path: Path) -> BoneModel:
        """Read what :meth:`save` wrote. Raises ModelError where that is not what is there."""
        about, arrays = FILE.read(path, (*ARRAYS, *_OWN))
        try:
            members = tuple(str(name) for name in about["members"])
            shape = ShapeModel.of(about, arrays)
        except (KeyError, ValueError, TypeError) as error:
            raise FILE.damaged(path) from error
        model = cls(shape, **{name: arrays[name] for name in _OWN}, members=members)
        if not (shape.consistent and model._consistent):
            raise FILE.damaged(path)
        return model

    @property
    def _consistent(self) -> bool:
        """Do the arrays belong to the shape and to each other?"""
        n, k = len(self.shape.mean), len(self.shape.modes)
        j, layers, some = len(self.functions), len(self.depths_mm), len(self.unlike_mm)
        return (
            self.functions.shape == (j, n)
            and self.spread_mm.shape == (j,)
            and self.rest_mm.shape == (n,)
            and self.steps_per_mm.shape == (layers, n)
            and self.cover.shape == (layers,)
            and self.scores.shape == (len(self.members), k)
            and self.unlike_mm.shape == (some, j)
            and self.others_mm.shape == (some, *self.others_mm.shape[1:2], j)
            and all(np.isfinite(getattr(self, name)).all() for name in _OWN)
        )


def vertex_areas(vertices: Floats, faces: Ints) -> Floats:
    """(n,) mm²: a third of the area of the triangles around each vertex."""
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    third = np.linalg.norm(cross, axis=1) / 6
    return np.asarray(
        np.bincount(faces.ravel(), np.repeat(third, 3), minlength=len(vertices)), np.float64
    )


def _shares(shape: ShapeModel, functions: Floats) -> Floats:
    """(n, j): what turns (n,) motions along the mean's normals into shares of the functions."""
    weights = vertex_areas(shape.mean, shape.faces)
    return np.asarray((functions * (weights / weights.sum())).T)


def _left_out(
    shapes: Floats, whole: ShapeModel, people: Sequence[str], functions: Floats
) -> tuple[Floats, Floats, Floats]:
    """Each bone seen by a model of all other people's.

    Returns (s, n) mm along the normal, what that model leaves of each; and of some of them
    :attr:`BoneModel.unlike_mm` and :attr:`BoneModel.others_mm`.
    """
    into = _shares(whole, functions)
    some = set(np.unique(np.linspace(0, len(shapes) - 1, min(_UNLIKE, len(shapes))).astype(int)))
    left, unlike, others = [], [], []
    for index, (shape, person) in enumerate(zip(shapes, people, strict=True)):
        rest = np.array([p != person for p in people])
        model = ShapeModel.build(shapes[rest], whole.faces, bone=whole.bone, side=whole.side)
        normals = vertex_normals(model.mean, model.faces)
        pose, values = model.fitted(shape)
        gap = apply(pose, shape) - model.instance(values)
        left.append(np.einsum("nx,nx->n", gap, normals))
        if index in some:
            gap = apply(kabsch(shape, model.mean), shape) - model.mean
            unlike.append(np.einsum("nx,nx->n", gap, normals) @ into)
            modes = np.einsum("knx,nx->kn", model.modes[:_OTHERS], normals)
            others.append((modes * model.deviations[:_OTHERS, None]) @ into)
    fewest = min(len(modes) for modes in others)
    return np.array(left), np.array(unlike), np.array([modes[:fewest] for modes in others])


def _layers(scan: Volume, at: Floats, faces: Ints, depths: Floats, length: float) -> Floats:
    """(l, n) 1/mm: mean attenuation between each depth and the next, beneath each vertex."""
    inward = -vertex_normals(at, faces)
    # The faces of a mirrored bone are wound the other way round.
    corners = at[faces]
    if np.einsum("fx,fx->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) < 0:
        inward = -inward
    hu = np.arange(-1000.0, 3000.0, 5.0)
    table = BODY.fractions(hu) @ BODY.mu_per_mm(ENERGY_KEV)
    first, step = depths[0] / length, _STEP
    deep = (np.arange(round((_DEEPEST - first) / step)) + 0.5) * step * length + depths[0]
    profile = []
    for depth in np.append(deep, -_CLEAR * length):
        index = apply(scan.world_to_voxel, at + depth * inward)
        seen = map_coordinates(
            scan.volume_hu, index.T, output=np.float64, order=1, mode="constant", cval=AIR_HU
        )
        profile.append(np.interp(seen, hu, table))
    rows, around = np.array(profile[:-1]), float(np.median(profile[-1]))
    edges = [*depths, np.inf]
    layers = np.array(
        [
            rows[(deep >= low) & (deep < high)].mean(axis=0)
            for low, high in itertools.pairwise(edges)
        ]
    )
    # In tissue, what is bone in part is tissue for the rest: as it would be in air.
    partly = np.clip((layers[:_PARTLY] - around) / (layers[_FULL] - around + 1e-9), 0.0, 1.0)
    layers[:_PARTLY] = partly * layers[_FULL]
    return layers

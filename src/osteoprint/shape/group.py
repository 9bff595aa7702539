"""A group of bones put into correspondence together: the template becomes their mean.

A template made from one bone favours that bone. Registered to all, it is replaced by their
mean, meshed anew, and registered again; then it also knows how the bones of the group differ,
and begins on each of them from the nearest shape that the group makes probable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.errors import InputError
from osteoprint.frames import Side
from osteoprint.shape.correspondence import Correspondence, register
from osteoprint.shape.remesh import remeshed
from osteoprint.shape.ssm import ShapeModel, procrustes
from osteoprint.shape.surface_index import SurfaceIndex, barycentric
from osteoprint.shape.template import VERTICES, Template

Floats = NDArray[np.float64]

# The modes a template keeps: enough to begin near a bone, too few to follow its accidents.
MODES = 20


@dataclass(frozen=True, eq=False)
class Group:
    """Bones in correspondence.

    Attributes
    ----------
    template : what was laid onto them: their mean, and how they differ.
    members : one for each bone, in their order; those that are not ``ok`` did not count.
    """

    template: Template
    members: tuple[Correspondence, ...]

    @property
    def shapes(self) -> Floats:
        """(s, n, 3) mm: the good ones, each in its own pose, all of the template's side."""
        return np.stack([m.on_template_side for m in self.members if m.ok])


def correspond(
    surfaces: Sequence[trimesh.Trimesh],
    *,
    mirrored: Sequence[bool] | None = None,
    sources: Sequence[str] | None = None,
    bone: str | None = None,
    side: Side | None = None,
    vertices: int = VERTICES,
    seed: int = 0,
    basis: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Group:
    """Find the same points on all of a group of bones, and the template for further ones.

    Parameters
    ----------
    surfaces : closed, mm, each in any pose; the same kind of bone.
    mirrored : which of them are of the other side; None if none is.
    sources : what the messages call them.
    bone : "femur", "tibia", ...; None where it is not known.
    side : the side of those that are not mirrored.
    vertices : how many the template has.
    seed : of its meshing.
    basis : the template is made of so many of them, the first; None: of all.
    workers : processes that register bones side by side; one: in this process.
    progress : called with (registrations done, of how many).

    Returns
    -------
    The group; bones that could not be registered are in it, not ``ok``, with their reasons.

    Raises
    ------
    InputError : fewer than two bones, or fewer than two that could be registered.
    """
    flags = [False] * len(surfaces) if mirrored is None else list(mirrored)
    names = [f"bone {k}" for k in range(len(surfaces))] if sources is None else list(sources)
    if len(surfaces) < 2 or not len(surfaces) == len(flags) == len(names):
        raise InputError("bones", "are not a group", "give two or more, and a flag for each")
    few = slice(0, max(basis or len(surfaces), 2))
    template = _first_template(
        [surfaces[k] for k in _most_average(surfaces[few], flags[few])],
        bone=bone, side=side, count=vertices, seed=seed,
    )  # fmt: skip
    report = _Report(progress, 2 * len(surfaces[few]) + len(surfaces))
    with _pool(workers) as pool:
        for refined in (False, True):
            group = _registered(template, surfaces[few], flags[few], names[few], pool, report)
            if len([m for m in group.members if m.ok]) < 2:
                raise InputError("bones", "could not be registered", "look at their reasons")
            count = None if refined else vertices
            template = averaged(group, side=side, vertices=count, seed=seed)
        return _registered(template, surfaces, flags, names, pool, report)


class _Report:
    """Counts registrations."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def one_more(self) -> None:
        """Say that one more is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """So many processes; None for one."""
    if workers <= 1:
        yield None
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool


def _registered(
    template: Template,
    surfaces: Sequence[trimesh.Trimesh],
    mirrored: Sequence[bool],
    names: Sequence[str],
    pool: ProcessPoolExecutor | None,
    report: _Report,
) -> Group:
    """`template` laid onto all of them."""
    members: list[Correspondence] = []
    tasks = list(zip(surfaces, mirrored, names, strict=True))
    if pool is None:
        found = (register(template, s, mirrored=m, source=n) for s, m, n in tasks)
    else:
        # What a template has worked out for itself does not travel; its mesh does.
        parts = template.vertices, template.faces, template.bone, template.modes
        jobs = [
            pool.submit(_registered_there, parts, np.array(s.vertices), np.array(s.faces), m, n)
            for s, m, n in tasks
        ]
        found = (job.result() for job in jobs)
    for member in found:
        members.append(member)
        report.one_more()
    return Group(template, tuple(members))


@lru_cache(maxsize=1)
def _template_of(key: tuple[bytes, ...], bone: str | None, modes: int) -> Template:
    vertices = np.frombuffer(key[0]).reshape(-1, 3)
    faces = np.frombuffer(key[1], np.int64).reshape(-1, 3)
    known = np.frombuffer(key[2]).reshape(modes, vertices.size)
    return Template.of(vertices, faces, bone=bone, modes=known)


def _registered_there(
    parts: tuple[Floats, NDArray[np.int64], str | None, Floats],
    vertices: Floats,
    faces: NDArray[np.int64],
    mirrored: bool,
    name: str,
) -> Correspondence:
    """One registration in another process, which makes the template once."""
    at, triangles, bone, modes = parts
    key = at.tobytes(), triangles.tobytes(), modes.tobytes()
    template = _template_of(key, bone, len(modes))
    surface = trimesh.Trimesh(vertices, faces, process=False)
    return register(template, surface, mirrored=mirrored, source=name)


def averaged(
    group: Group, *, side: Side | None = None, vertices: int | None = None, seed: int = 0
) -> Template:
    """The mean of a group as a template, with the modes in which its bones differ.

    Size is taken out first: the template is scaled to any bone anyway. With `vertices` the
    mean is meshed anew.
    """
    shapes = group.shapes
    sizes = np.sqrt(((shapes - shapes.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2)))
    alike = procrustes(shapes * (sizes.mean() / sizes)[:, None, None])
    faces = group.template.faces
    model = ShapeModel.build(alike, faces, bone=group.template.bone, side=side)
    modes = (model.modes * model.deviations[:, None, None])[:MODES]
    mean = model.mean
    if vertices is not None:
        mesh = remeshed(model.mesh, vertices, seed=seed)
        mean, faces = np.array(mesh.vertices), np.array(mesh.faces, np.int64)
        modes = _carried(model, modes, mean)
    return Template.of(mean, faces, bone=group.template.bone, modes=modes.reshape(len(modes), -1))


def _carried(model: ShapeModel, modes: Floats, points: Floats) -> Floats:
    """(k, j, 3) `modes`, known at the model's vertices, at other points of its mean."""
    index = SurfaceIndex.build(model.mesh, "mean")
    _, near, faces = index.nearest(points)
    corners = index.faces[faces]
    weights = barycentric(index.vertices[corners], near)
    return np.asarray(np.einsum("jc,kjcx->kjx", weights, modes[:, corners]))


def _most_average(surfaces: Sequence[trimesh.Trimesh], mirrored: Sequence[bool]) -> list[int]:
    """The bones of the template's side, that of middling size first."""
    sizes = np.array([np.sqrt(surface.area) for surface in surfaces])
    eligible = np.flatnonzero(~np.array(mirrored))
    if not len(eligible):
        raise InputError("bones", "are all mirrored", "take their side as the template's")
    away = np.abs(sizes[eligible] - np.median(sizes))
    return [int(k) for k in eligible[np.argsort(away, kind="stable")]]


def _first_template(
    surfaces: Sequence[trimesh.Trimesh],
    *,
    bone: str | None,
    side: Side | None,
    count: int,
    seed: int,
) -> Template:
    """The template of the first bone that so many vertices can mesh: one that is thin somewhere
    may need more."""
    refused: InputError | None = None
    for surface in surfaces:
        try:
            return Template.from_surface(surface, bone=bone, side=side, count=count, seed=seed)
        except InputError as error:
            refused = refused or error
    assert refused is not None
    raise refused

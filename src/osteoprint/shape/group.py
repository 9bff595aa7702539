"""A group of bones put into correspondence together: the template becomes their mean.

A template made from one bone favours that bone. Registered to all, it is replaced by their
mean, meshed anew, and registered again; then it also knows how the bones of the group differ,
and begins on each of them from the nearest shape that the group makes probable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    first = _most_average(surfaces, flags)
    template = Template.from_surface(
        surfaces[first], bone=bone, side=side, count=vertices, seed=seed
    )
    for refined in (False, True):
        group = _registered(template, surfaces, flags, names)
        if len([m for m in group.members if m.ok]) < 2:
            raise InputError("bones", "could not be registered", "look at their reasons")
        template = averaged(group, side=side, vertices=None if refined else vertices, seed=seed)
    return _registered(template, surfaces, flags, names)


def _registered(
    template: Template,
    surfaces: Sequence[trimesh.Trimesh],
    mirrored: Sequence[bool],
    sources: Sequence[str],
) -> Group:
    """`template` laid onto all of them."""
    members = tuple(
        register(template, surface, mirrored=flag, source=name)
        for surface, flag, name in zip(surfaces, mirrored, sources, strict=True)
    )
    return Group(template, members)


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


def _most_average(surfaces: Sequence[trimesh.Trimesh], mirrored: Sequence[bool]) -> int:
    """The bone of middling size, of the template's side if there is one."""
    sizes = np.array([np.sqrt(surface.area) for surface in surfaces])
    eligible = np.flatnonzero(~np.array(mirrored))
    if not len(eligible):
        raise InputError("bones", "are all mirrored", "take their side as the template's")
    return int(eligible[np.abs(sizes[eligible] - np.median(sizes)).argmin()])

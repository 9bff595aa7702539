"""The template: the mesh whose every vertex is to be found on every bone.

It lies in the anatomical frame of its own bone (``frames.anatomical_frame``), and knows how a
field over its surface is smoothed: the minimum of ``∫ |u - d|² + ℓ⁴ |Δu|²``, in which
everything finer than ``ℓ`` is left out. The factors of this are computed once for all bones.
"""

from __future__ import annotations

from dataclasses import dataclass

import igl
import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import SuperLU, splu

from osteoprint.errors import InputError
from osteoprint.frames import Side, anatomical_frame, apply, rigid
from osteoprint.shape.remesh import remeshed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VERTICES = 5000
# What is left out of the motion from the template to a bone, at each stage, as parts of the
# template's length: first all but the whole bone's bow, at last only what is finer than the mesh.
DETAIL = tuple(float(d) for d in np.geomspace(0.12, 0.0035, 12))


@dataclass(frozen=True, eq=False)
class Template:
    """A mesh to be laid onto bones.

    Attributes
    ----------
    vertices : (n, 3) float64, mm, in the anatomical frame.
    faces : (m, 3) int64, wound outwards.
    modes : (k, 3 n) float64, mm: how bones of the group differ from ``vertices`` beyond size,
        one standard deviation each; k = 0 where this is not known.
    bone : "femur", "tibia", ...; None where it is not known.
    length_mm : extent along the first axis.
    mass : (n,) float64, the area that each vertex stands for, in units of length_mm².
    neighbours : (n, n) sparse; each row the mean over a vertex's neighbours.
    smoothers : factors for :func:`smoothed`, one for each of ``DETAIL``.
    """

    vertices: Floats
    faces: Ints
    modes: Floats
    bone: str | None
    length_mm: float
    mass: Floats
    neighbours: sparse.csr_matrix
    smoothers: tuple[SuperLU, ...]

    @classmethod
    def of(
        cls,
        vertices: Floats,
        faces: Ints,
        *,
        bone: str | None = None,
        modes: Floats | None = None,
    ) -> Template:
        """A template from its mesh: (n, 3) mm in the anatomical frame, (m, 3) faces."""
        vertices = np.ascontiguousarray(vertices, np.float64)
        faces = np.ascontiguousarray(faces, np.int64)
        length = float(np.ptp(vertices[:, 0]))
        unit = vertices / length
        mass = sparse.diags(igl.massmatrix(unit, faces, igl.MASSMATRIX_TYPE_BARYCENTRIC).diagonal())
        stiffness = sparse.csc_matrix(igl.cotmatrix(unit, faces))
        bending = stiffness @ sparse.diags(1 / mass.diagonal()) @ stiffness
        smoothers = tuple(
            splu((mass + detail**4 * bending).tocsc(), permc_spec="MMD_AT_PLUS_A")
            for detail in DETAIL
        )
        joined = sparse.csr_matrix(igl.adjacency_matrix(faces), dtype=np.float64)
        neighbours = sparse.csr_matrix(
            sparse.diags(1 / np.asarray(joined.sum(axis=1)).ravel()) @ joined
        )
        none = np.empty((0, vertices.size))
        return cls(
            vertices,
            faces,
            none if modes is None else np.asarray(modes, np.float64),
            bone,
            length,
            mass.diagonal(),
            neighbours,
            smoothers,
        )

    @classmethod
    def from_surface(
        cls,
        surface: trimesh.Trimesh,
        *,
        bone: str | None = None,
        side: Side | None = None,
        count: int = VERTICES,
        seed: int = 0,
    ) -> Template:
        """A template from one bone (closed, mm, any pose), brought into its anatomical frame.

        A body without such a frame is turned to its principal axes, the longest first.

        Raises InputError if `surface` is empty or not closed.
        """
        mesh = remeshed(surface, count, seed=seed)
        vertices = np.array(mesh.vertices)
        try:
            pose = anatomical_frame(vertices, mesh.faces, bone=bone, side=side).world_to_bone
        except InputError:
            pose = principal_frame(vertices)
        return cls.of(apply(pose, vertices), np.array(mesh.faces, np.int64), bone=bone)

    @property
    def mesh(self) -> trimesh.Trimesh:
        """The template as a surface, mm, in the anatomical frame."""
        return trimesh.Trimesh(self.vertices, self.faces, process=False)

    def smoothed(self, field: Floats, stage: int) -> Floats:
        """(n, 3) `field` over the surface, without what is finer than ``DETAIL[stage]``."""
        return np.asarray(self.smoothers[stage].solve(self.mass[:, None] * field))


def principal_frame(points: Floats, weights: Floats | None = None) -> Floats:
    """(4, 4) rigid transform of (n, 3) points to the middle of their box along their principal
    axes, longest first, right-handed.

    The first two point to where the points reach further out, so that the frame goes with a body
    however it is turned. `weights`, (n,), say how much each point counts; all alike without.
    """
    share = np.ones(len(points)) if weights is None else weights
    centred = points - np.average(points, axis=0, weights=share)
    axes = np.linalg.eigh(centred.T @ (share[:, None] * centred))[1][:, ::-1].copy()
    axes *= np.where(share @ (centred @ axes) ** 3 < 0, -1.0, 1.0)
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    inside = points @ axes
    return rigid(axes.T, -(inside.min(axis=0) + inside.max(axis=0)) / 2)

"""Films become a surface, by any of the methods: what was found, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import trimesh
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from osteoprint.errors import FilmError, InputError
from osteoprint.frames import Side, anatomical_frame, apply
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.classical import CLASSICAL, Outlined
from osteoprint.reconstruct.fitting import Fit
from osteoprint.reconstruct.refinement import REFINED, information_at, refine
from osteoprint.reconstruct.rig_search import focused
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.state import State
from osteoprint.reconstruct.statistical import fit_modes
from osteoprint.reconstruct.uncertainty import Doubt, doubt, shown, worth
from osteoprint.xray.film import Film

Floats = NDArray[np.float64]
Method = Literal["statistical", "refined", "laplacian", "ffd", "tps", "contour"]

# An error that is to be feared beyond this is said in a warning; a film that the model
# explains so badly shows something else than the model's bone.
DOUBTFUL_MM = 2.0
_LEAST_LIKENESS = 0.55


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A bone as its films show it.

    Attributes
    ----------
    method : how it was found.
    surface : closed, mm, in the bone's anatomical frame, of the films' side of the body.
    side : that side; None where neither films nor model say.
    state : shape and placings that were fitted, in the model's frame and of the model's side.
    vertices, faces : (n, 3) and (m, 3), the surface there.
    shots : the films as they were fitted.
    doubt : how far the surface may be off; None where a method cannot tell.
    likeness : of each film: correlation of its local contrast with the fitted model's.
    warnings : what is doubtful, in words.
    mirrored : whether the shots, state and vertices are those of the other side's bone: models are
        of one side.
    """

    method: str
    surface: trimesh.Trimesh
    side: Side | None
    state: State
    vertices: Floats
    faces: NDArray[np.int64]
    shots: tuple[Shot, ...]
    doubt: Doubt | None
    likeness: tuple[float, ...]
    warnings: tuple[str, ...]
    mirrored: bool = False


def reconstruct(
    model: BoneModel,
    films: Sequence[Film],
    method: Method = "refined",
    *,
    sources: Sequence[str] = (),
) -> Reconstruction:
    """The surface of the bone on one or more films.

    Parameters
    ----------
    model : of this kind of bone.
    films : as examined; of one bone, each of its own view, or of one calibrated rig.
    method : how.
    sources : what messages call the films.

    Raises FilmError as :func:`shots_of` does.
    """
    names = _named(films, sources)
    seen = shots_of(films, names)
    side, notes = _side(model, films)
    flipped = side is not None and model.shape.side is not None and side is not model.shape.side
    shots = [shot.mirrored if flipped else shot for shot in seen]
    # Films are fitted side by side, a core for each: products of small matrices that ask for
    # all cores as well only get in each other's way.
    with threadpool_limits(limits=1, user_api="blas"):
        found, vertices, unsure = _found(model, shots, method)
    likeness = () if isinstance(found, Outlined) else found.likeness
    notes += _doubts(shots, names, likeness, unsure)
    surface = finished(vertices, model, flipped=flipped)
    return Reconstruction(
        method, surface, side or model.shape.side, found.state, vertices, model.shape.faces,
        tuple(shots), unsure, likeness, tuple(notes), flipped,
    )  # fmt: skip


def _found(
    model: BoneModel, shots: Sequence[Shot], method: Method
) -> tuple[Fit | Outlined, Floats, Doubt | None]:
    """What a method makes of the films: (n, 3) vertices in the model's frame, and their doubt."""
    if method in CLASSICAL:
        outlined = CLASSICAL[method](model, shots)
        return outlined, outlined.vertices, None
    found = fit_modes(model, shots)
    refined = method == "refined"
    if refined:
        found = refine(model, shots, found)
    told = found.information if refined else information_at(model, shots, found.state)
    modes = min(REFINED.modes, len(model.shape.modes))
    films_say = worth(shots) * shown(model, told, modes, len(model.functions))
    return found, found.state.vertices(model), doubt(model, films_say, refined=refined)


def shots_of(films: Sequence[Film], sources: Sequence[str] = ()) -> list[Shot]:
    """The films made ready to be fitted; no model is needed to know that they can be.

    Parameters
    ----------
    films, sources : as of :func:`reconstruct`.

    Raises FilmError where no bone is seen on a film, only some are of a calibrated rig, or a rig's
    cameras do not look at one place.
    """
    names = _named(films, sources)
    seen = [Shot.of(film, name) for film, name in zip(films, names, strict=True)]
    if len({shot.rig is None for shot in seen}) > 1:
        raise FilmError(names[0], "and the other film differ: one has a camera", "calibrate both")
    return seen if seen[0].rig is None else focused(seen)


def _named(films: Sequence[Film], sources: Sequence[str]) -> list[str]:
    """A name for every film."""
    return [*sources, *("film" for _ in range(len(films) - len(sources)))]


def finished(vertices: Floats, model: BoneModel, *, flipped: bool) -> trimesh.Trimesh:
    """(n, 3) vertices of a model as a surface in the anatomical frame, of the right side."""
    faces = model.shape.faces
    side = model.shape.side
    if flipped:
        vertices, faces = vertices * [1.0, -1.0, 1.0], faces[:, ::-1]
        side = None if side is None else (Side.LEFT if side is Side.RIGHT else Side.RIGHT)
    try:
        frame = anatomical_frame(
            vertices, faces, bone=model.shape.bone, side=side, source="the reconstruction"
        )
        vertices = apply(frame.world_to_bone, vertices)
    except InputError:
        pass  # a shape without ends to tell apart stays in the model's frame
    return trimesh.Trimesh(vertices, faces, process=False)


def _side(model: BoneModel, films: Sequence[Film]) -> tuple[Side | None, list[str]]:
    """The side of the films, and a note where nobody says it."""
    said = {film.radiograph.side for film in films} - {None}
    if said:
        return said.pop(), []
    if model.shape.side is None:
        return None, []
    return None, [
        f"the films do not say of which side the bone is: taken for a {model.shape.side.value} one"
    ]


def _doubts(
    shots: Sequence[Shot],
    names: Sequence[str],
    likeness: Sequence[float],
    unsure: Doubt | None,
) -> list[str]:
    """What a reader of the result should know."""
    notes = []
    for shot, name in zip(shots, names, strict=True):
        if any(shot.cut):
            which = (
                "both ends"
                if all(shot.cut)
                else "the upper end"
                if shot.cut[0]
                else "the lower end"
            )
            notes.append(f"{name} does not show {which} of the bone: there the model guesses")
    if len(shots) == 1:
        notes.append("one film only: what lies along its beam is the model's guess")
    for value, name in zip(likeness, names, strict=False):
        if value < _LEAST_LIKENESS:
            notes.append(
                f"{name} is explained badly (correlation {value:.2f}): another bone, or not "
                "where it was looked for"
            )
    if unsure is not None and unsure.feared_rms_mm > DOUBTFUL_MM:
        notes.append(
            f"the surface may be off by {unsure.feared_rms_mm:.1f} mm (RMS): one of ten bones is "
            "further off on such films"
        )
    return notes

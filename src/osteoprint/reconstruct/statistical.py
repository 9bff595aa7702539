"""The shape model fitted to films: coarse to fine, from the bone as it was found."""

from __future__ import annotations

from collections.abc import Sequence

from osteoprint.reconstruct.bone_model import ENERGY_KEV, BoneModel
from osteoprint.reconstruct.fitting import Fit, Level, Sight, fit, side_by_side
from osteoprint.reconstruct.rig_search import poses
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.start import starts
from osteoprint.reconstruct.state import State
from osteoprint.xray.materials import BODY

# Beams harden, scatter adds, and displays press bright parts together: with this bend, models of
# known bones lay closest on films of others that were taken in the manner of a clinic.
_BEND = 1.6

# So many of the fits go on from each level to the next: a bone tilted towards the tube or away
# looks alike until its ends are seen sharply.
_KEPT = (3, 2, 1)
_KEPT_IN_RIG = (10, 8, 1)

LEVELS = (
    Level(pixel=0.00926, modes=6, functions=0, steps=12, independent_px=12.0),
    Level(pixel=0.00463, modes=14, functions=0, steps=8, independent_px=12.0),
    Level(pixel=0.00232, modes=60, functions=0, steps=6, independent_px=30.0),
)


def fit_modes(model: BoneModel, shots: Sequence[Shot]) -> Fit:
    """The model's modes and the poses that explain one or more films best."""
    if shots[0].rig is not None:
        return _fit_in_rig(model, shots)
    states = starts(model, shots)
    for level, kept in zip(LEVELS, _KEPT, strict=True):
        found = sorted((fitted(model, shots, s, level) for s in states), key=lambda f: f.cost)
        states = [fit.state for fit in found[:kept]]
    return found[0]


def _fit_in_rig(model: BoneModel, shots: Sequence[Shot]) -> Fit:
    """From the poses that a search found; films of a joint show other bones as well.

    What is not covered by the bone is no reason against a pose, but what is covered and explained
    is one for it.
    """
    states = poses(model, shots, sights(model, shots, LEVELS[0]))
    for level, kept in zip(LEVELS, _KEPT_IN_RIG, strict=True):
        found = sorted((fitted(model, shots, s, level) for s in states), key=lambda f: -f.evidence)
        states = [fit.state for fit in found[:kept]]
    return found[0]


def fitted(model: BoneModel, shots: Sequence[Shot], start: State, level: Level) -> Fit:
    """One level of a fit."""
    return fit(model, sights(model, shots, level), start, level)


def sights(model: BoneModel, shots: Sequence[Shot], level: Level) -> list[Sight]:
    """The films at a level's pixels; a calibrated rig's look at one placing."""

    def of(seen: tuple[int, Shot]) -> Sight:
        index, shot = seen
        # In a limb, bone takes the place of soft tissue, not of air.
        steps = model.steps_in(BODY.mu_per_mm(ENERGY_KEV)[0] if shot.soft else 0.0)
        target = shot.target(level.pixel * model.length_mm, model.length_mm)
        bend = _BEND if shot.curved else 0.0
        return Sight(target, 0 if shot.rig is not None else index, steps, bend)

    return side_by_side(of, list(enumerate(shots)))

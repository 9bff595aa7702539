"""What the modes cannot say, from the films themselves.

Beyond the modes the surface moves along its normals by the smoothest functions on it, each
with the spread that it has in known bones that were left out of the model. Modes, functions
and poses are fitted together: what two films do not show, the priors decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from osteoprint.reconstruct.bone_model import FUNCTIONS, BoneModel
from osteoprint.reconstruct.fitting import Fit, Level, information, likeness
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.state import State
from osteoprint.reconstruct.statistical import fitted, sights

REFINED = Level(pixel=0.00232, modes=60, functions=FUNCTIONS, steps=6, independent_px=30.0)
# A calibrated rig's films show a joint alone, and large: there outlines lie closer to their edges
# with half the pixels. As much is told by as much of the film.
_IN_RIG = replace(REFINED, pixel=REFINED.pixel / 2, independent_px=4 * REFINED.independent_px)
# Twice the pixels tell as much about what is known, in a fraction of the time.
_INFORMED = replace(REFINED, pixel=2 * REFINED.pixel, independent_px=REFINED.independent_px / 4)


def refine(model: BoneModel, shots: Sequence[Shot], start: Fit) -> Fit:
    """Go on from :func:`osteoprint.reconstruct.statistical.fit_modes`."""
    found = fitted(model, shots, start.state, REFINED)
    if shots[0].rig is None:
        return found
    finer = fitted(model, shots, found.state, _IN_RIG)
    # Finer films are less alike by themselves: what is said of all fits is said at one pixel.
    return replace(finer, likeness=likeness(model, sights(model, shots, REFINED), finer.state))


def information_at(model: BoneModel, shots: Sequence[Shot], state: State) -> NDArray[np.float64]:
    """(p, p) what films and priors say around a state if the functions were fitted too."""
    return information(model, sights(model, shots, _INFORMED), state, _INFORMED)

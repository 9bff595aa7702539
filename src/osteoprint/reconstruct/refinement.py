"""What the modes cannot say, from the films themselves.

Beyond the modes the surface moves along its normals by the smoothest functions on it, each
with the spread that it has in known bones that were left out of the model. Modes, functions
and poses are fitted together: what two films do not show, the priors decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from osteoprint.reconstruct.bone_model import FUNCTIONS, BoneModel
from osteoprint.reconstruct.fitting import Fit, Level, State, information
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.statistical import fitted, sights

REFINED = Level(pixel=0.00232, modes=60, functions=FUNCTIONS, steps=6, independent_px=30.0)


def refine(model: BoneModel, shots: Sequence[Shot], start: Fit) -> Fit:
    """Go on from :func:`osteoprint.reconstruct.statistical.fit_modes`."""
    return fitted(model, shots, start.state, REFINED)


def information_at(model: BoneModel, shots: Sequence[Shot], state: State) -> NDArray[np.float64]:
    """(p, p) what films and priors say around a state if the functions were fitted too."""
    return information(model, sights(model, shots, REFINED), state, REFINED)

"""Where a fit starts: the bone as it was found on the films, no landmark clicked.

The start decides: local contrast draws a model onto an edge that lies near, whichever it is.
A found bone gives its turn, its middle and its length; where it is cut off, several lengths
are tried, and where it looks shorter in one film, both ways in which it may have been tilted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from osteoprint.frames import Side
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.state import Placing, State
from osteoprint.xray.camera import standard_view

Floats = NDArray[np.float64]

# What is not said of a film: bones are laid to within a few degrees, and distances are good to
# a few millimetres. Turn and middle are found, and may be off by much where a bone is cut.
_TILT_DEG, _IN_PLANE_DEG = 3.5, 20.0
_ACROSS_MM, _DEPTH_MM = 100.0, 1.0
# Films whose lengths differ more show a bone that was tilted in the shorter one.
_TILTED, _SEEN_TILT_DEG = 0.025, 6.0
# Lengths tried for a bone that is cut off, in standard deviations of the first mode.
_TRIED_SD = (-1.5, -0.5, 0.5, 1.5)


def starts(model: BoneModel, shots: Sequence[Shot]) -> list[State]:
    """The states from which a fit is tried; the best of them after the coarsest level counts."""
    whole = [shot for shot in shots if not any(shot.cut)]
    if whole:
        longest = max(shot.size_mm[0] for shot in whole)
        lengths = [_coefficient_of(model, whole, longest)]
    else:
        lengths = list(_TRIED_SD)
        longest = np.inf
    tilts = []
    for shot in shots:
        short = 1.0 - shot.size_mm[0] / longest
        tilted = not any(shot.cut) and np.isfinite(longest) and short > _TILTED
        angle = float(np.arccos(1.0 - short)) if tilted else 0.0
        tilts.append((angle, -angle) if tilted else (0.0,))
    return [
        State(
            np.array([length]),
            np.zeros(0),
            tuple(
                _placed(model, shot, length, tilt) for shot, tilt in zip(shots, tilt, strict=True)
            ),
        )
        for length, tilt in product(lengths, product(*tilts))
    ]


def _coefficient_of(model: BoneModel, shots: Sequence[Shot], length_mm: float) -> float:
    """Of the first mode, so that the longer of the films shows a bone so long."""
    value = 0.0
    for _ in range(3):
        here, more = (
            max(_box(model, shot, v, 0.0)[0] for shot in shots) for v in (value, value + 0.5)
        )
        slope = (more - here) / 0.5
        if abs(slope) < 1e-3 * length_mm:
            break
        value = float(np.clip(value + (length_mm - here) / slope, -4.0, 4.0))
    return value


def _box(
    model: BoneModel, shot: Shot, coefficient: float, tilt: float
) -> tuple[float, float, float, float]:
    """Height, top, bottom and middle across, mm at the bone, of the model's upright box.

    It lies with its origin on the central ray. Where the film cuts the bone, the middle across
    is that of so much of the model as the film shows: bones are bowed.
    """
    points = model.surface(np.array([coefficient]), np.zeros(0)) @ _upright(shot, tilt).T
    scale = shot.sod_mm / (points[:, 2] + shot.sod_mm)
    down, right = points[:, 1] * scale, points[:, 0] * scale
    top, bottom = float(down.min()), float(down.max())
    shown = np.full(len(down), True)
    if any(shot.cut):
        middle = _middle(shot, top, bottom)
        shown = np.abs(down - middle) <= shot.size_mm[0] / 2
    across = right[shown] if shown.any() else right
    return bottom - top, top, bottom, float(across.min() + across.max()) / 2


def _middle(shot: Shot, top: float, bottom: float) -> float:
    """Of the part of a box from top to bottom, mm, that the film shows."""
    if shot.cut == (False, True):
        return top + shot.size_mm[0] / 2
    if shot.cut == (True, False):
        return bottom - shot.size_mm[0] / 2
    return (top + bottom) / 2


def _upright(shot: Shot, tilt: float) -> Floats:
    """(3, 3) anatomical frame to camera axes, the bone upright and tilted towards the tube."""
    c, s = np.cos(tilt), np.sin(tilt)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ standard_view(shot.view, Side.RIGHT)


def _placed(model: BoneModel, shot: Shot, coefficient: float, tilt: float) -> Placing:
    """The model's box on the found one; of a bone that is cut, at the end that is there."""
    _, top, bottom, across = _box(model, shot, coefficient, tilt)
    right, down = shot.centre_mm
    lower = down - _middle(shot, top, bottom)
    # How far a bone was tilted is told by its length only roughly; which way, by nothing.
    tilt_deg = _TILT_DEG if tilt == 0 else _SEEN_TILT_DEG
    deviation = np.array(
        [
            *np.deg2rad([tilt_deg, _TILT_DEG, _IN_PLANE_DEG]),
            _ACROSS_MM, _ACROSS_MM, _DEPTH_MM,
        ]
    )  # fmt: skip
    at = np.array([right - across, lower, shot.sod_mm])
    return Placing.expected(_upright(shot, tilt), at, deviation)


def lengths_differ(shots: Sequence[Shot]) -> bool:
    """Do whole films show one bone of different length? It leant towards the tube, or away."""
    lengths = [shot.size_mm[0] for shot in shots]
    return min(lengths) < (1.0 - _TILTED) * max(lengths)

"""How unevenly the beam fills the detector: anode heel, distance, collimator.

Each effect is a factor per pixel, one where it is absent; they multiply. Positions are in
mm at the detector, right and down of the point that the central ray meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from osteoprint.xray.camera import Geometry

Floats = NDArray[np.float32]
Towards = Literal["up", "down", "left", "right"]

# Depth at which a tungsten anode sends out its photons, as -ln of what it lets out
# perpendicularly to its axis per unit of path: with it the fall-off of SpekPy's energy
# fluence (70 kVp, 2.5 mm Al, 10...16 degrees) is met within 1.5 % over 300 mm at 1 m.
ANODE_DEPTH = 0.0155
LEAF_TRANSMISSION = 1e-3


@dataclass(frozen=True)
class Heel:
    """The anode's own shadow.

    Attributes
    ----------
    anode_deg : angle of the anode's face to the central ray; small is steep and uneven.
    towards : the side of the image at which the anode lies: the dark side.
    depth : see :data:`ANODE_DEPTH`.
    """

    anode_deg: float = 12.0
    towards: Towards = "up"
    depth: float = ANODE_DEPTH


@dataclass(frozen=True)
class Collimation:
    """A rectangle of light; outside it only scatter arrives.

    Attributes
    ----------
    margins : (top, bottom, left, right), share of the image's height or width that each
        leaf covers at the middle of its side; 0 leaves that side open, however turned.
    turn_deg : the leaves turned about the image's middle, clockwise as seen.
    penumbra_mm : width of an edge, at the detector.
    """

    margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    turn_deg: float = 0.0
    penumbra_mm: float = 1.0

    def __post_init__(self) -> None:
        top, bottom, left, right = self.margins
        if min(self.margins) < 0 or top + bottom >= 1 or left + right >= 1:
            raise ValueError("margins must not be negative, and opposite ones leave a field")
        if self.penumbra_mm < 0:
            raise ValueError("penumbra_mm must not be negative")


def positions_mm(
    geometry: Geometry, principal_point: tuple[float, float] | None = None
) -> tuple[Floats, Floats]:
    """(rows, 1) down and (1, columns) right of the central ray, mm at the detector.

    ``principal_point`` is (row, column) in pixels; the image's middle when left out.
    """
    middle = principal_point or ((geometry.rows - 1) / 2, (geometry.columns - 1) / 2)
    down, right = (
        ((np.arange(n) - at) * mm).astype(np.float32)
        for n, at, mm in zip(
            (geometry.rows, geometry.columns), middle, geometry.pixel_spacing_mm, strict=True
        )
    )
    return down[:, None], right[None, :]


def heel(
    geometry: Geometry, effect: Heel | None, principal_point: tuple[float, float] | None = None
) -> Floats:
    """(rows, 1) or (1, columns) float32: intensity along the tube's axis, one at the central ray.

    (1, 1) where there is no effect, as in the functions below.

    Photons leave the anode through exp(-depth x cos(a) / sin(a - t)), a the anode's angle
    and t the ray's, positive towards the anode: the slanted way out of a flat target
    (Behling, Modern Diagnostic X-Ray Sources, 2016, on the heel effect). Zero beyond the
    anode's horizon.
    """
    if effect is None or not np.isfinite(geometry.sdd_mm):
        return np.ones((1, 1), np.float32)
    down, right = positions_mm(geometry, principal_point)
    along = {"up": -down, "down": down, "left": -right, "right": right}[effect.towards]
    face = np.deg2rad(effect.anode_deg)
    slant = np.sin(face - np.arctan(along / geometry.sdd_mm))
    seen = slant > 1e-3
    way = np.cos(face) / np.where(seen, slant, 1.0) - 1.0 / np.tan(face)
    return np.asarray(np.where(seen, np.exp(-effect.depth * way), 0.0), dtype=np.float32)


def falloff(
    geometry: Geometry, on: bool = True, principal_point: tuple[float, float] | None = None
) -> Floats:
    """(rows, columns) float32: cos³ of the angle to the central ray.

    Two powers are the inverse square of the distance, one is the slant at which a flat
    detector is met.
    """
    if not on or not np.isfinite(geometry.sdd_mm):
        return np.ones((1, 1), np.float32)
    down, right = positions_mm(geometry, principal_point)
    square = 1.0 + (down**2 + right**2) / np.float32(geometry.sdd_mm**2)
    return np.asarray(1.0 / (square * np.sqrt(square)), dtype=np.float32)


def opening(geometry: Geometry, leaves: Collimation | None) -> Floats:
    """(rows, columns) float32, 0...1: how much of the focal spot each pixel sees past the leaves.

    An edge is a straight ramp, as an even focal spot makes it.
    """
    if leaves is None or not any(leaves.margins):
        return np.ones((1, 1), np.float32)
    down, right = positions_mm(geometry)
    turn = np.deg2rad(leaves.turn_deg)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = cos * down - sin * right, sin * down + cos * right
    height, width = (
        n * mm for n, mm in zip((geometry.rows, geometry.columns), geometry.pixel_spacing_mm)
    )
    sides = ((u, height), (-u, height), (v, width), (-v, width))
    light = np.ones((1, 1), np.float32)
    for margin, (inwards, size) in zip(leaves.margins, sides, strict=True):
        if margin > 0:
            inside = inwards + np.float32((0.5 - margin) * size)
            ramp = np.float32(max(leaves.penumbra_mm, 1e-3))
            light = light * np.clip(inside / ramp + np.float32(0.5), 0.0, 1.0)
    return np.asarray(light, dtype=np.float32)


def fill(
    geometry: Geometry,
    *,
    anode: Heel | None = None,
    distance: bool = False,
    leaves: Collimation | None = None,
    principal_point: tuple[float, float] | None = None,
) -> Floats:
    """(rows, columns) float32: all three effects, with what the leaves let through."""
    light = opening(geometry, leaves)
    if light.size > 1:
        light = light * np.float32(1.0 - LEAF_TRANSMISSION) + np.float32(LEAF_TRANSMISSION)
    product = light * heel(geometry, anode, principal_point)
    product = product * falloff(geometry, distance, principal_point)
    whole = np.broadcast_to(product, (geometry.rows, geometry.columns))
    return np.asarray(whole, dtype=np.float32)

"""Tibiae from parameters, built as blended solids like the femora.

The construction works in mm in a frame of its own: x along the shaft, 0 at the ankle's
joint surface; y lateral and 0 on the shaft; z to the front. It builds a right bone; a left
one is its mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh

from osteoprint.ct.implicit import (
    Coordinates,
    Field,
    blend,
    capsule,
    carve,
    check_positive,
    ellipsoid,
    extruded,
    finish,
    ramp,
    surface,
    to_length,
    undulate,
)
from osteoprint.errors import InputError
from osteoprint.frames import Side


@dataclass(frozen=True)
class TibiaParameters:
    """What a parametric tibia is made from. Lengths in mm, angles in degrees.

    Attributes
    ----------
    side : of the body.
    length_mm : extent along the shaft axis, from eminence to malleolus.
    plateau_width_mm : side to side.
    medial_depth_mm, lateral_depth_mm : front to back, of the two halves of the plateau.
    slope_deg : how far the plateau falls to the back.
    eminence_mm : height of the intercondylar spines.
    tuberosity : size, 1 is typical for a human.
    shaft_ml_mm, shaft_ap_mm : mid-shaft diameters.
    triangle : how triangular the shaft's section is: 0 round, 0.15 with a sharp shin.
    waist : narrowest part of the shaft, as a fraction of the length from the ankle.
    ankle_ml_mm, ankle_ap_mm : of the distal end, malleolus included side to side.
    malleolus_mm : how far the medial malleolus reaches below the joint.
    torsion_deg : how far the ankle is turned outwards against the knee.
    bow_mm, sagittal_bow_mm : how far mid-shaft lies to the lateral side, to the front.
    flare : width of the metaphysis below the plateau, 1 is typical.
    bump_mm, sway_mm, surface_seed : individual undulation of the surface and of the bone.
    """

    side: Side
    length_mm: float
    plateau_width_mm: float
    medial_depth_mm: float
    lateral_depth_mm: float
    slope_deg: float
    eminence_mm: float
    tuberosity: float
    shaft_ml_mm: float
    shaft_ap_mm: float
    triangle: float
    waist: float
    ankle_ml_mm: float
    ankle_ap_mm: float
    malleolus_mm: float
    torsion_deg: float
    bow_mm: float
    sagittal_bow_mm: float
    flare: float
    bump_mm: float
    sway_mm: float
    surface_seed: int


_SIGNED = frozenset(
    {
        *("slope_deg", "triangle", "torsion_deg", "bow_mm", "sagittal_bow_mm"),
        *("bump_mm", "sway_mm", "surface_seed"),
    }
)


def tibia(parameters: TibiaParameters, *, resolution_mm: float | None = None) -> trimesh.Trimesh:
    """The closed surface of a tibia.

    Parameters
    ----------
    parameters : see :class:`TibiaParameters`.
    resolution_mm : edge of the grid the surface is found on; None for 1/170 of the length.

    Returns
    -------
    Closed, outward mesh of genus 0 in the bone's anatomical frame (x proximal, y to the
    patient's right along the plateau's width, z to the front; origin in the middle of the
    bounding box), mm. The same parameters give the same bits.

    Raises InputError if a parameter is not positive and finite where it must be, or
    together they make no simple closed body.
    """
    p = parameters
    check_positive("tibia", p, signed=_SIGNED)
    step = p.length_mm / 170 if resolution_mm is None else resolution_mm
    if not (np.isfinite(step) and 0 < step < p.length_mm / 20):
        raise InputError("tibia", f"resolution {step} mm", "give one below 1/20 of the length")
    wide, deep = 0.62 * p.plateau_width_mm, 0.78 * max(p.medial_depth_mm, p.plateau_width_mm * 0.7)
    gap = 0.04 * p.length_mm
    low = (-p.malleolus_mm - gap, -wide - gap, -deep - gap)
    high = (p.length_mm + gap, wide + gap, deep + gap)
    mesh = surface(lambda at: _field(at, p), low, high, step, "tibia")
    vertices = undulate(mesh, p.surface_seed, p.bump_mm, p.sway_mm, p.shaft_ml_mm)
    return finish(to_length(vertices, p.length_mm), mesh.faces, p.side)


def _field(at: Coordinates, p: TibiaParameters) -> Field:
    """Signed distance to the whole bone; the ends are worked out only where they are."""
    body = _shaft(at, p)
    x, y, z = at
    ends = ((x[:, 0, 0] < 0.3 * p.length_mm, _ankle), (x[:, 0, 0] > 0.6 * p.length_mm, _knee))
    for where, add_end in ends:
        body[where] = add_end((x[where], y, z), body[where], p)
    return body


def _plateau_x(p: TibiaParameters) -> float:
    """Height of the plateau's middle: the spines and the malleolus have their share."""
    return p.length_mm - p.malleolus_mm - 0.8 * p.eminence_mm


def _turned(at: Coordinates, angle: Field) -> tuple[Field, Field]:
    """y and z in a frame turned about the shaft by an angle that depends on x."""
    c, s = np.cos(angle), np.sin(angle)
    return c * at[1] + s * at[2], c * at[2] - s * at[1]


def _shaft(at: Coordinates, p: TibiaParameters) -> Field:
    """A tube of triangular section: the shin in front, widening to knee and ankle."""
    top = _plateau_x(p)
    s = at[0] / top
    y, z = _turned(at, np.deg2rad(p.torsion_deg) * (ramp(s, 0.0, 0.75) - 1.0))
    arch = 1 - ((s - 0.5) / 0.5) ** 2
    u = y - p.bow_mm * arch
    v = z - p.sagittal_bow_mm * arch
    upper = (np.clip((s - 0.56) / 0.44, 0.0, 1.1) ** 2.0 + 0.12 * ramp(s, 0.82, 0.95)) * p.flare
    lower = np.clip((p.waist - s) / p.waist, 0.0, 1.1) ** 2
    slim = 1 - 0.10 * (1 - ramp(np.abs(s - p.waist), 0.0, 0.3))
    a = p.shaft_ml_mm / 2 * slim + (0.44 * p.plateau_width_mm - p.shaft_ml_mm / 2) * upper
    a = a + (0.40 * p.ankle_ml_mm - p.shaft_ml_mm / 2) * lower
    b = p.shaft_ap_mm / 2 * slim + (0.40 * p.medial_depth_mm - p.shaft_ap_mm / 2) * upper
    b = b + (0.39 * p.ankle_ap_mm - p.shaft_ap_mm / 2) * lower
    v = v + 0.10 * p.medial_depth_mm * upper
    angle = np.arctan2(v, u)
    radius = 1 / np.sqrt((np.cos(angle) / a) ** 2 + (np.sin(angle) / b) ** 2)
    from_front = np.mod(angle + 0.5 * np.pi, 2 * np.pi) - np.pi
    sharp = p.triangle * ramp(s, 0.08, 0.30) * (1 - 0.6 * ramp(s, 0.80, 0.95))
    radius *= 1 + sharp * (np.cos(3 * from_front) + 0.35 * np.cos(6 * from_front))
    tube = 0.93 * (np.hypot(u, v) - radius)
    low, high = 0.015 * p.length_mm, top - 0.10 * p.plateau_width_mm
    return extruded(tube, at[0] - (low + high) / 2, (high - low) / 2, 0.2 * p.shaft_ml_mm)


def _knee(at: Coordinates, body: Field, p: TibiaParameters) -> Field:
    """Plateau with two shallow dishes, the spines between them, and the tuberosity."""
    x, y, z = at
    w, top = p.plateau_width_mm, _plateau_x(p)
    middle = -0.10 * p.medial_depth_mm
    height = x - top - np.tan(np.deg2rad(p.slope_deg)) * (z - middle)
    shelf = 0.12 * w
    flat = (y, z, np.zeros(()))
    medial, lateral = (
        ellipsoid(flat, (sign * 0.225 * w, middle, 0.0), (0.218 * w, 0.44 * depth, 1.0))
        for sign, depth in ((-1.0, p.medial_depth_mm), (1.0, p.lateral_depth_mm))
    )
    disc = extruded(blend(medial, lateral, 0.22 * w), height + shelf, shelf, 0.08 * w)
    body = blend(body, disc, 0.26 * w)
    for sign, depth in ((-1.0, p.medial_depth_mm), (1.0, p.lateral_depth_mm)):
        dish = ellipsoid(
            (height, y, z),
            (0.10 * w, sign * 0.26 * w, middle),
            (0.125 * w, 0.20 * w, 0.40 * depth),
        )
        body = carve(body, dish, 0.06 * w)
    for sign, forward in ((-1.0, 0.02), (1.0, -0.05)):
        foot = (top - 0.06 * w, sign * 0.05 * w, middle + forward * w)
        drop = np.tan(np.deg2rad(p.slope_deg)) * forward * w
        spine = (top + drop + p.eminence_mm - 0.04 * w, sign * 0.075 * w, middle + forward * w)
        body = blend(body, capsule(at, foot, spine, (0.10 * w, 0.04 * w)), 0.07 * w)
    t = 0.075 * w * p.tuberosity
    front = 0.40 * p.medial_depth_mm
    start = (top - 0.30 * w, 0.04 * w, front - 0.17 * p.medial_depth_mm)
    knob = (top - 0.52 * w, 0.05 * w, front - 0.16 * p.medial_depth_mm + 0.5 * t)
    end = (top - 1.1 * w, 0.02 * w, 0.5 * p.shaft_ap_mm - 0.4 * t + p.sagittal_bow_mm * 0.5)
    body = blend(body, capsule(at, start, knob, (1.1 * t, 1.3 * t)), 0.26 * w)
    return blend(body, capsule(at, knob, end, (1.2 * t, 0.5 * t)), 0.26 * w)


def _ankle(at: Coordinates, body: Field, p: TibiaParameters) -> Field:
    """The distal end with its joint surface, the medial malleolus and the fibular notch."""
    y, z = _turned(at, np.asarray(-np.deg2rad(p.torsion_deg)))
    x = at[0]
    ml, ap = p.ankle_ml_mm, p.ankle_ap_mm
    outline = ellipsoid((y, z, np.zeros(())), (0.02 * ml, 0.0, 0.0), (0.38 * ml, 0.29 * ap, 1.0))
    block = extruded(outline, x - 0.24 * ml, 0.24 * ml, 0.16 * ml)
    body = blend(body, block, 0.45 * ml)
    start = (0.45 * ml, -0.28 * ml, 0.04 * ap)
    end = (-p.malleolus_mm + 0.15 * ml, -0.34 * ml, 0.06 * ap)
    body = blend(body, capsule((x, y, z), start, end, (0.26 * ml, 0.15 * ml)), 0.30 * ml)
    # The talus: a roll from side to side that hollows the joint surface.
    roll = np.hypot(x + 0.52 * ap, z) - 0.60 * ap
    body = carve(body, extruded(roll, y - 0.16 * ml, 0.40 * ml, 0.05 * ml), 0.08 * ml)
    foot, end = (-0.2 * ml, 0.66 * ml, -0.05 * ap), (0.7 * ml, 0.74 * ml, 0.0)
    notch = capsule((x, y, z), foot, end, (0.24 * ml, 0.2 * ml))
    return carve(body, notch, 0.10 * ml)

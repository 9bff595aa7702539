"""Femora from parameters: sampled from published distributions, built as blended solids.

The construction works in mm in a frame of its own: x along the shaft, 0 at the knee's
distal plane; y lateral and 0 on the shaft; z to the front and 0 at the bow's apex. It
builds a right bone; a left one is its mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.ct.implicit import (
    Coordinates,
    Field,
    Point,
    blend,
    capsule,
    carve,
    check_positive,
    ellipsoid,
    extruded,
    finish,
    ramp,
    sphere,
    surface,
    to_length,
    two_circles,
    undulate,
)
from osteoprint.errors import InputError
from osteoprint.frames import Side


@dataclass(frozen=True)
class FemurParameters:
    """What a parametric femur is made from. Lengths in mm, angles in degrees.

    Attributes
    ----------
    side : of the body.
    length_mm : extent along the shaft axis.
    head_diameter_mm : of the sphere that the head is.
    neck_shaft_angle_deg : between neck and shaft axis.
    anteversion_deg : of the neck axis, to the front of the posterior condylar line.
    neck_length_mm : head centre to shaft axis, along the neck axis.
    shaft_ml_mm, shaft_ap_mm : mid-shaft diameters, side to side and front to back (the
        latter without the linea aspera).
    bow_radius_mm, bow_apex : radius of the anterior bow; where its apex lies, from the
        distal end, as a fraction of the length.
    coronal_bow_mm : how far the middle of the shaft lies lateral of its ends.
    twist_deg : turn of the shaft's cross-section from the distal to the proximal end.
    epicondylar_width_mm : greatest width of the distal end.
    condyle_depth_mm : front to back of the distal end.
    medial_radius_mm, lateral_radius_mm : of the posterior condyles, seen from the side.
    bicondylar_angle_deg : how far the knee's distal plane tilts: the medial condyle is lower.
    notch_width_mm, groove_depth_mm : intercondylar notch; patellar groove.
    trochanter_height_mm : tip of the greater trochanter above the head's centre.
    greater_trochanter, lesser_trochanter : sizes, 1 is typical.
    linea_aspera_mm : height of the ridge along the back.
    flare : how far up the distal widening reaches, 1 is typical.
    bump_mm, sway_mm, surface_seed : individual undulation of the surface and of the bone.
    """

    side: Side
    length_mm: float
    head_diameter_mm: float
    neck_shaft_angle_deg: float
    anteversion_deg: float
    neck_length_mm: float
    shaft_ml_mm: float
    shaft_ap_mm: float
    bow_radius_mm: float
    bow_apex: float
    coronal_bow_mm: float
    twist_deg: float
    epicondylar_width_mm: float
    condyle_depth_mm: float
    medial_radius_mm: float
    lateral_radius_mm: float
    bicondylar_angle_deg: float
    notch_width_mm: float
    groove_depth_mm: float
    trochanter_height_mm: float
    greater_trochanter: float
    lesser_trochanter: float
    linea_aspera_mm: float
    flare: float
    bump_mm: float
    sway_mm: float
    surface_seed: int


def femur(parameters: FemurParameters, *, resolution_mm: float | None = None) -> trimesh.Trimesh:
    """The closed surface of a femur.

    Parameters
    ----------
    parameters : see :class:`FemurParameters`.
    resolution_mm : edge of the grid the surface is found on; None for 1/180 of the length
        (2.4 mm in a human femur), which gives about 25,000 triangles.

    Returns
    -------
    Closed, outward mesh of genus 0 in the bone's anatomical frame (x proximal, y to the
    patient's right along the posterior condylar line, z to the front; origin in the
    middle of the bounding box), mm. The same parameters give the same bits.

    Raises InputError if a parameter is not positive and finite where it must be, or
    together they make no simple closed body.
    """
    p = parameters
    check_positive("femur", p, signed=_SIGNED)
    step = p.length_mm / 180 if resolution_mm is None else resolution_mm
    if not (np.isfinite(step) and 0 < step < p.length_mm / 20):
        raise InputError("femur", f"resolution {step} mm", "give one below 1/20 of the length")
    head, _ = _neck(p)
    radius = p.head_diameter_mm / 2
    back, front = _distal_extent(p)
    gap = 0.03 * p.length_mm
    low = (-0.02 * p.length_mm - gap, head[1] - radius - gap, back - gap)
    high = (
        p.length_mm + 0.4 * p.head_diameter_mm + gap + max(p.trochanter_height_mm, 0.0),
        p.epicondylar_width_mm / 2 + 2 * gap,
        max(front, head[2] + radius, p.shaft_ap_mm) + gap,
    )
    mesh = surface(lambda at: _field(at, p), low, high, step, "femur")
    vertices = undulate(mesh, p.surface_seed, p.bump_mm, p.sway_mm, p.shaft_ml_mm)
    vertices = to_length(vertices, p.length_mm)
    vertices = _lay_on_condyles(vertices)
    return finish(vertices, mesh.faces, p.side)


_SIGNED = frozenset(
    {
        *("anteversion_deg", "coronal_bow_mm", "twist_deg", "bicondylar_angle_deg"),
        *("trochanter_height_mm", "linea_aspera_mm", "bump_mm", "sway_mm", "surface_seed"),
    }
)


def _field(at: Coordinates, p: FemurParameters) -> Field:
    """Signed distance to the whole bone; the ends are worked out only where they are."""
    body = _shaft(at, p)
    x, y, z = at
    ends = ((x[:, 0, 0] < 0.3 * p.length_mm, _distal), (x[:, 0, 0] > 0.68 * p.length_mm, _proximal))
    for where, add_end in ends:
        body[where] = add_end((x[where], y, z), body[where], p)
    return body


def _centre(x: Field, p: FemurParameters) -> tuple[Field, Field]:
    """y and z of the shaft's axis at height x: an arc, straight near the hip."""
    t = x - p.bow_apex * p.length_mm
    bend = np.minimum(t, (0.78 - p.bow_apex) * p.length_mm)
    z = -(bend**2) / (2 * p.bow_radius_mm) - (t - bend) * 0.6 * bend / p.bow_radius_mm
    y = -p.coronal_bow_mm * np.minimum(((x / p.length_mm - 0.5) / 0.4) ** 2, 1.5)
    return np.asarray(y), np.asarray(z)


def _shaft(at: Coordinates, p: FemurParameters) -> Field:
    """The tube from the condyles to the trochanters, with the lines along its back."""
    x, y, z = at
    s = x / p.length_mm
    yc, zc = _centre(x, p)
    widening = np.clip((0.45 - s) / 0.3, 0.0, 1.45) ** 1.9
    widening = p.flare * (widening + 0.55 * ramp(-s, -0.18, -0.07))
    upper = np.clip((s - 0.62) / 0.2, 0.0, 1.3) ** 2
    a = p.shaft_ml_mm / 2 * (1 + 0.7 * widening + 0.20 * upper)
    b = p.shaft_ap_mm / 2 * (1 + 0.24 * widening + 0.12 * upper)
    u, v = y - yc, z - zc
    turn = np.deg2rad(p.twist_deg) * (s - 0.5)
    angle = np.arctan2(v, u) - turn
    radius = 1 / np.sqrt((np.cos(angle) / a) ** 2 + (np.sin(angle) / b) ** 2)
    # Measured from the back, positive to the lateral side.
    from_back = np.mod(angle + 1.5 * np.pi, 2 * np.pi) - np.pi
    radius *= 1 + 0.03 * np.cos(3 * from_back) * (1 - ramp(s, 0.75, 0.85))
    split = 0.9 * ramp(-s, -0.38, -0.14) + 0.55 * ramp(s, 0.66, 0.82)
    single = 1 - np.minimum(split / 0.5, 1.0)
    height = p.linea_aspera_mm * ramp(s, 0.10, 0.26) * (1 - ramp(s, 0.74, 0.84))
    lines = np.exp(-(((from_back - split) / 0.30) ** 2)) * (0.5 + 0.1 * single)
    lines += np.exp(-(((from_back + split) / 0.30) ** 2)) * (0.35 + 0.25 * single)
    tube = np.hypot(u, v) - radius - height * lines
    bottom = 0.33 * p.condyle_depth_mm
    top = _neck(p)[1][0] + 0.1 * p.head_diameter_mm
    rounding = 0.5 * p.shaft_ap_mm
    return extruded(tube, x - (bottom + top) / 2, (top - bottom) / 2, rounding)


def _neck(p: FemurParameters) -> tuple[Point, Point]:
    """Centre of the head, and where the neck's axis meets the shaft's."""
    tilt, turn = np.deg2rad(p.neck_shaft_angle_deg), np.deg2rad(p.anteversion_deg)
    top = p.length_mm - np.sin(np.deg2rad(p.bicondylar_angle_deg)) * 0.28 * p.epicondylar_width_mm
    x = top - p.head_diameter_mm / 2 + p.neck_length_mm * np.cos(tilt)
    y, z = (float(c) for c in _centre(np.asarray(x), p))
    side = p.neck_length_mm * np.sin(tilt)
    head = (
        float(x - p.neck_length_mm * np.cos(tilt)),
        float(y - side * np.cos(turn)),
        float(z + side * np.sin(turn)),
    )
    return head, (float(x), y, z)


def _neck_field(at: Coordinates, p: FemurParameters) -> Field:
    """A waisted tube of elliptical section from the shaft into the head."""
    head, base = _neck(p)
    axis = np.subtract(head, base)
    length = float(np.linalg.norm(axis))
    axis /= length
    depth = np.cross(axis, [1.0, 0.0, 0.0])
    depth /= np.linalg.norm(depth)
    height = np.cross(depth, axis)
    d = [c - o for c, o in zip(at, base)]
    t, v, w = (d[0] * e[0] + d[1] * e[1] + d[2] * e[2] for e in (axis, height, depth))
    radius = p.head_diameter_mm / 2
    spread = np.clip(1 - t / length / 0.72, 0.0, 1.2) ** 2
    high, deep = radius * (0.70 + 0.36 * spread), radius * (0.55 + 0.16 * spread)
    rho = np.sqrt((v / high) ** 2 + (w / deep) ** 2)
    tube = (rho - 1) * np.sqrt((v * v + w * w + 1e-9) / (rho * rho + 1e-9))
    return extruded(tube, t - length / 2, length / 2, 0.2 * radius)


def _proximal(at: Coordinates, body: Field, p: FemurParameters) -> Field:
    """Neck, trochanters, the crest between them, the fossa, and the head."""
    head, base = _neck(p)
    h = p.head_diameter_mm / 2
    g = h * p.greater_trochanter
    m = h * p.lesser_trochanter
    tip_x = head[0] + p.trochanter_height_mm

    def by(dx: float, dy: float, dz: float, unit: float = h) -> Point:
        return (base[0] + dx * unit, base[1] + dy * unit, base[2] + dz * unit)

    tip = (tip_x - 0.42 * g, base[1] + 0.36 * g, base[2] - 0.46 * g)
    fore = (tip_x - 0.80 * g, base[1] + 0.50 * g, base[2] + 0.22 * g)
    body = blend(body, _neck_field(at, p), 0.75 * h)
    flank = ellipsoid(at, by(0.05, 0.46, -0.08, g), (1.15 * g, 0.58 * g, 0.88 * g))
    body = blend(body, flank, 0.4 * h)
    body = blend(body, capsule(at, by(0.1, 0.45, -0.25, g), tip, (0.60 * g, 0.44 * g)), 0.35 * h)
    body = blend(body, capsule(at, fore, tip, (0.46 * g, 0.44 * g)), 0.5 * h)
    lesser = by(-1.2, -0.84, -0.68)
    body = blend(body, capsule(at, by(-1.1, -0.2, -0.2), lesser, (0.60 * m, 0.36 * m)), 0.5 * h)
    crest = capsule(at, tip, by(-0.95, -0.6, -0.6), (0.26 * h, 0.22 * h))
    body = blend(body, crest, 0.4 * h)
    fossa = (tip_x - 0.75 * h, base[1] - 0.22 * h, base[2] - 0.72 * h)
    body = carve(body, ellipsoid(at, fossa, (0.5 * h, 0.28 * h, 0.34 * h)), 0.3 * h)
    return blend(body, sphere(at, head, h), 0.22 * h)


def _distal_extent(p: FemurParameters) -> tuple[float, float]:
    """z of the back of the condyles and of the front of the knee."""
    middle = float(_centre(np.asarray(0.06 * p.length_mm), p)[1]) - 0.075 * p.condyle_depth_mm
    return middle - p.condyle_depth_mm / 2, middle + p.condyle_depth_mm / 2


def _distal(at: Coordinates, body: Field, p: FemurParameters) -> Field:
    """Condyles, epicondyles and the patellar groove."""
    tilt = np.deg2rad(p.bicondylar_angle_deg)
    y_knee = float(_centre(np.asarray(0.05 * p.length_mm), p)[0])
    x = np.cos(tilt) * at[0] - np.sin(tilt) * (at[1] - y_knee)
    y = np.cos(tilt) * (at[1] - y_knee) + np.sin(tilt) * at[0] - 0.05 * p.epicondylar_width_mm
    z = at[2]
    back, front = _distal_extent(p)
    width, depth = p.epicondylar_width_mm, p.condyle_depth_mm
    forward = np.clip((z - back) / depth, 0.0, 1.0)
    half = (0.88 * width - p.notch_width_mm) / 4
    beside = p.notch_width_mm / 2 + half
    big = 0.36 * depth
    # The groove drifts to the lateral side on its way to the front.
    inner = two_circles(
        x,
        z,
        (big, front - big, big - p.groove_depth_mm),
        (1.5 * big, front - 1.25 * big, 0.9 * big),
    )
    groove = extruded(inner, y - 0.10 * width * forward, 0.2 * width, 0.06 * width)
    body = blend(body, groove, 0.08 * width)
    sides = ((-1.0, p.medial_radius_mm, 0.10, 0.16), (1.0, p.lateral_radius_mm, 0.0, 0.02))
    for sign, radius, inset, drift in sides:
        middle = sign * beside + drift * width * forward
        outline = two_circles(
            x,
            z,
            (radius + 0.03 * depth, back + radius, radius),
            (big, front - big - inset * depth, big),
        )
        body = blend(body, extruded(outline, y - middle, half, 0.75 * half), 0.07 * width)
        knob = (0.36 * width, sign * 0.36 * width, (back + front) / 2 - 0.02 * depth)
        bump = ellipsoid((x, y, z), knob, (0.15 * width, 0.115 * width, 0.17 * width))
        body = blend(body, bump, 0.22 * width)
    return body


def _lay_on_condyles(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn about x until the line that touches both posterior condyles runs along y."""
    low, high = vertices[:, 0].min(), vertices[:, 0].max()
    distal = vertices[:, 0] < low + 0.15 * (high - low)
    for _ in range(10):
        knee = vertices[distal][:, 1:]
        middle = (knee[:, 0].min() + knee[:, 0].max()) / 2
        touch = []
        for part in (knee[knee[:, 0] < middle], knee[knee[:, 0] >= middle]):
            touch.append(part[np.argmin(part[:, 1])])
        angle = np.arctan2(touch[1][1] - touch[0][1], touch[1][0] - touch[0][0])
        c, s = np.cos(-angle), np.sin(-angle)
        vertices = vertices @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]).T
        if abs(angle) < 1e-7:
            break
    return vertices

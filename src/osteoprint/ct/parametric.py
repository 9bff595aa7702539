"""Parametric long bones: individuals drawn at random, each from one seed.

Sizes and angles follow published means and spreads. The lengths of one bone hang together
through its individual's size (and, in humans, sex); each parameter also varies by itself,
and a smooth undulation, drawn with it, makes two bones of equal measures differ.

Sources. Human femur: Terzidis et al., Anat Res Int 2012:679658 (360 femora: bicondylar
width 88.6 ± 4.2 mm in men and 78.5 ± 3.0 in women, condyle depth 61.1 and 55.9, notch
22.0 and 18.7); Kapur et al., Folia Medica Sarajevo (100 femora: epicondylar width 82.7 and
72.5, lateral condyle depth 64.7 and 56.7; the means here lie between the two); Toogood et
al., Clin Orthop Relat Res 2009;467:876 (375 femora: neck-shaft angle 129, version 9.7
degrees); Jiang et al., Medicine 2015;94:e891 (version 10.6, higher in women); Maratt et
al., J Orthop Trauma 2014;28:6 (3,922 femora: radius of the medullary bow 1120 ± 260 mm,
correlation with length 0.36-0.39). Length 435 ± 28, head 46 ± 4, shaft 28 ± 2 mm, offset,
trochanters and bicondylar angle: typical values of the osteological literature. Human
tibia: plateau after the comparison of five populations in PMC9703208 (width 75-80 mm in men and
66-72 in women, depth 48-54 and 42-48); slope, torsion and length: typical. Cat: Fonseca et
al., Arq Bras Med Vet Zootec 2017;69:1513 (92 cats: inclination 137 degrees; other authors
122-125, the mean here lies between); Swanson et al., Vet Surg 2012;41:696 (lateral distal
femoral angle 94 degrees); a CT study of 8 feline tibiae (length 112 mm, canal 4.2 mm); the
other feline figures are typical proportions.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import trimesh

from osteoprint.ct.parametric_femur import FemurParameters, femur
from osteoprint.ct.parametric_tibia import TibiaParameters, tibia
from osteoprint.errors import InputError
from osteoprint.frames import Side

__all__ = [
    "FemurParameters",
    "TibiaParameters",
    "femur",
    "sample_bone",
    "sample_femur",
    "sample_tibia",
    "tibia",
]

Size = Literal["human", "cat"]
Kind = Literal["femur", "tibia"]

# Nobody in these samples is further than this from the mean, in standard deviations.
_TAIL = 2.5

# parameter: (mean of women, mean of men, SD within a sex, correlation with the size).
# Of cats: (mean, mean, SD, correlation).
_Table = dict[str, tuple[float, float, float, float]]

_HUMAN_FEMUR: _Table = {
    "length_mm": (418.0, 453.0, 21.0, 1.0),
    "head_diameter_mm": (43.4, 48.2, 2.3, 0.6),
    "neck_shaft_angle_deg": (128.0, 127.0, 5.0, 0.0),
    "anteversion_deg": (13.5, 11.0, 7.5, 0.0),
    "neck_length_mm": (51.0, 56.0, 4.0, 0.5),
    "shaft_ml_mm": (26.3, 29.0, 1.7, 0.5),
    "shaft_ap_mm": (26.0, 29.0, 1.8, 0.5),
    "bow_radius_mm": (1070.0, 1170.0, 250.0, 0.35),
    "bow_apex": (0.49, 0.49, 0.03, 0.0),
    "coronal_bow_mm": (1.5, 1.5, 1.5, 0.0),
    "twist_deg": (5.0, 5.0, 6.0, 0.0),
    "epicondylar_width_mm": (76.0, 85.0, 3.6, 0.6),
    "condyle_depth_mm": (58.5, 65.0, 3.2, 0.6),
    "medial_radius_mm": (18.8, 21.0, 1.2, 0.5),
    "lateral_radius_mm": (18.6, 20.8, 1.3, 0.5),
    "bicondylar_angle_deg": (9.5, 8.5, 2.0, 0.0),
    "notch_width_mm": (18.5, 21.0, 1.8, 0.3),
    "groove_depth_mm": (5.3, 5.9, 0.9, 0.2),
    "trochanter_height_mm": (3.0, 4.0, 4.5, 0.0),
    "greater_trochanter": (1.0, 1.0, 0.08, 0.0),
    "lesser_trochanter": (1.0, 1.0, 0.13, 0.0),
    "linea_aspera_mm": (2.0, 2.8, 0.8, 0.1),
    "flare": (1.0, 1.0, 0.10, 0.0),
    "bump_mm": (0.6, 0.6, 0.1, 0.0),
    "sway_mm": (1.0, 1.0, 0.2, 0.0),
}
_CAT_FEMUR: _Table = {
    "length_mm": (110.0, 110.0, 9.0, 1.0),
    "head_diameter_mm": (9.8, 9.8, 0.6, 0.7),
    "neck_shaft_angle_deg": (130.0, 130.0, 4.5, 0.0),
    "anteversion_deg": (20.0, 20.0, 5.0, 0.0),
    "neck_length_mm": (13.6, 13.6, 1.1, 0.6),
    "shaft_ml_mm": (8.8, 8.8, 0.7, 0.6),
    "shaft_ap_mm": (8.3, 8.3, 0.7, 0.6),
    "bow_radius_mm": (430.0, 430.0, 90.0, 0.3),
    "bow_apex": (0.46, 0.46, 0.03, 0.0),
    "coronal_bow_mm": (0.2, 0.2, 0.4, 0.0),
    "twist_deg": (0.0, 0.0, 5.0, 0.0),
    "epicondylar_width_mm": (19.3, 19.3, 1.2, 0.7),
    "condyle_depth_mm": (18.6, 18.6, 1.2, 0.7),
    "medial_radius_mm": (5.4, 5.4, 0.35, 0.5),
    "lateral_radius_mm": (5.5, 5.5, 0.35, 0.5),
    "bicondylar_angle_deg": (3.8, 3.8, 1.5, 0.0),
    "notch_width_mm": (4.2, 4.2, 0.4, 0.3),
    "groove_depth_mm": (1.6, 1.6, 0.25, 0.2),
    "trochanter_height_mm": (0.6, 0.6, 0.9, 0.0),
    "greater_trochanter": (1.1, 1.1, 0.08, 0.0),
    "lesser_trochanter": (0.9, 0.9, 0.12, 0.0),
    "linea_aspera_mm": (0.35, 0.35, 0.12, 0.0),
    "flare": (0.5, 0.5, 0.06, 0.0),
    "bump_mm": (0.14, 0.14, 0.02, 0.0),
    "sway_mm": (0.25, 0.25, 0.05, 0.0),
}
_HUMAN_TIBIA: _Table = {
    "length_mm": (350.0, 384.0, 19.0, 1.0),
    "plateau_width_mm": (69.0, 77.5, 3.4, 0.6),
    "medial_depth_mm": (45.5, 51.5, 2.7, 0.6),
    "lateral_depth_mm": (41.5, 46.5, 2.7, 0.6),
    "slope_deg": (7.5, 7.0, 2.8, 0.0),
    "eminence_mm": (8.0, 9.0, 1.0, 0.2),
    "tuberosity": (1.0, 1.0, 0.12, 0.0),
    "shaft_ml_mm": (21.0, 23.5, 1.6, 0.5),
    "shaft_ap_mm": (25.5, 29.0, 1.9, 0.5),
    "triangle": (0.09, 0.10, 0.02, 0.0),
    "waist": (0.30, 0.30, 0.03, 0.0),
    "ankle_ml_mm": (43.0, 48.5, 2.5, 0.5),
    "ankle_ap_mm": (34.5, 38.5, 2.2, 0.5),
    "malleolus_mm": (12.5, 14.0, 1.5, 0.3),
    "torsion_deg": (24.0, 24.0, 7.0, 0.0),
    "bow_mm": (1.0, 1.5, 1.8, 0.0),
    "sagittal_bow_mm": (2.0, 2.5, 1.8, 0.0),
    "flare": (1.0, 1.0, 0.08, 0.0),
    "bump_mm": (0.6, 0.6, 0.1, 0.0),
    "sway_mm": (1.0, 1.0, 0.2, 0.0),
}
_CAT_TIBIA: _Table = {
    "length_mm": (112.0, 112.0, 8.0, 1.0),
    "plateau_width_mm": (19.0, 19.0, 1.1, 0.7),
    "medial_depth_mm": (16.5, 16.5, 1.1, 0.7),
    "lateral_depth_mm": (15.8, 15.8, 1.1, 0.7),
    "slope_deg": (24.0, 24.0, 2.5, 0.0),
    "eminence_mm": (2.0, 2.0, 0.25, 0.2),
    "tuberosity": (1.5, 1.5, 0.12, 0.0),
    "shaft_ml_mm": (7.2, 7.2, 0.5, 0.6),
    "shaft_ap_mm": (7.6, 7.6, 0.5, 0.6),
    "triangle": (0.06, 0.06, 0.015, 0.0),
    "waist": (0.36, 0.36, 0.03, 0.0),
    "ankle_ml_mm": (13.0, 13.0, 0.8, 0.6),
    "ankle_ap_mm": (9.5, 9.5, 0.6, 0.6),
    "malleolus_mm": (3.4, 3.4, 0.4, 0.3),
    "torsion_deg": (8.0, 8.0, 4.0, 0.0),
    "bow_mm": (0.4, 0.4, 0.5, 0.0),
    "sagittal_bow_mm": (0.9, 0.9, 0.5, 0.0),
    "flare": (1.0, 1.0, 0.08, 0.0),
    "bump_mm": (0.14, 0.14, 0.02, 0.0),
    "sway_mm": (0.25, 0.25, 0.05, 0.0),
}


def sample_femur(
    rng: np.random.Generator, *, size: Size = "human", side: Side = Side.RIGHT
) -> FemurParameters:
    """Draw an individual's femur. The side takes no random numbers: left mirrors right.

    Raises InputError if `size` is neither "human" nor "cat".
    """
    values = _draw(rng, _table(size, _HUMAN_FEMUR, _CAT_FEMUR))
    seed = int(rng.integers(2**31))
    return FemurParameters(side=side, surface_seed=seed, **values)


def sample_tibia(
    rng: np.random.Generator, *, size: Size = "human", side: Side = Side.RIGHT
) -> TibiaParameters:
    """Draw an individual's tibia. The side takes no random numbers: left mirrors right.

    Raises InputError if `size` is neither "human" nor "cat".
    """
    values = _draw(rng, _table(size, _HUMAN_TIBIA, _CAT_TIBIA))
    seed = int(rng.integers(2**31))
    return TibiaParameters(side=side, surface_seed=seed, **values)


def sample_bone(
    rng: np.random.Generator,
    kind: Kind = "femur",
    size: Size = "human",
    side: Side = Side.RIGHT,
    *,
    resolution_mm: float | None = None,
) -> tuple[trimesh.Trimesh, FemurParameters | TibiaParameters]:
    """Draw an individual's bone: its closed surface, as :func:`femur`, and its parameters.

    Raises InputError if `kind` or `size` is unknown.
    """
    if kind == "femur":
        of_femur = sample_femur(rng, size=size, side=side)
        return femur(of_femur, resolution_mm=resolution_mm), of_femur
    if kind == "tibia":
        of_tibia = sample_tibia(rng, size=size, side=side)
        return tibia(of_tibia, resolution_mm=resolution_mm), of_tibia
    raise InputError(str(kind), "no such parametric bone", "use femur or tibia")


def _table(size: str, human: _Table, cat: _Table) -> _Table:
    if size == "human":
        return human
    if size == "cat":
        return cat
    raise InputError(str(size), "no such size of bone", "use human or cat")


def _draw(rng: np.random.Generator, table: _Table) -> dict[str, float]:
    """One individual: a sex, a size, and every parameter around what these two say."""
    sex = int(rng.integers(2))
    size = float(np.clip(rng.standard_normal(), -_TAIL, _TAIL))
    values = {}
    for name, row in table.items():
        own = float(np.clip(rng.standard_normal(), -_TAIL, _TAIL))
        sd, correlation = row[2:]
        values[name] = row[sex] + sd * (correlation * size + np.sqrt(1 - correlation**2) * own)
        values[name] = float(values[name])
    return values

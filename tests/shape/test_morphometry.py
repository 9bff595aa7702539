"""Bones whose measures are known because they were made from them, then real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from osteoprint.ct.parametric import FemurParameters, femur, sample_bone, sample_femur
from osteoprint.errors import InputError
from osteoprint.frames import Side, apply, rigid
from osteoprint.shape.morphometry import Morphometry, measure_bone

ONLY_OF_FEMORA = (
    "head_diameter_mm",
    "head_centre_mm",
    "neck_axis",
    "neck_shaft_angle_deg",
    "anteversion_deg",
    "epicondylar_width_mm",
)


def smooth_femur(
    seed: int, size: str = "human", side: Side = Side.RIGHT
) -> tuple[trimesh.Trimesh, FemurParameters]:
    """A femur without the individual undulation that shifts head and neck."""
    drawn = sample_femur(np.random.default_rng(seed), size=size, side=side)  # type: ignore[arg-type]
    parameters = replace(drawn, bump_mm=0.0, sway_mm=0.0)
    return femur(parameters), parameters


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("size", ["human", "cat"])
@pytest.mark.parametrize("seed", range(5))
def test_a_parametric_femur_measures_what_it_was_made_from(
    seed: int, size: str, side: Side
) -> None:
    mesh, made = smooth_femur(seed, size, side)
    found = measure_bone(mesh)
    scale = made.length_mm / 435.0
    assert found.side == side
    assert found.length_mm == pytest.approx(made.length_mm, abs=0.5 * scale)
    assert found.head_diameter_mm == pytest.approx(made.head_diameter_mm, abs=0.2 * scale)
    assert found.neck_shaft_angle_deg == pytest.approx(made.neck_shaft_angle_deg, abs=0.8)
    assert found.anteversion_deg == pytest.approx(made.anteversion_deg, abs=1.0)
    # The parametric width is that of the solids, before they are blended.
    assert found.epicondylar_width_mm == pytest.approx(made.epicondylar_width_mm, rel=0.05)


def test_the_head_keeps_its_size_when_it_is_dented_and_rimmed() -> None:
    mesh, made = smooth_femur(1)
    clean = measure_bone(mesh)
    vertices = np.array(mesh.vertices)
    away = vertices - clean.head_centre_mm
    outwards = away / np.linalg.norm(away, axis=1, keepdims=True)
    radius = made.head_diameter_mm / 2
    # A fovea 4 mm deep, opposite the neck, and osteophytes 3 mm high on one side of the rim.
    on_head = np.linalg.norm(away, axis=1) < 1.03 * radius
    fovea = on_head & (outwards @ clean.neck_axis > np.cos(0.3))
    rim = on_head & (np.abs(outwards @ clean.neck_axis) < 0.25) & (outwards[:, 2] > 0.3)
    assert fovea.sum() > 10
    assert rim.sum() > 10
    vertices[fovea] -= 4.0 * outwards[fovea]
    vertices[rim] += 3.0 * outwards[rim]
    worn = measure_bone(trimesh.Trimesh(vertices, mesh.faces, process=False))
    assert worn.head_diameter_mm == pytest.approx(clean.head_diameter_mm, abs=0.4)
    assert np.linalg.norm(worn.head_centre_mm - clean.head_centre_mm) < 0.5


def test_pose_does_not_matter_and_vectors_turn_with_the_bone() -> None:
    mesh, _ = smooth_femur(2)
    before = measure_bone(mesh)
    rotation = Rotation.random(random_state=np.random.default_rng(0)).as_matrix()
    motion = rigid(rotation, np.array([300.0, -200.0, 900.0]))
    after = measure_bone(mesh.copy().apply_transform(motion))
    for name, value in before.to_json().items():
        if isinstance(value, float):
            assert after.to_json()[name] == pytest.approx(value, abs=1e-4), name
    np.testing.assert_allclose(
        after.head_centre_mm, apply(motion, before.head_centre_mm[None])[0], atol=1e-4
    )
    np.testing.assert_allclose(after.neck_axis, rotation @ before.neck_axis, atol=1e-5)


def test_sizes_scale_and_angles_stay() -> None:
    mesh, _ = smooth_femur(3)
    before, after = measure_bone(mesh), measure_bone(mesh.copy().apply_scale(0.25))
    assert after.head_diameter_mm == pytest.approx(before.head_diameter_mm / 4, rel=1e-4)
    assert after.greatest_length_mm == pytest.approx(before.greatest_length_mm / 4, rel=1e-6)
    assert after.anteversion_deg == pytest.approx(before.anteversion_deg, abs=1e-3)
    assert after.neck_shaft_angle_deg == pytest.approx(before.neck_shaft_angle_deg, abs=1e-3)


def test_another_bone_has_a_length_and_widths_only() -> None:
    mesh, made = sample_bone(np.random.default_rng(0), "tibia")
    found = measure_bone(mesh, bone="tibia")
    assert found.length_mm == pytest.approx(made.length_mm, abs=2.0)
    assert found.greatest_length_mm >= found.length_mm
    assert found.proximal_width_mm == pytest.approx(made.plateau_width_mm, rel=0.08)
    assert 0 < found.midshaft_ml_mm < found.distal_width_mm < found.proximal_width_mm
    assert 0 < found.midshaft_ap_mm < found.distal_width_mm
    assert all(getattr(found, name) is None for name in ONLY_OF_FEMORA)


def test_a_tube_is_as_long_and_wide_as_it_is() -> None:
    tube = trimesh.creation.cylinder(radius=10.0, height=200.0, sections=256)
    found = measure_bone(tube, bone=None)
    assert found.length_mm == pytest.approx(200.0, abs=0.1)
    assert found.greatest_length_mm == pytest.approx(np.hypot(200.0, 20.0), abs=0.01)
    for width in (found.midshaft_ml_mm, found.midshaft_ap_mm, found.distal_width_mm):
        assert width == pytest.approx(20.0, abs=0.01)


def test_json_is_plain() -> None:
    values = measure_bone(smooth_femur(0)[0]).to_json()
    assert json.loads(json.dumps(values)) == values
    assert set(values) == set(Morphometry.__dataclass_fields__)
    assert values["side"] == "right"
    assert len(values["neck_axis"]) == len(values["head_centre_mm"]) == 3


def test_a_femur_without_its_head_is_refused() -> None:
    mesh, _ = smooth_femur(0)
    vertices = np.array(mesh.vertices)
    found = measure_bone(mesh)
    # Pressed flat onto the plane through the middle of the neck's base.
    depth = (vertices - found.head_centre_mm) @ found.neck_axis + 1.2 * found.head_diameter_mm / 2
    upper = (vertices[:, 0] > 0) & (depth > 0)
    vertices[upper] -= depth[upper, None] * found.neck_axis
    with pytest.raises(InputError, match=r"stump: shows no femoral (head|neck)"):
        measure_bone(trimesh.Trimesh(vertices, mesh.faces, process=False), source="stump")


def test_what_is_no_long_bone_is_refused() -> None:
    with pytest.raises(InputError, match="ball: "):
        measure_bone(trimesh.creation.icosphere(subdivisions=3, radius=30), source="ball")


@pytest.mark.real
@pytest.mark.parametrize("name", ["z001_L", "z019_R", "z036_L", "z062_R"])
def test_a_real_femur_measures_what_raters_marked(real_data: Path, name: str) -> None:
    raters = json.loads((real_data / "vsd_femora" / "landmarks.json").read_text("utf-8"))[name]
    marks = {
        key.split("(")[1].rstrip(")"): np.mean([rater[key] for rater in raters.values()], (0, 1))
        for key in raters["rater1"]
    }
    found = measure_bone(trimesh.load(real_data / "vsd_femora" / f"{name}.ply", process=False))
    assert found.side == (Side.LEFT if name.endswith("L") else Side.RIGHT)
    head = np.array([marks[key] for key in ("SFH", "AFH", "LFH", "PFH", "MFH", "IFH")])
    away = np.linalg.norm(head - found.head_centre_mm, axis=1)
    assert away == pytest.approx(found.head_diameter_mm / 2, abs=2.0)
    isthmus = np.mean([marks[key] for key in ("SNI", "ANI", "INI", "PNI")], axis=0)
    neck = found.head_centre_mm - isthmus
    assert np.degrees(np.arccos(found.neck_axis @ neck / np.linalg.norm(neck))) < 4.0
    width = float(np.linalg.norm(marks["LEC"] - marks["MEC"]))
    assert found.epicondylar_width_mm == pytest.approx(width, abs=2.0)
    length = float(np.linalg.norm(marks["SFH"] - marks["DMC"]))
    assert found.greatest_length_mm == pytest.approx(length, abs=2.0)


@pytest.mark.real
def test_both_femora_of_a_person_measure_alike(real_data: Path) -> None:
    left, right = (
        measure_bone(trimesh.load(real_data / "vsd_femora" / f"z061_{side}.ply", process=False))
        for side in "LR"
    )
    assert left.head_diameter_mm == pytest.approx(right.head_diameter_mm, abs=1.0)
    assert left.epicondylar_width_mm == pytest.approx(right.epicondylar_width_mm, abs=2.0)
    assert left.neck_shaft_angle_deg == pytest.approx(right.neck_shaft_angle_deg, abs=6.0)

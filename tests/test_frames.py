"""The anatomical axes: known by construction first, then real bones and raters' landmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from osteoprint.errors import InputError
from osteoprint.frames import Side, anatomical_frame, apply, invert_rigid, rigid

CONDYLES_APART = 50.0
CONDYLE_RADII = (22.0, 18.0)  # at the patient's left and right


def made_femur() -> trimesh.Trimesh:
    """A right femur of plain solids that pass through each other, in its anatomical frame:
    x to the head, y to the right (outwards), z to the front."""

    def ball(radius: float, *centre: float) -> trimesh.Trimesh:
        mesh = trimesh.creation.icosphere(subdivisions=4, radius=radius)
        return mesh.apply_translation(centre)

    def rod(radius: float, start: list[float], end: list[float]) -> trimesh.Trimesh:
        return trimesh.creation.cylinder(radius, segment=[start, end], sections=64)

    left, right = CONDYLE_RADII
    return trimesh.util.concatenate(
        [
            rod(14.0, [-190, 0, 0], [190, 0, 0]).subdivide_to_size(15.0),
            ball(left, -195, -CONDYLES_APART / 2, -22),
            ball(right, -195, CONDYLES_APART / 2, -22),
            ball(22.0, -190, 0, 6),
            rod(13.0, [170, 0, 0], [205, -42, 0]),
            ball(23.0, 205, -45, 4),
            ball(16.0, 190, 16, -4),
        ]
    )


def made_tibia() -> trimesh.Trimesh:
    """A right tibia of boxes, in its anatomical frame: plateau behind, inner ankle down."""

    def box(extents: list[float], centre: list[float]) -> trimesh.Trimesh:
        return trimesh.creation.box(extents).subdivide().subdivide().apply_translation(centre)

    return trimesh.util.concatenate(
        [
            box([340, 24, 24], [0, 0, 0]),
            box([30, 74, 46], [165, 0, -9]),
            box([24, 46, 36], [-165, 0, 0]),
            box([20, 12, 20], [-182, -16, 0]),
        ]
    )


def between(mesh: trimesh.Trimesh, low: float, high: float) -> np.ndarray:
    """The faces of `mesh` that lie between two heights along x: the bone cut off, open."""
    heights = mesh.vertices[:, 0][mesh.faces]
    return mesh.faces[(heights > low).all(axis=1) & (heights < high).all(axis=1)]


def some_motion(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rigid(Rotation.random(random_state=rng).as_matrix(), rng.normal(0, 400, 3))


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def test_inverse_of_a_rigid_transform_undoes_it() -> None:
    motion = some_motion(0)
    assert np.allclose(invert_rigid(motion) @ motion, np.eye(4), atol=1e-12)
    points = np.random.default_rng(1).normal(size=(5, 3))
    assert np.allclose(apply(invert_rigid(motion), apply(motion, points)), points, atol=1e-10)


def test_a_femur_is_read_as_it_was_made() -> None:
    mesh = made_femur()
    frame = anatomical_frame(mesh.vertices, mesh.faces, bone="femur")
    assert frame.side == Side.RIGHT
    assert frame.warnings == ()
    assert angle_deg(frame.bone_to_world[:3, 0], np.array([1.0, 0, 0])) < 0.5
    # The common tangent of two circles leans by the difference of their radii.
    lean = np.arcsin((CONDYLE_RADII[0] - CONDYLE_RADII[1]) / CONDYLES_APART)
    tangent = np.array([0.0, np.cos(lean), np.sin(lean)])
    assert angle_deg(frame.bone_to_world[:3, 1], tangent) < 0.5


def test_the_frame_is_a_rotation_with_its_origin_in_the_middle_of_the_box() -> None:
    mesh = made_femur().apply_transform(some_motion(2))
    frame = anatomical_frame(mesh.vertices, mesh.faces, bone="femur")
    rotation = frame.bone_to_world[:3, :3]
    assert np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    inside = apply(frame.world_to_bone, mesh.vertices)
    assert np.allclose(inside.min(axis=0), -inside.max(axis=0), atol=1e-9)
    assert frame.length_mm == pytest.approx(np.ptp(inside[:, 0]), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_the_frame_moves_with_the_bone(seed: int) -> None:
    mesh, motion = made_femur(), some_motion(seed)
    still = anatomical_frame(mesh.vertices, mesh.faces, bone="femur")
    moved = anatomical_frame(apply(motion, mesh.vertices), mesh.faces, bone="femur")
    assert np.allclose(moved.bone_to_world, motion @ still.bone_to_world, atol=1e-4)
    assert np.allclose(moved.bone_to_world[:3, :3], (motion @ still.bone_to_world)[:3, :3], 0, 1e-6)
    assert moved.side == still.side


def test_the_mirror_image_is_the_other_side_and_still_right_handed() -> None:
    mesh = made_femur()
    mirrored = anatomical_frame(mesh.vertices * [1, -1, 1], mesh.faces, bone="femur")
    right = anatomical_frame(mesh.vertices, mesh.faces, bone="femur")
    assert mirrored.side == Side.LEFT
    mirror = np.diag([1.0, -1.0, 1.0])
    expected = mirror @ right.bone_to_world[:3, :3] @ mirror
    assert np.allclose(mirrored.bone_to_world[:3, :3], expected, atol=1e-6)
    assert np.linalg.det(mirrored.bone_to_world[:3, :3]) == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [0.001, 0.25, 40.0])
def test_size_does_not_matter(scale: float) -> None:
    mesh = made_femur()
    large = anatomical_frame(mesh.vertices, mesh.faces, bone="femur")
    small = anatomical_frame(mesh.vertices * scale, mesh.faces, bone="femur")
    assert np.allclose(small.bone_to_world[:3, :3], large.bone_to_world[:3, :3], atol=1e-6)
    assert small.length_mm == pytest.approx(scale * large.length_mm)
    assert small.side == large.side


@pytest.mark.parametrize("width", [0.75, 1.3])
def test_slender_and_stocky_femora(width: float) -> None:
    mesh = made_femur()
    frame = anatomical_frame(mesh.vertices * [1, width, width], mesh.faces, bone="femur")
    assert (frame.side, frame.warnings) == (Side.RIGHT, ())
    assert frame.bone_to_world[:3, 2] @ [0, 0, 1] > 0.98


def test_holes_other_triangles_and_stray_vertices_hardly_matter() -> None:
    mesh = made_femur()
    whole = anatomical_frame(mesh.vertices, mesh.faces, bone="femur")
    kept = mesh.faces[np.random.default_rng(0).random(len(mesh.faces)) > 0.1]
    cut = mesh.subdivide()
    stray = np.vstack([mesh.vertices, [[1e4, 1e4, 1e4]]])
    others = [(mesh.vertices, kept), (cut.vertices, cut.faces[::-1, ::-1]), (stray, mesh.faces)]
    for vertices, faces in others:
        other = anatomical_frame(vertices, faces, bone="femur")
        turn = whole.bone_to_world[:3, :3].T @ other.bone_to_world[:3, :3]
        assert np.degrees(Rotation.from_matrix(turn).magnitude()) < 0.5
        assert other.side == whole.side


def test_a_femur_without_its_head_has_no_side() -> None:
    mesh = made_femur()
    frame = anatomical_frame(mesh.vertices, between(mesh, -np.inf, 150), bone="femur")
    assert frame.side is None
    assert any("head" in warning for warning in frame.warnings)
    assert frame.bone_to_world[:3, 0] @ [1, 0, 0] > 0.999
    assert frame.bone_to_world[:3, 2] @ [0, 0, 1] > 0.98


def test_a_femur_without_its_condyles_is_refused() -> None:
    mesh = made_femur()
    with pytest.raises(InputError, match="condyles"):
        anatomical_frame(mesh.vertices, between(mesh, -150, np.inf), bone="femur")


def test_the_caller_knows_the_side_better_and_is_told_of_the_doubt() -> None:
    mesh = made_femur()
    frame = anatomical_frame(mesh.vertices, mesh.faces, bone="femur", side=Side.LEFT)
    assert frame.side == Side.LEFT
    assert frame.warnings == ("the shape says right, the caller said left",)


def test_a_tibia_is_read_as_it_was_made() -> None:
    mesh = made_tibia()
    frame = anatomical_frame(mesh.vertices, mesh.faces, bone="tibia")
    assert (frame.side, frame.warnings) == (Side.RIGHT, ())
    assert np.allclose(frame.bone_to_world[:3, :3], np.eye(3), atol=0.02)
    left = anatomical_frame(mesh.vertices * [1, -1, 1], mesh.faces, bone="Tibia")
    assert left.side == Side.LEFT
    assert np.allclose(left.bone_to_world[:3, :3], np.eye(3), atol=0.02)


def test_of_an_unknown_bone_it_says_what_it_cannot_tell() -> None:
    mesh = made_tibia().apply_transform(some_motion(5))
    frame = anatomical_frame(mesh.vertices, mesh.faces)
    assert frame.side is None
    assert len(frame.warnings) == 3


def test_what_is_no_long_bone_is_refused() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    with pytest.raises(InputError, match="not a long bone"):
        anatomical_frame(ball.vertices, ball.faces)
    rod = trimesh.creation.cylinder(1.0, 20.0)
    with pytest.raises(InputError, match="condyles"):
        anatomical_frame(rod.vertices, rod.faces, bone="femur")
    broken = rod.vertices.copy()
    broken[0] = np.nan
    nothing = np.zeros((0, 3), dtype=int)
    line = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    for vertices, faces in (
        (rod.vertices, nothing),
        (broken, rod.faces),
        (rod.vertices, rod.faces + len(rod.vertices)),
        (rod.vertices[:, :2], rod.faces),
        (line, np.array([[0, 1, 2]])),
        (np.array([[0.0, 0, 0], [9, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]])),
    ):
        with pytest.raises(InputError, match="my bone"):
            anatomical_frame(vertices, faces, source="my bone")


@pytest.mark.real
def test_real_femora_lie_as_raters_say(real_data: Path) -> None:
    landmarks = json.loads((real_data / "vsd_femora" / "landmarks.json").read_text())
    rng = np.random.default_rng(0)
    leans = []
    for path in sorted((real_data / "vsd_femora").glob("*.ply")):
        mesh = trimesh.load(path, process=False)
        motion = rigid(Rotation.random(random_state=rng).as_matrix(), rng.normal(0, 300, 3))
        frame = anatomical_frame(apply(motion, mesh.vertices), mesh.faces, bone="femur")
        assert frame.side == (Side.LEFT if path.stem.endswith("_L") else Side.RIGHT), path.stem
        assert frame.warnings == (), path.stem
        if path.stem not in landmarks:
            continue
        ends = [
            np.mean([np.mean(rater[name], axis=0) for rater in landmarks[path.stem].values()], 0)
            for name in ("Posterior Lateral Condyle (PLC)", "Posterior Medial Condyle (PMC)")
        ]
        outwards = apply(frame.world_to_bone @ motion, np.stack(ends))
        line = (outwards[0] - outwards[1]) * (1 if frame.side == Side.RIGHT else -1)
        leans.append(abs(np.degrees(np.arctan2(line[2], line[1]))))
    assert len(leans) >= 19
    assert np.median(leans) < 0.5
    assert max(leans) < 1.5


@pytest.mark.real
def test_real_right_femora_are_right_in_any_pose(real_data: Path) -> None:
    rng = np.random.default_rng(0)
    paths = sorted((real_data / "smir_right_femora").glob("*.ply"))
    assert len(paths) == 29
    for path in paths:
        mesh = trimesh.load(path, process=False)
        turned = mesh.vertices @ Rotation.random(random_state=rng).as_matrix().T
        frame = anatomical_frame(turned, mesh.faces, bone="femur")
        assert (frame.side, frame.warnings) == (Side.RIGHT, ()), path.stem

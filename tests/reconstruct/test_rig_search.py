"""A bone before the two cameras of a calibrated rig: nobody says how it lies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from osteoprint.ct.phantom import volume_from_surface
from osteoprint.errors import FilmError
from osteoprint.frames import Side, View, anatomical_frame, apply
from osteoprint.reconstruct import rig_search
from osteoprint.reconstruct.reconstruction import reconstruct
from osteoprint.reconstruct.rig_search import focused, looked_at
from osteoprint.reconstruct.shot import Shot
from osteoprint.shape.alignment import kabsch
from osteoprint.xray.camera import Camera, Geometry, Pose, view_camera
from osteoprint.xray.film import Film, examine_film, write_film
from osteoprint.xray.film_pair import examine_pair
from osteoprint.xray.projector import prepare
from osteoprint.xray.radiograph import expose


def calibrated(path: Path, camera: Camera) -> None:
    """Exchange the distances in a film's sidecar for a calibration."""
    sidecar = path.with_name(path.name + ".json")
    said = json.loads(sidecar.read_text())
    for key in ("pixel_spacing_mm", "sdd_mm", "sod_mm", "beam"):
        said.pop(key, None)
    row_mm, column_mm = camera.geometry.pixel_spacing_mm
    row, column = camera.principal_point
    to_camera = camera.world_to_camera
    said["camera"] = {
        "k": [
            [camera.geometry.sdd_mm / column_mm, 0, column],
            [0, camera.geometry.sdd_mm / row_mm, row],
            [0, 0, 1],
        ],
        "r": to_camera[:3, :3].tolist(),
        "t_mm": to_camera[:3, 3].tolist(),
    }
    sidecar.write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rig")


@pytest.fixture(scope="module")
def rig(toy, truth, folder) -> list[Film]:
    """Two cameras that see the true bone, as it lies in the world, from odd directions."""
    surface = trimesh.Trimesh(truth, toy.faces, process=False)
    frame = anatomical_frame(truth, toy.faces, bone="femur", side=Side.RIGHT)
    volume = prepare(
        volume_from_surface(
            surface, voxel_mm=1.2, bone_to_world=frame.bone_to_world, rng=np.random.default_rng(3)
        )
    )
    films = []
    poses = {View.AP: Pose(20.0, 35.0, 8.0), View.ML: Pose(-25.0, 60.0, -10.0)}
    for view, pose in poses.items():
        geometry = Geometry(900, 900, (0.6, 0.6), 1150.0, 1000.0)
        camera = view_camera(frame.bone_to_world, view, Side.RIGHT, geometry, pose)
        path = folder / f"{view.value}.png"
        write_film(expose(volume, camera, view=view, side=Side.RIGHT), path)
        calibrated(path, camera)
        films.append(examine_film(path, None))
    return films


def test_both_look_at_the_bone(rig, truth):
    shots = focused([Shot.of(film) for film in rig])
    middle = (truth.min(axis=0) + truth.max(axis=0)) / 2
    assert np.linalg.norm(looked_at(shots) - middle) < 15.0
    assert all(shot.sod_mm == pytest.approx(1000.0, abs=15.0) for shot in shots)


def test_the_bone_is_found_and_rebuilt(toy, rig, truth, monkeypatch):
    """Found in the world where it is, by fewer directions than are usually tried."""
    monkeypatch.setattr(rig_search, "_ROTATIONS", 400)
    monkeypatch.setattr(rig_search, "_LOOKED_AT", (0.5,))
    monkeypatch.setattr(rig_search, "_NEARER", ((12, 10.0), (6, 5.0)))
    monkeypatch.setattr(rig_search, "_KEPT", 3)
    found = reconstruct(toy.model, rig, "refined", sources=["AP.png", "ML.png"])
    rotation, shift = found.state.placings[0].total
    world = found.vertices @ rotation.T + shift
    assert np.sqrt(((world - truth) ** 2).sum(axis=1).mean()) < 4.0
    moved = apply(kabsch(found.vertices, truth), found.vertices)
    assert np.sqrt(((moved - truth) ** 2).sum(axis=1).mean()) < 2.5
    assert min(found.likeness) > 0.8
    assert len(found.state.placings) == 1
    assert found.surface.is_watertight


def test_a_pair_of_a_rig_is_read_though_no_bone_stands_clear(rig, folder, monkeypatch):
    monkeypatch.setattr("osteoprint.xray.film.find_bone", lambda *_, **__: None)
    pair = examine_pair(folder / "AP.png", folder / "ML.png")
    assert pair.ap.camera is not None
    assert any("no long bone" in warning for warning in pair.warnings)
    assert pair.stretches == (1.0, 1.0)


def test_cameras_that_look_the_same_way_are_refused(rig):
    with pytest.raises(FilmError, match="the same way"):
        focused([Shot.of(rig[0]), Shot.of(rig[0])])


def test_one_film_of_a_rig_is_refused(rig, toy):
    with pytest.raises(FilmError, match="the same way"):
        reconstruct(toy.model, rig[:1], "statistical")


def test_films_of_a_rig_and_others_do_not_go_together(rig, films, toy):
    with pytest.raises(FilmError, match="calibrate both"):
        reconstruct(toy.model, [rig[0], films[1]], "statistical")

"""``reconstruct`` on a small bank of phantoms: learnt once, answered by every kind of method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osteoprint.app.cli import run
from osteoprint.bank.store import Bank
from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.surface import read_surface
from osteoprint.frames import Side, View, anatomical_frame, apply
from osteoprint.reconstruct import learning
from osteoprint.reconstruct.learning import FOLDER, bank_model
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.distance import surface_distance
from osteoprint.shape.group import correspond
from osteoprint.study.demo import make_phantoms
from osteoprint.xray.camera import Pose, view_camera
from osteoprint.xray.film import write_film
from osteoprint.xray.projector import prepare
from osteoprint.xray.protocol import film_geometry
from osteoprint.xray.radiograph import expose

KNOWN = 4


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    """A coarse template, of two of the bones, is made sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "BASIS", 2)
        patch.setattr(learning, "correspond", partial(correspond, vertices=1500))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A bank of cats' femora with its shapes learnt, and films of one that is not in it."""
    folder = tmp_path_factory.mktemp("shapes")
    with Bank.open(folder / "bank", write=True, create=True) as bank:
        make_phantoms(bank, [f"cat-{k}" for k in range(KNOWN)], 21, size="cat", voxels=250)
    with Bank.open(folder / "bank") as bank:
        bank_model(bank)
    surface, _ = sample_bone(np.random.default_rng([21, 99]), kind="femur", size="cat")
    frame = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    surface.vertices = apply(frame.world_to_bone, np.array(surface.vertices))
    surface.export(folder / "truth.ply")
    volume = volume_from_surface(surface, voxel_mm=frame.length_mm / 300)
    traced = prepare(volume)
    geometry = film_geometry(frame.length_mm)
    for view, pose in ((View.AP, Pose(3, 2, -2)), (View.ML, Pose(-3, -4, 2))):
        camera = view_camera(np.eye(4), view, Side.RIGHT, geometry, pose)
        film = expose(traced, camera, view=view, side=Side.RIGHT)
        write_film(film, folder / f"{view.value}.png")
    return folder


def ask(capsys, world: Path, *arguments: object, films: tuple[str, ...] = ("AP", "ML")) -> dict:
    """``reconstruct --json`` on the films; its one object."""
    capsys.readouterr()
    paths = [str(world / f"{name}.png") for name in films]
    said = ["reconstruct", *paths, "--bank", str(world / "bank"), *map(str, arguments), "--json"]
    assert run(said) == 0
    return json.loads(capsys.readouterr().out)


def test_two_films_give_a_surface(world, capsys, tmp_path):
    out = tmp_path / "bone.ply"
    answer = ask(capsys, world, "--out", out, "--overlay", tmp_path / "films.png")
    assert answer["method"] == "refined"
    assert answer["watertight"] is True
    assert answer["known_bones"] == KNOWN
    assert answer["uncertainty_mm"]["median"] < answer["uncertainty_mm"]["p95"]
    assert answer["warnings"] == []
    assert min(answer["likeness"]) > 0.9
    found, truth = read_surface(out), read_surface(world / "truth.ply")
    found.apply_transform(align_rigid(found, truth))
    assert surface_distance(found, truth).rms_relative < 0.006
    assert b"deviation_mm" in out.read_bytes()[:600]
    with Image.open(tmp_path / "films.png") as picture:
        assert min(picture.size) > 400


def test_the_nearest_bone_is_found_by_its_shape(world, capsys, tmp_path):
    out = tmp_path / "bone.ply"
    answer = ask(capsys, world, "--out", out, "--method", "nearest")
    truth = read_surface(world / "truth.ply")
    off = {}
    with Bank.open(world / "bank") as bank:
        for record in bank.bones():
            surface = bank.surface(record)
            surface.apply_transform(align_rigid(surface, truth))
            off[record.id] = surface_distance(surface, truth).rms_mm
    assert off[answer["nearest"]["id"]] < 1.1 * min(off.values())
    assert answer["nearest"]["rms_mm"] == pytest.approx(off[answer["nearest"]["id"]], rel=0.35)


def test_the_surface_lies_in_its_anatomical_frame(world, capsys, tmp_path):
    ask(capsys, world, "--out", tmp_path / "bone.stl", "--method", "statistical")
    surface = read_surface(tmp_path / "bone.stl")
    frame = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    assert np.abs(frame.bone_to_world - np.eye(4)).max() < 0.02


def test_the_shapes_are_learnt_once(world, capsys, tmp_path):
    (kept,) = (world / "bank" / FOLDER).iterdir()
    before = kept.stat().st_mtime_ns
    ask(capsys, world, "--out", tmp_path / "bone.glb", "--method", "statistical")
    assert kept.stat().st_mtime_ns == before
    assert run(["bank", "check", "--bank", str(world / "bank")]) == 0


def test_a_damaged_model_is_learnt_again(world, monkeypatch):
    (kept,) = (world / "bank" / FOLDER).iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:1000])
    asked = []

    def relearn(*_: object) -> None:
        asked.append(True)
        raise RuntimeError

    monkeypatch.setattr("osteoprint.reconstruct.learning.learn", relearn)
    with pytest.raises(RuntimeError), Bank.open(world / "bank") as bank:
        bank_model(bank)
    kept.write_bytes(content)
    assert asked


def test_one_film_is_enough_and_says_so(world, capsys, tmp_path):
    two = ask(capsys, world, "--out", tmp_path / "two.stl")
    one = ask(capsys, world, "--out", tmp_path / "one.stl", films=("AP",))
    assert any("one film only" in w for w in one["warnings"])
    assert one["expected_rms_mm"] > two["expected_rms_mm"]


def test_films_of_a_left_bone_give_a_left_bone(world, capsys, tmp_path):
    """The same films seen in a mirror, said to be of a left bone."""
    for name in ("AP", "ML"):
        with Image.open(world / f"{name}.png") as film:
            film.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / f"{name}.png")
        facts = json.loads((world / f"{name}.png.json").read_text())
        (tmp_path / f"{name}.png.json").write_text(json.dumps(facts | {"body_side": "left"}))
    paths = [str(tmp_path / f"{n}.png") for n in ("AP", "ML")]
    out = tmp_path / "left.ply"
    said = ["reconstruct", *paths, "--bank", str(world / "bank"), "--out", str(out)]
    assert run(said) == 0
    found, truth = read_surface(out), read_surface(world / "truth.ply")
    frame = anatomical_frame(found.vertices, found.faces, bone="femur")
    assert frame.side is Side.LEFT
    truth.vertices = np.array(truth.vertices) * [1, -1, 1]
    truth.invert()
    found.apply_transform(align_rigid(found, truth))
    assert surface_distance(found, truth).rms_relative < 0.006


def test_films_of_no_use_are_refused_before_shapes_are_learnt(world, capsys, tmp_path, monkeypatch):
    """A calibrated rig whose two cameras look the same way tells no depth."""
    monkeypatch.setattr(
        "osteoprint.reconstruct.learning.bank_model", lambda *_, **__: pytest.fail("learnt")
    )
    camera = {
        "k": [[4000, 0, 200], [0, 4000, 400], [0, 0, 1]],
        "r": np.eye(3).tolist(),
        "t_mm": [0, 0, 1000],
    }
    for name in ("AP", "ML"):
        (tmp_path / f"{name}.png").write_bytes((world / f"{name}.png").read_bytes())
        facts = {"camera": camera, "intensity": "log", "polarity": "bone_bright", "view": name}
        (tmp_path / f"{name}.png.json").write_text(json.dumps(facts))
    paths = [str(tmp_path / f"{n}.png") for n in ("AP", "ML")]
    out = tmp_path / "bone.ply"
    assert run(["reconstruct", *paths, "--bank", str(world / "bank"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "look the same way" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "bone.xyz"], "no surface format"),
        (["--out", "bone.ply", "--bone", "tibia"], "at least 4 individuals"),
        (["--out", "bone.ply", "--overlay", "films.jpg"], "no picture"),
        (["--out", "bone.ply", "--method", "nearest", "--overlay", "a.png"], "no pose"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(world, capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    paths = [str(world / f"{n}.png") for n in ("AP", "ML")]
    assert run(["reconstruct", *paths, "--bank", str(world / "bank"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert list(tmp_path.iterdir()) == []

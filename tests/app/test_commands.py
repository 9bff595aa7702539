"""The commands on good input: what they answer, and what they leave behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from osteoprint.app.cli import run
from osteoprint.bank.calibrations import Calibrations
from osteoprint.bank.evidence import Calibration
from osteoprint.bank.store import Bank
from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.surface import read_surface
from osteoprint.frames import Side
from osteoprint.reconstruct.nearest import Lookup
from osteoprint.reconstruct.output import write_surface
from osteoprint.study.demo import make_phantoms


def ask(capsys, *arguments: object) -> dict:
    """Run a command with --json; its one object."""
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def films(world: Path) -> list[Path]:
    return [world / "films/ap.png", world / "films/ml.png"]


def test_identify(world, capsys):
    answer = ask(capsys, "identify", *films(world), "--bank", world / "bank", "--top", 2)
    assert set(answer) == {"matches", "in_bank", "threshold", "model", "warnings"}
    assert answer["warnings"] == []
    first, second = answer["matches"]
    assert set(first) == {"id", "name", "individual", "distance", "likelihood_ratio"}
    assert 0 <= first["distance"] <= second["distance"] <= 4
    assert answer["in_bank"] == (first["distance"] <= answer["threshold"])


def test_verify_a_pair_with_itself(world, capsys):
    answer = ask(capsys, "verify", *films(world), *films(world), "--bank", world / "bank")
    assert answer["distance"] == 0.0
    assert answer["same_bone"] is True
    assert set(answer) == {"same_bone", "distance", "threshold", "likelihood_ratio", "warnings"}
    # Two single pairs: not what a distance to the nearest of many enrolled views proves.
    with Bank.open(world / "bank") as bank:
        between, nearest = bank.pair_calibration(), bank.calibration()
    assert between is not None
    assert answer["threshold"] == between.threshold != nearest.threshold


@pytest.mark.parametrize(("ratio", "weak"), [(0.05, False), (0.3, True), (2.9, True), (30, False)])
def test_verify_says_where_evidence_is_weak(world, capsys, monkeypatch, ratio, weak):
    monkeypatch.setattr(Calibration, "likelihood_ratio", lambda *_: ratio)
    answer = ask(capsys, "verify", *films(world), *films(world), "--bank", world / "bank")
    assert any(w.startswith("weak evidence") for w in answer["warnings"]) == weak


def test_films_of_several_kinds_of_bone_are_judged_by_their_own(
    world, capsys, tmp_path, monkeypatch
):
    shutil.copytree(world / "bank", tmp_path / "bank")
    with Bank.open(tmp_path / "bank", write=True) as bank:
        known = bank.calibrations()
        assert known is not None
        strict = Calibration.fit([0.001, 0.002], [0.1, 0.2])
        own = {"femur": Calibrations(strict, strict), "tibia": Calibrations(known.nearest, strict)}
        bank.set_calibrations(None, dataclasses.replace(known, kinds=own))
    argv = [*films(world), "--bank", tmp_path / "bank"]
    assert ask(capsys, "identify", *argv)["threshold"] == strict.threshold
    answer = ask(capsys, "verify", *films(world), *argv)
    assert answer["threshold"] == strict.threshold
    assert not any("two kinds" in warning for warning in answer["warnings"])
    # Which kind they are is a guess: it is said, and does not decide.
    seen = iter(["tibia", "bone"])
    monkeypatch.setattr(Lookup, "kind", lambda *_: next(seen))
    answer = ask(capsys, "verify", *films(world), *argv)
    assert answer["same_bone"] is True
    assert answer["threshold"] == min(strict.threshold, known.pairs.threshold)
    assert any("bone and tibia" in warning for warning in answer["warnings"])


def test_verify_knows_that_left_is_not_right(world, capsys, tmp_path):
    pairs = {}
    for side in ("left", "right"):
        pairs[side] = []
        for film in films(world):
            copy = tmp_path / f"{side}-{film.name}"
            copy.write_bytes(film.read_bytes())
            said = json.loads(film.with_name(film.name + ".json").read_text())
            copy.with_name(copy.name + ".json").write_text(json.dumps(said | {"body_side": side}))
            pairs[side].append(copy)
    answer = ask(capsys, "verify", *pairs["left"], *pairs["right"], "--bank", world / "bank")
    assert answer["distance"] == 0.0
    assert answer["same_bone"] is False
    assert answer["likelihood_ratio"] < 1
    assert any("left" in warning for warning in answer["warnings"])


@pytest.mark.parametrize("ending", ["ply", "stl", "glb", "dcm"])
def test_reconstruct_gives_the_matched_bones_surface(world, capsys, tmp_path, ending):
    out = tmp_path / f"bone.{ending}"
    answer = ask(capsys, "reconstruct", *films(world), "--bank", world / "bank", "--out", out)
    assert set(answer) >= {
        "method", "surface", "seconds", "watertight", "scale_source", "warnings", "uncertainty_mm",
    }  # fmt: skip
    assert answer["watertight"] is True
    mesh = read_surface(out)
    with Bank.open(world / "bank") as bank:
        record = bank.bone(answer["nearest"]["id"])
    assert np.ptp(mesh.vertices[:, 0]) == pytest.approx(record.length_mm, rel=1e-4)
    assert list(tmp_path.iterdir()) == [out]


def test_compare(world, capsys, tmp_path):
    with Bank.open(world / "bank") as bank:
        surface = bank.surface(bank.bones()[0])
    surface.export(tmp_path / "truth.ply")
    turn = trimesh.transformations.rotation_matrix(1.0, [1, 2, 3], [9, 9, 9])
    moved = surface.copy()
    moved.apply_transform(turn)
    moved.export(tmp_path / "moved.stl")
    answer = ask(capsys, "compare", tmp_path / "moved.stl", tmp_path / "truth.ply")
    assert set(answer) == {
        "rms_mm", "mean_mm", "hd95_mm", "hausdorff_mm", "rms_relative", "hausdorff_relative",
        "estimate_to_truth", "truth_to_estimate",
    }  # fmt: skip
    assert answer["rms_mm"] < 0.002
    unmoved = ask(
        capsys, "compare", tmp_path / "moved.stl", tmp_path / "truth.ply", "--align", "none"
    )
    assert unmoved["rms_mm"] > 5
    for ending in ("glb", "dcm"):
        write_surface(surface, tmp_path / f"estimate.{ending}")
        answer = ask(
            capsys, "compare", tmp_path / f"estimate.{ending}", tmp_path / "truth.ply",
            "--align", "none",
        )  # fmt: skip
        assert answer["hausdorff_mm"] < 0.001


def test_render_makes_pictures_that_the_manifest_names(world, capsys, tmp_path):
    argv = ["render", "--bank", world / "bank", "--out", tmp_path / "x", "--workers", 1]
    answer = ask(capsys, *argv)
    assert answer["pairs"] == answer["made_now"] == 2 * 21
    manifest = json.loads((tmp_path / "x/manifest.json").read_text())
    for bone in manifest["bones"]:
        assert len(bone["pairs"]) == 21
        for pair in bone["pairs"]:
            path = tmp_path / "x" / bone["id"] / pair["file"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == pair["sha256"]
    with Image.open(path) as image:
        assert (image.size, image.mode) == ((800, 800), "L")
        assert np.asarray(image).max() > 20
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "x").rglob("*.png")}
    assert ask(capsys, *argv)["made_now"] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "x").rglob("*.png")} == before


def test_train_enrol_and_the_bank_commands(world, capsys, tmp_path):
    model = tmp_path / "again.safetensors"
    ask(
        capsys,
        "train",
        "--bank",
        world / "bank",
        "--out",
        model,
        "--steps",
        1,
        "--loss",
        "triplet",
        "--variants",
        1,
        "--pairs",
        2,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "again.safetensors"]
    copy = tmp_path / "copy"
    ask(capsys, "bank", "backup", copy, "--bank", world / "bank")
    ask(capsys, "bank", "restore", copy, "--bank", tmp_path / "bank")
    answer = ask(capsys, "enrol", "--bank", tmp_path / "bank", "--model", model)
    assert answer["enrolled"] == 2
    # Both were in the training: what distances prove has to come from others.
    assert answer["changed_copies"] == 2
    assert answer["threshold"] > 0
    assert ask(capsys, "bank", "check", "--bank", tmp_path / "bank")["ok"] is True
    assert len(ask(capsys, "bank", "list", "--bank", tmp_path / "bank")["bones"]) == 2
    ask(capsys, "bank", "export", tmp_path / "out", "--bank", tmp_path / "bank")
    assert (tmp_path / "out/bones.csv").is_file()


def test_the_network_that_comes_along_serves_a_bank_untrained_and_refined(world, capsys, tmp_path):
    copy, bank, refined = tmp_path / "copy", tmp_path / "bank", tmp_path / "refined.safetensors"
    ask(capsys, "bank", "backup", copy, "--bank", world / "bank")
    ask(capsys, "bank", "restore", copy, "--bank", bank)
    assert ask(capsys, "enrol", "--bank", bank)["enrolled"] == 2
    named = ask(capsys, "identify", *films(world), "--bank", bank)
    first = min(r["name"] for r in ask(capsys, "bank", "list", "--bank", bank)["bones"])
    assert named["matches"][0]["name"] == first
    few = ("--steps", 1, "--variants", 1, "--pairs", 2)
    ask(capsys, "train", "--bank", bank, "--out", refined, "--refine", *few)
    before = json.loads(refined.with_suffix(".json").read_text())["trained_on"]["before"]
    assert "human femur 0" in before["bones"]
    assert ask(capsys, "enrol", "--bank", bank, "--model", refined)["enrolled"] == 2


def test_check_of_a_damaged_bank_is_exit_code_2(world, capsys, tmp_path):
    ask(capsys, "bank", "backup", tmp_path / "copy", "--bank", world / "bank")
    ask(capsys, "bank", "restore", tmp_path / "copy", "--bank", tmp_path / "bank")
    surface = next((tmp_path / "bank/surfaces").iterdir())
    surface.write_bytes(surface.read_bytes()[:-10])
    capsys.readouterr()
    assert run(["bank", "check", "--bank", str(tmp_path / "bank"), "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["problems"]


def test_of_several_sources_the_good_ones_are_kept_and_the_bad_ones_named(capsys, tmp_path):
    mesh, _ = sample_bone(np.random.default_rng(1), kind="femur", size="cat", side=Side.RIGHT)
    mesh.export(tmp_path / "good.ply")
    (tmp_path / "bad.ply").write_bytes(b"")
    sources = [str(tmp_path / "bad.ply"), str(tmp_path / "good.ply")]
    assert run(["ingest", *sources, "--bank", str(tmp_path / "bank"), "--json"]) == 2
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert [b["name"] for b in answer["bones"]] == ["good"]
    assert len(answer["failed"]) == 1
    assert captured.err.count("\n") == 1
    assert "bad.ply" in captured.err


def test_enrolling_one_bone_gives_no_threshold_and_says_so(world, capsys, tmp_path):
    with Bank.open(tmp_path / "bank", write=True, create=True) as bank:
        make_phantoms(bank, ["alone"], 3, size="cat", voxels=150)
    asked = ["enrol", "--bank", tmp_path / "bank", "--model", world / "model.safetensors"]
    answer = ask(capsys, *asked)
    assert (answer["enrolled"], answer["threshold"]) == (1, None)
    assert run([*map(str, asked)]) == 0
    assert "one bone alone gives no threshold" in capsys.readouterr().out


def test_train_from_a_file_of_settings_and_from_shards(world, capsys, tmp_path):
    """What the file says is in the card; options come first."""
    config, model = tmp_path / "training.toml", tmp_path / "m.safetensors"
    config.write_text(
        'loss = "triplet"\nmining = "semihard"\nsteps = 9\nmargin = 0.2\nneighbours = 0\n'
        '[network]\ndimension = 16\nviews = "side by side"\n'
    )
    asked = ["train", "--bank", world / "bank", "--out", model, "--config", config, "--steps", 1]
    ask(capsys, *asked, "--variants", 1, "--pairs", 2, "--seed", 3)
    card = json.loads(model.with_suffix(".json").read_text())
    assert card["network"]["dimension"] == 16
    assert card["network"]["views"] == "side by side"
    told = card["settings"]
    assert (told["loss"], told["mining"], told["margin"]) == ("triplet", "semihard", 0.2)
    assert (told["steps"], told["seed"], told["views_per_bone"]) == (1, 3, 2)
    ask(capsys, "render", "--bank", world / "bank", "--out", tmp_path / "x", "--shards",
        "--workers", 1)  # fmt: skip
    ask(capsys, *asked, "--shards", tmp_path / "x")
    again = json.loads(model.with_suffix(".json").read_text())
    assert again["settings"]["variants_per_bone"] == 1
    assert again["trained_on"]["bones"] == card["trained_on"]["bones"]
    assert again["trained_on"]["data_sha256"] != card["trained_on"]["data_sha256"]
    shard = next((tmp_path / "x" / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:5000])
    before = model.read_bytes()
    assert run([*map(str, asked), "--shards", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert shard.name in said
    assert "render" in said
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps = ", "cannot be read"), ("step = 3", "knows no 'step'"),
        ("network = 3", "network"), ('steps = "many"', "steps"), ("margin = -1", "margin"),
        ('loss = "best"', "loss"), ('presets = ["sunny"]', "sunny"),
        ("[network]\ndimension = 0", "dimension"), ("[network]\nwidth = 3", "use: backbone"),
        ("minutes = 0.0", "minutes"), ("presets = []", "presets"), ("devices = 2", "devices"),
        ("variants_per_bone = -1", "variants"), ("drawn = 1.5", "drawn is 1.5"),
        ("[network]\nreductions = [-5]", "reductions"), ("[network]\ngrid = [0, 2]", "grid is 0"),
        ("[network]\nlooks = 99", "looks is 99"),
        ("positive_candidates = 0", "positive_candidates is 0"),
        ("positive_candidates = 100000", "positive_candidates is 100000"),
        ("[network]\nshape_weight = 0.0", "shape_weight is 0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line(world, capsys, tmp_path, text, said):
    config = tmp_path / "training.toml"
    config.write_text(text)
    argv = ["train", "--bank", str(world / "bank"), "--out", str(tmp_path / "m.safetensors")]
    assert run([*argv, "--config", str(config)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert "training.toml" in lines[0]


def test_options_that_would_not_be_looked_at_are_refused(world, capsys, tmp_path):
    model, x = str(tmp_path / "m.safetensors"), str(tmp_path / "x")
    bank = ["--bank", str(world / "bank")]
    for option, argv in {
        "--pairs": ["train", *bank, "--out", model, "--fresh", "--pairs", "3"],
        "--fresh": ["train", *bank, "--out", model, "--fresh", "--shards", x],
        "--log": ["train", "--phantoms", "--out", model, "--log", x],
        "--refine": ["train", *bank, "--out", model, "--refine", "--backbone", "resnet10t"],
        "--preset": ["study", "identification", *bank, "--out", x, "--preset", "clinic"],
        "--repeats": ["study", "paper", *bank, "--out", x, "--repeats", "2"],
        "--scale": ["study", "reconstruction", *bank, "--out", x, "--scale", "full"],
    }.items():
        capsys.readouterr()
        assert run(argv) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert option in lines[0]
    assert not list(tmp_path.iterdir())


def test_without_imagenet_weights_a_network_is_trained_from_scratch(
    world, capsys, tmp_path, monkeypatch
):
    import timm

    build = timm.create_model

    def offline(*names, pretrained=False, **options):
        if pretrained:
            raise OSError("no way out")
        return build(*names, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    model = tmp_path / "m.safetensors"
    asked = ["train", "--bank", world / "bank", "--out", model, "--backbone", "resnet10t"]
    answer = ask(
        capsys, *asked, "--pretrained", "--steps", 1, "--variants", 1, "--pairs", 2, "--loss",
        "triplet",
    )  # fmt: skip
    assert len(answer["warnings"]) == 1
    assert "ImageNet" in answer["warnings"][0]
    assert "scratch" in answer["warnings"][0]
    card = json.loads(model.with_suffix(".json").read_text())
    assert card["settings"]["pretrained"] is False
    assert card["network"]["grid"] == [6, 2]  # no finer than what this backbone sees


def test_study_identification_writes_a_report(capsys, tmp_path):
    with Bank.open(tmp_path / "bank", write=True, create=True) as bank:
        make_phantoms(bank, ["one", "two", "three"], 3, size="cat", voxels=150)
    out = tmp_path / "out"
    answer = ask(capsys, "study", "identification", "--bank", tmp_path / "bank", "--out", out,
                 "--minutes", 0.05, "--steps", 2, "--unseen", "three")  # fmt: skip
    said = json.loads((out / "report.json").read_text())
    assert answer["rank1"] == said["summary"]["rank1"]
    assert answer["report"] == str(out / "report.html")
    assert said["recognition"]["cmc"][-1] == 1.0
    assert said["recognition"]["roc"][-1] == [1.0, 1.0]
    page = (out / "report.html").read_text()
    assert page.count('class="curve"') == 2
    assert "Cllr" in page

"""A bank's artificial X-rays: the same bits whoever makes them, and however often it stops."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from osteoprint.bank.store import Bank
from osteoprint.ct.reading import read_scan
from osteoprint.errors import BankError, InputError
from osteoprint.frames import Side, View
from osteoprint.study import dataset
from osteoprint.study.dataset import render_bank
from osteoprint.study.demo import make_phantoms
from osteoprint.study.workers import open_workers
from osteoprint.xray.camera import Pose, view_camera
from osteoprint.xray.materials import BODY
from osteoprint.xray.projector import path_lengths, prepare
from osteoprint.xray.protocol import PAPER, Protocol, film_geometry
from osteoprint.xray.radiograph import line_integrals
from osteoprint.xray.shards import read_shard

FEW = Protocol("few", (-21.0, 0.0), (-21.0, 9.0), (140.0, 158.0))
KEYS = [f"z{z}_y{y}_e{e}.png" for z in ("-21", "+00") for y in ("-21", "+09") for e in (140, 158)]


class Killed(BaseException):
    """Stands for a signal that nothing can catch."""


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """A bank with phantoms of two cats' femora."""
    with Bank.open(tmp_path_factory.mktemp("set") / "bank", create=True) as opened:
        make_phantoms(opened, ["one", "two"], 3, size="cat", voxels=150)
        yield opened


@pytest.fixture(scope="module")
def whole(bank, tmp_path_factory):
    """The set as made undisturbed in this process."""
    folder = tmp_path_factory.mktemp("whole")
    done = rendered(bank, folder)
    assert (done.pairs, done.made) == (16, 16)
    assert done.worst_scale < 0.01
    return folder


def rendered(bank, folder: Path, workers: int = 1, **options):
    with open_workers(workers) as hands:
        return render_bank(bank, folder, options.pop("protocol", FEW), hands, **options)


def contents(folder: Path) -> dict[str, str]:
    """Every file with its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_papers_protocol_is_15_by_15_by_4_and_26100_for_29_bones():
    assert [len(PAPER.long_deg), len(PAPER.in_plane_deg), len(PAPER.energy_kev)] == [15, 15, 4]
    assert 29 * len(PAPER) == 26_100


def test_the_manifest_names_every_file_and_its_parameters(whole):
    said = json.loads((whole / "manifest.json").read_text())
    digest, name = (whole / "manifest.sha256").read_text().split()
    assert contents(whole)[name] == digest
    named = {"manifest.json", "manifest.sha256"}
    for bone in said["bones"]:
        named.add(f"{bone['id']}/manifest.json")
        assert [row["file"] for row in bone["pairs"]] == KEYS
        for row in bone["pairs"]:
            path = whole / bone["id"] / row["file"]
            named.add(f"{bone['id']}/{row['file']}")
            data = path.read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (row["sha256"], row["bytes"])
            with Image.open(path) as image:
                assert (image.size, image.mode) == ((800, 800), "L")
    assert set(contents(whole)) == named


def test_a_picture_is_the_image_shrunk_by_what_the_scale_object_measured(bank, whole):
    """Against the paper's way: all pixels taken, blurred after shrinking, padded with black."""
    said = json.loads((whole / "manifest.json").read_text())
    setup = said["picture"]
    for bone in said["bones"]:
        record = bank.bone(bone["id"])
        traced = prepare(read_scan(bank.volume_path(record)).volume)
        geometry = film_geometry(record.length_mm)
        with Image.open(whole / bone["id"] / "z-21_y+09_e140.png") as image:
            picture = np.asarray(image).astype(float)
        for view, half in ((View.AP, picture[:, :400]), (View.ML, picture[:, 400:])):
            scale = bone["scales"][view.value]
            factor = bone["views"][view.value]["factor"]
            wanted = scale["object_mm"] / setup["mm_per_pixel_at_bone"] / scale["measured_px"]
            assert factor == pytest.approx(min(wanted, 1.0), rel=1e-9)
            camera = view_camera(
                np.array(record.bone_to_world), view, Side(record.side), geometry, Pose(-21.0, 9.0)
            )
            full = line_integrals(path_lengths(traced, camera), BODY, 140.0)
            small = zoom(full, factor, order=1, grid_mode=True, mode="grid-constant")
            top, left = ((n - s) // 2 for n, s in zip((800, 400), small.shape, strict=True))
            padded = np.zeros((800, 400))
            padded[top : top + small.shape[0], left : left + small.shape[1]] = small
            padded = gaussian_filter(padded, 1.0) * 255 / setup["white_is_line_integral"]
            away = [abs(np.average(np.arange(n), weights=half.sum(a)) -
                        np.average(np.arange(n), weights=padded.sum(a)))
                    for a, n in ((1, 800), (0, 400))]  # fmt: skip
            assert max(away) < 0.6
            assert half.sum() == pytest.approx(padded.sum(), rel=0.01)


def test_real_proportions_and_filled_pictures(bank, whole, tmp_path):
    rendered(bank, tmp_path, real_proportions=False)
    heights = {}
    for name, folder in (("real", whole), ("fill", tmp_path)):
        said = json.loads((folder / "manifest.json").read_text())
        for bone in said["bones"]:
            with Image.open(folder / bone["id"] / "z+00_y+09_e140.png") as image:
                lit = np.flatnonzero(np.asarray(image)[:, :400].max(axis=1) > 8)
            heights.setdefault(name, []).append((lit[-1] - lit[0]) / bone["length_mm"])
    assert heights["real"][0] == pytest.approx(heights["real"][1], rel=0.02)
    lengths = [bone.length_mm for bone in bank.bones()]
    assert heights["fill"][0] / heights["fill"][1] == pytest.approx(
        lengths[1] / lengths[0], rel=0.02
    )
    assert abs(lengths[0] / lengths[1] - 1) > 0.03


def test_two_processes_make_the_same_bits(bank, whole, tmp_path):
    done = rendered(bank, tmp_path, workers=2)
    assert done.made == 16
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("after", [1, 5, 11, 16])
def test_stopped_anywhere_it_goes_on_and_ends_the_same(bank, whole, tmp_path, monkeypatch, after):
    """Stopped after so many files of any kind came into being."""
    made = 0
    true_replace = Path.replace

    def replacing(self, target):
        nonlocal made
        if made == after:
            raise Killed
        made += 1
        return true_replace(self, target)

    monkeypatch.setattr(Path, "replace", replacing)
    with pytest.raises(Killed):
        rendered(bank, tmp_path)
    monkeypatch.undo()
    records = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("unfinished/z*.json")}
    finished = [row["file"] for p in records for row in json.loads(p.read_text())["pairs"]]
    whole_bones = [p.parent for p in tmp_path.glob("*/manifest.json")]
    done = rendered(bank, tmp_path)
    assert contents(tmp_path) == contents(whole)
    assert done.made == 16 - len(finished) - 8 * len(whole_bones)


def test_a_finished_set_is_left_alone_and_damage_is_mended(bank, whole, tmp_path):
    rendered(bank, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    assert rendered(bank, tmp_path).made == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")} == before
    victim = next(iter(before))
    victim.write_bytes(victim.read_bytes()[:-9])
    (victim.parent / "z+03_y+03_e140.png").write_bytes(b"left by another protocol")
    (victim.parent / "notes.txt").write_text("mine")
    assert rendered(bank, tmp_path).made == 8
    (victim.parent / "notes.txt").unlink()
    assert contents(tmp_path) == contents(whole)


def test_other_settings_replace_what_was_there(bank, tmp_path):
    rendered(bank, tmp_path)
    other = replace(FEW, energy_kev=(150.0,))
    assert rendered(bank, tmp_path, protocol=other).made == 8
    names = {p.name for p in tmp_path.rglob("*.png")}
    assert names == {f"z{z}_y{y}_e150.png" for z in ("-21", "+00") for y in ("-21", "+09")}


def test_bones_that_left_the_bank_lose_their_pictures(bank, whole, tmp_path, monkeypatch):
    rendered(bank, tmp_path)
    truesubjects_of = dataset.subjects_of
    monkeypatch.setattr(dataset, "subjects_of", lambda bank: truesubjects_of(bank)[:1])
    assert rendered(bank, tmp_path).pairs == 8
    assert len(list(tmp_path.glob("*/manifest.json"))) == 1


def test_shards_hold_the_same_pictures_and_are_the_same_each_time(bank, whole, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    rendered(bank, one, shards=True)
    rendered(bank, two, shards=True)
    assert contents(one) == contents(two)
    said = json.loads((one / "manifest.json").read_text())
    for bone in said["bones"]:
        samples = list(read_shard(one / bone["shard"]))
        assert [row for row, _ in samples] == bone["pairs"]
        for row, picture in samples:
            with Image.open(whole / bone["id"] / row["file"]) as image:
                np.testing.assert_array_equal(picture, np.asarray(image))
    cut = one / said["bones"][0]["shard"]
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.raises(InputError, match="not a whole shard"):
        list(read_shard(cut))


def test_what_cannot_be_rendered_is_said(bank, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        rendered(bank, file)
    with (
        Bank.open(tmp_path / "none", create=True) as empty,
        pytest.raises(BankError, match="holds no bones"),
    ):
        rendered(empty, tmp_path / "x")

"""Is the bank whole, can it be copied and brought back, can others read what it gives."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import trimesh
from bank_samples import new_bone, some_vectors, weights

from osteoprint.bank.calibrations import Calibrations
from osteoprint.bank.evidence import Calibration
from osteoprint.bank.maintenance import backup, check, export, restore
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError


@pytest.fixture
def path(tmp_path) -> Path:
    """A closed bank of three bones, two of them enrolled with one model."""
    path = tmp_path / "bank"
    with Bank.create(path) as bank:
        for number in range(3):
            bank.add_bone(new_bone(number))
        model, _ = bank.add_model(weights(tmp_path / "m.safetensors"), {"name": "test"})
        for seed, bone in enumerate(bank.bones()[:2]):
            bank.enrol(model, bone, ["a", "b", "c"], some_vectors(seed, 3))
        bank.set_calibrations(model, Calibrations(Calibration.fit([0.1], [1.0])))
    return path


def contents(path: Path) -> dict[str, object]:
    """Everything a bank holds, comparable."""
    with Bank.open(path) as bank:
        prints = bank.fingerprints()
        return {
            "bones": [(bone.id, bone.name, bone.created) for bone in bank.bones()],
            "surfaces": [bank.surface(bone).vertices.tolist() for bone in bank.bones()],
            "volumes": [bank.volume_path(bone).read_bytes() for bone in bank.bones()],
            "models": [(model.id, model.card) for model in bank.models()],
            "calibration": bank.calibration(),
            "fingerprints": (prints.bones, prints.view_keys, prints.vectors.tobytes()),
        }


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path / "bank.sqlite")) as raw, raw:
        assert raw.execute(statement).rowcount > 0


def the_file(path: Path, pattern: str) -> Path:
    return sorted(path.glob(pattern))[0]


def test_a_whole_bank(path):
    report = check(path)
    assert report.ok
    assert (report.problems, report.orphans) == ((), ())
    assert (report.bones, report.models, report.fingerprints) == (3, 1, 6)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: flip(the_file(p, "surfaces/*")), r"bone \w+: surfaces/\w+\.ply: damaged"),
        (lambda p: the_file(p, "surfaces/*").unlink(), r"bone \w+: surfaces/\w+\.ply: missing"),
        (lambda p: flip(the_file(p, "volumes/*")), r"bone \w+: volumes/\w+\.nrrd: damaged"),
        (lambda p: the_file(p, "volumes/*").unlink(), r"bone \w+: volumes/\w+\.nrrd: missing"),
        (lambda p: flip(the_file(p, "models/*.safetensors")), r"model \w+: models/.*: damaged"),
        (lambda p: the_file(p, "models/*.json").unlink(), r"models/\w+\.json: missing"),
        (lambda p: the_file(p, "models/*.json").write_text("{"), r"models/\w+\.json: damaged"),
        (
            lambda p: change(
                p, "UPDATE fingerprints SET vector = zeroblob(512) WHERE position = 1"
            ),
            r"fingerprints of bone \w+ by model \w+: not what was stored",
        ),
        (
            lambda p: change(p, "UPDATE fingerprints SET vector = zeroblob(12) WHERE position = 1"),
            "not all are 128 numbers long",
        ),
        (
            lambda p: change(p, "UPDATE fingerprints SET view_key = 'x' WHERE position = 1"),
            "not what was stored",
        ),
        (lambda p: change(p, "DELETE FROM fingerprints WHERE position = 2"), "2 instead of 3"),
        (lambda p: change(p, "DELETE FROM enrolments"), "refers to a row of enrolments"),
        (lambda p: change(p, "UPDATE bones SET bone_to_world = '[1]'"), "row of bone .* damaged"),
        (lambda p: change(p, "UPDATE bones SET warnings = 'hm'"), "row of bone .* damaged"),
        (lambda p: change(p, "UPDATE models SET calibration = '{}'"), "calibration is damaged"),
        (lambda p: change(p, "UPDATE models SET calibration = '[]'"), "calibration is damaged"),
    ],
)
def test_damage_is_named(path, tmp_path, damage, says):
    damage(path)
    report = check(path)
    assert not report.ok
    assert [problem for problem in report.problems if re.search(says, problem)]
    assert not any("\n" in problem or str(path) in problem for problem in report.problems)
    with pytest.raises(BankError, match="damaged, so not copied"):
        backup(path, tmp_path / "copy")
    with pytest.raises(BankError, match="damaged"):
        restore(path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bank", "m.safetensors"]


def test_a_vector_of_the_wrong_length_or_norm_is_never_searched(path):
    for vector in ("zeroblob(12)", "zeroblob(512)"):
        change(path, f"UPDATE fingerprints SET vector = {vector} WHERE position = 1")
        with Bank.open(path) as bank, pytest.raises(BankError, match="fingerprints"):
            bank.fingerprints()


def test_leftovers_are_no_damage_and_go_with_the_next_writer(path):
    left = [f"surfaces/{'0' * 64}.ply", "volumes/.tmp-1.nrrd", f"models/{'a' * 64}.json"]
    for name in left:
        (path / name).touch()
    (path / "models" / "notes.txt").touch()
    (path / "models" / "notes.json").touch()
    report = check(path)
    assert report.ok
    assert sorted(report.orphans) == sorted(left)
    Bank.open(path, write=True).close()
    assert check(path).orphans == ()
    assert (path / "models" / "notes.txt").exists()
    assert (path / "models" / "notes.json").exists()


def test_there_and_back(path, tmp_path):
    before = contents(path)
    (path / "surfaces" / f"{'0' * 64}.ply").touch()
    assert backup(path, tmp_path / "copy").bones == 3
    assert contents(tmp_path / "copy") == before
    assert check(tmp_path / "copy").orphans == ()
    restore(tmp_path / "copy", tmp_path / "back")
    assert contents(tmp_path / "back") == before
    with Bank.open(tmp_path / "back", write=True) as bank:
        bank.remove_bone("ball 1")
    assert contents(tmp_path / "copy") == before
    assert contents(path) == before


def test_nothing_is_copied_over_something(path, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").touch()
    for copy in (backup, restore, export):
        with pytest.raises(BankError, match="something at this place"):
            copy(path, tmp_path / "copy")
        with pytest.raises(BankError, match="no such bank"):
            copy(tmp_path / "none", tmp_path / "other")
    assert [entry.name for entry in (tmp_path / "copy").iterdir()] == ["mine"]
    assert not (tmp_path / "other").exists()


def test_a_backup_on_a_disk_one_may_only_read(path, tmp_path, open_folder, anybody):
    backup(path, open_folder / "copy")
    (open_folder / "copy").chmod(0o555)
    before = contents(path)
    anybody()
    assert contents(open_folder / "copy") == before
    restore(open_folder / "copy", open_folder / "back")
    assert contents(open_folder / "back") == before


def test_a_backup_while_another_writes_and_removes(path, tmp_path):
    stop = threading.Event()

    def write() -> None:
        with Bank.open(path, write=True) as bank:
            number = 10
            while not stop.is_set():
                bank.add_bone(new_bone(number))
                if number > 12:
                    bank.remove_bone(f"ball {number - 2}")
                number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for copy in range(6):
            report = backup(path, tmp_path / f"copy-{copy}")
            assert report.bones >= 3
            assert (report.problems, report.orphans) == ((), ())
            assert check(path).ok
    finally:
        stop.set()
        thread.join()


def test_a_bone_removed_under_a_backup_s_hands(path, tmp_path, monkeypatch):
    copyfile = shutil.copyfile
    copied = []

    def remove_first(source: Path, target: Path) -> None:
        if not copied:
            with Bank.open(path, write=True) as bank:
                for name in ("ball 0", "ball 2"):
                    bank.remove_bone(name)
        copied.append(source)
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", remove_first)
    report = backup(path, tmp_path / "copy")
    assert (report.problems, report.orphans, report.bones) == ((), (), 1)
    assert contents(tmp_path / "copy") == contents(path)


def test_a_killed_backup_leaves_nothing_under_its_name(path, tmp_path):
    for wait_s in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08):
        target = tmp_path / "copy"
        child = os.fork()
        if child == 0:
            try:
                backup(path, target)
            finally:
                os._exit(0)
        time.sleep(wait_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if target.exists():
            assert contents(target) == contents(path)
        else:
            backup(path, target)
        assert {entry.name for entry in tmp_path.iterdir()} == {"bank", "copy", "m.safetensors"}
        shutil.rmtree(target)


def test_export(path, tmp_path):
    with Bank.open(path, write=True) as bank:
        bank.add_bone(new_bone(7, name="../évil / name", side=None, individual='a,"b"'))
        bank.add_bone(new_bone(8, name="BALL 1"))
        bank.add_bone(new_bone(9, name="…/"))
        bones = {bone.id: bone for bone in bank.bones()}
        prints = bank.fingerprints()
        model = bank.model().id
        surfaces = {key: bank.surface(bone).vertices for key, bone in bones.items()}
    assert export(path, tmp_path / "out") == 6
    with (tmp_path / "out" / "bones.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == set(bones)
    for row in rows:
        bone = bones[row["id"]]
        assert (row["name"], row["individual"]) == (bone.name, bone.individual)
        assert row["side"] == (bone.side or "")
        assert float(row["length_mm"]) == bone.length_mm
        surface = trimesh.load_mesh(tmp_path / "out" / row["surface"], process=False)
        np.testing.assert_array_equal(surface.vertices, surfaces[row["id"]])
    written = [entry.name for entry in (tmp_path / "out" / "surfaces").iterdir()]
    assert len({name.lower() for name in written}) == 6
    assert {"ball_0.ply", "ball_2.ply", "évil_name.ply"} <= set(written)
    with np.load(tmp_path / "out" / f"fingerprints-{model}.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["vectors"], prints.vectors)
        np.testing.assert_array_equal(saved["bone_ids"], prints.bone_ids)
        assert tuple(saved["view_keys"]) == prints.view_keys
    with (tmp_path / "out" / f"fingerprints-{model}.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) == 7
    np.testing.assert_array_equal(
        np.array([line[2:] for line in lines[1:]], dtype=np.float32), prints.vectors
    )


def test_an_empty_bank(tmp_path):
    Bank.create(tmp_path / "bank").close()
    assert check(tmp_path / "bank").ok
    backup(tmp_path / "bank", tmp_path / "copy")
    assert export(tmp_path / "copy", tmp_path / "out") == 0
    assert len((tmp_path / "out" / "bones.csv").read_text().splitlines()) == 1

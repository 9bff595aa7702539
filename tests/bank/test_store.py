"""A bank keeps what it was given, all of it or none, whatever happens."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import trimesh
from bank_samples import new_bone, some_vectors, weights

from osteoprint.bank import maintenance, records
from osteoprint.bank.calibrations import Calibrations
from osteoprint.bank.evidence import Calibration
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError, ModelError
from osteoprint.frames import Side

CARD = {"name": "test", "input": [1, 2], "trained": {"minutes": 1.5}}


@pytest.fixture
def bank(tmp_path):
    with Bank.create(tmp_path / "bank") as made:
        yield made


def files(bank: Bank) -> list[str]:
    """Every file of bones and models, sorted."""
    parts = (
        path
        for part in ("surfaces", "volumes", "models")
        for path in (bank.folder / part).iterdir()
    )
    return sorted(str(path.relative_to(bank.folder)) for path in parts)


class TestBones:
    def test_a_bone_comes_back(self, bank):
        given = new_bone(1)
        record, new = bank.add_bone(given)
        assert new
        for field in ("name", "individual", "length_mm", "bone", "side", "warnings", "source"):
            assert getattr(record, field) == getattr(given, field)
        assert isinstance(record.side, Side)
        assert record.watertight is True
        assert len(record.id) == 12
        assert record.created.endswith("Z")
        np.testing.assert_array_equal(record.bone_to_world, given.bone_to_world)
        surface = bank.surface(record)
        np.testing.assert_array_equal(surface.faces, given.surface.faces)
        np.testing.assert_array_equal(surface.vertices, given.surface.vertices.astype(np.float32))
        assert bank.volume_path(record.name).read_bytes()[:4] == b"NRRD"
        assert files(bank) == [
            f"surfaces/{record.surface_sha256}.ply",
            f"volumes/{record.volume_sha256}.nrrd",
        ]

    def test_twice_is_once(self, bank):
        first, _ = bank.add_bone(new_bone(1))
        before = files(bank)
        again, new = bank.add_bone(new_bone(1, name="other name"))
        assert not new
        assert (again.id, again.name) == (first.id, "ball 1")
        assert files(bank) == before
        assert len(bank.bones()) == 1

    def test_the_id_depends_on_surface_and_individual_alone(self, bank, tmp_path):
        bare = new_bone(1).surface
        cached = new_bone(1).surface
        cached.vertex_normals  # noqa: B018, a general exporter would now write normals
        cached.visual.vertex_colors = [255, 0, 0, 255]
        assert records.ply_bytes(bare) == records.ply_bytes(cached)
        one, _ = bank.add_bone(new_bone(1))
        other, new = bank.add_bone(new_bone(1, individual="twin", volume=None))
        assert new
        assert other.id != one.id
        assert other.surface_sha256 == one.surface_sha256
        with Bank.create(tmp_path / "second") as second:
            assert second.add_bone(new_bone(1, name="x", side=None))[0].id == one.id

    def test_adding_again_mends_files(self, bank):
        record, _ = bank.add_bone(new_bone(1))
        before = files(bank)
        bank.volume_path(record).write_bytes(b"rot")
        (bank.folder / before[0]).unlink()
        assert not maintenance.check(bank.folder).ok
        again, new = bank.add_bone(new_bone(1))
        assert (again.id, new) == (record.id, False)
        assert files(bank) == before
        assert maintenance.check(bank.folder).ok

    def test_finding(self, bank):
        ids = [bank.add_bone(new_bone(number))[0].id for number in (3, 1, 2)]
        bank.add_bone(new_bone(4, bone="tibia", side=None, name="ball 1"))
        assert [bone.name for bone in bank.bones()] == ["ball 1", "ball 1", "ball 2", "ball 3"]
        assert [bone.name for bone in bank.bones(bone="tibia")] == ["ball 1"]
        assert [bone.name for bone in bank.bones(side=Side.LEFT)] == ["ball 2"]
        assert bank.bones(bone="tibia", side=Side.LEFT) == []
        assert bank.bone(ids[0]).name == "ball 3"
        assert bank.bone("ball 2").id == ids[2]
        with pytest.raises(BankError, match=f"2 bones have this name.*{ids[1]}"):
            bank.bone("ball 1")
        with pytest.raises(BankError, match="no bone of this id or name"):
            bank.bone("ball 9")

    def test_a_bone_without_a_volume(self, bank):
        record, _ = bank.add_bone(new_bone(1, volume=None))
        with pytest.raises(BankError, match="no volume of this bone"):
            bank.volume_path(record)

    def test_an_open_surface_says_so(self, bank):
        surface = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
        assert bank.add_bone(new_bone(1, surface=surface))[0].watertight is False

    def test_removing_leaves_what_others_need(self, bank, tmp_path):
        one, _ = bank.add_bone(new_bone(1))
        twin, _ = bank.add_bone(new_bone(1, individual="twin"))
        model, _ = bank.add_model(weights(tmp_path / "m.safetensors"), CARD)
        for bone in (one, twin):
            bank.enrol(model, bone, ["a"], some_vectors(1, 1))
        before = files(bank)
        bank.remove_bone(one)
        assert files(bank) == before
        assert list(bank.enrolled()) == [twin.id]
        bank.remove_bone(twin.name)
        assert [name for name in files(bank) if not name.startswith("models")] == []
        assert len(bank.fingerprints()) == 0
        assert maintenance.check(bank.folder).ok

    @pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 201, "\udcff", "a\0b"])
    @pytest.mark.parametrize("field", ["name", "individual", "bone"])
    def test_unfit_names(self, field, text):
        with pytest.raises(BankError, match=f"cannot be the {field}"):
            new_bone(1, **{field: text})

    @pytest.mark.parametrize(
        "change",
        [
            {"bone_to_world": np.diag([1, 1, -1, 1])},
            {"bone_to_world": np.diag([2, 2, 2, 1])},
            {"bone_to_world": np.full((4, 4), np.nan)},
            {"length_mm": 0.0},
            {"length_mm": np.inf},
            {"surface": trimesh.Trimesh()},
        ],
    )
    def test_unfit_values(self, change):
        with pytest.raises(ValueError, match=r"."):
            new_bone(1, **change)

    def test_odd_text_is_kept_readable(self, bank):
        record, _ = bank.add_bone(new_bone(1, source="\udcff\0ü", warnings=("\ud800",)))
        assert bank.bone(record.id).source == "\\udcff\\0ü"
        assert bank.bone(record.id).warnings == ("\\ud800",)

    def test_a_failing_volume_leaves_nothing(self, bank):
        def fail(path: Path) -> None:
            path.write_bytes(b"half")
            raise RuntimeError("writer failed")

        with pytest.raises(RuntimeError, match="writer failed"):
            bank.add_bone(new_bone(1, volume=fail))
        assert files(bank) == []
        assert bank.bones() == []


class TestModels:
    def test_a_model_comes_back(self, bank, tmp_path):
        source = weights(tmp_path / "m.safetensors")
        record, new = bank.add_model(source, CARD, dimension=8)
        assert new
        assert record.card == CARD
        assert record.dimension == 8
        assert record.is_default
        assert record.path.read_bytes() == source.read_bytes()
        assert json.loads(record.path.with_suffix(".json").read_text()) == CARD
        assert bank.model(record.id).sha256 == bank.model().sha256 == record.sha256

    def test_the_last_one_is_the_default_unless_told(self, bank, tmp_path):
        ids = []
        for value, default in ((1.0, True), (2.0, True), (3.0, False)):
            path = weights(tmp_path / "m.safetensors", value)
            ids.append(bank.add_model(path, CARD, default=default)[0].id)
        assert bank.model().id == ids[1]
        assert {model.id: model.is_default for model in bank.models()} == {
            ids[0]: False,
            ids[1]: True,
            ids[2]: False,
        }
        again, new = bank.add_model(weights(tmp_path / "m.safetensors", 1.0), {"other": "card"})
        assert not new
        assert again.card == CARD
        assert bank.model().id == ids[0]
        assert maintenance.check(bank.folder).ok

    def test_no_model(self, bank):
        for ask in (bank.model, bank.fingerprints, bank.enrolled, bank.calibration):
            with pytest.raises(BankError, match="no model"):
                ask()
        with pytest.raises(BankError, match="no model feedbeef"):
            bank.model("feedbeef")
        assert bank.models() == []

    @pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 100, None])
    def test_what_is_no_safetensors_file_is_refused(self, bank, tmp_path, content):
        path = tmp_path / "m.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match="not a readable safetensors file"):
            bank.add_model(path, CARD)
        assert files(bank) == []

    @pytest.mark.parametrize("card", [{"x": float("nan")}, {"x": object()}])
    def test_a_card_that_is_no_json_is_refused(self, bank, tmp_path, card):
        with pytest.raises(ModelError, match="card is not JSON"):
            bank.add_model(weights(tmp_path / "m.safetensors"), card)

    def test_a_calibration_comes_back(self, bank, tmp_path):
        bank.add_model(weights(tmp_path / "m.safetensors"), CARD)
        assert bank.calibration() is None
        for other in (1.0, 2.0):
            calibration = Calibration.fit([0.1, 0.2], [other, other + 0.1])
            bank.set_calibrations(None, Calibrations(calibration))
            assert bank.calibration() == calibration
            assert bank.pair_calibration() is None
        pairs = Calibration.fit([0.2, 0.3], [1.0, 1.5])
        known = Calibrations(calibration, pairs, {"femur": Calibrations(pairs, calibration)})
        bank.set_calibrations(None, known)
        assert (bank.calibration(), bank.pair_calibration()) == (calibration, pairs)
        assert bank.calibrations() == known
        assert bank.calibration(kind="femur") == bank.pair_calibration() == pairs
        assert bank.pair_calibration(kind="femur") == calibration
        # A kind that has none of its own.
        assert bank.calibration(kind="tibia") == calibration


class TestFingerprints:
    @pytest.fixture
    def enrolled(self, bank, tmp_path):
        bones = sorted(
            (bank.add_bone(new_bone(number))[0] for number in range(3)), key=lambda b: b.id
        )
        model, _ = bank.add_model(weights(tmp_path / "m.safetensors"), CARD)
        return bank, model, bones

    def test_they_come_back_by_bone_and_in_order(self, enrolled):
        bank, model, bones = enrolled
        given = {}
        for seed, bone in enumerate(reversed(bones)):
            given[bone.id] = some_vectors(seed, views=3)
            assert bank.enrol(model, bone, ["z", "a", "m"], given[bone.id])
        prints = bank.fingerprints(model)
        assert prints.bones == tuple(bone.id for bone in bones)
        assert prints.view_keys == ("z", "a", "m") * 3
        assert prints.vectors.dtype == np.float32
        expected = np.concatenate([given[bone.id] for bone in bones])
        np.testing.assert_allclose(prints.vectors, expected, atol=1e-7)
        assert bank.enrolled(model) == {bone.id: 3 for bone in bones}

    def test_enrolling_again_resumes_or_replaces(self, enrolled):
        bank, model, bones = enrolled
        first, second = some_vectors(1, 1), some_vectors(2, 2)
        assert bank.enrol(model, bones[0], ["a"], first)
        assert not bank.enrol(model, bones[0], ["b", "c"], second)
        np.testing.assert_allclose(bank.fingerprints().vectors, first, atol=1e-7)
        assert bank.enrol(model, bones[0], ["b", "c"], second, replace=True)
        assert bank.fingerprints().view_keys == ("b", "c")
        assert maintenance.check(bank.folder).ok

    def test_each_model_has_its_own(self, enrolled, tmp_path):
        bank, model, bones = enrolled
        other, _ = bank.add_model(weights(tmp_path / "o.safetensors", 2.0), CARD, dimension=4)
        bank.enrol(model, bones[0], ["a"], some_vectors(1, 1))
        bank.enrol(other, bones[0], ["a"], some_vectors(1, 1, 4))
        assert bank.fingerprints(model).vectors.shape == (1, 128)
        assert bank.fingerprints(other.id).vectors.shape == (1, 4)

    @pytest.mark.parametrize(
        ("keys", "vectors"),
        [
            ([], np.empty((0, 128))),
            (["a"], some_vectors(1, 2)),
            (["a"], some_vectors(1, 1, 64)),
            (["a"], some_vectors(1, 1) * 2),
            (["a"], some_vectors(1, 1) * np.nan),
            (["a", "a"], some_vectors(1, 2)),
        ],
    )
    def test_what_is_no_fingerprint_is_refused(self, enrolled, keys, vectors):
        bank, model, bones = enrolled
        with pytest.raises(ValueError, match=r"."):
            bank.enrol(model, bones[0], keys, vectors)
        assert bank.enrolled() == {}

    def test_a_removed_bone_cannot_be_enrolled(self, enrolled):
        bank, model, bones = enrolled
        bank.remove_bone(bones[0])
        with pytest.raises(BankError):
            bank.enrol(model, bones[0], ["a"], some_vectors(1, 1))
        assert maintenance.check(bank.folder).fingerprints == 0


class TestOpening:
    def test_create_and_open(self, tmp_path):
        path = tmp_path / "a" / "b c?#%" / "bank"
        with Bank.create(path) as bank:
            bank.add_bone(new_bone(1))
        with pytest.raises(BankError, match="a bank already"):
            Bank.create(path)
        with Bank.open(path, create=True) as bank:
            assert len(bank.bones()) == 1
        with Bank.open(str(path)) as bank:
            assert len(bank.bones()) == 1
            with pytest.raises(BankError, match="not open for writing"):
                bank.add_bone(new_bone(2))
        with pytest.raises(BankError, match="closed"):
            bank.bones()
        assert sorted(entry.name for entry in path.iterdir()) == [
            "bank.lock",
            "bank.sqlite",
            "models",
            "surfaces",
            "volumes",
        ]

    def test_a_closed_bank_is_not_written_to(self, tmp_path):
        with Bank.create(tmp_path / "bank") as bank:
            pass
        with pytest.raises(BankError, match="not open for writing"):
            bank.add_bone(new_bone(1))

    @pytest.mark.parametrize("write", [False, True])
    def test_what_is_no_bank(self, tmp_path, write):
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "thesis.doc").touch()
        for name, problem in (
            ("none", "no such bank"),
            ("file", "a file"),
            ("folder", "not a bank"),
        ):
            with pytest.raises(BankError, match=problem) as caught:
                Bank.open(tmp_path / name, write=write)
            assert str(tmp_path / name) in str(caught.value)
        with pytest.raises(BankError, match=r"holds thesis\.doc"):
            Bank.open(tmp_path / "folder", create=True)
        with pytest.raises(BankError):
            Bank.open(tmp_path / "file", create=True)
        with pytest.raises(BankError):
            Bank.open(tmp_path / "file" / "below", create=True)
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["thesis.doc"]
        assert not (tmp_path / "none").exists()

    def test_a_database_server(self):
        with pytest.raises(BankError, match="cannot be opened yet"):
            Bank.open("postgresql://localhost/bones", create=True)

    @pytest.mark.parametrize("create", [False, True])
    def test_another_version(self, tmp_path, create):
        Bank.create(tmp_path / "bank").close()
        with closing(sqlite3.connect(tmp_path / "bank" / "bank.sqlite")) as raw, raw:
            raw.execute("UPDATE meta SET value = '7' WHERE key = 'schema_version'")
        with pytest.raises(BankError, match=r"version 7.*version 1"):
            Bank.open(tmp_path / "bank", create=create)

    @pytest.mark.parametrize("options", [{}, {"write": True}, {"create": True}])
    def test_no_database(self, tmp_path, options):
        with Bank.create(tmp_path / "bank") as bank:
            bank.add_bone(new_bone(1))
            before = files(bank)
        database = tmp_path / "bank" / "bank.sqlite"
        good = database.read_bytes()
        for content in (b"a letter to my aunt" * 100, b"", None, good[:100], good[:5000]):
            database.unlink(missing_ok=True)
            if content is not None:
                database.write_bytes(content)
            with pytest.raises(BankError):
                Bank.open(tmp_path / "bank", **options)
            # Whatever became of the database, the files of the bones are still there.
            assert files(bank) == before
        database.unlink(missing_ok=True)
        database.mkdir()
        with pytest.raises(BankError, match="cannot be opened"):
            Bank.open(tmp_path / "bank", **options)

    def test_another_program_s_database(self, tmp_path):
        with closing(sqlite3.connect(tmp_path / "bank.sqlite")) as raw, raw:
            raw.execute("CREATE TABLE recipes (name TEXT)")
        with pytest.raises(BankError, match="not a bank"):
            Bank.open(tmp_path)

    def test_damaged_pages_are_told_and_never_a_traceback(self, tmp_path):
        path = tmp_path / "bank"
        with Bank.create(path) as bank:
            for number in range(20):
                bank.add_bone(new_bone(number))
            model, _ = bank.add_model(weights(tmp_path / "m.safetensors"), CARD)
            for bone in bank.bones():
                bank.enrol(model, bone, list("abcd"), some_vectors(1))
        database = path / "bank.sqlite"
        good = database.read_bytes()
        rng = np.random.default_rng(6)
        noticed, lines = 0, []
        for page in range(len(good) // 4096):
            bad = bytearray(good)
            bad[page * 4096 : (page + 1) * 4096] = rng.bytes(4096)
            database.write_bytes(bad)
            for use in (self.read_everything, maintenance.check):
                try:
                    found = use(path)
                except BankError as error:
                    lines.append(str(error))
                    found = None
            noticed += found is None or not found.ok
        assert noticed == len(good) // 4096
        assert not any("\n" in line for line in lines)

    @staticmethod
    def read_everything(path: Path) -> None:
        with Bank.open(path) as bank:
            for bone in bank.bones():
                bank.surface(bone)
            for model in bank.models():
                bank.fingerprints(model)

    def test_a_second_writer_is_told_and_readers_are_not_disturbed(self, bank):
        bank.add_bone(new_bone(1))
        with pytest.raises(BankError, match="another process is writing"):
            Bank.open(bank.folder, write=True, wait_s=0.05)
        with Bank.open(bank.folder) as reader:
            assert len(reader.bones()) == 1
            bank.add_bone(new_bone(2))
            assert len(reader.bones()) == 2

    def test_a_reader_sees_one_state(self, bank):
        bank.add_bone(new_bone(1))
        with Bank.open(bank.folder) as reader, reader.disk.reading() as connection:
            count = "SELECT count(*) FROM bones"
            assert connection.exec_driver_sql(count).scalar() == 1
            bank.add_bone(new_bone(2))
            assert connection.exec_driver_sql(count).scalar() == 1

    def test_threads_may_share_a_bank(self, bank):
        errors = []

        def add(numbers) -> None:
            try:
                for number in numbers:
                    bank.add_bone(new_bone(number))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=add, args=(range(k, k + 8),)) for k in (0, 4, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(bank.bones()) == 16
        assert maintenance.check(bank.folder).ok


class TestDisks:
    def test_a_folder_one_may_only_read(self, open_folder, anybody):
        path = open_folder / "bank"
        with Bank.create(path) as bank:
            bank.add_bone(new_bone(1))
        path.chmod(0o555)
        before = sorted(os.listdir(path))
        anybody()
        with Bank.open(path) as bank:
            assert bank.surface("ball 1").is_watertight
        assert maintenance.check(path).ok
        for options in ({"write": True}, {"create": True}):
            with pytest.raises(BankError, match="permission"):
                Bank.open(path, **options)
        with pytest.raises(BankError, match="permission"):
            Bank.create(path / "inner")
        assert sorted(os.listdir(path)) == before

    def test_a_folder_one_may_not_even_read(self, open_folder, anybody):
        Bank.create(open_folder / "bank").close()
        (open_folder / "bank").chmod(0o000)
        anybody()
        with pytest.raises(BankError, match="permission"):
            Bank.open(open_folder / "bank")

    def test_reading_beside_a_writer_without_the_right_to_write(self, open_folder, anybody):
        path = open_folder / "bank"
        with Bank.create(path) as writer:
            writer.add_bone(new_bone(1))
            path.chmod(0o555)
            anybody()
            with Bank.open(path) as reader:
                assert len(reader.bones()) == 1
            if os.getuid() == 0:
                os.seteuid(0)
            path.chmod(0o755)

    def test_a_full_database(self, bank):
        kept, _ = bank.add_bone(new_bone(1))
        before = files(bank)
        with bank.disk.reading() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(BankError, match="disk is full"):
            bank.add_bone(new_bone(2, warnings=("long " * 5000,)))
        assert files(bank) == before
        assert [bone.id for bone in bank.bones()] == [kept.id]
        assert maintenance.check(bank.folder).ok

    def test_a_full_disk(self, bank, monkeypatch):
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(BankError, match="disk is full"):
                bank.add_bone(new_bone(1))
        assert files(bank) == []
        assert bank.add_bone(new_bone(1))[1]

    def test_a_damaged_surface_is_not_handed_out(self, bank):
        record, _ = bank.add_bone(new_bone(1))
        path = bank.folder / "surfaces" / f"{record.surface_sha256}.ply"
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        with pytest.raises(BankError, match="damaged"):
            bank.surface(record)
        path.unlink()
        with pytest.raises(BankError, match="missing"):
            bank.surface(record)


# Killing a writer


def steps(bank: Bank, source: Path):
    """Everything a writer does; yields after each thing that is done and said to be."""
    yield
    bank.add_bone(new_bone(0))
    yield
    bank.add_bone(new_bone(0, name="twin", individual="twin"))  # shares the files
    yield
    model, _ = bank.add_model(source, CARD)
    yield
    for name in ("ball 0", "twin"):
        bank.enrol(model, name, list("abcd"), some_vectors(1))
        yield
    bank.remove_bone("ball 0")
    yield


def state(path: Path) -> tuple:
    """What is in a bank, after making sure that each bone is whole; () when there is none."""
    try:
        bank = Bank.open(path)
    except BankError as error:
        if error.problem.startswith(("no such bank", "not a bank")):
            return ()
        raise
    with bank:
        report = maintenance.check(path)
        assert report.problems == ()
        for bone in bank.bones():
            assert len(bank.surface(bone).faces) == 80
            assert len(bank.volume_path(bone).read_bytes()) == 5009
        models = bank.models()
        views = [sorted(bank.enrolled(model).items()) for model in models]
        assert all(count == 4 for model in views for _, count in model)
        return tuple(bone.name for bone in bank.bones()), len(models), str(views)


def written(path: Path, source: Path, hook=lambda: None) -> tuple[int, int]:
    """Fork a writer that runs ``steps``; (its id, a pipe with one byte for each step done)."""
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)
            hook()
            with Bank.open(path, create=True) as bank:
                for _ in steps(bank, source):
                    os.write(say, b".")
        finally:
            os._exit(0)
    os.close(say)
    return child, ready


def killed(child: int, ready: int) -> int:
    """How many steps a child had said to be done when it ended."""
    os.waitpid(child, 0)
    done = len(os.read(ready, 100))
    os.close(ready)
    return done


def the_states(folder: Path, source: Path) -> list[tuple]:
    """What is in the bank after 0, 1, ... steps of an undisturbed writer."""
    found = [()]
    with Bank.open(folder, create=True) as bank:
        for _ in steps(bank, source):
            found.append(state(folder))
    assert len(set(found)) == len(found) == 8
    return found


def survives(
    path: Path, source: Path, states: list[tuple], done: int, to_the_end: bool = True
) -> None:
    """Nothing said to be done is lost, nothing is there by half, and work can go on."""
    assert state(path) in states[done : done + 2]
    with Bank.open(path, create=True) as bank:
        assert bank.disk.unreferenced() == []
    if to_the_end:  # as if nothing had happened
        assert killed(*written(path, source)) == 7
        assert state(path) == states[-1]


CHANGES = (os.replace, os.fsync, os.unlink, os.mkdir, os.ftruncate, os.pwrite)


def before_each_change(act) -> None:
    """Have ``act`` called before whatever changes the disk: a system call or a commit."""

    def profile(frame, event, called) -> None:
        if event == "c_call":
            owner = type(getattr(called, "__self__", None)).__module__
            written = (owner, called.__name__) in (("_io", "write"), ("sqlite3", "commit"))
            if written or called in CHANGES:
                act()

    sys.setprofile(profile)


def suicide_at(change: int) -> None:
    """Kill this process just before its n-th change of the disk."""
    left = iter(range(change))

    def act() -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_change(act)


def test_killed_before_each_change_of_the_disk(tmp_path):
    source = weights(tmp_path / "m.safetensors")
    states = the_states(tmp_path / "undisturbed", source)
    done, change, stops = 0, 0, []
    while done < 7:
        path = tmp_path / f"bank-{change}"
        child, ready = written(path, source, lambda: suicide_at(change))  # noqa: B023
        done = killed(child, ready)
        survives(path, source, states, done, to_the_end=change % 10 == 0)
        stops.append(done)
        change += 1
    assert sorted(set(stops)) == list(range(8))


def test_killed_at_any_moment(tmp_path):
    source = weights(tmp_path / "m.safetensors")
    states = the_states(tmp_path / "undisturbed", source)
    begun = time.monotonic()
    killed(*written(tmp_path / "timed", source))
    whole_s = time.monotonic() - begun
    rng = random.Random(2)
    for trial in range(8):
        path = tmp_path / f"bank-{trial}"
        child, ready = written(path, source)
        time.sleep(rng.uniform(0, whole_s))
        os.kill(child, signal.SIGKILL)
        survives(path, source, states, killed(child, ready))

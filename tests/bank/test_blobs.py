"""Files and folders that appear all at once, and one writer at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from pathlib import Path

import pytest

from osteoprint.bank.blobs import BlobFolder, WriterLock, disk_errors, new_folder, sha256_of
from osteoprint.errors import BankError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_a_file_and_a_function_become_the_same_blob(tmp_path):
    (tmp_path / "blobs").mkdir()
    blobs = BlobFolder(tmp_path / "blobs", ".txt")
    source = tmp_path / "source"
    source.write_bytes(b"bone")
    expected = hashlib.sha256(b"bone").hexdigest()
    for content in (b"bone", source, lambda path: path.write_bytes(b"bone")):
        assert blobs.put(content) == expected
        assert names(blobs.folder) == [f"{expected}.txt"]
        assert blobs.path(expected).read_bytes() == b"bone"
        blobs.remove(expected)
        assert names(blobs.folder) == []
    blobs.remove(expected)
    assert source.read_bytes() == b"bone"


def test_a_writer_is_given_a_path_with_the_right_ending(tmp_path):
    given = []

    def write(path: Path) -> None:
        given.append(path)
        path.write_bytes(b"")

    BlobFolder(tmp_path, ".nrrd").put(write)
    assert given[0].suffix == ".nrrd"
    assert given[0].parent == tmp_path


def test_a_damaged_blob_is_noticed_and_mended(tmp_path):
    blobs = BlobFolder(tmp_path, ".txt")
    sha256 = blobs.put(b"bone")
    blobs.require(sha256)
    blobs.path(sha256).write_bytes(b"bonf")
    assert not blobs.intact(sha256)
    with pytest.raises(BankError, match="damaged"):
        blobs.require(sha256)
    blobs.put(b"bone")
    assert blobs.intact(sha256)
    blobs.remove(sha256)
    assert not blobs.intact(sha256)
    with pytest.raises(BankError, match="missing"):
        blobs.require(sha256)
    blobs.require(None)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError(), KeyboardInterrupt()]
)
def test_what_fails_leaves_nothing(tmp_path, error):
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        BlobFolder(tmp_path, ".txt").put(write)
    assert names(tmp_path) == []


def test_a_function_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        BlobFolder(tmp_path, ".txt").put(lambda path: None)
    assert names(tmp_path) == []


def test_the_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    calls = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(
        Path, "replace", lambda old, new: (calls.append(f"-> {new}"), replace(old, new))[1]
    )
    blobs = BlobFolder(tmp_path.resolve(), ".txt")
    path = blobs.path(blobs.put(b"bone"))
    assert len(calls) == 3
    assert Path(calls[0]).name.startswith(".tmp-")
    assert calls[1:] == [f"-> {path}", str(path.parent)]


def test_listing_tells_blobs_from_leftovers_from_strangers(tmp_path):
    blobs = BlobFolder(tmp_path, ".json")
    sha256 = blobs.put(b"{}")
    for name in (
        ".tmp-12.json",
        "notes.json",
        f"{sha256}.ply",
        ".DS_Store",
        f"{sha256.upper()}.json",
    ):
        (tmp_path / name).touch()
    assert blobs.blobs() == [sha256]
    assert [path.name for path in blobs.temporaries()] == [".tmp-12.json"]


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "permission"), (errno.EIO, "output error")],
)
def test_what_a_disk_says_becomes_one_line(number, says):
    with pytest.raises(BankError, match=says) as caught, disk_errors("bank"):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value)


def child_that(holds) -> int:
    """A forked process that enters the context manager, says so and sleeps; its id."""
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with holds():
                os.write(say, b"!")
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(say)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    return child


class Held:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.lock = WriterLock(self.path, 0)

    def __exit__(self, *_) -> None:
        self.lock.release()


def test_one_writer_at_a_time_and_a_killed_one_lets_go(tmp_path):
    path = tmp_path / "bank.lock"
    child = child_that(lambda: Held(path))
    try:
        with pytest.raises(BankError, match=f"another process is writing to it .process {child}"):
            WriterLock(path, 0.1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    lock = WriterLock(path, 0)
    assert lock.held
    with pytest.raises(BankError, match="another process"):
        WriterLock(path, 0)
    lock.release()
    lock.release()
    assert not lock.held
    WriterLock(path, 0).release()


def test_a_second_writer_waits(tmp_path):
    path = tmp_path / "bank.lock"
    child = child_that(lambda: Held(path))
    killer = os.fork()
    if killer == 0:
        time.sleep(0.3)
        os.kill(child, signal.SIGKILL)
        os._exit(0)
    lock = WriterLock(path, 30)  # held by the child until it is killed
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.waitpid(killer, 0)
    lock.release()


def test_a_folder_appears_at_once(tmp_path):
    target = tmp_path / "a" / "copy"
    with new_folder(target) as making:
        (making / "file").write_text("x")
        assert not target.exists()
        assert making.parent == target.parent
    assert (target / "file").read_text() == "x"
    assert names(target.parent) == ["copy"]


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "copy").mkdir()
    with new_folder(tmp_path / "copy") as making:
        (making / "file").touch()
    assert names(tmp_path / "copy") == ["file"]


def test_a_folder_that_fails_never_was(tmp_path):
    def interrupted() -> None:
        with new_folder(tmp_path / "copy") as making:
            (making / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "full"])
def test_nothing_is_overwritten(tmp_path, kind):
    target = tmp_path / "copy"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").touch()
    with pytest.raises(BankError, match="something at this place"), new_folder(target):
        pytest.fail("must not be entered")
    assert names(tmp_path) == ["copy"]


def test_what_a_killed_maker_left_goes_and_a_living_one_stays(tmp_path):
    target = tmp_path / "copy"
    child = child_that(lambda: new_folder(target))
    assert len(names(tmp_path)) == 1
    with new_folder(target) as making:
        assert len(names(tmp_path)) == 2
        assert names(making) == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(names(tmp_path)) == 2
    target.rmdir()
    with new_folder(target):
        pass
    assert names(tmp_path) == ["copy"]


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")

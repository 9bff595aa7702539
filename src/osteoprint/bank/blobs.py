"""Files that appear all at once: content-addressed blobs, whole folders, and one writer.

A file is written under a temporary name in its own folder, flushed to the disk, renamed to
the SHA-256 of its content, and its folder is flushed too. Whoever is killed in between
leaves a temporary file behind, never a half-written one under its final name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from osteoprint.errors import BankError

TEMPORARY = ".tmp-"
MEND = "put it back from a backup, or ingest or enrol it again"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_POLL_S = 0.05

#: What becomes a blob: its bytes, a file to copy, or a function that writes the file it is given.
Content = bytes | Path | Callable[[Path], object]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(source: str | Path) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only, failing) into a one-line BankError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise BankError(source, "the disk is full", "free some space and try again") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            fix = "check the permissions of the folder and the disk"
            raise BankError(source, "no permission to read or write it", fix) from error
        problem = error.strerror or str(error)
        raise BankError(error.filename or source, problem, "check the path and the disk") from error


class BlobFolder:
    """One folder of files named ``<sha256 of the content><suffix>``.

    Parameters
    ----------
    folder : where the files are; it must exist before :meth:`put`.
    suffix : ending of every file, with its dot; temporary files carry it too, because
        writers of image files choose the format by it.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder = folder
        self.suffix = suffix

    def path(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        return self.folder / f"{sha256}{self.suffix}"

    def put(self, content: Content, *, name: str | None = None) -> str:
        """Store ``content`` durably and return the name it can be found under.

        The name is the SHA-256 of the content unless ``name`` (64 hexadecimal digits) is
        given. A blob of this name that is already there is replaced by an equal one, which
        also mends a damaged one. Whatever fails, no temporary file remains. Raises OSError
        and whatever a ``content`` function raises.
        """
        temporary = self.folder / f"{TEMPORARY}{secrets.token_hex(8)}{self.suffix}"
        try:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            elif isinstance(content, Path):
                shutil.copyfile(content, temporary)
            else:
                content(temporary)
            sync(temporary)
            name = name or sha256_of(temporary)
            temporary.replace(self.path(name))
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync(self.folder)
        return name

    def intact(self, sha256: str) -> bool:
        """Is the blob there, with the content its name says? Raises OSError but for absence."""
        try:
            return sha256_of(self.path(sha256)) == sha256
        except FileNotFoundError:
            return False

    def require(self, sha256: str | None) -> None:
        """Raise BankError unless the blob is there and undamaged; None needs no blob."""
        if sha256 is None:
            return
        path = self.path(sha256)
        with disk_errors(path):
            if not path.exists():
                raise BankError(path, "missing from the bank", MEND)
            if sha256_of(path) != sha256:
                raise BankError(path, "damaged: its content is not what was stored", MEND)

    def blobs(self) -> list[str]:
        """The names of all blobs. Raises OSError."""
        stems = [path.name.removesuffix(self.suffix) for path in self._files()]
        return [stem for stem in stems if _SHA256.fullmatch(stem)]

    def temporaries(self) -> list[Path]:
        """What killed writers left, and what a living one is just writing. Raises OSError."""
        return [path for path in self._files() if path.name.startswith(TEMPORARY)]

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.name.endswith(self.suffix))

    def remove(self, sha256: str) -> None:
        """Delete a blob; none of this name is no error. Raises OSError."""
        self.path(sha256).unlink(missing_ok=True)


class WriterLock:
    """The right to write to a bank, held by one process at a time.

    An exclusive ``flock`` on one file, which the kernel gives back when the process ends,
    however it ends (a forked child that outlives it holds it on).

    Parameters
    ----------
    path : the lock file, made where absent; its content is the holder's process id, for
        the message only.
    wait_s : how long to wait for another holder.

    Raises BankError when another process still holds it after ``wait_s`` seconds, or when
    the file cannot be written.
    """

    def __init__(self, path: Path, wait_s: float) -> None:
        with disk_errors(path.parent):
            self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with disk_errors(path.parent):
                self._wait(self._handle, path, wait_s)
        except BaseException:
            self.release()
            raise
        with suppress(OSError):  # a full disk must not keep a writer from cleaning up
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, str(os.getpid()).encode(), 0)

    @staticmethod
    def _wait(handle: int, path: Path, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(handle, 20, 0).decode(errors="replace").strip()
                    who = f" (process {holder})" if holder.isdigit() else ""
                    raise BankError(
                        path.parent,
                        f"another process is writing to it{who}",
                        "wait until it is done and try again",
                    ) from None
                time.sleep(_POLL_S)

    @property
    def held(self) -> bool:
        """False after :meth:`release`."""
        return self._handle is not None

    def release(self) -> None:
        """Let the next writer in. Doing it twice does no harm."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` when the block ends well, else vanishes.

    Yields a temporary folder beside ``target``, on the same disk. Folders of this kind
    whose maker was killed are removed on the way. Raises BankError when ``target`` is a
    file or holds anything, or when the disk refuses.
    """
    target = Path(os.path.abspath(target))
    with disk_errors(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            fix = "name a new or empty folder"
            raise BankError(target, "there is something at this place already", fix)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep_folders(target)
        making = target.parent / f".{target.name}{TEMPORARY}{secrets.token_hex(8)}"
        making.mkdir()
    # The lock tells a folder in the making from one whose maker is dead.
    handle = os.open(making, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield making
        with disk_errors(target):
            for folder, _, files in os.walk(making):
                for name in files:
                    sync(Path(folder) / name)
                sync(Path(folder))
            making.replace(target)
            sync(target.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _sweep_folders(target: Path) -> None:
    """Remove what killed makers of ``target`` left beside it."""
    for left in target.parent.iterdir():
        if not left.name.startswith(f".{target.name}{TEMPORARY}"):
            continue
        try:
            handle = os.open(left, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass  # somebody is still filling it
        finally:
            os.close(handle)

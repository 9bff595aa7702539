"""An open bank's folder: its database, its files, and the right to write.

Everything that makes a bank survive its writers is here: how it comes into being, how
errors of disk and database become one line, and what is swept up after a killed writer.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, inspect, select

from osteoprint.bank import schema
from osteoprint.bank.blobs import BlobFolder, WriterLock, disk_errors, sync
from osteoprint.errors import BankError

LOCK = "bank.lock"
_FILES = {
    "surface": ("surfaces", ".ply"),
    "volume": ("volumes", ".nrrd"),
    "model": ("models", ".safetensors"),
    "card": ("models", ".json"),
}
_PARTS = sorted({part for part, _ in _FILES.values()})
_SCHEMA_KEY = "schema_version"


class BankFolder:
    """The folder of a bank, open for reading or writing. Made by :meth:`open`.

    Attributes
    ----------
    path : where it is.
    files : the folders of blobs: ``surface``, ``volume``, ``model`` and ``card``.
    """

    def __init__(self, path: Path, engine: Engine, lock: WriterLock | None) -> None:
        self.path = path
        self.files = {
            kind: BlobFolder(path / part, suffix) for kind, (part, suffix) in _FILES.items()
        }
        self._engine = engine
        self._lock = lock
        self._thread = threading.RLock()
        self._closed = False

    @classmethod
    def open(cls, path: str | Path, *, write: bool, create: bool, wait_s: float) -> BankFolder:
        """Open or make a bank's folder; :meth:`osteoprint.bank.store.Bank.open` says how."""
        folder = _local(path)
        database = folder / schema.DATABASE
        with disk_errors(folder):
            _require(folder, create)
            if create:
                for part in _PARTS:
                    (folder / part).mkdir(parents=True, exist_ok=True)
        lock = WriterLock(folder / LOCK, wait_s) if write or create else None
        mode = "create" if create else "write" if write else "read"
        opened = cls(folder, schema.connect(database, mode), lock)
        try:
            if create:
                opened._make_tables()
            opened._check_version()
            if lock:
                opened.sweep()
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Let go of the database, and let the next writer in."""
        self._closed = True
        self._engine.dispose()
        if self._lock:
            self._lock.release()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view of the database, whatever is written meanwhile."""
        if self._closed:
            raise BankError(self.path, "it was closed", "open it again")
        with schema.database_errors(self.path), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Files and rows may be changed in this block, by one thread at a time.

        When it fails, the files that no row refers to are swept away. Raises BankError when
        the bank is not open for writing, or the disk refuses.
        """
        if self._lock is None or not self._lock.held:
            raise BankError(self.path, "it is not open for writing", "open it with write=True")
        with self._thread, disk_errors(self.path):
            try:
                yield
            except BaseException:
                with suppress(Exception):  # what failed first is what matters
                    self.sweep()
                raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All changes of this block, or none, durable when it ends; within :meth:`changing`."""
        with schema.database_errors(self.path), self._engine.begin() as connection:
            yield connection

    def meta(self, key: str) -> str | None:
        """A value of the ``meta`` table."""
        query = select(schema.meta.c.value).where(schema.meta.c.key == key)
        with self.reading() as connection:
            return connection.execute(query).scalar()

    def referenced(self) -> dict[str, set[str]]:
        """The names of the files that some row refers to, by kind of file."""
        with self.reading() as connection:
            bones = connection.execute(
                select(schema.bones.c.surface_sha256, schema.bones.c.volume_sha256)
            ).all()
            models = set(connection.execute(select(schema.models.c.sha256)).scalars())
        return {
            "surface": {row.surface_sha256 for row in bones},
            "volume": {row.volume_sha256 for row in bones if row.volume_sha256},
            "model": models,
            "card": models,
        }

    def unreferenced(self) -> list[Path]:
        """Temporary files and blobs that no row refers to: harmless, and no use to anybody."""
        with disk_errors(self.path):
            # Files first, rows second: what is stored in between is not taken for left over.
            found = {kind: blobs.blobs() for kind, blobs in self.files.items()}
            left = [path for blobs in self.files.values() for path in blobs.temporaries()]
        keep = self.referenced()
        for kind, names in found.items():
            left += [self.files[kind].path(name) for name in names if name not in keep[kind]]
        return left

    def sweep(self) -> None:
        """Delete :meth:`unreferenced` files; only for whoever may write."""
        with self._thread:
            for path in self.unreferenced():
                with disk_errors(path):
                    path.unlink(missing_ok=True)

    def snapshot(self, target: Path) -> None:
        """Write the database as it is now to ``target``, while others may write to it."""
        with schema.database_errors(self.path), self._engine.connect() as connection:
            copy = sqlite3.connect(target)
            try:
                original: Any = connection.connection.driver_connection
                original.backup(copy)
            finally:
                copy.close()

    def _make_tables(self) -> None:
        """Make a bank of the folder unless it is one; all tables in one transaction."""
        with schema.database_errors(self.path):
            if inspect(self._engine).has_table(schema.meta.name):
                return
        _require_no_files(self.path)
        with self.transaction() as connection:
            schema.METADATA.create_all(connection)
            set_meta(connection, _SCHEMA_KEY, str(schema.SCHEMA_VERSION))
        with disk_errors(self.path):
            sync(self.path)
            sync(self.path.parent)

    def _check_version(self) -> None:
        with schema.database_errors(self.path):
            found = None
            if inspect(self._engine).has_table(schema.meta.name):
                found = self.meta(_SCHEMA_KEY)
        if found is None:
            problem = f"not a bank: its {schema.DATABASE} has no tables of one"
            raise BankError(self.path, problem, f"name another folder, or {schema.RESTORE}")
        if found != str(schema.SCHEMA_VERSION):
            raise BankError(
                self.path,
                f"a bank of version {found}; this osteoprint reads version {schema.SCHEMA_VERSION}",
                "use the osteoprint that made it, or ingest the bones into a new bank",
            )


def set_meta(connection: Connection, key: str, value: str) -> None:
    """Put a value into the ``meta`` table, in place of the one before."""
    connection.execute(delete(schema.meta).where(schema.meta.c.key == key))
    connection.execute(insert(schema.meta).values(key=key, value=value))


def _local(path: str | Path) -> Path:
    """The absolute folder, or a BankError for what is no folder of this machine."""
    if "://" in str(path):
        problem = "banks on a database server cannot be opened yet"
        raise BankError(path, problem, "name a folder")
    return Path(path).absolute()


def _require(folder: Path, create: bool) -> None:
    """BankError unless the folder holds a bank, or may become one."""
    if folder.exists() and not folder.is_dir():
        raise BankError(folder, "a file, not a bank", "name the bank's folder")
    if (folder / schema.DATABASE).exists():
        return
    if not create:
        problem = "not a bank" if folder.exists() else "no such bank"
        raise BankError(folder, problem, "name a bank, or make one with 'osteoprint ingest'")
    if folder.exists():
        _require_no_files(folder)
        own = {*_PARTS, LOCK, "lost+found"}
        if strangers := sorted(path.name for path in folder.iterdir() if path.name not in own):
            problem = f"neither a bank nor empty (it holds {strangers[0]})"
            raise BankError(folder, problem, "name a new or empty folder")


def _require_no_files(folder: Path) -> None:
    """BankError when there are files of bones, but no database that says what they are."""
    for part in _PARTS:
        if (folder / part).is_dir() and any((folder / part).iterdir()):
            problem = f"{part} holds files, but {schema.DATABASE} is missing or empty"
            raise BankError(folder, problem, schema.RESTORE)

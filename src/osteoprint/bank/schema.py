"""The bank's tables, how to connect to them, and what their errors mean to a user.

Only portable column types, so that the same schema can serve another database. Vectors are
little-endian float32; transforms, warnings and calibrations are JSON.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from osteoprint.errors import BankError

SCHEMA_VERSION = 1
DATABASE = "bank.sqlite"
RESTORE = "restore a backup with 'osteoprint bank restore'"
_BUSY_S = 10.0

METADATA = MetaData()

meta = Table(
    "meta",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

bones = Table(
    "bones",
    METADATA,
    Column("id", String(12), primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("bone", String(64), nullable=False),
    Column("side", String(8), CheckConstraint("side IN ('left', 'right')")),
    Column("individual", Text, nullable=False),
    Column("length_mm", Float, nullable=False),
    Column("watertight", Boolean, nullable=False),
    Column("warnings", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("created", String(20), nullable=False),
    Column("surface_sha256", String(64), nullable=False),
    Column("volume_sha256", String(64)),
    Column("bone_to_world", Text, nullable=False),
    UniqueConstraint("surface_sha256", "individual"),
)

models = Table(
    "models",
    METADATA,
    Column("id", String(12), primary_key=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("card_sha256", String(64), nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("created", String(20), nullable=False),
    Column("calibration", Text),
)

# One row says that all views of a bone are there, and what they add up to.
enrolments = Table(
    "enrolments",
    METADATA,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("bone_id", ForeignKey("bones.id"), primary_key=True),
    Column("views", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
)

fingerprints = Table(
    "fingerprints",
    METADATA,
    Column("model_id", String(12), primary_key=True),
    Column("bone_id", String(12), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("view_key", Text, nullable=False),
    Column("vector", LargeBinary, nullable=False),
    ForeignKeyConstraint(
        ["model_id", "bone_id"], ["enrolments.model_id", "enrolments.bone_id"], ondelete="CASCADE"
    ),
)


def connect(database: Path, mode: str) -> Engine:
    """An engine on an SQLite file; nothing is opened until the first connection.

    Parameters
    ----------
    database : the file.
    mode : ``read``, ``write`` (durable: write-ahead log, flushed at each commit) or
        ``create`` (``write``, and the file is made where absent).
    """

    def open_file() -> sqlite3.Connection:
        address = f"{database.absolute().as_uri()}?{_uri_options(database, mode)}"
        connection = sqlite3.connect(
            address, uri=True, timeout=_BUSY_S, check_same_thread=False, isolation_level=None
        )
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            if mode == "read":
                connection.execute("PRAGMA query_only=ON")
            else:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=open_file, poolclass=QueuePool)

    # sqlite3 by itself begins a transaction only at the first change: several SELECTs would
    # not see one state, and a writer would find out too late that another one is ahead.
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if mode == "read" else "BEGIN IMMEDIATE")

    return engine


def _uri_options(database: Path, mode: str) -> str:
    """How SQLite is to open the file, which for reading depends on the folder."""
    if mode != "read":
        return "mode=rwc" if mode == "create" else "mode=rw"
    effective = os.access in os.supports_effective_ids
    if os.access(database.parent, os.W_OK, effective_ids=effective):
        return "mode=rw"  # a reader has to be able to recover the log of a killed writer
    if (database.parent / f"{database.name}-wal").exists():
        return "mode=ro"
    # Reading a write-ahead log needs files that cannot be made here; without one, nobody writes.
    return "mode=ro&immutable=1"


@contextmanager
def database_errors(source: str | Path) -> Iterator[None]:
    """Turn whatever the database raises into a one-line BankError about ``source``."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        problem, fix = _explain(error)
        raise BankError(source, problem, fix) from error


def _explain(error: Exception) -> tuple[str, str]:
    """(problem, fix) of a database error."""
    original = getattr(error, "orig", None) or error
    name = getattr(original, "sqlite_errorname", None) or ""
    if name.startswith("SQLITE_FULL"):
        return "the disk is full", "free some space and try again"
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return "no permission to write it", "check the permissions of the folder and the disk"
    if name.startswith("SQLITE_NOTADB"):
        return f"{DATABASE} is not an SQLite database", RESTORE
    if name.startswith("SQLITE_CORRUPT"):
        return "its database is damaged", RESTORE
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "its database is busy", "wait until the other program is done and try again"
    if name.startswith("SQLITE_CANTOPEN"):
        return f"{DATABASE} cannot be opened", "check that it is a file, and its permissions"
    if name.startswith("SQLITE_IOERR"):
        return f"the disk failed ({name})", "check the disk and its free space"
    return f"its database says: {original}", f"run 'osteoprint bank check', or {RESTORE}"

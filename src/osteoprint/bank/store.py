"""The bank: a folder of bones, models and fingerprints that survives its writers.

``bank.sqlite`` says what there is; ``surfaces``, ``volumes`` and ``models`` hold the files it
names, each under the SHA-256 of its content. A file is complete on the disk before one
transaction makes it visible, so a writer killed at any moment leaves a bank that opens and
is whole; what it had not finished is swept away by the next writer. One process writes at a
time; readers neither wait nor hold anybody up. A bank belongs on a local disk, because
neither the lock nor the write-ahead log can be trusted on a network share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import ArrayLike
from sqlalchemy import RowMapping, delete, insert, or_, select, update

from osteoprint.bank import schema
from osteoprint.bank.blobs import MEND
from osteoprint.bank.calibrations import Calibrations
from osteoprint.bank.evidence import Calibration
from osteoprint.bank.folder import BankFolder, set_meta
from osteoprint.bank.records import (
    BoneRecord,
    ModelRecord,
    NewBone,
    bone_id,
    bone_values,
    card_bytes,
    check_safetensors,
    enrolment_sha256,
    ply_bytes,
    read_blob,
    read_bone,
    read_model,
    surface_from_ply,
)
from osteoprint.bank.search import Fingerprints, unit_vectors
from osteoprint.errors import BankError
from osteoprint.frames import Side

__all__ = ["Bank", "BoneRecord", "ModelRecord", "NewBone"]

_DEFAULT_MODEL = "default_model"


class Bank:
    """A bank of bones; use it as a context manager.

    Made by :meth:`open` or :meth:`create`. Every method raises BankError, in one line, when
    the bank is damaged, the disk full or the folder read-only; the methods that change
    something also when the bank was not opened for writing.

    Attributes
    ----------
    folder : where it is.
    disk : its database and files; for this room.
    """

    def __init__(self, disk: BankFolder) -> None:
        self.folder = disk.path
        self.disk = disk

    @classmethod
    def create(cls, path: str | Path) -> Bank:
        """A new bank, open for writing. Raises BankError when there is one at ``path``."""
        if (Path(path) / schema.DATABASE).exists():
            raise BankError(path, "there is a bank already", "open it, or name a new folder")
        return cls.open(path, create=True)

    @classmethod
    def open(
        cls, path: str | Path, *, write: bool = False, create: bool = False, wait_s: float = 10.0
    ) -> Bank:
        """Open a bank.

        Parameters
        ----------
        path : its folder.
        write : take the right to write, and sweep up what a killed writer left.
        create : make it where there is none yet; implies ``write``.
        wait_s : how long to wait for another process that is writing.

        Raises BankError when there is no bank, or one that is damaged, of another version or
        being written to.
        """
        return cls(BankFolder.open(path, write=write, create=create, wait_s=wait_s))

    def close(self) -> None:
        """Let go of the files, and let the next writer in."""
        self.disk.close()

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Bones

    def bones(self, *, bone: str | None = None, side: Side | None = None) -> list[BoneRecord]:
        """All bones, or those of one kind or side, in the order of their names and ids."""
        query = select(schema.bones).order_by(schema.bones.c.name, schema.bones.c.id)
        if bone is not None:
            query = query.where(schema.bones.c.bone == bone)
        if side is not None:
            query = query.where(schema.bones.c.side == str(side))
        with self.disk.reading() as connection:
            return [read_bone(self.folder, row) for row in connection.execute(query).mappings()]

    def bone(self, id_or_name: str) -> BoneRecord:
        """The bone of this id, or else of this name.

        Raises BankError when there is none, or when several have the name.
        """
        table = schema.bones.c
        query = select(schema.bones).where(or_(table.id == id_or_name, table.name == id_or_name))
        with self.disk.reading() as connection:
            rows = connection.execute(query.order_by(table.id)).mappings().all()
        found = [row for row in rows if row["id"] == id_or_name] or rows
        if not found:
            fix = "name one that 'osteoprint bank list' shows"
            raise BankError(id_or_name, f"no bone of this id or name in {self.folder}", fix)
        if len(found) > 1:
            ids = ", ".join(row["id"] for row in found[:5])
            raise BankError(id_or_name, f"{len(found)} bones have this name", f"name an id: {ids}")
        return read_bone(self.folder, found[0])

    def surface(self, bone: BoneRecord | str) -> trimesh.Trimesh:
        """The surface of a bone, LPS mm. Raises BankError when its file is missing or damaged."""
        record = bone if isinstance(bone, BoneRecord) else self.bone(bone)
        path = self.disk.files["surface"].path(record.surface_sha256)
        return surface_from_ply(path, read_blob(path, record.surface_sha256))

    def volume_path(self, bone: BoneRecord | str) -> Path:
        """The file with the scan around a bone. Raises BankError when there is none."""
        record = bone if isinstance(bone, BoneRecord) else self.bone(bone)
        if record.volume_sha256 is None:
            raise BankError(record.name, "the bank has no volume of this bone", "ingest its scan")
        path = self.disk.files["volume"].path(record.volume_sha256)
        if not path.is_file():
            raise BankError(path, f"the volume of {record.name} is missing", MEND)
        return path

    def add_bone(self, bone: NewBone) -> tuple[BoneRecord, bool]:
        """Keep a bone: all of it, or nothing of it.

        Returns the record and whether it is new. The same surface of the same individual is
        kept once: the record that was there comes back unchanged, except that files of it
        that are missing or damaged are replaced by the ones given.
        """
        content = ply_bytes(bone.surface)
        with self.disk.changing():
            sha256 = hashlib.sha256(content).hexdigest()
            identity = bone_id(sha256, bone.individual)
            known = self._known(identity)
            if known and self._is_whole(known):
                return known, False
            self.disk.files["surface"].put(content)
            volume = known.volume_sha256 if known else None
            if bone.volume is not None:
                volume = self.disk.files["volume"].put(bone.volume)
            values = bone_values(bone, sha256, volume, created=_now())
            with self.disk.transaction() as connection:
                if known:
                    change = update(schema.bones).where(schema.bones.c.id == known.id)
                    connection.execute(change.values(volume_sha256=volume))
                else:
                    connection.execute(insert(schema.bones).values(values))
        return self.bone(identity), known is None

    def remove_bone(self, bone: BoneRecord | str) -> None:
        """Forget a bone, its fingerprints, and the files that no other bone needs."""
        record = bone if isinstance(bone, BoneRecord) else self.bone(bone)
        with self.disk.changing():
            with self.disk.transaction() as connection:
                for table in (schema.fingerprints, schema.enrolments):
                    connection.execute(delete(table).where(table.c.bone_id == record.id))
                connection.execute(delete(schema.bones).where(schema.bones.c.id == record.id))
            self.disk.sweep()

    # Models

    def models(self) -> list[ModelRecord]:
        """All models, oldest first."""
        query = select(schema.models).order_by(schema.models.c.created, schema.models.c.id)
        with self.disk.reading() as connection:
            rows = connection.execute(query).mappings().all()
        default = self.disk.meta(_DEFAULT_MODEL)
        return [self._read_model(row, default) for row in rows]

    def model(self, model: ModelRecord | str | None = None) -> ModelRecord:
        """The model of this id, or the default one: the last that was added as such.

        Raises BankError when there is none.
        """
        if isinstance(model, ModelRecord):
            return model
        default = self.disk.meta(_DEFAULT_MODEL)
        query = select(schema.models).where(schema.models.c.id == (model or default))
        with self.disk.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            fix = "train one, or enrol the bank with one: 'osteoprint enrol --model MODEL'"
            raise BankError(self.folder, f"it has no model{f' {model}' if model else ''}", fix)
        return self._read_model(row, default)

    def add_model(
        self,
        safetensors_path: Path,
        card: dict[str, Any],
        *,
        dimension: int = 128,
        default: bool = True,
    ) -> tuple[ModelRecord, bool]:
        """Keep a copy of a model and its card, and make it the default.

        Returns the record and whether it is new: the same weights are kept once, with the
        card they came with. ``dimension`` is the length of a fingerprint. Raises ModelError
        when the file is no safetensors file or the card no JSON.
        """
        check_safetensors(safetensors_path)
        text = card_bytes(safetensors_path, card)
        with self.disk.changing():
            sha256 = self.disk.files["model"].put(safetensors_path)
            card_sha256 = hashlib.sha256(text).hexdigest()
            with self.disk.reading() as connection:
                query = select(schema.models.c.card_sha256).where(schema.models.c.sha256 == sha256)
                known = connection.execute(query).scalar()
            if known in (None, card_sha256):
                self.disk.files["card"].put(text, name=sha256)
            values = {"id": sha256[:12], "sha256": sha256, "dimension": dimension}
            values |= {"card_sha256": card_sha256, "created": _now()}
            with self.disk.transaction() as connection:
                if known is None:
                    connection.execute(insert(schema.models).values(values))
                if default:
                    set_meta(connection, _DEFAULT_MODEL, sha256[:12])
        return self.model(sha256[:12]), known is None

    def calibration(
        self, model: ModelRecord | str | None = None, kind: str | None = None
    ) -> Calibration | None:
        """What distances to a bone's nearest enrolled view mean; None until it was set.

        Of this kind of bone, where it has been learnt of that alone.
        """
        known = self.calibrations(model)
        return None if known is None else known.of(kind).nearest

    def pair_calibration(
        self, model: ModelRecord | str | None = None, kind: str | None = None
    ) -> Calibration | None:
        """What distances between two single pairs of films mean, see :meth:`calibration`."""
        known = self.calibrations(model)
        return None if known is None else known.of(kind).pairs

    def calibrations(self, model: ModelRecord | str | None = None) -> Calibrations | None:
        """All that a model's distances mean; None until it was set."""
        column = schema.models.c.calibration
        query = select(column).where(schema.models.c.id == self.model(model).id)
        with self.disk.reading() as connection:
            text = connection.execute(query).scalar()
        try:
            return None if text is None else Calibrations.from_text(text)
        except ValueError as error:
            problem = f"its calibration is damaged ({error})"
            raise BankError(self.folder, problem, "run 'osteoprint enrol' again") from error

    def set_calibrations(self, model: ModelRecord | str | None, known: Calibrations) -> None:
        """Keep what a model's distances mean, in place of what was kept before."""
        change = update(schema.models).where(schema.models.c.id == self.model(model).id)
        text = known.to_text()
        with self.disk.changing(), self.disk.transaction() as connection:
            connection.execute(change.values(calibration=text))

    # Fingerprints

    def enrolled(self, model: ModelRecord | str | None = None) -> dict[str, int]:
        """The ids of the bones that have this model's fingerprints, and how many views."""
        table = schema.enrolments.c
        query = select(table.bone_id, table.views).where(table.model_id == self.model(model).id)
        with self.disk.reading() as connection:
            return {row.bone_id: row.views for row in connection.execute(query)}

    def enrol(
        self,
        model: ModelRecord | str | None,
        bone: BoneRecord | str,
        view_keys: Sequence[str],
        vectors: ArrayLike,
        *,
        replace: bool = False,
    ) -> bool:
        """Keep all fingerprints of one bone, made by one model, in one transaction.

        Parameters
        ----------
        view_keys : k names of views, each once.
        vectors : (k, dimension of the model), of unit length; kept as float32.
        replace : put them in place of those that are there.

        Returns whether anything was written: a bone that has this model's fingerprints is
        left as it is unless ``replace``, so an interrupted enrolment is resumed by doing it
        again. Raises ValueError for vectors or keys that are none.
        """
        made_by = self.model(model)
        record = bone if isinstance(bone, BoneRecord) else self.bone(bone)
        unit = unit_vectors(vectors).astype("<f4")
        if not len(view_keys) or unit.shape != (len(view_keys), made_by.dimension):
            raise ValueError(f"{len(view_keys)} keys, {unit.shape}, dimension {made_by.dimension}")
        if len(set(view_keys)) < len(view_keys):
            raise ValueError("a view is there twice")
        parts = [vector.tobytes() for vector in unit]
        pair = {"model_id": made_by.id, "bone_id": record.id}
        with self.disk.changing(), self.disk.transaction() as connection:
            there = select(schema.enrolments.c.views).filter_by(**pair)
            if connection.execute(there).first() is not None:
                if not replace:
                    return False
                for table in (schema.fingerprints, schema.enrolments):
                    connection.execute(delete(table).filter_by(**pair))
            total = {"views": len(parts), "sha256": enrolment_sha256(view_keys, parts)}
            connection.execute(insert(schema.enrolments).values(pair | total))
            connection.execute(
                insert(schema.fingerprints),
                [
                    pair | {"position": position, "view_key": key, "vector": part}
                    for position, (key, part) in enumerate(zip(view_keys, parts, strict=True))
                ],
            )
        return True

    def fingerprints(self, model: ModelRecord | str | None = None) -> Fingerprints:
        """All fingerprints of a model, by bone id and in the order they were enrolled in."""
        made_by = self.model(model)
        table = schema.fingerprints.c
        query = select(table.bone_id, table.view_key, table.vector)
        query = query.where(table.model_id == made_by.id).order_by(table.bone_id, table.position)
        with self.disk.reading() as connection:
            rows = connection.execute(query).all()
        bone_ids, view_keys, parts = zip(*rows, strict=True) if rows else ((), (), ())
        vectors = np.frombuffer(b"".join(parts), dtype="<f4")
        if vectors.size != len(rows) * made_by.dimension:
            fix = f"run 'osteoprint bank check', or {schema.RESTORE}"
            raise BankError(self.folder, "its fingerprints have the wrong length", fix)
        vectors = vectors.reshape(len(rows), made_by.dimension)
        try:
            return Fingerprints.from_rows(bone_ids, view_keys, vectors)
        except ValueError as error:
            problem = f"its fingerprints are damaged ({error})"
            raise BankError(self.folder, problem, "run 'osteoprint enrol' again") from error

    def _known(self, identity: str) -> BoneRecord | None:
        query = select(schema.bones).where(schema.bones.c.id == identity)
        with self.disk.reading() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else read_bone(self.folder, row)

    def _is_whole(self, bone: BoneRecord) -> bool:
        files = self.disk.files
        return files["surface"].intact(bone.surface_sha256) and (
            bone.volume_sha256 is None or files["volume"].intact(bone.volume_sha256)
        )

    def _read_model(self, row: RowMapping, default: str | None) -> ModelRecord:
        files, sha256 = self.disk.files, row["sha256"]
        return read_model(files["model"].path(sha256), files["card"].path(sha256), row, default)


def _now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Looking after a bank: is it whole, copy it, bring it back, hand it out."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from sqlalchemy import func, select

from osteoprint.bank import schema
from osteoprint.bank.blobs import disk_errors, new_folder
from osteoprint.bank.folder import BankFolder
from osteoprint.bank.records import (
    BoneRecord,
    check_safetensors,
    enrolment_sha256,
    read_blob,
    read_bone,
    surface_from_ply,
)
from osteoprint.bank.search import Fingerprints, unit_vectors
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError, InputError

_TRIES = 5  # how often a bone may be removed under our hands before we give up


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found.

    Attributes
    ----------
    problems : what is damaged, one line each.
    orphans : files that nothing refers to, left by a killed writer (or just being written);
        harmless, and deleted by the next writer.
    bones, models, fingerprints : how many there are.
    """

    problems: tuple[str, ...]
    orphans: tuple[str, ...]
    bones: int
    models: int
    fingerprints: int

    @property
    def ok(self) -> bool:
        """Is the bank whole? Orphans do no harm."""
        return not self.problems


def check(path: str | Path) -> CheckReport:
    """Examine everything in a bank: database, files, models, fingerprints.

    Reads every byte, changes nothing, and may run while others write. Raises BankError when
    there is no bank to examine, or one that cannot even be opened.
    """
    with Bank.open(path) as bank:
        for _ in range(_TRIES):
            before = _referenced(bank.disk)
            problems = _problems(bank)
            # A bone that was removed meanwhile has lost its files, which is no damage.
            if not problems or before == _referenced(bank.disk):
                break
        counts, orphans = [0, 0, 0], []
        try:
            orphans = [str(left.relative_to(bank.folder)) for left in bank.disk.unreferenced()]
            with bank.disk.reading() as connection:
                for place, table in enumerate((schema.bones, schema.models, schema.fingerprints)):
                    query = select(func.count()).select_from(table)
                    counts[place] = connection.execute(query).scalar_one()
        except BankError as error:
            problems.append(_told(error, bank.folder))
    return CheckReport(tuple(dict.fromkeys(problems)), tuple(orphans), *counts)


def backup(bank: str | Path, target: str | Path) -> CheckReport:
    """Copy a bank to a new folder, also while others write.

    The copy is the bank as it was at one moment; it is checked, and appears all at once. It
    is a bank itself. Raises BankError when the bank is damaged, or ``target`` holds anything.
    """
    with Bank.open(bank) as source, disk_errors(target), new_folder(Path(target)) as making:
        _copy(source, making)
        report = check(making)
        if not report.ok:
            more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
            raise BankError(
                source.folder,
                f"damaged, so not copied: {report.problems[0]}{more}",
                "run 'osteoprint bank check' and mend what it names",
            )
    return report


def restore(backup_folder: str | Path, target: str | Path) -> CheckReport:
    """Make a bank of a backup: a checked copy in a new or empty folder, or nothing.

    Raises BankError when the backup is damaged, or ``target`` holds anything.
    """
    return backup(backup_folder, target)


def export(bank: str | Path, target: str | Path) -> int:
    """Write a bank for other programs into a new folder, which appears all at once.

    ``bones.csv`` (one row a bone), ``surfaces/NAME.ply`` (LPS mm), and for each model that
    bones are enrolled with ``fingerprints-MODEL.npz`` (``bone_ids``, ``view_keys``,
    ``vectors``; readable without pickle) and the same as ``.csv``. Returns the number of
    bones. Raises BankError when something is damaged, or ``target`` holds anything.
    """
    with Bank.open(bank) as opened, disk_errors(target), new_folder(Path(target)) as making:
        bones = opened.bones()
        names = _file_names(bones)
        (making / "surfaces").mkdir()
        for bone in bones:
            blob = opened.disk.files["surface"].path(bone.surface_sha256)
            content = read_blob(blob, bone.surface_sha256)
            (making / "surfaces" / f"{names[bone.id]}.ply").write_bytes(content)
        _write_bones(making / "bones.csv", bones, names)
        for model in opened.models():
            rows = opened.fingerprints(model)
            if len(rows):
                _write_fingerprints(making / f"fingerprints-{model.id}", rows)
    return len(bones)


def _told(error: InputError, folder: Path) -> str:
    """The error in one line, with paths as seen from the bank."""
    return str(error).replace(f"{folder}/", "").replace(f"{folder}: ", "")


def _referenced(disk: BankFolder) -> dict[str, set[str]] | None:
    try:
        return disk.referenced()
    except BankError:
        return None


def _problems(bank: Bank) -> list[str]:
    found: list[str] = []
    for examine in (_database_problems, _bone_problems, _model_problems, _enrolment_problems):
        try:
            found.extend(examine(bank))
        except InputError as error:
            found.append(_told(error, bank.folder))
    return found


def _database_problems(bank: Bank) -> Iterator[str]:
    with bank.disk.reading() as connection:
        for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
            if line != "ok":
                yield f"database: {' '.join(str(line).split())}"
        for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
            yield f"database: a row of {row[0]} refers to a row of {row[2]} that is not there"


def _bone_problems(bank: Bank) -> Iterator[str]:
    with bank.disk.reading() as connection:
        rows = connection.execute(select(schema.bones)).mappings().all()
    for row in rows:
        try:
            bone = read_bone(bank.folder, row)
            surface = bank.disk.files["surface"].path(bone.surface_sha256)
            surface_from_ply(surface, read_blob(surface, bone.surface_sha256))
            bank.disk.files["volume"].require(bone.volume_sha256)
        except InputError as error:
            # One that another has removed meanwhile has lost its files, which is no damage.
            with bank.disk.reading() as connection:
                same = select(schema.bones.c.id).where(schema.bones.c.id == row["id"])
                removed = connection.execute(same).first() is None
            if not removed:
                yield f"bone {row['id']}: {_told(error, bank.folder)}"


def _model_problems(bank: Bank) -> Iterator[str]:
    with bank.disk.reading() as connection:
        shas = connection.execute(select(schema.models.c.sha256)).scalars().all()
    for sha256 in shas:
        try:
            bank.disk.files["model"].require(sha256)
            check_safetensors(bank.disk.files["model"].path(sha256))
            bank.calibration(sha256[:12])  # both are read
        except InputError as error:
            yield f"model {sha256[:12]}: {_told(error, bank.folder)}"


def _enrolment_problems(bank: Bank) -> Iterator[str]:
    prints = schema.fingerprints.c
    with bank.disk.reading() as connection:
        for row in connection.execute(
            select(schema.enrolments, schema.models.c.dimension).join(schema.models)
        ).all():
            query = select(prints.view_key, prints.vector).order_by(prints.position)
            query = query.where(prints.model_id == row.model_id, prints.bone_id == row.bone_id)
            views = connection.execute(query).all()
            vectors = [view.vector for view in views]
            where = f"fingerprints of bone {row.bone_id} by model {row.model_id}"
            if len(views) != row.views:
                yield f"{where}: {len(views)} instead of {row.views}"
            elif any(len(vector) != 4 * row.dimension for vector in vectors):
                yield f"{where}: not all are {row.dimension} numbers long"
            elif enrolment_sha256([view.view_key for view in views], vectors) != row.sha256:
                yield f"{where}: not what was stored"
            else:
                try:
                    unit_vectors(np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1))
                except ValueError as error:
                    yield f"{where}: {error}"


def _copy(source: Bank, making: Path) -> None:
    """The database as it is at one moment, and the files that it refers to then."""
    for _ in range(_TRIES):
        source.disk.snapshot(making / schema.DATABASE)
        gone = False
        with Bank.open(making) as copy:
            for kind, wanted in copy.disk.referenced().items():
                blobs = copy.disk.files[kind]
                blobs.folder.mkdir(exist_ok=True)
                for left in blobs.blobs():
                    if left not in wanted:
                        blobs.remove(left)
                for sha256 in wanted - set(blobs.blobs()):
                    try:
                        shutil.copyfile(source.disk.files[kind].path(sha256), blobs.path(sha256))
                    except FileNotFoundError:
                        gone = True
        if not gone:
            return
        # A file that was there at the snapshot and is not now: removed since, or damage,
        # which a new snapshot and then the check will tell.


def _file_names(bones: Iterable[BoneRecord]) -> dict[str, str]:
    """A file name for every bone id: its name where that is fit and alone, else with its id."""
    fit = {bone.id: re.sub(r"[^\w.-]+", "_", bone.name).strip("._") for bone in bones}
    lower = [name.lower() for name in fit.values()]
    return {
        key: name if name and lower.count(name.lower()) == 1 else f"{name or 'bone'}-{key}"
        for key, name in fit.items()
    }


def _write_bones(path: Path, bones: Iterable[BoneRecord], names: dict[str, str]) -> None:
    columns = [field.name for field in fields(BoneRecord)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "surface"])
        for bone in bones:
            values = {name: getattr(bone, name) for name in columns}
            values["warnings"] = json.dumps(bone.warnings)
            values["bone_to_world"] = json.dumps(bone.bone_to_world.tolist())
            writer.writerow([*values.values(), f"surfaces/{names[bone.id]}.ply"])


def _write_fingerprints(stem: Path, rows: Fingerprints) -> None:
    bone_ids = rows.bone_ids
    with stem.with_name(f"{stem.name}.npz").open("wb") as file:
        np.savez(file, bone_ids=bone_ids, view_keys=np.array(rows.view_keys), vectors=rows.vectors)
    with stem.with_name(f"{stem.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["bone_id", "view_key", *range(rows.vectors.shape[1])])
        for bone, key, vector in zip(bone_ids, rows.view_keys, rows.vectors, strict=True):
            writer.writerow([bone, key, *vector.tolist()])

"""What a bank holds, as the rest of the program sees it: bones and models.

And how they become rows and bytes: a surface always the same bytes, because the id of a
bone hangs on them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from osteoprint.bank.blobs import MEND
from osteoprint.errors import BankError, ModelError
from osteoprint.frames import Side

_LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class NewBone:
    """A bone that a bank is asked to keep.

    Attributes
    ----------
    name : what people call it; need not be unique.
    individual : whose it is; printable, the same for all bones of one person.
    surface : closed triangle mesh, LPS mm; kept as float32.
    length_mm : along the shaft.
    bone_to_world : (4, 4) rigid, anatomical frame -> LPS mm.
    bone : which bone, e.g. ``femur``.
    side : of the body; None where unknown.
    volume : the scan around it as one NRRD file to copy, or a function that writes it to
        the path it is given (ending in ``.nrrd``); None without one.
    warnings : what was doubtful, in words.
    source : where it came from.

    Raises BankError for a name, individual or kind that is empty, too long or not
    printable; ValueError for a surface, length or transform that is none.
    """

    name: str
    individual: str
    surface: trimesh.Trimesh
    length_mm: float
    bone_to_world: NDArray[np.float64]
    bone: str = "femur"
    side: Side | None = None
    volume: Path | Callable[[Path], object] | None = None
    warnings: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for what in ("name", "individual", "bone"):
            text = getattr(self, what)
            if not text.strip() or len(text) > _LONGEST_NAME or not text.isprintable():
                raise BankError(
                    repr(text)[:80],
                    f"cannot be the {what} of a bone",
                    f"give 1 to {_LONGEST_NAME} printable characters",
                )
        matrix = np.asarray(self.bone_to_world, dtype=np.float64)
        rotation = matrix[:3, :3]
        if (
            matrix.shape != (4, 4)
            or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
            or not np.linalg.det(rotation) > 0
            or not np.isfinite(matrix).all()
        ):
            raise ValueError("bone_to_world must be a rigid (4, 4) matrix")
        if not (np.isfinite(self.length_mm) and self.length_mm > 0):
            raise ValueError(f"a bone cannot be {self.length_mm} mm long")
        if not len(self.surface.faces) or not np.isfinite(self.surface.vertices).all():
            raise ValueError("a surface needs triangles and finite vertices")


@dataclass(frozen=True, eq=False)
class BoneRecord:
    """A bone in a bank; :class:`NewBone` says what the fields mean.

    Attributes
    ----------
    id : 12 hexadecimal digits, the same for this surface of this individual in any bank.
    watertight : is the surface closed?
    created : UTC, ISO 8601.
    surface_sha256, volume_sha256 : names of the files; no volume, no name.
    """

    id: str
    name: str
    bone: str
    side: Side | None
    individual: str
    length_mm: float
    watertight: bool
    warnings: tuple[str, ...]
    source: str
    created: str
    surface_sha256: str
    volume_sha256: str | None
    bone_to_world: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModelRecord:
    """A model whose fingerprints a bank keeps.

    Attributes
    ----------
    id : the first 12 hexadecimal digits of ``sha256``.
    sha256 : of the safetensors file.
    path : that file, in the bank.
    card : what its maker wrote beside it.
    dimension : numbers in a fingerprint.
    created : when it came into the bank; UTC, ISO 8601.
    is_default : is it the one to use when none is named?
    """

    id: str
    sha256: str
    path: Path
    card: dict[str, Any]
    dimension: int
    created: str
    is_default: bool


def bone_id(surface_sha256: str, individual: str) -> str:
    """The id of a bone: 12 hexadecimal digits over its surface and whose it is."""
    return hashlib.sha256(f"{surface_sha256}\0{individual}".encode()).hexdigest()[:12]


def ply_bytes(surface: trimesh.Trimesh) -> bytes:
    """A surface as binary little-endian PLY, vertices in float32; equal in, equal out.

    Written here, because the bytes of a general exporter depend on its version and on
    what the mesh happens to have cached (normals, colours).
    """
    faces = np.empty(len(surface.faces), dtype=[("n", "u1"), ("v", "<i4", 3)])
    faces["n"], faces["v"] = 3, surface.faces
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment osteoprint surface, LPS mm\n"
        f"element vertex {len(surface.vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    vertices = np.asarray(surface.vertices, dtype="<f4")
    return header.encode() + vertices.tobytes() + faces.tobytes()


def surface_from_ply(path: Path, content: bytes) -> trimesh.Trimesh:
    """The inverse of :func:`ply_bytes`: same vertices and faces, in the same order.

    ``path`` is where the content is from. Raises BankError when it is no such surface.
    """
    try:
        mesh = trimesh.load_mesh(io.BytesIO(content), file_type="ply", process=False)
        if not len(mesh.faces) or not np.isfinite(mesh.vertices).all():
            raise ValueError("no triangles, or vertices that are not finite")
    except Exception as error:  # trimesh raises whatever its parser runs into
        raise BankError(path, f"not a readable PLY surface ({error})", MEND) from error
    return mesh


def read_blob(path: Path, sha256: str) -> bytes:
    """The content of a blob that must be intact. Raises BankError when it is not."""
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = "missing from the bank" if not path.exists() else f"unreadable ({error.strerror})"
        raise BankError(path, problem, MEND) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BankError(path, "damaged: its content is not what was stored", MEND)
    return content


def bone_values(
    bone: NewBone, surface_sha256: str, volume_sha256: str | None, created: str
) -> dict[str, Any]:
    """The row of a new bone; :func:`read_bone` is the inverse."""
    return {
        "id": bone_id(surface_sha256, bone.individual),
        "name": bone.name,
        "bone": bone.bone,
        "side": None if bone.side is None else str(bone.side),
        "individual": bone.individual,
        "length_mm": float(bone.length_mm),
        "watertight": bool(bone.surface.is_watertight),
        "warnings": json.dumps([_storable(warning) for warning in bone.warnings]),
        "source": _storable(bone.source),
        "created": created,
        "surface_sha256": surface_sha256,
        "volume_sha256": volume_sha256,
        "bone_to_world": json.dumps(np.asarray(bone.bone_to_world, dtype=np.float64).tolist()),
    }


def read_bone(folder: Path, row: Mapping[Any, Any]) -> BoneRecord:
    """The bone that a row of the bank in ``folder`` says. Raises BankError for nonsense."""
    try:
        matrix = np.array(json.loads(row["bone_to_world"]), dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError("bone_to_world is no finite (4, 4) matrix")
        side = None if row["side"] is None else Side(row["side"])
        warnings = tuple(str(warning) for warning in json.loads(row["warnings"]))
        values = dict(row) | {"bone_to_world": matrix, "side": side, "warnings": warnings}
        return BoneRecord(**values)
    except (ValueError, TypeError) as error:
        problem = f"its row of bone {row['id']} is damaged ({error})"
        raise BankError(folder, problem, MEND) from error


def read_model(
    weights: Path, card: Path, row: Mapping[Any, Any], default: str | None
) -> ModelRecord:
    """The model that a row says, with its card. Raises BankError when the card is damaged."""
    try:
        content = json.loads(read_blob(card, row["card_sha256"]))
    except ValueError as error:
        raise BankError(card, f"the card is not JSON ({error})", MEND) from error
    return ModelRecord(
        id=row["id"],
        sha256=row["sha256"],
        path=weights,
        card=content,
        dimension=row["dimension"],
        created=row["created"],
        is_default=row["id"] == default,
    )


def check_safetensors(path: Path) -> None:
    """Raise ModelError unless ``path`` is a complete safetensors file."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        problem = f"not a readable safetensors file ({error})"
        raise ModelError(path, problem, "name a model that 'osteoprint train' made") from error


def card_bytes(path: Path, card: dict[str, Any]) -> bytes:
    """The card of the model at ``path`` as JSON. Raises ModelError when it cannot be."""
    try:
        return (json.dumps(card, allow_nan=False, indent=2, sort_keys=True) + "\n").encode()
    except (TypeError, ValueError) as error:
        fix = "write plain numbers, texts and lists into it"
        raise ModelError(path, f"its card is not JSON ({error})", fix) from error


def enrolment_sha256(view_keys: Sequence[str], vectors: Sequence[bytes]) -> str:
    """What all fingerprints of a bone add up to, in their order."""
    digest = hashlib.sha256("\0".join(view_keys).encode())
    for vector in vectors:
        digest.update(vector)
    return digest.hexdigest()


def _storable(text: str) -> str:
    """Text that every database takes: a file name may hold what is no character."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")

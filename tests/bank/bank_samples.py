"""Small bones, models and fingerprints for the tests of the bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from safetensors.numpy import save_file

from osteoprint.bank.records import NewBone
from osteoprint.frames import Side, rigid


def new_bone(number: int, **changes) -> NewBone:
    """A ball of 20 mm + number, with a file that stands for its scan."""
    values = {
        "name": f"ball {number}",
        "individual": f"person {number}",
        "surface": trimesh.creation.icosphere(subdivisions=1, radius=20.0 + number),
        "length_mm": 40.0 + 2 * number,
        "bone_to_world": rigid(np.eye(3), np.array([number, 0.1, -2.0])),
        "side": Side.RIGHT if number % 2 else Side.LEFT,
        "volume": lambda path: path.write_bytes(b"NRRD0004\n" + bytes([number]) * 5000),
        "warnings": ("is a ball",),
        "source": f"ball-{number}.ply",
    }
    return NewBone(**(values | changes))


def some_vectors(seed: int, views: int = 4, dimension: int = 128) -> np.ndarray:
    """(views, dimension) vectors of unit length."""
    values = np.random.default_rng(seed).normal(size=(views, dimension))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def weights(path: Path, value: float = 1.0) -> Path:
    """A safetensors file of one tensor."""
    save_file({"w": np.full(3, value, dtype=np.float32)}, path)
    return path

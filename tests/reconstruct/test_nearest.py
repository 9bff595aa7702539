"""The bone of a bank that is nearest in shape, by fingerprints alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from osteoprint.bank.search import Fingerprints
from osteoprint.fingerprint.model import Model
from osteoprint.frames import Side
from osteoprint.reconstruct.nearest import Lookup, Query

# Of four numbers the last two are for shapes.
PRINTS = {
    "near": [0.95, 0.05, 0.6, 0.8],
    "far, most like it": [0.2, 0.8, 0.99, 0.1],
    "other kind, the same shape": [0.1, 0.9, 1.0, 0.0],
    "other side, the same shape": [0.2, 0.9, 1.0, 0.0],
}
BONES = {
    "near": ("femur", Side.RIGHT),
    "far, most like it": ("femur", Side.RIGHT),
    "other kind, the same shape": ("tibia", Side.RIGHT),
    "other side, the same shape": ("femur", Side.LEFT),
}


def _unit(numbers: list[float]) -> np.ndarray:
    return np.array(numbers) / np.linalg.norm(numbers)


class Told:
    """A model of which half of the numbers are for shapes."""

    def of_shape(self, prints: np.ndarray) -> np.ndarray:
        part = prints[..., 2:]
        return np.asarray(part / np.linalg.norm(part, axis=-1, keepdims=True))

    def shape_of_views(self, prints: np.ndarray) -> np.ndarray:
        return np.asarray(Model.shape_of_views(cast(Model, self), prints))


@pytest.mark.parametrize("side", [Side.RIGHT, None])
def test_only_bones_of_the_kind_and_side_that_is_nearest_are_compared(side: Side | None) -> None:
    """The shape numbers of two kinds or sides were never compared: alike, they say nothing."""
    records = [SimpleNamespace(id=n, bone=kind, side=s) for n, (kind, s) in BONES.items()]
    names = [name for name in PRINTS for _ in range(2)]
    prints = Fingerprints.from_rows(
        names, ["a", "b"] * len(PRINTS), [_unit(PRINTS[n]) for n in names]
    )
    bank = SimpleNamespace(bones=lambda: records, fingerprints=lambda _: prints)
    lookup = Lookup(cast(Any, bank), cast(Any, None), cast(Any, Told()))
    asked = np.array([1.0, 0.0, 1.0, 0.0], np.float32) / np.float32(2**0.5)
    known = frozenset() if side is None else frozenset({"other side, the same shape"})
    query = Query(asked, side, known, (), "", (1.0, 1.0))
    found = [match.bone_id for match in lookup.nearest_shapes(query, 4)]
    assert found == ["far, most like it", "near"]

"""The nearest bones to a fingerprint, exact.

Distances are **squared Euclidean** between unit vectors, from 0 (equal) to 4 (opposite).
A bone has one fingerprint per enrolled view; its distance is that of its nearest view.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Rounding of a float32 dot product of two unit vectors: at most d · 2⁻²⁴ for d terms
# (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1); doubled, because
# the vectors themselves are rounded to float32.
_ROUNDING = 2.0 * 2.0**-24
_BLOCK_VALUES = 1 << 22  # float32 cosines held at a time: 16 MiB
_BLOCK_ROWS = 1 << 16
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """All fingerprints that one model made, bone by bone.

    The rows ``starts[b]`` to ``starts[b + 1] - 1`` are the views of ``bones[b]``.

    Attributes
    ----------
    bones : b ids, sorted, each once, each with at least one view.
    starts : (b + 1,) int64, rising from 0 to n.
    view_keys : n names of views.
    vectors : (n, d) float32, of unit length.
    """

    bones: tuple[str, ...]
    starts: NDArray[np.int64]
    view_keys: tuple[str, ...]
    vectors: NDArray[np.float32]

    @classmethod
    def from_rows(
        cls, bone_ids: Sequence[str], view_keys: Sequence[str], vectors: ArrayLike
    ) -> Fingerprints:
        """Group n rows by bone; the views of a bone keep their order.

        ``vectors`` is (n, d) and gets unit length. Raises ValueError when the lengths differ
        or a vector is not finite and of unit length to 1e-3.
        """
        unit = unit_vectors(vectors).astype(np.float32)
        if unit.ndim != 2 or not len(bone_ids) == len(view_keys) == len(unit):
            raise ValueError(
                f"{len(bone_ids)} bone ids, {len(view_keys)} view keys, {unit.shape} vectors"
            )
        order = sorted(range(len(bone_ids)), key=bone_ids.__getitem__)
        ordered = [bone_ids[row] for row in order]
        first = [row for row in range(len(order)) if row == 0 or ordered[row] != ordered[row - 1]]
        return cls(
            bones=tuple(ordered[row] for row in first),
            starts=np.array([*first, len(order)], dtype=np.int64),
            view_keys=tuple(view_keys[row] for row in order),
            vectors=np.ascontiguousarray(unit[order]),
        )

    @property
    def bone_ids(self) -> NDArray[np.str_]:
        """(n,) the bone of every row."""
        return np.repeat(np.array(self.bones, dtype=np.str_), np.diff(self.starts))

    def of(self, bone: str) -> NDArray[np.float32]:
        """(views, d) of one bone. Raises ValueError for one that is not here."""
        at = self.bones.index(bone)
        return self.vectors[self.starts[at] : self.starts[at + 1]]

    def only(self, bones: Collection[str]) -> Fingerprints:
        """Those of some bones; of those among them that are here."""
        rows = np.flatnonzero(np.isin(self.bone_ids, list(bones)))
        keys = [self.view_keys[row] for row in rows]
        return Fingerprints.from_rows(self.bone_ids[rows].tolist(), keys, self.vectors[rows])

    def __len__(self) -> int:
        """Number of fingerprints."""
        return len(self.view_keys)


@dataclass(frozen=True)
class Match:
    """A bone of the bank and how far it is from a query.

    Attributes
    ----------
    bone_id : id in the bank.
    distance : squared Euclidean distance to the nearest enrolled view, 0 to 4.
    view_key : that view; of equally near ones the first enrolled.
    """

    bone_id: str
    distance: float
    view_key: str


def unit_vectors(vectors: ArrayLike) -> NDArray[np.float64]:
    """(..., d) vectors, brought from nearly to exactly unit length.

    Raises ValueError when one is not finite, or off unit length by more than 1e-3: then it
    is no fingerprint.
    """
    values = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    if not np.all(np.abs(norms - 1.0) <= _UNIT_TOLERANCE):
        raise ValueError("fingerprints must be finite and of unit length")
    return np.asarray(values / norms)


def squared_distance(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Squared Euclidean distance, (...,), of unit vectors (..., d) and (..., d), 0 to 4.

    Without cancellation: a difference of 1e-8 is still seen. Raises ValueError as
    :func:`unit_vectors`.
    """
    return np.asarray(np.sum(np.square(unit_vectors(a) - unit_vectors(b)), axis=-1))


def bone_distances(queries: ArrayLike, fingerprints: Fingerprints) -> NDArray[np.float32]:
    """(q, b) squared distance of each of (q, d) queries to each bone's nearest view.

    For whole tables (thresholds, accuracies). In float32, so off by up to about 1e-5
    (``d · 2⁻²²``) where :func:`nearest` is exact; memory beside the result is bounded.
    Raises ValueError as :func:`nearest`.
    """
    cosines = _bone_cosines(_checked(queries, fingerprints, dimensions=2), fingerprints)
    return np.asarray(np.clip(2.0 - 2.0 * cosines, 0.0, 4.0))


def nearest(
    query: ArrayLike, fingerprints: Fingerprints, top: int = 5, exclude: Collection[str] = ()
) -> list[Match]:
    """The ``top`` nearest bones, nearest first; equally near ones in the order of their ids.

    Exact: a float32 matrix product finds every view that could be nearest within its
    rounding, and these are measured again in float64, so the result does not depend on
    blocks, threads or the machine's linear algebra.

    Parameters
    ----------
    query : (d,) of unit length; for many at once there is :func:`bone_distances`.
    fingerprints : where to search.
    top : how many bones at most.
    exclude : bone ids to leave out.

    Raises ValueError for another length than the fingerprints', values that are not finite
    or not of unit length, or ``top`` below 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    unit = _checked(query, fingerprints, dimensions=1)
    cosines = _bone_cosines(unit[None], fingerprints)[0]
    if left_out := frozenset(exclude):
        cosines[[bone in left_out for bone in fingerprints.bones]] = -np.inf
    return _exact_top(unit, cosines, fingerprints, top)


def _checked(query: ArrayLike, fingerprints: Fingerprints, dimensions: int) -> NDArray[np.float64]:
    """Unit-length queries of the fingerprints' dimension, or ValueError."""
    queries = unit_vectors(query)
    dimension = fingerprints.vectors.shape[1]
    if queries.ndim != dimensions or queries.shape[-1] != dimension:
        raise ValueError(f"a query of shape {queries.shape} for vectors of {dimension} numbers")
    return queries


def _bone_cosines(queries: NDArray[np.float64], fingerprints: Fingerprints) -> NDArray[np.float32]:
    """(q, b) cosine of each query with each bone's nearest view, in float32, by blocks."""
    small = queries.astype(np.float32)
    starts, vectors = fingerprints.starts, fingerprints.vectors
    best = np.full((len(small), len(fingerprints.bones)), -np.inf, dtype=np.float32)
    rows = max(1, min(len(vectors), _BLOCK_ROWS))
    step = max(1, _BLOCK_VALUES // rows)
    for low in range(0, len(small), step):
        part = small[low : low + step]
        for begin in range(0, len(vectors), rows):
            end = min(begin + rows, len(vectors))
            # The bones that have rows in this block; the first and last may go on outside.
            first = int(np.searchsorted(starts, begin, side="right")) - 1
            last = int(np.searchsorted(starts, end, side="left"))
            cuts = np.maximum(starts[first:last], begin) - begin
            block = np.maximum.reduceat(part @ vectors[begin:end].T, cuts, axis=1)
            target = best[low : low + step, first:last]
            np.maximum(target, block, out=target)
    return best


def _exact_top(
    query: NDArray[np.float64], cosines: NDArray[np.float32], fingerprints: Fingerprints, top: int
) -> list[Match]:
    """The ``top`` bones of one query, from (b,) rounded cosines of each bone's nearest view."""
    candidates = np.flatnonzero(cosines > -np.inf)
    top = min(top, len(candidates))
    if top == 0:
        return []
    margin = 2.0 * _ROUNDING * len(query)
    among = cosines[candidates]
    worst = np.partition(among, len(among) - top)[len(among) - top]
    matches = []
    for bone in candidates[among >= worst - margin]:
        rows = slice(*fingerprints.starts[bone : bone + 2])
        views = fingerprints.vectors[rows]
        near = np.flatnonzero(views @ query.astype(np.float32) >= cosines[bone] - margin)
        distances = squared_distance(views[near], query)
        best = int(np.argmin(distances))
        key = fingerprints.view_keys[rows.start + int(near[best])]
        matches.append(Match(fingerprints.bones[bone], float(distances[best]), key))
    return sorted(matches, key=lambda match: (match.distance, match.bone_id))[:top]

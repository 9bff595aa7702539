"""Classifiers on points whose classes are plain."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.fingerprint.classifier import classified


@pytest.mark.parametrize("kind", ["k-NN", "SVM"])
def test_clusters_are_told_apart(kind) -> None:
    rng = np.random.default_rng(0)
    middles = np.eye(4, 8, dtype=np.float32)
    labels = np.repeat(np.arange(4), 6)
    known = middles[labels] + rng.normal(0, 0.05, (24, 8)).astype(np.float32)
    asked = middles + rng.normal(0, 0.05, (4, 8)).astype(np.float32)
    assert classified(kind, known, labels, asked).tolist() == [0, 1, 2, 3]


def test_a_bone_with_few_fingerprints_is_outvoted_by_many_neighbours() -> None:
    known = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 1, 2, 2, 2]]
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    assert classified("k-NN", known, labels, known[:1], neighbours=2).tolist() == [0]
    assert classified("k-NN", known, labels, known[:1], neighbours=99).tolist() != [0]

"""Whose bone, among those enrolled: k nearest neighbours, or a support vector machine."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["k-NN", "SVM"]


def classified(
    kind: Kind,
    known: NDArray[np.float32],
    labels: NDArray[np.int64],
    asked: NDArray[np.float32],
    *,
    neighbours: int = 5,
) -> NDArray[np.int64]:
    """(m,) whose the (m, d) fingerprints asked about are.

    Parameters
    ----------
    kind : k nearest neighbours, by Euclidean distance; or a linear support vector machine.
    known, labels : (n, d) fingerprints and (n,) whose they are.
    neighbours : k, or as many as there are.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    if kind == "k-NN":
        model = KNeighborsClassifier(min(neighbours, len(known)))
    else:
        model = SVC(kernel="linear", C=10.0)
    return np.asarray(model.fit(known, labels).predict(asked), np.int64)

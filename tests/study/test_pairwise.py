"""All pairs of films against a plain loop, and the paper's windows."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.study.pairwise import WINDOWS, Window, pair_distances, separated
from osteoprint.xray.protocol import PAPER, PairView


def some(n: int = 40, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    bones = np.arange(n) % 4
    points = np.eye(4, 6)[bones] + rng.normal(0, spread, (n, 6))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), bones


def test_every_pair_is_counted_once(monkeypatch) -> None:
    points, bones = some()
    monkeypatch.setattr("osteoprint.study.pairwise._BLOCK", 7)
    one, two = pair_distances(points, bones)
    loop: dict[bool, list[float]] = {True: [], False: []}
    for i in range(len(points)):
        for j in range(i + 1, len(points)):
            loop[bool(bones[i] == bones[j])].append(float(np.linalg.norm(points[i] - points[j])))
    np.testing.assert_allclose(np.sort(one), np.sort(loop[True]), atol=1e-5)
    np.testing.assert_allclose(np.sort(two), np.sort(loop[False]), atol=1e-5)


def test_the_best_threshold_is_the_best_of_all() -> None:
    points, bones = some()
    views = [PairView(0, 0, 146)] * len(points)
    told = separated(Window("all", 22, 22), points, bones, views, margin=0.1)
    one, two = pair_distances(points, bones)
    every = np.concatenate([[0.0], one, two]) + 1e-7
    plain = [((one <= t).sum() + (two > t).sum()) / (len(one) + len(two)) for t in every]
    balanced = [((one <= t).mean() + (two > t).mean()) / 2 for t in every]
    assert told.accuracy == pytest.approx(max(plain))
    assert told.balanced == pytest.approx(max(balanced))
    assert 0 < told.equal_error_rate < 0.5
    limit = np.sqrt(0.1)
    right = (one <= limit).sum() + (two > limit).sum()
    assert told.at_margin == pytest.approx(right / (len(one) + len(two)))
    assert (told.films, told.genuine, told.impostor) == (40, 180, 600)


def test_bones_that_lie_apart_are_told_without_error() -> None:
    points, bones = some(spread=0.01)
    told = separated(WINDOWS[-1], points, bones, [PairView(0, 0, 146)] * 40, margin=0.5)
    assert (told.accuracy, told.balanced, told.equal_error_rate) == (1.0, 1.0, 0.0)
    assert told.at_margin == 1.0


def test_the_papers_windows_hold_what_it_says() -> None:
    counts = [sum(w.holds(view) for view in PAPER) for w in WINDOWS]
    # 3 x 3 angles and 3 of 4 energies; then all four; then 5 x 5; 15 x 3 both ways; all.
    assert counts == [27, 36, 100, 180, 180, 900]


def test_a_window_without_pairs_is_an_error() -> None:
    points, bones = some()
    with pytest.raises(ValueError, match="no pairs"):
        separated(WINDOWS[0], points, bones, [PairView(9, 0, 146)] * 40, margin=0.1)

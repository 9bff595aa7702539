"""Losses against plain loops, and on points of a circle where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from osteoprint.fingerprint.losses import (
    shape_loss,
    shape_target,
    squared_distances,
    triplet_accuracy,
    triplet_loss,
)


def circle(*angles_deg: float) -> torch.Tensor:
    radians = torch.tensor(angles_deg, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_distances_on_a_circle():
    d2 = squared_distances(circle(0, 90, 180))
    torch.testing.assert_close(
        d2, torch.tensor([[0.0, 2, 4], [2, 0, 2], [4, 2, 0]], dtype=torch.float64)
    )


def test_triplet_loss_on_a_circle():
    points, labels = circle(0, 10, 90, 100), torch.tensor([0, 0, 1, 1])
    near, far = 2 - 2 * math.cos(math.radians(10)), 2 - 2 * math.cos(math.radians(80))
    assert float(triplet_loss(points, labels, margin=0.1)) == 0.0
    # With a margin wider than the gap, anchors at 10 and 90 see 80 degrees, the others 90.
    expected = (2 * (near - far + 3) + 2 * (near - 2 + 3)) / 4
    assert float(triplet_loss(points, labels, margin=3.0)) == pytest.approx(expected)


def test_triplet_loss_and_accuracy_equal_plain_loops():
    generator = torch.Generator().manual_seed(4)
    points = normalize(torch.randn(15, 6, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.arange(15) // 3
    losses, good, total = [], 0, 0
    for a in range(15):
        positives = [p for p in range(15) if labels[p] == labels[a]]
        negatives = [n for n in range(15) if labels[n] != labels[a]]
        ap = max(float((points[a] - points[p]).square().sum()) for p in positives)
        an = min(float((points[a] - points[n]).square().sum()) for n in negatives)
        losses.append(max(0.0, ap - an + 0.1))
        for p in positives:
            for n in negatives:
                if p != a:
                    total += 1
                    good += float((points[a] - points[p]).square().sum()) + 0.1 < float(
                        (points[a] - points[n]).square().sum()
                    )
    assert float(triplet_loss(points, labels, 0.1)) == pytest.approx(sum(losses) / 15)
    assert triplet_accuracy(points, labels, 0.1) == pytest.approx(good / total)
    assert 0 < good < total


def test_shape_target_starts_at_zero_rises_and_stays_below_a_right_angle():
    target = shape_target(torch.tensor([0.0, 1.0, 3.0, 100.0]), 3.0)
    assert float(target[0]) == 0.0
    assert bool((target.diff() > 0).all())
    assert float(target[2]) == pytest.approx(1.4 * (1 - math.exp(-1)))
    assert float(target[3]) <= math.sqrt(2)


def test_shape_loss_is_least_where_distances_are_the_targets():
    rms = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
    wanted = float(shape_target(rms[0, 1], 3.0))
    angle = math.degrees(2 * math.asin(wanted / 2))
    labels = torch.tensor([0, 0, 1, 1])
    right = shape_loss(circle(0, 0, angle, angle), labels, rms, 3.0)
    assert float(right) < 1e-6
    for wrong in (angle - 8, angle + 8):
        assert float(shape_loss(circle(0, 0, wrong, wrong), labels, rms, 3.0)) > float(right) + 1e-3
    assert float(shape_loss(circle(0, 9, angle, angle), labels, rms, 3.0)) > float(right) + 1e-3

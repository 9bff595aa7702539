"""Losses against plain loops, and on points of a circle where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from osteoprint.fingerprint.losses import (
    OTHER_LOSSES,
    contrastive_loss,
    other_loss,
    shape_loss,
    shape_target,
    squared_distances,
    triplet_accuracy,
    triplet_loss,
)
from osteoprint.fingerprint.mining import mine


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
    assert float(triplet_loss(points, mine(points, labels), margin=0.1)) == 0.0
    # With a margin wider than the gap, anchors at 10 and 90 see 80 degrees, the others 90.
    expected = (2 * (near - far + 3) + 2 * (near - 2 + 3)) / 4
    assert float(triplet_loss(points, mine(points, labels), margin=3.0)) == pytest.approx(expected)


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
    assert float(triplet_loss(points, mine(points, labels), 0.1)) == pytest.approx(sum(losses) / 15)
    assert triplet_accuracy(points, labels, 0.1) == pytest.approx(good / total)
    assert 0 < good < total


def test_shape_target_starts_at_zero_rises_and_stays_below_a_right_angle():
    target = shape_target(torch.tensor([0.0, 1.0, 3.0, 100.0]), 3.0)
    assert float(target[0]) == 0.0
    assert bool((target.diff() > 0).all())
    assert float(target[2]) == pytest.approx(1.4 * (1 - math.exp(-1)))
    assert float(target[3]) <= math.sqrt(2)


def test_the_contrastive_loss_is_that_of_the_literature():
    from pytorch_metric_learning.losses import SupConLoss

    points, labels = some_points()
    for temperature in (0.05, 0.5):
        found = contrastive_loss(points, labels, temperature)
        assert float(found) == pytest.approx(float(SupConLoss(temperature)(points, labels)))
    points.requires_grad_()
    contrastive_loss(points, labels).backward()
    assert bool(points.grad.isfinite().all())


def test_shape_loss_is_least_where_distances_are_the_targets():
    # So far apart that they are told apart anyway.
    rms = torch.tensor([[0.0, 6.0], [6.0, 0.0]], dtype=torch.float64)
    wanted = float(shape_target(rms[0, 1], 3.0))
    angle = math.degrees(2 * math.asin(wanted / 2))
    labels = torch.tensor([0, 0, 1, 1])

    def loss(*angles: float) -> float:
        return float(shape_loss(circle(*angles), labels, rms[labels][:, labels], 3.0))

    right = loss(0, 0, angle, angle)
    assert right < 1e-6
    for wrong in (angle - 8, angle + 8):
        assert loss(0, 0, wrong, wrong) > right + 1e-3
    assert loss(0, 9, angle, angle) > right + 1e-3


def test_shapes_and_bones_are_told_apart_by_numbers_of_their_own():
    points, labels = some_points()
    points = points.requires_grad_()
    rms = torch.full((len(points), len(points)), 6.0, dtype=torch.float64)
    rms[labels[:, None] == labels] = 0.0
    nothing_known = torch.full_like(rms, torch.inf).fill_diagonal_(0.0)
    nothing_known[:3, :3] = 0.0  # films of one bone, which are known to show the same

    def slope(known: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(shape_loss(points, labels, known, 3.0, 2), points)[0]

    shapes, apart = slope(rms), slope(nothing_known)
    # What the others are to do has nothing to do with shapes ...
    assert torch.equal(shapes[:, :4], apart[:, :4])
    assert bool((shapes[:, :4] != 0).all())
    # ... and where no shape is known, nothing is asked of those that are for shapes.
    assert bool((apart[3:, 4:] == 0).all())
    assert bool((shapes[:, 4:] != 0).any(dim=1).all())


def some_points(count: int = 15, each: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    points = normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=1)
    return points, torch.arange(count) // each


@pytest.mark.parametrize("how", ["hard", "semihard", "random", "all"])
def test_triplets_are_of_one_bone_and_another(how):
    points, labels = some_points()
    anchor, positive, negative = mine(points, labels, how, generator=torch.Generator())
    assert len(anchor) == {"hard": 15, "random": 15, "all": 15 * 2 * 12}.get(how, len(anchor)) > 0
    assert bool((labels[anchor] == labels[positive]).all())
    assert bool((anchor != positive).all())
    assert bool((labels[anchor] != labels[negative]).all())


def test_semihard_triplets_lie_within_the_margin():
    points, labels = some_points()
    found = {tuple(map(int, t)) for t in zip(*mine(points, labels, "semihard", margin=0.5))}
    d2 = squared_distances(points)
    wanted = {
        (a, p, n)
        for a, p, n in zip(*(t.tolist() for t in mine(points, labels, "all")), strict=True)
        if 0 < d2[a, n] - d2[a, p] <= 0.5
    }
    assert found == wanted


def test_random_triplets_follow_their_generator():
    points, labels = some_points()
    one, same, other = (
        torch.stack(mine(points, labels, "random", generator=torch.Generator().manual_seed(s)))
        for s in (1, 1, 2)
    )
    assert bool((one == same).all())
    assert not bool((one == other).all())


def test_triplet_loss_by_hand_squared_plain_and_tertiary():
    points = circle(0, 60, 180)
    triplet = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    # Chords: 0-60 is 1, 0-180 is 2, 60-180 is the root of 3.
    assert float(triplet_loss(points, triplet, 4.0)) == pytest.approx(1 - 4 + 4)
    assert float(triplet_loss(points, triplet, 4.0, squared=False)) == pytest.approx(1 - 2 + 4)
    assert float(triplet_loss(points, triplet, 4.0, tertiary=True)) == pytest.approx(1 - 3.5 + 4)


def test_no_triplet_gives_no_loss_but_a_gradient():
    points = circle(0, 60)
    points.requires_grad_()
    nothing = torch.zeros(0, dtype=torch.long)
    loss = triplet_loss(points, (nothing, nothing, nothing))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(points.grad.abs().sum()) == 0.0


@pytest.mark.parametrize("name", OTHER_LOSSES)
def test_losses_of_the_literature_prefer_bones_that_lie_together(name):
    labels = torch.tensor([0, 0, 1, 1])
    loss = other_loss(name)
    together, apart = circle(0, 2, 120, 122).float(), circle(0, 120, 2, 122).float()
    assert float(loss(together, labels)) < float(loss(apart, labels))

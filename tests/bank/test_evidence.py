"""Thresholds and likelihood ratios, on Gaussians whose truth is known and on hand-made cases."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from osteoprint.bank.error_rates import equal_error, threshold_at_fmr, threshold_at_fnmr
from osteoprint.bank.evidence import (
    Calibration,
    cllr,
    eer_interval,
    min_cllr,
)

SAME, OTHER, SPREAD = 0.5, 1.1, 0.25  # means and standard deviation of distances


def gaussians(seed: int, same: int = 20_000, other: int = 40_000):
    rng = np.random.default_rng(seed)
    return rng.normal(SAME, SPREAD, same), rng.normal(OTHER, SPREAD, other)


def true_log_lr(distance: float) -> float:
    """Of two Gaussians of equal spread: a straight line."""
    return (OTHER - SAME) / SPREAD**2 * ((SAME + OTHER) / 2 - distance)


def test_the_likelihood_ratio_of_gaussians_is_the_true_one():
    calibration = Calibration.fit(*gaussians(1))
    assert calibration.slope == pytest.approx(-(OTHER - SAME) / SPREAD**2, rel=0.03)
    for distance in (0.2, 0.5, 0.8, 1.1, 1.4):
        estimated = math.log(calibration.likelihood_ratio(distance))
        assert estimated == pytest.approx(true_log_lr(distance), abs=0.2)


def test_the_error_rate_of_gaussians_is_the_true_one():
    same, other = gaussians(2)
    eer, threshold = equal_error(same, other)
    assert eer == pytest.approx(norm.cdf(-(OTHER - SAME) / 2 / SPREAD), abs=0.004)
    assert threshold == pytest.approx((SAME + OTHER) / 2, abs=0.01)
    assert threshold_at_fmr(other, 0.01) == pytest.approx(
        norm.ppf(0.01, OTHER, SPREAD), abs=3 * SPREAD * 0.02
    )


def test_the_cost_of_gaussians_is_the_true_one():
    def bits(distance: float) -> float:
        lr = math.exp(true_log_lr(distance))
        return 0.5 * (
            norm.pdf(distance, SAME, SPREAD) * math.log2(1 + 1 / lr)
            + norm.pdf(distance, OTHER, SPREAD) * math.log2(1 + lr)
        )

    expected = quad(bits, -1, 3)[0]
    calibration = Calibration.fit(*gaussians(3))
    assert calibration.cllr == pytest.approx(expected, abs=0.01)
    assert calibration.cllr_min == pytest.approx(expected, abs=0.01)
    assert calibration.cllr_min < calibration.cllr


def test_proportions_do_not_matter():
    same, other = gaussians(4)
    few = Calibration.fit(same, other[:2000])
    many = Calibration.fit(same[:2000], other)
    distance = 0.8
    assert math.log(few.likelihood_ratio(distance)) == pytest.approx(
        math.log(many.likelihood_ratio(distance)), abs=0.15
    )


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth = norm.cdf(-(OTHER - SAME) / 2 / SPREAD)
    inside = 0
    for seed in range(60):
        low, high = eer_interval(*gaussians(seed, 150, 300), draws=200)
        inside += low <= truth <= high
    assert inside >= 51  # 57 expected; fewer has a probability of 0.2 %


def test_groups_widen_the_interval_and_narrow_the_claims():
    rng = np.random.default_rng(5)
    # Ten bones, each with its own shift that all of its 50 views share.
    shift = np.repeat(rng.normal(0, 0.25, 10), 50)
    same = SAME + shift + rng.normal(0, 0.02, 500)
    other = OTHER + shift + rng.normal(0, 0.02, 500)
    bones = np.repeat(np.arange(10), 50)
    alone = Calibration.fit(same, other)
    grouped = Calibration.fit(same, other, genuine_groups=bones, impostor_groups=bones)
    assert (alone.slope, alone.eer) == (grouped.slope, grouped.eer)
    wide, narrow = np.ptp(grouped.eer_ci95), np.ptp(alone.eer_ci95)
    assert wide > 2 * narrow
    assert (grouped.n_genuine, grouped.n_impostor) == (10, 10)
    assert (alone.highest_lr, grouped.highest_lr) == (501.0, 11.0)
    assert (alone.lowest_lr, grouped.lowest_lr) == (1 / 501, 1 / 11)


def test_by_hand():
    eer, threshold = equal_error([1.0, 2.0, 3.0, 6.0], [5.0, 7.0, 8.0, 9.0])
    assert (eer, threshold) == (0.25, 5.5)
    assert equal_error([1.0], [3.0]) == (0.0, 2.0)
    assert equal_error([3.0], [1.0])[0] == 1.0
    assert equal_error([2.0, 2.0], [2.0])[0] == 0.5
    assert cllr([1.0], [1.0, 1.0]) == 1.0
    assert cllr([math.inf], [0.0]) == 0.0
    assert cllr([0.0], [1.0]) == math.inf
    assert cllr([3.0], [1.0]) == pytest.approx((math.log2(4 / 3) + 1) / 2)
    assert min_cllr([1.0, 2.0], [3.0]) == 0.0
    assert min_cllr([2.0], [2.0, 2.0]) == 1.0
    assert min_cllr([3.0], [1.0]) == 1.0
    # 1 | {2 and 2} | 3: bits only for the pair in the middle, where LR is 1
    assert min_cllr([1.0, 2.0], [2.0, 3.0]) == pytest.approx(0.5)


def test_a_rate_the_sample_cannot_show_gives_no_threshold():
    impostors = np.arange(1.0, 100.0)  # 99 of them
    assert threshold_at_fmr(impostors, 0.009) is None
    at_one_percent = threshold_at_fmr(impostors, 0.01)
    assert at_one_percent is not None
    assert at_one_percent < 1.0
    at_ten = threshold_at_fmr(impostors, 0.1)
    assert np.sum(impostors <= at_ten) == 9  # (9 + 1) / (99 + 1)
    assert threshold_at_fmr(np.ones(99), 0.5) < 1.0
    with pytest.raises(ValueError, match="few"):
        Calibration.fit([0.1], [1.0], decide_by="fmr")
    strict = Calibration.fit([0.1, 0.2], impostors, target_fmr=0.1, decide_by="fmr")
    assert strict.threshold == strict.fmr_threshold == at_ten


def test_where_kinds_lie_far_apart_a_bones_own_films_decide():
    """From 399 of them on; a stranger may come nearer than those the threshold was learnt from."""
    own = np.linspace(0.1, 0.3, 399)
    assert threshold_at_fnmr(own, 0.0025) == 0.3
    assert threshold_at_fnmr(own[:-1], 0.0025) is None
    assert threshold_at_fnmr(own, 0.005) == own[-2]
    assert Calibration.fit(own, [1.0, 1.2]).threshold == 0.3
    assert Calibration.fit(own[:-1], [1.0, 1.2]).threshold == pytest.approx((own[-2] + 1.0) / 2)
    # Where they do not, errors are equal.
    overlapping = Calibration.fit(own, np.linspace(0.25, 0.5, 399))
    assert overlapping.threshold == overlapping.eer_threshold < 0.3
    with pytest.raises(ValueError, match="rate"):
        threshold_at_fnmr(own, 1.0)


def test_one_film_that_was_badly_read_does_not_decide():
    """Nothing is called the same bone that is likelier of two, whatever the farthest films say."""
    own = np.r_[np.linspace(0.0, 0.05, 190), 0.15, 0.16]
    others = np.linspace(0.144, 0.95, 192)
    found = Calibration.fit(own, others)
    assert found.eer_threshold > others[0]
    assert 0.05 < found.threshold < others[0]
    assert found.likelihood_ratio(found.threshold) == pytest.approx(1.0)


def test_without_overlap_the_claims_are_bounded_by_the_sample():
    calibration = Calibration.fit([0.1, 0.2, 0.15], [1.0, 1.1, 1.2, 1.3, 1.4])
    assert calibration.eer == 0.0
    assert calibration.eer_ci95 == (0.0, 1 - 0.025 ** (1 / 3))
    assert calibration.eer_threshold == pytest.approx(0.6)
    # In the gap, and no farther than where the likelihood ratio falls below 1.
    even = -calibration.intercept / calibration.slope
    assert calibration.threshold == min(calibration.eer_threshold, even)
    assert 0.2 < calibration.threshold < 1.0
    assert calibration.likelihood_ratio(0.0) <= 6.0
    assert calibration.likelihood_ratio(4.0) == pytest.approx(0.25)
    ratios = [calibration.likelihood_ratio(distance) for distance in np.linspace(0, 4, 50)]
    assert np.all(np.diff(ratios) <= 0)
    assert calibration.likelihood_ratio(0.1) > 1 > calibration.likelihood_ratio(1.2)


def test_in_bank():
    calibration = Calibration.fit([0.1, 0.2], [1.0, 1.2])
    assert calibration.in_bank(0.2)
    assert calibration.in_bank(calibration.threshold)
    assert not calibration.in_bank(1.0)


@pytest.mark.parametrize(
    ("same", "other"), [([1.0, 1.0], [1.0]), ([2.0, 2.1, 2.2], [1.0, 1.1, 1.3])]
)
def test_distances_that_say_nothing_are_worth_nothing(same, other):
    calibration = Calibration.fit(same, other)
    assert calibration.likelihood_ratio(0.5) == 1.0
    assert calibration.cllr == 1.0


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf, 1.0], [[1.0]]])
def test_no_sample_no_calibration(bad):
    for arguments in ((bad, [1.0]), ([1.0], bad)):
        with pytest.raises(ValueError, match="distances"):
            Calibration.fit(*arguments)
        with pytest.raises(ValueError, match="distances"):
            equal_error(*arguments)
        with pytest.raises(ValueError, match="distances"):
            min_cllr(*arguments)


def test_refused_settings():
    with pytest.raises(ValueError, match="group"):
        Calibration.fit([0.1, 0.2], [1.0], genuine_groups=[1])
    with pytest.raises(ValueError, match="rate"):
        Calibration.fit([0.1], [1.0], target_fmr=0.0)
    with pytest.raises(ValueError, match="decide_by"):
        Calibration.fit([0.1], [1.0], decide_by="luck")
    with pytest.raises(ValueError, match="likelihood"):
        cllr([-1.0], [1.0])
    with pytest.raises(ValueError, match="distance"):
        Calibration.fit([0.1], [1.0]).likelihood_ratio(math.nan)


def test_json_round_trip():
    for calibration in (Calibration.fit([0.1, 0.3], [0.2, 1.0]), Calibration.fit(*gaussians(6))):
        text = json.dumps(calibration.to_dict(), allow_nan=False)
        assert Calibration.from_dict(json.loads(text)) == calibration


@pytest.mark.parametrize(
    "change",
    [{"slope": None}, {"slope": math.nan}, {"slope": "steep"}, {"eer_ci95": [0.1]}, {"x": 1.0}],
)
def test_a_damaged_calibration_is_refused(change):
    values = Calibration.fit([0.1], [1.0]).to_dict()
    with pytest.raises(ValueError, match=r"."):
        Calibration.from_dict(values | change)
    with pytest.raises(ValueError, match="fields"):
        Calibration.from_dict({})


def test_the_same_seed_the_same_interval():
    same, other = gaussians(7, 100, 100)
    twice = [
        eer_interval(same, other, draws=50, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    ]
    assert twice[0] == twice[1] != twice[2]

"""What a distance between two fingerprints is worth: threshold, likelihood ratio, its limits.

*Genuine* distances are between fingerprints of one bone, *impostor* distances between those
of different bones; smaller means more alike. Any distance will do, as long as it is always
the same one. Measure them as they will be used: the distance to the nearest of a bone's many
views is smaller than that between two single films, for impostors most of all.

A likelihood ratio (LR) says how much more probable a distance is when the bone is the same
than when it is another; it is not the probability that the bone is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from osteoprint.bank.error_rates import (
    checked,
    equal_error,
    threshold_at_fmr,
    threshold_at_fnmr,
)

# Where hardly any of a bone's own films lie as far off as strangers do, equal errors can be had
# anywhere between the two. A network that has learnt a bank's bones keeps them farther apart than
# a stranger, whose own films lie no farther off than theirs: so this share of those decides.
_TURNED_AWAY = 0.0025
_BINS = 4096  # thresholds the bootstrap looks at; all of them where there are fewer


@dataclass(frozen=True)
class Calibration:
    """The meaning of a distance, learnt from distances of known origin.

    Distances that share a bone are not independent: a thousand views of five bones say little
    more than five bones do. Groups tell which belong together; the interval of the error rate
    then comes from drawing groups, and the limits of the likelihood ratio from their number.

    The likelihood ratio is a logistic regression on the distance in which both kinds weigh the
    same, so that its log odds are the log LR whatever the proportion of the two; with targets
    just short of 0 and 1 (Platt 1999), it stays finite where the kinds do not overlap. It is
    then held between ``1 / (n_genuine + 1)`` and ``n_impostor + 1``: what did not happen in n
    trials may yet have a probability of about 1 / (n + 1), so a sample of n supports no
    stronger statement.

    Attributes
    ----------
    threshold : distances up to it count as the same bone: the one of equal error rates, less
        where one turns away fewer than one in 400 of a bone's own films, and none whose
        likelihood ratio is below 1; or the one of ``target_fmr`` where :meth:`fit` was told to
        decide by that.
    eer : equal error rate, and ``eer_ci95`` its 95 % bootstrap interval.
    eer_threshold : where the false match and the false non-match rate are equal.
    target_fmr : a false match rate, and ``fmr_threshold`` the largest threshold that keeps
        it; None where there are too few impostors to tell.
    intercept, slope : natural log LR = ``intercept + slope * distance``; slope <= 0.
    lowest_lr, highest_lr : no likelihood ratio outside these is ever given.
    cllr : cost of the likelihood ratios in bits, 0 perfect and 1 worthless, and ``cllr_min``
        what would remain of it after perfect calibration. Both on the distances that the
        calibration was learnt from, so too good by about its two parameters.
    n_genuine, n_impostor : how many distances, or groups of them, it was learnt from.
    """

    threshold: float
    eer: float
    eer_ci95: tuple[float, float]
    eer_threshold: float
    target_fmr: float
    fmr_threshold: float | None
    intercept: float
    slope: float
    lowest_lr: float
    highest_lr: float
    cllr: float
    cllr_min: float
    n_genuine: int
    n_impostor: int

    @classmethod
    def fit(
        cls,
        genuine: ArrayLike,
        impostor: ArrayLike,
        *,
        genuine_groups: ArrayLike | None = None,
        impostor_groups: ArrayLike | None = None,
        target_fmr: float = 0.001,
        decide_by: str = "eer",
        rng: np.random.Generator | None = None,
    ) -> Calibration:
        """Learn from distances of known origin.

        Parameters
        ----------
        genuine, impostor : (g,) and (i,) distances, finite.
        genuine_groups, impostor_groups : (g,) and (i,) labels; each distance is a group of
            its own without.
        target_fmr : false match rate, in (0, 1), that ``fmr_threshold`` is to keep.
        decide_by : ``eer`` or ``fmr``: which of the two thresholds :meth:`in_bank` uses.
        rng : for the bootstrap; seed 0 without.

        Raises ValueError for an empty or not finite sample, groups that do not fit, and for
        ``decide_by="fmr"`` with too few impostors to tell.
        """
        same, other = checked(genuine, "genuine"), checked(impostor, "impostor")
        if decide_by not in ("eer", "fmr"):
            raise ValueError(f"decide_by is 'eer' or 'fmr', not {decide_by!r}")
        same_groups = _groups(genuine_groups, len(same))
        other_groups = _groups(impostor_groups, len(other))
        n_same, n_other = len(np.unique(same_groups)), len(np.unique(other_groups))
        eer, eer_threshold = equal_error(same, other)
        fmr_threshold = threshold_at_fmr(other, target_fmr)
        if decide_by == "fmr" and fmr_threshold is None:
            raise ValueError(f"{len(other)} impostors are too few for a rate of {target_fmr:g}")
        intercept, slope = _logistic(same, other)
        model = {"intercept": intercept, "slope": slope}
        model |= {"lowest_lr": 1.0 / (n_same + 1), "highest_lr": n_other + 1.0}
        limits = [eer_threshold, threshold_at_fnmr(same, _TURNED_AWAY)]
        # Nothing is called the same bone that is likelier of two.
        limits.append(-intercept / slope if slope < 0 else None)
        by_errors = max(0.0, min(limit for limit in limits if limit is not None))
        chosen = by_errors if fmr_threshold is None or decide_by == "eer" else fmr_threshold
        return cls(
            threshold=chosen,
            eer=eer,
            eer_ci95=eer_interval(same, other, same_groups, other_groups, rng=rng),
            eer_threshold=eer_threshold,
            target_fmr=target_fmr,
            fmr_threshold=fmr_threshold,
            cllr=cllr(_limited_lr(same, **model), _limited_lr(other, **model)),
            cllr_min=min_cllr(same, other),
            n_genuine=n_same,
            n_impostor=n_other,
            **model,
        )

    def likelihood_ratio(self, distance: float) -> float:
        """How many times more probable this distance is for the same bone than for another.

        Raises ValueError for a distance that is not finite.
        """
        if not math.isfinite(distance):
            raise ValueError(f"not a distance: {distance}")
        limits = (self.intercept, self.slope, self.lowest_lr, self.highest_lr)
        return float(_limited_lr(np.array([distance]), *limits)[0])

    def in_bank(self, distance: float) -> bool:
        """Is the nearest bone, at this distance, near enough to be the same?"""
        return bool(distance <= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; :meth:`from_dict` is the inverse, to the last bit."""
        return asdict(self) | {"eer_ci95": list(self.eer_ci95)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """What :meth:`to_dict` gave. Raises ValueError for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise ValueError("not a calibration: it has other fields")
        try:
            low, high = (float(bound) for bound in values["eer_ci95"])
            plain: dict[str, Any] = {name: float(values[name]) for name in names - _NOT_FLOAT}
        except TypeError as error:
            raise ValueError(f"not a calibration: {error}") from error
        unresolved = values["fmr_threshold"] is None
        plain["fmr_threshold"] = None if unresolved else float(values["fmr_threshold"])
        plain |= {name: int(values[name]) for name in ("n_genuine", "n_impostor")}
        numbers = [low, high, *(value for value in plain.values() if value is not None)]
        if not np.isfinite(numbers).all() or not 0 < plain["lowest_lr"] <= plain["highest_lr"]:
            raise ValueError("not a calibration: numbers that are none")
        return cls(eer_ci95=(low, high), **plain)


_NOT_FLOAT = {"eer_ci95", "fmr_threshold", "n_genuine", "n_impostor"}


def eer_interval(
    genuine: ArrayLike,
    impostor: ArrayLike,
    genuine_groups: ArrayLike | None = None,
    impostor_groups: ArrayLike | None = None,
    *,
    draws: int = 1000,
    rng: np.random.Generator | None = None,
) -> tuple[float, float]:
    """95 % bootstrap interval (percentiles) of the equal error rate.

    Groups are drawn with replacement, each kind by itself (see :meth:`Calibration.fit`);
    ``rng`` has seed 0 without. Where no error was seen, which no resampling can change, the
    upper end is what n groups without one allow (Clopper & Pearson 1934), n the smaller
    number of groups. Raises ValueError as :func:`equal_error`.
    """
    same, other = checked(genuine, "genuine"), checked(impostor, "impostor")
    same_groups = _groups(genuine_groups, len(same))
    other_groups = _groups(impostor_groups, len(other))
    fewest = min(len(np.unique(same_groups)), len(np.unique(other_groups)))
    if same.max() < other.min():
        return 0.0, 1.0 - 0.025 ** (1.0 / fewest)
    if fewest == 1:
        return 0.0, 1.0  # one group says nothing about any other
    generator = np.random.default_rng(0) if rng is None else rng
    cuts = np.unique(np.concatenate([same, other]))
    if len(cuts) > _BINS:
        cuts = cuts[np.linspace(0, len(cuts) - 1, _BINS).astype(int)]
    kinds = [
        _resampled(np.searchsorted(cuts, sample), groups, len(cuts), draws, generator)
        for sample, groups in ((same, same_groups), (other, other_groups))
    ]
    rates = [
        _equal(is_same / is_same.sum(), is_other / is_other.sum())[0]
        for is_same, is_other in zip(*kinds, strict=True)
    ]
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def cllr(genuine_lr: ArrayLike, impostor_lr: ArrayLike) -> float:
    """Log-likelihood-ratio cost in bits (Brümmer & du Preez 2006): 0 perfect, 1 worthless.

    Arguments are likelihood ratios, (g,) and (i,), 0 and infinity allowed. Raises ValueError
    when one is empty, negative or not a number.
    """
    same, other = (np.asarray(ratios, dtype=np.float64) for ratios in (genuine_lr, impostor_lr))
    for ratios in (same, other):
        if ratios.ndim != 1 or not ratios.size or not np.all(ratios >= 0):
            raise ValueError("likelihood ratios must be a filled list of numbers from 0 up")
    with np.errstate(divide="ignore"):
        misses = np.mean(np.log2(1.0 + 1.0 / same))
    return float((misses + np.mean(np.log2(1.0 + other))) / 2)


def min_cllr(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """Cllr that the best monotone calibration of these distances would leave.

    By pooling adjacent violators (isotonic regression of "genuine" on the distance); what
    Cllr has above it is the fault of the calibration, not of the distances. Raises
    ValueError for empty or not finite samples.
    """
    same, other = checked(genuine, "genuine"), checked(impostor, "impostor")
    _, is_same, is_other = _counted(same, other)
    weight_same, weight_other = is_same / len(same), is_other / len(other)
    weights = weight_same + weight_other
    fit = isotonic_regression(weight_same / weights, weights=weights, increasing=False)
    posterior = np.clip(fit.x, 0.0, 1.0)
    # With both kinds weighing the same, LR = p / (1 - p), so 1 + 1 / LR = 1 / p.
    with np.errstate(divide="ignore"):
        misses = np.where(is_same > 0, -np.log2(posterior), 0.0)
        matches = np.where(is_other > 0, -np.log2(1.0 - posterior), 0.0)
    return float((weight_same @ misses + weight_other @ matches) / 2)


def _groups(labels: ArrayLike | None, count: int) -> NDArray[Any]:
    """(count,) labels, each its own where there are none."""
    values = np.arange(count) if labels is None else np.asarray(labels)
    if values.shape != (count,):
        raise ValueError(f"{values.shape} group labels for {count} distances")
    return values


def _counted(
    same: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The distances there are, (v,) rising, and how many of each kind are at each."""
    values, where = np.unique(np.concatenate([same, other]), return_inverse=True)
    count = len(values)
    return (
        values,
        np.bincount(where[: len(same)], minlength=count),
        np.bincount(where[len(same) :], minlength=count),
    )


def _equal(is_same: NDArray[np.float64], is_other: NDArray[np.float64]) -> tuple[float, int]:
    """(equal error rate, at which distance) from the (v,) share of each kind per distance."""
    misses, matches = 1.0 - np.cumsum(is_same), np.cumsum(is_other)
    worst, apart = np.maximum(misses, matches), np.abs(misses - matches)
    best = np.flatnonzero(worst <= worst.min() + 1e-12)
    place = int(best[np.argmin(apart[best])])
    return max(0.0, float(misses[place] + matches[place]) / 2), place


def _resampled(
    places: NDArray[np.int64],
    groups: NDArray[Any],
    bins: int,
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """(draws, bins) counts of distances per bin, groups drawn with replacement."""
    names, group = np.unique(groups, return_inverse=True)
    if len(names) == len(places):  # drawing one by one is drawing from the counts
        counts = np.bincount(places, minlength=bins)
        return rng.multinomial(len(places), counts / len(places), size=draws).astype(np.float64)
    table = np.zeros((len(names), bins))
    np.add.at(table, (group, places), 1.0)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return weights.astype(np.float64) @ table


def _logistic(same: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """(intercept, slope) of the natural log LR; slope <= 0."""
    distances = np.concatenate([same, other])
    middle, spread = distances.mean(), distances.std()
    if spread == 0.0:
        return 0.0, 0.0
    x = (distances - middle) / spread
    n_same, n_other = len(same), len(other)
    weights = np.repeat([0.5 / n_same, 0.5 / n_other], [n_same, n_other])
    targets = np.repeat([(n_same + 1) / (n_same + 2), 1 / (n_other + 2)], [n_same, n_other])

    def cost(line: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_odds = line[0] + line[1] * x
        loss = np.logaddexp(0.0, log_odds) - targets * log_odds
        wrong = weights * (expit(log_odds) - targets)
        return float(weights @ loss), np.array([wrong.sum(), wrong @ x])

    found = minimize(cost, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    slope = float(found[1] / spread)
    # Genuine distances larger than impostor ones: they say nothing that could be used.
    return (float(found[0] - slope * middle), slope) if slope < 0 else (0.0, 0.0)


def _limited_lr(
    distances: NDArray[np.float64],
    intercept: float,
    slope: float,
    lowest_lr: float,
    highest_lr: float,
) -> NDArray[np.float64]:
    log_lr = intercept + slope * distances
    limited: NDArray[np.float64] = np.exp(
        np.clip(log_lr, math.log(lowest_lr), math.log(highest_lr))
    )
    return limited

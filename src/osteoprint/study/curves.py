"""Curves of a report's page: how far down the list a bone stands, and errors of either kind."""

from __future__ import annotations

import itertools
import math

from osteoprint.study.markup import Figures

# The least false match rate that is drawn, and true match rate.
_LEAST_POWER = -4


def curves(figure: Figures) -> str:
    """CMC and ROC side by side, from ``recognition/cmc`` and ``recognition/roc``."""
    return f'<div class="curves">{_cmc(figure)}{_roc(figure)}</div>'


def _cmc(figure: Figures) -> str:
    shares = figure.at("recognition/cmc")
    floor = _floor(shares[0])
    points = [
        (100 * (k / max(len(shares) - 1, 1)), _up(share, floor)) for k, share in enumerate(shares)
    ]
    dots = "".join(f'<i class="dot" style="left:{x:.2f}%;top:{y:.2f}%"></i>' for x, y in points)
    marks = [(x, f"{k}") for k, (x, _) in enumerate(points, start=1)]
    said = ", ".join(f"{k}: {share:.2%}" for k, share in enumerate(shares, start=1))
    return _chart(
        f"Share of film pairs whose bone is among the k nearest: {said}",
        points, marks, floor, "among the nearest k bones",
        "Share of film pairs whose own bone is among the k nearest (CMC).", dots,
    )  # fmt: skip


def _roc(figure: Figures) -> str:
    curve = figure.at("recognition/roc")
    floor = _floor(min(true for false, true in curve if false <= 0.05))
    points = [(_along(false), _up(true, floor)) for false, true in curve]
    # A step: what a rate allows holds until the next.
    stepped = [points[0]]
    for before, after in itertools.pairwise(points):
        stepped += [(after[0], before[1]), after]
    marks = [
        (_along(10.0**power), f"{100 * 10.0**power:g}%") for power in range(_LEAST_POWER, 1)
    ]  # fmt: skip
    return _chart(
        "Share of films matched with their own bone, by the share of false matches allowed",
        stepped, marks, floor, "false matches allowed",
        "Films matched with their own bone, by how many false matches a threshold allows (ROC).",
        "",
    )  # fmt: skip


def _floor(least: float) -> float:
    """Where the vertical axis begins: a round share below all that is drawn."""
    return next((f for f in (0.99, 0.95, 0.9, 0.8, 0.5) if least >= f), 0.0)


def _along(rate: float) -> float:
    """Per cent of the width at which a false match rate stands; none stands at the left end."""
    if rate <= 0:
        return 0.0
    return max(0.0, 100 * (1 - math.log10(rate) / _LEAST_POWER))


def _up(share: float, floor: float) -> float:
    """Per cent from the top at which a share stands."""
    return 100 * (1 - max(share - floor, 0.0) / (1 - floor))


def _chart(
    said: str,
    points: list[tuple[float, float]],
    marks: list[tuple[float, str]],
    floor: float,
    axis: str,
    caption: str,
    dots: str,
) -> str:
    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    below = "".join(f'<span style="left:{x:.2f}%">{words}</span>' for x, words in marks)
    levels = "".join(
        f'<u style="top:{100 * step / 2:.0f}%"><b>{100 * (1 - (1 - floor) * step / 2):.4g}%</b></u>'
        for step in range(3)
    )
    return f"""<figure class="chart"><div class="curve" role="img" aria-label="{said}">{levels}
<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true"><polyline
points="{line}"/></svg>{dots}</div>
<div class="axis under-curve" aria-hidden="true">{below}</div><p class="note soft">{axis}</p>
<figcaption>{caption}</figcaption></figure>"""

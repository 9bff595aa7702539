"""Scattered photons: a broad glow that follows the body's thickness.

A convolution model: every primary photon that arrives stands for some that were deflected
on the way, the more the thicker the body is there, and they arrive around it with a
Gaussian spread. Gaussian is the shape measured behind Lucite (Boone, Arnold, Seibert,
Med Phys 1986;13:254); that its volume goes with the thickness and its width with the
distance to the detector is the first-order result of single scattering.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from osteoprint.xray.camera import Geometry

# A point that scatters evenly, at a distance d, lights a plane as (1 + r²/d²)^-3/2: half at
# r = 0.77 d, which is the half width of a Gaussian of 0.65 d.
SPREAD_PER_DISTANCE = 0.65
# Where the geometry says nothing: a limb that lies on the table above the detector.
TABLE_TO_DETECTOR_MM = 100.0
_LEAST_DISTANCE_MM = 40.0
# Blocks in which scatter is gathered, per standard deviation of its spread.
_BLOCKS_PER_SIGMA = 4.0


@dataclass(frozen=True)
class Scatter:
    """How much, and how far.

    Attributes
    ----------
    spr_per_100mm : scattered over primary signal behind 100 mm of a body that is wider than
        the spread; about 1 without a grid at 70 kVp, a fifth of that with one (AAPM; a limb
        is narrower than the spread, and what it shows is about half).
    spread_mm : standard deviation at the detector; None: from the geometry.
    """

    spr_per_100mm: float
    spread_mm: float | None = None

    def __post_init__(self) -> None:
        if self.spr_per_100mm < 0 or (self.spread_mm is not None and self.spread_mm <= 0):
            raise ValueError("spr_per_100mm must not be negative, spread_mm must be positive")


def spread_mm(geometry: Geometry) -> float:
    """Standard deviation of the glow at the detector, mm, from the bone's distance to it."""
    distance = TABLE_TO_DETECTOR_MM
    if np.isfinite(geometry.sdd_mm):
        distance = max(geometry.sdd_mm - geometry.sod_mm, _LEAST_DISTANCE_MM)
    return SPREAD_PER_DISTANCE * distance


def scattered(
    primary: NDArray[np.float32],
    thickness_mm: NDArray[np.float32],
    geometry: Geometry,
    effect: Scatter | None,
) -> NDArray[np.float32]:
    """The signal that scatter adds: (rows, columns) float32, in the unit of ``primary``.

    Over an endless plane it sums to primary x thickness / 100 mm x ``spr_per_100mm``; what
    falls beside the image is lost, and what lies beside the image sends nothing in.

    Parameters
    ----------
    primary : (rows, columns) unscattered signal.
    thickness_mm : (rows, columns) mm of body on the way, of whatever material.
    geometry : for the spacing, and for the spread where that is not given.
    effect : None for no scatter: zeros.
    """
    if effect is None or effect.spr_per_100mm == 0:
        return np.zeros_like(primary)
    sigma = effect.spread_mm or spread_mm(geometry)
    row_mm, column_mm = geometry.pixel_spacing_mm
    down = _spreading(primary.shape[0], row_mm, sigma)
    right = _spreading(primary.shape[1], column_mm, sigma)
    source = primary * thickness_mm
    gathered = _block_sums(_block_sums(source, down.shape[1], 0), right.shape[1], 1)
    gathered *= np.float32(effect.spr_per_100mm / 100.0)
    return np.asarray(down @ gathered @ right.T, dtype=np.float32)


def _block_sums(image: NDArray[np.float32], blocks: int, axis: int) -> NDArray[np.float32]:
    """Sums over the blocks that :func:`_block_edges` gives along an axis."""
    return np.add.reduceat(image, _block_edges(image.shape[axis], blocks)[:-1], axis=axis)


def _block_edges(pixels: int, blocks: int) -> NDArray[np.intp]:
    """(blocks + 1,) where blocks of nearly one size begin and end, in pixels."""
    return np.linspace(0, pixels, blocks + 1).round().astype(np.intp)


@lru_cache(maxsize=16)
def _spreading(pixels: int, spacing_mm: float, sigma_mm: float) -> NDArray[np.float32]:
    """(pixels, blocks): how much of a block's signal each pixel gets, along one axis.

    A block's signal lies at its middle; a pixel gets the Gaussian's integral over its width.
    """
    span = pixels * spacing_mm
    blocks = int(np.clip(np.ceil(span / sigma_mm * _BLOCKS_PER_SIGMA), 1, pixels))
    edges = _block_edges(pixels, blocks) * spacing_mm
    middles = (edges[1:] + edges[:-1]) / 2
    borders = np.arange(pixels + 1) * spacing_mm
    below = erf((borders[:, None] - middles[None, :]) / (np.sqrt(2.0) * sigma_mm)) / 2
    weights = np.diff(below, axis=0).astype(np.float32)
    weights.flags.writeable = False
    return weights

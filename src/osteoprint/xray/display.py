"""How a workstation shows an exposure: window, curve, edge enhancement, grey levels.

Vendors' processing is not published; its parts are: the logarithm, a window set by the
image's own histogram, unsharp masking, and a curve (DICOM PS3.3 C.11.2.1.3.1 has the sigmoid).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from osteoprint.xray.camera import Geometry
from osteoprint.xray.detector import blurred

Floats = NDArray[np.float32]

# The histogram is read from about so many pixels, evenly spread: percentiles need no more.
_SAMPLED = 20_000


@dataclass(frozen=True)
class Display:
    """Settings of a workstation.

    Attributes
    ----------
    window : (low, high) percentiles of the field's -log signal that become black and white.
    contrast : steepness of the sigmoid at its middle, relative to a straight line that
        spans the window; 1 or less is that straight line.
    gamma : power that the result is raised to.
    enhance : share of the detail finer than ``enhance_mm`` that is added on top.
    enhance_mm : standard deviation of the mask, at the detector.
    bits : of a grey level, 8...16; None: no rounding.
    """

    window: tuple[float, float] = (0.0, 100.0)
    contrast: float = 1.0
    gamma: float = 1.0
    enhance: float = 0.0
    enhance_mm: float = 2.0
    bits: int | None = None

    def __post_init__(self) -> None:
        low, high = self.window
        if not 0 <= low < high <= 100:
            raise ValueError("window must rise within 0...100 percent")
        if self.gamma <= 0 or self.contrast <= 0 or self.enhance < 0 or self.enhance_mm < 0:
            raise ValueError("gamma and contrast must be positive, enhancement not negative")
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise ValueError(f"bits must lie in 8...16, not {self.bits}")


def shown(
    logs: Floats, geometry: Geometry, curve: Display, field: NDArray[np.bool_] | None = None
) -> Floats:
    """(rows, columns) float32 grey in 0...1, bone bright.

    Parameters
    ----------
    logs : (rows, columns) -log of the signal.
    field : (rows, columns) where the window is read; everywhere when left out.
    """
    image = logs
    if curve.enhance > 0:
        image = image + np.float32(curve.enhance) * (
            image - blurred(image, geometry, curve.enhance_mm)
        )
    low, high = histogram_window(image, curve.window, field)
    grey = np.clip((image - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0)
    return toned(grey, curve)


def histogram_window(
    image: Floats, percentiles: tuple[float, float], field: NDArray[np.bool_] | None = None
) -> tuple[float, float]:
    """The values at two percentiles of an image within its field; never the same value."""
    step = max(1, int(np.sqrt(image.size / _SAMPLED)))
    values = image[::step, ::step]
    if field is not None:
        inside = values[field[::step, ::step]]
        values = inside if inside.size else values
    low, high = (float(v) for v in np.percentile(values, percentiles))
    return low, max(high, low + 1e-6)


def toned(grey: Floats, curve: Display) -> Floats:
    """Sigmoid, gamma and grey levels of an image in 0...1; rises, and keeps 0 and 1."""
    if curve.contrast > 1.0:
        steep = _steepness(curve.contrast)
        grey = 0.5 + np.tanh((grey - 0.5) * np.float32(2 * steep)) / np.float32(2 * np.tanh(steep))
    if curve.gamma != 1.0:
        grey = np.clip(grey, 0.0, 1.0) ** np.float32(curve.gamma)
    if curve.bits is not None:
        top = np.float32(2**curve.bits - 1)
        grey = np.rint(grey * top) / top
    return np.asarray(np.clip(grey, 0.0, 1.0), dtype=np.float32)


def stored(grey: Floats, *, bits: int = 8, bone_dark: bool = False) -> NDArray[np.uint16]:
    """(rows, columns) uint16 pixel values of ``bits`` bits of an image in 0...1."""
    if not 8 <= bits <= 16:
        raise ValueError(f"bits must lie in 8...16, not {bits}")
    top = np.float32(2**bits - 1)
    value = np.rint(np.clip(grey, 0.0, 1.0) * top)
    return np.asarray(top - value if bone_dark else value, dtype=np.uint16)


def _steepness(contrast: float) -> float:
    """s with s / tanh(s) = contrast: tanh(2 s (x - 1/2)) is then that steep in the middle."""
    steep = contrast
    for _ in range(50):
        steep = contrast * float(np.tanh(steep))
    return max(steep, 1e-3)

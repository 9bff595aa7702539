"""What focal spot, movement and detector do to an image: blur, grain, and a floor of noise.

Widths are in mm at the detector, so that they mean the same at any pixel size. Photons are
counted before the scintillator spreads their light, which is why grain is blurred too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import oaconvolve

from osteoprint.xray.camera import Geometry

Floats = NDArray[np.float32]

# A blur this narrow changes no pixel by more than 0.5 % of its difference to a neighbour.
_LEAST_BLUR_PX = 0.1
# From this mean on a Poisson number is drawn as a rounded normal one: its skewness is then
# below 0.1, and drawing is five times as fast.
_NORMAL_FROM = 100.0
# Exposure control measures behind at least this much body, and has an end to its patience.
_BODY_MM = 5.0
_LEAST_THROUGH = 0.002


@dataclass(frozen=True)
class Detector:
    """A flat panel, or how it is set.

    Attributes
    ----------
    scintillator_mm : standard deviation of the light's spread. Its modulation transfer is
        exp(-2 pi² s² f²): 0.14 mm is one half at 1.3 line pairs per mm, as CsI panels have.
    photons_per_mm2 : photons taken up where nothing is in the beam's way; None: no grain.
    behind_body : they are those behind the body, on average, and the open beam has as many
        more as the body lets through less: automatic exposure control.
    electronic_photons : rms of the read-out noise of a pixel, as a number of photons.
    """

    scintillator_mm: float = 0.0
    photons_per_mm2: float | None = None
    behind_body: bool = False
    electronic_photons: float = 0.0

    def __post_init__(self) -> None:
        if self.scintillator_mm < 0 or self.electronic_photons < 0:
            raise ValueError("scintillator_mm and electronic_photons must not be negative")
        if self.photons_per_mm2 is not None and self.photons_per_mm2 <= 0:
            raise ValueError("photons_per_mm2 must be positive, or None for no grain")


@dataclass(frozen=True)
class Motion:
    """The patient moved evenly during the exposure.

    Attributes
    ----------
    length_mm : how far, at the detector.
    angle_deg : where to: 0 is to the right, 90 is down.
    """

    length_mm: float
    angle_deg: float = 0.0


def open_beam(panel: Detector | None, transmitted: Floats, thickness_mm: Floats) -> Detector | None:
    """The same panel with its photons counted where nothing is in the way.

    Parameters
    ----------
    transmitted : (rows, columns) share of the signal that the body lets through.
    thickness_mm : (rows, columns) mm of body; where there is some, the photons are measured.
    """
    if panel is None or panel.photons_per_mm2 is None or not panel.behind_body:
        return panel
    body = thickness_mm > _BODY_MM
    through = float(np.mean(transmitted, where=body)) if body.any() else 1.0
    photons = panel.photons_per_mm2 / max(through, _LEAST_THROUGH)
    return replace(panel, photons_per_mm2=photons, behind_body=False)


def focal_spot_mm(geometry: Geometry, size_mm: float) -> float:
    """Standard deviation at the detector of an even focal spot's shadow of the bone's middle.

    The shadow is size x (magnification - 1) wide; an even width w has w / sqrt(12).
    """
    return size_mm * (geometry.magnification - 1.0) / float(np.sqrt(12.0))


def blurred(image: Floats, geometry: Geometry, sigma_mm: float) -> Floats:
    """A Gaussian blur by ``sigma_mm`` at the detector; the image's sum stays.

    Returned as it is where that is less than a tenth of a pixel.
    """
    sigma = [sigma_mm / mm for mm in geometry.pixel_spacing_mm]
    if max(sigma) < _LEAST_BLUR_PX:
        return image
    return np.asarray(gaussian_filter(image, sigma, mode="reflect"), dtype=np.float32)


def moved(image: Floats, geometry: Geometry, motion: Motion | None) -> Floats:
    """The image smeared along a line; borders as if the image went on."""
    if motion is None or motion.length_mm <= 0:
        return image
    kernel = _line(geometry, motion)
    if kernel.size == 1:
        return image
    reach = [n // 2 for n in kernel.shape]
    wide = np.pad(image, [(n, n) for n in reach], mode="edge")
    smeared = oaconvolve(wide, kernel, mode="valid")
    return np.asarray(np.maximum(smeared, image.min()), dtype=np.float32)


def counted(
    signal: Floats,
    geometry: Geometry,
    photons_per_mm2: float | None,
    rng: np.random.Generator,
    *,
    excess_noise: float = 1.0,
) -> Floats:
    """The signal as so many photons show it: unbiased, its variance in proportion to itself.

    Parameters
    ----------
    signal : (rows, columns), one where nothing is in the way.
    photons_per_mm2 : taken up at a signal of one; None leaves the signal as it is.
    excess_noise : variance over that of photons of one energy; see ``Beam``.
    """
    if photons_per_mm2 is None:
        return signal
    row_mm, column_mm = geometry.pixel_spacing_mm
    scale = np.float32(photons_per_mm2 * row_mm * column_mm / excess_noise)
    mean = np.maximum(signal, np.float32(0.0)) * scale
    number = rng.standard_normal(mean.shape, dtype=np.float32)
    number *= np.sqrt(mean)
    number += mean
    np.rint(number, out=number)
    few = mean < _NORMAL_FROM
    if few.any():
        number[few] = rng.poisson(mean[few])
    number /= scale
    return number


def read_out(
    signal: Floats, geometry: Geometry, panel: Detector | None, rng: np.random.Generator,
    *, excess_noise: float = 1.0,
) -> Floats:  # fmt: skip
    """What a panel makes of a signal: photons counted, light spread, read-out noise on top.

    Its photons are those of the open beam; see :func:`open_beam`.
    """
    if panel is None:
        return signal
    grainy = counted(signal, geometry, panel.photons_per_mm2, rng, excess_noise=excess_noise)
    spread = blurred(grainy, geometry, panel.scintillator_mm)
    if panel.electronic_photons == 0 or panel.photons_per_mm2 is None:
        return spread
    per_pixel = panel.photons_per_mm2 * float(np.prod(geometry.pixel_spacing_mm))
    floor = rng.standard_normal(spread.shape, dtype=np.float32)
    return spread + floor * np.float32(panel.electronic_photons / per_pixel)


def least_signal(geometry: Geometry, panel: Detector | None) -> float:
    """The signal below which the logarithm is not taken: half a photon, or 1e-6."""
    if panel is None or panel.photons_per_mm2 is None:
        return 1e-6
    return 0.5 / (panel.photons_per_mm2 * float(np.prod(geometry.pixel_spacing_mm)))


def _line(geometry: Geometry, motion: Motion) -> NDArray[np.float32]:
    """(odd, odd) kernel of a line through its middle, in pixels; sums to one."""
    angle = np.deg2rad(motion.angle_deg)
    row_mm, column_mm = geometry.pixel_spacing_mm
    far = np.array([np.sin(angle) / row_mm, np.cos(angle) / column_mm]) * motion.length_mm / 2
    steps = max(int(np.ceil(np.abs(far).max() * 8)), 1)
    t = (np.arange(2 * steps) + 0.5) / steps - 1.0
    reach = np.ceil(np.abs(far) - 1e-9).astype(int)
    kernel = np.zeros(2 * reach + 1)
    at = t[:, None] * far + reach
    low = np.clip(np.floor(at).astype(int), 0, None)
    part = at - low
    for i in (0, 1):
        for j in (0, 1):
            weight = np.abs(1 - i - part[:, 0]) * np.abs(1 - j - part[:, 1])
            inside = np.minimum(low + np.array([i, j]), 2 * reach)
            np.add.at(kernel, (inside[:, 0], inside[:, 1]), weight)
    return (kernel / kernel.sum()).astype(np.float32)

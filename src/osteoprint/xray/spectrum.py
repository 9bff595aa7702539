"""Photon energies: a single one, or those that an X-ray tube sends out and a detector takes up.

A tube's spectrum is computed once in bins of 1 keV and kept; what an image needs of it is
a :class:`Beam`, a dozen energies with the share that each has in an unattenuated signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from osteoprint.xray.materials import MaterialTable

# Caesium iodide, density and iodine's K edge as in the NIST tables (NISTIR 5632).
CSI_G_CM3 = 4.51
# A flat-panel detector's needles of CsI: 0.6 mm, packed at three quarters.
CSI_MM = 0.45
# In this many energies, line integrals behind up to 300 mm of tissue and 30 mm of bone are
# within 0.2 % + 0.001 of those in bins of 1 keV.
BINS = 12
_LEAST_KEV = 8.0  # below, neither filter nor patient lets anything through


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How many photons there are of each energy.

    Attributes
    ----------
    energies_kev : (n,) float64, rising, the middles of the bins.
    photons : (n,) float64, not negative; per mm² and mAs at 1 m from a tube, or relative.

    Raises
    ------
    ValueError : the two do not belong together, or hold nothing.
    """

    energies_kev: NDArray[np.float64]
    photons: NDArray[np.float64]

    def __post_init__(self) -> None:
        energies = np.atleast_1d(np.asarray(self.energies_kev, dtype=np.float64))
        photons = np.atleast_1d(np.asarray(self.photons, dtype=np.float64))
        if energies.ndim != 1 or energies.shape != photons.shape or energies.size == 0:
            raise ValueError("a spectrum needs as many numbers of photons as energies")
        if np.any(np.diff(energies) <= 0) or energies[0] <= 0:
            raise ValueError("energies_kev must be positive and rise")
        if not np.isfinite(photons).all() or photons.min() < 0 or photons.sum() <= 0:
            raise ValueError("photons must not be negative, and not all zero")
        object.__setattr__(self, "energies_kev", energies)
        object.__setattr__(self, "photons", photons)

    @property
    def mean_kev(self) -> float:
        """Mean photon energy."""
        return float(np.average(self.energies_kev, weights=self.photons))


@dataclass(frozen=True)
class Beam:
    """What an energy-integrating detector sees of a spectrum where nothing is in its way.

    Attributes
    ----------
    energies_kev : the energies, rising.
    weights : the share of each in the signal; they sum to one.
    excess_noise : variance of the signal over that of as many photons of one energy,
        <E²> / <E>² over the photons taken up; 1 for a single energy (Swank, J Appl Phys
        1973;44:4199, the part that the spectrum has in it).
    """

    energies_kev: tuple[float, ...]
    weights: tuple[float, ...]
    excess_noise: float = 1.0


def mono_spectrum(energy_kev: float) -> Spectrum:
    """A spectrum of one energy."""
    return Spectrum(np.array([energy_kev]), np.array([1.0]))


@lru_cache(maxsize=64)
def tube_spectrum(
    kvp: int, *, anode_deg: float = 12.0, al_mm: float = 2.5, cu_mm: float = 0.0
) -> Spectrum:
    """The spectrum of a tungsten tube, in bins of 1 keV; a quarter of a second when first asked.

    By SpekPy (Poludniowski et al., Med Phys 2021;48:3630), on the central ray.

    Parameters
    ----------
    kvp : tube voltage in whole kV, 30...150.
    anode_deg : angle of the anode's face to the central ray.
    al_mm, cu_mm : total filtration, aluminium and copper.

    Raises
    ------
    ValueError : a voltage, an angle or a filter that no such tube has.
    """
    if not 30 <= kvp <= 150 or int(kvp) != kvp:
        raise ValueError(f"kvp must be a whole number of kV in 30...150, not {kvp}")
    if not 5.0 <= anode_deg <= 30.0:
        raise ValueError(f"anode_deg must lie in 5...30, not {anode_deg}")
    if min(al_mm, cu_mm) < 0:
        raise ValueError("a filter is not thinner than 0 mm")
    import spekpy  # takes most of a second: only when a tube is asked for

    source = spekpy.Spek(kvp=float(kvp), th=anode_deg, dk=1.0, z=100.0)
    source.multi_filter([("Al", al_mm), ("Cu", cu_mm)])
    energies, per_cm2 = source.get_spectrum(edges=False)
    kept = energies >= _LEAST_KEV
    return Spectrum(energies[kept], per_cm2[kept] / 100.0)


def absorbed(spectrum: Spectrum, csi_mm: float = CSI_MM) -> NDArray[np.float64]:
    """(n,) how many photons of each energy a layer of CsI takes up; light escape left out."""
    if csi_mm <= 0:
        raise ValueError(f"csi_mm must be positive, not {csi_mm}")
    import xraydb

    mu_per_cm = xraydb.material_mu("CsI", spectrum.energies_kev * 1e3, density=CSI_G_CM3)
    return np.asarray(spectrum.photons * -np.expm1(-np.asarray(mu_per_cm) * csi_mm / 10.0))


def detected(spectrum: Spectrum, *, csi_mm: float = CSI_MM, bins: int = BINS) -> Beam:
    """The beam as a scintillator shows it: each photon counts by the energy it leaves.

    Neighbouring energies are brought together to at most ``bins`` groups of about equal
    signal, each at its mean; the signal and its mean energy are kept exactly.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    energies, quanta = spectrum.energies_kev, absorbed(spectrum, csi_mm)
    signal = quanta * energies
    total = signal.sum()
    if total <= 0:
        raise ValueError("the detector takes up none of these photons")
    excess = float(quanta.sum() * (signal * energies).sum() / total**2)
    before = np.cumsum(signal) - signal / 2
    group = np.minimum((before / total * bins).astype(int), bins - 1)
    weight = np.bincount(group, signal / total, minlength=bins)
    moment = np.bincount(group, signal / total * energies, minlength=bins)
    filled = weight > 0
    means = moment[filled] / weight[filled]
    return Beam(tuple(means.tolist()), tuple(weight[filled].tolist()), excess)


@lru_cache(maxsize=64)
def tube_beam(kvp: int, *, anode_deg: float = 12.0, al_mm: float = 2.5, cu_mm: float = 0.0) -> Beam:
    """:func:`detected` of :func:`tube_spectrum`, kept."""
    return detected(tube_spectrum(kvp, anode_deg=anode_deg, al_mm=al_mm, cu_mm=cu_mm))


@lru_cache(maxsize=256)
def attenuation(materials: MaterialTable, energies_kev: tuple[float, ...]) -> NDArray[np.float32]:
    """(E, M) float32 linear attenuation coefficients in 1/mm, not to be written to."""
    table = np.stack([materials.mu_per_mm(e) for e in energies_kev]).astype(np.float32)
    table.flags.writeable = False
    return table

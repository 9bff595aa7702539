"""From Hounsfield units to materials, and from materials to attenuation.

A scan is read as a mixture: a voxel whose value lies between the values of two
neighbouring materials holds both, in proportion. Path lengths are traced once per
material; an image at any energy is then a weighted sum of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Elemental mass fractions: ICRU Report 44 (1989), table of body tissues, as tabulated with
# the NIST X-ray mass attenuation coefficients (NISTIR 5632).
SOFT_TISSUE = {
    "H": 0.102, "C": 0.143, "N": 0.034, "O": 0.708, "Na": 0.002,
    "P": 0.003, "S": 0.003, "Cl": 0.002, "K": 0.003,
}  # fmt: skip
CORTICAL_BONE = {
    "H": 0.034, "C": 0.155, "N": 0.042, "O": 0.435, "Na": 0.001,
    "Mg": 0.002, "P": 0.103, "S": 0.003, "Ca": 0.225,
}  # fmt: skip
# Spongiosa: ICRU Report 46 (1992), adult trabecular bone with its marrow.
SPONGIOSA = {
    "H": 0.085, "C": 0.404, "N": 0.028, "O": 0.367, "Na": 0.001, "Mg": 0.001,
    "P": 0.034, "S": 0.002, "Cl": 0.002, "K": 0.001, "Ca": 0.074, "Fe": 0.001,
}  # fmt: skip
AIR_HU = -1000.0


@dataclass(frozen=True)
class Material:
    """One pure material.

    Attributes
    ----------
    name : in words.
    hu : the value, in Hounsfield units, at which a voxel is all of this material.
    density_g_cm3 : mass density.
    mass_fractions : chemical element -> share of the mass; sums to one.
    """

    name: str
    hu: float
    density_g_cm3: float
    mass_fractions: tuple[tuple[str, float], ...]

    def mu_per_mm(self, energy_kev: float) -> float:
        """Linear attenuation coefficient at one photon energy, 1/mm."""
        return _mu_per_mm(self.mass_fractions, self.density_g_cm3, float(energy_kev))


@dataclass(frozen=True)
class MaterialTable:
    """Materials in the order of their Hounsfield units, above air.

    A value between two entries is a mixture of the two; below the first it is a mixture
    with air, which attenuates nothing; above the last it is the last, denser.
    """

    materials: tuple[Material, ...]

    def __post_init__(self) -> None:
        knots = [AIR_HU, *(m.hu for m in self.materials)]
        if len(knots) < 2 or np.any(np.diff(knots) <= 0):
            raise ValueError("materials must be given in rising order of HU, above air")

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order in which path lengths are given."""
        return tuple(m.name for m in self.materials)

    def knots_hu(self) -> NDArray[np.float32]:
        """(M + 1,) float32: air, then each material's HU."""
        return np.array([AIR_HU, *(m.hu for m in self.materials)], dtype=np.float32)

    def mu_per_mm(self, energy_kev: float) -> NDArray[np.float64]:
        """(M,) linear attenuation coefficients at one photon energy, 1/mm."""
        return np.array([m.mu_per_mm(energy_kev) for m in self.materials])

    def fractions(self, hu: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., M) share of each material at the given HU (...); the reference reading."""
        knots = self.knots_hu().astype(np.float64)
        rise = [
            np.clip((hu - low) / (high - low), 0.0, None if last else 1.0)
            for low, high, last in zip(
                knots[:-1], knots[1:], [False] * (len(knots) - 2) + [True], strict=True
            )
        ]
        above = [*(np.minimum(r, 1.0) for r in rise[1:]), np.zeros_like(rise[0])]
        return np.stack([r - a for r, a in zip(rise, above, strict=True)], axis=-1)


BODY = MaterialTable(
    (
        Material("soft tissue", 50.0, 1.06, tuple(SOFT_TISSUE.items())),
        Material("trabecular bone", 300.0, 1.18, tuple(SPONGIOSA.items())),
        Material("cortical bone", 1650.0, 1.92, tuple(CORTICAL_BONE.items())),
    )
)


@lru_cache(maxsize=1024)
def _mu_per_mm(
    mass_fractions: tuple[tuple[str, float], ...], density: float, energy_kev: float
) -> float:
    """Mixture rule over the elements' mass attenuation (xraydb's Elam tables), in 1/mm."""
    if not 5.0 <= energy_kev <= 500.0:
        raise ValueError(f"energy_kev must lie in 5...500, not {energy_kev}")
    import xraydb  # opens a database of 10 MB: only when attenuation is asked for

    mass = sum(w * float(xraydb.mu_elam(e, energy_kev * 1e3)) for e, w in mass_fractions)
    return mass * density / 10.0

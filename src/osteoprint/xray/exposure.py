"""One X-ray exposure with everything settled, and the image that it makes.

An :class:`Exposure` holds plain numbers and can be kept as JSON; the same one makes the same
image each time. Each of its effects can be off, and is a function of its own elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from osteoprint.xray.camera import Geometry
from osteoprint.xray.detector import (
    Detector,
    Motion,
    blurred,
    focal_spot_mm,
    least_signal,
    moved,
    open_beam,
    read_out,
)
from osteoprint.xray.display import Display, shown
from osteoprint.xray.field import Collimation, Heel, fill, opening
from osteoprint.xray.materials import MaterialTable
from osteoprint.xray.radiograph import line_integrals, transmission
from osteoprint.xray.scatter import Scatter, scattered
from osteoprint.xray.spectrum import Beam, tube_beam

# An electronic shutter lies a little inside the penumbra, so that no bright seam is left.
_IN_FIELD = 0.98


@dataclass(frozen=True)
class Tube:
    """An X-ray tube; see :func:`osteoprint.xray.spectrum.tube_spectrum`."""

    kvp: int = 70
    anode_deg: float = 12.0
    al_mm: float = 2.5
    cu_mm: float = 0.0


@dataclass(frozen=True)
class Exposure:
    """Everything that decides how one image comes out of its path lengths; nothing is random.

    Attributes
    ----------
    preset : the name of the preset that it was drawn from.
    output : "log": -log of the signal, line integrals where all else is off; "display":
        grey values in 0...1. Bone is bright in both.
    tube : the tube, or None for a beam of one energy.
    energy_kev : the energy of that beam; None with a tube.
    blur_px : Gaussian blur of the finished "log" image, in pixels, as in the paper.
    anode, distance, leaves : how unevenly the beam fills the detector.
    scatter : scattered photons.
    focal_spot_mm : size of the focal spot.
    motion : of the patient.
    panel : the detector.
    display : the workstation, with "display".
    black_border : paint what the leaves cover black, as an electronic shutter does;
        otherwise it stays as bright as what got no photons.
    seed : of the noise.
    """

    preset: str
    output: Literal["log", "display"]
    tube: Tube | None = None
    energy_kev: float | None = 70.0
    blur_px: float = 0.0
    anode: Heel | None = None
    distance: bool = False
    leaves: Collimation | None = None
    scatter: Scatter | None = None
    focal_spot_mm: float = 0.0
    motion: Motion | None = None
    panel: Detector | None = None
    display: Display | None = None
    black_border: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.tube is None) == (self.energy_kev is None):
            raise ValueError("an exposure needs a tube or an energy, and not both")

    @property
    def beam(self) -> Beam:
        """The photon energies."""
        if self.tube is None:
            return Beam((float(self.energy_kev or 0.0),), (1.0,))
        tube = self.tube
        return tube_beam(tube.kvp, anode_deg=tube.anode_deg, al_mm=tube.al_mm, cu_mm=tube.cu_mm)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :func:`exposure_from_dict` is the inverse."""
        return asdict(self)


def develop(
    lengths_mm: NDArray[np.float32],
    materials: MaterialTable,
    geometry: Geometry,
    exposure: Exposure,
    *,
    principal_point: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """The image of an exposure: (rows, columns) float32, bone bright.

    In physical order: beam, uneven field, scatter, focal spot and movement, photons, light,
    read-out, logarithm, display.

    Parameters
    ----------
    lengths_mm : (M, rows, columns) mm of each material, from ``path_lengths``.
    materials : what they are.
    geometry : of the camera that traced them.
    exposure : from :func:`draw`, or made by hand.
    principal_point : (row, column) that the central ray meets; the middle when left out.
    """
    beam = exposure.beam
    if exposure.output == "log" and _is_plain(exposure):
        return _softened(line_integrals(lengths_mm, materials, beam.energies_kev[0]), exposure)
    through = transmission(lengths_mm, materials, beam)
    thickness = lengths_mm.sum(axis=0)
    signal = through * fill(
        geometry,
        anode=exposure.anode,
        distance=exposure.distance,
        leaves=exposure.leaves,
        principal_point=principal_point,
    )
    glow = scattered(signal, thickness, geometry, exposure.scatter)
    signal = blurred(signal, geometry, focal_spot_mm(geometry, exposure.focal_spot_mm))
    signal = moved(signal, geometry, exposure.motion) + glow
    panel = open_beam(exposure.panel, through, thickness)
    rng = np.random.default_rng(exposure.seed)
    signal = read_out(signal, geometry, panel, rng, excess_noise=beam.excess_noise)
    logs = -np.log(np.maximum(signal, np.float32(least_signal(geometry, panel))))
    logs = _softened(logs, exposure)
    if exposure.output == "log":
        return logs
    return _on_screen(logs, geometry, exposure)


def exposure_from_dict(values: Mapping[str, Any]) -> Exposure:
    """The inverse of :meth:`Exposure.as_dict`, also after a trip through JSON.

    Raises ValueError where a value is missing or impossible.
    """
    from pydantic import TypeAdapter

    return TypeAdapter(Exposure).validate_python(dict(values))


def without(exposure: Exposure, *effects: str) -> Exposure:
    """The same exposure with some of its effects off, to see what each of them does.

    ``effects`` are names of attributes: anode, distance, leaves, scatter, focal_spot_mm,
    motion, panel, blur_px. Raises ValueError for any other.
    """
    off: dict[str, Any] = {
        "anode": None, "distance": False, "leaves": None, "scatter": None, "focal_spot_mm": 0.0,
        "motion": None, "panel": None, "blur_px": 0.0,
    }  # fmt: skip
    unknown = set(effects) - set(off)
    if unknown:
        raise ValueError(f"no effect is called {sorted(unknown)}; there are {', '.join(off)}")
    return replace(exposure, **{name: off[name] for name in effects})


def _is_plain(exposure: Exposure) -> bool:
    """Whether the signal is nothing but one energy's transmission."""
    effects = (exposure.tube, exposure.anode, exposure.leaves, exposure.scatter, exposure.motion)
    if exposure.panel is not None or any(effect is not None for effect in effects):
        return False
    return not exposure.distance and exposure.focal_spot_mm == 0


def _softened(logs: NDArray[np.float32], exposure: Exposure) -> NDArray[np.float32]:
    """The blur in pixels that the paper gives its images."""
    if exposure.blur_px <= 0:
        return logs
    return np.asarray(gaussian_filter(logs, exposure.blur_px, mode="nearest"), dtype=np.float32)


def _on_screen(
    logs: NDArray[np.float32], geometry: Geometry, exposure: Exposure
) -> NDArray[np.float32]:
    """Window, curve and border of the finished image."""
    light = opening(geometry, exposure.leaves)
    field = None
    if light.size > 1:
        field = light > _IN_FIELD
    image = shown(logs, geometry, exposure.display or Display(), field)
    if field is not None and exposure.black_border:
        image[~field] = 0.0
    return image

"""Named ways to take an X-ray image, from plain line integrals to a bad day in the clinic.

A :class:`Preset` says what may vary and how far. :func:`draw` settles on one
:class:`Exposure`, which can be kept as JSON and makes the same image each time: chance is
in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from osteoprint.frames import Side, View
from osteoprint.xray.camera import Camera, Geometry
from osteoprint.xray.detector import Detector, Motion
from osteoprint.xray.display import Display
from osteoprint.xray.exposure import Exposure, Tube, develop
from osteoprint.xray.field import Collimation, Heel, Towards
from osteoprint.xray.materials import MaterialTable
from osteoprint.xray.projector import TracedVolume, path_lengths
from osteoprint.xray.radiograph import Radiograph
from osteoprint.xray.scatter import Scatter

Range = tuple[float, float]


@dataclass(frozen=True)
class Preset:
    """What a kind of image has, and within which limits it varies.

    A pair of numbers is the least and the greatest value; each image draws its own, evenly,
    or evenly in the logarithm for ``photons_per_mm2``.

    Attributes
    ----------
    name, output, blur_px, distance : as in :class:`Exposure`.
    energy_kev : of a beam of one energy, where ``kvp`` is empty.
    kvp : voltages to choose from.
    anode_deg : angle of the anode; the heel effect is there where ``heel`` says so, towards
        any side of the image.
    margins : share of the image that each leaf of the collimator covers.
    leaves_deg : they are turned by up to this, either way.
    black_border : how often the border is painted black.
    spr_per_100mm, focal_spot_mm, motion_mm : see Scatter, Exposure, Motion.
    scintillator_mm, photons_per_mm2, electronic_photons : see Detector; the photons are those
        behind the body; None: no grain.
    window_low, window_high, contrast, gamma, enhance : see Display.
    bits : of a grey level.
    """

    name: str
    output: Literal["log", "display"]
    energy_kev: float = 70.0
    blur_px: float = 0.0
    kvp: tuple[int, ...] = ()
    anode_deg: float = 16.0
    heel: bool = False
    distance: bool = False
    margins: Range = (0.0, 0.0)
    leaves_deg: float = 0.0
    black_border: float = 0.0
    spr_per_100mm: Range = (0.0, 0.0)
    focal_spot_mm: Range = (0.0, 0.0)
    motion_mm: Range = (0.0, 0.0)
    scintillator_mm: Range = (0.0, 0.0)
    photons_per_mm2: Range | None = None
    electronic_photons: float = 0.0
    window_low: Range = (0.0, 0.0)
    window_high: Range = (100.0, 100.0)
    contrast: Range = (1.0, 1.0)
    gamma: Range = (1.0, 1.0)
    enhance: Range = (0.0, 0.0)
    bits: int | None = None


# A long bone fills a field of 600 mm at a distance of 1150 mm: 15 degrees to either side, so
# the anode must be flatter than that. Photons: behind the body detectors are given 1...5 µGy
# (speed classes 800 to 200; ISO 9236-1 has 1000 µGy over the class), 30,000 photons per mm²
# each (IEC 62220-1, RQA 5), of which CsI takes up two thirds.
PRESETS: dict[str, Preset] = {
    each.name: each
    for each in (
        Preset("paper", "log", energy_kev=146.0, blur_px=1.0),
        Preset("ideal", "log", energy_kev=70.0),
        Preset(
            "clinic", "display", kvp=(65, 70, 75), heel=True, distance=True,
            margins=(0.0, 0.04), leaves_deg=1.5, black_border=0.5,
            spr_per_100mm=(0.15, 0.4), focal_spot_mm=(0.6, 1.2),
            scintillator_mm=(0.10, 0.18), photons_per_mm2=(2e4, 1e5), electronic_photons=3.0,
            window_low=(0.5, 5.0), window_high=(99.0, 99.9), contrast=(1.0, 1.3),
            gamma=(0.85, 1.15), enhance=(0.0, 0.2), bits=12,
        ),
        Preset(
            "bad day", "display", kvp=(60, 75, 90), heel=True, distance=True,
            margins=(0.0, 0.16), leaves_deg=8.0, black_border=0.25,
            spr_per_100mm=(0.8, 1.6), focal_spot_mm=(1.2, 2.0), motion_mm=(0.5, 3.0),
            scintillator_mm=(0.2, 0.35), photons_per_mm2=(1e3, 8e3), electronic_photons=6.0,
            window_low=(15.0, 40.0), window_high=(92.0, 98.0), contrast=(1.4, 2.5),
            gamma=(0.7, 1.5), bits=8,
        ),
    )
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of this name. Raises ValueError, listing the names."""
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def draw(
    of: Preset | str, rng: np.random.Generator, *, energy_kev: float | None = None
) -> Exposure:
    """One exposure of a preset, with every value settled.

    ``energy_kev`` puts a beam of one energy in the place of the preset's own.
    """
    chosen = preset(of) if isinstance(of, str) else of
    tube = None
    kev: float | None = chosen.energy_kev if energy_kev is None else float(energy_kev)
    if chosen.kvp and energy_kev is None:
        tube, kev = Tube(int(rng.choice(chosen.kvp)), chosen.anode_deg), None
    display = _display(chosen, rng) if chosen.output == "display" else None
    spr = _one(chosen.spr_per_100mm, rng)
    motion = Motion(_one(chosen.motion_mm, rng), rng.uniform(0.0, 180.0))
    return Exposure(
        preset=chosen.name,
        output=chosen.output,
        tube=tube,
        energy_kev=kev,
        blur_px=chosen.blur_px,
        anode=_anode(chosen, rng),
        distance=chosen.distance,
        leaves=_leaves(chosen, rng),
        scatter=Scatter(spr) if spr > 0 else None,
        focal_spot_mm=_one(chosen.focal_spot_mm, rng),
        motion=motion if motion.length_mm > 0 else None,
        panel=_panel(chosen, rng),
        display=display,
        black_border=bool(rng.random() < chosen.black_border),
        seed=int(rng.integers(2**31)),
    )


def take(
    lengths_mm: NDArray[np.float32],
    materials: MaterialTable,
    geometry: Geometry,
    preset: Preset | str,
    rng: np.random.Generator,
    *,
    energy_kev: float | None = None,
) -> NDArray[np.float32]:
    """One image of a preset: (rows, columns) float32, bone bright.

    Line integrals where the preset's output is "log" ("paper", "ideal"), grey values in
    0...1 where it is "display" ("clinic", "bad day"). :func:`draw` then :func:`develop`:
    call those to keep what was drawn.

    Parameters
    ----------
    lengths_mm, materials, geometry : as in :func:`develop`.
    preset : or its name.
    rng : what varies is drawn from it.
    energy_kev : a beam of one energy in the place of the preset's own.
    """
    return develop(lengths_mm, materials, geometry, draw(preset, rng, energy_kev=energy_kev))


def expose_preset(
    traced: TracedVolume,
    camera: Camera,
    preset: Preset | str,
    rng: np.random.Generator,
    *,
    view: View,
    side: Side | None,
    energy_kev: float | None = None,
) -> Radiograph:
    """A radiograph of a scan in the manner of a preset; see :func:`take`.

    ``view`` and ``side`` are recorded; they do not move the camera.
    """
    image = develop(
        path_lengths(traced, camera),
        traced.materials,
        camera.geometry,
        draw(preset, rng, energy_kev=energy_kev),
        principal_point=camera.principal_point,
    )
    return Radiograph(image, camera.geometry, view, side, "simulated")


def _one(limits: Range, rng: np.random.Generator) -> float:
    """A number within the limits; a draw is made even where they are the same."""
    return float(rng.uniform(*limits))


def _anode(chosen: Preset, rng: np.random.Generator) -> Heel | None:
    sides: tuple[Towards, ...] = get_args(Towards)
    side = sides[int(rng.integers(len(sides)))]
    return Heel(chosen.anode_deg, side) if chosen.heel else None


def _leaves(chosen: Preset, rng: np.random.Generator) -> Collimation | None:
    top, bottom, left, right = (_one(chosen.margins, rng) for _ in range(4))
    turn = float(rng.uniform(-chosen.leaves_deg, chosen.leaves_deg))
    penumbra = float(rng.uniform(1.0, 3.0))
    if chosen.margins[1] <= 0:
        return None
    return Collimation((top, bottom, left, right), turn, penumbra)


def _panel(chosen: Preset, rng: np.random.Generator) -> Detector | None:
    spread = _one(chosen.scintillator_mm, rng)
    share = float(rng.random())
    photons = None
    if chosen.photons_per_mm2 is not None:
        low, high = chosen.photons_per_mm2
        photons = float(low * (high / low) ** share)
    if photons is None and spread == 0:
        return None
    return Detector(spread, photons, True, chosen.electronic_photons)


def _display(chosen: Preset, rng: np.random.Generator) -> Display:
    return Display(
        window=(_one(chosen.window_low, rng), _one(chosen.window_high, rng)),
        contrast=_one(chosen.contrast, rng),
        gamma=_one(chosen.gamma, rng),
        enhance=_one(chosen.enhance, rng),
        bits=chosen.bits,
    )

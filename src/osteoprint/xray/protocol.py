"""Which views are made of a bone: the paper's 15 × 15 × 4, and a quick one.

A pair is one AP and one ML film of the same bone at the same turn and energy, as in the
paper: the bone turned about its long axis and tipped in the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from osteoprint.frames import AnatomicalFrame, Side, View
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.projector import TracedVolume, path_lengths
from osteoprint.xray.radiograph import Radiograph, line_integrals


@dataclass(frozen=True)
class PairView:
    """How one AP + ML pair is taken.

    Attributes
    ----------
    long_deg : turn about the bone's long axis, the same in both films.
    in_plane_deg : tip in the image, the same in both films.
    energy_kev : photon energy.
    """

    long_deg: float
    in_plane_deg: float
    energy_kev: float

    @property
    def key(self) -> str:
        """A short name, unique within a protocol: ``z+03_y-21_e146``."""
        return f"z{self.long_deg:+03.0f}_y{self.in_plane_deg:+03.0f}_e{self.energy_kev:03.0f}"


@dataclass(frozen=True)
class Protocol:
    """A set of views: every combination of the three lists."""

    name: str
    long_deg: tuple[float, ...]
    in_plane_deg: tuple[float, ...]
    energy_kev: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.long_deg) * len(self.in_plane_deg) * len(self.energy_kev)

    def __iter__(self) -> Iterator[PairView]:
        for turn in self.long_deg:
            for tip in self.in_plane_deg:
                for energy in self.energy_kev:
                    yield PairView(turn, tip, energy)


# The paper turns by 70...112 around an axis whose standard view is at 91 degrees.
PAPER = Protocol(
    "paper",
    tuple(float(a) for a in range(-21, 22, 3)),
    tuple(float(a) for a in range(-21, 22, 3)),
    (140.0, 146.0, 152.0, 158.0),
)
QUICK = Protocol("quick", (-21.0, -12.0, -6.0, 0.0, 6.0, 12.0, 21.0), (-9.0, 0.0, 9.0), (146.0,))
PROTOCOLS = {p.name: p for p in (PAPER, QUICK)}


def film_geometry(length_mm: float, rows: int = 800, columns: int = 400) -> Geometry:
    """A cone-beam set-up in which a bone of this length fills most of the height.

    The distances are those of a radiography table, shrunk for small animals so that the
    cone's angle stays the same; room is left for the bone to be tipped.
    """
    sod = 1000.0 * max(length_mm, 1.0) / 450.0
    spacing = 1.18 * length_mm * 1.15 / rows
    return Geometry(rows, columns, (spacing, spacing), 1.15 * sod, sod)


def take_pair(
    traced: TracedVolume,
    frame: AnatomicalFrame,
    side: Side,
    geometry: Geometry,
    poses: tuple[Pose, Pose],
    energy_kev: float,
) -> tuple[Radiograph, Radiograph]:
    """AP and ML radiographs of a bone, each at its own pose, at one energy."""
    ap, ml = (
        _images(traced, frame, view, side, geometry, pose, (energy_kev,))[0]
        for view, pose in zip((View.AP, View.ML), poses, strict=True)
    )
    return (
        Radiograph(ap, geometry, View.AP, side, "simulated"),
        Radiograph(ml, geometry, View.ML, side, "simulated"),
    )


def take_protocol(
    traced: TracedVolume,
    frame: AnatomicalFrame,
    side: Side,
    geometry: Geometry,
    protocol: Protocol,
) -> Iterator[tuple[PairView, NDArray[np.float32], NDArray[np.float32]]]:
    """Every pair of a protocol: (view, AP image, ML image), line integrals.

    One trace serves all energies of a turn: only the weights of the materials change.
    """
    for turn in protocol.long_deg:
        for tip in protocol.in_plane_deg:
            pose = Pose(long_deg=turn, in_plane_deg=tip)
            ap, ml = (
                _images(traced, frame, view, side, geometry, pose, protocol.energy_kev)
                for view in (View.AP, View.ML)
            )
            for index, energy in enumerate(protocol.energy_kev):
                yield PairView(turn, tip, energy), ap[index], ml[index]


def _images(
    traced: TracedVolume,
    frame: AnatomicalFrame,
    view: View,
    side: Side,
    geometry: Geometry,
    pose: Pose,
    energies_kev: tuple[float, ...],
) -> list[NDArray[np.float32]]:
    """One trace, one image per energy."""
    camera = view_camera(frame.bone_to_world, view, side, geometry, pose)
    lengths = path_lengths(traced, camera)
    return [line_integrals(lengths, traced.materials, e) for e in energies_kev]

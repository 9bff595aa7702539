"""From path lengths to an image: what a detector would record.

A radiograph is kept as line integrals (the logarithm of transmission), bright where bone
is: the form in which bones add up and in which films of any exposure can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from osteoprint.frames import Side, View
from osteoprint.xray.camera import Camera, Geometry
from osteoprint.xray.materials import MaterialTable
from osteoprint.xray.projector import TracedVolume, path_lengths
from osteoprint.xray.spectrum import Beam, attenuation


@dataclass(frozen=True)
class Placement:
    """Where the bone lies on a film: centre (row, column) in pixels, in-plane turn, height.

    ``turn_deg`` is how far the bone's long axis is turned from the film's columns,
    positive when its lower end points right; ``length_mm`` is its extent along that axis
    at the bone's plane.
    """

    centre: tuple[float, float]
    turn_deg: float
    length_mm: float


@dataclass(frozen=True, eq=False)
class Radiograph:
    """An X-ray image with what is known of how it was taken.

    Attributes
    ----------
    image : (rows, columns) float32, bone bright; line integrals (no unit) when simulated
        or given as such, else proportional to them as far as the film's curve allows.
    geometry : size, spacing at the detector and distances.
    view : AP or ML.
    side : side of the body, None where unknown.
    scale_source : where the millimetres come from, in words.
    placement : where its bone lies, where that was found by more than brightness; None: it is
        found when it is asked for, see :func:`osteoprint.xray.standard.place`.
    """

    image: NDArray[np.float32]
    geometry: Geometry
    view: View
    side: Side | None
    scale_source: str
    placement: Placement | None = None


def line_integrals(
    lengths_mm: NDArray[np.float32], materials: MaterialTable, energy_kev: float
) -> NDArray[np.float32]:
    """(M, rows, columns) path lengths in mm -> (rows, columns) line integrals at one energy."""
    return weighted_sum(lengths_mm, materials.mu_per_mm(energy_kev).astype(np.float32))


def weighted_sum(
    lengths_mm: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(rows, columns) float32: the sum over M of weights (M,) x lengths (M, rows, columns).

    Several times as fast as a dot product, which would turn the array around first.
    """
    out = np.zeros(lengths_mm.shape[1:], np.float32)
    _add_weighted(np.asarray(lengths_mm, np.float32), np.asarray(weights, np.float32), out)
    return out


def transmission(
    lengths_mm: NDArray[np.float32], materials: MaterialTable, beam: Beam
) -> NDArray[np.float32]:
    """(M, rows, columns) path lengths in mm -> (rows, columns) share of the signal that is left.

    The sum over the beam's energies of weight x exp(-sum over the materials of mu x length):
    soft photons go first, so that thick parts look thinner than they are (beam hardening).
    One at a pixel with nothing in its way.
    """
    if lengths_mm.shape[0] != len(materials.materials):
        raise ValueError(
            f"{lengths_mm.shape[0]} path lengths, {len(materials.materials)} materials"
        )
    shape = lengths_mm.shape[1:]
    flat = np.ascontiguousarray(lengths_mm, dtype=np.float32).reshape(len(lengths_mm), -1)
    out = np.empty(flat.shape[1], dtype=np.float32)
    weights = np.array(beam.weights, dtype=np.float32)
    _transmit(flat, attenuation(materials, beam.energies_kev), weights, out)
    return out.reshape(shape)


def expose(
    traced: TracedVolume,
    camera: Camera,
    *,
    view: View,
    side: Side | None,
    energy_kev: float = 70.0,
    blur_px: float = 0.0,
) -> Radiograph:
    """A noiseless radiograph of a scan.

    Parameters
    ----------
    traced : the scan, from :func:`osteoprint.xray.projector.prepare`.
    camera : where source and detector are.
    view, side : recorded in the result; they do not move the camera.
    energy_kev : photon energy of the monochromatic beam.
    blur_px : standard deviation of a Gaussian detector blur, in pixels.
    """
    image = line_integrals(path_lengths(traced, camera), traced.materials, energy_kev)
    if blur_px > 0:
        image = gaussian_filter(image, blur_px, mode="nearest")
    return Radiograph(image, camera.geometry, view, side, "simulated")


@nb.njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
def _add_weighted(lengths, weights, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` row by row."""
    count, rows, columns = lengths.shape
    for r in nb.prange(rows):
        for m in range(count):
            for c in range(columns):
                out[r, c] += weights[m] * lengths[m, r, c]


# Pixels that are worked on together: their sums stay in the fastest cache.
_RUN = 256


@nb.njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
def _transmit(lengths, mu, weights, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (P,) from lengths (M, P), mu (E, M) and weights (E,)."""
    pixels = lengths.shape[1]
    for run in nb.prange((pixels + _RUN - 1) // _RUN):
        first = run * _RUN
        count = min(_RUN, pixels - first)
        total = np.zeros(_RUN, np.float32)
        for e in range(mu.shape[0]):
            for p in range(count):
                depth = np.float32(0.0)
                for m in range(mu.shape[1]):
                    depth += mu[e, m] * lengths[m, first + p]
                total[p] += weights[e] * np.exp(-depth)
        for p in range(count):
            out[first + p] = total[p]

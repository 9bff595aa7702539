"""CT slices become a volume: their order, spacing, tilt, gaps and damage.

Pure geometry and statistics; ``reading`` deals with files. A slice is known by its
position in the world and the two directions of its image, never by its number or name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from osteoprint.errors import ScanError

Floats = NDArray[np.float64]

LEAST_SLICES = 16
"""Fewer slices than this are a localizer or a sample, not a scan of a bone."""


_DOUBLED = 0.02  # of a step: nearer than this, two slices are at the same place
_SAME_MM = 0.01  # nearer than this, two positions are one
_UNEVEN = 0.1  # of a step: more than this off its place, a slice is not where it should be
_TILT_DEG = 0.05  # headers round positions; less than this is rounding
_MOST_MISSING = 3  # neighbouring slices that interpolation may invent ...
_MISSING_SHARE = 0.05  # ... and their share of the whole series
_DAMAGE_RATIO = 2.0  # see find_damaged
_DAMAGE_SPREADS = 8.0


@dataclass(frozen=True)
class SliceHeader:
    """What the header of one CT image says.

    Attributes
    ----------
    path : the file.
    series, description : its series' UID and description.
    position : (3,) centre of its first pixel, LPS mm.
    orientation : (6,) directions of growing column and growing row index, LPS.
    pixel_mm : (between rows, between columns).
    shape : (rows, columns).
    slope, intercept : HU = slope * stored + intercept.
    """

    path: Path
    series: str
    description: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_mm: tuple[float, ...]
    shape: tuple[int, int]
    slope: float
    intercept: float

    @property
    def geometry(self) -> tuple[object, ...]:
        """What all slices of one volume have in common."""
        return (self.shape, tuple(np.round(self.orientation, 3)), tuple(np.round(self.pixel_mm, 4)))


def choose_series(
    folder: Path, slices: list[SliceHeader], left_out: dict[str, int], wanted: str | None
) -> tuple[list[SliceHeader], list[str]]:
    """The slices of one series with one geometry, and what to say about the rest.

    Parameters
    ----------
    folder : what to call the input in messages.
    slices : all CT images found in it.
    left_out : how many other files there are, by what they are.
    wanted : UID or description of a series, or None if there is but one to choose.

    Raises ScanError where no series, or more than one, can be meant.
    """
    listed = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
    if not slices:
        problem = f"no CT image among its files ({listed})" if left_out else "the folder is empty"
        raise ScanError(folder, problem, "give a folder that holds a CT series")
    groups: dict[str, dict[tuple[object, ...], list[SliceHeader]]] = {}
    for s in slices:
        groups.setdefault(s.series, {}).setdefault(s.geometry, []).append(s)
    best = {uid: max(kinds.values(), key=len) for uid, kinds in groups.items()}
    menu = "; ".join(
        f"{uid} ({s[0].description or 'no description'}, {len(s)} slices)"
        for uid, s in best.items()
    )
    if wanted is not None:
        able = [u for u, s in best.items() if wanted in (u, s[0].description)]
        if len(able) != 1:
            raise ScanError(folder, f"no single series {wanted!r} in it", f"choose from {menu}")
    else:
        able = [u for u, s in best.items() if len(s) >= LEAST_SLICES]
        if len(able) > 1:
            problem = f"holds {len(able)} CT series"
            raise ScanError(folder, problem, f"choose one with --series from {menu}")
        if not able:
            problem = f"no series of at least {LEAST_SLICES} slices with one geometry: {menu}"
            raise ScanError(folder, problem, "give a complete series")
    chosen = best[able[0]]
    if len(chosen) < 2:
        raise ScanError(folder, "the series is a single slice", "give a complete series")
    rest = sum(len(s) for s in groups[able[0]].values()) - len(chosen)
    others = len(slices) - len(chosen) - rest
    if others:
        listed = ", ".join(filter(None, [listed, f"{others} of other series"]))
    if rest:
        listed = ", ".join(filter(None, [listed, f"{rest} of the series in another geometry"]))
    return chosen, [f"files left out: {listed}"] if listed else []


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Where the slices of a series belong.

    Attributes
    ----------
    order : for each place along k, the index of its slice; -1 where one is missing.
    doubled : (kept, other) pairs of slices at the same place.
    voxel_to_world : (4, 4) index (column, row, place) -> LPS mm, shear of a tilt included.
    tilt_deg : between the slices' normal and the direction in which they follow each other.
    """

    order: tuple[int, ...]
    doubled: tuple[tuple[int, int], ...]
    voxel_to_world: Floats
    tilt_deg: float


def arrange(
    source: str, positions_mm: Floats, orientation: Floats, pixel_mm: tuple[float, float]
) -> Arrangement:
    """Order slices by their position along the normal and find what is missing or doubled.

    Parameters
    ----------
    source : what to call the series in messages.
    positions_mm : (n, 3) centre of each slice's first pixel, LPS mm (ImagePositionPatient).
    orientation : (2, 3) directions of growing column and growing row index, unit vectors
        (ImageOrientationPatient).
    pixel_mm : (between rows, between columns), as DICOM's PixelSpacing has it.

    Raises ScanError for an orientation that is none, for fewer than two places, and for
    slices that are unevenly spaced or do not follow a line.
    """
    along_row, along_column = _directions(source, orientation)
    if not (np.isfinite(pixel_mm).all() and min(pixel_mm) > 0 and np.isfinite(positions_mm).all()):
        problem = f"pixel spacing {pixel_mm[0]:g} x {pixel_mm[1]:g} mm or a position is impossible"
        raise ScanError(source, problem, "export the series again")
    normal = np.cross(along_row, along_column)
    height = positions_mm @ normal
    by_height = np.argsort(height, kind="stable")
    steps = np.diff(height[by_height])
    real = steps[steps > _SAME_MM]
    if len(real) == 0:
        raise ScanError(source, "all slices lie in one place", "a volume needs many slices")
    step = float(np.median(real))
    kept, doubled = [int(by_height[0])], []
    for index in by_height[1:]:
        if height[index] - height[kept[-1]] < _DOUBLED * step:
            doubled.append((kept[-1], int(index)))
        else:
            kept.append(int(index))
    places = _places(source, height[kept], step)
    order = np.full(places[-1] + 1, -1)
    order[places] = kept
    stride = (positions_mm[kept[-1]] - positions_mm[kept[0]]) / places[-1]
    off = positions_mm[kept] - (positions_mm[kept[0]] + places[:, None] * stride)
    if np.abs(off).max() > max(_UNEVEN * step, 0.5 * min(pixel_mm)):
        worst = float(height[kept][np.abs(off).max(axis=1).argmax()])
        problem = f"the slices do not follow a line: the one at {worst:g} mm lies beside it"
        raise ScanError(source, problem, "export the series again")
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = along_row * pixel_mm[1], along_column * pixel_mm[0]
    matrix[:3, 2], matrix[:3, 3] = stride, positions_mm[kept[0]]
    tilt = np.degrees(np.arccos(np.clip(stride @ normal / np.linalg.norm(stride), -1, 1)))
    if tilt < _TILT_DEG:
        matrix[:3, 2], tilt = normal * float(stride @ normal), 0.0
    return Arrangement(tuple(int(i) for i in order), tuple(doubled), matrix, float(tilt))


def _directions(source: str, orientation: Floats) -> tuple[Floats, Floats]:
    """The two image directions, made exactly unit and perpendicular."""
    along_row, along_column = orientation
    lengths = np.linalg.norm(orientation, axis=1)
    square = np.isfinite(orientation).all() and abs(float(along_row @ along_column)) < 1e-3
    if not square or np.abs(lengths - 1).max() > 1e-2:
        raise ScanError(source, "its image orientation is no rotation", "export the series again")
    along_row = along_row / lengths[0]
    along_column = along_column - along_row * float(along_row @ along_column)
    return along_row, along_column / np.linalg.norm(along_column)


def _places(source: str, height: Floats, step: float) -> NDArray[np.int64]:
    """Whole-number places of slices at the given heights."""
    ratio = np.diff(height) / step
    if np.abs(ratio - np.round(ratio)).max() > _UNEVEN:
        worst = int(np.abs(ratio - np.round(ratio)).argmax())
        raise ScanError(
            source,
            f"slices are unevenly spaced: {ratio[worst] * step:.3g} mm after the one at "
            f"{height[worst]:g} mm, {step:.3g} mm elsewhere",
            "reconstruct the scan with one slice spacing",
        )
    return np.concatenate([[0], np.cumsum(np.round(ratio))]).astype(np.int64)


def position_mm(voxel_to_world: Floats, place: int) -> float:
    """A slice's coordinate along the world axis it is most nearly perpendicular to, in mm.

    For axial slices this is z, the "slice location" that viewers show.
    """
    normal = np.cross(voxel_to_world[:3, 0], voxel_to_world[:3, 1])
    axis = int(np.abs(normal).argmax())
    return float(voxel_to_world[axis, 3] + place * voxel_to_world[axis, 2])


def check_missing(source: str, arrangement: Arrangement, repair: bool) -> list[int]:
    """Places that have no slice; raises ScanError unless they may and can be interpolated."""
    missing = [place for place, index in enumerate(arrangement.order) if index < 0]
    if not missing:
        return []
    at = ", ".join(f"{position_mm(arrangement.voxel_to_world, p):g}" for p in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    problem = f"{len(missing)} of {len(arrangement.order)} slices missing, at {at} mm{more}"
    runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
    longest = max(len(run) for run in runs)
    if longest > _MOST_MISSING or len(missing) > max(1, _MISSING_SHARE * len(arrangement.order)):
        raise ScanError(source, problem + ": too many to interpolate", "find the missing files")
    if not repair:
        raise ScanError(source, problem, "find the files, or interpolate them with --repair")
    return missing


def find_damaged(stack_hu: NDArray[np.generic]) -> list[int]:
    """Slices whose content is unlike both neighbours although these are like each other.

    For each slice, its mean absolute difference to the nearer neighbour is divided by the
    neighbours' difference from each other. In an undamaged series of any anatomy, spacing or
    noise that ratio is at most about 1, because the neighbours are twice as far apart. Damage
    is a ratio of at least 2 that also lies 8 robust standard deviations (from the median
    absolute deviation) above the series' median. The first and the last slice have one
    neighbour only and are not judged.

    stack_hu : (K, J, I), the slices in order. Returns places along k.
    """
    if len(stack_hu) < 5:
        return []
    # Every second pixel is enough; the clip keeps metal and padding from deciding.
    thin = [np.clip(s[::2, ::2].astype(np.float32), -1000, 1500) for s in stack_hu[:2]]
    ratios = []
    near = float(np.abs(thin[1] - thin[0]).mean())
    for place in range(2, len(stack_hu)):
        ahead = np.clip(stack_hu[place][::2, ::2].astype(np.float32), -1000, 1500)
        following = float(np.abs(ahead - thin[1]).mean())
        across = float(np.abs(ahead - thin[0]).mean())
        ratios.append((min(near, following) + 0.01) / (across + 0.01))
        thin, near = [thin[1], ahead], following
    log = np.log(ratios)
    spread = 1.4826 * float(np.median(np.abs(log - np.median(log)))) + 0.02
    limit = max(np.log(_DAMAGE_RATIO), float(np.median(log)) + _DAMAGE_SPREADS * spread)
    return [int(i) + 1 for i in np.flatnonzero(log > limit)]


def interpolate(stack_hu: NDArray[np.generic], places: list[int]) -> None:
    """Replace slices, in place, linearly between the nearest ones that are not replaced.

    stack_hu : (K, J, I); places : along k, none of them the first or last.
    """
    good = np.setdiff1d(np.arange(len(stack_hu)), places)
    for place in places:
        below, above = good[good < place].max(), good[good > place].min()
        part = (place - below) / (above - below)
        mixed = (1 - part) * stack_hu[below].astype(np.float32) + part * stack_hu[above]
        stack_hu[place] = np.rint(mixed) if stack_hu.dtype == np.int16 else mixed

"""The pose of a known volume in films from known cameras.

Film and simulated image are made alike by local contrast normalisation: what is slow (soft
tissue, exposure, scatter) is taken away and what is left is divided by its own local
strength. Their correlation inside the bone's outline is then climbed by Gauss-Newton steps
with exact derivatives, from coarse pixels to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from osteoprint.xray.camera import Camera
from osteoprint.xray.film_view import FilmView, at_pixel_size, cropped
from osteoprint.xray.pose_gradient import at_pose, image_and_gradient, motion
from osteoprint.xray.projector import path_lengths
from osteoprint.xray.traced import TracedVolume

Floats = NDArray[np.float64]
Image = NDArray[np.float32]

# Outline: where the simulated bone has this share of its strongest shadow.
_OUTLINE = 0.03
# What a fit sees around the outline, so that it also knows where bone should not be: at
# least so many mm, and so many pixels.
_MARGIN_MM = 2.0
_MARGIN_PX = 3
# The neighbourhood of the local contrast is at least so many pixels wide: coarse pixels see
# wide shapes, and are caught from further away.
_SIGMA_PX = 3.0
# The last look around: how many poses, and how far off.
_SETTLE = 8
_SETTLE_DEG = 1.0
_SETTLE_MM = 0.5
# Share of the image's largest spread that is added to the local spread.
_FLOOR = 0.3


@dataclass(frozen=True)
class Settings:
    """How a registration goes about it.

    Attributes
    ----------
    pixels_mm : pixel sizes at the bone, coarse to fine.
    contrast_mm : standard deviation of the local contrast's neighbourhood, at the bone.
    energy_kev : of the simulated images.
    blur_mm : standard deviation of the films' own unsharpness (focal spot, screen, camera) at
        the bone, given to the simulated images.
    steps : Gauss-Newton steps at each pixel size.
    candidates : poses tried around the start at the coarsest pixels.
    reach_deg, reach_mm : how far they are spread around it (standard deviation).
    kept : of them, how many are climbed from.
    """

    pixels_mm: tuple[float, ...] = (2.4, 1.2, 0.6)
    contrast_mm: float = 2.5
    energy_kev: float = 60.0
    blur_mm: float = 0.4
    steps: int = 12
    candidates: int = 200
    reach_deg: float = 5.0
    reach_mm: float = 5.0
    kept: int = 16


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the bone was found.

    Attributes
    ----------
    pose : (4, 4) rigid, LPS mm of the scan -> LPS mm of the cameras' world.
    correlations : zero-normalised cross-correlation inside the outline, one for each film.
    """

    pose: Floats
    correlations: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean correlation over the films."""
        return float(np.mean(self.correlations))


@dataclass(eq=False)
class _Level:
    """One film at one pixel size, with its local contrast."""

    camera: Camera
    contrast: Image
    field: NDArray[np.bool_]
    others: Image | float
    sigma_px: float
    blur_px: float
    margin_px: int
    energy_mu: Floats


def local_contrast(image: Image, sigma_px: float, floor: float = _FLOOR) -> Image:
    """An image less its local mean, over its local spread.

    ``floor`` is the share of the image's largest spread that is added to the spread, so that
    what is even stays even.
    """
    detail = image - gaussian_filter(image, sigma_px)
    spread = np.sqrt(np.maximum(gaussian_filter(detail * detail, sigma_px), 0.0))
    return np.asarray(detail / (spread + floor * max(float(spread.max()), 1e-12)), np.float32)


def register(
    traced: TracedVolume,
    views: Sequence[FilmView],
    start: Floats,
    rng: np.random.Generator,
    settings: Settings | None = None,
) -> Registration:
    """Find a bone near a rough pose.

    Poses are tried around the start at coarse pixels; the best of them are climbed from, and
    the best of those is refined.

    Parameters
    ----------
    traced : the bone's scan with the bone alone in it.
    views : one film or more; one film says little about the depth.
    start : (4, 4) rigid, within about 10 degrees and 10 mm.
    rng : what is drawn around the start.
    settings : see :class:`Settings`.
    """
    settings = settings or Settings()
    pyramid = _pyramid(traced, views, settings, start)
    coarse = pyramid[0]
    tried = _around(traced, start, settings.reach_deg, settings.reach_mm, settings.candidates, rng)
    scores = [float(np.mean(_correlations(traced, coarse, pose, margin=True))) for pose in tried]
    best = [tried[i] for i in np.argsort(scores)[::-1][: settings.kept]]
    climbed = [_climb(traced, coarse, pose, settings.steps) for pose in best]
    for at, level in enumerate(pyramid[1:]):
        climbed = [_climb(traced, level, pose, settings.steps) for pose, _ in climbed]
        climbed.sort(key=lambda each: -each[1])
        climbed = climbed[: max(1, settings.kept // (4 ** (at + 1)))]
    pose, value = climbed[0]
    # A bone can rest a little off, one edge on the next: look around once more from close by.
    for trial in _around(traced, pose, _SETTLE_DEG, _SETTLE_MM, _SETTLE, rng)[1:]:
        for level in pyramid[-2:]:
            trial, new = _climb(traced, level, trial, settings.steps)
        if new > value:
            pose, value = trial, new
    return Registration(pose, tuple(_correlations(traced, pyramid[-1], pose)))


def refine(
    traced: TracedVolume, views: Sequence[FilmView], start: Floats, settings: Settings | None = None
) -> Registration:
    """Climb from a pose without looking around, coarse to fine."""
    settings = settings or Settings()
    pose = start
    pyramid = _pyramid(traced, views, settings, start)
    for level in pyramid:
        pose, _ = _climb(traced, level, pose, settings.steps)
    return Registration(pose, tuple(_correlations(traced, pyramid[-1], pose)))


def correlations(
    traced: TracedVolume, views: Sequence[FilmView], pose: Floats, settings: Settings | None = None
) -> tuple[float, ...]:
    """Zero-normalised cross-correlation of each film with the simulated one, inside the outline.

    Both after local contrast normalisation, at the finest of the settings' pixel sizes.
    """
    settings = settings or Settings()
    return tuple(_correlations(traced, _pyramid(traced, views, settings, pose)[-1], pose))


def simulated(traced: TracedVolume, camera: Camera, pose: Floats, energy_kev: float) -> Image:
    """(rows, columns) line integrals of the posed bone in soft tissue, the tissue left out."""
    mu = bone_weights(traced, energy_kev).astype(np.float32)
    lengths = path_lengths(at_pose(traced, pose), camera)
    return np.asarray(np.tensordot(mu, lengths, axes=1), dtype=np.float32)


def bone_weights(traced: TracedVolume, energy_kev: float) -> Floats:
    """(M,) 1/mm: how much more each material attenuates than the table's first.

    On a film bone lies in soft tissue, not in air: what shows is the difference.
    """
    mu = traced.materials.mu_per_mm(energy_kev)
    return np.asarray(np.maximum(mu - mu[0], 0.0))


def _around(
    traced: TracedVolume,
    pose: Floats,
    reach_deg: float,
    reach_mm: float,
    count: int,
    rng: np.random.Generator,
) -> list[Floats]:
    """A pose, and so many others around it (standard deviations about and along each axis)."""
    out = [pose]
    for _ in range(count):
        turn = np.deg2rad(reach_deg) * rng.standard_normal(3)
        shift = reach_mm * rng.standard_normal(3)
        out.append(motion(np.concatenate([turn, shift]), _middle(traced, pose)) @ pose)
    return out


def _middle(traced: TracedVolume, pose: Floats) -> Floats:
    """(3,) middle of the posed scan, LPS mm."""
    half = (np.array(traced.volume_hu.shape) + 1) / 2
    inside = np.linalg.inv(traced.world_to_grid) @ np.append(half, 1.0)
    return np.asarray((pose @ inside)[:3])


def _pyramid(
    traced: TracedVolume, views: Sequence[FilmView], settings: Settings, near: Floats
) -> list[list[_Level]]:
    """For each pixel size, each film around the bone with its local contrast."""
    middle = _middle(traced, near)
    corner = np.linalg.inv(traced.world_to_grid)[:3, :3] @ np.array(traced.volume_hu.shape)
    reach_mm = float(np.linalg.norm(corner)) / 2 + 3 * settings.contrast_mm + 3 * settings.reach_mm
    mu = bone_weights(traced, settings.energy_kev)
    out = []
    for size in settings.pixels_mm:
        level = []
        for view in views:
            camera = view.camera
            at_bone = _pixel_at(camera, middle)
            small = at_pixel_size(view, max(1, round(size / at_bone)))
            at_bone = _pixel_at(small.camera, middle)
            row, column = small.camera.project(middle[None])[0]
            rows, columns = small.image.shape
            reach = reach_mm / at_bone
            top, bottom = _limits(row, reach, rows)
            left, right = _limits(column, reach, columns)
            small = cropped(small, top, bottom, left, right)
            sigma = max(settings.contrast_mm / at_bone, _SIGMA_PX)
            level.append(
                _Level(
                    small.camera,
                    local_contrast(_filled(small, sigma), sigma),
                    small.field,
                    0.0 if small.others is None else small.others,
                    sigma,
                    settings.blur_mm / at_bone,
                    max(_MARGIN_PX, round(_MARGIN_MM / at_bone)),
                    mu,
                )
            )
        out.append(level)
    return out


def _filled(view: FilmView, sigma_px: float) -> Image:
    """The film, with what lies outside of its field made like what is near."""
    known = view.field.astype(np.float32)
    weight = gaussian_filter(known, sigma_px)
    near = gaussian_filter(view.image * known, sigma_px) / np.maximum(weight, 1e-3)
    near = np.where(weight > 1e-3, near, np.median(view.image[view.field]))
    return np.asarray(np.where(view.field, view.image, near), dtype=np.float32)


def _limits(middle: float, reach: float, count: int) -> tuple[int, int]:
    low = int(np.clip(middle - reach, 0, max(count - 8, 0)))
    return low, int(np.clip(middle + reach, low + 8, count))


def _pixel_at(camera: Camera, point: Floats) -> float:
    """Pixel size (mean of row and column) in the plane of a point, mm."""
    spacing = float(np.mean(camera.geometry.pixel_spacing_mm))
    if camera.is_parallel:
        return spacing
    depth = float((camera.world_to_camera @ np.append(point, 1.0))[2])
    return spacing * depth / camera.geometry.sdd_mm


def _correlations(
    traced: TracedVolume, level: Sequence[_Level], pose: Floats, *, margin: bool = False
) -> list[float]:
    """Correlation of each film with the simulated one, inside the outline or its margin too."""
    found = []
    for view in level:
        lengths = path_lengths(at_pose(traced, pose), view.camera)
        image = np.tensordot(view.energy_mu.astype(np.float32), lengths, axes=1)
        inside = image > _OUTLINE * float(image.max())
        if margin:
            inside = binary_dilation(inside, iterations=view.margin_px)
        whole_area = max(int(inside.sum()), 1)
        inside &= view.field
        if inside.sum() < 20 or image.max() <= 0:
            found.append(-1.0)
            continue
        whole = gaussian_filter(image + view.others, view.blur_px)
        value = _correlation(local_contrast(whole, view.sigma_px), view.contrast, inside)
        # A search must not win by sliding what does not fit off the film.
        found.append(value * int(inside.sum()) / whole_area if margin else value)
    return found


def _correlation(one: Image, other: Image, inside: NDArray[np.bool_]) -> float:
    """Zero-normalised cross-correlation over some pixels."""
    a, b = one[inside].astype(float), other[inside].astype(float)
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / max(float(np.sqrt((a @ a) * (b @ b))), 1e-12))


def _climb(
    traced: TracedVolume, level: Sequence[_Level], pose: Floats, steps: int
) -> tuple[Floats, float]:
    """Damped Gauss-Newton on the sum of squared differences of normalised contrasts.

    Returns the pose and its mean correlation inside the outline with its margin.
    """
    damping = 1e-2
    value, matrix, vector = _normal_equations(traced, level, pose)
    for _ in range(steps):
        scaled = matrix + damping * np.diag(np.diag(matrix) + 1e-12)
        step = np.asarray(np.linalg.solve(scaled, vector), dtype=np.float64)
        trial = motion(step, _middle(traced, pose)) @ pose
        new = _normal_equations(traced, level, trial)
        if new[0] > value:
            gain = new[0] - value
            pose, (value, matrix, vector) = trial, new
            damping = max(damping / 4, 1e-4)
            if gain < 1e-6:
                break
        else:
            damping *= 8
            if damping > 1e3:
                break
    return pose, value


def _normal_equations(
    traced: TracedVolume, level: Sequence[_Level], pose: Floats
) -> tuple[float, Floats, Floats]:
    """Mean correlation, and the normal equations of the step that raises it."""
    matrix, vector, total = np.zeros((6, 6)), np.zeros(6), 0.0
    centre = _middle(traced, pose)
    for view in level:
        image, change = image_and_gradient(traced, view.camera, view.energy_mu, centre, pose)
        inside = image > _OUTLINE * max(float(image.max()), 1e-9)
        inside = binary_dilation(inside, iterations=view.margin_px)
        whole_area = max(int(inside.sum()), 1)
        inside &= view.field
        if inside.sum() < 20:
            total -= 1.0
            continue
        detail = _detail(image + view.others, view)
        spread = np.sqrt(np.maximum(gaussian_filter(detail * detail, view.sigma_px), 0.0))
        spread += _FLOOR * max(float(spread.max()), 1e-12)
        ours = (detail / spread)[inside].astype(float)
        film = view.contrast[inside].astype(float)
        ours, film = ours - ours.mean(), film - film.mean()
        norm = max(float(np.linalg.norm(ours)), 1e-9)
        film = film / max(float(np.linalg.norm(film)), 1e-9)
        ours = ours / norm
        slopes = np.stack(
            [(_detail(each, view) / spread)[inside] for each in change], axis=1
        ).astype(float)
        slopes = (slopes - slopes.mean(axis=0)) / norm
        slopes -= np.outer(ours, ours @ slopes)  # what only makes it stronger does not count
        matrix += slopes.T @ slopes
        vector += slopes.T @ film
        total += float(ours @ film) * int(inside.sum()) / whole_area
    return total / len(level), matrix, vector


def _detail(image: Image, view: _Level) -> Image:
    """What is finer than the local contrast's neighbourhood, as sharp as the film is."""
    sharp = gaussian_filter(image, view.blur_px)
    return np.asarray(sharp - gaussian_filter(sharp, view.sigma_px), dtype=np.float32)

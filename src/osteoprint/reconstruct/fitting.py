"""A bone model fitted to films: shape and poses at once, by damped Gauss-Newton.

The model's image is the line integral through its layers. Film and image are brought to local
contrast (:mod:`contrast`), the image is multiplied by the local gain, and what differs is
explained by the shape's coefficients, what lies beyond them, and the pose before each film,
all with their priors. Jacobians are exact but for the contrast's own divisor and the gain,
which are held during a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.contrast import smoothed
from osteoprint.reconstruct.shadow import Projection, change, line_integrals
from osteoprint.reconstruct.shot import MODEL_BLUR_PX, Target
from osteoprint.reconstruct.state import State
from osteoprint.shape.placing import vertex_normals

Floats = NDArray[np.float64]
Image = NDArray[np.float32]
Given = TypeVar("Given")
Made = TypeVar("Made")

# Residuals beyond so many standard deviations count less and less (Cauchy).
_ROBUST = 2.0
# Residuals of a bone that is explained well; fits are compared by it.
_USUAL_SCALE = 0.3
_SUPERSAMPLE = 2
# Pixels around the model's image that its blur may reach.
_BESIDE = 4
# Pixels larger than this part of the bone's length are as large as the triangles.
_COARSE = 0.004
# A step that gains less than this part of the cost is the last.
_LEAST_GAIN = 2e-3
_MOST_DAMPING = 1e3


@dataclass(frozen=True)
class Level:
    """How finely is fitted.

    Attributes
    ----------
    pixel : as a part of the bone's length.
    modes, functions : how many of the shape's coefficients are free.
    steps : at most.
    independent_px : so many neighbouring pixels tell as much as one alone would.
    """

    pixel: float
    modes: int
    functions: int
    steps: int
    independent_px: float


@dataclass(frozen=True, eq=False)
class Fit:
    """The end of a fit.

    Attributes
    ----------
    state : what was found.
    cost : half of twice the negative logarithm of the posterior, up to a constant.
    information : (p, p) inverse covariance of coefficients, shares and poses, prior included.
    likeness : of each film: correlation of its contrast with the model's, on the bone.
    evidence : how much less the films' contrast costs with the bone than without, priors paid.
    """

    state: State
    cost: float
    information: Floats
    likeness: tuple[float, ...]
    evidence: float


@dataclass(frozen=True, eq=False)
class Sight:
    """A film's target, which placing it sees, and what lies before it.

    Attributes
    ----------
    target, placing : the film, and its place among the placings.
    steps_per_mm : (l, n) of the layers of bone, 1/mm.
    bend : of the film's curve, see :func:`bent`.
    """

    target: Target
    placing: int
    steps_per_mm: Floats
    bend: float = 0.0


def fit(model: BoneModel, sights: Sequence[Sight], start: State, level: Level) -> Fit:
    """Fit shape and poses to films, at one level, from a start.

    Parameters
    ----------
    model : of the bone.
    sights : targets with pixels of the level's size.
    start : widened or narrowed to the level's numbers of coefficients.
    """
    modes = min(level.modes, len(model.shape.modes))
    functions = min(level.functions, len(model.functions))
    state = start.widened(modes, functions)
    basis = _directions(model, modes, functions)
    looks = _looks(model, sights, state)
    scales = [look.scale() for look in looks]
    cost = _cost(looks, scales, state, level)
    normal, gradient = _normal(model, looks, scales, state, level, basis)
    damping = 1e-3
    for _ in range(level.steps):
        damped = normal + damping * np.diag(np.diag(normal))
        tried = state.stepped(np.asarray(np.linalg.solve(damped, gradient), np.float64))
        fresh = _looks(model, sights, tried)
        new_cost = _cost(fresh, scales, tried, level)
        if new_cost < cost:
            gain = cost - new_cost
            state, looks, cost = tried, fresh, new_cost
            normal, gradient = _normal(model, looks, scales, state, level, basis)
            damping /= 4
            if gain < _LEAST_GAIN * cost:
                break
        else:
            damping *= 10
        if damping > _MOST_DAMPING:
            break
    return Fit(
        state, cost, normal, tuple(look.likeness() for look in looks),
        sum(look.explained() for look in looks) / level.independent_px - _prior(state),
    )  # fmt: skip


def information(model: BoneModel, sights: Sequence[Sight], state: State, level: Level) -> Floats:
    """(p, p) as in :class:`Fit`, of a state as it is, with the level's coefficients free."""
    modes = min(level.modes, len(model.shape.modes))
    functions = min(level.functions, len(model.functions))
    state = state.widened(modes, functions)
    looks = _looks(model, sights, state)
    scales = [look.scale() for look in looks]
    return _normal(model, looks, scales, state, level, _directions(model, modes, functions))[0]


def likeness(model: BoneModel, sights: Sequence[Sight], state: State) -> tuple[float, ...]:
    """As in :class:`Fit`, of a state as it is."""
    return tuple(look.likeness() for look in _looks(model, sights, state))


def _directions(model: BoneModel, modes: int, functions: int) -> Image:
    """(n, 3, q) float32 mm: how vertices move with each coefficient and share, one SD each."""
    shape = model.shape
    known = shape.modes[:modes] * shape.deviations[:modes, None, None]
    along = (model.functions[:functions] * model.spread_mm[:functions, None])[:, :, None]
    beyond = along * model.normals[None]
    return np.ascontiguousarray(np.moveaxis(np.concatenate([known, beyond]), 0, -1), np.float32)


@dataclass(frozen=True, eq=False)
class Look:
    """A model's image beside a film.

    Attributes
    ----------
    sight : the film.
    layers : (l, n, 3) mm, camera axes.
    on : (rows, columns) bool, the pixels that count.
    slope : (rows, columns) float32: local gain over the model's local spread.
    residual : (j,) film less model, local contrast, at those pixels.
    film, model : (j,) their contrasts, the gain left out.
    sharp : (rows, columns) float32, the model's line integrals.
    """

    sight: Sight
    layers: Floats
    on: NDArray[np.bool_]
    slope: Image
    residual: Image
    film: Image
    model: Image
    sharp: Image

    def scale(self) -> float:
        """Standard deviation of the residual, by its median."""
        return float(1.48 * np.median(np.abs(self.residual))) + 0.05

    def likeness(self) -> float:
        """Correlation of film and model."""
        both = float(np.linalg.norm(self.film) * np.linalg.norm(self.model))
        return float(self.film @ self.model) / max(both, 1e-9)

    def explained(self) -> float:
        """By how much what is covered of the film costs less than its offset alone would."""
        target = self.sight.target
        alone = self.film - target.seen.level(target.contrast, self.on.astype(np.float32))[self.on]
        costs = [np.log1p((v / (_ROBUST * _USUAL_SCALE)) ** 2) for v in (alone, self.residual)]
        return float((costs[0] - costs[1]).sum()) * _ROBUST**2

    def jacobian(self, model: BoneModel, state: State, basis: Image) -> Image:
        """(j, q + 6): how the model's contrast changes, the gain in it."""
        projection, window = self.sight.target.projection, self._window()
        seen, on = self.sight.target.seen.part(window), self.on[window]
        still = projection.cropped(window).from_camera_axes()
        motion = _motion(model, self.sight, state, basis)
        pixel_mm = self.layers[0, :, 2].mean() / projection.focal[0]
        changed = change(
            self.layers, model.shape.faces, self.sight.steps_per_mm, still, motion,
            quartered=pixel_mm < _COARSE * model.length_mm,
        )  # fmt: skip
        if self.sight.bend > 0:
            changed *= np.exp(-self.sight.bend * self.sharp[window])[..., None]
        changed = smoothed(changed, MODEL_BLUR_PX)
        changed -= seen.mean(changed)
        return np.asarray(changed[on] * self.slope[window][on][:, None])

    def _window(self) -> tuple[slice, slice]:
        """The part of the film beyond which nothing of the model is seen."""
        rows, columns = (np.flatnonzero(self.on.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return slice(0, 1), slice(0, 1)
        (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
        return (
            slice(max(top - _BESIDE, 0), bottom + 1 + _BESIDE),
            slice(max(left - _BESIDE, 0), right + 1 + _BESIDE),
        )


def _looks(model: BoneModel, sights: Sequence[Sight], state: State) -> list[Look]:
    """Each film beside the model."""
    return side_by_side(lambda sight: _look(model, sight, state), sights)


def side_by_side(work: Callable[[Given], Made], things: Sequence[Given]) -> list[Made]:
    """`work` on each thing, all at once.

    The loops that take the time hold no lock. A core for each film is faster than all cores for
    each loop: loops are short, and waiting for each other at the end of each takes as long.
    """
    if len(things) < 2:
        return [work(thing) for thing in things]
    with ThreadPoolExecutor(len(things)) as hands:
        return list(hands.map(work, things))


def _look(model: BoneModel, sight: Sight, state: State) -> Look:
    """Render the model before a film and compare."""
    target = sight.target
    layers = _layers(model, sight, state)
    sharp = render(layers, model, sight.steps_per_mm, target.projection)
    image = smoothed(bent(sharp, sight.bend), MODEL_BLUR_PX)
    contrast, spread = target.seen.normalised(image)
    on = (smoothed((image > 1e-3).astype(np.float32), 2.0) > 0.02) & (target.seen.mask > 0)
    gain, offset = target.seen.curve(target.contrast, contrast, on.astype(np.float32))
    return Look(
        sight, layers, on, gain / spread, (target.contrast - gain * contrast - offset)[on],
        target.contrast[on], contrast[on], sharp,
    )  # fmt: skip


def bent(image: Image, bend: float) -> Image:
    """Line integrals behind a curve that grows less and less, as films and hard beams do."""
    if bend <= 0:
        return image
    return np.asarray(-np.expm1(-bend * image) / bend, np.float32)


def _layers(model: BoneModel, sight: Sight, state: State) -> Floats:
    """(l, n, 3) mm: the surfaces that lie within the bone, in camera axes."""
    projection = sight.target.projection
    vertices = state.vertices(model)
    rotation, shift = state.placings[sight.placing].total
    points = projection.to_camera(vertices @ rotation.T + shift)
    normals = vertex_normals(vertices, model.shape.faces) @ (projection.rotation @ rotation).T
    return np.asarray(points[None] - model.depths_mm[:, None, None] * normals[None])


def _motion(model: BoneModel, sight: Sight, state: State, basis: Image) -> Image:
    """(n, 3, q + 6) mm: how the vertices move before a film with each parameter."""
    to_camera = sight.target.projection.rotation
    rotation, shift = state.placings[sight.placing].total
    turned = state.vertices(model) @ rotation.T
    rays = sight.target.projection.to_camera(turned + shift)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    count = basis.shape[2]
    motion = np.empty((len(turned), 3, count + 6), np.float32)
    motion[:, :, :count] = np.einsum(
        "xy,nyq->nxq", (to_camera @ rotation).astype(np.float32), basis, optimize=True
    )
    for k in range(3):
        motion[:, :, count + k] = np.cross(np.eye(3)[k], turned) @ to_camera.T
        motion[:, :, count + 3 + k] = to_camera[:, k]
    # A rigid body that moves along the rays casts the same shadow: its front and back cancel,
    # and are left out, since the sum over triangles would leave a rest of both.
    along = np.einsum("nx,nxq->nq", rays, motion[:, :, count:])
    motion[:, :, count:] -= rays[:, :, None].astype(np.float32) * along[:, None, :]
    return motion


def render(layers: Floats, model: BoneModel, steps_per_mm: Floats, projection: Projection) -> Image:
    """(rows, columns) float32 line integrals of (l, n, 3) layers in camera axes."""
    ss = _SUPERSAMPLE
    rows, columns = projection.shape
    fine = Projection(
        np.eye(3), np.zeros(3),
        (projection.focal[0] * ss, projection.focal[1] * ss),
        ((projection.middle[0] + 0.5) * ss - 0.5, (projection.middle[1] + 0.5) * ss - 0.5),
        (rows * ss, columns * ss),
    )  # fmt: skip
    total = np.zeros(fine.shape, np.float32)
    for points, steps in zip(layers, steps_per_mm, strict=True):
        total += line_integrals(points, model.shape.faces, steps, fine)
    return np.asarray(total.reshape(rows, ss, columns, ss).mean(axis=(1, 3)))


def _cost(looks: Sequence[Look], scales: Sequence[float], state: State, level: Level) -> float:
    """What films and priors hold against a state."""
    total = _prior(state)
    for look, scale in zip(looks, scales, strict=True):
        far = (look.residual / (_ROBUST * scale)) ** 2
        total += float(np.log1p(far).sum()) * _ROBUST**2 / level.independent_px
    return total


def _prior(state: State) -> float:
    """What priors hold against a state."""
    total = sum(float(p.surprise @ p.surprise) for p in state.placings)
    return total + float(state.coefficients @ state.coefficients + state.beyond @ state.beyond)


def _normal(
    model: BoneModel,
    looks: Sequence[Look],
    scales: Sequence[float],
    state: State,
    level: Level,
    basis: Image,
) -> tuple[Floats, Floats]:
    """Normal matrix and right-hand side of all films and priors."""
    count = basis.shape[2]
    size = count + 6 * len(state.placings)
    normal, gradient = np.zeros((size, size)), np.zeros(size)

    def of(seen: tuple[Look, float]) -> tuple[Floats, Floats]:
        look, scale = seen
        jacobian = look.jacobian(model, state, basis)
        far = (look.residual / (_ROBUST * scale)) ** 2
        weight = (1 / ((1 + far) * (scale**2 * level.independent_px))).astype(np.float32)
        weighted = jacobian * weight[:, None]
        return jacobian.T @ weighted, weighted.T @ look.residual

    parts = side_by_side(of, list(zip(looks, scales, strict=True)))
    for look, (square, right) in zip(looks, parts, strict=True):
        at = np.concatenate([np.arange(count), count + 6 * look.sight.placing + np.arange(6)])
        normal[np.ix_(at, at)] += square
        gradient[at] += right
    shape = np.concatenate([state.coefficients, state.beyond])
    surprise = np.concatenate([p.surprise for p in state.placings])
    deviation = np.concatenate([p.deviation for p in state.placings])
    normal[np.arange(size), np.arange(size)] += np.concatenate([np.ones(count), 1 / deviation**2])
    gradient -= np.concatenate([shape, surprise / deviation])
    return normal, gradient

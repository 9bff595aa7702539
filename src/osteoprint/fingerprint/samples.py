"""AP + ML pairs for training, enrolment and tests: rendered, brought to standard, stacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from osteoprint.ct.variation import Variation, varied
from osteoprint.ct.volume import Volume
from osteoprint.fingerprint.encoder import blurred
from osteoprint.frames import AnatomicalFrame, Side
from osteoprint.xray.camera import Geometry, Pose
from osteoprint.xray.projector import TracedVolume, prepare
from osteoprint.xray.protocol import take_pair
from osteoprint.xray.radiograph import Radiograph
from osteoprint.xray.standard import StandardFrame, drawn_out, place, standard_picture

MAX_TURN_DEG = 21.0
# So far each film is off by itself, without telling.
OFF_DEG = 5.0
# Every turn of the paper's protocol is 3 degrees from the next; gallery and probes take
# alternate ones, so that no probe was photographed from a gallery's angle.
GALLERY_TURNS_DEG = (-18.0, -12.0, -6.0, 0.0, 6.0, 12.0, 18.0)
PROBE_TURNS_DEG = (-21.0, -15.0, -9.0, -3.0, 3.0, 9.0, 15.0, 21.0)
GALLERY_KEV = 80.0
# How far a bone's own texture is smooth, and how much brighter or darker it may be, one standard
# deviation: a scan's is not to be learnt by heart.
_TEXTURE_PX, _TEXTURE = (1.0, 4.0), 0.05


@dataclass(frozen=True, eq=False)
class SampleBone:
    """A bone ready to be rendered in small: its scan, its axes, its side."""

    identifier: str
    traced: TracedVolume
    frame: AnatomicalFrame
    side: Side


@dataclass(frozen=True)
class PairPose:
    """How one pair is taken: a pose for each film, one energy for both."""

    ap: Pose
    ml: Pose
    energy_kev: float


def sample_bone(
    identifier: str, volume: Volume, frame: AnatomicalFrame, side: Side, picture: StandardFrame
) -> SampleBone:
    """Make a scan ready; it is coarsened to what the standard picture can show."""
    factor = int(0.7 * picture.spacing_mm / float(volume.spacing_mm.max()))
    return SampleBone(identifier, prepare(volume.shrunk(max(factor, 1))), frame, side)


def varied_bone(bone: SampleBone, variation: Variation) -> SampleBone:
    """The same bone smoothly changed, at the same place in the world."""
    volume = varied(bone.traced.scan, bone.frame, variation)
    frame = replace(bone.frame, length_mm=bone.frame.length_mm * float(variation.stretch[0]))
    return SampleBone(bone.identifier, prepare(volume, bone.traced.materials), frame, bone.side)


def random_pose(rng: np.random.Generator, max_turn_deg: float = MAX_TURN_DEG) -> PairPose:
    """A pair as it comes from a table: one turn for both films, each off by a little more.

    All is uniform: the turn about the long axis within the limit, each film's own error of the
    turn and its tilt towards the tube within 5 degrees, the tip in the image within the limit.
    """
    return pose_about(rng.uniform(-max_turn_deg, max_turn_deg), rng, max_turn_deg)


def pose_about(
    turn_deg: float, rng: np.random.Generator, max_tip_deg: float = MAX_TURN_DEG
) -> PairPose:
    """A pair as it comes from a table, see :func:`random_pose`, at a turn about the long axis.

    ``turn_deg`` is both films' turn, each then off by up to 5 degrees by itself; ``max_tip_deg``
    limits the tip in the image.
    """

    def one() -> Pose:
        own, tilt = rng.uniform(-OFF_DEG, OFF_DEG, 2)
        tip = rng.uniform(-max_tip_deg, max_tip_deg)
        return Pose(turn_deg + own, tip, tilt)

    return PairPose(one(), one(), float(rng.integers(60, 159)))


def gallery_poses() -> list[PairPose]:
    """The enrolled views: one every 6 degrees, level, at one energy."""
    return [PairPose(Pose(t), Pose(t), GALLERY_KEV) for t in GALLERY_TURNS_DEG]


def probe_poses(count: int, rng: np.random.Generator) -> list[PairPose]:
    """Views to be recognised: turns between the gallery's, tipped, at any energy.

    Each film is tipped and tilted on its own; turns are those of ``PROBE_TURNS_DEG``.
    """
    poses = []
    for index in range(count):
        turn = PROBE_TURNS_DEG[index % len(PROBE_TURNS_DEG)]
        tips = rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG, 2)
        tilts = rng.normal(0.0, 1.0, 2)
        ap, ml = (Pose(turn, float(a), float(b)) for a, b in zip(tips, tilts, strict=True))
        poses.append(PairPose(ap, ml, float(rng.integers(60, 159))))
    return poses


def picture_geometry(picture: StandardFrame, length_mm: float) -> Geometry:
    """A camera for small renderings: half the standard picture's pixel, the bone tipped or not."""
    sod = 1000.0 * length_mm / 450.0
    spacing = picture.spacing_mm / 2 * 1.15
    rows = int(1.1 * length_mm / (picture.spacing_mm / 2)) + 8
    return Geometry(rows, int(0.62 * rows), (spacing, spacing), 1.15 * sod, sod)


def render_pair(bone: SampleBone, pose: PairPose, picture: StandardFrame) -> NDArray[np.float32]:
    """(2, rows, columns) float32 standard pictures, AP then ML, of one bone at one pose."""
    geometry = picture_geometry(picture, bone.frame.length_mm)
    films = take_pair(
        bone.traced, bone.frame, bone.side, geometry, (pose.ap, pose.ml), pose.energy_kev
    )
    return pair_pictures(films, picture)


def pair_pictures(
    films: tuple[Radiograph, Radiograph],
    picture: StandardFrame,
    sources: tuple[str, str] = ("AP film", "ML film"),
    stretches: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """(2, rows, columns) float32 standard pictures of an AP and an ML film.

    ``stretches`` draw the bone out along itself where it lay slanted; when left out, the films'
    own lengths say how far. Raises FilmError where a film shows no bone.
    """
    places = [place(film, source) for film, source in zip(films, sources, strict=True)]
    if stretches is None:
        stretches = drawn_out(places[0].length_mm, places[1].length_mm)
    seen = [replace(film, placement=at) for film, at in zip(films, places, strict=True)]
    return np.stack(
        [
            standard_picture(film, picture, source, stretch)
            for film, source, stretch in zip(seen, sources, stretches, strict=True)
        ]
    )


def render_set(
    bones: Sequence[SampleBone],
    poses: Sequence[Sequence[PairPose]],
    picture: StandardFrame,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """(bones, poses, 2, rows, columns) uint8: every bone at each of its own poses.

    Brightness 1 is stored as 170, which leaves room for the 1.5 of the standard picture.
    """
    out = np.zeros((len(bones), len(poses[0]), 2, picture.rows, picture.columns), np.uint8)
    for i, bone in enumerate(bones):
        for j, pose in enumerate(poses[i]):
            out[i, j] = to_bytes(render_pair(bone, pose, picture))
        if progress:
            progress(i + 1, len(bones))
    return out


def to_bytes(pictures: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Standard pictures (0...1.5) as uint8 (0...255)."""
    return np.asarray(np.clip(pictures * 170.0 + 0.5, 0, 255), dtype=np.uint8)


def from_bytes(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The inverse of :func:`to_bytes`, up to rounding."""
    return pictures.astype(np.float32) / np.float32(170.0)


def _noise(image: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers like ``image``; on a card they are drawn there, which is what takes time."""
    if image.device.type == "cpu":
        return torch.randn(image.shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    own = torch.Generator(image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=own, device=image.device)


def _texture(image: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 1, rows, columns) what another scan of the same bone shows brighter or darker, a part.

    Smooth over one to four pixels. Between two artificial scans of one femur, whose cortex and
    spongy bone are drawn anew, such parts are 2 % on average over the bone.
    """
    reach = float(torch.empty(()).uniform_(*_TEXTURE_PX, generator=generator))
    rough = blurred(_noise(image, generator), reach)
    rough = rough / rough.std(dim=(2, 3), keepdim=True)
    strength = torch.rand(len(image), 1, 1, 1, generator=generator) * _TEXTURE
    return strength.to(image.device) * rough


def vary(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 2, rows, columns) pictures as other films would show them.

    Each picture on its own: turned by up to 2 degrees and shifted by up to 1.5 pixels
    (the bone is found only so well), gamma, brightness, texture and noise. Size is never changed.
    ``generator`` is the CPU's; they are changed where they are, and on a card their noise is
    another one than on the CPU.
    """
    n, views, rows, columns = pictures.shape
    flat = pictures.reshape(n * views, 1, rows, columns)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(len(flat), *shape, generator=generator)
        return low + (high - low) * drawn.to(flat.device)

    angle = torch.deg2rad(uniform(-2.0, 2.0))
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = uniform(-3.0, 3.0, 2) / torch.tensor([columns, rows], device=flat.device)
    # Normalised coordinates run over -1...1 on both axes, so a turn needs the aspect ratio.
    ratio = rows / columns
    theta = torch.stack(
        [cos, -sin * ratio, shift[:, 0], sin / ratio, cos, shift[:, 1]], dim=1
    ).reshape(-1, 2, 3)
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    image = functional.grid_sample(flat, grid, align_corners=False)
    image = uniform(0.85, 1.15, 1, 1, 1) * image.clamp_min(1e-6) ** uniform(0.7, 1.4, 1, 1, 1)
    image = image * (1.0 + _texture(image, generator))
    image = image + uniform(0.0, 0.03, 1, 1, 1) * _noise(image, generator)
    return image.clamp(0.0, 1.5).reshape(pictures.shape)

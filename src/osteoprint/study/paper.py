"""The paper's experiments, all of them, on the bones of a bank.

Čavojská et al.: artificial X-rays of bones, networks that name them, a triplet network whose
fingerprints are classified, compared in pairs and searched for the nearest shape. Each is done
here with this program's own network and films; where the paper's way flatters, a stricter one
stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from osteoprint.errors import BankError
from osteoprint.fingerprint.attention import attention_maps, bone_of, share_on_bone
from osteoprint.fingerprint.classifier import Kind, classified
from osteoprint.fingerprint.encoder import Network
from osteoprint.fingerprint.model import Model
from osteoprint.fingerprint.samples import PairPose, from_bytes, render_set
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.fingerprint.transfer import TransferSettings, named, train_namers
from osteoprint.study.ablation import FULL, SMALL, Line, Scale, affordable_scale, run_ablation
from osteoprint.study.experiment import Progress, StudyBone, StudySettings, quiet
from osteoprint.study.pairwise import WINDOWS, Separation, pair_distances, separated
from osteoprint.study.rebuilding import RebuildStudy, rebuild_study
from osteoprint.study.training_config import with_weights
from osteoprint.study.whole_way import StudyResult, run_study
from osteoprint.xray.camera import Pose
from osteoprint.xray.protocol import PairView
from osteoprint.xray.standard import StandardFrame

# The first of these is what the paper's text says of its own.
Split = Literal["random", "angle", "energy", "one view"]
SPLITS: tuple[tuple[Split, str], ...] = (
    (
        "random",
        "a random fifth of the films asked about (the paper’s: neighbouring angles are enrolled)",
    ),
    ("angle", "every other turn about the shaft asked about, none of them enrolled"),
    ("energy", "the two higher energies asked about, the two lower enrolled"),
    ("one view", "one straight pair of films of each bone enrolled, all other angles asked about"),
)
# Networks of the literature, and the validation accuracy that the paper reports.
TRANSFER_PAPER = {
    "resnet50": 0.8613,
    "vgg16": 0.6313,
    "inception_resnet_v2": 0.8580,
    "inception_v3": 1.0,
}
# Points of a scatter plot; more cannot be told apart.
_DOTS = 1500


@dataclass(frozen=True)
class PaperScale:
    """How large everything is.

    Attributes
    ----------
    name : in words.
    angles_deg : turns about the shaft, and tips in the image.
    energies_kev : the paper's four.
    ablation : see :mod:`osteoprint.study.ablation`.
    transfer : the ways to teach the networks of the literature.
    transfer_films : pairs of each bone that they are shown.
    """

    name: str
    angles_deg: tuple[float, ...]
    energies_kev: tuple[float, ...]
    ablation: Scale
    transfer: tuple[TransferSettings, ...]
    transfer_films: int

    def poses(self) -> list[PairPose]:
        """How the films of each bone are taken: every turn, tip and energy."""
        return [
            PairPose(Pose(turn, tip), Pose(turn, tip), kev)
            for turn in self.angles_deg for tip in self.angles_deg for kev in self.energies_kev
        ]  # fmt: skip


def transfer_ways(
    steps: int, batch: int, *, every: bool, pretrained: bool
) -> tuple[TransferSettings, ...]:
    """The paper's networks, each taught in all of its eight ways, or in the two that tell most."""
    ways = [
        (trained, optimiser, rate)
        for trained in ("head", "all")
        for optimiser in ("sgd", "adam")
        for rate in (0.01, 0.0001)
    ]
    if not every:
        ways = [("head", "adam", 0.01), ("all", "adam", 0.0001)]
    return tuple(
        TransferSettings(name, trained, optimiser, rate, steps, batch, pretrained)  # type: ignore[arg-type]
        for name in TRANSFER_PAPER
        for trained, optimiser, rate in ways
    )


SCALES = {
    "small": PaperScale(
        "small, for a CPU: 324 film pairs a bone, 30 steps of transfer learning from scratch",
        (-21.0, -14.0, -7.0, -3.0, 0.0, 3.0, 7.0, 14.0, 21.0), (140.0, 146.0, 152.0, 158.0), SMALL,
        transfer_ways(30, 8, every=False, pretrained=False), 24,
    ),
    "full": PaperScale(
        "full, for a GPU: 900 film pairs a bone, transfer learning from ImageNet weights",
        tuple(float(a) for a in range(-21, 22, 3)), (140.0, 146.0, 152.0, 158.0), FULL,
        transfer_ways(2000, 32, every=True, pretrained=True), 200,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Classified:
    """Row 10: how many films were given the right name.

    Attributes
    ----------
    kind, split : classifier, and what it was asked about.
    bones : "known" to the network, or "unseen".
    asked, right : how many films, and the share of them.
    """

    kind: Kind
    split: Split
    bones: Literal["known", "unseen"]
    asked: int
    right: float


@dataclass(frozen=True, eq=False)
class Attention:
    """Row 6: where the network looks, one pair of films of each bone.

    Attributes
    ----------
    names : of the bones.
    pictures : (n, 2, rows, columns) float32.
    maps : (n, rows, columns) or (n, rows, 2 columns) in 0...1.
    on_bone : (n,) share of the attention that lies on bone.
    area : (n,) share of the map that is bone: what attention spread evenly would have.
    """

    names: list[str]
    pictures: NDArray[np.float32]
    maps: NDArray[np.float32]
    on_bone: NDArray[np.float64]
    area: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PaperStudy:
    """Everything the report on the paper needs.

    Attributes
    ----------
    scale : how large.
    result : the whole way: rows 1 to 4, 7, 12 to 14.
    classified : row 10; separations : row 11, windows that hold no pairs left out.
    dots : of each window (one bone's, two bones') some of the distances, for Figure 4.
    attention : row 6; transfer : row 5; ablation : rows 8 and 9.
    """

    scale: PaperScale
    result: StudyResult
    classified: list[Classified]
    separations: list[Separation]
    dots: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    attention: Attention
    transfer: list[dict[str, Any]]
    ablation: list[Line]


def run_paper(
    bones: Sequence[StudyBone],
    settings: StudySettings,
    scale: PaperScale,
    progress: Progress = quiet,
) -> PaperStudy:
    """Do all of the paper's experiments.

    Networks begin from scratch where ImageNet weights cannot be had; the scale's name says so.
    ``settings.methods`` rebuild shapes, too, if there are bones enough to learn shapes from.
    Raises what :func:`osteoprint.study.whole_way.run_study` raises.
    """
    scale = affordable(scale)
    result = run_study(bones, replace(settings, methods=()), progress)
    if settings.methods:
        result = replace(result, rebuilt=_rebuilt(result, settings, progress))
    model, own = result.experiment.model, result.experiment
    poses = scale.poses()
    known = _embedded(model, own.known, poses, "Films of known bones", progress)
    unseen = _embedded(model, own.unseen, poses, "Films of unseen bones", progress)
    answers = classify(known, poses, "known", settings.seed)
    if len(own.unseen) > 1:
        answers += classify(unseen, poses, "unseen", settings.seed)
    separations, dots = _pairs(unseen, poses, settings.training.margin, settings.seed)
    transfer = transfer_table(own.known, own.frame, scale, settings.seed, progress)
    ablation = run_ablation(
        bones, scale.ablation, unseen=settings.unseen, seeds=(settings.seed,),
        accelerator=settings.training.accelerator, progress=progress,
    )  # fmt: skip
    return PaperStudy(scale, result, answers, separations, dots, look(result), transfer, ablation)


def _rebuilt(
    result: StudyResult, settings: StudySettings, progress: Progress
) -> RebuildStudy | None:
    """Rows 15 and 17; None where a bank holds too few bones of one kind for a shape model."""
    own = result.experiment
    try:
        return rebuild_study(
            own.known, own.unseen, settings.methods, preset=settings.preset, seed=settings.seed,
            progress=progress,
        )  # fmt: skip
    except BankError:
        return None


def affordable(scale: PaperScale) -> PaperScale:
    """The same scale with the weights that can be had, asked before any work is done."""
    lacking: dict[str, str] = {}
    for name in sorted({t.backbone for t in scale.transfer if t.pretrained}):
        network = Network(name, pooling="whole", views="side by side")
        _, said = with_weights(TrainingSettings(network, pretrained=True))
        if said:
            lacking[name] = said
    transfer = tuple(
        replace(t, pretrained=t.pretrained and t.backbone not in lacking) for t in scale.transfer
    )
    name = " ".join([scale.name, *(f"({said})" for said in lacking.values())])
    return replace(scale, name=name, ablation=affordable_scale(scale.ablation), transfer=transfer)


def _embedded(
    model: Model,
    bones: Sequence[StudyBone],
    poses: list[PairPose],
    what: str,
    progress: Progress,
) -> NDArray[np.float32]:
    """(bones, poses, d), one bone's films at a time."""
    out = []
    for index, bone in enumerate(bones):
        pictures = render_set([bone.sample], [poses], model.card.frame)[0]
        out.append(model.embed_bytes(pictures))
        progress(what, index + 1, len(bones))
    return np.stack(out)


def classify(
    prints: NDArray[np.float32],
    poses: Sequence[PairPose],
    bones: Literal["known", "unseen"],
    seed: int,
) -> list[Classified]:
    """Every classifier on every split of (bones, poses, d) fingerprints."""
    count = len(prints)
    out = []
    for split, _ in SPLITS:
        enrolled, held = _split(poses, split, seed)
        labels = np.repeat(np.arange(count), enrolled.sum())
        known = prints[:, enrolled].reshape(len(labels), -1)
        truth = np.repeat(np.arange(count), held.sum())
        asked = prints[:, held].reshape(len(truth), -1)
        for kind in ("k-NN", "SVM"):
            nearest = 1 if split == "one view" else 5
            answer = classified(kind, known, labels, asked, neighbours=nearest)
            right = float((answer == truth).mean())
            out.append(Classified(kind, split, bones, len(truth), right))
    return out


def _split(
    poses: Sequence[PairPose], split: Split, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(poses,) which of a bone's films are enrolled, and which are asked about."""
    enrolled = _enrolled(poses, split, seed)
    if split != "one view":
        return enrolled, ~enrolled
    only = poses[int(np.argmax(enrolled))].ap
    # At another energy, the same angle is nearly the same film.
    return enrolled, np.array([p.ap != only for p in poses])


def _enrolled(poses: Sequence[PairPose], split: Split, seed: int) -> NDArray[np.bool_]:
    """(poses,) which of a bone's films are enrolled."""
    turns = np.array([p.ap.long_deg for p in poses])
    if split == "random":
        order = np.random.default_rng([seed, 9]).permutation(len(poses))
        return np.asarray(order >= len(poses) // 5)
    if split == "angle":
        places = np.unique(turns, return_inverse=True)[1]
        return np.asarray(places % 2 == 0)
    if split == "energy":
        energies = np.array([p.energy_kev for p in poses])
        return np.asarray(energies < np.median(energies))
    tips = np.array([p.ap.in_plane_deg for p in poses])
    out = np.zeros(len(poses), bool)
    out[int(np.argmin(np.abs(turns) + np.abs(tips)))] = True
    return out


def _pairs(
    prints: NDArray[np.float32], poses: Sequence[PairPose], margin: float, seed: int
) -> tuple[list[Separation], list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Row 11 and Figure 4: the paper's windows over all pairs of films."""
    views = [PairView(p.ap.long_deg, p.ap.in_plane_deg, p.energy_kev) for p in poses] * len(prints)
    vectors = prints.reshape(-1, prints.shape[-1])
    whose = np.repeat(np.arange(len(prints)), len(poses))
    rng = np.random.default_rng([seed, 10])
    separations, dots = [], []
    for window in WINDOWS:
        try:
            separations.append(separated(window, vectors, whose, views, margin))
        except ValueError:
            continue  # one unseen bone alone has no pairs of two
        kept = np.array([window.holds(view) for view in views])
        pair = pair_distances(vectors[kept], whose[kept])
        one, two = (rng.choice(d, min(_DOTS, len(d)), replace=False) for d in pair)
        dots.append((one, two))
    return separations, dots


def transfer_table(
    bones: Sequence[StudyBone],
    frame: StandardFrame,
    scale: PaperScale,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Row 5: networks of the literature name the known bones, on films kept from the training.

    Returns one row for each of the scale's settings: these, ``accuracy`` and the paper's, shares.
    """
    rng = np.random.default_rng([seed, 11])
    count = scale.transfer_films
    every = scale.poses()
    poses = [every[index] for index in rng.choice(len(every), count, replace=False)]
    pictures = render_set([b.sample for b in bones], [poses] * len(bones), frame)
    held = max(2, count // 5)
    shown = from_bytes(pictures[:, :held].reshape(-1, *pictures.shape[2:]))
    truth = np.repeat(np.arange(len(bones)), held)
    out = []
    for settings, namer in train_namers(pictures[:, held:], scale.transfer):
        right = float((named(namer, shown) == truth).mean())
        out.append(
            {"backbone": settings.backbone, "trained": settings.trained,
             "optimiser": settings.optimiser, "learning_rate": settings.learning_rate,
             "pretrained": settings.pretrained, "accuracy": right,
             "paper": TRANSFER_PAPER[settings.backbone]}
        )  # fmt: skip
        progress("Transfer learning", len(out), len(scale.transfer))
    return out


def look(result: StudyResult) -> Attention:
    """Row 6: what in each known bone's straight films speaks for its other films."""
    encoder = result.experiment.model.encoder
    prints = result.gallery.fingerprints
    middle = prints.shape[1] // 2
    pictures = from_bytes(result.gallery.pictures[:, middle])
    aims = np.delete(prints, middle, axis=1).mean(axis=1)
    aims /= np.linalg.norm(aims, axis=1, keepdims=True)
    maps = attention_maps(encoder, pictures, aims)
    side_by_side = encoder.network.views == "side by side"
    bone = bone_of(pictures, side_by_side=side_by_side)
    return Attention(
        result.experiment.gallery_names, pictures, maps, share_on_bone(maps, bone),
        bone.mean(axis=(1, 2)),
    )  # fmt: skip

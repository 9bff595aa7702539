"""What matters to a fingerprint network: the paper's choices and ours, changed one at a time.

Each line is a network trained anew with one thing changed. It is judged as the paper judges,
on films of bones that it was trained on (a random fifth of the films, so angles stand on both
sides), and on bones that it has never seen. Small scale takes a smaller backbone, fewer films
and fewer steps than the paper had; which one was used stands on the table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from osteoprint.fingerprint.encoder import Network
from osteoprint.fingerprint.losses import triplet_accuracy
from osteoprint.fingerprint.model import Model
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.fingerprint.training import train
from osteoprint.study.ablation_films import JUDGED, AblationFilms, take_films
from osteoprint.study.experiment import Progress, StudyBone, quiet, split
from osteoprint.study.pairwise import Told, pair_distances
from osteoprint.study.training_config import paper_training, with_weights
from osteoprint.study.training_films import parts_of, rms_between
from osteoprint.study.workers import open_workers
from osteoprint.xray.standard import StandardFrame

# The paper's split of the films of known bones: a fifth is kept from the training.
_VALIDATION = 0.2


@dataclass(frozen=True)
class Scale:
    """How large an ablation is.

    Attributes
    ----------
    name : in words, for the table; :attr:`words` adds the steps.
    films : pairs of each bone.
    settings : of the line that all others differ from.
    other_backbone : that the base's backbone is compared with.
    """

    name: str
    films: int
    settings: TrainingSettings
    other_backbone: str

    @property
    def words(self) -> str:
        """What stands on the table."""
        of = self.settings
        precision = "" if of.precision == "32-true" else f", {of.precision}"
        return f"{self.name}, {of.steps:,} steps{precision}"


_PAPER = paper_training("vgg16")
FULL = Scale(
    "full: VGG-16 from ImageNet weights, 900 film pairs a bone",
    900,
    replace(_PAPER, pretrained=True),
    "resnet50",
)
SMALL = Scale(
    "small: the compact network, 60 film pairs a bone",
    60,
    replace(
        _PAPER, network=Network(views="side by side"), steps=200, learning_rate=2e-3,
        backbone_rate=0.5,
    ),
    "resnet18",
)  # fmt: skip
SCALES = {"small": SMALL, "full": FULL}


def affordable_scale(scale: Scale) -> Scale:
    """The same scale, from scratch where ImageNet weights cannot be had, which its name says.

    Asked before any film is taken.
    """
    for backbone in (scale.settings.network.backbone, scale.other_backbone):
        network = replace(scale.settings.network, backbone=backbone)
        _, said = with_weights(replace(scale.settings, network=network))
        if said:
            name = f"{scale.name} ({said})"
            return replace(scale, name=name, settings=replace(scale.settings, pretrained=False))
    return scale


@dataclass(frozen=True)
class Case:
    """One line: what is different from the base.

    Attributes
    ----------
    name : in words.
    paper : what the paper says it does to the validation accuracy, in points; None: nothing.
    note : the paper's own words on it, where they contradict each other or need saying.
    settings, network : fields that are replaced.
    views : "both", or "AP" alone: the other is black.
    films : share of the films.
    bones : share of the known bones.
    proportions : "real": all bones at one scale; "fill": each fills its picture.
    """

    name: str
    paper: float | None = None
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    views: Literal["both", "AP"] = "both"
    films: float = 1.0
    bones: float = 1.0
    proportions: Literal["real", "fill"] = "real"


BASE = Case("base: margin 0.1, AP and ML side by side, d = 128, real proportions")


def cases(scale: Scale) -> list[Case]:
    """All lines of the table, the base first."""
    return [
        BASE,
        Case("margin 1.0 instead of 0.1", -9.6, settings={"margin": 1.0}),
        Case("a ninth of the films to learn from", -3.5, films=1 / 9),
        Case("AP alone", -2.0, views="AP"),
        Case("one learning rate for all layers", -1.0, settings={"backbone_rate": 1.0}),
        Case(
            f"{scale.other_backbone} instead of {scale.settings.network.backbone}",
            -0.8,
            "ResNet for VGG; 0.1 elsewhere in the paper. Its features are pooled whole",
            network={"backbone": scale.other_backbone, "pooling": "whole"},
        ),
        Case("each bone fills its picture", -0.7, proportions="fill"),
        Case("d = 64", 0.0, network={"dimension": 64}),
        Case("d = 32", 0.0, network={"dimension": 32}),
        Case("d = 16", -1.0, network={"dimension": 16}),
        Case("one layer reduces instead of three", 0.0, network={"reductions": ()}),
        Case("plain instead of squared distances", 0.0, settings={"squared": False}),
        Case("the positive to negative distance counts", 0.0, settings={"tertiary": True}),
        Case("five sixths of the bones", 0.0, "24 of 29 in the paper", bones=24 / 29),
        Case("AP and ML as two channels", network={"views": "channels"}),
        Case("semi-hard triplets", settings={"mining": "semihard"}),
        Case("hardest triplets", settings={"mining": "hard"}),
        Case("multi-similarity loss", settings={"loss": "multi-similarity"}),
        Case("our loss, that follows the surfaces", settings={"loss": "shape"}),
        Case("local contrast", network={"contrast": True}),
    ]


@dataclass(frozen=True)
class Line:
    """What came of one case.

    Attributes
    ----------
    case, seed : what was done.
    validation : triplet accuracy on other films of the bones it was trained on.
    unseen : triplet accuracy on bones it was not trained on; None of one bone alone, which cannot
        be told from any other.
    pairs : share of all pairs of films of unseen bones told right at the best threshold; or None.
    seconds : that the training took, without the films.
    """

    case: Case
    seed: int
    validation: float
    unseen: float | None
    pairs: float | None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"case": self.case.name, "paper": self.case.paper}


def run_ablation(
    bones: Sequence[StudyBone],
    scale: Scale,
    *,
    unseen: tuple[str, ...] = (),
    seeds: Sequence[int] = (0,),
    only: Sequence[str] | None = None,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    at_once: int = 1,
    films_folder: Path | None = None,
    progress: Progress = quiet,
    keep: Callable[[list[Line]], None] | None = None,
) -> list[Line]:
    """Train and judge every case.

    Parameters
    ----------
    bones : best of one kind.
    scale : how large.
    unseen : bones kept from all networks, see :func:`osteoprint.study.experiment.split`.
    seeds : every case is done with each of them; all cases with the first, then with the next.
    only : names of the cases to do; all when left out.
    at_once : so many networks are trained beside each other, each by a process of its own: one
        alone leaves a large card waiting.
    films_folder : films are kept there, and taken from there where they are; of these bones at
        this scale alone. Nowhere when left out.
    keep : called with all lines so far as each is done.

    Raises BankError where the bones cannot be split.
    """
    known, held = split(bones, unseen)
    frame = StandardFrame.for_length(max(b.record.length_mm for b in known))
    themselves = replace(scale.settings, variants_per_bone=1)
    rms_mm = rms_between(known, parts_of(known, frame, themselves))
    chosen = [case for case in cases(scale) if only is None or case.name in only]
    lines: dict[int, Line] = {}
    asked = [(case, seed) for seed in seeds for case in chosen]
    with (
        tempfile.TemporaryDirectory() as nowhere,
        open_workers(at_once) as workers,
        ThreadPoolExecutor(1) as hand,
    ):
        folder = films_folder or Path(nowhere)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {case.proportions: AblationFilms.files(folder, case.proportions) for case in chosen}
        taken = {
            each: hand.submit(
                take_films, kept[each], known, held, frame, each, scale.films, progress
            )
            for each in kept
        }

        def one_done(index: int, line: Line) -> None:
            lines[index] = line
            progress("Training networks", len(lines), len(asked))
            if keep:
                keep([lines[done] for done in sorted(lines)])

        def train_these(these: list[int]) -> None:
            for films in {asked[n][0].proportions for n in these}:
                taken[films].result()
            tasks = [
                (*asked[n], kept[asked[n][0].proportions], rms_mm, frame, scale, accelerator)
                for n in these
            ]
            workers.run(_line, tasks, lambda n, line: one_done(these[n], line))

        # Networks beside each other leave cores to take the next films with; one alone, whose
        # time is told, is not disturbed.
        first = [
            n for n, (case, seed) in enumerate(asked)
            if at_once > 1 and seed == asked[0][1] and case.proportions == chosen[0].proportions
        ]  # fmt: skip
        try:
            train_these(first)
            train_these([n for n in range(len(asked)) if n not in first])
        except BaseException:
            hand.shutdown(wait=False, cancel_futures=True)  # no films for what has failed
            raise
    return [lines[index] for index in sorted(lines)]


def _as_asked(films: AblationFilms, case: Case) -> AblationFilms:
    """Fewer bones, or one view."""
    known, unseen = films.known, films.unseen
    known = known[: max(2, round(case.bones * len(known)))]
    if case.views == "AP":
        known, unseen = known.copy(), unseen.copy()
        known[:, :, 1] = 0
        unseen[:, :, 1] = 0
    return AblationFilms(known, unseen)


def _line(
    case: Case,
    seed: int,
    files: tuple[Path, Path],
    rms_mm: NDArray[np.float64],
    frame: StandardFrame,
    scale: Scale,
    accelerator: Literal["auto", "cpu", "cuda"],
) -> Line:
    films = _as_asked(AblationFilms.of(files), case)
    base = scale.settings
    settings = replace(
        base, network=replace(base.network, **case.network), seed=seed, accelerator=accelerator,
        **case.settings,
    )  # fmt: skip
    count = films.known.shape[1]
    order = np.random.default_rng([seed, 7]).permutation(count)
    held = max(2, round(_VALIDATION * count))
    bones = len(films.known)
    # Always judged on the same films, however few are learnt from.
    learnt = order[held:][: max(4, round(case.films * (count - held)))]
    begun = time.perf_counter()
    model = train(
        films.known[:, learnt],
        [f"bone {index}" for index in range(bones)],
        frame,
        settings,
        rms_mm=rms_mm[:bones, :bones],
    )
    seconds = time.perf_counter() - begun
    if accelerator != "cpu" and torch.cuda.is_available():
        model.encoder.to("cuda")
    validation, _ = _judged(model, films.known[:, order[:held]], settings)
    several = len(films.unseen) > 1
    unseen, pairs = _judged(model, films.unseen, settings) if several else (None, None)
    return Line(case, seed, validation, unseen, pairs, seconds)


def _judged(
    model: Model, pictures: NDArray[np.uint8], settings: TrainingSettings
) -> tuple[float, float]:
    """Triplet accuracy, and the share of pairs told right."""
    shown = pictures[:, :JUDGED]
    vectors = model.embed_bytes(shown.reshape(-1, *shown.shape[2:]))
    whose = np.repeat(np.arange(len(shown)), shown.shape[1])
    accuracy = triplet_accuracy(torch.from_numpy(vectors), torch.from_numpy(whose), settings.margin)
    genuine, impostor = pair_distances(vectors, whose)
    return accuracy, float(Told.of(genuine, impostor).right.max())

"""The whole way in one call: split, train, recognise the known, find the unseen's nearest shape."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.fingerprint.samples import gallery_poses, probe_poses
from osteoprint.shape.distance import SurfaceDistance
from osteoprint.study.experiment import (
    Experiment,
    FilmSet,
    Progress,
    StudyBone,
    StudySettings,
    prepare_experiment,
    quiet,
    take_films,
)
from osteoprint.study.identification import Recognition, Views, distances, recognise
from osteoprint.study.rebuilding import RebuildStudy, rebuild_study
from osteoprint.study.reconstruction import NearestStudy, compare, nearest_study


@dataclass(frozen=True, eq=False)
class Alignment:
    """The known bone that most films of an unseen bone chose, laid onto the truth.

    Attributes
    ----------
    unseen, chosen : places in ``experiment.unseen`` and ``experiment.known``.
    surface : the chosen bone's surface, mm, in the unseen bone's anatomical frame.
    distance : between the two, after rigid alignment.
    """

    unseen: int
    chosen: int
    surface: trimesh.Trimesh
    distance: SurfaceDistance


@dataclass(frozen=True, eq=False)
class StudyResult:
    """Everything a report needs.

    Attributes
    ----------
    settings : what was asked for.
    experiment : the bones, how they were split, and the network.
    gallery, probes : film pairs of the known bones: enrolled, and asked about.
    unseen_films : film pairs of the bones the network never saw.
    recognition : whose bone the probes are.
    nearest : the nearest known shapes of the unseen bones.
    alignments : one per unseen bone, to be looked at.
    rebuilt : the unseen bones' surfaces from their films; None where that was not asked for.
    seconds : time by step, in the order of the steps.
    """

    settings: StudySettings
    experiment: Experiment
    gallery: FilmSet
    probes: FilmSet
    unseen_films: FilmSet
    recognition: Recognition
    nearest: NearestStudy
    alignments: list[Alignment]
    rebuilt: RebuildStudy | None
    seconds: dict[str, float]

    @property
    def views(self) -> Views:
        """Fingerprints of the known bones, gallery and probes."""
        return Views(self.gallery.fingerprints, self.probes.fingerprints)

    @property
    def unseen_probes(self) -> NDArray[np.float32]:
        """(unseen, pairs, d) fingerprints of the unseen bones' films."""
        return self.unseen_films.fingerprints


class Stopwatch:
    """A progress callback that passes everything on and sums up the time of each step.

    A step reports when a part of it is done, so the time since the last report is its own.
    Steps are named by the words before a bracket.
    """

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._last = time.perf_counter()

    def __call__(self, what: str, done: float, total: float) -> None:
        """Book the time since the last call, then report."""
        self.book(what.split(" (")[0])
        self._progress(what, done, total)

    def book(self, step: str) -> None:
        """Book the time since the last call under ``step``."""
        now = time.perf_counter()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now


def run_study(
    bones: Sequence[StudyBone], settings: StudySettings, progress: Progress = quiet
) -> StudyResult:
    """Train on the known bones, ask whose their new films are, and what shape the unseen have.

    Parameters
    ----------
    bones : of one kind, surfaces in their anatomical frames.
    settings : which bones stay unseen, the training, how many film pairs, the seed.
    progress : called with (step, done, of how many).

    Raises what :func:`prepare_experiment` raises: BankError where the bones cannot be
    split, ModelError where the network cannot be trained.
    """
    watch = Stopwatch(progress)
    experiment = prepare_experiment(bones, settings, watch)
    model, known = experiment.model, experiment.known
    # One generator for both sides: the known bones' draws are those of a recognition study.
    rng = np.random.default_rng([settings.seed, 2])
    gallery = take_films(
        model, known, [gallery_poses() for _ in known], "Enrolling known bones", watch
    )
    asked = [probe_poses(settings.probes, rng) for _ in known]
    probes = take_films(model, known, asked, "Taking new films", watch)
    views = Views(gallery.fingerprints, probes.fingerprints)
    recognition = recognise(views, experiment.gallery_names)
    watch.book("Recognising")
    asked = [probe_poses(settings.probes, rng) for _ in experiment.unseen]
    films = take_films(model, experiment.unseen, asked, "Taking films of unseen bones", watch)
    # One for each bone, whatever the view.
    enrolled = model.shape_of_views(views.gallery)[:, None]
    shapes = Views(enrolled, model.of_shape(views.probes))
    unseen = model.of_shape(films.fingerprints)
    nearest = nearest_study(experiment, shapes, unseen, watch)
    alignments = align_favourites(experiment, shapes, unseen)
    watch.book("Measuring against the truth")
    rebuilt = None
    if settings.methods:
        rebuilt = rebuild_study(
            known,
            experiment.unseen,
            settings.methods,
            preset=settings.preset,
            seed=settings.seed,
            progress=watch,
        )
    return StudyResult(
        settings=settings,
        experiment=experiment,
        gallery=gallery,
        probes=probes,
        unseen_films=films,
        recognition=recognition,
        nearest=nearest,
        alignments=alignments,
        rebuilt=rebuilt,
        seconds=watch.seconds,
    )


def align_favourites(
    experiment: Experiment, views: Views, probes: NDArray[np.float32]
) -> list[Alignment]:
    """Of every unseen bone, the known one that most of its films chose, laid onto it.

    Fingerprints as in :func:`nearest_study`.
    """
    picks = distances(probes, views.gallery).min(axis=3).argmin(axis=2)
    out = []
    for index, bone in enumerate(experiment.unseen):
        favourite = int(np.bincount(picks[index]).argmax())
        distance, moved = compare(experiment.known[favourite].surface, bone.surface)
        out.append(Alignment(index, favourite, moved, distance))
    return out

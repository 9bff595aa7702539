"""The films of an ablation: plain, at random angles, one set for all lines that show alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from osteoprint.fingerprint.samples import PairPose, SampleBone, random_pose, render_set
from osteoprint.study.experiment import Progress, StudyBone
from osteoprint.study.workers import cores, in_order
from osteoprint.xray.standard import StandardFrame

# Films of each bone that are compared; more only repeat what these say.
JUDGED = 24
# Fewer films than this are taken before other processes have started.
_FEW = 600
# Films of a task: the last tasks leave few cores waiting.
_FILMS_OF_A_TASK = 100
_Task = tuple[SampleBone, Sequence[PairPose], StandardFrame]


@dataclass(frozen=True, eq=False)
class AblationFilms:
    """(bones, films, 2, rows, columns) uint8 of known and of unseen bones."""

    known: NDArray[np.uint8]
    unseen: NDArray[np.uint8]

    @staticmethod
    def files(folder: Path, name: str) -> tuple[Path, Path]:
        """Where films of this name are kept."""
        return folder / f"{name}-known.npy", folder / f"{name}-unseen.npy"

    def keep(self, files: tuple[Path, Path]) -> None:
        """Write them; a file that is there is a finished one."""
        for file, pictures in zip(files, (self.known, self.unseen), strict=True):
            partial = file.with_suffix(".partial.npy")
            np.save(partial, pictures)
            partial.replace(file)

    @classmethod
    def of(cls, files: tuple[Path, Path]) -> AblationFilms:
        """The inverse; what is not looked at is not read."""
        known, unseen = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
        return cls(known, unseen)


def take_films(
    files: tuple[Path, Path],
    known: Sequence[StudyBone],
    held: Sequence[StudyBone],
    frame: StandardFrame,
    proportions: str,
    count: int,
    progress: Progress,
) -> None:
    """Take the films of an ablation, where they are not there yet.

    Parameters
    ----------
    files : see :meth:`AblationFilms.files`.
    known, held : bones to learn, and bones never to be seen.
    frame : the scale of the pictures, of all bones where `proportions` is "real"; "fill": each
        bone fills its picture.
    count : films of each known bone; of the others :data:`JUDGED` are taken.
    """
    if all(file.is_file() for file in files):
        return
    sets = []
    for group, key, films in ((known, 0, count), (held, 1, JUDGED)):
        rng = np.random.default_rng([0, 6, key])
        tasks = []
        for bone in group:
            poses = [random_pose(rng) for _ in range(films)]
            own = StandardFrame.for_length(bone.record.length_mm, frame.rows)
            tasks.append((bone.sample, poses, frame if proportions == "real" else own))
        sets.append(_taken(tasks, progress))
    AblationFilms(*sets).keep(files)


def _taken(tasks: Sequence[_Task], progress: Progress) -> NDArray[np.uint8]:
    """(bones, films, 2, rows, columns) of one task a bone, on all cores where it is worth it."""
    pairs = sum(len(poses) for _, poses, _ in tasks)
    count = cores() if pairs > _FEW else 1
    parts = [
        (bone, poses[first : first + _FILMS_OF_A_TASK], frame)
        for bone, poses, frame in tasks
        for first in range(0, len(poses), _FILMS_OF_A_TASK)
    ]
    shown = in_order(_films_of, parts, count, lambda n: progress("Taking X-rays", n, len(parts)))
    return np.concatenate(shown).reshape(len(tasks), -1, *shown[0].shape[1:])


def _films_of(
    bone: SampleBone, poses: Sequence[PairPose], frame: StandardFrame
) -> NDArray[np.uint8]:
    """(films, 2, rows, columns) plain pictures of a bone."""
    return np.asarray(render_set([bone], [poses], frame)[0])

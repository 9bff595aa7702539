"""What the distances of a bank's fingerprints prove, learnt from films that are not enrolled.

A network keeps films of the bones it has learnt nearer together, and farther from others, than
those of bones it has not. What such distances prove says little about a stranger: so each bone that
was in the training is stood in for by a changed copy of it, which was not.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from osteoprint.bank.calibrations import Calibrations
from osteoprint.bank.evidence import Calibration
from osteoprint.bank.records import BoneRecord
from osteoprint.bank.search import Fingerprints, bone_distances, squared_distance
from osteoprint.ct.variation import Variation
from osteoprint.errors import OsteoprintError
from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.gallery import gallery_pictures
from osteoprint.fingerprint.model import Model
from osteoprint.fingerprint.samples import SampleBone, from_bytes, probe_poses, varied_bone
from osteoprint.xray.standard import StandardFrame

# Pairs of films, at turns between the enrolled ones, from which the thresholds are learnt: so many
# altogether that one that was badly read does not decide, and of each bone within these limits.
_ALTOGETHER, _LEAST, _MOST = 400, 8, 24
# Each bone's pairs are compared with those of so many others, drawn.
_STRANGERS = 50
_PRESETS = ("ideal", "clinic")
# A change may be so odd that a bone cannot be seen on its own films: another is drawn.
_TRIES = 5


@dataclass(frozen=True, eq=False)
class Shown:
    """Films from which thresholds are learnt, of one bone or of a changed copy of it.

    Attributes
    ----------
    probes : (pairs, 2, rows, columns) float32, as they may come: plain ones, and a clinic's.
    own : (views, 2, rows, columns) uint8 that the copy is enrolled with; None of the bone itself.
    """

    probes: NDArray[np.float32]
    own: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """A bone, or its changed copy, as a bank is asked about it.

    Attributes
    ----------
    record : the bone of the bank.
    own : (views, d) fingerprints that the bone, or the copy, is enrolled with.
    probes : (pairs, d) fingerprints of other films of it.
    changed : whether a changed copy stands in.
    """

    record: BoneRecord
    own: NDArray[np.float32]
    probes: NDArray[np.float32]
    changed: bool


def pairs_of_each(bones: int) -> int:
    """How many pairs of films of each of so many bones thresholds are learnt from."""
    return min(max(-(-_ALTOGETHER // bones), _LEAST), _MOST)


def show(bone: SampleBone, picture: StandardFrame, pairs: int, seed: int = 0) -> Shown:
    """Films of a bone; the same for the same bone, `picture`, `pairs` and ``seed``.

    Parameters
    ----------
    bone : of the bank.
    picture : the network's.
    pairs : how many, see :func:`pairs_of_each`.

    Raises what films raise where the bone cannot be seen on its own plain films.
    """
    return Shown(_probes(bone, picture, pairs, np.random.default_rng([seed, 3, _digest(bone)])))


def show_changed(
    bone: SampleBone,
    picture: StandardFrame,
    pairs: int,
    lengths_mm: tuple[float, float],
    seed: int = 0,
) -> Shown:
    """The same of a changed copy of the bone, which is enrolled for the occasion.

    ``lengths_mm`` are the least and the greatest that the copy may have. Raises what films raise,
    where none of several copies can be seen on its own plain films.
    """
    attempt = 0
    while True:
        attempt += 1
        drawn = np.random.default_rng([seed, 9, _digest(bone), attempt])
        copy = varied_bone(bone, Variation.draw(bone.frame.length_mm, drawn, lengths_mm))
        try:
            own = gallery_pictures(copy, picture, seed)
            return replace(show(copy, picture, pairs, seed), own=own)
        except OsteoprintError:
            if attempt == _TRIES:
                raise


def ask(model: Model, record: BoneRecord, own: NDArray[np.float32], shown: Shown) -> Asked:
    """The fingerprints of films; ``own`` are those, (views, d), that the bone is enrolled with."""
    changed = shown.own is not None
    enrolled = model.embed(from_bytes(shown.own)) if shown.own is not None else own
    return Asked(record, enrolled, model.embed(shown.probes), changed)


def calibrations(asked: Sequence[Asked], fingerprints: Fingerprints) -> Calibrations | None:
    """What distances prove: in the whole bank and, of several kinds of bone, among each.

    Parameters are those of :func:`to_the_bank`. A kind of which there is one individual has none
    of its own. None where there is one individual alone.
    """
    nearest = to_the_bank(asked, fingerprints)
    if nearest is None:
        return None
    kinds: dict[str, Calibrations] = {}
    if len(names := sorted({each.record.bone for each in asked})) > 1:
        for name in names:
            alike = [each for each in asked if each.record.bone == name]
            among = fingerprints.only([each.record.id for each in alike])
            own = to_the_bank(alike, among)
            if own is not None:
                kinds[name] = Calibrations(own, between_pairs(alike))
    return Calibrations(nearest, between_pairs(asked), kinds)


def to_the_bank(asked: Sequence[Asked], fingerprints: Fingerprints) -> Calibration | None:
    """What the squared distance to the nearest of a bone's enrolled views proves.

    A stranger's films find the nearest bone of all others. One person's left and right are nearly
    alike, and so are a bone and its changed copy: none is a stranger to another. None where there
    is one individual alone.

    Parameters
    ----------
    asked : each bone of the bank, or some; all bones of `fingerprints` that belong to people who
        are asked about have to be among them.
    fingerprints : of the bank's bones.
    """
    people = {a.record.id: a.record.individual for a in asked}
    person = np.array([people.get(bone, "") for bone in fingerprints.bones])
    genuine, impostor = [], []
    for each in asked:
        genuine.append(squared_distance(each.probes[:, None], each.own[None]).min(axis=1))
        others = bone_distances(each.probes, fingerprints)[:, person != each.record.individual]
        if not others.shape[1]:
            return None
        impostor.append(others.min(axis=1))
    groups = np.repeat(np.arange(len(asked)), [len(own) for own in genuine])
    return Calibration.fit(
        np.concatenate(genuine),
        np.concatenate(impostor),
        genuine_groups=groups,
        impostor_groups=groups,
        rng=np.random.default_rng(0),
    )


def between_pairs(asked: Sequence[Asked]) -> Calibration:
    """What the squared distance between two film pairs proves, neither of them enrolled.

    A nearest of many views lies nearer than one pair does, strangers' most of all: what was learnt
    from it would call too many pairs of one bone two bones. Strangers are of the same kind and
    side, if there are any: others are too easily told.
    """
    rng = np.random.default_rng(2)
    genuine, impostor = [], []
    for one, each in enumerate(asked):
        bone, own = each.record, each.probes
        apart = squared_distance(own[:, None], own[None])
        genuine.append(apart[np.triu_indices(len(apart), 1)])
        strangers = [other for other in asked if other.record.individual != bone.individual]
        alike = [o for o in strangers if (o.record.bone, o.record.side) == (bone.bone, bone.side)]
        chosen = alike or strangers
        for index in rng.permutation(len(chosen))[:_STRANGERS]:
            other = chosen[index].probes
            impostor.append((one, squared_distance(own[:, None], other[None]).ravel()))
    return Calibration.fit(
        np.concatenate(genuine),
        np.concatenate([apart for _, apart in impostor]),
        genuine_groups=np.repeat(np.arange(len(asked)), [len(apart) for apart in genuine]),
        impostor_groups=np.repeat([one for one, _ in impostor], [len(a) for _, a in impostor]),
        rng=np.random.default_rng(1),
    )


def _probes(
    bone: SampleBone, picture: StandardFrame, pairs: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    presets = itertools.cycle(_PRESETS)
    return np.stack([
        read_pair(bone, pose, picture, preset, rng, or_plain=True)
        for pose, preset in zip(probe_poses(pairs, rng), presets, strict=False)
    ])  # fmt: skip


def _digest(bone: SampleBone) -> int:
    """A number of this bone alone; a changed copy has its bone's."""
    return int.from_bytes(hashlib.sha256(bone.identifier.encode()).digest()[:8], "big")

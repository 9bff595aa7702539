"""What a bone is enrolled with: plain films of it at even turns, and films as a clinic takes them.

A network brings films of a clinic near to plain ones of the same bone, but not onto them: what is
asked about is nearest to what was taken alike.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.samples import (
    GALLERY_TURNS_DEG,
    SampleBone,
    gallery_poses,
    pose_about,
    render_set,
    to_bytes,
)
from osteoprint.xray.standard import StandardFrame

# Turns of the bone at which a clinic's pairs are taken; each film is off by itself, too.
CLINIC_TURNS_DEG = (-18.0, -9.0, 0.0, 9.0, 18.0)
# Names of all views, in the order of :func:`gallery_pictures`.
GALLERY_KEYS = (
    *(f"z{turn:+03.0f}" for turn in GALLERY_TURNS_DEG),
    *(f"z{turn:+03.0f}_clinic" for turn in CLINIC_TURNS_DEG),
)


def gallery_pictures(bone: SampleBone, picture: StandardFrame, seed: int = 0) -> NDArray[np.uint8]:
    """(views, 2, rows, columns) uint8, see ``samples.to_bytes``: the views of ``GALLERY_KEYS``.

    The same for the same bone, whatever else is enrolled. Raises FilmError where the bone cannot
    be seen on its own plain films.
    """
    digest = hashlib.sha256(bone.identifier.encode()).digest()
    rng = np.random.default_rng([seed, 8, int.from_bytes(digest[:8], "big")])
    plain = render_set([bone], [gallery_poses()], picture)[0]
    taken = [
        to_bytes(read_pair(bone, pose_about(turn, rng), picture, "clinic", rng, or_plain=True))
        for turn in CLINIC_TURNS_DEG
    ]
    return np.concatenate([plain, np.stack(taken)])

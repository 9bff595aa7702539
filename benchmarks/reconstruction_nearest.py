"""The nearest known bone by fingerprint, on the films of the reconstruction benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from identification_scene import study_bones
from osteoprint.fingerprint.model import Model
from osteoprint.fingerprint.samples import (
    from_bytes,
    gallery_poses,
    pair_pictures,
    render_set,
)
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.study.experiment import train_on
from osteoprint.study.training_films import frame_for
from osteoprint.xray.film_pair import FilmPair
from reconstruction_scene import Bone

_TRAINED: dict[tuple[str, ...], tuple[Model, np.ndarray]] = {}


def nearest_by_fingerprint(known: Sequence[Bone], pairs: Sequence[FilmPair]) -> list[int]:
    """Which known bone each pair's fingerprint lies nearest to; the network is trained once."""
    key = tuple(b.name for b in known)
    if key not in _TRAINED:
        _TRAINED[key] = _trained(known)
    model, gallery = _TRAINED[key]
    picks = []
    for pair in pairs:
        shown = pair_pictures(
            (pair.ap.radiograph, pair.ml.radiograph), model.card.frame, stretches=pair.stretches
        )
        embedded = model.of_shape(model.embed(shown[None]))[0]
        picks.append(int(((gallery - embedded) ** 2).sum(axis=1).argmin()))
    return picks


def _trained(known: Sequence[Bone]) -> tuple[Model, np.ndarray]:
    """A network trained on the known bones, and (bones, s) what their shapes are compared by."""
    frame = frame_for([b.frame.length_mm for b in known])
    bones = study_bones(known, 0, frame)
    model = train_on(bones, frame, TrainingSettings())
    pictures = render_set([b.sample for b in bones], [gallery_poses() for _ in bones], frame)
    flat = from_bytes(pictures.reshape(-1, *pictures.shape[2:]))
    return model, model.shape_of_views(model.embed(flat).reshape(*pictures.shape[:2], -1))

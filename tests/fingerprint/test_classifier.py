"""Classifiers on points whose classes are plain, and a small network taught three bones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from osteoprint.errors import ModelError
from osteoprint.fingerprint.classifier import TransferSettings, classified, named, train_namer
from osteoprint.fingerprint.samples import from_bytes


@pytest.mark.parametrize("kind", ["k-NN", "SVM"])
def test_clusters_are_told_apart(kind) -> None:
    rng = np.random.default_rng(0)
    middles = np.eye(4, 8, dtype=np.float32)
    labels = np.repeat(np.arange(4), 6)
    known = middles[labels] + rng.normal(0, 0.05, (24, 8)).astype(np.float32)
    asked = middles + rng.normal(0, 0.05, (4, 8)).astype(np.float32)
    assert classified(kind, known, labels, asked).tolist() == [0, 1, 2, 3]


def test_a_bone_with_few_fingerprints_is_outvoted_by_many_neighbours() -> None:
    known = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 1, 2, 2, 2]]
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    assert classified("k-NN", known, labels, known[:1], neighbours=2).tolist() == [0]
    assert classified("k-NN", known, labels, known[:1], neighbours=99).tolist() != [0]


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Three bones that differ by where a bar lies; four views each."""
    rng = np.random.default_rng(1)
    out = np.zeros((3, 4, 2, 64, 32), np.uint8)
    for bone in range(3):
        out[bone, :, :, 8 + 16 * bone : 24 + 16 * bone, 8:24] = 160
    return (out + rng.integers(0, 20, out.shape)).astype(np.uint8)


SETTINGS = TransferSettings(
    "resnet10t", "all", "adam", 1e-3, steps=60, batch=12, pretrained=False, seed=2
)


def test_a_network_learns_the_names_of_three_bones(pictures) -> None:
    namer = train_namer(pictures, SETTINGS)
    told = named(namer, from_bytes(pictures.reshape(-1, *pictures.shape[2:])))
    assert (told == np.repeat(np.arange(3), 4)).mean() > 0.9


def test_the_head_alone_leaves_the_backbone_as_it_was(pictures) -> None:
    none = train_namer(pictures, dataclasses.replace(SETTINGS, steps=0))
    head = train_namer(
        pictures,
        dataclasses.replace(SETTINGS, trained="head", optimiser="sgd", learning_rate=0.01, steps=2),
    )
    before, after = none.state_dict(), head.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_weights_that_cannot_be_had_are_said_in_one_line(pictures, monkeypatch) -> None:
    import timm

    def offline(*_: object, pretrained: bool = False, **kwargs: object) -> object:
        if pretrained:
            raise OSError("no route to host")
        return create(*_, **kwargs)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    settings = dataclasses.replace(SETTINGS, pretrained=True)
    with pytest.raises(ModelError, match="go online once, or train from scratch"):
        train_namer(pictures, settings)
    with pytest.raises(ModelError, match="two bones"):
        train_namer(pictures[:1], SETTINGS)

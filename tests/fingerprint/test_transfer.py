"""A small network of the literature taught the names of three bones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from osteoprint.errors import ModelError
from osteoprint.fingerprint.samples import from_bytes
from osteoprint.fingerprint.transfer import TransferSettings, named, train_namer, train_namers


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
    way = dataclasses.replace(SETTINGS, trained="head", optimiser="sgd", learning_rate=0.01)
    none = train_namer(pictures, dataclasses.replace(way, steps=0))
    head = train_namer(pictures, dataclasses.replace(way, steps=2))
    before, after = none.state_dict(), head.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_head_on_a_network_from_scratch_learns_from_what_that_happens_to_see(pictures) -> None:
    way = dataclasses.replace(SETTINGS, trained="head", learning_rate=0.01, steps=150)
    told = named(train_namer(pictures, way), from_bytes(pictures.reshape(-1, 2, 64, 32)))
    assert (told == np.repeat(np.arange(3), 4)).mean() > 0.9


def test_heads_that_learn_beside_each_other_learn_what_each_would_alone(pictures) -> None:
    head = dataclasses.replace(SETTINGS, trained="head", steps=3)
    ways = [
        dataclasses.replace(head, optimiser="sgd", learning_rate=0.01),
        dataclasses.replace(head, learning_rate=0.01),
        dataclasses.replace(SETTINGS, steps=1),
        dataclasses.replace(SETTINGS, steps=1),
        dataclasses.replace(head, backbone="resnet14t"),
    ]
    together = list(train_namers(pictures, ways))
    assert [way for way, _ in together] == ways
    assert together[0][1].backbone is together[1][1].backbone
    # Of all layers, each trains its own, though both be told the same.
    assert together[2][1].backbone is not together[3][1].backbone
    for way, namer in together:
        alone = train_namer(pictures, way).state_dict()
        assert all(value.equal(alone[name]) for name, value in namer.state_dict().items())


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

"""The network in other programs' hands gives the same fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from osteoprint.errors import ModelError
from osteoprint.fingerprint.encoder import Encoder, Network
from osteoprint.fingerprint.exchange import export_onnx
from osteoprint.fingerprint.model import Model, ModelCard
from osteoprint.xray.standard import StandardFrame


def some_model(network: Network) -> Model:
    card = ModelCard(network, StandardFrame(96, 32, 4.0), "triplet", {"bones": []}, {})
    return Model(Encoder(network).eval(), card)


@pytest.mark.parametrize(
    "network",
    [
        Network(contrast=True),
        Network(shape_share=0.25, shape_weight=0.4, looks=3),
        Network("resnet10t", 32),
    ],
)
def test_onnx_gives_the_same_fingerprints(network: Network, tmp_path: Path, capsys) -> None:
    import onnxruntime

    model = some_model(network)
    export_onnx(model, tmp_path / "m.onnx")
    assert capsys.readouterr().out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for pairs in (1, 5):
        pictures = np.random.default_rng(pairs).random((pairs, 2, 96, 32), np.float32)
        (given,) = session.run(["fingerprints"], {"pictures": pictures})
        assert np.abs(given - model.embed(pictures)).max() <= 1e-5
    card = json.loads(session.get_modelmeta().custom_metadata_map["osteoprint"])
    assert card["network"]["backbone"] == network.backbone


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"end it in \.onnx"):
        export_onnx(some_model(Network()), tmp_path / "m.pt")

"""Training: seeded, resumable to the bit, and models that survive the disk."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from osteoprint.errors import ModelError
from osteoprint.fingerprint import training as training_module
from osteoprint.fingerprint.checkpoint import Checkpoint
from osteoprint.fingerprint.encoder import _MOVES, Encoder, LocalContrast, Network
from osteoprint.fingerprint.model import Model, ModelCard, load_model, save_model
from osteoprint.fingerprint.samples import from_bytes, to_bytes, vary
from osteoprint.fingerprint.settings import DEFAULT_NETWORK, TrainingSettings
from osteoprint.fingerprint.shape_numbers import SHAPE_WEIGHT
from osteoprint.fingerprint.training import train
from osteoprint.xray.standard import StandardFrame

FRAME = StandardFrame(48, 16, 9.0)
# Of pictures as small as this there are few places.
SETTINGS = TrainingSettings(
    dataclasses.replace(DEFAULT_NETWORK, grid=(6, 2)), steps=7, bones_per_batch=3,
    views_per_bone=2, loss="triplet", seed=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures():
    """Three bones that differ by where a bar lies; four views each."""
    rng = np.random.default_rng(1)
    out = np.zeros((3, 4, 2, 48, 16), np.uint8)
    for bone in range(3):
        out[bone, :, :, 6 + 12 * bone : 18 + 12 * bone, 4:12] = 160
    return (out + rng.integers(0, 20, out.shape)).astype(np.uint8)


def weights(model):
    return {k: v.clone() for k, v in model.encoder.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_equal_seeds_give_equal_networks_and_others_do_not(pictures):
    one, two = (train(pictures, ["a", "b", "c"], FRAME, SETTINGS) for _ in range(2))
    assert same(weights(one), weights(two))
    other = dataclasses.replace(SETTINGS, seed=6)
    assert not same(weights(one), weights(train(pictures, ["a", "b", "c"], FRAME, other)))


def test_a_training_that_was_killed_ends_as_if_it_had_not_been(pictures, tmp_path, monkeypatch):
    names, checkpoint = ["a", "b", "c"], tmp_path / "run.checkpoint"
    undisturbed = weights(train(pictures, names, FRAME, SETTINGS))
    monkeypatch.setattr(Checkpoint.save_sometimes, "__defaults__", (0.0,))
    for killed_at in (2, 1, 1, 1, 1):
        calls = 0

        def die(_share, _loss, at=killed_at):
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(pictures, names, FRAME, SETTINGS, checkpoint=checkpoint, progress=die)
        assert checkpoint.is_file()
    resumed = train(pictures, names, FRAME, SETTINGS, checkpoint=checkpoint)
    assert same(weights(resumed), undisturbed)
    # Whoever is stopped before the model is kept has lost nothing.
    steps = []
    again = train(pictures, names, FRAME, SETTINGS, checkpoint=checkpoint,
                  progress=lambda share, _: steps.append(share))  # fmt: skip
    assert same(weights(again), undisturbed)
    assert not steps


def test_a_network_can_be_refined_and_says_what_it_was(pictures):
    names = ["a", "b", "c"]
    first = train(pictures, names, FRAME, SETTINGS)
    short = dataclasses.replace(SETTINGS, steps=1, learning_rate=0.0, weight_decay=0.0)
    refined = train(pictures, ["d", "e", "f"], FRAME, short, start=first)
    learnt = [k for k, _ in first.encoder.named_parameters()]
    assert all(torch.equal(weights(refined)[k], weights(first)[k]) for k in learnt)
    assert refined.card.trained_on["bones"] == ["d", "e", "f"]
    assert refined.card.trained_on["before"] == first.card.trained_on
    with pytest.raises(ModelError, match="another network"):
        train(pictures, names, FRAME, dataclasses.replace(short, network=Network()), start=first)


def test_a_network_trained_for_shapes_can_be_gone_on_with(pictures):
    """What acts only in use is another in its card than in the settings, and hinders nothing."""
    names, rms = ["a", "b", "c"], np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]])
    settings = dataclasses.replace(SETTINGS, loss="shape", steps=2, neighbours=0)
    first = train(pictures, names, FRAME, settings, rms_mm=rms)
    assert first.card.network.shape_weight == SHAPE_WEIGHT
    again = train(pictures, names, FRAME, settings, rms_mm=rms, start=first)
    assert again.card.network == first.card.network
    # Where no shapes are compared none are fitted, and they weigh what they did.
    apart = np.where(np.eye(3, dtype=bool), 0.0, np.inf)
    unfitted = train(pictures, names, FRAME, settings, rms_mm=apart)
    assert unfitted.card.network.shape_weight is None


def test_equal_weights_that_are_used_otherwise_are_another_file(tmp_path):
    """A bank knows a model by its file: fingerprints of the two never mix."""
    network = Network(dimension=8, reductions=(), shape_share=0.25)
    encoder, seen = Encoder(network), set()
    for change in ({}, {"looks": 3}, {"shape_weight": 0.4}):
        card = ModelCard(dataclasses.replace(network, **change), FRAME, "shape", {"bones": []}, {})
        save_model(Model(encoder, card), tmp_path / "m.safetensors")
        seen.add((tmp_path / "m.safetensors").read_bytes())
        assert load_model(tmp_path / "m.safetensors").card.network == card.network
    assert len(seen) == 3


def test_a_damaged_checkpoint_is_refused(pictures, tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    checkpoint.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="is damaged"):
        train(pictures, ["a", "b", "c"], FRAME, SETTINGS, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == b"no tensors"


def test_a_checkpoint_of_other_settings_is_refused(pictures, tmp_path, monkeypatch):
    checkpoint = tmp_path / "run.checkpoint"
    monkeypatch.setattr(Checkpoint.save_sometimes, "__defaults__", (0.0,))
    train(pictures, ["a", "b", "c"], FRAME, SETTINGS, checkpoint=checkpoint)
    other = dataclasses.replace(SETTINGS, margin=0.3)
    with pytest.raises(ModelError, match="other settings"):
        train(pictures, ["a", "b", "c"], FRAME, other, checkpoint=checkpoint)


def test_training_tells_three_bones_apart(pictures):
    settings = dataclasses.replace(SETTINGS, steps=30)
    model = train(pictures, ["a", "b", "c"], FRAME, settings)
    embedded = model.embed(from_bytes(pictures.reshape(-1, 2, 48, 16))).reshape(3, 4, -1)
    cosine = np.einsum("apd,bvd->apbv", embedded, embedded)
    own = cosine[np.arange(3), :, np.arange(3)].min()
    other = max(cosine[a, :, b].max() for a in range(3) for b in range(3) if a != b)
    assert own > other
    assert model.card.figures["triplet accuracy on training bones"] > 0.9


def test_too_few_bones_and_shape_without_surfaces_are_errors(pictures):
    with pytest.raises(ModelError, match="two bones"):
        train(pictures[:1], ["a"], FRAME, SETTINGS)
    shape = dataclasses.replace(SETTINGS, loss="shape")
    with pytest.raises(ModelError, match="surfaces"):
        train(pictures, ["a", "b", "c"], FRAME, shape)


def test_fingerprints_have_unit_length_and_do_not_depend_on_their_company(pictures):
    model = train(pictures, ["a", "b", "c"], FRAME, SETTINGS)
    images = from_bytes(pictures[0])
    together = model.embed(images)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(model.embed(images[2:3])[0], together[2], atol=1e-5)


def test_a_model_survives_the_disk(pictures, tmp_path):
    model = train(pictures, ["a", "b", "c"], FRAME, SETTINGS)
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    assert same(weights(back), weights(model))
    assert back.card == model.card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.safetensors"]


def test_a_card_of_another_format_is_refused(pictures, tmp_path):
    save_model(train(pictures, ["a", "b", "c"], FRAME, SETTINGS), tmp_path / "m.safetensors")
    card = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(ModelError, match="format 99"):
        load_model(tmp_path / "m.safetensors")


def test_a_timm_network_can_stand_in():
    encoder = Encoder(Network("resnet10t", 64))
    encoder.eval()
    with torch.inference_mode():
        out = encoder(torch.rand(2, 2, 96, 32))
    assert out.shape == (2, 64)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(2))


def test_bytes_round_trip():
    pictures = np.linspace(0, 1.5, 256, dtype=np.float32)
    np.testing.assert_allclose(from_bytes(to_bytes(pictures)), pictures, atol=0.5 / 170 + 1e-6)


def test_variation_is_seeded_and_keeps_size():
    picture = torch.zeros(1, 2, 96, 32)
    picture[:, :, 20:76, 10:22] = 1.0
    one = vary(picture, torch.Generator().manual_seed(3))
    two = vary(picture, torch.Generator().manual_seed(3))
    assert torch.equal(one, two)
    assert not torch.equal(one, vary(picture, torch.Generator().manual_seed(4)))
    rows = (one[0, 0, :, 12:20].mean(dim=1) > 0.5).sum()
    assert abs(int(rows) - 56) <= 1


@pytest.mark.parametrize("pooling", ["grid", "whole"])
@pytest.mark.parametrize("views", ["channels", "side by side"])
def test_every_way_to_build_a_network_gives_unit_vectors(pooling, views):
    encoder = Encoder(Network("vgg11", 16, (32,), pooling, views, contrast=True)).eval()
    with torch.inference_mode():
        out = encoder(torch.rand(2, 2, 64, 32))
    assert out.shape == (2, 16)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(2))


def test_numbers_for_shapes_have_their_share_of_the_length():
    network = Network(contrast=True, reductions=(), shape_share=0.25)
    encoder = Encoder(network).eval()
    with torch.inference_mode():
        prints = encoder(pictures := torch.rand(3, 2, 48, 16)).numpy()
    assert prints.shape == (3, 128)
    for part, share in ((prints[:, :96], 0.75), (prints[:, 96:], 0.25)):
        np.testing.assert_allclose((part**2).sum(axis=1), share, rtol=1e-5)
    # They compare by these only where the loss was about shapes and they could be fitted.
    for loss, wanted in (("shape", 2.0 * prints[:, 96:]), ("triplet", prints)):
        fitted = dataclasses.replace(network, shape_weight=0.25)
        card = ModelCard(fitted, FRAME, loss, {"bones": []}, {})
        np.testing.assert_allclose(Model(encoder, card).of_shape(prints), wanted, atol=1e-6)
    unfitted = Model(encoder, ModelCard(network, FRAME, "shape", {"bones": []}, {}))
    np.testing.assert_allclose(unfitted.of_shape(prints), prints, atol=1e-6)
    # In use they may have another share than in training; what is within each stays.
    encoder.network = dataclasses.replace(network, shape_weight=0.4)
    encoder.eval()
    with torch.inference_mode():
        weighed = encoder(pictures).numpy()
    np.testing.assert_allclose(weighed[:, :96], prints[:, :96] * (0.6 / 0.75) ** 0.5, atol=1e-6)
    np.testing.assert_allclose(weighed[:, 96:], prints[:, 96:] * (0.4 / 0.25) ** 0.5, atol=1e-6)
    trained = encoder.train()(pictures).detach().numpy()
    np.testing.assert_allclose((trained[:, 96:] ** 2).sum(axis=1), 0.25, rtol=1e-5)
    # Of several views of a bone, the mean of what each says.
    model = Model(encoder, ModelCard(fitted, FRAME, "shape", {"bones": []}, {}))
    mean = model.of_shape(prints).mean(axis=0)
    told = model.shape_of_views(np.stack([prints, prints]))
    np.testing.assert_allclose(told, [mean / np.linalg.norm(mean)] * 2, atol=1e-6)
    # Of one number none can be spared.
    assert Network(dimension=1, shape_share=0.25).shape_numbers == 0


def test_a_fingerprint_of_several_looks_is_the_mean_of_those_of_moved_pictures():
    """Taken apart by hand: each film moved by whole pixels, what comes in is black."""
    network = Network(contrast=True, reductions=(), shape_share=0.25, looks=3)
    torch.manual_seed(0)
    encoder, pictures = Encoder(network).eval(), torch.rand(2, 2, 48, 16)

    def by_hand(ap: tuple[int, int], ml: tuple[int, int]) -> torch.Tensor:
        out = torch.zeros_like(pictures)
        for view, (down, right) in enumerate((ap, ml)):
            for row in range(48):
                for column in range(16):
                    if 0 <= row - down < 48 and 0 <= column - right < 16:
                        out[:, view, row, column] = pictures[:, view, row - down, column - right]
        return encoder.once(out)

    with torch.inference_mode():
        mean = (by_hand((0, 0), (0, 0)) + by_hand(*_MOVES[1]) + by_hand(*_MOVES[2])) / 3
        told = encoder(pictures)
        assert not torch.allclose(told, encoder.once(pictures), atol=1e-3)
    for part, share in ((slice(0, 96), 0.75), (slice(96, 128), 0.25)):
        wanted = torch.nn.functional.normalize(mean[:, part], dim=1) * share**0.5
        torch.testing.assert_close(told[:, part], wanted, atol=1e-5, rtol=1e-4)


def test_training_looks_once():
    encoder = Encoder(Network(reductions=(), looks=3)).train()
    seen = []
    encoder.backbone.register_forward_hook(lambda *_: seen.append(1))
    encoder(torch.rand(2, 2, 48, 16))
    assert len(seen) == 1


def test_the_papers_networks_end_in_their_last_connected_layer():
    """Up to it, then three pairs of connected layer and norm: more than 1000 numbers, then d."""
    for name, features in (("vgg16", 4096), ("resnet50", 2048)):
        encoder = Encoder(Network(name, 128, (512, 256), "whole", "side by side"))
        shapes = [tuple(layer.weight.shape) for layer in encoder.reductions]
        assert shapes == [(512, features), (256, 512), (128, 256)]


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Network("resnet-of-my-own"), "no network that timm knows"),
        (Network("vit_tiny_patch16_224"), "into features"),
        (Network(pooling="whole"), "no fully connected layer"),
    ],
)
def test_what_is_no_network_is_said(network, said):
    with pytest.raises(ModelError, match=said):
        Encoder(network)


def test_local_contrast_knows_no_exposure():
    picture = torch.rand(1, 2, 96, 32)
    contrast = LocalContrast()
    torch.testing.assert_close(contrast(picture), contrast(3 * picture), rtol=1e-3, atol=1e-3)
    assert float(contrast(torch.zeros(1, 2, 96, 32)).abs().max()) == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "multi-similarity"},
        {"optimiser": "sgd", "learning_rate": 0.05},
        {"mining": "random", "squared": False, "tertiary": True},
        {"mining": "semihard", "backbone_rate": 0.1},
        {"precision": "bf16-mixed"},
    ],
)
def test_every_setting_trains_and_repeats(pictures, change):
    settings = dataclasses.replace(SETTINGS, steps=3, **change)
    one, two = (train(pictures, ["a", "b", "c"], FRAME, settings) for _ in range(2))
    assert same(weights(one), weights(two))
    untouched = dataclasses.replace(settings, steps=0)
    assert not same(weights(one), weights(train(pictures, ["a", "b", "c"], FRAME, untouched)))


def test_a_loss_nobody_knows_is_refused(pictures):
    with pytest.raises(ModelError, match="ntxent"):
        train(pictures, ["a", "b", "c"], FRAME, dataclasses.replace(SETTINGS, loss="best"))


def test_the_card_says_which_pictures_and_how_far_bones_lie_apart(pictures):
    one = train(pictures, ["a", "b", "c"], FRAME, SETTINGS).card
    other = pictures.copy()
    other[0, 0, 0, 0, 0] ^= 1
    two = train(other, ["a", "b", "c"], FRAME, dataclasses.replace(SETTINGS, steps=1)).card
    assert len(one.trained_on["data_sha256"]) == 64
    assert one.trained_on["data_sha256"] != two.trained_on["data_sha256"]
    assert 0 < one.figures["threshold on training bones"] < 4


def test_tensorboard_gets_every_step(pictures, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = []
    train(pictures, ["a", "b", "c"], FRAME, SETTINGS, log=tmp_path,
          progress=lambda _, loss: losses.append(loss))  # fmt: skip
    events = EventAccumulator(str(next(tmp_path.glob("*/events*")).parent))
    events.Reload()
    written = events.Scalars("loss")
    assert [e.step for e in written] == list(range(SETTINGS.steps))
    assert [e.value for e in written] == pytest.approx(losses, rel=1e-5)
    assert "triplet accuracy on training bones" in events.Tags()["scalars"]


def test_without_tensorboard_its_log_is_refused(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(training_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="tensorboard"):
        train(pictures, ["a", "b", "c"], FRAME, SETTINGS, log=tmp_path)
    assert not list(tmp_path.iterdir())


def test_time_that_was_used_before_an_interruption_counts(pictures, tmp_path):
    names, checkpoint = ["a", "b", "c"], tmp_path / "run.checkpoint"
    short = dataclasses.replace(SETTINGS, steps=3)
    train(pictures, names, FRAME, short, checkpoint=checkpoint)
    with safe_open(checkpoint, "pt") as file:
        said, state = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    assert float(said["seconds"]) >= 0
    # As if it had taken an hour; of a longer training with the same signature.
    longer = dataclasses.replace(short, steps=50, minutes=5.0)
    signature = json.loads(said["signature"]) | {"steps": 50}
    said |= {"seconds": "3600", "signature": json.dumps(signature, sort_keys=True)}
    save_file(state, checkpoint, metadata=said)
    assert train(pictures, names, FRAME, longer, checkpoint=checkpoint).card.figures["steps"] == 3


@pytest.mark.parametrize(
    "damage",
    [
        {"network": {"dimension": "128"}}, {"network": {"dimension": -1}},
        {"network": {"grid": [12]}}, {"network": {"grid": [6, 2, 1]}},
        {"network": {"looks": 99}}, {"network": {"shape_weight": 0.0}},
        {"network": {"backbone": 3}}, {"frame": {"rows": "many"}}, {"trained_on": {}},
        {"trained_on": ["a"]}, {"figures": None}, {"settings": 1}, {"scale": "any"}, [],
    ],
)  # fmt: skip
def test_a_damaged_card_is_refused(pictures, tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_model(train(pictures, ["a", "b", "c"], FRAME, SETTINGS), path)
    card = json.loads(path.with_suffix(".json").read_text())
    if isinstance(damage, dict):
        for key, value in damage.items():
            both = isinstance(value, dict) and value and key != "trained_on"
            card[key] = card[key] | value if both else value
    else:
        card = damage
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="card"):
        load_model(path)

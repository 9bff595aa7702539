"""All settings of a training in one file, or by the name of one that is known."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from osteoprint.errors import InputError, ModelError
from osteoprint.fingerprint.encoder import MOST_LOOKS, Network, backbone_of, check_network
from osteoprint.fingerprint.losses import OTHER_LOSSES
from osteoprint.fingerprint.settings import TrainingSettings, with_backbone
from osteoprint.xray import presets


def paper_training(backbone: str) -> TrainingSettings:
    """The paper's triplet network: a backbone up to its last fully connected layer, then three.

    AP and ML lie side by side in one picture. What the paper does not say (optimiser, steps) is
    chosen.
    """
    return TrainingSettings(
        network=Network(backbone, pooling="whole", views="side by side"),
        loss="triplet", mining="random", bones_per_batch=12, views_per_bone=4, neighbours=0,
        positive_candidates=1, steps=4000, optimiser="adam", learning_rate=1e-4, backbone_rate=0.1,
    )  # fmt: skip


# Sets of views of a bone that are compared, each step, before one is shown.
_MOST_CANDIDATES = 50

KNOWN = {
    f"paper-{name}": replace(paper_training(name), pretrained=True)
    for name in ("vgg16", "resnet50")
}


def read_training(source: str, usual: TrainingSettings) -> TrainingSettings:
    """The settings of a TOML file, or of that name; what it leaves out is as usual.

    The file has the fields of ``TrainingSettings``, those of ``Network`` in a table ``[network]``.
    Raises InputError for a file that cannot be read, a field that there is not, and a value that
    cannot be.
    """
    if source in KNOWN:
        return KNOWN[source]
    try:
        said = tomllib.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        names = " or ".join(KNOWN)
        fix = f"name a TOML file, or {names}"
        raise InputError(source, f"cannot be read as settings ({_first(error)})", fix) from None
    network = said.get("network")
    if isinstance(network, dict) and isinstance(backbone := network.get("backbone"), str):
        # What the file leaves out of the network is usual for its backbone.
        usual = replace(usual, network=with_backbone(usual.network, backbone))
    values = _with(asdict(usual), said, source)
    try:
        settings = TypeAdapter(TrainingSettings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(source, f"{where}: {first['msg']}", "mend this value") from None
    check_training(settings, source)
    return settings


def chosen(usual: TrainingSettings, network: Network | None, **said: Any) -> TrainingSettings:
    """What is usual, with what a command line says; None says nothing.

    ``network`` replaces the whole network, ``backbone`` that part of it; its pooling stays, its
    grid is as fine as what that backbone sees.
    Raises InputError as :func:`read_training`.
    """
    backbone = said.pop("backbone")
    used = network or usual.network
    if backbone is not None:
        used = with_backbone(used, backbone)
    settings = replace(usual, network=used, **{k: v for k, v in said.items() if v is not None})
    check_training(settings, "train")
    return settings


def check_training(settings: TrainingSettings, source: str) -> None:
    """Raise InputError for a value that no training can have."""
    at_least = {
        "bones_per_batch": 2, "views_per_bone": 2, "positive_candidates": 1, "neighbours": 0,
        "poses_per_variant": 2, "steps": 1, "devices": 1, "seed": 0, "margin": 0,
        "weight_decay": 0, "backbone_rate": 0, "variants_per_bone": 1,
        "network.dimension": 1, "network.reductions": 1, "network.grid": 1,
    }  # fmt: skip
    values = asdict(settings)
    values["network.dimension"] = settings.network.dimension
    values["network.grid"] = min(settings.network.grid)
    values["network.reductions"] = min(settings.network.reductions, default=1)
    for name, least in at_least.items():
        if values[name] is not None and not values[name] >= least:
            raise InputError(source, f"{name} is {values[name]}", f"give {least} or more")
    share = settings.network.shape_share
    if not 0.0 <= share <= 0.5:
        raise InputError(source, f"network.shape_share is {share}", "give 0 to 0.5")
    weight = settings.network.shape_weight
    if weight is not None and not 0.0 < weight < 1.0:
        raise InputError(
            source, f"network.shape_weight is {weight}", "give more than 0, less than 1"
        )
    if not 1 <= settings.network.looks <= MOST_LOOKS:
        raise InputError(
            source, f"network.looks is {settings.network.looks}", f"give 1 to {MOST_LOOKS}"
        )
    if not 0.0 <= settings.drawn <= 1.0:
        raise InputError(source, f"drawn is {settings.drawn}", "give 0 to 1")
    if settings.positive_candidates > _MOST_CANDIDATES:
        raise InputError(
            source,
            f"positive_candidates is {settings.positive_candidates}",
            f"give 1 to {_MOST_CANDIDATES}",
        )
    for name in ("learning_rate", "minutes"):
        if values[name] is not None and not values[name] > 0:
            raise InputError(source, f"{name} is {values[name]}", "give more than 0")
    if settings.devices > 1:
        # Each device is a process that runs the command again, films and all.
        raise InputError(source, "several devices are for programs that call train()", "give 1")
    if settings.accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError(source, "accelerator is 'cuda', and there is none", 'give "auto"')
    if not settings.presets:
        raise InputError(source, "presets are none", "name some")
    if settings.loss not in (known := ("shape", "triplet", *OTHER_LOSSES)):
        raise InputError(source, f"loss is {settings.loss!r}", f"use one of {', '.join(known)}")
    for name in settings.presets:
        try:
            presets.preset(name)
        except ValueError as error:
            raise InputError(source, str(error), "name one of them") from None


def with_weights(settings: TrainingSettings) -> tuple[TrainingSettings, str | None]:
    """The settings, from scratch where ImageNet weights cannot be had, and what is to be said.

    Asked before any work is done; what is fetched once is kept by the hub's client. Raises
    ModelError for a network that cannot be built, and for the compact one, which has none.
    """
    check_network(settings.network, pretrained=settings.pretrained)
    if not settings.pretrained:
        return settings, None
    try:
        backbone_of(settings.network, pretrained=True)
    except ModelError as error:
        said = f"{error.source}: {error.problem}; trained from scratch instead"
        return replace(settings, pretrained=False), said
    return settings, None


def _with(usual: dict[str, Any], said: dict[str, Any], source: str) -> dict[str, Any]:
    """What was said over what is usual, table by table."""
    out = dict(usual)
    for key, value in said.items():
        if key not in usual:
            raise InputError(source, f"knows no {key!r}", f"use: {', '.join(usual)}")
        table = isinstance(usual[key], dict)
        if table and not isinstance(value, dict):
            raise InputError(source, f"{key} is no table", f"write [{key}]")
        out[key] = _with(usual[key], value, source) if table else value
    return out


def _first(error: Exception) -> str:
    return str(error).splitlines()[0][:120]

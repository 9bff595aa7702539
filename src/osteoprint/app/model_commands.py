"""``render``, ``train``, ``enrol``: from bones to fingerprints."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from osteoprint.app.bank_commands import BankOption, JsonOption
from osteoprint.app.console import answer, steps


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(epilog="Example: osteoprint render --bank mybank --out xrays --protocol quick")(
        render
    )
    app.command(
        epilog="Example: osteoprint train --bank mybank --out model.safetensors --minutes 5"
    )(train)
    app.command(epilog="Example: osteoprint onnx model.safetensors --out model.onnx")(onnx)
    app.command(epilog="Example: osteoprint enrol --bank mybank")(enrol)


def render(
    bank: BankOption,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and their manifests.")],
    protocol: Annotated[
        Literal["paper", "quick"], typer.Option(help="paper: 900 pairs a bone; quick: 21.")
    ] = "quick",
    proportions: Annotated[
        Literal["real", "fill"],
        typer.Option(help="real: all bones at one scale; fill: each fills its own picture."),
    ] = "real",
    shards: Annotated[
        bool, typer.Option("--shards", help="Also pack each bone's pictures into one tar file.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a core.")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(help="Use the workers of this Dask scheduler: tcp://host:8786")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make artificial X-rays of every bone: AP and ML side by side, as PNG.

    A rendering that was stopped goes on where it was when it is called again.
    """
    from osteoprint.bank.store import Bank
    from osteoprint.study.dataset import render_bank
    from osteoprint.study.workers import cores, open_workers
    from osteoprint.xray.protocol import PROTOCOLS

    count = workers or cores()
    with steps() as progress, Bank.open(bank) as opened, open_workers(count, dask) as hands:
        done = render_bank(
            opened,
            out,
            PROTOCOLS[protocol],
            hands,
            progress,
            real_proportions=proportions == "real",
            shards=shards,
        )
    answer(
        {
            "folder": str(out),
            "pairs": done.pairs,
            "made_now": done.made,
            "protocol": protocol,
            "scale_error": done.worst_scale,
        },
        [
            f"{done.pairs} pairs in {out} ({done.made} made now)",
            f"scale object measured to within {done.worst_scale:.1%}",
        ],
        as_json=as_json,
    )


def train(
    out: Annotated[Path, typer.Option(help="The model: a .safetensors file.")],
    bank: Annotated[str | None, typer.Option(help="The bank: a folder.")] = None,
    phantoms: Annotated[
        bool,
        typer.Option(
            "--phantoms",
            help="Train on bones that the program makes instead of a bank's: a network for banks "
            "of bones of any size.",
        ),
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            help="All settings: a TOML file, or paper-vgg16 or paper-resnet50, the paper's triplet "
            "networks. Other options override it."
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="'compact' (the default), or the name of a timm network.")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="shape (the default): distances that follow the surfaces; triplet: the paper's; "
            "contrastive, multi-similarity, ntxent, circle."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Films and training together stop after so long.")
    ] = None,
    step_count: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Number of steps; by default 3000, of phantoms 2000, to refine 800.",
        ),
    ] = None,
    variants: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each bone, itself included; by default as many as make 720 altogether, of "
            "phantoms 24.",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(min=2, help="Film pairs of each variant; by default 10, of phantoms 6."),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Take every film when it is shown, none twice, instead of --pairs of each variant "
            "before: for machines of many cores.",
        ),
    ] = False,
    shards: Annotated[
        Path | None,
        typer.Option(help="Show the pictures that 'render --shards' put there, no variants."),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Begin with the network that comes with the program instead of at random: "
            "good after a few minutes.",
        ),
    ] = False,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained",
            help="Start from ImageNet weights (timm only); from scratch where they cannot be had.",
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Everything that is drawn; by default 0.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="A folder for TensorBoard: every step's loss.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from a checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a fingerprint network on the bones of a bank, or on phantoms."""
    from osteoprint.bank.store import Bank
    from osteoprint.errors import InputError, ModelError
    from osteoprint.fingerprint.model import SHIPPED, load_model, save_model
    from osteoprint.fingerprint.settings import TrainingSettings, refining
    from osteoprint.fingerprint.training import check_log
    from osteoprint.study.experiment import load_bones, train_on
    from osteoprint.study.phantom_network import PHANTOM_TRAINING, train_on_phantoms
    from osteoprint.study.training_config import chosen, read_training, with_weights
    from osteoprint.study.training_films import frame_for

    if phantoms == (bank is not None):
        raise InputError("train", "needs bones to train on", "give either --bank or --phantoms")
    usual = PHANTOM_TRAINING if phantoms else TrainingSettings()
    if config is not None:
        usual = read_training(config, usual)
    start = load_model(SHIPPED) if refine else None
    if start is not None:
        usual = refining(usual)
    settings = chosen(
        usual, network=None if start is None else start.card.network, backbone=backbone, loss=loss,
        minutes=minutes, steps=step_count, variants_per_bone=variants, poses_per_variant=pairs,
        fresh=fresh or None, pretrained=pretrained or None, seed=seed,
    )  # fmt: skip
    of_no_use = {
        "--minutes": phantoms and settings.minutes is not None,
        "--fresh": settings.fresh and (phantoms or shards is not None),
        "--shards": phantoms and shards is not None,
        "--variants": shards is not None and variants is not None,
        "--pairs": (settings.fresh or shards is not None) and pairs is not None,
        "--log": phantoms and log is not None,
        "--refine": refine and (phantoms or settings.pretrained or backbone is not None
                                or usual.network != TrainingSettings().network),
    }  # fmt: skip
    for option in (o for o, given in of_no_use.items() if given):
        fix = "give --steps" if option == "--minutes" else "leave it out"
        raise InputError(option, "is of no use beside the other options", fix)
    if out.suffix != ".safetensors":
        raise ModelError(out, "is not a .safetensors name", "end it in .safetensors")
    if out.is_dir():
        raise ModelError(out, "is a folder", "name a file")
    if log is not None:
        check_log()
    settings, lacking = with_weights(settings)
    checkpoint, films = out.with_suffix(".checkpoint"), out.with_suffix(".films")
    with steps() as progress, ExitStack() as stack:
        bones = []
        if bank is not None:
            bones = load_bones(stack.enter_context(Bank.open(bank)), progress)
        out.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            checkpoint.unlink(missing_ok=True)
            shutil.rmtree(films, ignore_errors=True)
        if phantoms:
            model = train_on_phantoms(settings, progress, checkpoint=checkpoint, films_folder=films)
        else:
            frame = frame_for([b.record.length_mm for b in bones])
            model = train_on(
                bones, frame, settings, progress,
                start=start, checkpoint=checkpoint, films_folder=films, shards=shards, log=log,
            )  # fmt: skip
        save_model(model, out, half=phantoms)
        checkpoint.unlink(missing_ok=True)
        shutil.rmtree(films, ignore_errors=True)
    lines = [f"{out}", *(f"  {name}: {value:.4g}" for name, value in model.card.figures.items())]
    warnings = [lacking] if lacking else []
    answer(
        {"model": str(out), "figures": model.card.figures, "warnings": warnings},
        [*lines, *(f"warning: {w}" for w in warnings)],
        as_json=as_json,
    )


def enrol(
    bank: BankOption,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model made by 'osteoprint train'; by default the one that comes with the "
            "program, which knows long bones of any size."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put the fingerprints of every bone into the bank, and calibrate what they prove."""
    from osteoprint.bank.store import Bank
    from osteoprint.fingerprint.model import SHIPPED, load_model
    from osteoprint.study.enrolment import enrol_bank

    path = model or SHIPPED
    loaded = load_model(path)
    with steps() as progress, Bank.open(bank, write=True) as opened:
        result = enrol_bank(opened, path, loaded, progress)
    lines = [f"{result['enrolled']} bones enrolled with model {result['model']}"]
    if result["threshold"] is not None:
        lines.append(
            f"threshold {result['threshold']:.4f}, equal error rate "
            f"{result['equal_error_rate']:.2%} on views between the enrolled ones"
        )
    for kind, threshold in result.get("threshold_by_kind", {}).items():
        lines.append(f"threshold {threshold:.4f} for {kind}")
    lines += [f"warning: {w}" for w in result["warnings"]]
    answer(json.loads(json.dumps(result)), lines, as_json=as_json)


def onnx(
    model: Annotated[Path, typer.Argument(help="A model made by 'osteoprint train'.")],
    out: Annotated[Path, typer.Option(help="The network for other programs: an .onnx file.")],
    as_json: JsonOption = False,
) -> None:
    """Write a fingerprint network as ONNX, its card inside, for programs without Python."""
    from osteoprint.fingerprint.exchange import export_onnx
    from osteoprint.fingerprint.model import load_model

    export_onnx(load_model(model), out)
    answer({"onnx": str(out)}, [str(out)], as_json=as_json)

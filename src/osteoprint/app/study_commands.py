"""``study``, ``demo``, ``doctor``: the experiments, the main job, and a look at the machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from osteoprint.app.bank_commands import BankOption, JsonOption
from osteoprint.app.console import answer, say, steps
from osteoprint.errors import InputError

# Options that a study would not look at; each line of an ablation sets its own.
_OF_NO_USE = {
    "identification": ("--preset", "--scale", "--repeats"),
    "reconstruction": ("--scale", "--repeats"),
    "ablation": ("--loss", "--backbone", "--minutes", "--steps", "--preset"),
    "paper": ("--preset", "--repeats"),
}


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(epilog="Example: osteoprint study reconstruction --bank mybank --out results")(
        study
    )
    app.command(epilog="Example: osteoprint demo --out demo")(demo)
    app.command(epilog="Example: osteoprint doctor")(doctor)


def study(
    what: Annotated[
        Literal["identification", "reconstruction", "ablation", "paper"],
        typer.Argument(
            help="Which question. Identification and reconstruction answer whose bone and what is "
            "nearest; reconstruction rebuilds the unseen bones by every method besides. Ablation: "
            "what matters to the network, one thing changed at a time. Paper: every table and "
            "figure of the paper this began with."
        ),
    ],
    bank: BankOption,
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")],
    unseen: Annotated[
        str, typer.Option(help="Names of the bones kept from the network, with commas.")
    ] = "",
    loss: Annotated[Literal["triplet", "shape"], typer.Option(help="What is minimised.")] = "shape",
    backbone: Annotated[str, typer.Option(help="'compact', or a timm network.")] = "compact",
    minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Time for films and training.")
    ] = None,
    step_count: Annotated[
        int | None, typer.Option("--steps", min=1, help="Training steps; by default 3000.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="How films for rebuilding are taken: ideal (the default), clinic, bad day."
        ),
    ] = None,
    scale: Annotated[
        Literal["small", "full"] | None,
        typer.Option(
            help="Of ablation and paper: small (the default) for a CPU; full, as the paper's, for "
            "a GPU."
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Of an ablation: trainings a line; by default 1.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything that is drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train on known bones, ask about unseen ones, and write a report."""
    names = tuple(n.strip() for n in unseen.split(",") if n.strip())
    given = {
        "--loss": loss != "shape", "--backbone": backbone != "compact",
        "--minutes": minutes is not None, "--steps": step_count is not None,
        "--preset": preset is not None, "--scale": scale is not None,
        "--repeats": repeats is not None,
    }  # fmt: skip
    for option in (o for o in _OF_NO_USE[what] if given[o]):
        raise InputError(option, f"is of no use to 'study {what}'", "leave it out")
    preset, scale = preset or "ideal", scale or "small"
    if what == "ablation":
        repeats = repeats or 1
        _ablation(bank, out, names, scale, range(seed, seed + repeats), as_json=as_json)
        return
    from osteoprint.bank.store import Bank
    from osteoprint.fingerprint.encoder import check_network
    from osteoprint.fingerprint.settings import DEFAULT_NETWORK, TrainingSettings, with_backbone
    from osteoprint.study.experiment import StudySettings, load_bones
    from osteoprint.study.paper import SCALES, run_paper
    from osteoprint.study.paper_page import write_paper
    from osteoprint.study.rebuilding import METHODS
    from osteoprint.study.report import write_report
    from osteoprint.study.whole_way import run_study
    from osteoprint.xray import presets

    network = with_backbone(DEFAULT_NETWORK, backbone)
    training = TrainingSettings(
        network, loss=loss, minutes=minutes, steps=step_count or TrainingSettings.steps, seed=seed
    )
    check_network(network)
    try:
        presets.preset(preset)
    except ValueError as error:
        raise InputError("--preset", str(error), "name one of them") from None
    methods = () if what == "identification" else METHODS
    settings = StudySettings(
        unseen=names, training=training, seed=seed, methods=methods, preset=preset
    )
    with steps() as progress, Bank.open(bank) as opened:
        bones = load_bones(opened, progress)
        out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is found out now
        if what == "paper":
            done = run_paper(bones, settings, SCALES[scale], progress)
            told = write_paper(out, done, f"The paper on {Path(bank).name}")
            said = [f"{row['what']}: {row['ours']} (paper: {row['paper']})" for row in told["rows"]]
            page = str(out / "paper.html")
            answer(told | {"report": page}, [*said, page], as_json=as_json)
            return
        result = run_study(bones, settings, progress)
        write_report(out, result, title=f"{what.capitalize()} of {Path(bank).name}")
    values = _headline(result) | {"report": str(out / "report.html")}
    answer(values, _lines(values), as_json=as_json)


def _ablation(
    bank: str, out: Path, unseen: tuple[str, ...], scale: str, seeds: range, *, as_json: bool
) -> None:
    """Train a network for every line of the ablation, and write the table."""
    from osteoprint.bank.store import Bank
    from osteoprint.study.ablation import SCALES, affordable_scale, run_ablation
    from osteoprint.study.ablation_page import said, write_ablation
    from osteoprint.study.experiment import load_bones, split

    with steps() as progress, Bank.open(bank) as opened:
        bones = load_bones(opened, progress)
        known, held = split(bones, unseen)
        out.mkdir(parents=True, exist_ok=True)
        used = affordable_scale(SCALES[scale])
        lines = run_ablation(bones, used, unseen=unseen, seeds=seeds, progress=progress)
        title = f"Ablation on {Path(bank).name}"
        values = write_ablation(out, lines, used, (len(known), len(held)), title)
    lines_said = [
        f"{row['case']}: {row['validation']:.1f} % known, {said(row['unseen'], 1)} % unseen"
        for row in values["table"]
    ]
    values["report"] = str(out / "ablation.html")
    answer(values, [f"scale: {values['scale']}", *lines_said, values["report"]], as_json=as_json)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the bank and the report.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer bones, shorter training.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Everything that is drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """The main job on phantoms: CT, X-rays, fingerprints, identity and shape, in a report."""
    from osteoprint.study.demo import run_demo

    started = time.monotonic()
    with steps() as progress:
        result = run_demo(out, progress, quick=quick, seed=seed)
    values = _headline(result) | {
        "report": str(out / "report.html"),
        "seconds": round(time.monotonic() - started, 1),
    }
    answer(values, _lines(values), as_json=as_json)
    if not as_json:
        say(f"Open {(out / 'report.html').resolve()} in a browser.")


def doctor(as_json: JsonOption = False) -> None:
    """What this program runs on, and whether everything it needs is there."""
    import importlib
    import platform

    from osteoprint import __version__

    wanted = [
        *("numpy", "scipy", "numba", "torch", "torchvision", "timm"),
        *("safetensors", "sklearn", "skimage", "pydicom", "gdcm", "SimpleITK", "trimesh", "igl"),
        *("xraydb", "spekpy", "sqlalchemy", "pydantic", "typer", "rich", "matplotlib", "PIL"),
        *("lightning_fabric", "pytorch_metric_learning", "captum", "threadpoolctl"),
    ]
    versions: dict[str, Any] = {}
    missing = []
    for name in wanted:
        try:
            module = importlib.import_module(name)
            versions[name] = str(getattr(module, "__version__", "present"))
        except ImportError:
            missing.append(name)
    import torch

    values = {
        "osteoprint": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "missing": missing,
    }
    lines = [
        f"osteoprint {__version__} on Python {values['python']}, {values['system']}",
        f"{values['threads']} threads, GPU: {values['gpu'] or 'none'}",
        f"missing: {', '.join(missing)}" if missing else "everything it needs is there",
    ]
    answer(values, lines, as_json=as_json)
    if missing:
        raise typer.Exit(2)


def _headline(result: Any) -> dict[str, Any]:
    """The few figures a person wants first."""
    return {
        "rank1": result.recognition.rank1,
        "probes": result.recognition.probes,
        "equal_error_rate": result.recognition.equal_error_rate,
        **{k: round(v, 4) for k, v in result.nearest.summary().items()},
        "rebuilt": None if result.rebuilt is None else result.rebuilt.to_json()["methods"],
    }


def _lines(values: dict[str, Any]) -> list[str]:
    return [
        f"{values['rank1']:.1%} of {values['probes']} new film pairs named the right bone",
        f"nearest known shape of unseen bones: {values['rms_mm']:.2f} mm RMS; same length "
        f"{values['same_length_rms_mm']:.2f}, best there is {values['best_rms_mm']:.2f}, "
        f"mean shape {values['mean_shape_rms_mm']:.2f}",
        *(
            f"{m['method']} from two films: {m['rms_mm']:.2f} mm RMS, worst bone "
            f"{m['worst_rms_mm']:.2f}"
            for m in values["rebuilt"] or ()
        ),
        f"report: {values['report']}",
    ]

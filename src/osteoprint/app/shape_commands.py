"""``reconstruct``: films become a surface."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from osteoprint.app.bank_commands import BankOption, JsonOption
from osteoprint.app.console import answer, steps
from osteoprint.app.film_commands import MarkerOption
from osteoprint.errors import InputError

MethodName = Literal["refined", "statistical", "nearest", "laplacian", "ffd", "tps", "contour"]


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command(
        epilog="Example: osteoprint reconstruct ap.png ml.png --bank mybank --out bone.stl"
    )(reconstruct)


def reconstruct(
    ap: Annotated[Path, typer.Argument(help="The AP film, or the only one.")],
    bank: BankOption,
    out: Annotated[Path, typer.Option(help="The surface: .ply, .stl, .glb or .dcm.")],
    ml: Annotated[Path | None, typer.Argument(help="The ML film, if there is one.")] = None,
    method: Annotated[
        MethodName | None,
        typer.Option(
            help="By default refined, or nearest where the bank holds too few bones for it. "
            "refined: the shape model and what lies beyond it; statistical: the model alone; "
            "nearest: the bank's closest bone; laplacian, ffd, tps, contour: a template bent "
            "onto outlines, as in the literature."
        ),
    ] = None,
    bone: Annotated[
        str | None, typer.Option(help="Which bone, where the bank holds several kinds.")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="A picture of the films with the surface's outline.")
    ] = None,
    marker_mm: MarkerOption = None,
    as_json: JsonOption = False,
) -> None:
    """What shape is it? The bone's surface in mm, in its anatomical frame.

    The first time, the shapes of the bank's bones are learnt, which takes minutes.
    """
    from osteoprint.reconstruct.output import SURFACE_FORMATS

    if out.suffix.lower() not in SURFACE_FORMATS:
        raise InputError(out, "is no surface format", f"end it in {', '.join(SURFACE_FORMATS)}")
    if overlay is not None and overlay.suffix.lower() != ".png":
        raise InputError(overlay, "is no picture", "end it in .png")
    usual, few = _usual(bank, bone, ml)
    method = method or usual
    if method == "nearest":
        if ml is None:
            raise InputError(ap, "is one film, nearest needs two", "give AP and ML")
        if overlay is not None:
            raise InputError(
                overlay, "cannot be drawn: nearest has no pose", "use --method refined"
            )
        values, lines = (
            _by_fingerprint(ap, ml, bank, out, marker_mm, few)
            if few
            else _by_shape(ap, ml, bank, out, bone, marker_mm)
        )
    else:
        values, lines = _fitted(ap, ml, bank, out, method, bone, overlay, marker_mm)
    answer(values, lines, as_json=as_json)


def _usual(bank: str, bone: str | None, ml: Path | None) -> tuple[MethodName, str | None]:
    """Refined, or nearest and why: a shape cannot be learnt from a few bones."""
    from osteoprint.bank.store import Bank
    from osteoprint.reconstruct.learning import LEAST_BONES

    with Bank.open(bank) as opened:
        people = {r.individual for r in opened.bones() if bone in (None, r.bone)}
    # No bone at all, or no second film, is for the method to refuse.
    if len(people) >= LEAST_BONES or not people or ml is None:
        return "refined", None
    return "nearest", (
        f"the bank holds bones of {len(people)} individuals, from which no shape is learnt: this "
        f"is its closest bone (with {LEAST_BONES} or more, the films' own shape is rebuilt)"
    )


def _by_fingerprint(
    ap: Path, ml: Path, bank: str, out: Path, marker_mm: float | None, few: str
) -> tuple[dict[str, Any], list[str]]:
    """The bone that matches, or else the one most alike; `few` says why shapes are not asked."""
    from osteoprint.bank.store import Bank
    from osteoprint.reconstruct.nearest import Lookup, nearest_surface
    from osteoprint.reconstruct.output import write_surface

    started = time.monotonic()
    with Bank.open(bank) as opened:
        lookup = Lookup.open(opened)
        query = lookup.look(ap, ml, marker_mm=marker_mm)
        matches = lookup.matches(query, len(opened.bones()))
        match = matches[0]
        kind = opened.bone(match.bone_id).bone
        absent = not lookup.calibration(kind).in_bank(match.distance)
        if absent:
            similar = lookup.nearest_shapes(query, 1)[0].bone_id
            match = next(m for m in matches if m.bone_id == similar)
        record = opened.bone(match.bone_id)
        surface = nearest_surface(opened, record)
        uncertainty = lookup.nearest_error_mm()
    warnings = [*query.warnings, few]
    if absent:
        warnings.append(
            f"no bone of the bank matches; this is the shape of the most similar, {record.name}"
        )
    if uncertainty is None:
        warnings.append("too few bones are enrolled to say how far a nearest match is off")
    write_surface(surface, out)
    values: dict[str, Any] = {
        "method": "nearest",
        "surface": str(out),
        "seconds": round(time.monotonic() - started, 3),
        "watertight": bool(surface.is_watertight),
        "scale_source": query.scale_source,
        "warnings": warnings,
        "uncertainty_mm": uncertainty or {"median": None, "p95": None},
        "nearest": {"id": record.id, "name": record.name, "distance": match.distance},
    }
    lines = [f"{out}: the shape of {record.name}", *(f"warning: {w}" for w in warnings)]
    if uncertainty:
        lines.append(
            f"for a bone that is not in the bank, a nearest match is off by "
            f"{uncertainty['median']:.2f} mm (RMS, median; 95 % by less than "
            f"{uncertainty['p95']:.2f} mm)"
        )
    return values, lines


def _by_shape(
    ap: Path, ml: Path, bank: str, out: Path, bone: str | None, marker_mm: float | None
) -> tuple[dict[str, Any], list[str]]:
    """The bone whose surface is nearest to the one that the films show."""
    from osteoprint.bank.store import Bank
    from osteoprint.reconstruct.learning import bank_model
    from osteoprint.reconstruct.nearest import nearest_by_shape
    from osteoprint.reconstruct.output import write_surface
    from osteoprint.reconstruct.reconstruction import reconstruct as from_films
    from osteoprint.reconstruct.reconstruction import shots_of
    from osteoprint.study.workers import cores
    from osteoprint.xray.film_pair import examine_pair

    pair = examine_pair(ap, ml, marker_mm=marker_mm)
    films = [pair.ap, pair.ml]
    shots_of(films, [ap.name, ml.name])  # refused before minutes of learning
    with steps() as progress, Bank.open(bank) as opened:
        model = bank_model(opened, bone=bone, progress=progress, workers=cores())
        started = time.monotonic()
        found = from_films(model, films, "refined", sources=[ap.name, ml.name])
        chosen = nearest_by_shape(opened, model, found)
    write_surface(chosen.surface, out)
    record = chosen.record
    warnings = [*pair.warnings, *found.warnings, *chosen.warnings]
    values: dict[str, Any] = {
        "method": "nearest",
        "surface": str(out),
        "seconds": round(time.monotonic() - started, 3),
        "watertight": bool(chosen.surface.is_watertight),
        "scale_source": " and ".join(dict.fromkeys(f.radiograph.scale_source for f in films)),
        "warnings": warnings,
        "uncertainty_mm": {"median": round(chosen.median_mm, 3), "p95": round(chosen.p95_mm, 3)},
        "nearest": {"id": record.id, "name": record.name, "rms_mm": round(chosen.rms_mm, 3)},
    }
    lines = [
        f"{out}: the shape of {record.name}, {chosen.rms_mm:.2f} mm (RMS) from what the films show",
        *(f"warning: {w}" for w in warnings),
    ]
    return values, lines


def _fitted(
    ap: Path,
    ml: Path | None,
    bank: str,
    out: Path,
    method: MethodName,
    bone: str | None,
    overlay: Path | None,
    marker_mm: float | None,
) -> tuple[dict[str, Any], list[str]]:
    """A template or model fitted to the films."""
    import numpy as np

    from osteoprint.bank.store import Bank
    from osteoprint.reconstruct.learning import bank_model
    from osteoprint.reconstruct.output import coloured, write_surface
    from osteoprint.reconstruct.reconstruction import Method, shots_of
    from osteoprint.reconstruct.reconstruction import reconstruct as from_films
    from osteoprint.study.overlay import draw_overlay
    from osteoprint.study.workers import cores
    from osteoprint.xray.film import examine_film
    from osteoprint.xray.film_pair import examine_pair

    assert method in get_args(Method)
    if ml is None:
        films = [examine_film(ap, None, marker_mm=marker_mm)]
        notes = [f"{ap.name} {note}" for note in films[0].warnings]
    else:
        pair = examine_pair(ap, ml, marker_mm=marker_mm)
        films, notes = [pair.ap, pair.ml], list(pair.warnings)
    names = [path.name for path in (ap, ml) if path is not None]
    shots_of(films, names)  # films that cannot be used are refused before minutes of learning
    with steps() as progress, Bank.open(bank) as opened:
        model = bank_model(opened, bone=bone, progress=progress, workers=cores())
    started = time.monotonic()
    found = from_films(model, films, method, sources=names)  # type: ignore[arg-type]
    seconds = time.monotonic() - started
    doubt = found.doubt
    surface = coloured(found.surface, None if doubt is None else doubt.deviation_mm)
    write_surface(surface, out)
    if overlay is not None:
        draw_overlay(found, names, overlay)
    uncertainty: dict[str, float | None] = {"median": None, "p95": None}
    if doubt is not None:
        middle, most = np.percentile(doubt.deviation_mm, [50, 95])
        uncertainty = {"median": round(float(middle), 3), "p95": round(float(most), 3)}
    warnings = [*notes, *found.warnings]
    values: dict[str, Any] = {
        "method": method,
        "surface": str(out),
        "seconds": round(seconds, 3),
        "watertight": bool(surface.is_watertight),
        "scale_source": " and ".join(dict.fromkeys(f.radiograph.scale_source for f in films)),
        "warnings": warnings,
        "uncertainty_mm": uncertainty,
        "expected_rms_mm": None if doubt is None else round(doubt.expected_rms_mm, 3),
        "feared_rms_mm": None if doubt is None else round(doubt.feared_rms_mm, 3),
        "likeness": [round(v, 4) for v in found.likeness],
        "known_bones": model.shape.shapes,
    }
    if overlay is not None:
        values["overlay"] = str(overlay)
    lines = [f"{out}: {method}, from {len(films)} film{'s' if ml else ''} and the shapes of "
             f"{model.shape.shapes} known bones, in {seconds:.1f} s"]  # fmt: skip
    if doubt is not None:
        lines.append(
            f"expected to be off by {doubt.expected_rms_mm:.2f} mm (RMS), nine times in ten by "
            f"less than {doubt.feared_rms_mm:.2f} mm; a point by {uncertainty['median']:.2f} mm "
            "(median of the standard deviations)"
        )
    return values, lines + [f"warning: {w}" for w in warnings]

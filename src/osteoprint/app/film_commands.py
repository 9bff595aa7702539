"""``identify``, ``verify``, ``compare``, ``film``: questions about films and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from osteoprint.app.bank_commands import BankOption, JsonOption
from osteoprint.app.console import answer
from osteoprint.frames import View

ApArgument = Annotated[Path, typer.Argument(help="The AP film (front to back).")]
MlArgument = Annotated[Path, typer.Argument(help="The ML film (inner side to outer).")]
MarkerOption = Annotated[
    float | None,
    typer.Option("--marker-mm", min=0.1, help="Size of a scale object seen on the films, mm."),
]

# A likelihood ratio below it, either way, is what the European network of forensic institutes
# (ENFSI, 2015) calls weak support.
_WEAK = 10.0


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(epilog="Example: osteoprint identify ap.png ml.png --bank mybank --top 3")(identify)
    app.command(epilog="Example: osteoprint verify ap1.png ml1.png ap2.png ml2.png --bank mybank")(
        verify
    )
    app.command(epilog="Example: osteoprint compare estimate.stl truth.ply")(compare)
    app.command(epilog="Example: osteoprint film ap.dcm --view AP --explain")(film)


def identify(
    ap: ApArgument,
    ml: MlArgument,
    bank: BankOption,
    top: Annotated[int, typer.Option(min=1, help="How many bones to list.")] = 5,
    marker_mm: MarkerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whose bone is it? The nearest bones of the bank, and what the nearness proves."""
    from osteoprint.bank.store import Bank
    from osteoprint.reconstruct.nearest import Lookup

    with Bank.open(bank) as opened:
        lookup = Lookup.open(opened)
        query = lookup.look(ap, ml, marker_mm=marker_mm)
        found = [(opened.bone(m.bone_id), m) for m in lookup.matches(query, top)]
        evidence = lookup.calibration(found[0][0].bone)
        matches: list[dict[str, Any]] = []
        for record, match in found:
            matches.append(
                {
                    "id": record.id,
                    "name": record.name,
                    "individual": record.individual,
                    "distance": match.distance,
                    "likelihood_ratio": lookup.calibration(record.bone).likelihood_ratio(
                        match.distance
                    ),
                }
            )
    in_bank = bool(matches[0]["distance"] <= evidence.threshold)
    lines = [
        f"{m['name']:<28} distance {m['distance']:.4f}   likelihood ratio "
        f"{m['likelihood_ratio']:.3g}"
        for m in matches
    ]
    verdict = "the nearest is a match" if in_bank else "none is a match: not in the bank"
    answer(
        {
            "matches": matches,
            "in_bank": in_bank,
            "threshold": evidence.threshold,
            "model": lookup.record.id,
            "warnings": list(query.warnings),
        },
        [
            *lines,
            f"{verdict} (threshold {evidence.threshold:.4f})",
            *(f"warning: {w}" for w in query.warnings),
        ],
        as_json=as_json,
    )


def verify(
    ap: ApArgument,
    ml: MlArgument,
    ap2: Annotated[Path, typer.Argument(help="The other AP film.")],
    ml2: Annotated[Path, typer.Argument(help="The other ML film.")],
    bank: BankOption,
    marker_mm: MarkerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do two pairs of films show the same bone?"""
    from osteoprint.bank.search import squared_distance
    from osteoprint.bank.store import Bank
    from osteoprint.reconstruct.nearest import Lookup

    with Bank.open(bank) as opened:
        lookup = Lookup.open(opened)
        one, other = (lookup.look(a, m, marker_mm=marker_mm) for a, m in ((ap, ml), (ap2, ml2)))
        kinds = sorted({lookup.kind(query) for query in (one, other)})
        evidence = min(map(lookup.pair_calibration, kinds), key=lambda each: each.threshold)
    distance = float(squared_distance(one.fingerprint, other.fingerprint))
    warnings = list(dict.fromkeys([*one.warnings, *other.warnings]))
    same, ratio = distance <= evidence.threshold, evidence.likelihood_ratio(distance)
    if len(kinds) > 1:
        warnings.append("the two pairs are most like bones of two kinds: " + " and ".join(kinds))
    sides = {query.side for query in (one, other)} - {None}
    if len(sides) > 1:
        same, ratio = False, evidence.lowest_lr
        warnings.append("the films say that one bone is a left one, the other a right one")
    elif ratio == evidence.highest_lr < _WEAK:
        warnings.append("weak evidence: too few bones are enrolled for films to prove more")
    elif 1 / _WEAK < ratio < _WEAK:
        warnings.append("weak evidence: films of one bone and of two lie so far apart in this bank")
    values = {
        "same_bone": bool(same),
        "distance": distance,
        "threshold": evidence.threshold,
        "likelihood_ratio": ratio,
        "warnings": warnings,
    }
    line = (
        f"{'the same bone' if same else 'different bones'}: distance {distance:.4f}, threshold "
        f"{evidence.threshold:.4f}, likelihood ratio {ratio:.3g}"
    )
    answer(values, [line, *(f"warning: {w}" for w in warnings)], as_json=as_json)


def film(
    path: Annotated[Path, typer.Argument(help="A DICOM, PNG, TIFF or JPEG film.")],
    view: Annotated[View | None, typer.Option(help="What it has to be.")] = None,
    marker_mm: MarkerOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Draw every step of the reading as a picture.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="That picture; <film>.explained.png by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How is a film read? Field, polarity, scale, the bone: what was found, and by what."""
    from osteoprint.study.film_steps import draw_steps
    from osteoprint.xray.film import examine_film

    found = examine_film(path, view, marker_mm=marker_mm)
    geometry, bone = found.radiograph.geometry, found.bone
    values: dict[str, Any] = {
        "view": found.radiograph.view.value,
        "polarity": found.polarity.polarity,
        "polarity_reason": found.polarity.reason,
        "field": found.field.form,
        "field_share": round(found.field.share, 4),
        "scale_source": found.scale.source,
        "spacing_at_bone_mm": [round(mm, 5) for mm in geometry.spacing_at_bone_mm],
        "bone": None if bone is None else {
            "length_mm": round(found.length_mm or 0.0, 2),
            "turn_deg": round(bone.turn_deg, 2),
            "centre_px": [round(at, 1) for at in bone.centre],
            "size_px": [round(n, 1) for n in bone.size],
            "soft_tissue": bone.tissue is not None,
            "cut": bone.cut,
        },
        "warnings": list(found.warnings),
    }  # fmt: skip
    lines = [
        f"{path.name}: {values['view']}, {values['polarity']} ({found.polarity.reason})",
        f"exposed: {found.field.form}, {found.field.share:.0%} of the film",
        f"{geometry.spacing_at_bone_mm[0]:.4f} mm a pixel at the bone, from {found.scale.source}",
    ]
    if bone is not None:
        lines.append(
            f"a bone of {found.length_mm:.1f} mm, leaning by {bone.turn_deg:+.1f} degrees, "
            f"{'in soft tissue' if bone.tissue is not None else 'bare'}"
        )
    lines += [f"warning: {w}" for w in found.warnings]
    if explain or out is not None:
        picture = out or Path(f"{path.stem}.explained.png")
        draw_steps(found, picture)
        values["picture"] = str(picture)
        lines.append(f"{picture}: every step")
    answer(values, lines, as_json=as_json)


def compare(
    estimate: Annotated[
        Path, typer.Argument(help="A surface: .ply, .stl, .obj (mm), .glb or .dcm.")
    ],
    truth: Annotated[Path, typer.Argument(help="The surface it should be.")],
    align: Annotated[
        Literal["rigid", "none"], typer.Option(help="Move the estimate onto the truth first?")
    ] = "rigid",
    as_json: JsonOption = False,
) -> None:
    """How far is one surface from another? Never mirrored, never scaled."""
    from osteoprint.ct.surface import read_surface
    from osteoprint.shape.alignment import align_rigid
    from osteoprint.shape.distance import surface_distance

    moving, fixed = read_surface(estimate), read_surface(truth)
    if align == "rigid":
        moving.apply_transform(align_rigid(moving, fixed))
    distance = surface_distance(moving, fixed)
    lines = [
        f"RMS {distance.rms_mm:.3f} mm, mean {distance.mean_mm:.3f} mm, 95 % "
        f"{distance.hd95_mm:.3f} mm, Hausdorff {distance.hausdorff_mm:.3f} mm",
        f"relative to the diagonal: RMS {distance.rms_relative:.5f}, "
        f"Hausdorff {distance.hausdorff_relative:.5f}",
    ]
    answer(distance.to_json(), lines, as_json=as_json)

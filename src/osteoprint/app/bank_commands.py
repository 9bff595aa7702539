"""``ingest`` and ``bank``: bones in, and the bank looked after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from osteoprint.app.console import answer, say, steps
from osteoprint.errors import InputError, ScanError
from osteoprint.frames import Side

BankOption = Annotated[str, typer.Option("--bank", help="The bank: a folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(
        epilog="Example: osteoprint ingest scans/leg01 femora/*.ply --bank mybank --bone femur"
    )(ingest)
    group = typer.Typer(help="Look after a bank.", no_args_is_help=True)
    group.command("list", epilog="Example: osteoprint bank list --bank mybank")(list_bones)
    group.command(epilog="Example: osteoprint bank check --bank mybank")(check)
    group.command(epilog="Example: osteoprint bank backup copy --bank mybank")(backup)
    group.command(epilog="Example: osteoprint bank restore copy --bank newbank")(restore)
    group.command(epilog="Example: osteoprint bank export folder --bank mybank")(export)
    app.add_typer(group, name="bank")


def ingest(
    source: Annotated[
        list[Path],
        typer.Argument(help="Folders with a DICOM series, volumes, or closed surfaces in mm."),
    ],
    bank: BankOption,
    bone: Annotated[str | None, typer.Option(help="Which bone, e.g. femur.")] = None,
    side: Annotated[Side | None, typer.Option(help="Side of the body.")] = None,
    individual: Annotated[str | None, typer.Option(help="Whose bone it is.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Interpolate missing and damaged slices.")
    ] = False,
    series: Annotated[str | None, typer.Option(help="The DICOM series to take.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take bones into a bank, from CT scans or closed surfaces.

    Of several sources, those that cannot be used are named at the end; the others are kept.
    """
    from osteoprint.bank.intake import IntakeSettings, take_in
    from osteoprint.bank.store import Bank

    if name and len(source) > 1:
        raise InputError("--name", "cannot name several sources", "ingest them one by one")

    settings = IntakeSettings(bone, side, individual, name, repair, series)
    bones: list[dict[str, Any]] = []
    warnings: list[str] = []
    failed: list[str] = []
    with _new_or_old(bank), steps() as progress, Bank.open(bank, write=True, create=True) as opened:
        for index, one in enumerate(source):
            try:
                intake = take_in(opened, one, settings, progress)
            except ScanError as error:
                if len(source) == 1:
                    raise
                failed.append(str(error))
                continue
            warnings += [f"{one.name}: {w}" for w in intake.warnings]
            for record, new in intake.bones:
                remarks = [*record.warnings, *([] if new else ["was in the bank already"])]
                bones.append(
                    {
                        "id": record.id,
                        "name": record.name,
                        "bone": record.bone,
                        "side": record.side,
                        "individual": record.individual,
                        "length_mm": round(record.length_mm, 2),
                        "watertight": record.watertight,
                        "warnings": remarks,
                    }
                )
            progress("Ingesting", index + 1, len(source))
    lines = [
        f"{b['id']}  {b['name']}: {b['bone']}, {b['side'] or 'side unknown'}, "
        f"{b['length_mm']:.1f} mm" + "".join(f"\n  note: {w}" for w in b["warnings"])
        for b in bones
    ]
    answer(
        {"bones": bones, "warnings": warnings, **({"failed": failed} if failed else {})},
        [*lines, *(f"warning: {w}" for w in warnings)],
        as_json=as_json,
    )
    for message in failed:
        say(f"osteoprint: {message}")
    if failed:
        raise typer.Exit(2)


@contextmanager
def _new_or_old(bank: str) -> Iterator[None]:
    """Take away a bank that this command made, if it holds no bone when the command fails."""
    from osteoprint.bank.store import Bank

    there = Path(bank).exists()
    try:
        yield
    except InputError:
        if not there and Path(bank).is_dir():
            with Bank.open(bank) as opened:
                empty = not opened.bones()
            if empty:
                shutil.rmtree(bank)
        raise


def list_bones(bank: BankOption, as_json: JsonOption = False) -> None:
    """What is in the bank."""
    from osteoprint.bank.store import Bank

    with Bank.open(bank) as opened:
        rows = [
            {
                "id": r.id,
                "name": r.name,
                "bone": r.bone,
                "side": r.side,
                "individual": r.individual,
                "length_mm": round(r.length_mm, 2),
            }
            for r in opened.bones()
        ]
    lines = [
        f"{r['id']}  {r['name']:<24} {r['bone']:<8} {r['side'] or '-':<6} {r['length_mm']:8.1f} mm"
        for r in rows
    ]
    answer({"bones": rows}, [*lines, f"{len(rows)} bones"], as_json=as_json)


def check(bank: BankOption, as_json: JsonOption = False) -> None:
    """Is the bank whole? Exit code 2 where it is not."""
    from osteoprint.bank.maintenance import check as check_bank

    report = check_bank(bank)
    values = {"ok": report.ok, "problems": list(report.problems), "reclaimable": report.orphans}
    lines = list(report.problems) or ["the bank is whole"]
    answer(values, lines, as_json=as_json)
    if not report.ok:
        raise typer.Exit(2)


def backup(
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    bank: BankOption,
    as_json: JsonOption = False,
) -> None:
    """Copy a bank to a new folder, also while others use it."""
    from osteoprint.bank.maintenance import backup as backup_bank

    backup_bank(bank, target)
    answer({"backup": str(target)}, [f"copied to {target}"], as_json=as_json)


def restore(
    backup_folder: Annotated[Path, typer.Argument(help="A folder made by 'bank backup'.")],
    bank: BankOption,
    as_json: JsonOption = False,
) -> None:
    """Make a bank from a backup; the bank must not exist yet."""
    from osteoprint.bank.maintenance import restore as restore_bank

    restore_bank(backup_folder, bank)
    answer({"bank": bank}, [f"restored to {bank}"], as_json=as_json)


def export(
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    bank: BankOption,
    as_json: JsonOption = False,
) -> None:
    """Write bones.csv, the surfaces as PLY, and the fingerprints."""
    from osteoprint.bank.maintenance import export as export_bank

    export_bank(bank, target)
    answer({"folder": str(target)}, [f"exported to {target}"], as_json=as_json)

"""The ablation as a page and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from osteoprint import __version__
from osteoprint.errors import InputError
from osteoprint.reconstruct.output import write_whole
from osteoprint.study.ablation import BASE, Line, Scale

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;
color:#1d2329;background:#fff}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .6rem;text-align:right;border-bottom:1px solid #e3e7ea}
th:first-child{text-align:left;font-weight:400}
thead th{font-weight:600;vertical-align:bottom;border-bottom:2px solid #9aa4ad}
tr.base{background:#f3f6f8;font-weight:600}
small{color:#5d6873;display:block;font-weight:400}
.bar{display:inline-block;width:5rem;height:.6rem;position:relative;background:#eef1f3}
.bar i{position:absolute;top:0;bottom:0;background:#c0392b}
.bar i.up{background:#2a7f62}
p{max-width:46rem}
@media(prefers-color-scheme:dark){body{background:#14181c;color:#e6eaee}
th,td{border-color:#2b333a}tr.base{background:#1d242a}small{color:#9aa6b1}.bar{background:#262e35}}
"""
# A bar is full at so many points.
_FULL = 10.0


def write_ablation(
    folder: Path, lines: Sequence[Line], scale: Scale, bones: tuple[int, int], title: str
) -> dict[str, Any]:
    """Write ``ablation.html`` and ``ablation.json``; each appears whole or not at all.

    ``bones`` are how many were known and how many unseen. Returns the JSON's values. Raises
    InputError where the folder is a file.
    """
    if folder.is_file():
        raise InputError(folder, "is a file", "name a folder for the table")
    values = {
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "osteoprint": __version__,
        "scale": scale.words,
        "known": bones[0],
        "unseen": bones[1],
        "lines": [line.to_json() for line in lines],
        "table": table(lines),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / "ablation.json", text.encode())
    write_whole(folder / "ablation.html", _page(values).encode())
    return values


def table(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row a case: means over its seeds, in percent, and what they differ from the base by."""
    rows: list[dict[str, Any]] = []
    base: dict[int, float] = {}
    for name in dict.fromkeys(line.case.name for line in lines):
        own = [line for line in lines if line.case.name == name]
        validation = 100.0 * float(np.mean([line.validation for line in own]))
        if name == BASE.name:
            base = {line.seed: line.validation for line in own}
        beside = [line.validation - base[line.seed] for line in own if line.seed in base]
        spread = 100.0 * float(np.ptp([line.validation for line in own]))
        rows.append(
            {"case": name, "note": own[0].case.note, "paper": own[0].case.paper,
             "validation": validation,
             "unseen": _percent([line.unseen for line in own]),
             "pairs": _percent([line.pairs for line in own]),
             "seeds": len(own), "spread": spread,
             "change": _percent(beside)}
        )  # fmt: skip
    return rows


def _percent(shares: Sequence[float | None]) -> float | None:
    """Their mean; None where there is none."""
    known = [share for share in shares if share is not None]
    return 100.0 * float(np.mean(known)) if known else None


def said(percent: float | None, digits: int) -> str:
    """A figure as it is shown; a dash for none."""
    return "–" if percent is None else f"{percent:.{digits}f}"


def _points(change: float, digits: int) -> str:
    """A difference as it is shown: with its sign, unless it is none."""
    text = f"{abs(change):.{digits}f}"
    if not float(text):
        return text
    return ("+" if change > 0 else "−") + text


def ablation_table(lines: Sequence[dict[str, Any]]) -> str:
    """The table, as HTML, of what :func:`table` gives."""
    rows = []
    for row in lines:
        note = f"<small>{escape(row['note'])}</small>" if row["note"] else ""
        paper = "–" if row["paper"] is None else _points(row["paper"], 1)
        is_base = row["case"] == BASE.name
        change = "" if is_base or row["change"] is None else _points(row["change"], 2)
        bar = "" if is_base or row["change"] is None else _bar(row["change"])
        rows.append(
            f"<tr{' class=base' if is_base else ''}><th scope=row>{escape(row['case'])}{note}</th>"
            f"<td>{'99.9' if is_base else paper}</td><td>{row['validation']:.2f}</td>"
            f"<td>{change}</td><td>{bar}</td><td>{said(row['unseen'], 1)}</td>"
            f"<td>{said(row['pairs'], 2)}</td></tr>"
        )
    seeds = max((row["seeds"] for row in lines), default=1)
    spread = max((row["spread"] for row in lines), default=0.0)
    several = (
        f"Each line is the mean of {seeds} trainings from different seeds, which differed by up to "
        f"{spread:.2f} points: smaller changes mean nothing."
        if seeds > 1
        else "Each line is one training: changes of a point or two may be chance."
    )
    return f"""<p>Every line is a network trained anew with one thing changed. {several}</p>
<table><thead><tr><th scope=col>what is different</th>
<th scope=col>the paper<small>points</small></th>
<th scope=col>triplet accuracy<small>other films of known bones, %</small></th>
<th scope=col colspan=2>change<small>points</small></th>
<th scope=col>bones never seen<small>triplet accuracy, %</small></th>
<th scope=col>pairs told right<small>bones never seen, %</small></th></tr></thead>
<tbody>{"".join(rows)}</tbody></table>"""


def _page(values: dict[str, Any]) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(values["title"])} – osteoprint</title><style>{STYLE}</style></head><body>
<h1>{escape(values["title"])}</h1>
<p><b>Scale: {escape(values["scale"])}.</b> {values["known"]} bones known, {values["unseen"]}
never seen.</p>
{ablation_table(values["table"])}
<p><small>Made by osteoprint {escape(values["osteoprint"])}, {escape(values["created"])}. The
paper’s figures are of 29 cat femora, at its own scale.</small></p>
</body></html>
"""


def _bar(change: float) -> str:
    """From the middle to the left for a loss, to the right for a gain."""
    width = 50.0 * min(abs(change) / _FULL, 1.0)
    left = 50.0 if change > 0 else 50.0 - width
    kind = ' class="up"' if change > 0 else ""
    return f'<span class="bar"><i{kind} style="left:{left:.1f}%;width:{width:.1f}%"></i></span>'

"""The tables of a report's page: shapes, recognition, settings."""

from __future__ import annotations

from html import escape
from typing import Any

from osteoprint.study.markup import Figures, label, ticks

_COLUMNS = (
    ("rms_mm", "RMS, mm", ".2f"),
    ("hausdorff_mm", "Haus­dorff, mm", ".2f"),
    ("rms_relative", "RMS, relative", ".4f"),
    ("hausdorff_relative", "Haus­dorff, relative", ".4f"),
    ("better", "known bones better", ".1f"),
    ("same_length_rms_mm", "same length, RMS mm", ".2f"),
    ("best_rms_mm", "best there is, RMS mm", ".2f"),
    ("mean_shape_rms_mm", "mean shape, RMS mm", ".2f"),
    ("any_rms_mm", "any known, RMS mm", ".2f"),
)


def dot_plot(figure: Figures, answers: tuple[tuple[str, str, str], ...]) -> str:
    """One line per unseen bone, one mark per answer, all on one axis in mm."""
    matches = figure.at("reconstruction/bones")
    top = max([m[key] or 0.0 for m in matches for key, _, _ in answers]) * 1.06 or 1.0
    rows = []
    for match in matches:
        marks = "".join(
            f'<i class="dot {mark}" style="--x:{100 * match[key] / top:.2f}%" '
            f'title="{escape(words)}: {match[key]:.2f} mm"></i>'
            for key, words, mark in answers
        )
        said = ", ".join(f"{words} {match[key]:.2f} mm" for key, words, _ in answers)
        rows.append(
            f"<span>{label(match['name'])}</span>"
            f'<div class="track" role="img" aria-label="{escape(said)}">{marks}</div>'
        )
    key = "".join(f'<li><i class="dot {mark}"></i>{words}</li>' for _, words, mark in answers)
    return f"""<figure class="chart"><ul class="key">{key}</ul><div class="strip">{"".join(rows)}
<span></span>{ticks(top)}</div>
<figcaption>RMS distance to the true surface of each unseen bone, in mm; farther left is
better.</figcaption></figure>
"""


def shape_table(figure: Figures) -> str:
    """Nearest matches with all baselines, their mean, and the paper's figures."""
    head = "".join(f"<th scope=col>{words}</th>" for _, words, _ in _COLUMNS)
    rows = []
    for index, match in enumerate(figure.at("reconstruction/bones")):
        cells = "".join(
            f"<td>{figure(f'reconstruction/bones/{index}/{key}', form)}</td>"
            for key, _, form in _COLUMNS
        )
        rows.append(
            f"<tr><th scope=row>{label(match['name'])}</th>"
            f'<td class="text">{label(match["chosen"])} <small>'
            f"({figure(f'reconstruction/bones/{index}/share', '.0%')})</small></td>{cells}</tr>"
        )
    mean = "".join(f"<td>{figure(f'summary/{key}', form)}</td>" for key, _, form in _COLUMNS)
    paper = "".join(
        f"<td>{figure(f'paper/{key}', form) if key in figure.at('paper') else '–'}</td>"
        for key, _, form in _COLUMNS
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Nearest matches"><table>
<thead><tr><th scope=col>Unseen bone</th><th scope=col class="text" style="text-align:left">nearest
match (share of its film pairs)</th>{head}</tr></thead><tbody>{"".join(rows)}
<tr class="mean"><th scope=row>Mean</th><td></td>{mean}</tr>
<tr class="paper"><th scope=row>The paper</th><td class="text">{escape(figure.at("paper/bones"))}
</td>{paper}</tr></tbody></table></div>
<p class="note soft">Distances are means over the bones that the film pairs chose. Relative: over
the diagonal of the true bone’s bounding box. The paper’s figures are for other bones, other scans
and another alignment program; they show the order of magnitude, not a contest.</p>
"""


def recognition_table(figure: Figures) -> str:
    """Recognition beside what the paper reports."""
    apart = "".join(
        f"<tr class=paper><td class=text>The paper: {escape(words)}</td><td>{_percent(value)}</td>"
        "<td class=wide>the margin as threshold, 5 unseen bones</td></tr>"
        for words, value in figure.at("paper/pair_accuracy").items()
    )
    ours = (
        ("rank1", ".1%", "First match is right", "films between the enrolled angles"),
        ("rank1_one_view", ".1%", "First match is right, one view enrolled", "straight views only"),
        ("pair_accuracy", ".2%", "Pairs on the right side", "best threshold, nearest view of each"),
        ("equal_error_rate", ".2%", "Equal error rate", _interval(figure)),
        ("cllr", ".3f", "Cllr, bits", "cost of the likelihood ratios: 0 perfect, 1 worthless"),
    )
    rows = "".join(
        f"<tr><td class=text>{words}</td><td>{figure(f'summary/{key}', form)}</td>"
        f"<td class=wide>{note}</td></tr>"
        for key, form, words, note in ours
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Recognition"><table>
<thead><tr><th scope=col>Whose bone</th><th scope=col>figure</th><th scope=col
style="text-align:left">how it was asked</th></tr></thead><tbody>{rows}
<tr class=paper><td class=text>The paper: nearest neighbours</td>
<td>{figure("paper/classified", ".0%")}</td>
<td class=wide>views 3° apart stood on both sides of the split</td></tr>{apart}</tbody>
</table></div>
"""


def _interval(figure: Figures) -> str:
    low, high = (figure(f"summary/eer_ci95/{end}", ".2%") for end in (0, 1))
    return f"95 %: {low} to {high}, bones drawn anew"


def _percent(value: float | list[float]) -> str:
    """A share, or a range of shares, in per cent as precise as the paper gives it."""
    if isinstance(value, list):
        return "–".join(f"{100 * v:g}" for v in value) + "%"
    return f"{100 * value:g}%"


def facts_lists(figure: Figures) -> str:
    """Settings, seconds per step, machine and versions."""
    settings = dict(figure.at("settings"))
    training = settings.pop("training")
    machine = dict(figure.at("machine"))
    versions = machine.pop("versions")
    seconds = "".join(
        f"<dt>{escape(step)}</dt><dd>{figure(f'seconds/{step}', '.1f')} s</dd>"
        for step in figure.at("seconds")
    )
    total = f"<dt><b>Together</b></dt><dd><b>{figure('summary/seconds', '.1f')} s</b></dd>"
    lists = (
        ("Training", _rows(training)),
        ("Study", _rows(settings)),
        ("Time", seconds + total),
        ("Machine", _rows(machine)),
        ("Versions", _rows(versions)),
    )
    return '<div class="facts">' + "".join(
        f"<div><h3>{name}</h3><dl>{rows}</dl></div>" for name, rows in lists
    ) + "</div>"  # fmt: skip


def _rows(values: dict[str, Any]) -> str:
    return "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(_words(value))}</dd>"
        for key, value in values.items()
    )


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The section of a report's page on surfaces rebuilt from films."""

from __future__ import annotations

from html import escape
from typing import Any

from osteoprint.study.markup import Figures, choice, gradient, label

WORDS = {
    "refined": "refined: shape model, and what lies beyond it",
    "statistical": "statistical: shape model alone",
    "laplacian": "laplacian: Laplacian surface deformation",
    "ffd": "ffd: free-form deformation",
    "tps": "tps: thin-plate spline matching",
    "contour": "contour: non-stereo corresponding contours",
}
_COLUMNS = (
    ("rms_mm", "RMS, mm", ".2f"),
    ("worst_rms_mm", "worst bone, mm", ".2f"),
    ("rms_relative", "RMS, relative", ".4f"),
    ("hausdorff_mm", "Haus­dorff, mm", ".2f"),
    ("expected_rms_mm", "expected RMS, mm", ".2f"),
    ("held", "90 % interval holds", ".0%"),
)


def rebuilt(figure: Figures, pictures: dict[str, Any]) -> str:
    """Every unseen bone as its films show it, and all methods in a table; empty without them."""
    study = figure.at("rebuilt")
    if not study:
        return ""
    cards = "".join(_card(figure, i, pictures) for i in range(len(study["bones"])))
    return f"""<section id="rebuilt"><h2>Rebuilt from two X-rays</h2>
<p>A nearest match can only be a bone that exists. Here the surface itself is fitted to the two
films: where the bone lies is found on them, the shapes of the known bones say what is probable,
and what those do not know is taken from the films. Nothing is clicked. The films (“{
        escape(study["preset"])
    }”) lie up to 5° off their views about every axis, which no method is told.</p>
<p class="note soft">The yellow line on the films is the rebuilt surface’s outline. On the surface,
colour says how far each spot is from the truth, or how unsure the program is of it: the standard
deviation that it gives without knowing the truth.</p>
{cards}{_table(figure)}</section>
"""


def _card(figure: Figures, index: int, pictures: dict[str, Any]) -> str:
    study = figure.at("rebuilt")
    bone, method = study["bones"][index], study["methods"][0]["method"]
    path = f"rebuilt/bones/{index}/methods/{method}"
    again = pictures["rebuilt"]
    name = escape(bone["name"])
    sure = bone["methods"][method]["expected_rms_mm"] is not None
    rows = [("rms_mm", "RMS distance"), ("hd95_mm", "95 % lie within")]
    rows += [("hausdorff_mm", "farthest spot")]
    rows += [("expected_rms_mm", "RMS it expected itself")] if sure else []
    measures = "".join(
        f"<div><dt>{words}</dt><dd>{figure(f'{path}/{key}')} <small>mm</small></dd></div>"
        for key, words in rows
    )
    views = [("beside", "Side by side"), ("both", "Overlaid"), ("match", "Rebuilt")]
    views += [("truth", "Truth")]
    paint = [("far", "off by")]
    paint += [("sure", "how unsure")] if sure else []
    doubts = "".join(f"<li>{escape(w)}</li>" for w in bone["methods"][method]["warnings"])
    return f"""<article class="card shape"><div class="films">
<h3>{label(bone["name"])} <span class="soft">from two films, {escape(method)}</span></h3>
<div class="film"><img src="{again["films"][index]}" loading="lazy"
alt="AP and ML film of {name} with the outline of the rebuilt surface"></div>
<dl class="measures">{measures}</dl>{f"<ul class='note'>{doubts}</ul>" if doubts else ""}</div>
<div><div class="stage"><img class="still" src="{again["stills"][index]}" loading="lazy"
alt="{name} rebuilt, from the front and from the side, coloured by distance">
<canvas hidden tabindex="0" role="img" aria-label="3D view of {name} as it was rebuilt; arrow keys
turn it"></canvas><div class="signs" hidden><span>the true bone</span><span>rebuilt</span></div>
</div>
<div class="under"><span hidden class="under">{choice("Show", f"again-{index}", views)}
{choice("Colour", f"paint-{index}", paint)}</span>
<div class="scale"><i style="background:{gradient(pictures["colours"])}"></i>
<span><b>0</b><b>{again["top_mm"]:g} mm or more</b></span></div>
</div></div></article>
"""


def _table(figure: Figures) -> str:
    study = figure.at("rebuilt")
    head = "".join(f"<th scope=col>{words}</th>" for _, words, _ in _COLUMNS)
    rows = "".join(
        f"<tr><th scope=row>{escape(WORDS.get(entry['method'], entry['method']))}</th>"
        + "".join(
            f"<td>{figure(f'rebuilt/methods/{index}/{key}', form)}</td>"
            for key, _, form in _COLUMNS
        )
        + "</tr>"
        for index, entry in enumerate(study["methods"])
    )
    baselines = "".join(
        f"<tr class=paper><th scope=row>{words}</th><td>{figure(f'summary/{key}')}</td>"
        f"{'<td>–</td>' * (len(_COLUMNS) - 1)}</tr>"
        for key, words in (
            ("rms_mm", "nearest fingerprint"),
            ("best_rms_mm", "best known bone there is"),
            ("same_length_rms_mm", "known bone of the same length"),
            ("mean_shape_rms_mm", "mean shape"),
        )
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Methods"><table>
<thead><tr><th scope=col>From the same two films</th>{head}</tr></thead>
<tbody>{rows}{baselines}</tbody></table></div>
<p class="note soft">Means over the {len(study["bones"])} bones never seen. Expected RMS and the
interval come from the fit alone; a good interval holds the truth at about 90 % of the points. The
methods below the first two bend a template onto outlines, with the cameras of the shape model.</p>
"""

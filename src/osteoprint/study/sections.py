"""The sections of a report's page, from the headline to the small print."""

from __future__ import annotations

from html import escape
from typing import Any

from osteoprint.study.curves import curves
from osteoprint.study.markup import Figures, choice, film, gradient, label, ticks
from osteoprint.study.tables import dot_plot, facts_lists, recognition_table, shape_table

# The answers that a nearest match is compared with: (name in the report, in words, its mark).
_ANSWERS = (
    ("rms_mm", "nearest fingerprint", "nearest"),
    ("best_rms_mm", "best known bone there is", "best"),
    ("same_length_rms_mm", "known bone of the same length", "length"),
    ("mean_shape_rms_mm", "mean shape of the known bones", "mean"),
    ("any_rms_mm", "any known bone, on average", "any"),
)


def opening(figure: Figures, pictures: dict[str, Any]) -> str:
    """Title, what was done, and the few figures that matter."""
    again = '<a href="#rebuilt">Rebuilt</a>' if figure.at("rebuilt") else ""
    return f"""<header>
<p class="eyebrow">{escape(figure.at("title"))}</p>
<h1>From two X-rays of a bone: whose it is, and what shape it has</h1>
<p class="lead">A network learnt {figure("summary/known", "d")} bones from their artificial X-rays.
Then it was given new film pairs: {figure("summary/probes", "d")} of the bones it knew, and
{figure("summary/unseen_pairs", "d")} of {figure("summary/unseen", "d")} bones that it had never
met.</p>
{_light_box(figure, pictures)}
<div class="tiles">
<div class="tile"><b>{figure("summary/named_right", "d")} <span>of
{figure("summary/probes", "d")}</span></b>
<p>new film pairs named the right bone</p>
<small class="soft">out of {figure("summary/known", "d")} known bones, at angles and energies that
were never enrolled</small></div>
{_rebuilt_tile(figure)}
<div class="tile"><b>{figure("summary/rms_mm")} <span>mm</span></b>
<p>from the truth: the nearest known shape of a bone never seen</p>
<small class="soft">RMS distance between the surfaces. The best there is:
{figure("summary/best_rms_mm")} mm; a bone of the same length:
{figure("summary/same_length_rms_mm")} mm; any known bone: {figure("summary/any_rms_mm")} mm
</small></div>
{_better_tile(figure)}
</div>
<p>{verdict(figure)}</p>
<nav aria-label="Sections"><a href="#identity">Whose bone</a><a href="#fingerprints">Map</a>
<a href="#shape">What shape</a>{again}<a href="#tables">Compared</a><a href="#bones">The bones</a>
<a href="#how">How it was made</a></nav>
</header>
"""


def _rebuilt_tile(figure: Figures) -> str:
    """How far surfaces rebuilt from films are off; nothing where none were."""
    if not figure.at("rebuilt"):
        return ""
    return f"""<div class="tile"><b>{figure("rebuilt/methods/0/rms_mm")} <span>mm</span></b>
<p>from the truth: the surface of a bone never seen, rebuilt from two films</p>
<small class="soft">RMS distance between the surfaces, on average; the worst bone
{figure("rebuilt/methods/0/worst_rms_mm")} mm</small></div>"""


def _better_tile(figure: Figures) -> str:
    """How good the choice of known bones was; left to the tables where surfaces were rebuilt."""
    if figure.at("rebuilt"):
        return ""
    blind = (figure.at("summary/known") - 1) / 2
    return f"""<div class="tile"><b>{figure("summary/better", ".1f")} <span>of
{figure("summary/known", "d")}</span></b>
<p>known bones would have been a better match than the one the films chose</p>
<small class="soft">0 is perfect; a blind guess would leave {blind:.1f} better ones</small></div>"""


def _rebuilt_box(figure: Figures, pictures: dict[str, Any]) -> str:
    """The first unseen bones at a glance: two films in, a surface out."""
    again = pictures["rebuilt"]
    method = figure.at("rebuilt/methods/0/method")
    groups = "".join(
        f'<figure><div><img src="{again["films"][i]}" alt="Its AP and ML film">'
        f'<span aria-hidden="true">→</span><img src="{again["stills"][i]}" alt="The rebuilt '
        f'surface, from the front and the side, coloured by distance"></div><figcaption>'
        f"{label(figure.at(f'rebuilt/bones/{i}/name'))}: two films, and the surface rebuilt from "
        f"them, {figure(f'rebuilt/bones/{i}/methods/{method}/rms_mm')} mm off</figcaption></figure>"
        for i in range(min(3, len(again["stills"])))
    )
    return f'<div class="box">{groups}</div>'


def _light_box(figure: Figures, pictures: dict[str, Any]) -> str:
    """The first unseen bones at a glance: two films in, a shape out."""
    if figure.at("rebuilt"):
        return _rebuilt_box(figure, pictures)
    first = figure.at("summary/known")
    groups = "".join(
        f'<figure><div><img src="{pictures["films"][i]}" alt="Its AP and ML film">'
        f'<span aria-hidden="true">→</span><img src="{pictures["stills"][i]}" alt="The shape they '
        f'chose, from the front and the side, coloured by distance"></div><figcaption>'
        f"{label(figure.at(f'bones/{first + i}/name'))}"
        f": two films, and the known shape they chose, "
        f"{figure(f'bones/{first + i}/shown/rms_mm')} mm off</figcaption></figure>"
        for i in range(min(3, len(pictures["stills"])))
    )
    return f'<div class="box">{groups}</div>'


def verdict(figure: Figures) -> str:
    """What the shape figures amount to, said plainly whichever way they fall."""
    own = figure.at("summary/rms_mm")
    words = []
    for key, what, _ in _ANSWERS[2:4]:
        other = figure.at(f"summary/{key}")
        if own < 0.98 * other:
            words.append(f"closer than the {what} ({figure(f'summary/{key}')} mm)")
        elif own <= 1.02 * other:
            words.append(f"as close as the {what} ({figure(f'summary/{key}')} mm)")
        else:
            words.append(f"farther off than the {what} ({figure(f'summary/{key}')} mm)")
    return (
        f"The shape that the films chose is {figure('summary/rms_over_best', '.2f')} times as far "
        f"from the truth as the best known bone; it is {' and '.join(words)}."
    )


def identity(figure: Figures, pictures: dict[str, Any]) -> str:
    """Examples with their answers, and the distances of all film pairs."""
    shown = figure.at("recognition/examples")
    top = max([t["distance"] for e in shown for t in e["top"]] + [figure.at("summary/threshold")])
    cards = "".join(
        _example(figure, i, pictures["probes"][i], pictures["portraits"], 1.1 * top)
        for i in range(len(shown))
    )
    wrong = figure.at("summary/named_wrong")
    picked = "first the failures" if wrong <= 3 else "first the three worst failures"
    picked = f"{picked}, then" if wrong else "no pair was named wrongly, so first"
    return f"""<section id="identity"><h2>Whose bone is it?</h2>
<p>Each picture is a film pair as the program was asked about it: front to back (AP) and inner to
outer side (ML), tipped and turned as on a table. Its fingerprint is compared with those of all
enrolled bones; the three nearest stand below it, the shorter the bar the nearer. The thin line is
the threshold for “the same bone”.</p>
<p class="note soft">How they were picked: {picked} the closest call, then an even sample up to the
clearest.</p>
<div class="cards">{cards}</div>
{_histogram(figure)}{curves(figure)}
<p>{figure("summary/rank1", ".1%")} of the film pairs found their bone first
({figure("summary/rank1_one_view", ".1%")} when only one straight view of each bone is enrolled).
As a yes-or-no question, the equal error rate is {figure("summary/equal_error_rate", ".2%")}, and
{figure("summary/pair_accuracy", ".2%")} of all pairs of film and bone fall on the right side of
the best threshold. Of the {figure("summary/unseen_pairs", "d")} film pairs of bones that are in no
bank, {figure("summary/strangers_rejected", "d")} lie beyond the threshold from every known bone,
so that they are not taken for one.</p>
</section>
"""


def _example(figure: Figures, index: int, source: str, portraits: list[str], scale: float) -> str:
    path = f"recognition/examples/{index}"
    example = figure.at(path)
    line = 100 * figure.at("summary/threshold") / scale
    rows = []
    for rank, match in enumerate(example["top"]):
        own = match["bone"] == example["bone"]
        portrait = portraits[match["bone"]] if match["bone"] < len(portraits) else None
        thumb = f'<img src="{portrait}" alt="" loading="lazy">' if portrait else ""
        rows.append(
            f"<li{' class=own' if own else ''}>{thumb}<span>{escape(match['name'])}"
            f'<span class="bar" aria-hidden="true" style="display:block">'
            f'<i style="width:{100 * match["distance"] / scale:.1f}%"></i>'
            f'<u style="left:{line:.1f}%"></u></span></span>'
            f"{figure(f'{path}/top/{rank}/distance', '.3f')}</li>"
        )
    word, tone = ("right", "good") if example["right"] else ("wrong", "bad")
    alt = f"AP and ML film of {example['name']}, turned by {example['turn_deg']:.0f} degrees"
    return (
        f'<article class="card">{film(source, alt)}<h3>{label(example["name"])} '
        f'<span class="verdict {tone}">– named {word}</span></h3>'
        f'<ol class="answer">{"".join(rows)}</ol></article>'
    )


def _histogram(figure: Figures) -> str:
    """Distances of the same and of other bones as bars, with the threshold."""
    counts = figure.at("recognition/distances")
    same, other, top = counts["same"], counts["other"], counts["top"]
    wide = 100 / len(same)
    bars = []
    for name, shares in (("other", other), ("same", same)):
        for i, share in enumerate(shares):
            if share:
                high = 100 * share / max(shares)
                bars.append(
                    f'<rect class="{name}" x="{i * wide:.2f}" y="{100 - high:.2f}" '
                    f'width="{wide * 0.92:.2f}" height="{high:.2f}"/>'
                )
    at = 100 * figure.at("summary/threshold") / top
    pull = "-100%" if at > 70 else "0"
    return f"""<figure class="chart"><ul class="key">
<li><i class="dot same"></i>to the right bone</li>
<li><i class="dot other"></i>to every other bone</li></ul>
<div class="histogram" role="img" aria-label="Histogram of fingerprint distances: to the right bone
and to all others, with the threshold"><svg viewBox="0 0 100 100" preserveAspectRatio="none"
aria-hidden="true">{"".join(bars)}</svg><u style="left:{at:.2f}%;--pull:{pull}"><b>threshold
{figure("summary/threshold", ".3f")}</b></u></div>
{ticks(top)}
<figcaption>Distances between the fingerprint of each new film pair and the nearest enrolled view of
each known bone; each kind is drawn to its own height.</figcaption></figure>
"""


def the_map(figure: Figures) -> str:
    """The interactive map of all fingerprints."""
    layout = choice("Layout", "layout", [("tsne", "t‑SNE"), ("pca", "PCA")])
    paint = choice("Colour", "paint", [("bone", "colour by bone"), ("length", "by length")])
    dimension = figure.at("settings/training/network/dimension")
    return f"""<section id="fingerprints"><h2>A map of fingerprints</h2>
<p>Every point is one film pair, laid out so that like fingerprints lie together. Point at one to
see its films. A good network makes one clump of each bone, from whichever side it was
photographed; bones of like shape are neighbours.</p>
<div class="tools">{layout}{paint}</div>
<div class="map"><canvas id="map" tabindex="0" role="img" aria-describedby="peek"
aria-label="Map of {figure.at("summary/known") + figure.at("summary/unseen")} bones' fingerprints;
arrow keys go from film to film"></canvas>
<aside class="peek" id="peek" aria-live="polite"><div class="film" role="img" aria-label=""></div>
<h3></h3><p class="soft"></p></aside></div>
<ul class="key" style="margin-top:12px"><li><i class="dot"></i>enrolled view</li>
<li><i class="dot ring"></i>new film of a known bone</li>
<li><i class="dot diamond"></i>bone the network never saw</li></ul>
<noscript><p>The map needs JavaScript.</p></noscript>
<p class="note soft">A fingerprint has {dimension} numbers; two dimensions keep only some of their
distances. t‑SNE keeps neighbours and stretches the rest; PCA keeps the widest directions.</p>
</section>
"""


def shape(figure: Figures, pictures: dict[str, Any]) -> str:
    """Every unseen bone beside the known one that its films chose."""
    first = figure.at("summary/known")
    cards = "".join(
        _unseen(figure, i, first + i, pictures) for i in range(figure.at("summary/unseen"))
    )
    return f"""<section id="shape"><h2>What shape is it?</h2>
<p>These bones were kept from the network. From their films alone it chose a known bone; here that
bone lies on the true one, rigidly aligned, never scaled. Its colour says how far each spot is from
the true surface; the shadow around it is the truth.</p>
<p class="note soft">Drag to turn it, with Shift to move it. Click it, then scroll, to come closer;
or pinch. Double-click to start again. Arrow keys, + and − work too. The colours mean the same on
all bones.</p>
{cards}</section>
"""


def _unseen(figure: Figures, index: int, row: int, pictures: dict[str, Any]) -> str:
    path = f"bones/{row}"
    match = figure.at(f"{path}/nearest")
    name, chosen = escape(match["name"]), escape(match["chosen"])
    views = [
        ("beside", "Side by side"),
        ("both", "Overlaid"),
        ("match", "Match"),
        ("truth", "Truth"),
    ]
    alt = f"AP and ML film of {figure.at(f'{path}/name')}"
    measures = "".join(
        f"<div><dt>{words}</dt><dd>{figure(f'{path}/{key}')} <small>mm</small></dd></div>"
        for key, words in (
            ("shown/rms_mm", "RMS distance"),
            ("shown/hd95_mm", "95 % lie within"),
            ("shown/hausdorff_mm", "farthest spot"),
            ("nearest/best_rms_mm", f"RMS of the best, {label(match['best'])}"),
        )
    )
    return f"""<article class="card shape"><div class="films">
<h3>{label(match["name"])} <span class="soft">looks most like</span> {label(match["chosen"])}</h3>
<p class="note soft">{figure(f"{path}/nearest/share", ".0%")} of its film pairs say so. This is the
first:</p>{film(pictures["films"][index], alt)}
<dl class="measures">{measures}</dl></div>
<div><div class="stage"><img class="still" src="{pictures["stills"][index]}" loading="lazy"
alt="{chosen} on {name}, from the front and from the side, coloured by distance">
<canvas hidden tabindex="0" role="img" aria-label="3D view of {chosen} on {name}; arrow keys turn
it"></canvas><div class="signs" hidden><span>the true bone</span><span>its match</span></div></div>
<div class="under"><span hidden class="under">{choice("Show", f"view-{index}", views)}</span>
{_scale(pictures)}</div></div></article>
"""


def _scale(pictures: dict[str, Any]) -> str:
    top = pictures["top_mm"]
    return (
        f'<div class="scale"><i style="background:{gradient(pictures["colours"])}"></i>'
        f"<span><b>0</b><b>off by</b><b>{top:g} mm or more</b></span></div>"
    )


def tables(figure: Figures) -> str:
    """The nearest match beside the simple answers, as a picture and as figures."""
    return f"""<section id="tables"><h2>Beside the simple answers</h2>
<p>A nearest match is worth something if it beats what needs no X-ray network: the known bone of the
same length, or the mean of all known shapes. It cannot beat the best known bone.</p>
{dot_plot(figure, _ANSWERS)}{shape_table(figure)}{recognition_table(figure)}</section>
"""


def bones(figure: Figures, pictures: dict[str, Any]) -> str:
    """All bones at one scale."""
    cells = []
    for index, bone in enumerate(figure.at("bones")):
        kind = "known" if bone["known"] else "never seen"
        picture = ""
        if index < len(pictures["portraits"]):
            picture = film(pictures["portraits"][index], f"AP and ML film of {bone['name']}")
        cells.append(
            f"<li{'' if bone['known'] else ' class=unseen'}><figure>{picture}<figcaption>"
            f"<b>{escape(bone['name'])}</b><br>{figure(f'bones/{index}/length_mm', '.1f')} mm, "
            f"{kind}</figcaption></figure></li>"
        )
    return f"""<section id="bones"><h2>The bones</h2>
<p>Straight views of every bone, all at one scale. The outlined ones were kept from the network.</p>
<ul class="bones">{"".join(cells)}</ul></section>
"""


def how(figure: Figures) -> str:
    """Settings, times, machine, limits."""
    learns = (
        "whose distances follow the distances between the bones’ surfaces"
        if figure.at("settings/training/loss") == "shape"
        else "that are near for one bone, whichever way it lies, and far for two"
    )
    return f"""<section id="how"><h2>How it was made</h2>
<p>Every bone is photographed by computation through its CT volume, from a point source. The network
sees AP and ML as two channels of one picture at true scale and learns fingerprints {learns}. Of
each known bone {figure("views/enrolled", "d")} turns about the long axis are enrolled; the new
films are taken at other turns, up to {figure("views/most_turned_deg", ".0f")}°, each tipped by
up to {figure("views/most_tipped_deg", ".0f")}°, at energies from
{figure("views/lowest_kev", ".0f")} to {figure("views/highest_kev", ".0f")} keV.
Surface distances run from points to surfaces, both ways,
weighted by area, after rigid alignment without scaling.</p>
{facts_lists(figure)}
<h3 style="margin-top:2em">Limits</h3>
<ul class="limits">
<li>The films are artificial, of bones without soft tissue unless their scans hold it. Real films
differ in contrast, scatter and positioning.</li>
<li>Known and asked-for films of one bone come from one scan. Two scans of one person would differ
more.</li>
<li>The threshold was set on the film pairs that it is judged by, and a handful of unseen bones says
little about the next one.</li>
<li>A nearest match is a bone that exists, not this one. It shows no fracture, growth or disease of
the bone on the films.</li>
<li>This is research software, not a medical device.</li></ul></section>
"""

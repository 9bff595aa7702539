"""The report on the paper: every table and figure, the paper's value, ours, and why they differ."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteoprint import __version__
from osteoprint.errors import InputError
from osteoprint.fingerprint.losses import triplet_accuracy
from osteoprint.reconstruct.output import write_whole
from osteoprint.study.ablation_page import STYLE, ablation_table, table
from osteoprint.study.paper import SPLITS, PaperStudy
from osteoprint.study.paper_figures import (
    alignment_pictures,
    attention_sheet,
    data_pictures,
    distance_windows,
    embedding_maps,
)
from osteoprint.study.report import PAPER, plain, write_report
from osteoprint.study.whole_way import StudyResult


@dataclass(frozen=True)
class Row:
    """One of the paper's figures.

    Attributes
    ----------
    what : in words.
    paper, ours : as they are said.
    why : why they differ, or cannot be compared.
    """

    what: str
    paper: str
    ours: str
    why: str


def write_paper(folder: Path, study: PaperStudy, title: str) -> dict[str, Any]:
    """Write ``paper.html``, ``paper.json``, and the study's own report beside them.

    Each file appears whole or not at all. Returns the JSON's values. Raises InputError where the
    folder is a file.
    """
    if folder.is_file():
        raise InputError(folder, "is a file", "name a folder for the report")
    values: dict[str, Any] = plain(
        {
            "title": title,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "osteoprint": __version__,
            "scale": study.scale.name,
            "rows": [asdict(row) for row in rows(study)],
            "classified": [asdict(each) for each in study.classified],
            "windows": [each.to_json() for each in study.separations],
            "attention": {
                name: {"on_bone": float(share), "area_of_bone": float(area)}
                for name, share, area in zip(
                    study.attention.names,
                    study.attention.on_bone,
                    study.attention.area,
                    strict=True,
                )
            },
            "transfer": study.transfer,
            "ablation": {"scale": study.scale.ablation.words, "table": table(study.ablation)},
            "nearest": study.result.nearest.to_json(),
        }
    )
    write_report(folder, study.result, title=title)
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / "paper.json", text.encode())
    write_whole(folder / "paper.html", _page(values, study).encode())
    return values


def rows(study: PaperStudy) -> list[Row]:
    """The paper's headline figures beside ours."""
    result, summary = study.result, study.result.nearest.summary()
    known, unseen = len(result.experiment.known), len(result.experiment.unseen)
    bones = f"{known} known and {unseen} unseen bones of this bank; the paper had cat femora"
    leaky = [c for c in study.classified if c.split == "random"]
    strict = [c for c in study.classified if c.split in ("angle", "one view")]
    best = max((t["accuracy"] for t in study.transfer), default=float("nan"))
    scale = f"Scale: {study.scale.name}."
    scratch = sorted({t["backbone"] for t in study.transfer if not t["pretrained"]})
    if scratch:
        scale += f" From scratch, not from ImageNet weights as in the paper: {', '.join(scratch)}."
    on_bone = study.attention.on_bone
    looked = on_bone[np.isfinite(on_bone)]
    out = [
        Row("transfer learning: best validation accuracy", "100 % (ResNet-50, Inception-V3)",
            f"{best:.1%}", scale),
        Row("attention: bones whose films are looked at where bone is", "28 of 29",
            f"{int((looked > 0.5).sum())} of {len(looked)}",
            f"Counted where more than half of Grad-CAM lies on bone; {float(np.mean(looked)):.0%} "
            f"on average, where bone takes {float(np.mean(study.attention.area)):.0%} of the "
            "picture. The paper judged by eye."
            if len(looked) else "The network shows no attention."),
        Row("triplet accuracy, films of known bones", f"{PAPER['triplet_accuracy']:.1%}",
            f"{_triplets(result):.2%}", f"{bones}. Films that were not trained on."),
        Row("fingerprints classified, random split of the films",
            f"{PAPER['classified']:.0%}", _range([c.right for c in leaky]),
            "The paper’s split: neighbouring angles stand on both sides, so it says little."),
        Row("the same, angles held out or one view enrolled", "–",
            _range([c.right for c in strict]), "Stricter than the paper; no film asked about "
            "was taken from an enrolled angle."),
    ]  # fmt: skip
    for told in study.separations:
        out.append(
            Row(f"pairs of unseen bones’ films, {told.window.name}",
                _said(told.window.paper), f"{told.accuracy:.2%}",
                f"Balanced {told.balanced:.2%}; at the margin as the threshold "
                f"{told.at_margin:.2%}. Most pairs are of two bones, so plain accuracy flatters.")
        )  # fmt: skip
    relative = summary["rms_relative"]
    out += [
        Row("nearest shape: RMS", f"{PAPER['rms_mm']} mm, {PAPER['rms_relative']:.4f} relative",
            f"{summary['rms_mm']:.2f} mm, {relative:.4f} relative", "Millimetres depend on the "
            f"size and spread of the bones. The best there is: {summary['best_rms_mm']:.2f} mm; "
            f"a bone of the same length: {summary['same_length_rms_mm']:.2f} mm."),
        Row("nearest shape: Hausdorff distance",
            f"{PAPER['hausdorff_mm']} mm, {PAPER['hausdorff_relative']:.4f} relative",
            f"{summary['hausdorff_mm']:.2f} mm, {summary['hausdorff_relative']:.4f} relative",
            "As above; it hangs on one spot of each bone."),
        Row("nearest shape: known bones that would have been better", f"{PAPER['better']}",
            f"{summary['better']:.1f}", f"Of {known}; the paper: of {PAPER['known']}."),
    ]  # fmt: skip
    return out + _rebuilt_rows(result)


# What the paper says of other ways to a shape: its own trial of a shape model on three bones'
# natural X-rays, and an average over what others report.
_OTHERS = {
    "statistical": "1.35, 3.07, 0.80 mm",
    "laplacian": "1.32 mm on average", "ffd": "1.32 mm on average", "tps": "1.32 mm on average",
    "contour": "1.32 mm on average",
}  # fmt: skip


def _rebuilt_rows(result: StudyResult) -> list[Row]:
    """Surfaces rebuilt from the films, where that was asked for."""
    if result.rebuilt is None:
        why = "This bank holds too few bones of one kind to learn their shapes from."
        return [Row("shape rebuilt from two films: RMS", "1.35, 3.07, 0.80 mm", "–", why)]
    said = result.rebuilt.to_json()
    return [
        Row(f"shape rebuilt from two films, {each['method']}: RMS",
            _OTHERS.get(each["method"], "–"),
            f"{each['rms_mm']:.2f} mm, {each['rms_relative']:.4f} relative",
            f"Worst bone {each['worst_rms_mm']:.2f} mm; artificial films, preset "
            f"{said['preset']}. The paper’s are of natural films (shape model) or of other "
            "people’s bones, and mix mean distances with RMS.")
        for each in said["methods"]
    ]  # fmt: skip


def _said(paper: float | tuple[float, float] | None) -> str:
    """A share, or the least and the greatest that it may be."""
    if paper is None:
        return "–"
    return " to ".join(f"{p:.2%}" for p in np.atleast_1d(paper))


def _triplets(result: StudyResult) -> float:
    """Of new films of the bones that the network was trained on."""
    prints = result.probes.fingerprints[: len(result.experiment.known)]
    whose = np.repeat(np.arange(len(prints)), prints.shape[1])
    vectors = torch.from_numpy(prints.reshape(len(whose), -1))
    return triplet_accuracy(vectors, torch.from_numpy(whose), result.settings.training.margin)


def _range(shares: list[float]) -> str:
    if not shares:
        return "–"
    low, high = min(shares), max(shares)
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"


def _page(values: dict[str, Any], study: PaperStudy) -> str:
    headline = "".join(
        f"<tr><th scope=row>{escape(row['what'])}</th><td>{escape(row['paper'])}</td>"
        f"<td><b>{escape(row['ours'])}</b></td><td class=text>{escape(row['why'])}</td></tr>"
        for row in values["rows"]
    )
    margin = study.result.settings.training.margin
    windows = ""
    if study.dots:
        windows = (
            "<h2>Figure 4: distances between fingerprints</h2><p>Films of bones never seen, two "
            "at a time: of one bone, and of two. Across is chance, so that points can be told "
            f'apart.</p><img src="{distance_windows(study.separations, study.dots, margin)}" '
            'alt="Distances in the paper’s windows">'
        )
    alignments = alignment_pictures(study.result)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(values["title"])} – osteoprint</title><style>{STYLE}
.text{{text-align:left!important}}td.text{{font-size:.85rem}}img{{max-width:100%;border-radius:4px}}
h2{{margin-top:2.5rem}}.row{{display:flex;flex-wrap:wrap;gap:12px;max-width:none}}
figure{{margin:0;width:15rem}}figcaption{{font-size:.85rem}}</style></head><body>
<h1>{escape(values["title"])}</h1>
<p>Čavojská and others took artificial X-rays of 29 cat femora and trained networks to tell them
apart. Here is every table and figure of theirs, made from the bones of this bank. <b>Scale:
{escape(values["scale"])}.</b> Maps with the film under the pointer, and surfaces to be turned, are
in <a href="report.html">the study’s own report</a>.</p>
<table><thead><tr><th scope=col>what</th><th scope=col>the paper</th><th scope=col>here</th>
<th scope=col class=text>why they differ</th></tr></thead><tbody>{headline}</tbody></table>
<h2>Figure 1: the data</h2>
<p>Artificial X-rays of two bones, AP and ML: straight, and turned and tipped. Their surfaces are in
Figure 5 and in the study’s own report.</p>
<p>{data_pictures(study.result)}</p>
<h2>Figure 2: where the network looks</h2>
<p>Grad-CAM of each known bone’s straight films, towards the mean of its other films; below, the
share that lies on bone.</p>
<img src="{attention_sheet(study.attention)}" alt="Films with attention">
<h2>Figures 3b and 3c: the fingerprints on a map</h2>
<img src="{embedding_maps(study.result)}" alt="t-SNE and PCA of the fingerprints">
{windows}
<h2>Table 1: nearest shapes</h2>{_nearest(values)}
<h2>Figure 5: nearest shapes on the true ones</h2>
<p>Each unseen bone’s choice laid onto it, coloured by its distance from the true surface, up to
{alignments["top_mm"]:g} mm; the last is the worst pair there is among these bones.</p>
<div class=row>{alignments["pictures"]}</div>
<h2>Fingerprints classified</h2>{_classified(values)}
<h2>Transfer learning</h2>
<p>Judged on films kept from the training, drawn at random as the paper’s: films of nearly the same
angle and energy stand on both sides. Differences from the paper come from the number of steps and
films, and from the weights that a network began with.</p>{_transfer(values)}
<h2>What mattered to the network</h2>
<p>Scale: {escape(values["ablation"]["scale"])}. One training a line: differences smaller than two
trainings of one line have are chance. The paper’s column is its change of the validation accuracy;
at a smaller scale a network is farther from its end, so that most changes weigh more.</p>
{ablation_table(values["ablation"]["table"])}
<p><small>Made by osteoprint {escape(values["osteoprint"])}, {escape(values["created"])}. Not a
medical device.</small></p>
</body></html>
"""


def _nearest(values: dict[str, Any]) -> str:
    body = "".join(
        f"<tr><th scope=row>{escape(m['name'])}</th><td class=text>{escape(m['chosen'])}</td>"
        f"<td>{m['rms_mm']:.2f}</td><td>{m['rms_relative']:.4f}</td><td>{m['hausdorff_mm']:.2f}"
        f"</td><td>{m['hausdorff_relative']:.4f}</td><td>{m['better']:.1f}</td></tr>"
        for m in values["nearest"]["bones"]
    )
    mean = values["nearest"]["summary"]
    return (
        "<table><thead><tr><th scope=col>unseen bone</th><th scope=col class=text>most films "
        "chose</th><th scope=col>RMS, mm</th><th scope=col>relative</th><th scope=col>Hausdorff, "
        "mm</th><th scope=col>relative</th><th scope=col>known bones better</th></tr></thead>"
        f"<tbody>{body}<tr class=base><th scope=row>mean</th><td></td><td>{mean['rms_mm']:.2f}</td>"
        f"<td>{mean['rms_relative']:.4f}</td><td>{mean['hausdorff_mm']:.2f}</td>"
        f"<td>{mean['hausdorff_relative']:.4f}</td><td>{mean['better']:.1f}</td></tr>"
        f"<tr><th scope=row>the paper</th><td></td><td>{PAPER['rms_mm']}</td>"
        f"<td>{PAPER['rms_relative']:.4f}</td><td>{PAPER['hausdorff_mm']}</td>"
        f"<td>{PAPER['hausdorff_relative']:.4f}</td><td>{PAPER['better']}</td></tr></tbody></table>"
    )


def _classified(values: dict[str, Any]) -> str:
    words = dict(SPLITS)
    body = "".join(
        f"<tr><th scope=row>{escape(words[c['split']])}</th><td>{c['kind']}</td>"
        f"<td>{c['bones']}</td><td>{c['asked']:,}</td><td>{c['right']:.2%}</td></tr>"
        for c in values["classified"]
    )
    return (
        "<table><thead><tr><th scope=col>split</th><th scope=col>classifier</th>"
        "<th scope=col>bones</th><th scope=col>films asked about</th><th scope=col>right</th></tr>"
        f"</thead><tbody>{body}</tbody></table>"
    )


def _transfer(values: dict[str, Any]) -> str:
    body = "".join(
        f"<tr><th scope=row>{escape(t['backbone'])}</th>"
        f"<td>{'head only' if t['trained'] == 'head' else 'all layers'}</td>"
        f"<td>{t['optimiser'].upper() if t['optimiser'] == 'sgd' else 'Adam'}</td>"
        f"<td>{t['learning_rate']:g}</td><td>{'ImageNet' if t['pretrained'] else 'none'}</td>"
        f"<td>{t['paper']:.1%}</td><td>{t['accuracy']:.1%}</td></tr>"
        for t in values["transfer"]
    )
    return (
        "<table><thead><tr><th scope=col>network</th><th scope=col>trained</th>"
        "<th scope=col>optimiser</th><th scope=col>learning rate</th><th scope=col>weights</th>"
        "<th scope=col>the paper<small>best of its settings</small></th><th scope=col>here</th>"
        f"</tr></thead><tbody>{body}</tbody></table>"
    )

"""The paper's figures, drawn from one's own bones."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from osteoprint.fingerprint.samples import gallery_poses
from osteoprint.shape.surface_index import SurfaceIndex
from osteoprint.study.figures import bone_hues, data_uri, flat_maps, probe_picture
from osteoprint.study.pairwise import Separation
from osteoprint.study.paper import Attention
from osteoprint.study.reconstruction import compare
from osteoprint.study.solids import solids, still, thinned
from osteoprint.study.whole_way import StudyResult

_SAME, _OTHER = "#d9822b", "#3b6ea8"
_ENLARGE, _PER_ROW = 2, 10
# Attention below this is not drawn.
_FAINT = 0.15


def attention_sheet(seen: Attention) -> str:
    """Figure 2 as a data URI: each bone's films, AP beside ML, with what the network looks at."""
    tiles = [_attended(seen, index) for index in range(len(seen.names))]
    high, wide = tiles[0].shape[:2]
    caption, columns = 16, min(_PER_ROW, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * (wide + 4), rows * (high + caption)), (0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        x, y = index % columns * (wide + 4), index // columns * (high + caption)
        sheet.paste(Image.fromarray(tile), (x, y))
        share = seen.on_bone[index]
        said = "–" if not np.isfinite(share) else f"{share:.0%}"
        draw.text((x + 3, y + high + 2), f"{seen.names[index][:14]} {said}", fill=(190, 196, 203))
    return data_uri(sheet, 80)


def _attended(seen: Attention, index: int) -> NDArray[np.uint8]:
    """(rows, columns, 3): one bone."""
    pair = np.concatenate(list(seen.pictures[index]), axis=1)
    heat = seen.maps[index]
    if heat.shape[1] != pair.shape[1]:
        # One map for both views.
        heat = np.concatenate([heat, heat], axis=1)
    grey = np.clip(pair, 0, 1)[..., None] * 255 * 0.9
    colour = matplotlib.colormaps["inferno"](np.clip(heat, 0, 1))[..., :3] * 255
    cover = np.clip((heat - _FAINT) / (1 - _FAINT), 0, 1)[..., None] * 0.75
    drawn = np.asarray(np.round(grey * (1 - cover) + colour * cover), np.uint8)
    return np.repeat(np.repeat(drawn, _ENLARGE, axis=0), _ENLARGE, axis=1)


def data_pictures(result: StudyResult) -> str:
    """Figure 1b as HTML: two known bones, each straight and as it was asked about."""
    out = []
    straight = gallery_poses()[len(gallery_poses()) // 2]
    for index, bone in enumerate(result.experiment.known[:2]):
        for pose in (straight, result.probes.poses[index][0]):
            name = escape(bone.record.name)
            out.append(f'<img src="{probe_picture(bone, pose, 300)}" alt="AP and ML of {name}"> ')
    return "".join(out)


def alignment_pictures(result: StudyResult) -> dict[str, Any]:
    """Figure 5 as HTML (``pictures``), its colours ending at ``top_mm``."""
    bodies, near = solids(result), result.nearest
    bones, known = result.experiment.unseen, result.experiment.known
    tiles = [
        (still, f"{match.name}: {match.chosen}, {match.rms_mm:.2f} mm")
        for still, match in zip(bodies["stills"], near.matches, strict=True)
    ]
    asked, other = np.unravel_index(int(np.argmax(near.rms_mm)), near.rms_mm.shape)
    distance, moved = compare(known[other].surface, bones[asked].surface)
    shown = thinned(moved, 7_000)
    far = SurfaceIndex.build(bones[asked].surface).nearest(shown.vertices)[0]
    worst = f"{bones[asked].record.name}: {known[other].record.name}, {distance.rms_mm:.2f} mm"
    tiles.append((still(shown, np.clip(far / bodies["top_mm"], 0, 1)), f"the worst: {worst}"))
    pictures = "".join(
        f'<figure><img src="{source}" alt=""><figcaption>{escape(said)}</figcaption></figure>'
        for source, said in tiles
    )
    return {"top_mm": bodies["top_mm"], "pictures": pictures}


def embedding_maps(result: StudyResult) -> str:
    """Figures 3b and 3c: t-SNE and PCA of the known bones' fingerprints."""
    prints = result.probes.fingerprints
    bones, films = prints.shape[:2]
    places = flat_maps(prints.reshape(bones * films, -1), result.settings.seed)
    colours = [matplotlib.colors.hsv_to_rgb((hue / 360, 0.65, 0.8)) for hue in bone_hues(bones)]
    figure = Figure(figsize=(11, 5.4), dpi=110)
    for column, (key, title) in enumerate((("tsne", "3b: t-SNE"), ("pca", "3c: PCA"))):
        axes = figure.add_subplot(1, 2, column + 1)
        at = np.array(places[key])
        axes.scatter(at[:, 0], at[:, 1], s=10, c=np.repeat(colours, films, axis=0), linewidths=0)
        axes.set_title(f"{title}, {bones} bones × {films} film pairs", fontsize=10)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.tight_layout()
    return _png(figure)


def distance_windows(
    separations: Sequence[Separation],
    dots: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    margin: float,
) -> str:
    """Figure 4: distances of pairs of one bone and of two, in the paper's windows."""
    columns = 3
    rows = math.ceil(len(dots) / columns)
    figure = Figure(figsize=(11, 3.1 * rows), dpi=110)
    top = max(float(two.max()) for _, two in dots) * 1.05
    rng = np.random.default_rng(0)
    for index, (told, (one, two)) in enumerate(zip(separations, dots, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        for distances, colour, label in ((two, _OTHER, "two bones"), (one, _SAME, "one bone")):
            across = rng.random(len(distances))
            axes.scatter(across, distances, s=4, c=colour, linewidths=0, alpha=0.6, label=label)
        axes.axhline(told.threshold, color="#222", lw=1, label="best threshold")
        axes.axhline(math.sqrt(margin), color="#888", lw=1, ls="--", label="margin")
        axes.set_ylim(0, top)
        axes.set_xticks([])
        axes.set_title(f"{told.window.name}\n{told.accuracy:.2%} right", fontsize=9)
        axes.tick_params(labelsize=8)
        if index % columns == 0:
            axes.set_ylabel("distance", fontsize=9)
        if index == 0:
            axes.legend(fontsize=7, loc="upper right", markerscale=2)
    figure.tight_layout()
    return _png(figure)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return data_uri(Image.open(buffer).convert("RGB"), 85)

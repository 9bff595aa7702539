"""How a film was read, in one picture: every step, and what was found by it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.reconstruct.output import write_whole
from osteoprint.xray.film import Film
from osteoprint.xray.film_bone import upright

_EDGE, _BONE, _FOUND = "#f2c14e", "#ff5a4f", "#4fc3f7"
# The upright picture shows so much around the bone's box, in shares of its length.
_AROUND = 0.06


def draw_steps(film: Film, path: Path) -> None:
    """Write the picture (PNG); it appears whole or not at all.

    Raises InputError where the folder cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.4), dpi=100, facecolor="#111418")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 5)
    _stored(axes[0], film)
    _exposed(axes[1], film)
    _cleaned(axes[2], film)
    _bone(axes[3], film)
    _standing(axes[4], film)
    for axis in axes:
        axis.set_anchor("N")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color("#333a42")
    figure.tight_layout(pad=1.2)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def _title(axis: Any, name: str, said: str) -> None:
    axis.set_title(name, color="#e8eaed", fontsize=12, loc="left", fontweight="bold")
    axis.set_xlabel(said, color="#aab2bb", fontsize=9)


def _shrunk(image: NDArray[Any]) -> NDArray[Any]:
    """Few enough pixels for a panel."""
    step = max(1, max(image.shape) // 900)
    return image[::step, ::step]


def _show(axis: Any, image: NDArray[Any]) -> None:
    small = _shrunk(image)
    low, high = (float(v) for v in np.percentile(small, [0.5, 99.8]))
    rows, columns = image.shape
    axis.imshow(
        small, cmap="gray", vmin=low, vmax=max(high, low + 1e-6),
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )  # fmt: skip


def _contour(axis: Any, mask: NDArray[np.bool_], shape: tuple[int, ...], colour: str) -> None:
    small = _shrunk(mask)
    if small.all() or not small.any():
        return
    r, c = (np.linspace(0, n - 1, m) for n, m in zip(shape, small.shape, strict=True))
    axis.contour(c, r, small.astype(float), [0.5], colors=colour, linewidths=1.2)


def _stored(axis: Any, film: Film) -> None:
    _show(axis, film.stored.pixels)
    rows, columns = film.stored.pixels.shape
    _title(axis, "As stored", f"{rows} × {columns} pixels, turned as its header says")


def _exposed(axis: Any, film: Film) -> None:
    _show(axis, film.stored.pixels)
    _contour(axis, film.field.inside, film.stored.pixels.shape, _EDGE)
    form = {"whole": "the whole film", "round": "a circle", "polygon": "a collimated field"}
    bright = "bright" if film.polarity.polarity == "bone_bright" else "dark"
    _title(
        axis, "Exposed field, polarity",
        f"{form[film.field.form]}, {film.field.share:.0%} of the film\n"
        f"bone is {bright}: {film.polarity.reason}",
    )  # fmt: skip


def _cleaned(axis: Any, film: Film) -> None:
    _show(axis, film.whole)
    _contour(axis, film.letters, film.whole.shape, _FOUND)
    said = "letters and specks painted over" if film.letters.any() else "no letters found"
    if film.marker is not None:
        top, left, bottom, right = film.marker.box
        axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=_FOUND)
        said += f"\nscale object: a {film.marker.form} of {film.marker.size_px:.1f} pixels"
    _title(axis, "Bone bright, cleaned", said)


def _bone(axis: Any, film: Film) -> None:
    _show(axis, film.whole)
    bone = film.bone
    if bone is None:
        _title(axis, "Bone", "none stands clear of all else")
        return
    _contour(axis, bone.mask, film.whole.shape, _BONE)
    lean = np.deg2rad(bone.turn_deg)
    down, right = np.array([np.cos(lean), -np.sin(lean)]), np.array([np.sin(lean), np.cos(lean)])
    corners = np.array(
        [np.add(bone.centre, a * bone.size[0] / 2 * down + b * bone.size[1] / 2 * right)
         for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1))]
    )  # fmt: skip
    axis.plot(corners[:, 1], corners[:, 0], color=_EDGE, linewidth=1.2)
    within = "in soft tissue" if bone.tissue is not None else "bare"
    _title(
        axis, "Bone",
        f"{within}, leans {bone.turn_deg:+.1f}°, {film.length_mm:.1f} mm long"
        + ("\ncut by the edge of what was exposed" if bone.cut else ""),
    )  # fmt: skip


def _standing(axis: Any, film: Film) -> None:
    bone = film.bone
    if bone is None:
        axis.set_facecolor("#111418")
        axis.set_aspect(film.whole.shape[0] / film.whole.shape[1])
        _title(axis, "Upright, bone only", "no bone to stand upright")
        return
    size = [int(n + 2 * _AROUND * bone.size[0]) for n in bone.size]
    image = upright(film.radiograph.image, bone.turn_deg, bone.centre, (size[0], size[1]), 0.0)
    _show(axis, image)
    mm = film.radiograph.geometry.spacing_at_bone_mm[0]
    bar = 10.0 ** np.floor(np.log10(0.4 * size[1] * mm))
    at = 0.97 * size[0]
    axis.plot([0.06 * size[1], 0.06 * size[1] + bar / mm], [at, at], color=_EDGE, linewidth=3)
    _title(
        axis, "Upright, bone only",
        f"bar {bar:g} mm; {mm:.3f} mm a pixel at the bone,\nfrom {film.scale.source}",
    )  # fmt: skip

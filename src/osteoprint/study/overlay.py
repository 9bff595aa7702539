"""A picture of films with a reconstructed surface's outline drawn on them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import find_contours

from osteoprint.reconstruct.output import write_whole
from osteoprint.reconstruct.reconstruction import Reconstruction
from osteoprint.reconstruct.shadow import Projection, line_integrals
from osteoprint.reconstruct.shot import Shot, Target
from osteoprint.study.figures import data_uri

# Pixels of the picture, as a part of the bone's length.
_PIXEL, _SMALL = 0.0016, 0.0026


def draw_overlay(found: Reconstruction, names: Sequence[str], path: Path) -> None:
    """Write a PNG: each film, upright, once plain and once with the surface's outline."""
    count = len(found.shots)
    figure = Figure(figsize=(3.1 * 2 * count, 7.5), dpi=110, facecolor="white")
    for index, (shot, name) in enumerate(zip(found.shots, names, strict=True)):
        length = float(np.ptp(found.vertices[:, 0]))
        image = shot.upright(_PIXEL * length, length)[1]
        lines = outlines(found, shot, index)
        if found.mirrored:
            # Shown as it was taken.
            last = image.shape[1] - 1
            image = image[:, ::-1]
            lines = [np.stack([line[:, 0], last - line[:, 1]], axis=1) for line in lines]
        low, high = np.percentile(image, [1, 99.7])
        for side in range(2):
            axes = figure.add_subplot(1, 2 * count, 2 * index + side + 1)
            axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            if side:
                for line in lines:
                    axes.plot(line[:, 1], line[:, 0], color="#ffb000", lw=0.9)
            title = "with the surface’s outline" if side else f"{shot.view.value} {name}"
            axes.set_title(title, fontsize=8)
            axes.set_xlim(-0.5, image.shape[1] - 0.5)
            axes.set_ylim(image.shape[0] - 0.5, -0.5)
            axes.axis("off")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def outlined_films(found: Reconstruction) -> str:
    """Data URI of the films beside each other, upright, with the surface's outline."""
    pictures = []
    high = max(_picture(found, index).shape[0] for index in range(len(found.shots)))
    for index in range(len(found.shots)):
        picture = _picture(found, index)
        pad = high - len(picture)
        pictures.append(np.pad(picture, ((pad // 2, pad - pad // 2), (0, 0), (0, 0))))
    return data_uri(Image.fromarray(np.concatenate(pictures, axis=1)))


def _picture(found: Reconstruction, index: int) -> NDArray[np.uint8]:
    """(rows, columns, 3): one film with the outline drawn into it."""
    shot, length = found.shots[index], float(np.ptp(found.vertices[:, 0]))
    pixel_mm = _SMALL * length
    image = shot.upright(pixel_mm, length)[1]
    low, top = np.percentile(image, [1, 99.7])
    grey = np.clip((image - low) / max(float(top - low), 1e-6), 0.0, 1.0)
    cover = shadow(found, shot.target(pixel_mm, length), shot, index)
    edge = np.clip(2.0 * np.hypot(*np.gradient(cover)), 0.0, 1.0)[..., None]
    colour = np.array([255.0, 176.0, 0.0])
    drawn = 235 * grey[..., None] * (1 - edge) + colour * edge
    return np.asarray(np.round(drawn[:, ::-1] if found.mirrored else drawn), np.uint8)


def outlines(found: Reconstruction, shot: Shot, index: int) -> list[NDArray[np.float64]]:
    """(k, 2) lines (row, column) around the surface's shadow, in the pixels of the overlay."""
    length = float(np.ptp(found.vertices[:, 0]))
    target = shot.target(_PIXEL * length, length)
    found_lines = find_contours(  # type: ignore[no-untyped-call]
        shadow(found, target, shot, index), 0.5
    )
    return list(found_lines)


def shadow(found: Reconstruction, target: Target, shot: Shot, index: int) -> NDArray[np.float64]:
    """(rows, columns): which part of each pixel the surface covers."""
    placing = found.state.placings[0 if shot.rig is not None else index]
    rotation, shift = placing.total
    projection = target.projection
    points = projection.to_camera(found.vertices @ rotation.T + shift)
    fine, rows, columns = 3, *projection.shape
    still = Projection(
        np.eye(3), np.zeros(3),
        (projection.focal[0] * fine, projection.focal[1] * fine),
        ((projection.middle[0] + 0.5) * fine - 0.5, (projection.middle[1] + 0.5) * fine - 0.5),
        (rows * fine, columns * fine),
    )  # fmt: skip
    through = line_integrals(points, found.faces, np.ones(len(points)), still)
    covered = (through > 1e-3).reshape(rows, fine, columns, fine)
    return np.asarray(covered.mean(axis=(1, 3)))

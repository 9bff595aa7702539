"""Pictures for a report: films with a film's contrast, thumbnails, the map, the colours.

Everything ends as a data URI or as plain numbers, because a report is one file.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osteoprint.fingerprint.samples import PairPose, gallery_poses
from osteoprint.study.experiment import FilmSet, StudyBone
from osteoprint.study.whole_way import StudyResult
from osteoprint.xray.camera import Geometry
from osteoprint.xray.protocol import film_geometry, take_pair

# Thumbnails of the map: three quarters of a standard picture of 192 rows.
_THUMB_ROWS, _THUMB_COLUMNS = 144, 48
_SHEET_COLUMNS = 20
# More points than this neither fit an image file nor a reader's eye.
_MOST_POINTS = 600
_GAP = 2
# So many bones get a portrait; a larger bank is listed by name.
MOST_PORTRAITS = 150


def data_uri(image: Image.Image, quality: int = 72) -> str:
    """An image as a WebP data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def film_contrast(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) line integrals -> uint8, bone bright on black, as on a light box.

    The brightest half per cent is left to burn out, and the gamma lifts the thin ends.
    """
    bright = float(np.percentile(image[image > 0], 99.5)) if (image > 0).any() else 1.0
    share = np.clip(image / max(bright, 1e-9), 0.0, 1.0)
    return np.asarray(np.round(255.0 * share**0.8), dtype=np.uint8)


def film_pair(bone: StudyBone, pose: PairPose, geometry: Geometry) -> Image.Image:
    """The AP and the ML film of a bone, side by side."""
    sample = bone.sample
    films = take_pair(
        sample.traced, sample.frame, sample.side, geometry, (pose.ap, pose.ml), pose.energy_kev
    )
    ap, ml = (film_contrast(film.image) for film in films)
    between = np.full((len(ap), _GAP), 0, np.uint8)
    return Image.fromarray(np.hstack([ap, between, ml]))


def probe_picture(bone: StudyBone, pose: PairPose, rows: int = 440) -> str:
    """Data URI of a film pair as it was asked about: tipped and turned as it was taken."""
    return data_uri(film_pair(bone, pose, film_geometry(bone.record.length_mm, rows, rows // 2)))


def portraits(bones: Sequence[StudyBone], rows: int = 260) -> list[str]:
    """Data URI of every bone's straight films, all at one scale, so that sizes can be compared."""
    straight = gallery_poses()[len(gallery_poses()) // 2]
    geometry = film_geometry(max(b.record.length_mm for b in bones), rows, round(0.36 * rows))
    return [data_uri(film_pair(b, straight, geometry), 68) for b in bones]


def colour_table(
    name: str, low: float = 0.0, high: float = 1.0, steps: int = 32
) -> list[list[int]]:
    """(steps, 3) RGB in 0...255 of a perceptually uniform map between two of its places."""
    import matplotlib

    colours = matplotlib.colormaps[name](np.linspace(low, high, steps))
    return [[int(c) for c in row] for row in np.round(255 * colours[:, :3])]


def distance_colours() -> list[list[int]]:
    """Colours of a surface distance: bone-coloured where it is right, violet where it is off."""
    return colour_table("magma_r", 0.03, 0.72)


def bone_hues(count: int) -> list[float]:
    """A hue in degrees for every bone; neighbours in the list are far apart on the circle."""
    golden = 180.0 * (3.0 - math.sqrt(5.0))
    return [round((25.0 + index * golden) % 360.0, 1) for index in range(count)]


@dataclass(frozen=True, eq=False)
class MapPoints:
    """The film pairs of a map, in the order in which they are drawn.

    Attributes
    ----------
    kind : (n,) 0 enrolled, 1 asked about, 2 of an unseen bone.
    bone : (n,) place among the known bones followed by the unseen ones.
    fingerprints : (n, d).
    pictures : (n, 2, rows, columns) uint8.
    labels : what each pair is, in words.
    """

    kind: NDArray[np.int64]
    bone: NDArray[np.int64]
    fingerprints: NDArray[np.float32]
    pictures: NDArray[np.uint8]
    labels: list[str]


def map_points(result: StudyResult) -> MapPoints:
    """Film pairs of all bones; evenly thinned where there are too many to be looked at."""
    sets = (result.gallery, result.probes, result.unseen_films)
    known = len(result.experiment.known)
    total = sum(s.pictures.shape[0] * s.pictures.shape[1] for s in sets)
    step = max(1, math.ceil(total / _MOST_POINTS))
    parts: list[tuple[int, int, FilmSet, int]] = []
    for kind, films in enumerate(sets):
        for bone in range(len(films.pictures)):
            place = bone + (known if kind == 2 else 0)
            parts += [(kind, place, films, j) for j in range(0, films.pictures.shape[1], step)]

    def row(place: int) -> int:
        return place - known if place >= known else place

    return MapPoints(
        np.array([p[0] for p in parts]),
        np.array([p[1] for p in parts]),
        np.stack([f.fingerprints[row(b), j] for _, b, f, j in parts]),
        np.stack([f.pictures[row(b), j] for _, b, f, j in parts]),
        [_pose_words(f.poses[row(b)][j]) for _, b, f, j in parts],
    )


def _pose_words(pose: PairPose) -> str:
    return f"turned {pose.ap.long_deg:+.0f}°, {pose.energy_kev:.0f} keV"


def contact_sheet(pictures: NDArray[np.uint8]) -> dict[str, Any]:
    """One image with all thumbnails (AP beside ML), and how to find the i-th in it."""
    count = len(pictures)
    columns = min(_SHEET_COLUMNS, count)
    wide = 2 * _THUMB_COLUMNS
    sheet = Image.new("L", (columns * wide, math.ceil(count / columns) * _THUMB_ROWS))
    for index, pair in enumerate(pictures):
        # Standard pictures keep room above 1 for overexposure; thumbnails use it for contrast.
        bright = np.minimum(np.hstack([pair[0], pair[1]]) * 1.45, 255).astype(np.uint8)
        thumb = Image.fromarray(bright).resize((wide, _THUMB_ROWS), Image.Resampling.LANCZOS)
        sheet.paste(thumb, (index % columns * wide, index // columns * _THUMB_ROWS))
    return {"src": data_uri(sheet, 62), "columns": columns, "width": wide, "height": _THUMB_ROWS}


def flat_maps(fingerprints: NDArray[np.float32], seed: int) -> dict[str, list[list[float]]]:
    """(n, 2) places in 0...1 by t-SNE and by PCA, both repeatable.

    The aspect ratio is kept, since only distances mean anything on such a map.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    wide = fingerprints.astype(np.float64)
    pca = PCA(n_components=2, random_state=seed).fit_transform(wide)
    tsne = TSNE(
        n_components=2,
        perplexity=float(min(20.0, max(1.0, (len(wide) - 1) / 4))),
        init="pca",
        random_state=seed,
        max_iter=500,
        # So few points are laid out faster without the approximation.
        method="exact",
    ).fit_transform(wide)
    return {"tsne": _into_unit(tsne), "pca": _into_unit(pca)}


def _into_unit(points: NDArray[np.float64]) -> list[list[float]]:
    low, high = points.min(axis=0), points.max(axis=0)
    size = max(float((high - low).max()), 1e-12)
    unit = (points - (low + high) / 2) / size + 0.5
    return [[round(float(x), 4), round(float(y), 4)] for x, y in unit]


def histogram(
    genuine: NDArray[np.float64], impostor: NDArray[np.float64], bins: int = 48
) -> dict[str, Any]:
    """Shares of the distances of the same and of other bones in common bins from 0."""
    top = float(max(genuine.max(), impostor.max())) * 1.02 or 1.0
    edges = np.linspace(0.0, top, bins + 1)
    shares = [np.histogram(v, edges)[0] / len(v) for v in (genuine, impostor)]
    return {"top": top, "same": shares[0].tolist(), "other": shares[1].tolist()}

"""An AP and an ML film of one bone: do they agree, and by how much is one of them off.

A bone that does not lie parallel to the film looks shorter than it is, never longer, and only
along itself (a raised hip takes 6 % off a femur in AP). Two films of one scale that differ in
the bone's length are therefore brought to the longer one, along the bone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from osteoprint.errors import FilmError
from osteoprint.frames import View
from osteoprint.xray.film import Film, examine_film
from osteoprint.xray.standard import drawn_out, place

# Two films of one bone differ by the angles it lay at: 6 % occur in practice (Cavojska et
# al.), a fifth does not.
IMPOSSIBLE = 0.2


@dataclass(frozen=True, eq=False)
class FilmPair:
    """Two films of one bone.

    Attributes
    ----------
    ap, ml : the films.
    lengths_mm : of the bone, in AP and in ML, each in the plane of its middle.
    stretches : by which factor each film is drawn out along the bone; 1 for the longer.
    warnings : what is doubtful about them, in words, the films named.
    """

    ap: Film
    ml: Film
    lengths_mm: tuple[float, float]
    stretches: tuple[float, float]
    warnings: tuple[str, ...]

    @property
    def mismatch(self) -> float:
        """By which share the shorter film shows the bone shorter."""
        return 1.0 - min(self.lengths_mm) / max(self.lengths_mm)


def _length_mm(film: Film, path: Path) -> float:
    """Of the bone on a film; nan where a rig's camera is known and no bone stands clear."""
    if film.length_mm or film.camera is None:
        return film.length_mm or place(film.radiograph, str(path)).length_mm
    return float("nan")


def examine_pair(ap: Path, ml: Path, *, marker_mm: float | None = None) -> FilmPair:
    """Read an AP and an ML film, and compare them.

    Raises FilmError as :func:`examine_film`; where a film shows no bone; where both cannot
    be of one bone: another side of the body, or lengths a fifth apart. Lengths are not
    compared where a film cuts the bone or comes from a calibrated rig.
    """
    with ThreadPoolExecutor(2) as hands:
        both = hands.map(
            lambda path, view: examine_film(path, view, marker_mm=marker_mm),
            (ap, ml),
            (View.AP, View.ML),
        )
        films = next(both), next(both)
    sides = {film.radiograph.side for film in films} - {None}
    if len(sides) > 1:
        raise FilmError(ml, "is of the other side of the body", "give two films of one bone")
    first, second = (_length_mm(film, path) for film, path in zip(films, (ap, ml), strict=True))
    longer = max(first, second)
    # What is not seen whole has no length to compare.
    partly = any(film.camera is not None or (film.bone and film.bone.cut) for film in films)
    mismatch = 0.0 if partly else 1.0 - min(first, second) / longer
    if mismatch > IMPOSSIBLE:
        raise FilmError(
            ml,
            f"shows a bone of {second:.0f} mm, the AP film one of {first:.0f} mm",
            "check both films' pixel spacing and distances",
        )
    warnings = [
        f"{path.name} {w}" for path, f in zip((ap, ml), films, strict=True) for w in f.warnings
    ]
    stretches = (1.0, 1.0) if partly else drawn_out(first, second)
    if stretches != (1.0, 1.0):
        warnings.append(
            f"the bone is {first:.0f} mm long in AP and {second:.0f} mm in ML: the shorter film "
            f"is drawn out by {mismatch:.1%}, as if the bone had lain slanted"
        )
    return FilmPair(*films, (first, second), stretches, tuple(warnings))

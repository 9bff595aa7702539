"""An AP and an ML film of one bone: do they agree, and by how much is one of them off.

A bone that does not lie parallel to the film looks shorter than it is, never longer, and only
along itself (a raised hip takes 6 % off a femur in AP). Two films of one scale that differ in
the bone's length are therefore brought to the longer one, along the bone. Before that, a
difference is a reason to look again: a lens of tissue may have been taken for bone on one film,
or an end that tissue hides have been lost on the other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteoprint.errors import FilmError
from osteoprint.frames import View
from osteoprint.xray.film import Film, examine_film
from osteoprint.xray.film_outline import Outline
from osteoprint.xray.standard import drawn_out, place

# Two films of one bone differ by the angles it lay at: 6 % occur in practice (Cavojska et
# al.), a fifth does not.
IMPOSSIBLE = 0.2
# Films that differ by more are looked at again; another outline is believed if it brings them to
# less than half of that.
_DOUBTFUL, _BETTER = 0.025, 0.5


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
        return _mismatch(*self.lengths_mm)


def _length_mm(film: Film, path: Path) -> float:
    """Of the bone on a film; nan where a rig's camera is known and no bone stands clear."""
    if film.length_mm or film.camera is None:
        return film.length_mm or place(film.radiograph, str(path)).length_mm
    return float("nan")


def _agreeing(
    films: tuple[Film, Film], paths: tuple[Path, Path], marker_mm: float | None
) -> tuple[tuple[Film, Film], list[str]]:
    """The films, one of them outlined anew where that makes them agree, and what was done."""
    if not all(map(_in_tissue, films)) or _apart(films) <= _DOUBTFUL:
        return films, []
    longer = int(np.argmax([film.length_mm or 0.0 for film in films]))
    again: dict[int, tuple[Outline, str]] = {
        longer: ("held", "what hangs on the bone beyond its edge is left out"),
        1 - longer: ("rough", "the bone's end is hidden and taken from its likely outline"),
    }
    best, notes = films, list[str]()
    for index, (outline, what) in again.items():
        try:
            film = examine_film(
                paths[index], films[index].radiograph.view, marker_mm=marker_mm, outline=outline
            )
        except FilmError:
            continue
        tried = (film, films[1]) if index == 0 else (films[0], film)
        if _in_tissue(film) and _apart(tried) < min(_apart(best), _BETTER * _apart(films)):
            best = tried
            notes = [f"{paths[index].name}: {what}, for so both films show one length"]
    return best, notes


def _in_tissue(film: Film) -> bool:
    """Whether the film has an outline that could be drawn another way.

    A bone that seems to run over the edge of its film counts too: a lens of tissue can do that.
    One that truly does will not come to agree.
    """
    return film.bone is not None and film.bone.tissue is not None and film.camera is None


def _apart(films: tuple[Film, Film]) -> float:
    """By which share the shorter film shows the bone shorter."""
    return _mismatch(*(film.length_mm or np.nan for film in films))


def _mismatch(first_mm: float, second_mm: float) -> float:
    return 1.0 - min(first_mm, second_mm) / max(first_mm, second_mm)


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
    films, notes = _agreeing(films, (ap, ml), marker_mm)
    sides = {film.radiograph.side for film in films} - {None}
    if len(sides) > 1:
        raise FilmError(ml, "is of the other side of the body", "give two films of one bone")
    first, second = (_length_mm(film, path) for film, path in zip(films, (ap, ml), strict=True))
    # What is not seen whole has no length to compare.
    partly = any(film.camera is not None or (film.bone and film.bone.cut) for film in films)
    mismatch = 0.0 if partly else _mismatch(first, second)
    if mismatch > IMPOSSIBLE:
        raise FilmError(
            ml,
            f"shows a bone of {second:.0f} mm, the AP film one of {first:.0f} mm",
            "check both films' pixel spacing and distances",
        )
    warnings = [
        f"{path.name} {w}" for path, f in zip((ap, ml), films, strict=True) for w in f.warnings
    ] + notes
    stretches = (1.0, 1.0) if partly else drawn_out(first, second)
    if stretches != (1.0, 1.0):
        warnings.append(
            f"the bone is {first:.0f} mm long in AP and {second:.0f} mm in ML: the shorter film "
            f"is drawn out by {mismatch:.1%}, as if the bone had lain slanted"
        )
    return FilmPair(*films, (first, second), stretches, tuple(warnings))

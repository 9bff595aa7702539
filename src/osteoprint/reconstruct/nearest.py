"""The bank's closest bone: by the shape that the films show, or by their fingerprint.

Shapes need a bone model, which needs bones of several individuals; fingerprints need a network.
For bones that are not in the bank the films' own shape finds the nearest one more surely.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.bank.evidence import Calibration
from osteoprint.bank.records import BoneRecord, ModelRecord
from osteoprint.bank.search import Fingerprints, Match, nearest
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError, FilmError
from osteoprint.fingerprint.model import Model, load_model
from osteoprint.fingerprint.samples import pair_pictures
from osteoprint.frames import Side, apply, invert_rigid
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.reconstruction import Reconstruction
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.surface_index import SurfaceIndex
from osteoprint.xray.film_pair import examine_pair
from osteoprint.xray.radiograph import Radiograph
from osteoprint.xray.standard import place

# A bone shorter than this share of the model's picture is shown too coarsely to be told apart.
_SHORTEST = 0.2


@dataclass(frozen=True, eq=False)
class Query:
    """A pair of films, as the bank is asked about it.

    Attributes
    ----------
    fingerprint : (d,) float32, unit length.
    side : of the body, where a film says it.
    other_side : ids of the bones that it cannot be, being of the other side of the body.
    warnings : what is doubtful about the films or the bank, in words.
    scale_source : where the films' millimetres come from, in words.
    lengths_mm : of the bone in AP and in ML.
    """

    fingerprint: NDArray[np.float32]
    side: Side | None
    other_side: frozenset[str]
    warnings: tuple[str, ...]
    scale_source: str
    lengths_mm: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Lookup:
    """A bank opened for questions: its model and the fingerprints that model made.

    Attributes
    ----------
    bank : the bank.
    record : the model as the bank knows it.
    model : the same, ready to embed.
    """

    bank: Bank
    record: ModelRecord
    model: Model

    @classmethod
    def open(cls, bank: Bank) -> Lookup:
        """The bank's default model and its fingerprints.

        Raises BankError where no bone is enrolled, ModelError where the model is damaged.
        """
        record = bank.model()
        if not bank.enrolled(record):
            raise BankError(
                bank.folder, "has no fingerprints", "run 'osteoprint enrol' with a model first"
            )
        return cls(bank, record, load_model(record.path))

    def look(self, ap: Path, ml: Path, *, marker_mm: float | None = None) -> Query:
        """The fingerprint of a pair of film files, and what is doubtful about them.

        Raises FilmError for a film that cannot be used, for two films that cannot be of one
        bone, and where the bone has a size that the model was not made for.
        """
        pair = examine_pair(ap, ml, marker_mm=marker_mm)
        films = pair.ap.radiograph, pair.ml.radiograph
        for path, film in zip((ap, ml), films, strict=True):
            self._check_length(path, film)
        warnings = list(pair.warnings)
        side = films[0].side or films[1].side
        records = {r.id: r for r in self.bank.bones()}
        enrolled = self.bank.enrolled(self.record).keys()
        missing = len(records) - len(enrolled)
        if missing:
            warnings.append(f"{missing} of {len(records)} bones have no fingerprints: enrol again")
        other = frozenset(i for i, r in records.items() if side and r.side not in (None, side))
        if other >= enrolled:
            warnings.append(
                f"the films are of a {side} bone, the bank holds no fingerprints of that side"
            )
            other = frozenset()
        pictures = pair_pictures(films, self.model.card.frame, (str(ap), str(ml)), pair.stretches)
        embedded = np.asarray(self.model.embed(pictures[None])[0])
        scale = " and ".join(dict.fromkeys(film.scale_source for film in films))
        return Query(embedded, side, other, tuple(warnings), scale, pair.lengths_mm)

    def _check_length(self, path: Path, film: Radiograph) -> None:
        """Raise FilmError where the bone on a film is too long or too short for the model."""
        frame = self.model.card.frame
        height = frame.rows * frame.spacing_mm
        length = place(film, str(path)).length_mm
        if not _SHORTEST * height < length < height:
            raise FilmError(
                path,
                f"shows a bone of {length:.0f} mm, the bank's model is for bones up to "
                f"{height:.0f} mm",
                "check the pixel spacing, the distances and that the background is even",
            )

    def matches(self, query: Query, top: int) -> list[Match]:
        """The nearest bones, nearest first; squared distances between fingerprints."""
        fingerprints = self.bank.fingerprints(self.record)
        return list(nearest(query.fingerprint, fingerprints, top=top, exclude=query.other_side))

    def nearest_shapes(self, query: Query, top: int) -> list[Match]:
        """The bones nearest in shape, as far as fingerprints say it, nearest first.

        Distances are those of the numbers that are for shapes, to the mean of a bone's views. They
        say nothing of bones of two kinds or sides: asked are those of the kind and the side of the
        bone that the films come nearest to.
        """
        records = {r.id: r for r in self.bank.bones()}
        like = records[self.matches(query, 1)[0].bone_id]
        unlike = {i for i, r in records.items() if (r.bone, r.side) != (like.bone, like.side)}
        known = self.bank.fingerprints(self.record)
        views = np.split(known.vectors, known.starts[1:-1])
        means = [self.model.shape_of_views(each) for each in views]
        shapes = Fingerprints.from_rows(known.bones, ["mean"] * len(means), np.stack(means))
        asked = self.model.of_shape(query.fingerprint)
        return list(nearest(asked, shapes, top=top, exclude=query.other_side | unlike))

    def kind(self, query: Query) -> str:
        """What kind of bone the films show: that of the nearest of the bank."""
        return self.bank.bone(self.matches(query, 1)[0].bone_id).bone

    def calibration(self, kind: str) -> Calibration:
        """What a distance to a bone of this kind proves.

        Raises BankError where it could not be learnt.
        """
        return self._learnt(self.bank.calibration(self.record, kind))

    def pair_calibration(self, kind: str) -> Calibration:
        """What a distance between two film pairs of bones of this kind proves.

        Raises as :meth:`calibration`.
        """
        return self._learnt(self.bank.pair_calibration(self.record, kind))

    def _learnt(self, calibration: Calibration | None) -> Calibration:
        if calibration is None:
            raise BankError(
                self.bank.folder,
                "has no threshold: its enrolment was not finished, is of an earlier version, or "
                "holds fewer than two bones",
                "run 'osteoprint enrol' again, with more bones if there is only one",
            )
        return calibration

    def nearest_error_mm(self) -> dict[str, float] | None:
        """Surface RMS in mm that nearest matches of this model had: median and 95 %.

        Measured when the model was trained, each bone against its nearest other; None for
        a model that does not say.
        """
        figures = self.model.card.figures
        if "nearest median mm" not in figures:
            return None
        return {"median": figures["nearest median mm"], "p95": figures["nearest p95 mm"]}


def nearest_surface(bank: Bank, record: BoneRecord) -> trimesh.Trimesh:
    """A known bone's surface in its anatomical frame, mm."""
    surface = bank.surface(record)
    return trimesh.Trimesh(
        apply(invert_rigid(np.asarray(record.bone_to_world)), surface.vertices),
        surface.faces,
        process=False,
    )


@dataclass(frozen=True, eq=False)
class NearestShape:
    """The known bone whose surface is nearest to the one that films show.

    Attributes
    ----------
    record : the bone.
    surface : mm, in its anatomical frame, of the films' side of the body.
    rms_mm, median_mm, p95_mm : distances of its points from the films' surface.
    warnings : what is doubtful, in words.
    """

    record: BoneRecord
    surface: trimesh.Trimesh
    rms_mm: float
    median_mm: float
    p95_mm: float
    warnings: tuple[str, ...]


def nearest_by_shape(bank: Bank, model: BoneModel, found: Reconstruction) -> NearestShape:
    """Of the bones a model was learnt from, the one nearest to a reconstruction.

    Bones of the films' side come first; where the bank has none, another is mirrored.

    Raises BankError where the model's bones are no longer in the bank.
    """
    ranked = model.nearest_members(found.vertices)
    records = {r.id: r for r in bank.bones()}
    known = [(records[name], mm) for name, mm in ranked if name in records]
    if not known:
        raise BankError(bank.folder, "lost the bones its shapes were learnt from", "ingest again")
    own = [(r, mm) for r, mm in known if found.side is None or r.side in (None, found.side)]
    record, rms = (own or known)[0]
    surface, warnings = nearest_surface(bank, record), []
    if not own:
        warnings.append(f"the bank holds no {found.side} bone: {record.name} is mirrored")
        surface = trimesh.Trimesh(
            surface.vertices * [1.0, -1.0, 1.0], surface.faces[:, ::-1], process=False
        )
    aligned = surface.copy()
    aligned.apply_transform(align_rigid(surface, found.surface))
    far = SurfaceIndex.build(aligned, record.name).nearest(found.surface.vertices)[0]
    median, p95 = np.percentile(far, [50, 95])
    return NearestShape(record, surface, rms, float(median), float(p95), tuple(warnings))

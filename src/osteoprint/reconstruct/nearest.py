"""The bank's closest bone: films become a fingerprint, the fingerprint finds its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.bank.evidence import Calibration
from osteoprint.bank.records import BoneRecord, ModelRecord
from osteoprint.bank.search import Match, nearest
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError, FilmError
from osteoprint.fingerprint.encoder import Model, load_model
from osteoprint.fingerprint.samples import pair_pictures
from osteoprint.frames import View, apply, invert_rigid
from osteoprint.xray.film import read_film
from osteoprint.xray.standard import place

# A bone shorter than this share of the model's picture is shown too coarsely to be told apart.
_SHORTEST = 0.2


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

    def fingerprint(self, ap: Path, ml: Path) -> NDArray[np.float32]:
        """(d,) fingerprint of a pair of film files.

        Raises FilmError for a film that cannot be used, and where the bone on it has a size
        that the model was not made for.
        """
        films = read_film(ap, View.AP), read_film(ml, View.ML)
        frame = self.model.card.frame
        height = frame.rows * frame.spacing_mm
        for path, film in zip((ap, ml), films, strict=True):
            length = place(film, str(path)).length_mm
            if not _SHORTEST * height < length < height:
                raise FilmError(
                    path,
                    f"shows a bone of {length:.0f} mm, the bank's model is for bones up to "
                    f"{height:.0f} mm",
                    "check the pixel spacing and the distances",
                )
        pictures = pair_pictures(films, self.model.card.frame, (str(ap), str(ml)))
        return np.asarray(self.model.embed(pictures[None])[0])

    def matches(self, fingerprint: NDArray[np.float32], top: int) -> list[Match]:
        """The nearest bones, nearest first; squared distances between fingerprints."""
        return list(nearest(fingerprint, self.bank.fingerprints(self.record), top=top))

    def calibration(self) -> Calibration:
        """What a distance proves. Raises BankError where it could not be learnt."""
        calibration = self.bank.calibration(self.record)
        if calibration is None:
            raise BankError(
                self.bank.folder,
                "has no threshold, because fewer than two bones are enrolled",
                "ingest more bones and run 'osteoprint enrol' again",
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

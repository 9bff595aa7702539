"""What a model's distances prove in a bank: of all bones, and of each kind where there are several.

Fibulae are thin and alike, tibiae are not: a distance that tells two fibulae apart lies between
films of one tibia.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from osteoprint.bank.evidence import Calibration


@dataclass(frozen=True)
class Calibrations:
    """What distances mean.

    Attributes
    ----------
    nearest : of distances to a bone's nearest enrolled view, whatever bone it is.
    pairs : of those between two single pairs of films; None where it was not learnt.
    kinds : both for each kind of bone that has its own.
    """

    nearest: Calibration
    pairs: Calibration | None = None
    kinds: Mapping[str, Calibrations] = field(default_factory=dict)

    def of(self, kind: str | None) -> Calibrations:
        """Those of a kind of bone; of all bones where it has none of its own."""
        return self if kind is None else self.kinds.get(kind, self)

    def to_text(self) -> str:
        """JSON text, from which :meth:`from_text` makes the same again."""
        return json.dumps(self._values(), allow_nan=False)

    def _values(self) -> dict[str, object]:
        values: dict[str, object] = self.nearest.to_dict()
        if self.pairs is not None:
            values["pairs"] = self.pairs.to_dict()
        if self.kinds:
            values["kinds"] = {name: each._values() for name, each in self.kinds.items()}
        return values

    @classmethod
    def from_text(cls, text: str) -> Calibrations:
        """The inverse of :meth:`to_text`. Raises ValueError for a text that it did not make."""
        return cls._from_values(json.loads(text))

    @classmethod
    def _from_values(cls, values: object) -> Calibrations:
        if not isinstance(values, dict):
            raise ValueError("not an object")
        pairs, kinds = values.pop("pairs", None), values.pop("kinds", {})
        if not isinstance(kinds, dict):
            raise ValueError("kinds are no object")
        return cls(
            Calibration.from_dict(values),
            None if pairs is None else Calibration.from_dict(pairs),
            {name: cls._from_values(each) for name, each in kinds.items()},
        )

"""Models as files: safetensors, their header in JSON; whole or not at all, never a pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from osteoprint.errors import ModelError

Array = NDArray[Any]


@dataclass(frozen=True)
class ModelFile:
    """One kind of file.

    Attributes
    ----------
    kind : what the file's header calls it, as "osteoprint shape model".
    version : of the kind; files of other versions are refused.
    """

    kind: str
    version: int

    @property
    def _called(self) -> str:
        return self.kind.removeprefix("osteoprint ")

    def write(self, path: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Write arrays and what JSON says about them."""
        header = {
            "format": self.kind,
            "version": str(self.version),
            "model": json.dumps(dict(about)),
        }
        draft = path.with_name(path.name + ".tmp")
        draft.write_bytes(save({n: np.ascontiguousarray(a) for n, a in arrays.items()}, header))
        draft.replace(path)

    def read(self, path: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Array]]:
        """What :meth:`write` wrote: what is said of the arrays, and those of these names.

        Raises ModelError where there is no file, or it is of another kind or version, or damaged.
        """
        if not path.is_file():
            raise ModelError(path, "there is no such file", "check the path")
        try:
            with safe_open(path, framework="numpy") as stored:
                header = stored.metadata() or {}
                if (header.get("format"), header.get("version")) != (self.kind, str(self.version)):
                    raise ModelError(
                        path, f"is not a {self._called} of this version", "build it again"
                    )
                arrays = {name: stored.get_tensor(name) for name in names}
            about = json.loads(header["model"])
        except (SafetensorError, KeyError, ValueError, TypeError, struct.error) as error:
            raise self.damaged(path) from error
        if not isinstance(about, dict):
            raise self.damaged(path)
        return about, arrays

    def damaged(self, path: Path) -> ModelError:
        """The error for a file whose contents do not belong together."""
        return ModelError(path, "is damaged", f"build the {self._called} again")

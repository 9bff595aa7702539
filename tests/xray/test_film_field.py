"""The exposed field's own fast morphology, against the library's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from osteoprint.xray.film_field import _opened, _shrunk


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (41, 60)])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_masks_are_shrunk_and_opened_as_by_scipy(shape: tuple[int, int], times: int) -> None:
    rng = np.random.default_rng(times)
    for share in (0.0, 0.7, 0.97, 1.0):
        mask = rng.random(shape) < share
        shrunk = ndimage.binary_erosion(mask, iterations=times, border_value=0)
        assert (_shrunk(mask, times) == shrunk).all()
        assert (_opened(mask, times) == ndimage.binary_opening(mask, iterations=times)).all()

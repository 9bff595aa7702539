"""8-bit pictures: against scipy's filter, inside and over the edge."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from osteoprint.xray.picture import blur_kernel, draw_blurred


@pytest.mark.parametrize("size", [(50, 31), (7, 3), (60, 40)])
@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.5])
def test_it_equals_padding_and_scipys_gaussian(size, sigma):
    rng = np.random.default_rng(3)
    lengths = rng.uniform(0, 70, (3, *size)).astype(np.float32)
    weights = np.array([1.0, 2.0, 4.0], np.float32)
    picture = np.zeros((60, 40), np.uint8)
    top, left = (60 - size[0]) // 2, (40 - size[1]) // 2
    draw_blurred(lengths, weights, blur_kernel(sigma), picture, top, left)
    padded = np.zeros((60, 40))
    padded[top : top + size[0], left : left + size[1]] = np.tensordot(weights, lengths, axes=1)
    if sigma:
        padded = gaussian_filter(padded, sigma, mode="constant")
    # Where a value lies on the edge between two grey levels, either is right.
    assert np.abs(picture - np.clip(padded, 0, 255)).max() <= 0.501
    assert picture.max() > 60


def test_a_kernel_sums_to_one_and_without_blur_is_one():
    assert blur_kernel(1.0).sum() == pytest.approx(1.0, abs=1e-6)
    assert blur_kernel(1.0).size == 9
    assert blur_kernel(0.0).tolist() == [1.0]

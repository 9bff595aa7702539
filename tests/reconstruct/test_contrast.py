"""Local contrast: what of an image is left, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.reconstruct.contrast import Seen, smoothed


def picture(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return smoothed(rng.random((120, 80)).astype(np.float32), 2.0)


@pytest.mark.parametrize("sigma", [0.7, 2.1, 8.6])
def test_a_point_spreads_by_sigma_and_keeps_its_mass(sigma):
    point = np.zeros((121, 121), np.float32)
    point[60, 60] = 1.0
    out = smoothed(point, sigma)
    at = np.arange(121) - 60
    assert out.sum() == pytest.approx(1.0, abs=1e-4)
    for axis in (0, 1):
        assert np.sqrt((out.sum(axis=axis) * at**2).sum()) == pytest.approx(sigma, rel=0.01)


def test_a_stack_is_smoothed_image_by_image():
    images = [picture(k) for k in range(3)]
    together = smoothed(np.stack(images, axis=-1), 3.3)
    for k, image in enumerate(images):
        assert np.abs(together[..., k] - smoothed(image, 3.3)).max() < 1e-5


def test_contrast_knows_no_offset_and_no_gain():
    seen = Seen.of(np.ones((120, 80), np.float32), 4.0)
    plain, _ = seen.normalised(picture())
    curved, _ = seen.normalised(3.0 * picture() + 7.0)
    assert np.abs(plain - curved).max() < 0.01


def test_what_was_not_exposed_does_not_count():
    mask = np.ones((120, 80), np.float32)
    mask[:30] = 0
    seen = Seen.of(mask, 4.0)
    black, white = picture(), picture()
    white[:30] = 1e3
    assert np.array_equal(seen.normalised(black)[0], seen.normalised(white)[0])


def test_the_curve_between_two_images_is_found():
    seen = Seen.of(np.ones((120, 80), np.float32), 4.0)
    model, _ = seen.normalised(picture())
    film = 0.6 * model + 0.3
    gain, offset = seen.curve(film, model, np.ones((120, 80), np.float32))
    inner = (slice(20, -20), slice(20, -20))
    assert np.abs(gain[inner] - 0.6).max() < 0.02
    assert np.abs(offset[inner] - 0.3).max() < 0.02

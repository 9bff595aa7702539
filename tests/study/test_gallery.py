"""What a bone is enrolled with: the same whatever else is, plain views first, each view once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cats import FRAME, make_bone

from osteoprint.fingerprint.gallery import CLINIC_TURNS_DEG, GALLERY_KEYS, gallery_pictures
from osteoprint.fingerprint.samples import GALLERY_TURNS_DEG, gallery_poses, render_set


def test_every_view_has_a_name_of_its_own_and_plain_ones_come_first() -> None:
    bone = make_bone(0).sample
    shown = gallery_pictures(bone, FRAME)
    assert shown.shape == (len(GALLERY_KEYS), 2, FRAME.rows, FRAME.columns)
    assert len(set(GALLERY_KEYS)) == len(GALLERY_TURNS_DEG) + len(CLINIC_TURNS_DEG)
    plain = render_set([bone], [gallery_poses()], FRAME)[0]
    np.testing.assert_array_equal(shown[: len(plain)], plain)
    # A clinic's are no plain ones, nor each other's.
    flat = shown.reshape(len(shown), -1).astype(float)
    apart = np.abs(flat[:, None] - flat[None]).mean(axis=2) + np.eye(len(flat)) * 255
    assert apart.min() > 0.2


def test_a_bones_views_are_its_own_and_come_again() -> None:
    bone = make_bone(0).sample
    shown = gallery_pictures(bone, FRAME)
    np.testing.assert_array_equal(shown, gallery_pictures(bone, FRAME))
    other = gallery_pictures(replace(bone, identifier="another"), FRAME)
    plain = len(GALLERY_TURNS_DEG)
    np.testing.assert_array_equal(shown[:plain], other[:plain])
    assert (shown[plain:] != other[plain:]).any(axis=(1, 2, 3)).all()

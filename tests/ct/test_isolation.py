"""Tubes, a ball joint, wires: bones whose truth is known; then two real legs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from osteoprint.ct.isolation import IsolatedBone, isolate_bones
from osteoprint.ct.reading import read_scan
from osteoprint.ct.splitting import fill_inside
from osteoprint.ct.surface import check_surface, surface_from_mask
from osteoprint.ct.volume import AIR_HU, Volume
from osteoprint.frames import Side, apply

SHAPE = (80, 64, 150)


def grid(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.indices(shape).astype(float)


def tube(x: float, y: float, radius: float, low: float = 12, high: float = 138) -> np.ndarray:
    """(I, J, K) bool: a rod along k with rounded, wider ends."""
    i, j, k = grid()
    end = np.minimum(np.abs(k - low), np.abs(k - high))
    widened = radius * (1 + 0.5 * np.exp(-end / 8))
    return ((i - x) ** 2 + (j - y) ** 2 < widened**2) & (k >= low) & (k <= high)


def scan(
    bodies: list[np.ndarray], spacing: float = 1.0, wall: float = 2.5, mirror: bool = False
) -> Volume:
    """Bones with cortex and marrow in muscle in air, blurred like a scanner does."""
    i, j, _ = grid(bodies[0].shape)
    middle = np.array(bodies[0].shape[:2]) / 2
    muscle = np.hypot(i - middle[0], j - middle[1]) < middle.min() + 6
    hu = np.where(muscle, 50.0, -1000.0)
    for body in bodies:
        depth = ndimage.distance_transform_edt(np.pad(body, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
        hu[body] = np.where(depth[body] <= wall, 1100.0, -60.0)
    hu = ndimage.gaussian_filter(hu, 0.7)
    hu += np.random.default_rng(3).normal(0, 10, hu.shape)
    matrix = np.diag([-spacing if mirror else spacing, spacing, spacing, 1.0])
    return Volume(hu.astype(np.int16), matrix)


def placed(bone: IsolatedBone, shape: tuple[int, ...]) -> np.ndarray:
    """The bone's mask on the scan's grid."""
    whole = np.zeros(shape, dtype=bool)
    at = tuple(slice(o, o + n) for o, n in zip(bone.offset, bone.mask.shape))
    whole[at] = bone.mask
    return whole


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def connected(volume: Volume, truths: Sequence[np.ndarray]) -> bool:
    """True if a plain threshold makes one piece of two bones."""
    labels, _ = ndimage.label(volume.volume_hu > 150)
    return bool(set(np.unique(labels[truths[0]])) & set(np.unique(labels[truths[1]])) - {0})


def test_one_bone_is_found_whole_and_filled() -> None:
    truth = tube(40, 32, 9)
    volume = scan([truth])
    (bone,) = isolate_bones(volume)
    assert dice(placed(bone, SHAPE), truth) > 0.95
    assert bone.complete
    assert bone.both_ends
    assert bone.length_mm == pytest.approx(127, abs=2.5)
    assert ndimage.label(bone.mask)[1] == 1
    assert np.array_equal(bone.mask, ndimage.binary_fill_holes(bone.mask))
    # Nothing but the bone and its rim is left, and that is where it was.
    outside = ~ndimage.binary_dilation(bone.mask, iterations=3)
    assert (bone.volume.volume_hu[outside] == AIR_HU).all()
    inside = volume.volume_hu[placed(bone, SHAPE)]
    assert np.array_equal(inside, bone.volume.volume_hu[bone.mask])
    corner = apply(volume.voxel_to_world, np.array([bone.offset], float))
    assert np.allclose(corner, bone.voxel_to_world[:3, 3])


def test_a_lone_bone_is_not_given_a_name() -> None:
    (bone,) = isolate_bones(scan([tube(40, 32, 9)]))
    assert bone.kind is None
    assert bone.side is None
    assert "long bone" in bone.reason


@pytest.mark.parametrize(("spacing", "mirror"), [(1.0, False), (1.0, True), (0.3, False)])
def test_two_touching_tubes_are_parted_and_named(spacing: float, mirror: bool) -> None:
    truths = [tube(30, 32, 11), tube(52.5, 32, 4.5)]  # their widened ends touch
    volume = scan(truths, spacing, mirror=mirror)
    assert connected(volume, truths)
    found = isolate_bones(volume, min_length_mm=30 * spacing)
    assert [bone.kind for bone in found] == ["tibia", "fibula"]
    # The fibula lies on the outer side; x points to the left.
    assert {bone.side for bone in found} == {Side.RIGHT if mirror else Side.LEFT}
    for bone, truth in zip(found, truths):
        assert dice(placed(bone, SHAPE), truth) > 0.9
        assert bone.complete
        assert bone.length_mm == pytest.approx(127 * spacing, abs=3 * spacing)


def ball_joint() -> tuple[np.ndarray, np.ndarray]:
    """A head on a shaft in a deep socket; the joint space is 2 mm wide."""
    i, j, k = grid((80, 80, 140))
    radial = np.hypot(i - 40, j - 40)
    from_head = np.sqrt(radial**2 + (k - 80) ** 2)
    head = (from_head < 14) | ((radial < 7) & (k > 12) & (k < 80))
    socket = (radial < 22) & (k > 78) & (k < 128) & (from_head > 16)
    return head, socket


def test_a_ball_comes_out_of_its_socket() -> None:
    truths = ball_joint()
    volume = scan(list(truths))
    assert connected(volume, truths)
    found = isolate_bones(volume)
    assert len(found) == 2
    for bone, truth in zip(found, sorted(truths, key=lambda body: -int(body.sum()))):
        assert dice(placed(bone, volume.shape), truth) > 0.9
    assert not (placed(found[0], volume.shape) & placed(found[1], volume.shape)).any()


def test_a_bone_cut_by_the_border_says_so() -> None:
    truth = tube(40, 32, 9)
    middle = scan([truth]).crop((0, 0, 0), (80, 64, 75))
    (bone,) = isolate_bones(middle)
    assert not bone.complete
    assert not bone.both_ends
    assert bone.cut_area_mm2 == pytest.approx(np.pi * 9**2, rel=0.05)
    assert any("cut by the scan's border" in text for text in bone.warnings)
    # The marrow at the cut is inside all the same.
    assert dice(placed(bone, middle.shape), truth[:, :, :75]) > 0.95


def test_a_bone_that_lacks_only_its_tip_shows_both_ends() -> None:
    i, j, k = grid()
    radius = 6 + 5 * np.exp(-(((k - 20) / 9) ** 2)) + 5 * np.exp(-(((k - 130) / 9) ** 2))
    truth = (np.hypot(i - 40, j - 32) < radius) & (k > 5) & (k < 140)
    (bone,) = isolate_bones(scan([truth]).crop((0, 0, 10), (80, 64, 150)))
    assert not bone.complete
    assert bone.both_ends


def test_wires_pebbles_and_nothing() -> None:
    empty = scan([tube(40, 32, 9) & False])
    assert isolate_bones(empty) == []
    wire, pebble = tube(60, 32, 1.2), tube(25, 32, 6, 40, 52)
    (bone,) = isolate_bones(scan([tube(40, 32, 9), wire, pebble]))
    assert dice(placed(bone, SHAPE), tube(40, 32, 9)) > 0.95
    with pytest.raises(ValueError, match="positive"):
        isolate_bones(empty, min_length_mm=0)


def test_inside_is_what_two_directions_enclose() -> None:
    shell = np.zeros((9, 9, 9), bool)
    shell[1:8, 1:8, 1:8] = True
    shell[2:7, 2:7, 2:7] = False
    pierced = shell.copy()
    pierced[4, 4, 7] = False  # a pinhole, which filling in 3D would leak through
    assert not ndimage.binary_fill_holes(pierced)[2:7, 2:7, 2:7].any()
    whole = fill_inside(pierced)
    assert whole[2:7, 2:7, 2:7].sum() >= 125 - 5  # all but the line through the pinhole
    assert not (whole & ~ndimage.binary_fill_holes(shell)).any()
    pipe = np.zeros((9, 9, 9), bool)
    pipe[1:8, 1:8] = True
    pipe[3:6, 3:6] = False
    assert fill_inside(pipe)[4, 4].all()  # capped where the border cuts it
    gutter = shell.copy()
    gutter[2:7, 2:7, 7] = False
    assert np.array_equal(fill_inside(gutter), gutter)  # a cup is open


def test_progress_is_told_in_order() -> None:
    told: list[float] = []
    isolate_bones(scan([tube(40, 32, 9)]), progress=lambda what, done: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.real
def test_two_real_legs(real_data: Path, tmp_path: Path) -> None:
    archive = (real_data / "vhf_lower_legs" / "slices.tar.xz").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(archive)) as slices:
        slices.extractall(tmp_path, filter="data")
    scanned = read_scan(tmp_path, repair=True)
    assert scanned.damaged == ()
    # The table is cut off, to save time.
    volume = scanned.volume.crop((110, 190, 0), (400, 360, 350))
    bones = isolate_bones(volume)
    named = {(bone.kind, bone.side): bone for bone in bones if bone.both_ends}
    assert set(named) == {(kind, side) for kind in ("tibia", "fibula") for side in Side}
    for side in Side:
        tibia, fibula = named["tibia", side], named["fibula", side]
        assert tibia.length_mm == pytest.approx(346, abs=4)
        assert fibula.length_mm == pytest.approx(329, abs=4)
        # Left and right of one person are alike; a talus or a condyle too many is not.
        assert np.count_nonzero(tibia.mask) == pytest.approx(262_000, rel=0.03)
        assert np.count_nonzero(fibula.mask) == pytest.approx(39_000, rel=0.06)
        assert tibia.cut_area_mm2 < 100  # a tip of a malleolus or of the eminence
        # Fibulae are thin: their centres lie outwards of the tibiae's.
        x = [apply(b.voxel_to_world, np.argwhere(b.mask).astype(float))[:, 0].mean()
             for b in (tibia, fibula)]  # fmt: skip
        assert (x[1] > x[0]) == (side == Side.LEFT)
        around = volume.crop(fibula.offset, tuple(np.add(fibula.offset, fibula.mask.shape)))
        mesh = surface_from_mask(
            fibula.mask, fibula.voxel_to_world, volume_hu=around.volume_hu, taubin_rounds=5
        )
        assert check_surface(mesh, "fibula") == []
        assert mesh.extents[2] == pytest.approx(324, abs=5)
    femora = [bone for bone in bones if bone.kind == "femur"]
    assert {bone.side for bone in femora} == set(Side)
    assert not any(bone.complete for bone in femora)

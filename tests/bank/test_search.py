"""Searching fingerprints, against a plain loop and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.bank import search
from osteoprint.bank.search import Fingerprints, Match, bone_distances, nearest, squared_distance


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    values = rng.normal(size=shape)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def crowd(rng: np.random.Generator, bones: int, views: int, spread: float) -> Fingerprints:
    """Bones with several views each, `spread` apart, rows shuffled."""
    rows = (unit(rng, bones, 1, 128) + spread * rng.normal(size=(bones, views, 128))).reshape(
        -1, 128
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = np.repeat([f"{index:04d}" for index in range(bones)], views)
    keys = np.array([f"v{index}" for index in range(len(rows))])
    order = rng.permutation(len(rows))
    return Fingerprints.from_rows(list(ids[order]), list(keys[order]), rows[order])


def plain(query: np.ndarray, prints: Fingerprints, top: int, exclude=()) -> list[Match]:
    """The slow, obvious way, in float64."""
    best: dict[str, Match] = {}
    for bone, key, vector in zip(prints.bone_ids, prints.view_keys, prints.vectors, strict=True):
        wide = vector.astype(np.float64)
        wide /= np.linalg.norm(wide)
        distance = float(np.sum((wide - query / np.linalg.norm(query)) ** 2))
        if bone not in exclude and (bone not in best or distance < best[bone].distance):
            best[str(bone)] = Match(str(bone), distance, key)
    return sorted(best.values(), key=lambda match: (match.distance, match.bone_id))[:top]


def test_points_on_a_circle():
    degrees = np.radians([0, 90, 10, 180])
    points = np.column_stack([np.cos(degrees), np.sin(degrees)])
    prints = Fingerprints.from_rows(["b", "a", "b", "c"], ["0", "90", "10", "180"], points)
    assert prints.bones == ("a", "b", "c")
    assert prints.starts.tolist() == [0, 1, 3, 4]
    assert prints.view_keys == ("90", "0", "10", "180")
    found = nearest(points[2], prints)
    assert [match.bone_id for match in found] == ["b", "a", "c"]
    expected = [0.0, 2 - 2 * np.cos(np.radians(80)), 2 - 2 * np.cos(np.radians(170))]
    assert [match.distance for match in found] == pytest.approx(expected, abs=1e-7)
    assert [match.view_key for match in found] == ["10", "90", "180"]


@pytest.mark.parametrize("spread", [0.05, 1e-4, 1e-7])
@pytest.mark.parametrize("rows", [1 << 16, 10])
def test_it_agrees_with_a_plain_loop(monkeypatch, spread, rows):
    # Views closer together than float32 can tell, and blocks that cut bones in two.
    monkeypatch.setattr(search, "_BLOCK_ROWS", rows)
    rng = np.random.default_rng(3)
    prints = crowd(rng, bones=23, views=7, spread=spread)
    own = prints.vectors[::20].astype(np.float64)
    queries = np.concatenate([own / np.linalg.norm(own, axis=1, keepdims=True), unit(rng, 5, 128)])
    for query in queries:
        matches = nearest(query, prints, top=4, exclude={"0003"})
        expected = plain(query, prints, 4, {"0003"})
        assert [match.bone_id for match in matches] == [match.bone_id for match in expected]
        assert [match.view_key for match in matches] == [match.view_key for match in expected]
        np.testing.assert_allclose(
            [match.distance for match in matches],
            [match.distance for match in expected],
            rtol=1e-12,
            atol=1e-30,
        )


def test_blocks_of_rows_that_cut_bones_change_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    prints = crowd(rng, bones=9, views=5, spread=0.2)
    queries = unit(rng, 6, 128)
    whole = search._bone_cosines(queries, prints)
    for rows in (1, 2, 7, 44):
        monkeypatch.setattr(search, "_BLOCK_ROWS", rows)
        monkeypatch.setattr(search, "_BLOCK_VALUES", 4 * rows)
        np.testing.assert_allclose(search._bone_cosines(queries, prints), whole, atol=1e-6)


def test_the_table_of_distances_agrees_with_the_search():
    rng = np.random.default_rng(5)
    prints = crowd(rng, bones=11, views=3, spread=0.1)
    queries = unit(rng, 4, 128)
    table = bone_distances(queries, prints)
    assert table.shape == (4, 11)
    for row, query in zip(table, queries, strict=True):
        exact = {match.bone_id: match.distance for match in nearest(query, prints, top=11)}
        np.testing.assert_allclose(row, [exact[bone] for bone in prints.bones], atol=1e-5)


def test_ties_go_by_id_and_by_the_first_view():
    vectors = [[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0.6, -0.8]]
    prints = Fingerprints.from_rows(["z", "a", "a", "m"], ["0", "1", "2", "3"], vectors)
    found = nearest([1.0, 0.0], prints, top=2)
    assert [(match.bone_id, match.view_key) for match in found] == [("a", "1"), ("m", "3")]


def test_small_distances_survive():
    step = 1e-8
    assert squared_distance([1.0, 0.0], [np.cos(step), np.sin(step)]) == pytest.approx(1e-16)
    assert squared_distance([1.0, 0.0], [-1.0, 0.0]) == pytest.approx(4.0)


def test_none_and_fewer_than_asked_for():
    prints = Fingerprints.from_rows(["a"], ["v"], [[0.0, 1.0]])
    assert len(nearest([0.0, 1.0], prints, top=99)) == 1
    assert nearest([0.0, 1.0], prints, exclude=["a"]) == []
    empty = Fingerprints.from_rows([], [], np.empty((0, 2)))
    assert len(empty) == 0
    assert nearest([0.0, 1.0], empty) == []
    assert bone_distances([[0.0, 1.0]], empty).shape == (1, 0)


@pytest.mark.parametrize(
    "query", [[np.nan, 1.0], [0.5, 0.5], [0.0, 0.0], [1.0, 0.0, 0.0], [[1.0, 0.0]]]
)
def test_no_fingerprint_no_search(query):
    prints = Fingerprints.from_rows(["a"], ["v"], [[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"unit length|shape"):
        nearest(query, prints)


def test_refused_rows():
    with pytest.raises(ValueError, match="top"):
        nearest([0.0, 1.0], Fingerprints.from_rows(["a"], ["v"], [[0.0, 1.0]]), top=0)
    with pytest.raises(ValueError, match="bone ids"):
        Fingerprints.from_rows(["a", "b"], ["v"], [[0.0, 1.0]])
    with pytest.raises(ValueError, match="unit length"):
        Fingerprints.from_rows(["a"], ["v"], [[0.0, np.inf]])

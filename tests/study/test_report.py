"""The whole way on tiny phantoms, and the report that comes of it."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from osteoprint.bank.records import BoneRecord
from osteoprint.ct.parametric import sample_bone as sample_parametric
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.errors import BankError, InputError
from osteoprint.fingerprint.samples import sample_bone
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.frames import AnatomicalFrame, Side, anatomical_frame, apply, invert_rigid
from osteoprint.study.experiment import StudyBone, StudySettings
from osteoprint.study.figures import (
    bone_hues,
    colour_table,
    contact_sheet,
    film_contrast,
    flat_maps,
    histogram,
)
from osteoprint.study.markup import script_json, ticks
from osteoprint.study.report import examples, facts, nearest_distances, plain, write_report
from osteoprint.study.solids import nice_top, pack, thinned
from osteoprint.study.whole_way import Stopwatch, StudyResult, run_study
from osteoprint.xray.standard import StandardFrame

HOSTILE = "</script><script>alert(1)</script> \"q\" 'r' & <b>"
VOID = {"meta", "img", "input", "br", "link", "rect"}


def make_bone(index: int, name: str) -> StudyBone:
    """A cat's femur in a coarse scan."""
    rng = np.random.default_rng([7, index])
    surface, _ = sample_parametric(rng, kind="femur", size="cat", resolution_mm=1.6)
    axes = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    volume = volume_from_surface(
        surface, voxel_mm=axes.length_mm / 90, bone_to_world=axes.bone_to_world
    )
    record = BoneRecord(
        id=f"{index:012x}",
        name=name,
        bone="femur",
        side=Side.RIGHT,
        individual=f"cat {index}",
        length_mm=axes.length_mm,
        watertight=True,
        warnings=(),
        source="test",
        created="2024-01-01T00:00:00",
        surface_sha256="",
        volume_sha256=None,
        bone_to_world=axes.bone_to_world,
    )
    local = trimesh.Trimesh(
        apply(invert_rigid(axes.bone_to_world), surface.vertices), surface.faces, process=False
    )
    frame = AnatomicalFrame(axes.bone_to_world, Side.RIGHT, axes.length_mm)
    picture = StandardFrame.for_length(130.0)
    return StudyBone(record, local, sample_bone(record.id, volume, frame, Side.RIGHT, picture))


@pytest.fixture(scope="module")
def bones() -> list[StudyBone]:
    return [make_bone(i, n) for i, n in enumerate(["alpha", HOSTILE, "beta", "unseen & new"])]


@pytest.fixture(scope="module")
def settings() -> StudySettings:
    training = TrainingSettings(
        steps=2, variants_per_bone=1, poses_per_variant=2, bones_per_batch=3, views_per_bone=2
    )
    return StudySettings(unseen=("unseen & new",), training=training, probes=3)


@pytest.fixture(scope="module")
def result(bones: list[StudyBone], settings: StudySettings) -> StudyResult:
    return run_study(bones, settings)


@pytest.fixture(scope="module")
def folder(result: StudyResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    write_report(out, result, title="Cats <1> & others")
    return out


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the text of <data>, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "data":
            self.figures.append((self.elements[-1][1], data))
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def values(folder: Path) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads((folder / "report.json").read_text("utf-8"), parse_constant=refuse)


def test_the_whole_way_answers_every_question(result: StudyResult) -> None:
    assert result.gallery.fingerprints.shape == (3, 7, 128)
    assert result.probes.pictures.shape[:3] == (3, 3, 2)
    assert result.unseen_probes.shape == (1, 3, 128)
    assert result.recognition.probes == 9
    assert [m.name for m in result.nearest.matches] == ["unseen & new"]
    assert list(result.seconds)[-1] == "Measuring against the truth"
    assert min(result.seconds.values()) >= 0.0


def test_the_bone_shown_is_the_one_most_films_chose(result: StudyResult) -> None:
    shown, match = result.alignments[0], result.nearest.matches[0]
    assert result.experiment.gallery_names[shown.chosen] == match.chosen
    assert shown.distance.rms_mm == pytest.approx(result.nearest.rms_mm[0, shown.chosen], rel=1e-9)
    # Moved, never scaled.
    moved, own = shown.surface, result.experiment.known[shown.chosen].surface
    assert moved.volume == pytest.approx(own.volume, rel=1e-9)


def test_a_stopwatch_books_time_where_it_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr("osteoprint.study.whole_way.time.perf_counter", lambda: next(clock))
    heard: list[tuple[str, float, float]] = []
    watch = Stopwatch(lambda *call: heard.append(call))
    watch("a", 1, 2)
    watch("a (loss 3)", 2, 2)
    watch("b", 1, 1)
    watch.book("a")
    assert watch.seconds == {"a": 3.5, "b": 7.0}
    assert heard == [("a", 1, 2), ("a (loss 3)", 2, 2), ("b", 1, 1)]


def test_a_study_without_the_bone_it_names_is_refused(bones: list[StudyBone]) -> None:
    with pytest.raises(BankError, match="nobody"):
        run_study(bones, StudySettings(unseen=("nobody",)))


def test_the_page_loads_nothing(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "srcset", "href", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    assert "https:" not in text
    assert "http:" not in text
    assert not re.search(r"@import|url\(\s*['\"]?(?!\$\{)", text)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_page_is_well_formed_and_small(folder: Path, page: Page) -> None:
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("alt") is not None for t, a in page.elements if t == "img")
    assert {p.name for p in folder.iterdir()} == {"report.html", "report.json"}
    assert (folder / "report.html").stat().st_size < 2_000_000


def test_names_cannot_break_the_page(page: Page) -> None:
    # The data, the page's own script, and nothing else.
    assert [t for t, _ in page.elements].count("script") == 2
    assert HOSTILE in page.text
    assert "Cats <1> & others" in page.text
    data = json.loads(page.scripts[0])
    assert data["map"]["names"] == ["alpha", HOSTILE, "beta", "unseen & new"]


def test_figures_on_the_page_are_those_of_the_json(page: Page, values: dict) -> None:
    seen = set()
    for attributes, text in page.figures:
        value = values
        for key in str(attributes["data-at"]).split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert text == format(value, str(attributes["data-form"]))
        assert float(str(attributes["value"])) == value
        seen.add(attributes["data-at"])
    assert {"summary/named_right", "summary/rms_mm", "summary/threshold"} <= seen
    assert "reconstruction/bones/0/mean_shape_rms_mm" in seen
    assert len(seen) > 40


def test_the_json_is_finite_and_agrees_with_the_study(values: dict, result: StudyResult) -> None:
    def walk(value: object) -> None:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                walk(part)
        assert not isinstance(value, float) or math.isfinite(value)

    walk(values)
    summary = values["summary"]
    assert summary["rank1"] == result.recognition.rank1
    assert summary["named_right"] == round(result.recognition.rank1 * 9)
    assert summary["rms_mm"] == result.nearest.summary()["rms_mm"]
    assert [b["known"] for b in values["bones"]] == [True, True, True, False]
    assert values["bones"][3]["nearest"]["rms_mm"] == values["reconstruction"]["bones"][0]["rms_mm"]
    assert values["settings"]["training"]["steps"] == 2
    assert summary["seconds"] == pytest.approx(sum(values["seconds"].values()))


def test_surfaces_on_the_page_are_the_bones(page: Page, result: StudyResult) -> None:
    solids = json.loads(page.scripts[0])["solids"]["bones"]
    assert len(solids) == 1
    truth = result.experiment.unseen[0].surface
    at = np.frombuffer(base64.b64decode(solids[0]["truth"]["at"]), "<i2").reshape(-1, 3) / 32_000
    faces = np.frombuffer(base64.b64decode(solids[0]["truth"]["faces"]), "<u2").reshape(-1, 3)
    size = np.abs(truth.vertices - truth.bounds.mean(axis=0)).max() * 1.15
    shown = trimesh.Trimesh(at * size, faces, process=False)
    assert shown.volume == pytest.approx(truth.volume, rel=0.01)
    assert np.ptp(shown.vertices, axis=0) == pytest.approx(np.ptp(truth.vertices, axis=0), rel=0.02)
    far = np.frombuffer(base64.b64decode(solids[0]["match"]["far"]), np.uint8)
    vertices = len(base64.b64decode(solids[0]["match"]["at"])) // 6
    assert len(far) == vertices
    assert far.max() > 100


def test_pictures_show_bones(page: Page) -> None:
    sources = [str(a["src"]) for t, a in page.elements if t == "img"]
    for source in sources:
        head, _, body = source.partition(",")
        assert head == "data:image/webp;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("L"))
        assert pixels.std() > 10.0


def test_every_map_point_has_its_thumbnail(page: Page, result: StudyResult) -> None:
    chart = json.loads(page.scripts[0])["map"]
    count = 3 * 7 + 3 * 3 + 3
    assert len(chart["kind"]) == len(chart["labels"]) == len(chart["places"]["tsne"]) == count
    assert chart["kind"].count(2) == 3
    assert {b for b, k in zip(chart["bone"], chart["kind"], strict=True) if k == 2} == {3}
    sheet = Image.open(io.BytesIO(base64.b64decode(chart["sheet"]["src"].partition(",")[2])))
    last = count - 1
    column, row = last % chart["sheet"]["columns"], last // chart["sheet"]["columns"]
    wide, high = chart["sheet"]["width"], chart["sheet"]["height"]
    box = (column * wide, row * high, (column + 1) * wide, (row + 1) * high)
    thumb = np.asarray(sheet.convert("L").crop(box), dtype=float)
    pair = np.hstack(list(result.unseen_films.pictures[0, -1])).astype(float)
    own = np.asarray(Image.fromarray(pair.astype(np.uint8)).resize((wide, high)), dtype=float)
    assert np.corrcoef(thumb.ravel(), own.ravel())[0, 1] > 0.97


def test_failures_are_shown_first_and_named_wrong(result: StudyResult, tmp_path: Path) -> None:
    fingerprints = result.probes.fingerprints.copy()
    fingerprints[0, 1] = result.gallery.fingerprints[2, 3]
    broken = replace(result, probes=replace(result.probes, fingerprints=fingerprints))
    near = nearest_distances(fingerprints, result.gallery.fingerprints)
    shown = examples(near, broken)
    first = next(e for e in shown if (e["bone"], e["pair"]) == (0, 1))
    assert not first["right"]
    assert first["top"][0]["bone"] == 2
    assert first["margin"] < 0
    assert [e["right"] for e in shown] == sorted(e["right"] for e in shown)
    assert len({(e["bone"], e["pair"]) for e in shown}) == len(shown) == 6


def test_a_report_that_cannot_be_finished_leaves_the_old_one(
    result: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, result, title="new")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_file_is_no_folder(result: StudyResult, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        write_report(path, result, title="new")
    assert path.read_text() == "mine"


def test_what_is_not_finite_becomes_null(result: StudyResult) -> None:
    given = {"a": float("nan"), "b": [np.float32(0.5), np.int64(3), np.inf], "c": (True, None)}
    assert plain(given) == {"a": None, "b": [0.5, 3, None], "c": [True, None]}
    json.dumps(facts(result, "t"), allow_nan=False)


def test_film_contrast_keeps_black_black_and_order() -> None:
    image = np.array([[0.0, 1.0], [2.0, 4.0]], np.float32)
    out = film_contrast(image)
    assert out[0, 0] == 0
    assert out[1, 1] == 255
    assert (np.diff(out.ravel().astype(int)) > 0).all()
    assert film_contrast(np.zeros((2, 2), np.float32)).max() == 0


def test_maps_keep_clumps_together_and_repeat() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16)) * 5
    points = (centres[:, None] + 0.05 * rng.normal(size=(4, 10, 16))).reshape(40, 16)
    maps = flat_maps(points.astype(np.float32), seed=3)
    assert maps == flat_maps(points.astype(np.float32), seed=3)
    for places in maps.values():
        flat = np.array(places).reshape(4, 10, 2)
        assert flat.min() >= 0.0
        assert flat.max() <= 1.0
        spread = np.linalg.norm(flat - flat.mean(axis=1, keepdims=True), axis=2).max()
        middles = flat.mean(axis=1)
        apart = min(np.linalg.norm(middles[i] - middles[j]) for i in range(4) for j in range(i))
        assert spread < apart


def test_histogram_counts_shares_of_each_kind() -> None:
    counts = histogram(np.array([0.0, 0.1]), np.array([0.5, 0.9, 1.0]), bins=2)
    assert counts["same"] == [1.0, 0.0]
    assert counts["other"] == pytest.approx([1 / 3, 2 / 3])


def test_thinning_keeps_a_sphere_and_packing_keeps_its_places() -> None:
    ball = trimesh.creation.icosphere(4, radius=10.0)
    thin = thinned(ball, 500)
    assert len(thin.faces) == 500
    assert thin.is_watertight
    assert np.linalg.norm(thin.vertices, axis=1) == pytest.approx(10.0, rel=0.03)
    assert thinned(ball, len(ball.faces)) is ball
    packed = pack(thin, np.zeros(3), 12.0)
    at = np.frombuffer(base64.b64decode(packed["at"]), "<i2").reshape(-1, 3) * 12.0 / 32_000
    np.testing.assert_allclose(at, thin.vertices, atol=12.0 / 32_000)
    assert not packed["wide"]


@pytest.mark.parametrize(
    ("value", "top"), [(0.0, 1.0), (0.31, 0.4), (1.0, 1.0), (7.2, 8.0), (8.1, 10.0), (41.0, 50.0)]
)
def test_colour_scales_end_at_round_numbers(value: float, top: float) -> None:
    assert nice_top(value) == pytest.approx(top)


def test_colours_and_marks() -> None:
    assert colour_table("viridis", steps=2) == [[68, 1, 84], [253, 231, 37]]
    hues = bone_hues(30)
    assert min(abs(a - b) for i, a in enumerate(hues) for b in hues[:i]) > 5.0
    assert re.findall(r">([\d.]+)<", ticks(4.7)) == ["0", "1", "2", "3", "4"]
    assert re.findall(r">([\d.]+)<", ticks(1.59)) == [
        "0",
        "0.25",
        "0.5",
        "0.75",
        "1",
        "1.25",
        "1.5",
    ]


def test_script_data_cannot_end_its_script() -> None:
    text = script_json({"name": HOSTILE})
    assert "<" not in text
    assert json.loads(text) == {"name": HOSTILE}


def test_a_contact_sheet_of_one() -> None:
    sheet = contact_sheet(np.full((1, 2, 30, 10), 90, np.uint8))
    assert (sheet["columns"], sheet["width"], sheet["height"]) == (1, 96, 144)

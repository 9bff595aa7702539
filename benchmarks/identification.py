"""Whose bone is it: the compact network on real femora, known and never seen, gallery and probe.

    python benchmarks/identification.py [--parts train ideal clinic again nearest absent ...]

The network is that of ``osteoprint train`` on ``smir_right_femora`` 00-23 (phantom scans of the
real surfaces); 24-28 are never seen. "ideal" are small plain films at the
paper's angles; "clinic" are films of 0.3 mm pixels with soft tissue, scatter, noise and display
curve, written to files and read again, each simulated on its own at an angle of its own. The
networks and films are kept in ``benchmarks/.cache``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator

import numpy as np

from identification_galleries import OF_BOTH_SIDES, gallery_rows, side_rows
from identification_scene import (
    FEWER,
    KNOWN,
    PAIRS,
    SEED,
    Row,
    Scene,
    clinic_pictures,
    embedded,
    enrolled_of,
    enrolled_pictures,
    flat,
    row,
    study_bones,
)
from identification_shapes import rebuilt_rows, rms_to_known
from osteoprint.bank.error_rates import equal_error
from osteoprint.bank.evidence import Calibration, cllr, eer_interval, min_cllr
from osteoprint.fingerprint.classifier import classified
from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.losses import triplet_accuracy
from osteoprint.fingerprint.samples import (
    PairPose,
    random_pose,
    render_set,
    to_bytes,
)
from osteoprint.study.pairwise import WINDOWS, Told, pair_distances, separated
from osteoprint.xray.camera import Pose
from osteoprint.xray.protocol import PairView
from reconstruction_scene import real_femora
from record import RESULTS, commit, write_result

COMMAND = "python benchmarks/identification.py"
# The paper's: 15 turns and 15 tips, 3 degrees apart, at four energies.
ANGLES_DEG = tuple(float(a) for a in range(-21, 22, 3))
ENERGIES_KEV = (140.0, 146.0, 152.0, 158.0)
BEST = "at the best threshold of these very pairs"
LEARNT = "learnt on changed copies of the known bones, their films stood in for"


def train_rows(scene: Scene) -> Iterator[Row]:
    import torch

    model = scene.model()
    figures = model.card.figures
    films, training = (figures[name] / 60 for name in ("films s", "training s"))
    yield row("CPU training, films and all, 24 bones", films + training, "min",
              note=f"of it films {films:.1f} min, taken at {scene.made_at('films s')}; trained at "
                   f"{scene.made_at('training s')}")  # fmt: skip
    prints = embedded(model, clinic_pictures(scene.unseen, "unseen", scene.frame))
    vectors, whose = flat(prints)
    value = triplet_accuracy(torch.from_numpy(vectors), torch.from_numpy(whose))
    yield row("triplet accuracy, clinic, unseen bones, margin 0.1", value, "share",
              n=len(vectors))  # fmt: skip
    # As the paper validates: other films of the bones that the network was trained on.
    for kind in ("ideal", "clinic"):
        vectors, whose = flat(_other_films(scene, kind))
        value = triplet_accuracy(torch.from_numpy(vectors), torch.from_numpy(whose))
        yield row(f"triplet accuracy, {kind}, other films of known bones, margin 0.1", value,
                  "share", n=len(vectors), paper=0.999,
                  note="the limb and the finder stood in for, as in training")  # fmt: skip


def _other_films(scene: Scene, kind: str) -> np.ndarray:
    """(known, PAIRS, d) fingerprints of films of the known bones that are in no training."""
    rng = np.random.default_rng([SEED, 12])
    shown = [
        to_bytes(read_pair(bone.sample, random_pose(rng), scene.frame, kind, rng))
        for bone in study_bones(scene.known, 0, scene.frame) for _ in range(PAIRS)
    ]  # fmt: skip
    return scene.model().embed_bytes(np.stack(shown)).reshape(KNOWN, PAIRS, -1)


def known_rows(scene: Scene) -> Iterator[Row]:
    """The known bones, enrolled as ``enrol`` does, asked about by films at random turns."""
    model = scene.model()
    enrolled = embedded(model, enrolled_pictures(scene))[:KNOWN]
    written = embedded(model, clinic_pictures(scene.known, "known", scene.frame, FEWER))
    for name, prints, note in (
        ("ideal films", _other_films(scene, "ideal"), "of the scans that are enrolled"),
        ("clinic films", written, "of other scans"),
    ):
        apart = ((prints[:, :, None, None] - enrolled[None, None]) ** 2).sum(-1).min(axis=3)
        right = apart.argmin(axis=2) == np.arange(KNOWN)[:, None]
        yield row(f"rank 1 of {KNOWN}, enrolled by their scans, {name}, known bones",
                  right.mean(), "share", n=right.size, note=note)  # fmt: skip


def ideal_rows(scene: Scene) -> Iterator[Row]:
    """The paper's windows over all pairs of the unseen bones' films."""
    model = scene.model()
    poses = [
        PairPose(Pose(turn, tip), Pose(turn, tip), kev)
        for turn in ANGLES_DEG for tip in ANGLES_DEG for kev in ENERGIES_KEV
    ]  # fmt: skip
    views = [PairView(p.ap.long_deg, p.ap.in_plane_deg, p.energy_kev) for p in poses]
    bones = study_bones(scene.unseen, KNOWN, scene.frame)
    pictures = render_set([b.sample for b in bones], [poses] * len(bones), scene.frame)
    begun = time.perf_counter()
    prints = embedded(model, pictures)
    embedding_s = time.perf_counter() - begun
    vectors, whose = flat(prints)
    begun = time.perf_counter()
    answers = [separated(each, vectors, whose, views * len(bones), 0.1) for each in WINDOWS]
    seconds = time.perf_counter() - begun
    for window, told in zip(WINDOWS, answers, strict=True):
        name = f"pairs, ideal, unseen bones, {window.name}"
        more = {"n": told.genuine + told.impostor, "paper": window.paper}
        yield row(name, told.accuracy, "share", threshold=told.threshold, note=BEST, **more)
        yield row(f"{name}, balanced", told.balanced, "share", **more)
        yield row(f"{name}, the training's margin as threshold", told.at_margin, "share", **more)
    yield row("all six windows of all pairs", seconds, "s", n=len(vectors))
    yield row("fingerprints a second", len(vectors) / embedding_s, "pairs/s", n=len(vectors))
    # k-NN at turns that were not enrolled.
    turns = np.array([v.long_deg for v in views])
    enrolled = np.isin(turns % 6, (0,))
    known, asked = prints[:, enrolled], prints[:, ~enrolled]
    for kind in ("k-NN", "SVM"):
        labels = np.repeat(np.arange(len(bones)), enrolled.sum())
        answer = classified(kind, flat(known)[0], labels, flat(asked)[0])
        right = (answer == flat(asked)[1]).mean()
        yield row(f"{kind}, ideal, unseen bones, angle held out", right, "share",
                  n=len(answer))  # fmt: skip


def clinic_rows(scene: Scene) -> Iterator[Row]:
    model = scene.model()
    prints = embedded(model, clinic_pictures(scene.unseen, "unseen", scene.frame))
    yield from pair_rows("clinic, unseen bones", prints, scene.calibrations()[1])
    yield from one_view_rows("clinic, unseen bones", prints)
    half = PAIRS // 2
    labels = np.repeat(np.arange(len(prints)), half)
    for kind in ("k-NN", "SVM"):
        answer = classified(kind, flat(prints[:, :half])[0], labels, flat(prints[:, half:])[0])
        right = (answer == flat(prints[:, half:])[1]).mean()
        yield row(f"{kind}, clinic, unseen bones, other films", right, "share", n=len(answer))


def again_rows(scene: Scene) -> Iterator[Row]:
    """The unseen bones once more, on films that nobody looked at while film reading was made.

    What is wrong on the films of "clinic" was looked into, one by one; these have other seeds.
    """
    shown = clinic_pictures(scene.unseen, "unseen, again", scene.frame)
    prints = embedded(scene.model(), shown)
    yield from pair_rows("clinic, unseen bones, other films", prints, scene.calibrations()[1])
    yield from one_view_rows("clinic, unseen bones, other films", prints)


def pair_rows(
    name: str, prints: np.ndarray, calibration: Calibration | None = None
) -> Iterator[Row]:
    """All pairs of films of (bones, pairs, d) fingerprints.

    Where a calibration is given, one of other bones, its threshold and its likelihood ratios are
    judged as well; the best threshold is that of the pairs that are judged.
    """
    genuine, impostor = pair_distances(*flat(prints))
    told = Told.of(genuine, impostor)
    count = {"n": len(genuine) + len(impostor)}
    yield row(f"pairs, {name}, all angles", told.right.max(), "share", note=BEST, **count)
    yield row(f"pairs, {name}, all angles, balanced", told.balanced.max(), "share", note=BEST,
              **count)  # fmt: skip
    eer, _ = equal_error(genuine, impostor)
    yield row(f"equal error rate, {name}", eer, "share", ci95=_drawn(prints), **count)
    if calibration is None:
        return
    # A bank's distances are squared.
    same, other = genuine**2, impostor**2
    right = (same <= calibration.threshold).sum() + (other > calibration.threshold).sum()
    yield row(f"pairs, {name}, all angles, the threshold that enrol learns",
              right / count["n"], "share", threshold=calibration.threshold, note=LEARNT,
              **count)  # fmt: skip
    ratios = [np.array([calibration.likelihood_ratio(float(d)) for d in each])
              for each in (same, other)]  # fmt: skip
    yield row(f"Cllr, {name}, the likelihood ratios that enrol learns", cllr(*ratios), "bits",
              note=f"at best {min_cllr(genuine, impostor):.4f}")  # fmt: skip


def _drawn(prints: np.ndarray, draws: int = 1000) -> list[float]:
    """95 % interval of the equal error rate of all pairs, bones drawn anew.

    A pair of two bones belongs to both: so bones are drawn, and all pairs among those taken, a
    bone never being its own impostor.
    """
    rng = np.random.default_rng([SEED, 13])
    bones, apart = len(prints), _apart(prints)
    rates = []
    for _ in range(draws):
        taken = np.sort(rng.integers(0, bones, bones))
        if taken[0] == taken[-1]:
            continue  # one bone alone has no impostor
        genuine = np.concatenate([apart[a, a] for a in taken])
        impostor = np.concatenate([
            apart[a, b] for a, b in itertools.combinations(taken, 2) if a != b
        ])  # fmt: skip
        rates.append(equal_error(genuine, impostor)[0])
    return [round(float(q), 4) for q in np.quantile(rates, [0.025, 0.975])]


def _apart(prints: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Distances of all pairs of films, each once, by whose they are: (bone, the same or a later).

    (bones, pairs, d) fingerprints.
    """
    upper = np.triu_indices(prints.shape[1], 1)
    out = {}
    for a, b in itertools.combinations_with_replacement(range(len(prints)), 2):
        each = np.linalg.norm(prints[a][:, None] - prints[b][None], axis=2)
        out[a, b] = each[upper] if a == b else each.ravel()
    return out


def one_view_rows(name: str, prints: np.ndarray) -> Iterator[Row]:
    """One film pair of each bone enrolled, every other asked about; every choice of one."""
    bones, pairs, _ = prints.shape
    hits = 0
    for view in range(pairs):
        distance = ((prints[:, :, None] - prints[None, None, :, view]) ** 2).sum(axis=3)
        right = distance.argmin(axis=2) == np.arange(bones)[:, None]
        right[:, view] = False
        hits += int(right.sum())
    yield row(f"rank 1 of {bones}, one pair enrolled, {name}", hits / (bones * pairs * (pairs - 1)),
              "share", n=bones * pairs * (pairs - 1))  # fmt: skip


def nearest_rows(scene: Scene) -> Iterator[Row]:
    """The nearest of the known, enrolled as ``enrol`` does, by clinic films of other bones.

    By the mean of a known bone's views, as the program does it, and by the nearest of them: the
    mean was settled on the five unseen bones. Femora of another source, left ones shown as right
    ones, had no part in that.
    """
    model = scene.model()
    enrolled = embedded(model, enrolled_pictures(scene)[:KNOWN])
    views, means = model.of_shape(enrolled), model.shape_of_views(enrolled)
    foreign = real_femora("vsd_femora")
    for name, bones, shown in (
        ("", scene.unseen, clinic_pictures(scene.unseen, "unseen", scene.frame)),
        (f", {len(foreign)} femora of another source", foreign,
         clinic_pictures(foreign, "sides", scene.frame, OF_BOTH_SIDES)),
    ):  # fmt: skip
        prints, truth = embedded(model, shown), rms_to_known(scene, bones)
        told = model.of_shape(prints)
        yield from _picked(f"nearest shape, clinic{name}", truth, told @ means.T)
        by_view = (told @ views.reshape(-1, views.shape[-1]).T).reshape(
            *told.shape[:2], *views.shape[:2]
        )
        yield from _picked(f"nearest shape by the nearest view, clinic{name}", truth,
                           by_view.max(axis=3))  # fmt: skip


def _picked(name: str, truth: np.ndarray, likeness: np.ndarray) -> Iterator[Row]:
    """What the likest of the known is worth.

    (bones, known) mm RMS, (bones, pairs, known) likeness.
    """
    found = np.take_along_axis(truth, likeness.argmax(axis=2), axis=1)
    best = truth.min(axis=1, keepdims=True)
    better = (truth[:, None, :] < found[:, :, None] - 1e-9).sum(axis=2)
    yield row(f"{name}: bones that would have been better, of 24", better.mean(), "bones",
              n=better.size, paper=2.6)  # fmt: skip
    yield row(f"{name}: RMS over the best there is", (found / best).mean(), "ratio",
              n=better.size)  # fmt: skip
    yield row(f"{name}: mean RMS", found.mean(), "mm", n=better.size,
              note=f"the best there is: {best.mean():.2f} mm")  # fmt: skip


def rebuilt_nearest_rows(scene: Scene) -> Iterator[Row]:
    """The same by the surface that is rebuilt from the films, which no network has to do with."""
    yield from rebuilt_rows(scene, rms_to_known(scene, scene.unseen))


def absent_rows(scene: Scene) -> Iterator[Row]:
    """Each bone in turn enrolled and not; the threshold is the one that ``enrol`` learns.

    Bones are enrolled as ``enrol`` does, the nearest of a bone's views counts. The known bones'
    own films are judged beside it: what the network has learnt is kept nearer together; and femora
    of another source.
    """
    model = scene.model()
    known = embedded(model, clinic_pictures(scene.known, "known", scene.frame, FEWER))
    unseen = embedded(model, clinic_pictures(scene.unseen, "unseen", scene.frame))
    foreign = real_femora("vsd_femora")
    others = embedded(model, clinic_pictures(foreign, "sides", scene.frame, OF_BOTH_SIDES))
    enrolled = embedded(model, enrolled_pictures(scene))
    theirs = embedded(model, enrolled_of(foreign, scene.frame))
    fitted = scene.calibrations()[0]
    for name, distances in (
        ("known bone", _in_and_out(known, enrolled[:KNOWN])),
        (f"one of {len(foreign)} femora of another source",
         _in_and_out(others, theirs, [b.person for b in foreign])),
        ("unseen bone", _in_and_out(unseen, enrolled, first=KNOWN)),
    ):  # fmt: skip
        told = [np.mean(each > fitted.threshold) for each in distances]
        for where, share, of in zip(("", "not "), told, distances, strict=True):
            yield row(f'said "not in the bank", {name} {where}enrolled, clinic', share,
                      "share", n=of.size, threshold=fitted.threshold, note=LEARNT)  # fmt: skip
    inside, outside = distances
    hits = inside < outside
    yield row(f"rank 1 of {len(enrolled)}, enrolled by their scans, clinic, unseen bones",
              hits.mean(), "share", n=hits.size)  # fmt: skip
    groups = np.repeat(np.arange(len(inside)), inside.shape[1])
    low, high = eer_interval(inside.ravel(), outside.ravel(), groups, groups)
    yield row("equal error rate of in or not in the bank, unseen bones",
              equal_error(inside.ravel(), outside.ravel())[0], "share",
              ci95=[round(low, 4), round(high, 4)])  # fmt: skip
    ratios = [np.array([fitted.likelihood_ratio(float(d)) for d in x.ravel()])
              for x in (inside, outside)]  # fmt: skip
    yield row(
        "Cllr of the likelihood ratios that enrol learns, unseen bones", cllr(*ratios), "bits"
    )


def _in_and_out(
    asked: np.ndarray, enrolled: np.ndarray, people: list[str] | None = None, *, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(bones, pairs) squared distance to the bone's own films, and to the nearest of all others.

    The first bone that is asked about is the enrolled one of this number. One person's left and
    right are no strangers to each other: where there are such, `people` says whose bones they are.
    """
    apart = ((asked[:, :, None, None] - enrolled[None, None]) ** 2).sum(-1).min(axis=3)
    index = np.arange(len(asked))
    own = apart[index, :, first + index]
    apart[index, :, first + index] = np.inf
    if people is not None:
        whose = np.array(people)
        apart[np.broadcast_to((whose[:, None] == whose)[:, None], apart.shape)] = np.inf
    return own, apart.min(axis=2)


PARTS: dict[str, Callable[[Scene], Iterator[Row]]] = {
    "train": train_rows,
    "known": known_rows,
    "ideal": ideal_rows,
    "clinic": clinic_rows,
    "again": again_rows,
    "nearest": nearest_rows,
    "rebuilt": rebuilt_nearest_rows,
    "absent": absent_rows,
    "galleries": gallery_rows,
    "sides": side_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Identification on real femora.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--galleries", nargs="+", type=int, help="How many bones stand in them.")
    asked = parser.parse_args()
    parts, scene, path = asked.parts, Scene(), RESULTS / "identification.json"
    scene.galleries = asked.galleries or scene.galleries
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    for part in parts:
        made = []
        for each in PARTS[part](scene):
            made.append({**each, "part": part, "commit": commit()})
            print(json.dumps(made[-1]), flush=True)
        rows = [r for r in rows if r["part"] != part] + made
        order = list(PARTS)
        rows.sort(key=lambda r: order.index(r["part"]))
        write_result("identification", COMMAND, SEED, "24 known and 5 unseen real femora", rows)


if __name__ == "__main__":
    main()

"""The network that ships, on real bones: it was trained on the program's own phantoms alone.

    python benchmarks/out_of_the_box.py [--parts legs unseen femora] [--model FILE]

29 femora of ``smir_right_femora``, films of the preset "clinic", each written, read and simulated
on its own; the scale is that of a bank whose longest bone is the longest of 00-23. And the four
bones of ``vhf_lower_legs``, by the commands a user types, from a real CT. ``--model`` names
another network of the kind that ``train --phantoms`` makes.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from identification import one_view_rows, pair_rows
from identification_scene import (
    FEWER,
    SEED,
    Row,
    Scene,
    all_clinic_pictures,
    clinic_pictures,
    embedded,
    enrolled_pictures,
    flat,
    row,
)
from osteoprint.bank.store import Bank
from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.gallery import gallery_pictures
from osteoprint.fingerprint.model import SHIPPED, Model, load_model
from osteoprint.fingerprint.samples import GALLERY_TURNS_DEG, random_pose, to_bytes
from osteoprint.study.experiment import load_bone
from osteoprint.study.pairwise import Told
from osteoprint.study.phantom_network import ROOM
from osteoprint.xray.standard import StandardFrame
from record import RESULTS, commit, real_bones, write_result
from whole_way import osteoprint

# Which of the views that ``enrol`` makes of a scan are looked at.
PLAIN, EVERY = slice(len(GALLERY_TURNS_DEG)), slice(None)


def unseen_rows(unit: Model, scene: Scene) -> Iterator[Row]:
    """The five that the other benchmarks ask about, on the same films."""
    model = unit.at_scale(max(b.frame.length_mm for b in scene.known))
    prints = embedded(model, clinic_pictures(scene.unseen, "unseen", scene.frame))
    yield from one_view_rows("5 real femora, clinic", prints)
    yield from pair_rows("5 real femora, clinic", prints)


def femur_rows(unit: Model, scene: Scene) -> Iterator[Row]:
    """All 29: of these none was ever shown to the network."""
    model = unit.at_scale(max(b.frame.length_mm for b in scene.known))
    prints = embedded(model, all_clinic_pictures(scene))
    name = "29 real femora, clinic"
    yield from one_view_rows(name, prints)
    yield from pair_rows(name, prints)
    enrolled = embedded(model, enrolled_pictures(scene))
    for views, chosen in (("seven plain views", PLAIN), ("as by enrol", EVERY)):
        answer = _nearest(prints, enrolled[:, chosen])
        yield row(f"rank 1, {name}, enrolled by their scans, {views}",
                  (answer == np.arange(len(prints))[:, None]).mean(), "share",
                  n=answer.size)  # fmt: skip


def leg_rows(unit: Model, _: Scene) -> Iterator[Row]:
    """Tibiae and fibulae of both legs of one person.

    On films a left bone is the mirror image of a right one, and no side is told.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with tarfile.open(real_bones() / "vhf_lower_legs" / "slices.tar.xz") as archive:
            archive.extractall(work / "vhf", filter="data")
        osteoprint("ingest", str(work / "vhf"), "--bank", str(work / "legs"),
                   "--individual", "vhf", "--repair")  # fmt: skip
        with Bank.open(work / "legs") as bank:
            records = sorted(bank.bones(), key=lambda r: r.name)
            longest = max(r.length_mm for r in records)
            model, frame = unit.at_scale(longest), StandardFrame.for_length(ROOM * longest)
            bones = [load_bone(bank, record, frame) for record in records]
    for kind in ("ideal", "clinic"):
        rng = np.random.default_rng([SEED, 21])
        shown = np.stack([
            np.stack([
                to_bytes(read_pair(bone.sample, random_pose(rng), frame, kind, rng))
                for _ in range(FEWER)
            ])
            for bone in bones
        ])  # fmt: skip
        prints = embedded(model, shown)
        name = f"4 lower-leg bones of a real CT, {kind}"
        yield from one_view_rows(name, prints)
        yield from pair_rows(name, prints)
        index = np.arange(len(bones))
        kinds = np.array([r.bone for r in records])
        answer = prints.reshape(-1, prints.shape[-1]) @ prints[:, 0].T
        right_kind = kinds[answer.argmax(axis=1)] == np.repeat(kinds, FEWER)
        yield row(f"rank 1 is of the right kind, {name}", right_kind.mean(), "share",
                  n=right_kind.size)  # fmt: skip
        enrolled = embedded(
            model, np.stack([gallery_pictures(bone.sample, frame) for bone in bones])
        )
        shown_kind = kinds[_nearest(prints, enrolled)]
        right, count = _pairs_by_kind(prints, shown_kind)
        yield row(f"pairs, {name}, all angles, by kind as verify does", right, "share", n=count,
                  note="kind by the nearest enrolled bone; each kind at its best threshold of "
                  "these very pairs")  # fmt: skip
        for views, chosen in (("seven plain views", PLAIN), ("as by enrol", EVERY)):
            nearest = _nearest(prints, enrolled[:, chosen])
            yield row(f"rank 1, {name}, enrolled by their scans, {views}",
                      (nearest == index[:, None]).mean(), "share", n=nearest.size)  # fmt: skip


def _pairs_by_kind(prints: np.ndarray, shown: np.ndarray) -> tuple[float, int]:
    """(share of all pairs of film pairs told right, how many) of (bones, pairs, d) fingerprints.

    Each kind of bone that is seen, (bones, pairs) in `shown`, has its best threshold; two that seem
    to be of two kinds are judged by the lower one.
    """
    vectors, whose = flat(prints)
    one, other = np.triu_indices(len(vectors), 1)
    apart, same = ((vectors[one] - vectors[other]) ** 2).sum(axis=1), whose[one] == whose[other]
    kind, beside = shown.ravel()[one], shown.ravel()[other]
    limit = np.full(len(same), np.inf, np.float32)
    for name in np.unique(shown):
        among = (kind == name) & (beside == name)
        told = Told.of(apart[among & same], apart[among & ~same])
        level = told.levels[told.right.argmax()]
        limit = np.where((kind == name) | (beside == name), np.minimum(limit, level), limit)
    return float(((apart <= limit) == same).mean()), len(same)


def _nearest(asked: np.ndarray, enrolled: np.ndarray) -> np.ndarray:
    """(bones, pairs) the bone whose nearest enrolled fingerprint is nearest."""
    alike = np.einsum("apd,bvd->apbv", asked, enrolled).max(axis=3)
    return np.asarray(alike.argmax(axis=2))


PARTS: dict[str, Callable[[Model, Scene], Iterator[Row]]] = {
    "legs": leg_rows,
    "unseen": unseen_rows,
    "femora": femur_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The network that ships, on real bones.")
    parser.add_argument("--model", type=Path, help="Instead of the one that ships.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    asked = parser.parse_args()
    unit, path = load_model(asked.model or SHIPPED), RESULTS / "out_of_the_box.json"
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    rows = [each for each in kept if each["part"] not in asked.parts]
    for part in asked.parts:
        for each in PARTS[part](unit, Scene()):
            rows.append({**each, "part": part, "commit": commit()})
            print(json.dumps(rows[-1]), flush=True)
    steps = int(unit.card.figures["steps"])
    write_result(
        "out_of_the_box", "python benchmarks/out_of_the_box.py", SEED,
        f"network of phantoms alone, {steps} steps; {FEWER} pairs of films of each real bone", rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()

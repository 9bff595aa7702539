"""How much a `clinic` image looks like a real film: grey values and power spectra, side by side.

    python benchmarks/realism.py

Real films: six of a wrist (two cameras, three frames). Simulated: CT of the radius and ulna
of a wrist (crops of the two bones, set side by side by hand) in an oval arm of muscle, fat
and skin, seen in the same field of view at the same pixel size. Both are read inside the
arm, in the same window along the bones. The films are video, linear in the signal, so their
logarithm is taken; metal beads on the skin are taken out of them, plastic discs are not. A
leg with its own soft tissue, from real CT, is shown beside them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from osteoprint.frames import View
from osteoprint.xray.camera import Pose
from osteoprint.xray.exposure import without
from osteoprint.xray.presets import PRESETS, draw
from osteoprint.xray.projector import TracedVolume, prepare
from realism_scene import (
    PATCH,
    RIGS,
    Floats,
    Rig,
    forearm,
    leg,
    leg_images,
    real_patch,
    simulated,
    without_beads,
)
from record import ROOT, real_bones, write_result

PICTURE = ROOT / "docs" / "pictures" / "realism.png"
BAND = (0.1, 1.0)  # line pairs per mm, at the bone
DRAWS = 6
EDGES = np.geomspace(0.1, 2.4, 28)
MIDDLES = np.sqrt(EDGES[1:] * EDGES[:-1])
IN_BAND = np.digitize(MIDDLES, BAND) == 1


def normalised(patch: Floats) -> Floats:
    """Mean zero, variance one: the unit of grey has no meaning."""
    return (patch - patch.mean()) / patch.std()


def power(patch: Floats, pixel_mm: float) -> Floats:
    """(bins,) power per area of frequency, mm², of the normalised patch, radially averaged."""
    window = np.hanning(PATCH + 2)[1:-1]
    taper = window[:, None] * window[None, :]
    transform = np.fft.fft2(normalised(patch) * taper)
    density = np.abs(transform) ** 2 * pixel_mm**2 / (taper**2).sum()
    f = np.fft.fftfreq(PATCH, pixel_mm)
    radius = np.hypot(f[:, None], f[None, :])
    which = np.digitize(radius.ravel(), EDGES) - 1
    inside = (which >= 0) & (which < len(EDGES) - 1)
    total = np.bincount(which[inside], density.ravel()[inside], minlength=len(EDGES) - 1)
    return total / np.bincount(which[inside], minlength=len(EDGES) - 1)


def histogram(patches: list[Floats]) -> Floats:
    """(64,) shares of grey values, each patch in its own window of 1...99 %."""
    counts = np.zeros(64)
    for patch in patches:
        low, high = np.percentile(patch, [1, 99])
        counts += np.histogram((patch - low) / (high - low), 64, (0.0, 1.0))[0]
    return counts / counts.sum()


def spectrum_of(patches: list[Floats], rig: Rig) -> Floats:
    """(bins,) the patches' geometric mean power."""
    return np.exp(np.mean([np.log(power(patch, rig.pixel_mm)) for patch in patches], axis=0))


def slope(spectrum: Floats) -> float:
    """Of the logarithm of power over that of frequency, within BAND."""
    return float(np.polyfit(np.log(MIDDLES[IN_BAND]), np.log(spectrum[IN_BAND]), 1)[0])


def apart(spectrum: Floats, other: Floats) -> float:
    """Root mean square of the decimal logarithm of their ratio within BAND."""
    return float(np.sqrt(np.mean(np.log10(spectrum / other)[IN_BAND] ** 2)))


def overlap(first: list[Floats], second: list[Floats]) -> float:
    """Of their histograms: 1 where they are the same."""
    return float(np.minimum(histogram(first), histogram(second)).sum())


def takes(traced: TracedVolume, rig: Rig, name: str, seed: int, **changed: object) -> list[Floats]:
    """Several exposures of a preset, each in a pose of its own; the leaves are out of the way.

    ``changed`` replaces attributes of the detector.
    """
    rng = np.random.default_rng(seed)
    patches = []
    for _ in range(DRAWS):
        exposure = without(draw(name, rng), "leaves")
        if changed and exposure.panel is not None:
            exposure = replace(exposure, panel=replace(exposure.panel, **changed))
        pose = Pose(float(rng.uniform(-8, 8)), float(rng.uniform(-5, 5)))
        patches.append(simulated(traced, rig, exposure, pose))
    return patches


def matching_dose(traced: TracedVolume, rig: Rig, films: list[Floats], seed: int) -> float:
    """Photons per mm² behind the arm at which `clinic` is as grainy as the films."""
    grain = (MIDDLES > 1.2) & (MIDDLES < 2.4)
    wanted = np.log(spectrum_of(films, rig))[grain].mean()
    low, high = np.log(1e2), np.log(1e6)
    for _ in range(12):
        middle = (low + high) / 2
        patches = takes(traced, rig, "clinic", seed, photons_per_mm2=float(np.exp(middle)))
        grainy = np.log(spectrum_of(patches, rig))[grain].mean() > wanted
        low, high = (middle, high) if grainy else (low, middle)
    return float(np.exp((low + high) / 2))


def rig_rows(
    traced: TracedVolume, rig: Rig, films: list[Floats], made: dict[str, list[Floats]], seed: int
) -> list[dict[str, object]]:
    """What is measured of one camera."""
    where = f"{rig.view.value} wrist"
    real = spectrum_of(films, rig)
    rest = [[f for f in films if f is not one] for one in films]
    own = [apart(spectrum_of([one], rig), spectrum_of(r, rig)) for one, r in zip(films, rest)]
    same = [overlap([one], r) for one, r in zip(films, rest, strict=True)]
    band = f"{BAND[0]}-{BAND[1]} lp/mm at the bone"

    def row(what: str, value: float, unit: str, n: int = DRAWS, note: str = "") -> dict:
        return {"what": f"{where}: {what}", "value": round(value, 3), "unit": unit, "n": n,
                "note": note}  # fmt: skip

    rows = [
        row("real films, slope of log power", slope(real), "per log frequency", 3, band),
        row("one real film against the others, RMS log10 power ratio", float(np.mean(own)),
            "decades", 3, "how far films of one wrist differ among themselves"),
        row("one real film against the others, histogram overlap", float(np.mean(same)), "share",
            3, "each image in its own window of 1-99 %"),
    ]  # fmt: skip
    for name, patches in made.items():
        spectrum = spectrum_of(patches, rig)
        rows += [
            row(f"{name}, slope of log power", slope(spectrum), "per log frequency"),
            row(f"{name} against real films, RMS log10 power ratio", apart(spectrum, real),
                "decades", DRAWS, band),
            row(f"{name} against real films, histogram overlap", overlap(patches, films), "share"),
        ]  # fmt: skip
    dose = matching_dose(traced, rig, films, seed)
    patches = takes(traced, rig, "clinic", seed, photons_per_mm2=dose)
    rows += [
        row("photons behind the arm that make clinic as grainy as the films", dose, "per mm²",
            DRAWS, "above 1.2 lp/mm; clinic itself draws "
            f"{PRESETS['clinic'].photons_per_mm2}; the films are frames of fluoroscopy"),
        row("clinic at that dose against real films, RMS log10 power ratio",
            apart(spectrum_of(patches, rig), real), "decades"),
    ]  # fmt: skip
    return rows


def main() -> None:
    """Measure, draw and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    wrist = real_bones() / "autoscoper" / "wrist"
    traced = prepare(forearm(wrist / "ct_crops"))
    rows: list[dict[str, object]] = []
    shown = []
    for rig in RIGS:
        print(f"{rig.view.value}: films, presets, dose", file=sys.stderr, flush=True)
        whole = [real_patch(wrist / "films", rig, frame) for frame in rig.middles]
        films = [without_beads(patch) for patch in whole]
        made = {name: takes(traced, rig, name, seed) for name in PRESETS}
        rows += rig_rows(traced, rig, films, made, seed)
        shown.append((rig, whole[1], films, made))
    print("leg", file=sys.stderr, flush=True)
    draw_picture(shown, leg_images(leg(real_bones()), seed), PICTURE)
    path = write_result(
        "realism",
        "make bench-realism",
        seed,
        f"6 real films of one wrist; CT of the same wrist's radius and ulna in a made-up arm, "
        f"{DRAWS} exposures per preset and view, patches of {PATCH} x {PATCH} pixels; display "
        "(contrast, gamma, enhancement) and dose of clinic were narrowed on these films, within "
        "what is usual",
        rows,
    )
    print(path)
    for row in rows:
        print(f"{row['what']:<78} {row['value']:>10} {row['unit']}")


# A camera, one of its films as it is, all of them without beads, and the presets' exposures.
Shown = tuple[Rig, Floats, list[Floats], dict[str, list[Floats]]]
INK = {"real film": "#111111", "ideal": "#4c78a8", "paper": "#b279a2", "clinic": "#1b9e77",
       "bad day": "#e45756"}  # fmt: skip


def draw_picture(
    shown: list[Shown],
    legs: list[tuple[str, Floats]],
    path: Path,
) -> None:
    """The picture: examples above, histograms and spectra below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(16, 9.6), dpi=100)
    grid = figure.add_gridspec(2, 5, left=0.03, right=0.665, top=0.9, bottom=0.452,
                               wspace=0.04, hspace=0.04)  # fmt: skip
    for i, (rig, film, _, made) in enumerate(shown):
        columns = {"real film": film, **{name: made[name][0] for name in PRESETS}}
        order = ("real film", "clinic", "bad day", "paper", "ideal")
        for j, name in enumerate(order):
            axes = figure.add_subplot(grid[i, j])
            put_image(axes, columns[name], name if i == 0 else "")
            if j == 0:
                words = "front view" if rig.view is View.AP else "side view"
                axes.set_ylabel(f"wrist, {words}")
    tall = figure.add_gridspec(1, 3, left=0.672, right=0.995, top=0.9, bottom=0.452, wspace=0.04)
    for j, (name, image) in enumerate(legs):
        put_image(figure.add_subplot(tall[0, j]), image, f"leg, {name}")
    below = figure.add_gridspec(1, 3, left=0.055, right=0.99, top=0.37, bottom=0.07, wspace=0.2)
    put_histograms(figure.add_subplot(below[0, 0]), shown[0])
    for j, each in enumerate(shown):
        put_spectra(figure.add_subplot(below[0, 1 + j]), each)
    title = "Simulated beside real: one wrist in the same field of view; a leg from its own CT"
    figure.suptitle(title, x=0.03, ha="left", fontsize=16)
    save(figure, path)
    plt.close(figure)


def put_image(axes, image: Floats, title: str) -> None:  # type: ignore[no-untyped-def]
    """One image in its own window."""
    low, high = np.percentile(image, [0.5, 99.5])
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, color=INK[title.removeprefix("leg, ")], fontweight="bold")


def put_histograms(axes, each: Shown) -> None:  # type: ignore[no-untyped-def]
    """Grey values of the front view."""
    _, _, films, made = each
    middles = (np.arange(64) + 0.5) / 64
    axes.fill_between(middles, histogram(films) * 64, color="#bbbbbb", label="real film")
    for name in ("ideal", "bad day", "clinic"):
        axes.plot(middles, histogram(made[name]) * 64, color=INK[name], label=name, lw=2)
    axes.set_title("Grey values inside the arm, front view", loc="left")
    axes.set_xlabel("grey (0: 1st percentile, 1: 99th)")
    axes.set_ylabel("share per unit of grey")
    axes.set_ylim(0, 1.15 * max(histogram(made["clinic"]).max(), histogram(films).max()) * 64)
    axes.set_xlim(0, 1)
    axes.legend(frameon=False, loc="upper left")


def put_spectra(axes, each: Shown) -> None:  # type: ignore[no-untyped-def]
    """Power over frequency."""
    rig, _, films, made = each
    bands = np.array([power(film, rig.pixel_mm) for film in films])
    axes.fill_between(MIDDLES, bands.min(axis=0), bands.max(axis=0), color="#bbbbbb")
    axes.loglog(MIDDLES, spectrum_of(films, rig), color=INK["real film"], lw=3, label="real film")
    for name in ("paper", "ideal", "bad day", "clinic"):
        axes.loglog(MIDDLES, spectrum_of(made[name], rig), color=INK[name], lw=2, label=name)
    words = "front" if rig.view is View.AP else "side"
    axes.set_title(f"Power of detail, {words} view", loc="left")
    axes.set_xlabel("line pairs per mm at the bone")
    axes.set_ylabel("power, mm² (variance of the image = 1)")
    axes.set_ylim(2e-6, 6)
    axes.set_xticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower left")


def save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    """As PNG of 256 greys and inks, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    picture.quantize(128, dither=Image.Dither.NONE).save(partial, format="PNG", optimize=True)
    partial.replace(path)


if __name__ == "__main__":
    main()

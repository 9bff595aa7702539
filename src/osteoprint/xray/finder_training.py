"""How the network that finds bones on films was made, and can be made again.

    python -m osteoprint.xray.finder_training --out film_finder.safetensors

Artificial films of parametric bones only. Films are made by one process for each core before
the training begins; the same seed and numbers give the same films.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from osteoprint.xray.film_finder import LOOKED_AT, Finder
from osteoprint.xray.finder_films import draw_film, specimen

# Films are of different widths: they are put into the middle of one that is this wide.
_COLUMNS = LOOKED_AT
_GROUP = 12


@dataclass(frozen=True)
class FinderTraining:
    """What decides about the training."""

    specimens: int = 84
    films_each: int = 20
    held_out: int = 8
    batch: int = 16
    epochs: int = 18
    learning_rate: float = 3e-3
    seed: int = 0


def make_films(
    settings: FinderTraining, workers: int
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """(n, 3, 384, 384) float16 films and (n, 384, 384) bool bones, specimen by specimen."""
    groups = [
        (settings.seed, range(first, min(first + _GROUP, settings.specimens)), settings.films_each)
        for first in range(0, settings.specimens, _GROUP)
    ]
    films, bones = [], []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, (image, mask) in enumerate(pool.map(_group, groups), start=1):
            films.append(image)
            bones.append(mask)
            print(f"films: {done} of {len(groups)} groups", file=sys.stderr, flush=True)  # noqa: T201
    return np.concatenate(films), np.concatenate(bones)


def _group(job: tuple[int, range, int]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Films of a group of specimens, which are neighbours to one another."""
    import numba

    numba.set_num_threads(1)
    seed, numbers, each = job
    group = [specimen(seed * 10_000 + number) for number in numbers]
    films = np.zeros((len(group) * each, 3, LOOKED_AT, _COLUMNS), np.float16)
    bones = np.zeros((len(group) * each, LOOKED_AT, _COLUMNS), bool)
    for index in range(len(group) * each):
        bone = group[index // each]
        rng = np.random.default_rng([3, seed, numbers[0] * each + index])
        image, mask = draw_film(bone, group, rng)
        left = (_COLUMNS - image.shape[2]) // 2
        films[index, :, :, left : left + image.shape[2]] = image
        bones[index, :, left : left + image.shape[2]] = mask
    return films, bones


def loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy and one minus the soft Dice overlap, film by film."""
    entropy = functional.binary_cross_entropy_with_logits(logits, truth)
    likely = torch.sigmoid(logits)
    both = (likely * truth).sum(dim=(1, 2, 3))
    dice = (2 * both + 1) / (likely.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3)) + 1)
    return 2 * entropy + (1 - dice).mean()


def train(films: NDArray[np.float16], bones: NDArray[np.bool_], settings: FinderTraining) -> Finder:
    """A finder trained on films; the overlap on specimens held out is printed each epoch."""
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    finder = Finder().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(finder.parameters(), settings.learning_rate, weight_decay=1e-4)
    kept = len(films) - settings.held_out * settings.films_each
    steps = settings.epochs * (kept // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    begun = time.monotonic()
    for epoch in range(settings.epochs):
        finder.train()
        order = torch.randperm(kept, generator=generator).numpy()
        for first in range(0, kept - settings.batch + 1, settings.batch):
            chosen = np.sort(order[first : first + settings.batch])
            image, truth = _batch(films, bones, chosen, generator)
            value = loss(finder(image), truth)
            optimiser.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(finder.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        overlap = held_out_overlap(finder, films[kept:], bones[kept:])
        print(  # noqa: T201
            f"epoch {epoch + 1}: loss {value.item():.4f}, held out: median overlap "
            f"{np.median(overlap):.4f}, worst tenth {np.quantile(overlap, 0.1):.4f}, "
            f"{time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True,
        )  # fmt: skip
    return finder.eval()


def _batch(
    films: NDArray[np.float16],
    bones: NDArray[np.bool_],
    chosen: NDArray[np.int64],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Films as tensors; half of them mirrored, with another brightness."""
    image = torch.from_numpy(films[chosen].astype(np.float32))
    image = image.contiguous(memory_format=torch.channels_last)
    truth = torch.from_numpy(bones[chosen].astype(np.float32))[:, None]
    if torch.rand(1, generator=generator) < 0.5:
        image, truth = image.flip(3), truth.flip(3)
    power = torch.exp(0.3 * torch.randn(len(chosen), 1, 1, generator=generator))
    image[:, 0] = image[:, 0].clamp_min(0) ** power
    return image, truth


def held_out_overlap(
    finder: Finder, films: NDArray[np.float16], bones: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(n,) intersection over union on films."""
    finder.eval()
    out = []
    with torch.inference_mode():
        for first in range(0, len(films), 8):
            part = torch.from_numpy(films[first : first + 8].astype(np.float32))
            found = (finder(part)[:, 0] > 0).numpy()
            truth = bones[first : first + 8]
            both = (found & truth).sum(axis=(1, 2))
            out.append(both / np.maximum((found | truth).sum(axis=(1, 2)), 1))
    return np.concatenate(out)


def main() -> None:
    """Make films, train, write the weights."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--specimens", type=int, default=FinderTraining.specimens)
    parser.add_argument("--films-each", type=int, default=FinderTraining.films_each)
    parser.add_argument("--epochs", type=int, default=FinderTraining.epochs)
    parser.add_argument("--films", type=Path, help="keep the films here (.npz), or take them")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    settings = FinderTraining(given.specimens, given.films_each, epochs=given.epochs)
    if given.films and given.films.exists():
        with np.load(given.films, allow_pickle=False) as kept:
            films, bones = kept["films"], kept["bones"]
    else:
        films, bones = make_films(settings, given.workers)
        if given.films:
            np.savez(given.films, films=films, bones=bones)
    finder = train(films, bones, settings)
    weights = {name: value.contiguous() for name, value in finder.state_dict().items()}
    save_file(weights, given.out, metadata={"settings": repr(settings)})


if __name__ == "__main__":
    main()

"""How fast a network trains: this program's loop beside a plain one of timm and torch.

    python benchmarks/training.py [--steps 12]

Both see the same pictures, already in memory, changed by the same function, in batches of the same
size, and minimise a triplet loss on the hardest triplets with AdamW; the plain one takes its loss
and miner from pytorch-metric-learning, and trains the default network, too, as it is beside
networks of timm. In a third, "plain throughout", neither loader nor changes are this program's:
torch's DataLoader hands the pictures over, each changed by torchvision (turned, shifted by whole
pixels, brightness, gamma, noise; without the texture that the others add: less work). Loops take
turns, three times; the best of each counts. Then a run killed five times is compared with one that
was not, bit for bit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from pytorch_metric_learning import losses, miners
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from identification_scene import Row, row
from osteoprint.fingerprint.checkpoint import Checkpoint
from osteoprint.fingerprint.encoder import Encoder, Network
from osteoprint.fingerprint.model import load_model, save_model
from osteoprint.fingerprint.samples import from_bytes, vary
from osteoprint.fingerprint.settings import DEFAULT_NETWORK, TrainingSettings
from osteoprint.fingerprint.training import train
from osteoprint.xray.standard import StandardFrame
from record import write_result

BONES, VIEWS = 24, 3
FRAME = StandardFrame.for_length(480.0)
ROUNDS = 3
KILLS = 5
DEFAULT = "the default (compact, local contrast)"


def pictures() -> np.ndarray:
    """(48, 6, 2, rows, columns) uint8: what is on them does not matter to the speed."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (48, 6, 2, FRAME.rows // 8, FRAME.columns // 8))
    return np.kron(coarse, np.ones((1, 1, 1, 8, 8))).astype(np.uint8)


def ours(network: Network, shown: np.ndarray, steps: int) -> float:
    """Pairs a second."""
    times: list[float] = []
    settings = TrainingSettings(
        network, loss="triplet", steps=steps, bones_per_batch=BONES, views_per_bone=VIEWS,
        accelerator="cpu",
    )  # fmt: skip
    train(
        shown, [f"{k}" for k in range(len(shown))], FRAME, settings,
        progress=lambda share, loss: times.append(time.perf_counter()),
    )  # fmt: skip
    # The first steps set things up.
    return BONES * VIEWS * (len(times) - 3) / (times[-1] - times[2])


def plainly(model: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, np.ndarray]]) -> float:
    """Pairs a second of the loop that one would write, on (n, 2, rows, columns) and (n,) labels."""
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    miner, criterion = miners.BatchHardMiner(), losses.TripletMarginLoss(0.1)
    times = []
    for images, labels in batches:
        prints = functional.normalize(model(images), dim=1)
        told = torch.from_numpy(labels)
        loss = criterion(prints, told, miner(prints, told))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        times.append(time.perf_counter())
    return BONES * VIEWS * (len(times) - 3) / (times[-1] - times[2])


def plain(make: Callable[[], torch.nn.Module], shown: np.ndarray, steps: int) -> float:
    """Pairs a second of a plain loop on pictures that this program changes."""

    def batches() -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        for step in range(steps):
            rng = np.random.default_rng(step)
            labels = np.repeat(rng.choice(len(shown), BONES, replace=False), VIEWS)
            views = rng.integers(0, shown.shape[1], len(labels))
            pictures = torch.from_numpy(from_bytes(shown[labels, views]))
            yield vary(pictures, torch.Generator().manual_seed(step)), labels

    torch.manual_seed(0)
    return plainly(make(), batches())


class Pictures(Dataset[torch.Tensor]):
    """One pair of pictures, changed as a reader of torchvision's manual would."""

    def __init__(self, shown: np.ndarray) -> None:
        self._shown = torch.from_numpy(shown)
        self._changed = v2.Compose([
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomAffine(
                2.0, translate=(1.5 / FRAME.columns, 1.5 / FRAME.rows),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.ColorJitter(brightness=0.15),
            v2.Lambda(lambda picture: picture ** float(torch.empty(1).uniform_(0.7, 1.4))),
            v2.GaussianNoise(sigma=0.015),
        ])  # fmt: skip

    def __getitem__(self, which: tuple[int, int]) -> torch.Tensor:
        pair = self._shown[which]
        # Each film on its own; torchvision knows one channel or three.
        return torch.cat([self._changed(film[None]) for film in pair])


def plain_throughout(
    make: Callable[[], torch.nn.Module], shown: np.ndarray, steps: int, workers: int
) -> float:
    """Pairs a second of a plain loop with torch's loader and torchvision's changes."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    # More than are timed, so that workers do not run out of work before the end.
    labels = [
        np.repeat(rng.choice(len(shown), BONES, replace=False), VIEWS) for _ in range(steps + 6)
    ]
    wanted = [[(int(bone), int(rng.integers(shown.shape[1]))) for bone in each] for each in labels]
    loader: DataLoader[torch.Tensor] = DataLoader(
        Pictures(shown), batch_sampler=wanted, num_workers=workers
    )
    return plainly(make(), zip(loader, labels[:steps], strict=False))


def timm_network(backbone: str) -> Callable[[], torch.nn.Module]:
    """Makes the network as timm has it, with 128 numbers at its end."""
    return lambda: timm.create_model(backbone, in_chans=2, num_classes=128)


def default() -> torch.nn.Module:
    """The compact default network."""
    return Encoder(DEFAULT_NETWORK)


def speeds(steps: int) -> list[Row]:
    shown = pictures()
    loops: dict[str, Callable[[], float]] = {
        DEFAULT: lambda: ours(DEFAULT_NETWORK, shown, steps),
        "resnet18": lambda: ours(Network("resnet18", reductions=(), pooling="whole"), shown, steps),
        "plain resnet18": lambda: plain(timm_network("resnet18"), shown, steps),
        "resnet50": lambda: ours(Network("resnet50", reductions=(), pooling="whole"), shown, steps),
        "plain resnet50": lambda: plain(timm_network("resnet50"), shown, steps),
        "plain default": lambda: plain(default, shown, steps),
    }
    for name, make in (("resnet18", timm_network("resnet18")), ("default", default)):
        for workers in (0, 2):
            loops[f"plain throughout {name}, {workers} workers"] = partial(
                plain_throughout, make, shown, steps, workers
            )
    best = dict.fromkeys(loops, 0.0)
    for _ in range(ROUNDS):
        for name, loop in loops.items():
            best[name] = max(best[name], loop())
            print(name, best[name], flush=True)
    rows = [row(f"training, {name}", value, "pairs/s") for name, value in best.items()]
    for name in ("resnet18", "resnet50"):
        ratio = best[name] / best[f"plain {name}"]
        rows.append(row(f"{name}: this loop over the plain one", ratio, "ratio"))
    for beside in ("plain resnet18", "plain default"):
        ratio = best[DEFAULT] / best[beside]
        rows.append(row(f"the default over {beside}", ratio, "ratio"))
    for name, whose in (("default", DEFAULT), ("resnet18", "resnet18")):
        throughout = max(best[f"plain throughout {name}, {workers} workers"] for workers in (0, 2))
        rows.append(row(f"{name}: this loop over the one that is plain throughout",
                        best[whose] / throughout, "ratio"))  # fmt: skip
    return rows


def child(folder: Path) -> None:
    """One training, from its checkpoint if there is one, which is kept often."""
    Checkpoint.save_sometimes.__defaults__ = (0.2,)
    shown = pictures()[:12]
    settings = TrainingSettings(steps=60, loss="triplet", bones_per_batch=8, accelerator="cpu")
    model = train(
        shown, [f"{k}" for k in range(len(shown))], FRAME, settings,
        checkpoint=folder / "run.checkpoint",
    )  # fmt: skip
    save_model(model, folder / "model.safetensors")


def killed() -> list[Row]:
    """A run killed again and again, against one that was not."""
    with tempfile.TemporaryDirectory() as place:
        calm, hunted = Path(place) / "calm", Path(place) / "hunted"
        for folder in (calm, hunted):
            folder.mkdir()
        command = [sys.executable, __file__, "--child"]
        subprocess.run([*command, str(calm)], check=True)
        kills = 0
        while not (hunted / "model.safetensors").is_file():
            process = subprocess.Popen([*command, str(hunted)])
            if kills == KILLS:
                if process.wait():
                    raise SystemExit("the run that was killed did not go on")
                continue
            checkpoint = hunted / "run.checkpoint"
            before = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
            while process.poll() is None:
                now = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
                if now > before:
                    process.kill()
                    process.wait()
                    kills += 1
                    print(f"killed {kills} times", flush=True)
                    break
                time.sleep(0.02)
        one, two = (
            load_model(f / "model.safetensors").encoder.state_dict() for f in (calm, hunted)
        )
        apart = sum(int((one[k] != two[k]).sum()) for k in one)
    return [
        row(f"numbers of the network that differ after being killed {kills} times", apart, "count",
            n=sum(v.numel() for v in one.values()))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of training; runs that are killed.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--child", type=Path)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child)
        return
    rows = killed() + speeds(asked.steps)
    scale = f"{BONES} bones × {VIEWS} views a step, pictures of 192 × 64, {asked.steps} steps"
    write_result("training", f"python benchmarks/training.py --steps {asked.steps}", 0, scale, rows)


if __name__ == "__main__":
    main()

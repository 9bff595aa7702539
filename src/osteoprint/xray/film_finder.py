"""Where the bone is on a film with soft tissue: a small network's opinion, pixel by pixel.

A U-Net (Ronneberger et al., MICCAI 2015) of some 0.6 million weights, trained on artificial
films of parametric bones alone (:mod:`finder_training`): no real bone has been shown to it.
It ships with the package, so that films can be read before anything was trained.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from osteoprint.errors import ModelError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

WEIGHTS = "film_finder.safetensors"
# The longer side of the image that the network looks at.
LOOKED_AT = 320
# Width over which contrast is made even, in pixels of that image.
_LOCAL_PX = 10.0
_FOLD = 4
_WIDTHS = (40, 56, 72, 96)


class Finder(nn.Module):
    """(n, 3, rows, columns) prepared films -> (n, 1, rows, columns) logits of "bone"."""

    def __init__(self, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        # Four by four pixels become channels first: a fraction of the work at little loss.
        self.fold = nn.PixelUnshuffle(_FOLD)
        self.unfold = nn.PixelShuffle(_FOLD)
        self.down = nn.ModuleList(
            _block(before, after)
            for before, after in zip((3 * _FOLD**2, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(
            _block(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], _FOLD**2, 1)

    def forward(self, films: Tensor) -> Tensor:
        """Logits at the films' own resolution."""
        x = self.fold(films)
        kept: list[Tensor] = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else functional.max_pool2d(x, 2))
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            larger = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([skip, larger], dim=1))
        return self.unfold(self.head(x))


def _block(before: int, after: int) -> nn.Sequential:
    """Two convolutions, each with its normalisation."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def prepared(image: Floats, inside: Bools, air: float) -> Floats:
    """(3, rows, columns) float32 as the network wants it.

    Parameters
    ----------
    image : (rows, columns), bone bright, of the resolution that is looked at.
    inside : (rows, columns) bool, the exposed field.
    air : the grey where the beam met nothing.

    Returns
    -------
    Grey over air in shares of its range; contrast made even locally; the field.
    """
    over = np.where(inside, image - np.float32(air), 0.0).astype(np.float32)
    top = float(np.percentile(over[inside], 99.5)) if inside.any() else 1.0
    over = np.clip(over / max(top, 1e-6), -0.2, 1.2).astype(np.float32)
    weight = np.maximum(ndimage.gaussian_filter(inside.astype(np.float32), _LOCAL_PX), 1e-3)
    mean = ndimage.gaussian_filter(over, _LOCAL_PX) / weight
    detail = np.where(inside, over - mean, 0.0).astype(np.float32)
    spread = np.sqrt(ndimage.gaussian_filter(detail * detail, _LOCAL_PX) / weight)
    detail = detail / (spread + np.float32(0.02))
    return np.stack([over, detail.astype(np.float32), inside.astype(np.float32)])


def bone_probability(image: Floats, inside: Bools, air: float) -> Floats:
    """(rows, columns) float32, 0...1: how likely each pixel of a film shows the long bone.

    Parameters as in :func:`prepared`, at any resolution. Raises ModelError where the weights
    that belong to the package are missing or damaged.
    """
    rows, columns = image.shape
    scale = LOOKED_AT / max(rows, columns)
    blur = 0.4 * max(1 / scale - 1, 0.0)
    smooth = ndimage.gaussian_filter(image, blur) if blur > 0 else image
    size = (max(round(rows * scale), 1), max(round(columns * scale), 1))
    small = _resized(smooth, size)
    field = _resized(inside.astype(np.float32), size) > 0.5
    ready = prepared(small, field, air)
    # In the middle of a square, as in the training: what a network sees beyond a film counts.
    top, left = ((LOOKED_AT - n) // 2 for n in size)
    square = np.zeros((len(ready), LOOKED_AT, LOOKED_AT), np.float32)
    square[:, top : top + size[0], left : left + size[1]] = ready
    with torch.inference_mode():
        logits = network()(torch.from_numpy(square)[None])[0, 0]
    likely = torch.sigmoid(logits).numpy()[top : top + size[0], left : left + size[1]] * field
    return np.asarray(_resized(likely, (rows, columns)), dtype=np.float32)


def _resized(image: Floats, size: tuple[int, int]) -> Floats:
    """The image at another number of pixels, their outer edges kept; linear."""
    at = [(np.arange(n) + 0.5) * (m / n) - 0.5 for n, m in zip(size, image.shape, strict=True)]
    grid = np.meshgrid(*at, indexing="ij")
    return np.asarray(ndimage.map_coordinates(image, grid, order=1, mode="nearest"), np.float32)


@lru_cache(maxsize=1)
def network() -> Finder:
    """The network that ships with the package, ready to be asked."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = files("osteoprint.xray").joinpath(WEIGHTS).read_bytes()
        finder = Finder()
        finder.load_state_dict(load(content))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(
            WEIGHTS, f"cannot be read ({type(error).__name__})", "install osteoprint again"
        ) from None
    return finder.eval()

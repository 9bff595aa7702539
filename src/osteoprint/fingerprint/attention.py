"""Where on the films a network looks: Grad-CAM (Selvaraju et al. 2017), by captum."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from osteoprint.fingerprint.encoder import Encoder

# Brighter than this, in a standard picture, is bone; what surrounds it by so many pixels is
# counted to it, since features are coarse.
_BONE, _AROUND = 0.08, 2


def attention_maps(
    encoder: Encoder, pictures: NDArray[np.float32], towards: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What in the pictures speaks for a fingerprint.

    Parameters
    ----------
    encoder : any backbone.
    pictures : (n, 2, H, W) standard pictures.
    towards : (n, d) unit vectors: the fingerprints that the pictures are to resemble, such as the
        mean of the bone's others.

    Returns
    -------
    (n, H, W) float32 from 0 to a greatest value of 1, for both views together, where views are
    channels; (n, H, 2 W), AP left, where they lie side by side. All 0 where nothing speaks for it.
    """
    from captum.attr import LayerGradCam

    encoder.eval()
    aims = torch.from_numpy(np.ascontiguousarray(towards, np.float32))

    def likeness(images: Tensor) -> Tensor:
        return (encoder.once(images) * aims).sum(dim=1)

    images = torch.from_numpy(np.ascontiguousarray(pictures, np.float32))
    layer = last_map(encoder, images[:1])
    with torch.enable_grad():
        grad_cam = LayerGradCam(likeness, layer)
        coarse = cast(Tensor, grad_cam.attribute(images, relu_attributions=True)).detach()
    rows, columns = images.shape[2:]
    wide = columns if encoder.network.views == "channels" else 2 * columns
    maps = functional.interpolate(coarse, (rows, wide), mode="bilinear", align_corners=False)[:, 0]
    most = maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    return np.asarray((maps / most).numpy(), np.float32)


def last_map(encoder: Encoder, picture: Tensor) -> nn.Module:
    """The deepest part of a backbone that still gives a map, (1, C, h, w) with h, w not 1."""
    found: list[nn.Module] = []

    def seen(module: nn.Module, _: object, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and out.shape[2] * out.shape[3] > 1:
            found.append(module)

    # Modules end in the order of the data; what holds others ends after them.
    hooks = [m.register_forward_hook(seen) for m in encoder.backbone.modules()]
    try:
        with torch.inference_mode():
            encoder.once(picture)
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1]


def bone_of(pictures: NDArray[np.float32], *, side_by_side: bool) -> NDArray[np.bool_]:
    """(n, 2, H, W) standard pictures -> where bone is on the maps of :func:`attention_maps`."""
    from scipy.ndimage import binary_dilation

    bright = pictures > _BONE
    seen = np.concatenate([bright[:, 0], bright[:, 1]], 2) if side_by_side else bright.any(axis=1)
    around = np.ones((1, 2 * _AROUND + 1, 2 * _AROUND + 1), bool)
    return np.asarray(binary_dilation(seen, around))


def share_on_bone(maps: NDArray[np.float32], bone: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) which part of the attention lies on bone; nan where there is none."""
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    on = (maps * bone).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray(np.divide(on, total, out=np.full(len(maps), np.nan), where=total > 0))

"""A film made ready to be fitted: the part around the bone, upright, at any pixel size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.ndimage import gaussian_filter, map_coordinates

from osteoprint.errors import FilmError
from osteoprint.frames import View
from osteoprint.reconstruct.contrast import Seen, smoothed
from osteoprint.reconstruct.shadow import Projection
from osteoprint.xray.film import Film
from osteoprint.xray.standard import foreground, place

Floats = NDArray[np.float64]
Image = NDArray[np.float32]

# Around the bone so much is kept, as a part of its length; the model may turn out larger.
_MARGIN = 0.09
# A parallel beam is a cone from very far away.
_FAR_MM = 1e5
# Blur of the film, in pixels; and of the model, whose outline has no penumbra and no voxels.
BLUR_PX, MODEL_BLUR_PX = 0.7, 1.0
# A local mean reaches so far, as a part of the bone's length (9 mm on a femur of 450 mm).
REACH = 0.02
# At the rim of a rig's round field so much of the film's size is veiled.
_RIM = 0.02
# Beyond the bone's end a film tells something at least so far, or the bone is cut there.
_BEYOND = 0.012


@dataclass(frozen=True, eq=False)
class Shot:
    """A film, where its bone lies, and its beam.

    Attributes
    ----------
    image : (rows, columns) float32, bone bright, air 0.
    exposed : (rows, columns) float32, 1 where the film tells anything.
    view : AP or ML.
    spacing_mm : (row, column) at the detector.
    sdd_mm, sod_mm : distances.
    principal : (row, column) where the central ray meets the detector.
    turn_deg, centre, size_mm : the found bone: how far its upper end leans to the right, the
        middle of its upright box in pixels, and the box's (height, width) in the bone's plane.
    mask : (rows, columns) bool, the found bone, in pixels `mask_px` times as large as the film's.
    cut : whether the bone is cut off at its upper and at its lower end.
    soft : whether soft tissue lies around the bone.
    curved : whether grey values may follow the line integrals by a curve.
    rig : (rotation, shift) world to camera of a calibrated rig; None otherwise.
    """

    image: Image
    exposed: Image
    view: View
    spacing_mm: tuple[float, float]
    sdd_mm: float
    sod_mm: float
    principal: tuple[float, float]
    turn_deg: float
    centre: tuple[float, float]
    size_mm: tuple[float, float]
    mask: NDArray[np.bool_]
    mask_px: float = 1.0
    cut: tuple[bool, bool] = (False, False)
    soft: bool = True
    curved: bool = True
    rig: tuple[Floats, Floats] | None = None

    @classmethod
    def of(cls, film: Film, source: str = "film") -> Shot:
        """The shot of a film as it was read.

        Raises FilmError where no bone stands out.
        """
        geometry = film.radiograph.geometry
        far = not np.isfinite(geometry.sdd_mm)
        principal = ((geometry.rows - 1) / 2, (geometry.columns - 1) / 2)
        if film.camera is not None:
            principal = film.camera.principal_point
        exposed = film.field.inside.astype(np.float32)
        row_mm, column_mm = geometry.spacing_at_bone_mm
        if film.camera is not None:
            inside = ndimage.binary_erosion(
                film.field.inside, iterations=round(_RIM * max(film.whole.shape)), border_value=1
            )
            exposed, mask, turn, soft = inside.astype(np.float32), inside, 0.0, True
            centre, size = _box(inside, (row_mm, column_mm))
        elif film.bone is not None:
            bone = film.bone
            turn, centre = bone.turn_deg, bone.centre
            size = (bone.size[0] * row_mm, bone.size[1] * column_mm)
            soft, mask = bone.tissue is not None, bone.mask
        else:
            found = place(film.radiograph, source)
            turn, centre = -found.turn_deg, found.centre
            size, soft = (found.length_mm, 0.25 * found.length_mm), False
            mask = foreground(film.radiograph.image)
        if not np.isfinite(film.whole).all():
            raise FilmError(source, "has grey values that are not finite", "export it again")
        shot = cls(
            film.whole, exposed, film.radiograph.view, geometry.pixel_spacing_mm,
            _FAR_MM if far else geometry.sdd_mm, _FAR_MM if far else geometry.sod_mm,
            principal, turn, centre, size, mask, round(film.whole.shape[0] / mask.shape[0]),
            (False, False), soft, film.stored.facts.intensity == "display",
            None if film.camera is None else _pose(film.camera.world_to_camera),
        )  # fmt: skip
        if shot.rig is not None:
            return replace(shot, cut=(True, True))
        return replace(shot, cut=(shot._ends_unseen(-1.0), shot._ends_unseen(1.0)))

    @property
    def mirrored(self) -> Shot:
        """The film as one of the other side's bone would look: left and right exchanged."""
        last = self.image.shape[1] - 1
        rig = None
        if self.rig is not None:
            flip = np.diag([-1.0, 1.0, 1.0])
            rig = flip @ self.rig[0] @ flip, flip @ self.rig[1]
        return replace(
            self,
            image=np.ascontiguousarray(self.image[:, ::-1]),
            exposed=np.ascontiguousarray(self.exposed[:, ::-1]),
            mask=np.ascontiguousarray(self._whole_mask()[:, ::-1]),
            mask_px=1.0,
            principal=(self.principal[0], last - self.principal[1]),
            turn_deg=-self.turn_deg,
            centre=(self.centre[0], last - self.centre[1]),
            rig=rig,
        )

    @property
    def axes(self) -> Floats:
        """(3, 3) rotation from camera axes to those in which the bone stands upright."""
        turn = np.deg2rad(self.turn_deg)
        c, s = np.cos(turn), np.sin(turn)
        return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])

    @property
    def centre_mm(self) -> tuple[float, float]:
        """(right, down) of the box's middle from the central ray, upright, at the bone, mm."""
        at = self.axes[:2, :2] @ self.detector_mm(self.centre)
        scale = self.sod_mm / self.sdd_mm
        return float(at[0] * scale), float(at[1] * scale)

    def detector_mm(self, at: tuple[float, float]) -> Floats:
        """(right, down) of a pixel from the central ray at the detector, mm."""
        return np.array(
            [
                (at[1] - self.principal[1]) * self.spacing_mm[1],
                (at[0] - self.principal[0]) * self.spacing_mm[0],
            ]
        )

    def _ends_unseen(self, end: float) -> bool:
        """Whether the film tells nothing just beyond an end: -1 the upper, 1 the lower."""
        away = end * (0.5 + _BEYOND) * self.size_mm[0]
        across = np.linspace(-0.3, 0.3, 7) * self.size_mm[1]
        at = np.stack([across, np.full(7, away)])
        rows, columns = self._pixels(at)
        seen = map_coordinates(self.exposed, [rows, columns], order=0, cval=0.0)
        return bool(np.mean(seen) < 0.5)

    def _pixels(self, upright_mm: Floats) -> tuple[Floats, Floats]:
        """(row, column) of points (2, ...) right and down of the box's middle, at the bone."""
        scale = self.sdd_mm / self.sod_mm
        detector = np.tensordot(self.axes[:2, :2].T, upright_mm, axes=1) * scale
        return (
            detector[1] / self.spacing_mm[0] + self.centre[0],
            detector[0] / self.spacing_mm[1] + self.centre[1],
        )

    def target(self, pixel_mm: float, length_mm: float) -> Target:
        """The upright part around the bone with pixels of `pixel_mm` at the bone.

        ``length_mm`` of the bone, roughly: what is kept around it, and how far means reach.
        """
        image, exposed = self._sampled(self._grid(pixel_mm, length_mm), pixel_mm)
        rows, columns = image.shape
        seen = Seen.of(exposed, REACH * length_mm / pixel_mm)
        focal = self.sod_mm / pixel_mm
        right, down = self.centre_mm
        middle = ((rows - 1) / 2 - down / pixel_mm, (columns - 1) / 2 - right / pixel_mm)
        rotation, shift = self.axes, np.zeros(3)
        if self.rig is not None:
            rotation, shift = self.axes @ self.rig[0], self.axes @ self.rig[1]
        else:
            rotation = np.eye(3)
        projection = Projection(rotation, shift, (focal, focal), middle, (rows, columns))
        return Target(projection, *seen.normalised(smoothed(image, BLUR_PX)), seen)

    def upright(self, pixel_mm: float, length_mm: float) -> tuple[NDArray[np.bool_], Image, Image]:
        """The found bone, the film and its exposure in the pixels of :meth:`target`."""
        at = self._grid(pixel_mm, length_mm)
        image, exposed = self._sampled(at, pixel_mm)
        small = (at + 0.5) / self.mask_px - 0.5
        mask = map_coordinates(self.mask.astype(np.float32), small, order=1, cval=0.0) > 0.5
        return mask, image, exposed

    def _grid(self, pixel_mm: float, length_mm: float) -> Floats:
        """(2, rows, columns): (row, column) on the film of the pixels around the bone."""
        margin = 2 * _MARGIN * length_mm
        rows, columns = (round((mm + margin) / pixel_mm) for mm in self.size_mm)
        v = (np.arange(rows) - (rows - 1) / 2) * pixel_mm
        u = (np.arange(columns) - (columns - 1) / 2) * pixel_mm
        return np.stack(self._pixels(np.stack(np.broadcast_arrays(u[None, :], v[:, None]))))

    def _whole_mask(self) -> NDArray[np.bool_]:
        """The found bone in the film's own pixels."""
        if self.mask_px == 1:
            return self.mask
        at = np.meshgrid(
            *((np.arange(n) + 0.5) / self.mask_px - 0.5 for n in self.image.shape), indexing="ij"
        )
        return np.asarray(map_coordinates(self.mask.astype(np.float32), at, order=1) > 0.5)

    def _sampled(self, at: Floats, pixel_mm: float) -> tuple[Image, Image]:
        """Image and exposure at (2, rows, columns) pixels, blurred to their distance first."""
        low = np.maximum(np.floor(at.min(axis=(1, 2))).astype(int) - 8, 0)
        high = np.minimum(np.ceil(at.max(axis=(1, 2))).astype(int) + 9, self.image.shape)
        if (high <= low).any():
            raise FilmError("film", "shows the bone outside of itself", "check its header")
        part = (slice(low[0], high[0]), slice(low[1], high[1]))
        ratio = [pixel_mm * self.sdd_mm / self.sod_mm / spacing for spacing in self.spacing_mm]
        blur = [0.35 * r if r > 1 else 0.0 for r in ratio]
        weight = self.exposed[part]
        if weight.all():
            image = gaussian_filter(self.image[part], blur)
        else:
            image = gaussian_filter(self.image[part] * weight, blur)
            weight = gaussian_filter(weight, blur)
            image = image / np.maximum(weight, 1e-3)
        inner = at - low[:, None, None]
        out = map_coordinates(image, inner, order=1, mode="nearest")
        seen = map_coordinates(weight, inner, order=1, mode="constant", cval=0.0) > 0.98
        return out.astype(np.float32), seen.astype(np.float32)


def _box(
    inside: NDArray[np.bool_], spacing_mm: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Middle, in pixels, and (height, width), mm, of the box around a mask."""
    ends = [np.flatnonzero(inside.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    middle = tuple(float(e.mean()) for e in ends)
    size = tuple(float(np.ptp(e) + 1) * mm for e, mm in zip(ends, spacing_mm, strict=True))
    return (middle[0], middle[1]), (size[0], size[1])


def _pose(matrix: Floats) -> tuple[Floats, Floats]:
    return matrix[:3, :3].copy(), matrix[:3, 3].copy()


@dataclass(frozen=True, eq=False)
class Target:
    """What a model's image is compared with.

    Attributes
    ----------
    projection : world to the target's pixels. Without a rig the world is the camera's axes,
        turned so that the bone stands upright.
    contrast : (rows, columns) float32, local contrast of the film.
    spread : (rows, columns) float32, the local spread it was divided by.
    seen : where the film tells anything.
    """

    projection: Projection
    contrast: Image
    spread: Image
    seen: Seen

"""Source and detector: where a film was, or will be, taken from.

Camera axes: x to the right in the image, y down, z along the beam (right × down = beam).
The origin is the X-ray source; for a parallel beam it is a point on the central ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from osteoprint.frames import Side, View, invert_rigid, rigid


@dataclass(frozen=True)
class Geometry:
    """The set-up of an X-ray room, without a patient.

    Attributes
    ----------
    rows, columns : size of the image in pixels.
    pixel_spacing_mm : (row, column) distance between pixel centres at the detector.
    sdd_mm : source to detector; infinite for a parallel beam.
    sod_mm : source to the middle of the bone; infinite for a parallel beam.
    """

    rows: int
    columns: int
    pixel_spacing_mm: tuple[float, float]
    sdd_mm: float = 1150.0
    sod_mm: float = 1000.0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or min(self.pixel_spacing_mm) <= 0:
            raise ValueError("an image needs rows, columns and a positive pixel spacing")
        if np.isfinite(self.sdd_mm) != np.isfinite(self.sod_mm):
            raise ValueError("sdd_mm and sod_mm are both finite (cone) or both infinite (parallel)")
        if np.isfinite(self.sdd_mm) and not 0 < self.sod_mm <= self.sdd_mm:
            raise ValueError("the bone lies between source and detector: 0 < sod_mm <= sdd_mm")

    @property
    def magnification(self) -> float:
        """How much larger the bone's middle appears on the detector: sdd / sod."""
        return self.sdd_mm / self.sod_mm if np.isfinite(self.sdd_mm) else 1.0

    @property
    def spacing_at_bone_mm(self) -> tuple[float, float]:
        """(row, column) pixel spacing in the plane of the bone's middle, mm."""
        row, column = self.pixel_spacing_mm
        return row / self.magnification, column / self.magnification


@dataclass(frozen=True)
class Pose:
    """How a bone lies in front of the camera, as deviations from the standard view.

    Attributes
    ----------
    long_deg : turn of the bone about its own long axis.
    in_plane_deg : turn about the beam, which tips the bone over in the image.
    tilt_deg : turn about the image's horizontal axis, which foreshortens the bone.
    shift_mm : (right, down) of the bone's middle, in the plane of the bone.
    """

    long_deg: float = 0.0
    in_plane_deg: float = 0.0
    tilt_deg: float = 0.0
    shift_mm: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Camera:
    """One exposure: a geometry and its place in the world.

    Attributes
    ----------
    geometry : image size, spacing and distances.
    camera_to_world : (4, 4) float64, rigid, camera axes -> LPS mm.
    principal_point : (row, column) pixel where the central ray meets the detector.
    """

    geometry: Geometry
    camera_to_world: NDArray[np.float64]
    principal_point: tuple[float, float] = field(default=(np.nan, np.nan))

    def __post_init__(self) -> None:
        if np.isnan(self.principal_point).any():
            centre = ((self.geometry.rows - 1) / 2, (self.geometry.columns - 1) / 2)
            object.__setattr__(self, "principal_point", centre)

    @property
    def is_parallel(self) -> bool:
        """True for a beam without divergence."""
        return not np.isfinite(self.geometry.sdd_mm)

    @property
    def world_to_camera(self) -> NDArray[np.float64]:
        """(4, 4) LPS mm -> camera axes."""
        return invert_rigid(self.camera_to_world)

    def project(self, points_world: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) LPS mm -> (n, 2) (row, column) in pixels."""
        matrix = self.world_to_camera
        x, y, z = (points_world @ matrix[:3, :3].T + matrix[:3, 3]).T
        scale = 1.0 if self.is_parallel else self.geometry.sdd_mm / z
        row_mm, column_mm = self.geometry.pixel_spacing_mm
        return np.stack(
            [
                y * scale / row_mm + self.principal_point[0],
                x * scale / column_mm + self.principal_point[1],
            ],
            axis=1,
        )

    def detector_plane(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Centre of pixel (0, 0) and the step to the next row and the next column, (3,) LPS mm.

        For a parallel beam the plane passes through the camera's origin.
        """
        row_mm, column_mm = self.geometry.pixel_spacing_mm
        right, down, beam, origin = self.camera_to_world[:3, :4].T
        depth = 0.0 if self.is_parallel else self.geometry.sdd_mm
        first = origin + beam * depth
        first = first - down * row_mm * self.principal_point[0]
        first = first - right * column_mm * self.principal_point[1]
        return first, down * row_mm, right * column_mm


def camera_from_calibration(
    k: NDArray[np.float64],
    r: NDArray[np.float64],
    t_mm: NDArray[np.float64],
    *,
    rows: int,
    columns: int,
) -> Camera:
    """A camera from a calibrated rig: K in pixels, R and t from world to camera.

    The detector is placed where one column is 1 mm wide, since K fixes only the ratio of
    distance to spacing. Raises ValueError where R is no rotation or K is not upright.
    """
    k, r, t_mm = (np.asarray(a, dtype=np.float64) for a in (k, r, t_mm))
    if k.shape != (3, 3) or r.shape != (3, 3) or t_mm.shape != (3,):
        raise ValueError("a calibration needs k (3, 3), r (3, 3) and t_mm (3,)")
    if not np.allclose(r @ r.T, np.eye(3), atol=1e-4) or np.linalg.det(r) < 0:
        raise ValueError("r is not a rotation")
    if min(k[0, 0], k[1, 1]) <= 0:
        raise ValueError("k needs positive focal lengths")
    sdd_mm = float(k[0, 0])
    middle = invert_rigid(rigid(r, t_mm))
    geometry = Geometry(
        rows=rows,
        columns=columns,
        pixel_spacing_mm=(sdd_mm / float(k[1, 1]), 1.0),
        sdd_mm=sdd_mm,
        sod_mm=min(sdd_mm, max(float(t_mm[2]), 1.0)),
    )
    return Camera(geometry, middle, (float(k[1, 2]), float(k[0, 2])))


def standard_view(view: View, side: Side) -> NDArray[np.float64]:
    """(3, 3) rotation from the anatomical frame to camera axes in a standard view.

    Rows are the image's right, the image's down and the beam, in the anatomical frame
    (x proximal, y to the patient's right, z front). AP runs front to back, ML from the
    inner side of the leg to the outer, so that ML looks the other way on a left bone.
    """
    down = np.array([-1.0, 0.0, 0.0])
    outward = 1.0 if side is Side.RIGHT else -1.0
    beam = np.array([0.0, 0.0, -1.0]) if view is View.AP else np.array([0.0, outward, 0.0])
    return np.stack([np.cross(down, beam), down, beam])


def view_camera(
    bone_to_world: NDArray[np.float64],
    view: View,
    side: Side,
    geometry: Geometry,
    pose: Pose | None = None,
) -> Camera:
    """The camera that sees a bone in a standard view, off by ``pose``.

    The bone stays where it is in the world; the camera is placed around it.

    Parameters
    ----------
    bone_to_world : (4, 4) rigid, anatomical frame -> LPS mm.
    view, side : which standard view of which side of the body.
    geometry : image size and distances; the bone's middle lies at ``sod_mm``.
    pose : deviations from the standard view; none when left out.
    """
    pose = pose or Pose()
    rotation = (
        _rotation("z", pose.in_plane_deg)
        @ _rotation("x", pose.tilt_deg)
        @ standard_view(view, side)
        @ _rotation("x", pose.long_deg)
    )
    depth = geometry.sod_mm if np.isfinite(geometry.sod_mm) else 0.0
    bone_to_camera = rigid(rotation, np.array([*pose.shift_mm, depth]))
    return Camera(geometry, bone_to_world @ invert_rigid(bone_to_camera))


def _rotation(axis: str, angle_deg: float) -> NDArray[np.float64]:
    """(3, 3) right-handed rotation about the x or z axis."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    if axis == "x":
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

"""A toy kind of bone: one phantom femur, drawn out, widened, bowed; the same points on all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trimesh

from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.frames import Side, View, anatomical_frame, apply
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.shape.remesh import remeshed
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.film import Film, examine_film, write_film
from osteoprint.xray.projector import prepare
from osteoprint.xray.radiograph import expose

VERTICES = 1500


@dataclass(frozen=True, eq=False)
class Toy:
    """The family: its mesh at rest, in the anatomical frame, and its model."""

    rest: np.ndarray
    faces: np.ndarray
    model: BoneModel

    def variant(self, long: float, wide: float, bow: float) -> np.ndarray:
        """(n, 3) mm: drawn out, widened, and bowed to the front at its middle, in mm."""
        out = self.rest * [1 + long, 1 + wide, 1 + wide]
        half = np.abs(out[:, 0]).max()
        out[:, 2] += bow * (1 - (out[:, 0] / half) ** 2)
        return out

    def film(self, vertices: np.ndarray, view: View, pose: Pose, path: Path) -> Film:
        """A film of a variant, written and read again."""
        surface = trimesh.Trimesh(vertices, self.faces, process=False)
        frame = anatomical_frame(vertices, self.faces, bone="femur", side=Side.RIGHT)
        volume = volume_from_surface(
            surface, voxel_mm=1.2, bone_to_world=frame.bone_to_world, rng=np.random.default_rng(3)
        )
        geometry = Geometry(980, 440, (0.6, 0.6), 1150.0, 1000.0)
        camera = view_camera(frame.bone_to_world, view, Side.RIGHT, geometry, pose)
        taken = expose(prepare(volume), camera, view=view, side=Side.RIGHT)
        path = path / f"{view.value}.png"
        write_film(taken, path)
        return examine_film(path, view)


@pytest.fixture(scope="session")
def toy() -> Toy:
    surface, _ = sample_bone(np.random.default_rng(11), kind="femur", side=Side.RIGHT)
    frame = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    mesh = remeshed(surface, VERTICES, seed=0)
    rest = apply(frame.world_to_bone, np.array(mesh.vertices))
    faces = np.array(mesh.faces, np.int64)
    draft = Toy(rest, faces, None)  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    shapes = np.stack([draft.variant(*rng.normal(0, [0.05, 0.05, 4.0])) for _ in range(9)])
    volume = volume_from_surface(
        trimesh.Trimesh(shapes[0], faces, process=False), voxel_mm=1.2, rng=rng
    )
    model = BoneModel.build(shapes, faces, [(volume, shapes[0])], bone="femur", side=Side.RIGHT)
    return Toy(rest, faces, model)


TRUTH = (0.04, -0.03, 3.0)


@pytest.fixture(scope="session")
def truth(toy: Toy) -> np.ndarray:
    """(n, 3) mm: a variant that is not among the model's."""
    return toy.variant(*TRUTH)


@pytest.fixture(scope="session")
def films(toy: Toy, truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[Film]:
    """AP and ML of it, a few degrees off."""
    folder = tmp_path_factory.mktemp("toy")
    poses = {
        View.AP: Pose(3.0, 2.0, -2.0, (4.0, -5.0)),
        View.ML: Pose(-4.0, -3.0, 2.0, (-3.0, 6.0)),
    }
    return [toy.film(truth, view, pose, folder) for view, pose in poses.items()]

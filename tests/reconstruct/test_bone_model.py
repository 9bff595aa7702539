"""What is known of a kind of bone: learnt, kept, refused."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from osteoprint.ct.volume import Volume
from osteoprint.errors import InputError, ModelError
from osteoprint.reconstruct.bone_model import BoneModel, _layers, vertex_areas
from osteoprint.xray.materials import BODY


def test_a_toy_family_has_three_modes(toy):
    spread = toy.model.shape.deviations
    assert spread[:3].min() > 20 * spread[3:].max()


def test_its_surface_moves_along_normals(toy):
    shares = np.zeros(4)
    shares[2] = 0.5
    moved = toy.model.surface(np.zeros(2), shares) - toy.model.shape.mean
    along = np.einsum("nx,nx->n", moved, toy.model.normals)
    assert np.allclose(along, 0.5 * toy.model.functions[2])
    assert np.allclose(np.linalg.norm(moved, axis=1), np.abs(along))


def test_areas_add_up_to_the_surface():
    sphere = trimesh.creation.icosphere(3, radius=10)
    areas = vertex_areas(np.array(sphere.vertices), np.array(sphere.faces))
    assert areas.sum() == pytest.approx(sphere.area)


def test_layers_read_attenuation_beneath_the_surface():
    """A ball of cortical bone around a core of soft tissue, in air."""
    index = np.indices((81, 81, 81)) - 40.0
    far = np.linalg.norm(index, axis=0)
    hu = np.where(far < 30, 50.0, np.where(far < 36, 1650.0, -1000.0)).astype(np.float32)
    world = np.eye(4)
    world[:3, 3] = -40
    sphere = trimesh.creation.icosphere(3, radius=36)
    depths = np.array([-0.75, 0.0, 0.75, 4.0, 8.0])
    layers = _layers(
        Volume(hu, world), np.array(sphere.vertices), np.array(sphere.faces), depths, 450.0
    )
    soft, _, cortex = BODY.mu_per_mm(70.0)
    assert layers[2].mean() == pytest.approx(cortex, rel=0.03)
    assert layers[4].mean() == pytest.approx(soft, rel=0.03)
    # Half of an edge voxel's bone lies outside of the mesh.
    assert 0.05 * cortex < layers[0].mean() < 0.5 * cortex


def test_in_tissue_only_bone_takes_its_place(toy):
    steps = toy.model.steps_in(0.02)
    through = np.cumsum(toy.model.steps_per_mm - steps, axis=0)
    assert np.allclose(through, 0.02 * toy.model.cover[:, None])
    assert toy.model.cover[-1] == 1.0


def test_it_is_kept_as_it_is(toy, tmp_path):
    path = tmp_path / "femur.safetensors"
    toy.model.save(path)
    again = BoneModel.load(path)
    assert np.array_equal(again.functions, toy.model.functions)
    assert np.array_equal(again.shape.modes, toy.model.shape.modes)
    assert again.shape.side is toy.model.shape.side
    assert [p.name for p in tmp_path.iterdir()] == ["femur.safetensors"]


def test_damaged_files_are_refused(toy, tmp_path):
    path = tmp_path / "femur.safetensors"
    toy.model.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="damaged"):
        BoneModel.load(path)
    with pytest.raises(ModelError, match="no such file"):
        BoneModel.load(tmp_path / "none")


def test_too_few_bones_are_refused(toy):
    shapes = np.stack([toy.rest, toy.rest])
    with pytest.raises(InputError, match="too few"):
        BoneModel.build(shapes, toy.faces, [])

"""The GPU's path lengths and derivatives, against the CPU's and the slow reference.

With a CUDA card the kernels run there; without one the very same kernels run in triton's
interpreter, and are compiled for cards that are not there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from osteoprint.ct.volume import Volume
from osteoprint.errors import InputError
from osteoprint.frames import Side, View, rigid
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.gpu import image_and_gradient_gpu, path_lengths_gpu, to_gpu
from osteoprint.xray.materials import BODY
from osteoprint.xray.pose_gradient import at_pose, image_and_gradient, motion
from osteoprint.xray.projector import path_lengths, path_lengths_reference, prepare, rays

sys.path.append(str(Path(__file__).parent))  # shared with the process that renders
import gpu_samples as samples

CUDA = torch.cuda.is_available()
TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="triton is not installed")
needs_cuda = pytest.mark.skipif(not CUDA, reason="no CUDA device is there")
LARGE = Geometry(400, 200, (0.9, 0.9), 1150.0, 1000.0)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Name -> what the GPU's functions give for the samples; from the interpreter without CUDA."""
    if CUDA:
        return samples.render("cuda")
    path = tmp_path_factory.mktemp("gpu") / "rendered.npz"
    child([samples.__file__, str(path), "cpu"], TRITON_INTERPRET="1")
    with np.load(path) as stored:
        return dict(stored)


def child(command: list[str], **environment: str) -> str:
    """What a Python process prints; fails with what it complained of."""
    names = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, *command], env=names, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
@pytest.mark.parametrize("name", samples.LENGTHS)
def test_path_lengths_are_those_of_the_cpu_and_of_the_reference(rendered, name):
    traced, cameras = samples.LENGTHS[name]()
    count = len(traced.materials.materials)
    assert rendered[name].shape == (len(cameras), count, samples.ROWS, samples.COLUMNS)
    assert rendered[name].dtype == np.float32
    for found, camera in zip(rendered[name], cameras, strict=True):
        slow = path_lengths_reference(traced, camera)
        np.testing.assert_allclose(found, slow, rtol=0, atol=2e-4 * slow.max())
        fast = path_lengths(traced, camera)
        np.testing.assert_allclose(found, fast, rtol=0, atol=1e-3 * slow.max())
        assert name == "nothing" or slow.max() > 1


@needs_triton
def test_one_camera_is_the_first_of_a_batch(rendered):
    np.testing.assert_array_equal(rendered["one camera"], rendered["cone beam"][0])


@needs_triton
def test_rays_along_all_axes_were_tested():
    traced, cameras = samples.LENGTHS["cone beam"]()
    assert {rays(traced, camera).axis for camera in cameras} == {0, 1, 2}


@needs_triton
@pytest.mark.parametrize("name", samples.GRADIENTS)
def test_derivatives_are_those_of_the_cpu(rendered, name):
    traced, cameras = samples.GRADIENTS[name]()
    mu = samples.weights(traced)
    found = zip(rendered[f"{name}: image"], rendered[f"{name}: gradient"], strict=True)
    for (image, gradient), camera in zip(found, cameras, strict=True):
        truth, slopes = image_and_gradient(traced, camera, mu, samples.CENTRE, samples.START)
        assert gradient.shape == (6, samples.ROWS, samples.COLUMNS)
        np.testing.assert_allclose(image, truth, rtol=0, atol=1e-3 * truth.max())
        for kind in (slice(0, 3), slice(3, 6)):
            largest = np.abs(slopes[kind]).max()
            np.testing.assert_allclose(gradient[kind], slopes[kind], rtol=0, atol=1e-3 * largest)
    np.testing.assert_array_equal(rendered[f"{name}: one camera"], rendered[f"{name}: image"][0])


@needs_triton
@pytest.mark.parametrize("name", samples.GRADIENTS)
def test_derivatives_are_those_of_finite_differences(rendered, name):
    traced, cameras = samples.GRADIENTS[name]()
    mu = samples.weights(traced)

    def image(parameters: np.ndarray) -> np.ndarray:
        moved = at_pose(traced, motion(parameters, samples.CENTRE) @ samples.START)
        return np.tensordot(mu, path_lengths_reference(moved, cameras[0]), axes=1)

    gradient = rendered[f"{name}: gradient"][0]
    sizes = []
    for k in range(6):
        step = np.zeros(6)
        step[k] = 1e-4 if k < 3 else 2e-3
        truth = (image(step) - image(-step)) / (2 * step[k])
        sizes.append(np.abs(truth).max())
        error = np.sqrt(((gradient[k] - truth) ** 2).mean())
        # A beam tells little of a shift along it.
        assert error < 0.01 * max(np.sqrt((truth**2).mean()), 0.02 * max(sizes[k // 3 * 3 :])), k
    assert min(max(sizes[:3]), max(sizes[3:])) > 1e-3


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from osteoprint.xray import gpu_kernels

for kernel, fixed in (
    (gpu_kernels.lengths_kernel, {"VIEW": 57, "MATERIALS": 3}),
    (gpu_kernels.lengths_kernel, {"VIEW": 57, "MATERIALS": 7}),
    (gpu_kernels.gradient_kernel, {"VIEW": 139}),
    # Triton builds a size of 1 into the kernel.
    (gpu_kernels.lengths_kernel, {"VIEW": 57, "MATERIALS": 1, "rows": 1, "columns": 1}),
    (gpu_kernels.gradient_kernel, {"VIEW": 139, "rows": 1, "columns": 1}),
):
    kinds = {"cells": "*i32", "views": "*fp32", "out": "*fp32"}
    kinds |= {name: "i32" for name in ("rows", "columns", "count_a", "count_b", "count_n")}
    source = ASTSource(kernel, kinds | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
    for card in (75, 80, 90):
        made = triton.compile(source, target=GPUTarget("cuda", card, 32))
        assert len(made.asm["cubin"]) > 1000
        print(kernel.__name__, card)
"""


@needs_triton
def test_kernels_compile_for_cards_that_are_not_there(tmp_path):
    """To machine code: what the interpreter lets pass and the compiler does not is found here."""
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        pytest.skip("a triton before 3.3 cannot be asked like this")
    said = child(["-c", COMPILE], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert len(said.splitlines()) == 15


def test_what_cannot_be_rendered_is_refused():
    traced = prepare(samples.noise(), samples.table(2))
    camera = samples.cameras("cone")[0]
    with pytest.raises(ValueError, match="one size"):
        path_lengths_gpu(traced, [camera, view_camera(np.eye(4), View.AP, Side.LEFT, LARGE)])
    with pytest.raises(ValueError, match="one at least"):
        path_lengths_gpu(traced, [])
    with pytest.raises(ValueError, match="7 materials"):
        path_lengths_gpu(prepare(samples.noise(), samples.table(8)), camera)
    with pytest.raises(ValueError, match="3 weights for 2"):
        image_and_gradient_gpu(traced, camera, np.ones(3), np.zeros(3))


@needs_triton
def test_devices_without_kernels_are_refused():
    traced = prepare(samples.noise(), samples.table(2))
    for device, problem in (("cpu", "made for CUDA"), ("tpu", "not known"), ("meta", "made for")):
        with pytest.raises(InputError, match=problem):
            path_lengths_gpu(traced, samples.cameras("cone")[0], device)
        with pytest.raises(InputError, match=problem):
            to_gpu(traced, device)


@pytest.mark.skipif(CUDA, reason="a CUDA device is there")
def test_asking_for_a_card_where_there_is_none_says_so():
    traced = prepare(samples.noise(), samples.table(2))
    with pytest.raises(InputError, match=r'no CUDA device is there; use device="cpu"'):
        path_lengths(traced, samples.cameras("cone")[0], device="cuda")


def test_importing_the_module_imports_no_triton():
    """In a process where triton cannot be imported at all, and no card can be seen."""
    script = """
import sys
sys.modules["triton"] = None
from osteoprint.xray.gpu import to_gpu
import torch
assert not torch.cuda.is_initialized()
assert "osteoprint.xray.gpu_kernels" not in sys.modules
import gpu_samples
from osteoprint.errors import InputError
try:
    to_gpu(gpu_samples.one_table(2).traced, "cpu")
except InputError as error:
    print(error)
"""
    said = child(["-c", script], CUDA_VISIBLE_DEVICES="")
    assert said.startswith("triton: cannot be imported")


@needs_cuda
def test_a_large_scan_on_a_card():
    rng = np.random.default_rng(3)
    grid = rng.integers(-1100, 2500, (160, 200, 180)).astype(np.int16)
    traced = prepare(Volume(grid, np.diag([1.0, 1.0, 1.0, 1.0])), BODY)
    world = rigid(np.eye(3), np.array([80.0, 100.0, 90.0]))
    poses = (Pose(), Pose(30.0, 10.0, 20.0), Pose(80.0, 60.0, 40.0))
    cameras = [view_camera(world, v, Side.RIGHT, LARGE, p) for v in View for p in poses]
    together = path_lengths_gpu(traced, cameras).cpu().numpy()
    for found, camera in zip(together, cameras, strict=True):
        truth = path_lengths(traced, camera)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-3 * truth.max())
        np.testing.assert_array_equal(path_lengths(traced, camera, device="cuda"), found)


@needs_cuda
def test_a_scan_is_brought_to_a_card_once_for_all_its_poses():
    traced = prepare(samples.noise(), samples.table(2))
    assert to_gpu(traced) is to_gpu(at_pose(traced, samples.START), "cuda:0")

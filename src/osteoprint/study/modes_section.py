"""The section of a report's page on how the known bones vary: the shape model, to be moved."""

from __future__ import annotations

from typing import Any

import igl
import numpy as np
import trimesh

from osteoprint.shape.placing import vertex_normals
from osteoprint.shape.ssm import ShapeModel
from osteoprint.study.markup import Figures, gradient
from osteoprint.study.rebuilding import SHOWN_MODES
from osteoprint.study.solids import PACKED_SCALE, base64_of, nice_top, pack, still

# The surface shown has so many triangles.
_TRIANGLES = 5_000
# Sliders go so far to both sides, in standard deviations.
REACH_SD = 3.0


def modes_solid(model: ShapeModel) -> dict[str, Any]:
    """The mean and its modes, packed for the page.

    Returns
    -------
    ``match`` : the mean as :func:`osteoprint.study.solids.pack` makes it, with ``far``, how far
    the surface varies in all modes together, one standard deviation along the normal, as a
    share of ``top_mm``; ``moves`` : per shown mode, (n, 3) int16 like the mean's vertices, one
    standard deviation; ``still`` : data URI.
    """
    out = igl.decimate(model.mean, model.faces, _TRIANGLES)
    vertices, faces, near = out[-4], np.asarray(out[-3], np.int64), np.asarray(out[-1])
    if not len(faces):
        vertices, faces, near = model.mean, model.faces, np.arange(len(model.mean))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    scaled = model.modes[:, near] * model.deviations[:, None, None]
    normals = vertex_normals(np.asarray(vertices, np.float64), faces)
    spread = np.sqrt((np.einsum("knx,nx->kn", scaled, normals) ** 2).sum(axis=0))
    top = nice_top(float(np.percentile(spread, 98)))
    level = np.clip(spread / top, 0.0, 1.0)
    centre = mesh.bounds.mean(axis=0)
    # Room for the longest bone that the sliders make.
    size = float(np.abs(mesh.vertices - centre).max()) * 1.3
    packed = pack(mesh, centre, size)
    packed["far"] = base64_of(np.round(255 * level).astype(np.uint8))
    moves = np.round(scaled[:SHOWN_MODES] / size * PACKED_SCALE).astype("<i2")
    return {
        "match": packed,
        "moves": [base64_of(move) for move in moves],
        "top_mm": top,
        "still": still(mesh, level),
    }


def modes(figure: Figures, pictures: dict[str, Any]) -> str:
    """The known bones' mean, and a slider for each mode; empty without a shape model."""
    study = figure.at("rebuilt")
    if not study or not study.get("model"):
        return ""
    own = pictures["modes"]
    sliders = "".join(
        f"<label class=slider><span>mode {k + 1} <small>{figure(f'rebuilt/model/share/{k}', '.1%')}"
        f'</small></span><input type="range" data-mode="{k}" min="-{REACH_SD}" max="{REACH_SD}" '
        f'step="0.1" value="0" aria-label="mode {k + 1}, standard deviations"></label>'
        for k in range(len(own["moves"]))
    )
    return f"""<section id="modes"><h2>How these bones vary</h2>
<p>The shapes of the {figure("rebuilt/model/shapes", "d")} known bones, point by point in
correspondence, as a mean and independent ways to differ from it, the largest first. This is what
is known before a film is seen. The first {len(own["moves"])} of
{figure("rebuilt/model/modes", "d")} make up {figure("rebuilt/model/together", ".0%")} of how the
bones differ; sliders go to {REACH_SD:g} standard deviations.</p>
<article class="card shape"><div>
<span hidden class="under sliders">{sliders}</span>
<p class="note soft">Colour says by how much the surface varies there from bone to bone, one
standard deviation along its normal. Size is part of shape: nothing is scaled.</p></div>
<div><div class="stage"><img class="still" src="{own["still"]}" loading="lazy"
alt="Mean bone from the front and from the side, coloured by how much it varies">
<canvas hidden tabindex="0" role="img" aria-label="3D view of the mean bone; arrow keys turn it, the
sliders change its shape"></canvas><div class="signs" hidden></div></div>
<div class="under"><div class="scale"><i style="background:{gradient(pictures["colours"])}"></i>
<span><b>0</b><b>{own["top_mm"]:g} mm or more</b></span></div></div></div></article></section>
"""

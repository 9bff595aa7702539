"""A fingerprint network for other programs: ONNX, with what it takes to use it."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path

import torch

from osteoprint.errors import ModelError
from osteoprint.fingerprint.model import Model

INPUT, OUTPUT = "pictures", "fingerprints"


def export_onnx(model: Model, path: Path) -> None:
    """Write the network as ONNX; the file appears whole or not at all.

    It takes ``pictures``, (pairs, 2, rows, columns) float32 as ``standard_picture`` makes them,
    AP then ML, and gives ``fingerprints``, (pairs, d) of unit length. The card goes along as
    metadata under ``osteoprint``.

    Raises ModelError where the name is none of an ONNX file, or the exporter is not installed.
    """
    if path.suffix != ".onnx":
        raise ModelError(path, "is not an .onnx name", "end it in .onnx")
    try:
        import onnx
        import onnxscript  # noqa: F401  the exporter asks for it
    except ImportError as error:
        raise ModelError(
            path, f"cannot be written: {error.name} is missing", "pip install 'osteoprint[onnx]'"
        ) from None
    frame = model.card.frame
    example = torch.zeros(2, 2, frame.rows, frame.columns)
    # The exporter tells its progress on standard output, which belongs to --json.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.encoder.eval(),
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"osteoprint": json.dumps(model.card.to_json())})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(proto.SerializeToString())
    partial.replace(path)

"""Settings of a training from a file: what it leaves out is as usual for what it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from osteoprint.fingerprint.settings import DEFAULT_NETWORK, TrainingSettings
from osteoprint.study.training_config import read_training


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("steps = 5", DEFAULT_NETWORK.grid),
        ('[network]\nbackbone = "compact"\ndimension = 64', DEFAULT_NETWORK.grid),
        ('[network]\nbackbone = "resnet10t"', (6, 2)),  # all that this backbone sees
        ('[network]\nbackbone = "resnet10t"\ngrid = [3, 1]', (3, 1)),
    ],
)
def test_a_backbone_named_in_a_file_has_its_own_grid(tmp_path: Path, text: str, grid) -> None:
    config = tmp_path / "training.toml"
    config.write_text(text)
    assert read_training(str(config), TrainingSettings()).network.grid == grid

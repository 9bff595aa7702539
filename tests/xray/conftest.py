"""What the tests of X-rays and films share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # film_samples.py
